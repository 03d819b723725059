"""Content-addressed artifacts: what has been computed once is found again, by what went into it.

An artifact is a folder `root/<kind>/<fingerprint>/`. The fingerprint is a hash of everything
that enters the computation, so a stale result cannot be mistaken for a fresh one: other inputs,
another folder. Builds write into `<fingerprint>.part` under a file lock and rename it when done.
A killed process leaves the `.part` behind, and the next build of the same artifact may resume
from it; nothing half-written is ever seen under a final name.

The readers and writers below keep to json, csv, npy and safetensors (no pickle), and replace a
file in one step. All this guards against the death of a process, not against loss of power.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGES = ("mda", "torch", "transformers", "tokenizers", "pytorch-lightning", "numpy")


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. `built` is True when this very call computed it."""

    path: Path
    kind: str
    fingerprint: str
    manifest: dict[str, Any]
    built: bool


class Store:
    """All artifacts under one root folder, usually `outputs/store`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def get_or_build(
        self, kind: str, inputs: Mapping[str, object], build: Callable[[Path], None]
    ) -> Artifact:
        """The artifact made from `inputs`, built now by `build(part)` unless it is there.

        `build` writes its files into the folder `part`. The folder may hold what an earlier,
        killed build left (never a torn file, if written by the writers below): the build may
        resume from it. If `build` raises, the folder is kept and the error passed on. Any number
        of processes may ask for the same artifact; one builds, the others wait for it.
        """
        name = fingerprint(kind, inputs)
        folder = self.root / kind / name
        if found := _open(folder):
            return found
        with self._lock(folder):
            if found := _open(folder):
                return found
            part = folder.with_name(f"{name}.part")
            resumed = part.exists()
            part.mkdir(parents=True, exist_ok=True)
            for torn in part.rglob(".*.tmp"):
                torn.unlink()
            start = time.perf_counter()
            try:
                build(part)
            except BaseException:
                if not any(part.iterdir()):  # refused before anything was written
                    part.rmdir()
                raise
            manifest = {
                "kind": kind,
                "fingerprint": name,
                "inputs": _plain(inputs, "inputs"),
                "versions": versions(),
                "git": git_state(),
                "wall_s": round(time.perf_counter() - start, 3),
                "resumed": resumed,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_json(part / "manifest.json", manifest)
            part.rename(folder)
        return Artifact(folder, kind, name, manifest, built=True)

    def find(self, kind: str, inputs: Mapping[str, object]) -> Artifact | None:
        """The artifact made from `inputs` if it is there; nothing is built."""
        return _open(self.root / kind / fingerprint(kind, inputs))

    def artifacts(self) -> list[Artifact]:
        """Every finished artifact, by kind, then fingerprint."""
        folders = sorted(path.parent for path in self.root.glob("*/*/manifest.json"))
        found = (_open(path) for path in folders if not path.suffix)
        return [artifact for artifact in found if artifact]

    def parts(self) -> list[Path]:
        """Folders of unfinished builds, running or abandoned, and of interrupted removals."""
        return sorted([*self.root.glob("*/*.part"), *self.root.glob("*/*.trash")])

    def remove(self, folder: Path) -> bool:
        """Delete an artifact or a left-over folder; False if a live process holds its lock."""
        folder = Path(folder)
        try:
            with FileLock(folder.with_name(f"{folder.stem}.lock"), timeout=0):
                # Out of its final name first: a removal that is killed leaves no half artifact.
                trash = folder.with_suffix(".trash")
                if folder != trash:
                    shutil.rmtree(trash, ignore_errors=True)
                    folder.rename(trash)
                shutil.rmtree(trash)
        except Timeout:
            return False
        return True

    @contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            name = f"{folder.parent.name}/{folder.name}"
            print(f"waiting for another process that builds {name}", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _open(folder: Path) -> Artifact | None:
    if not (folder / "manifest.json").is_file():
        return None
    manifest = read_json(folder / "manifest.json")
    return Artifact(folder, folder.parent.name, folder.name, manifest, built=False)


def fingerprint(kind: str, inputs: Mapping[str, object]) -> str:
    """First 16 hex digits of the SHA-256 of `kind` and `inputs` as canonical JSON.

    Allowed are str, int, finite float, bool, None and lists, tuples and string-keyed mappings of
    them; key order and list against tuple make no difference, 1 and 1.0 do. Raises TypeError for
    anything else (paths differ between hosts, array scalars between libraries) and ValueError
    for NaN and infinities, both with the full key.
    """
    content = {"kind": kind, "inputs": _plain(inputs, "inputs")}
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


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None if missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


@cache
def git_state() -> dict[str, Any]:
    """Commit this code stands at and whether it was changed since; None outside a checkout."""
    if not _tracked():
        return {"sha": None, "dirty": None}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {"sha": _git("rev-parse", "HEAD"), "dirty": dirty}


def git_diff() -> bytes:
    """What tracked files differ by from the commit, for `git apply`; empty outside a checkout."""
    if not _tracked():
        return b""
    return _git_bytes("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD", "--", ":/")


def _git(*args: str) -> str:
    return _git_bytes(*args).decode().strip()


def _git_bytes(*args: str) -> bytes:
    command = ["git", "-C", str(Path(__file__).parent), *args]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _tracked() -> bool:
    # An installed copy may lie inside somebody else's repository: ours tracks this file.
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its place when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = "b" not in mode
    try:
        with open(
            temporary, mode, encoding="utf-8" if text else None, newline="" if text else None
        ) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Indented UTF-8 JSON; NaN and infinities are refused with a ValueError."""
    with _replacing(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    return json.loads(Path(path).read_text("utf-8"))


def write_csv(
    path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None = None
) -> None:
    """One line per mapping; `columns` defaults to the first row's keys. None becomes empty.

    Raises ValueError for a row with a key that is no column.
    """
    rows = list(rows)
    with _replacing(path) as file:
        names = columns if columns is not None else list(rows[0]) if rows else []
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows as mappings of strings."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_npy(path: Path, array: np.ndarray) -> None:
    with _replacing(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def read_npy(path: Path, mmap: bool = False) -> np.ndarray:
    """The array, or with `mmap` a read-only view of the file that is read as it is used."""
    return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Named tensors, copied to contiguous memory where needed; metadata are strings."""
    from safetensors.torch import save  # torch takes seconds to import, `mda store ls` needs none

    dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with _replacing(path, "wb") as file:
        file.write(save(dense, dict(metadata) if metadata else None))


def read_safetensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path, device=device)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 over dtype, shape and C-order bytes of each array in turn, 64 hex digits."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
