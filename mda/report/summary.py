"""`summary.json`, which every program leaves in its folder.

Keys: `program`; `seed`; `config` (the file with the resolved configuration); `fingerprints` of
the artifacts used; `results`, what the program found; `files`, name -> what it holds; `hashes`,
SHA-256 of the tables among them; `times` in seconds (`built` lists the stages that were computed by
this very call); `versions` and `git` of the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mda import store


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
    """Write the summary and return it; `more` are keys of a program's own."""
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
