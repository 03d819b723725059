"""One process at a time: file locks, with a fallback where a file system has none.

Locks are flock's, which a process loses when it ends however it ends. Some network file systems do
not support them; there a file that names its owner's host and process serves as the lock. Its owner
renews the file's time every half minute. Left by a dead process of this host it is broken at once;
left by another host it is broken when it has not been renewed for ten minutes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
RENEWED_S = 30.0
STALE_S = 600.0  # twenty renewals missed: a file system that stalls for minutes costs no lock

_told: set[Path] = set()


class Busy(Exception):
    """Another process holds the lock."""


def say(sentence: str) -> None:
    """Prints one sentence to the terminal."""
    print(sentence, file=sys.stderr, flush=True)


@contextlib.contextmanager
def hold(path: Path, waiting: str | None) -> Iterator[None]:
    """Holds the lock of a path for the block.

    If another process has it, prints `waiting` and waits. Raises Busy where `waiting` is None.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is None:
                raise Busy(str(path)) from None
            say(waiting)
            lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        _tell_fallback(path, error)
        with _soft(path.with_name(f"{path.name}.soft"), waiting):
            yield
        return
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _soft(path: Path, waiting: str | None) -> Iterator[None]:
    lock = SoftFileLock(path)
    seen, since, tries = None, time.monotonic(), 0
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            tries += 1
        if waiting is None and tries > 1:  # the first try may have removed a dead process's file
            raise Busy(str(path))
        if waiting is not None and tries == 2:
            say(waiting)
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        pid, host = _owner(path)
        if seen != (status.st_ino, status.st_mtime_ns) or host == socket.gethostname():
            seen, since = (status.st_ino, status.st_mtime_ns), time.monotonic()
        elif time.monotonic() - since > STALE_S:
            say(
                f"{path.name} of process {pid} on {host} was not renewed for {STALE_S:.0f} s: "
                "it is broken"
            )
            path.unlink(missing_ok=True)
            continue
        time.sleep(min(0.05 * tries, 1.0))
    ended = threading.Event()
    threading.Thread(target=_renew, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        lock.release()


def _renew(path: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _owner(path: Path) -> tuple[str, str]:
    """Returns the process and host named in a lock file."""
    try:
        pid, host = path.read_text("utf-8", errors="replace").splitlines()[:2]
    except (OSError, ValueError):
        return "unknown", "an unknown host"
    return pid, host


def _tell_fallback(path: Path, error: OSError) -> None:
    if path.parent not in _told:
        _told.add(path.parent)
        say(
            f"the file system of {path.parent} has no locks ({error.strerror}): files that name "
            "their owner are used instead"
        )
