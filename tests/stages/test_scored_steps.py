"""Which checkpoints TracIn sums over."""

import pytest

from mda.estimator.influence import spread

STEPS = [1750, 2000, 2048, 2250, 2500, 2750, 3000, 3250, 3500]


@pytest.mark.parametrize(
    ("n", "wanted"),
    [
        (1, (2500,)),  # the middle is 2625: of two as near the earlier one
        (2, (1750, 3500)),
        (3, (1750, 2500, 3500)),
        (4, (1750, 2250, 3000, 3500)),
        (9, tuple(STEPS)),
        (50, tuple(STEPS)),
        (None, tuple(STEPS)),
    ],
)
def test_checkpoints_are_spread_over_the_steps_of_the_window(n, wanted):
    assert spread(STEPS, n) == wanted
