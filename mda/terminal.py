"""Output of a program to a terminal, a pipe, and in any encoding."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_terminal() -> Iterator[None]:
    """Runs a program's body so that a closed output or Ctrl-C ends it without a traceback.

    Ctrl-C ends it with exit code 130, and a reader that has left, such as `head`, with 141, as a
    shell expects it. Figures go to files: MPLBACKEND, which a notebook hands down to every process
    that it starts, may name a backend that this environment does not have.
    """
    os.environ["MPLBACKEND"] = "Agg"
    replace_unknown()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _unread():
            raise
        raise SystemExit(141) from None


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Delivers Ctrl-C when the block ends, for libraries that turn it into errors of their own.

    Hydra and OmegaConf do so in `finally` blocks and in handlers of every exception. The block
    should take less than a second. Outside of the main thread, and where Ctrl-C is ignored, nothing
    changes.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            handler(arrived[0], None)


def replace_unknown() -> None:
    """Prints a question mark in place of a character that the output cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _unread() -> bool:
    """Returns whether standard output has lost its reader; pending output is dropped."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
