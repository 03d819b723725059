"""`summary.json`, which every program leaves in its folder.

Keys: `program`; `seed`; `config` (the file with the resolved configuration); `fingerprints` of the
artifacts used; `results` of the program; `files`, descriptions by name; `hashes`, SHA-256 of the
tables among them; `times` in seconds (`built` lists the stages that were computed by this very
call); `versions` and `git` of the code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mda import store


class Stage(Protocol):
    """The part of an artifact that a summary records."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def wall_s(self) -> float: ...

    @property
    def built(self) -> bool: ...


def of_stages(corpus: str, stages: Mapping[str, Stage | None], began: float) -> dict[str, Any]:
    """Returns the keys `fingerprints` and `times` of a program that used these artifacts.

    `began` is when it started, by `time.perf_counter`. An unused stage is None.
    """
    used = {name: stage for name, stage in stages.items() if stage is not None}
    return {
        "fingerprints": {"corpus": corpus, **{name: one.fingerprint for name, one in used.items()}},
        "times": {
            "total_s": time.perf_counter() - began,
            **{f"{name}_s": stage.wall_s for name, stage in used.items()},
            "built": [name for name, stage in used.items() if stage.built],
        },
    }


def write_summary(
    folder: Path,
    program: str,
    *,
    seed: int,
    fingerprints: Mapping[str, str],
    results: Mapping[str, Any],
    files: Mapping[str, str],
    times: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Writes the summary and returns it; `more` are keys of the program's own."""
    content = {
        "program": program,
        "seed": seed,
        "config": "config.yaml",
        "fingerprints": dict(fingerprints),
        "results": dict(results),
        "files": dict(files),
        "hashes": {
            name: store.hash_file(folder / name)
            for name in files
            if name.endswith(".csv") and (folder / name).is_file()
        },
        "times": dict(times),
        "versions": store.versions(),
        "git": store.git_state(),
        **more,
    }
    store.write_json(folder / "summary.json", content)
    return content
