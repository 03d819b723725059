"""The automatic window is arithmetic on the base run's onset and nothing else."""

import inspect

import pytest

from mda.intervention.window import auto_window

CHECKPOINTS = [0, 500, 1000, 1500, 2000, 4000]


@pytest.mark.parametrize(
    ("onset", "expected"),
    [
        (1800.0, (1000, 2800)),
        (1500.0, (1000, 2500)),
        (1499.9, (500, 2500)),
        (300.0, (0, 1300)),
        (3200.5, (2000, 4000)),
    ],
)
def test_window_by_hand(onset, expected):
    window = auto_window(onset, CHECKPOINTS, last_step=4000, before=500, after=1000)
    assert (window.start, window.end) == expected
    assert f"[{window.start}, {window.end})" in window.rule
    assert ("cut to the run's end" in window.rule) == (onset == 3200.5)


def test_the_rule_sees_nothing_but_the_base_run():
    assert list(inspect.signature(auto_window).parameters) == [
        "onset", "checkpoints", "last_step", "before", "after"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"onset": None}, "did not emerge in the base run's 4000 steps"),
        ({"onset": 300.0, "checkpoints": [100, 500]}, "no checkpoint at or before step 0"),
        ({"onset": 1800.0, "checkpoints": []}, "the first is None"),
        ({"onset": 4000.0}, "where the base run ends"),
        ({"onset": 1800.0, "after": 0}, "after=0"),
        ({"onset": 1800.0, "before": -1}, "before=-1"),
    ],
)
def test_no_window_is_one_clear_error(arguments, message):
    given = {"checkpoints": CHECKPOINTS, "last_step": 4000, "before": 500, "after": 1000}
    with pytest.raises(ValueError, match=message):
        auto_window(**(given | arguments))
