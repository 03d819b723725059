"""The steps at which curves are measured."""

from mda.emergence.steps import curve_steps, held_out_every
from mda.schema import EmergenceConfig


def test_a_curve_has_both_ends_and_the_multiples_between_them():
    assert curve_steps(0, 25, 10) == [0, 10, 20, 25]
    assert curve_steps(15, 40, 10) == [15, 20, 30, 40]


def test_held_out_text_is_measured_at_every_so_manieth_point():
    assert held_out_every(EmergenceConfig(every=10, held_out_every=3)) == 30
