"""Checks that an artifact is what was built: sizes, hashes, manifests, and torn files.

A manifest holds the size and SHA-256 of every file beside it, and the key that names the folder.
An unfinished build has no manifest yet; its files have formats that show whether they are complete.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mda.store.files import read_json
from mda.store.keys import Key

MANIFEST = "manifest.json"
FIELDS = {"kind": str, "inputs": dict, "files": dict, "wall_s": (int, float), "created": str}

Hashes = Callable[[list[Path]], list[str]]


class Torn(ValueError):
    """A file of an unfinished build ends too early or cannot be read."""


def recorded_files(folder: Path, hashes: Hashes) -> dict[str, dict[str, Any]]:
    """Returns the size and SHA-256 of every file of a folder but its manifest, by path."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != folder / MANIFEST]
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": found}
        for path, found in zip(paths, hashes(paths), strict=True)
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a finished artifact.

    Raises ValueError, with the reason, where it cannot be used.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        raise ValueError(f"{MANIFEST} " + ("is empty" if empty else "cannot be read")) from error
    for name, kinds in FIELDS.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(name), kinds):
            raise ValueError(f"{MANIFEST} does not hold {name}")
    computed = manifest.get("computed") or {}
    try:
        key = Key(
            manifest["kind"],
            manifest["inputs"],
            computed.get("code", {}),
            computed.get("versions", {}),
            computed.get("device", ""),
        )
        name = key.fingerprint
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    if name != folder.name:
        raise ValueError(f"{MANIFEST} belongs to {manifest['kind']} {name}")
    return manifest


def misfit(folder: Path, files: Mapping[str, Any], hashes: Hashes | None = None) -> str | None:
    """Returns how a folder differs from its manifest, in words; None where it does not.

    Sizes are compared, and with `hashes` the content too.
    """
    paths = []
    for name, entry in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(entry, dict):
            return f"{MANIFEST} cannot be read"
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry.get("size"):
            return f"{name} has {size:,} bytes instead of {entry.get('size'):,}"
        paths.append(path)
    if hashes is None:
        return None
    for name, found in zip(files, hashes(paths), strict=True):
        if found != files[name].get("sha256"):
            return f"{name} has changed since it was built"
    return None


def unlisted(folder: Path, files: Mapping[str, Any]) -> str | None:
    """Returns the name of a file that the manifest does not list, in words.

    Returns None where there is none.

    Nothing reads such a file, so the artifact is still usable, but the file does not belong there.
    """
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if not (names := sorted({*there} - {*files, MANIFEST})):
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}: in the folder, but not in its {MANIFEST}"


def other_owner(folder: Path) -> str | None:
    """Returns the name (or number) of the user who owns a folder; None where it is this user."""
    if (owner := folder.stat().st_uid) == os.getuid():
        return None
    with suppress(KeyError):
        return pwd.getpwuid(owner).pw_name
    return str(owner)


def torn(part: Path) -> str | None:
    """Returns the first incomplete file of an unfinished build, in words.

    Tables are not checked: the code that appends to one repairs a line that a kill cut short.
    """
    checks: Sequence[tuple[str, Callable[[Path], None]]] = (
        ("*.json", _whole_json),
        ("*.npy", _whole_npy),
        ("*.safetensors", _whole_safetensors),
    )
    for pattern, check in checks:
        for path in sorted(part.rglob(pattern)):
            if path == part / MANIFEST or not path.is_file():
                continue
            try:
                check(path)
            except (OSError, EOFError, ValueError, SafetensorError):
                return f"{path.relative_to(part).as_posix()} is torn"
    return None


def set_aside(folder: Path) -> Path:
    """Renames a folder to the first free `<fingerprint>.broken-<n>`; a link stays a link."""
    n = 1
    while os.path.lexists(aside := folder.with_name(f"{folder.stem}.broken-{n}")):
        n += 1
    folder.rename(aside)
    if not aside.is_symlink():
        os.utime(aside)  # its age counts from now
    return aside


def delete(folder: Path) -> None:
    """Deletes a folder with its content; of a link, only the link."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _whole_json(path: Path) -> None:
    json.loads(path.read_text("utf-8"))


def _whole_npy(path: Path) -> None:
    np.load(path, mmap_mode="r", allow_pickle=False)


def _whole_safetensors(path: Path) -> None:
    with safe_open(path, "np"):  # reads the header and compares it with the file's size
        pass
