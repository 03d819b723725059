"""What a long pass says of itself where nobody watches a bar."""

import pytest

from mda.stages import context
from mda.stages.context import Runtime
from mda.store import Store


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: seconds since it was started."""
    now = [0.0]
    monkeypatch.setattr(context.time, "monotonic", lambda: now[0])
    return now


def passed(tmp_path, clock, seconds, progress=True):
    """Go through items that take so long."""
    quiet = Runtime(Store(tmp_path), progress=progress)
    for spent in quiet.bar(seconds, "scores at step 512", len(seconds)):
        clock[0] += spent


def test_a_pass_without_a_terminal_says_every_five_minutes_how_far_it_is(tmp_path, clock, capsys):
    passed(tmp_path, clock, [100.0] * 6 + [250.0] * 4)
    assert capsys.readouterr().err.splitlines() == [
        "scores at step 512: 3 of 10, 0:11:40 left",  # 7 to come at 100 s
        "scores at step 512: 6 of 10, 0:06:40 left",
        "scores at step 512: 8 of 10, 0:08:20 left",  # at 250 s by now
    ]


def test_a_first_item_that_takes_long_to_come_is_no_progress_yet(tmp_path, clock, capsys):
    def slow():
        clock[0] += 1000
        yield from (20.0, 20.0)

    for spent in Runtime(Store(tmp_path)).bar(slow(), "scores", 2):
        clock[0] += spent
    assert capsys.readouterr().err.splitlines() == ["scores: 1 of 2, 0:17:00 left"]


def test_a_short_pass_says_nothing_and_neither_does_one_without_progress(tmp_path, clock, capsys):
    passed(tmp_path, clock, [20.0] * 10)
    passed(tmp_path, clock, [1000.0] * 3, progress=False)
    assert capsys.readouterr().err == ""
