"""Hashes of files that were read before, so that jobs do not read large files again.

A remembered hash counts only while the size, both times and the inode of the file are unchanged. A
file that changed less than two seconds before is not remembered, as a further change might not show
in its times.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from mda.store.files import hash_file, write_json

SETTLED_S = 2.0


class HashMemory:
    """SHA-256 by path, kept in one json file.

    If that file cannot be read or written, files are hashed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def hash_file(self, path: Path) -> str:
        """Returns the SHA-256 of a file's bytes, 64 hex digits."""
        return self.hash_files([path])[0]

    def hash_files(self, paths: list[Path], again: bool = False) -> list[str]:
        """Returns the SHA-256 of each file, with one read and one write of the memory.

        With `again`, all bytes are read, whatever is remembered.
        """
        known, new, hashes = self._read(), {}, []
        for path in paths:
            name, state = str(path.resolve()), _state(path)
            entry = known.get(name)
            if not again and isinstance(entry, list) and entry[:-1] == state:
                hashes.append(str(entry[-1]))
                continue
            hashes.append(hash_file(path))
            settled = time.time() - max(state[1:3]) / 1e9 > SETTLED_S
            if settled and _state(path) == state:
                new[name] = [*state, hashes[-1]]
            elif name in known:
                new[name] = None
        if new:
            self._write(new)
        return hashes

    def _read(self) -> dict[str, list]:
        try:
            content = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, new: dict[str, list | None]) -> None:
        entries = self._read() | new  # what another process has added meanwhile
        with suppress(OSError):
            write_json(self.path, {name: entry for name, entry in entries.items() if entry})


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
