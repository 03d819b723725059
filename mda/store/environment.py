"""Versions of the code: of packages, and of the commit that is checked out."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "tokenizers", "pytorch-lightning", "numpy")
_DISTRIBUTIONS = {"mda": "mechanistic-data-attribution"} | {name: name for name in _PACKAGES}
"""What a record calls a package, and the name that it is installed by."""


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that can change a result.

    Returns None if missing.
    """
    installed = {package: version_of(name) for package, name in _DISTRIBUTIONS.items()}
    return {"python": platform.python_version(), **installed}


def version_of(distribution: str) -> str | None:
    """Returns the version of an installed distribution, None for one that is missing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def git_state() -> dict[str, Any]:
    """Returns the checked-out commit and whether files were changed since.

    Returns None outside a checkout.
    """
    if not _tracked():
        return {"sha": None, "dirty": None}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {"sha": _git("rev-parse", "HEAD"), "dirty": dirty}


def git_diff() -> bytes:
    """Returns the changes of tracked files since the commit, for `git apply`.

    It is empty outside a checkout.
    """
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
