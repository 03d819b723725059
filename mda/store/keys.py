"""The key of an artifact: its inputs, the code that computes it, versions and device.

The key of data is the hash of its inputs. The key of what is computed also holds the source of the
modules that compute it, the versions of torch and transformers, and the kind of device: other code,
another key. Source is compared as a syntax tree without docstrings, so comments, formatting and
words of documentation change nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mda.store.environment import version_of

if TYPE_CHECKING:
    import torch

HOME = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers")
NEVER = ("TYPE_CHECKING", "typing.TYPE_CHECKING")  # conditions of imports that nothing executes
KEEPERS = frozenset(
    f"mda.store{name}"
    for name in (
        "",
        ".artifacts",
        ".environment",
        ".gpus",
        ".integrity",
        ".keys",
        ".locks",
        ".memory",
    )
)
"""Modules that find and keep artifacts and compute none of their values. The readers and writers
of `mda.store.files` are counted."""
SETTLED = (
    "mda.schema", "mda.cost", "mda.stages.context", "mda.stages.corpus", "mda.stages.declared",
    "mda.stages.found", "mda.stages.plugin", "mda.stages.stage", "mda.training.progress",
)  # fmt: skip
"""Modules whose effect is in the inputs (settings, corpora and streams have hashes of their
own), or that make keys, count costs, draw bars and find implementations; what a stage finds by
name it names as a root."""


@dataclass(frozen=True)
class Key:
    """An artifact's key; `code`, `versions` and `device` are empty where only inputs count."""

    kind: str
    inputs: Mapping[str, Any]  # as in the manifest
    code: Mapping[str, str]  # module -> hash of its source
    versions: Mapping[str, str]
    device: str

    @property
    def fingerprint(self) -> str:
        """Name of the artifact's folder, 16 hex digits."""
        if not self.code:
            return fingerprint(self.kind, self.inputs)
        return _hash({"kind": self.kind, "inputs": self.inputs, "computed": self.computed()})

    def computed(self) -> dict[str, Any]:
        """Returns the parts beside the inputs, as in the manifest; empty for data."""
        if not self.code:
            return {}
        return {"code": dict(self.code), "versions": dict(self.versions), "device": self.device}


def make_key(
    kind: str,
    inputs: Mapping[str, object],
    code: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> Key:
    """Returns the key of what is made from `inputs` by the modules `code`, on `device`.

    `code` names the root modules; what they import is followed. Without `device`, the kind is that
    of the machine: its GPU where it has one.
    """
    plain = _plain(inputs, "inputs")
    assert isinstance(plain, dict)
    if not code:
        return Key(kind, plain, {}, {}, "")
    return Key(kind, plain, sources(tuple(sorted(code))), library_versions(), device_kind(device))


def device_kind(device: torch.device | str | None = None) -> str:
    """Returns `cpu` or the name of a GPU, such as `NVIDIA H100 80GB HBM3`, as results differ by it.

    None means the machine's GPU where it has one. Raises RuntimeError for a GPU that the machine
    does not have.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that compute; `none` for one that is missing."""
    return {package: version_of(package) or "none" for package in PACKAGES}


def difference(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Returns the differences of two `Key.computed` in words, modules first."""
    said = []
    code, old = now.get("code", {}), then.get("code", {})
    changed = [_path(name) for name in sorted(code) if name in old and code[name] != old[name]]
    changed = changed or [_path(name) for name in sorted(set(code) ^ set(old))]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        said.append(f"{', '.join(changed[:3])}{more} changed")
    was = then.get("versions", {})
    for name, new in now.get("versions", {}).items():
        if new != was.get(name):
            said.append(f"{name} {was.get(name)} instead of {new}")
    if now.get("device") != then.get("device"):
        said.append(f"on {then.get('device')} instead of {now.get('device')}")
    return "; ".join(said) or "none was recorded"


def fingerprint(kind: str, inputs: Mapping[str, object]) -> str:
    """Returns the first 16 hex digits of the SHA-256 of `kind` and `inputs` as canonical JSON.

    Allowed are str, int, finite float, bool, None and lists, tuples and string-keyed mappings of
    them; key order and list against tuple make no difference, 1 and 1.0 do. Raises TypeError for
    anything else (paths differ between hosts, array scalars between libraries) and ValueError
    for NaN and infinities, both with the full key.
    """
    return _hash({"kind": kind, "inputs": _plain(inputs, "inputs")})


@cache
def sources(roots: Sequence[str], home: Path = HOME) -> Mapping[str, str]:
    """Returns the hash of the source of some modules and of all that they import, by module.

    Followed are imports of `mda` and of the roots' own packages, at the top of a module or inside a
    function, packages above a module included; not those for type checkers alone. `home` is the
    folder that contains `mda`; other roots are looked for on Python's path. Raises
    ModuleNotFoundError for a root that does not exist.
    """
    tops = {"mda", *(root.partition(".")[0] for root in roots)}
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name == "mda.store":  # imported for its readers and writers
            name = "mda.store.files"
        if name in found or name in KEEPERS or name.partition(".")[0] not in tops:
            continue
        if name not in roots and any(f"{name}.".startswith(f"{part}.") for part in SETTLED):
            continue
        if (path := _file(name, home)) is None:
            if name in roots:
                raise ModuleNotFoundError(f"there is no module {name} whose source to hash")
            continue  # a name that is imported from a module, not a module
        found[name], names = _parsed(name, path)
        waiting += names
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return dict(sorted(found.items()))


def imported(tree: ast.AST, module: str, is_package: bool = False) -> Iterator[str]:
    """Yields the full names of a module's imports; for `from a import b`, both `a` and `a.b`.

    The body of `if TYPE_CHECKING:` is left out: it is never executed.
    """
    if isinstance(tree, ast.If) and ast.unparse(tree.test) in NEVER:
        children: list[ast.AST] = list(tree.orelse)
    else:
        children = list(ast.iter_child_nodes(tree))
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        parents = module.split(".")
        cut = len(parents) - tree.level + (1 if is_package else 0)
        base = ".".join([*parents[:cut], tree.module or ""] if tree.level else [tree.module or ""])
        base = base.strip(".")
        yield base
        yield from (f"{base}.{alias.name}" for alias in tree.names)
    for child in children:
        yield from imported(child, module, is_package)


@cache
def _parsed(module: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """Returns the hash of a module's source, and what it imports."""
    tree = ast.parse(path.read_text("utf-8"))
    return _hash(_meaning(tree)), tuple(imported(tree, module, path.name == "__init__.py"))


def _file(module: str, home: Path) -> Path | None:
    parts = module.split(".")
    places = [home] if parts[0] == "mda" else [home, *map(Path, sys.path)]
    for place in places:
        below = place.joinpath(*parts)
        for path in (below / "__init__.py", below.with_name(f"{below.name}.py")):
            if path.is_file():
                return path
    return None


def _path(module: str) -> str:
    path = _file(module, HOME)
    if path is None or not path.is_relative_to(HOME):
        return module
    return path.relative_to(HOME).as_posix()


def _meaning(node: object) -> object:
    """Returns a syntax tree as plain lists, without positions, empty fields and docstrings.

    Python's own dump differs between its versions where fields are empty.
    """
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.AST):
        fields = ((name, _meaning(value)) for name, value in ast.iter_fields(node))
        return [type(node).__name__, *(pair for pair in fields if pair[1] not in (None, []))]
    if isinstance(node, list):
        return [_meaning(item) for item in node if not _is_text(item)]
    return node if node is None or isinstance(node, str | int) else repr(node)


def _is_text(node: object) -> bool:
    """Returns whether a statement is a docstring, or a string that documents a name."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object, key: str) -> object:
    # Exact types: numpy.float64 is a float to isinstance, and prints differently.
    if value is None or type(value) in (str, int, bool):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}; a fingerprint takes finite numbers only")
        return value
    if isinstance(value, Mapping):
        if bad := [name for name in value if type(name) is not str]:
            raise TypeError(f"{key} has the key {bad[0]!r}; a fingerprint takes string keys only")
        return {name: _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{key} is {value!r} of type {type(value).__module__}.{type(value).__qualname__}; "
        "a fingerprint takes str, int, float, bool, None, and lists and dicts of them"
    )
