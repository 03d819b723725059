"""Cards by their data sheets, and tables of costs in words."""

import pytest

from mda.config import compose
from mda.cost.hardware import CARDS, INTENSITY, WORK, rates_of_card
from mda.report.costs import StageTotal, amount, cells, duration
from mda.schema import ConfigError
from mda.schema.plan import HARDWARE


def test_every_card_that_a_setting_names_is_in_the_table_with_its_source():
    assert set(HARDWARE) == {"this", *CARDS}
    assert all(card.source and card.bf16 > card.fp32 for card in CARDS.values())


def test_a_card_that_is_not_in_the_table_is_refused():
    with pytest.raises(ConfigError, match=r"plan\.hardware=h101 is invalid; expected one of this"):
        compose(["plan.hardware=h101"])


def test_half_precision_counts_in_training_alone_and_the_share_is_called_an_assumption():
    single, half = (rates_of_card("h100", 0.25, half, 4096) for half in (False, True))
    assert set(single.of) == set(half.of) == set(WORK)
    assert {single.of[kind] for kind in WORK} == {0.25 * 67e12}
    assert half.of["update"] == 0.25 * 989e12 and half.of["score"] == 0.25 * 67e12
    assert "assumed: 25% of it is reached" in half.source
    assert half.seconds({"update": 989e12, "score": 67e12}) == pytest.approx(8)


def test_a_narrow_model_gets_what_the_memory_feeds_it():
    rates = rates_of_card("h100", 0.3, True, 256)
    assert rates.of["update"] == INTENSITY * 256 * 3.35e12 < 0.3 * 989e12
    assert rates.of["score"] == 0.3 * 67e12, "float32 is slow enough"
    assert "3.35 TB/s feed to a width of 256" in rates.source
    twice = rates_of_card("h100", 0.3, True, 512)
    assert twice.of["update"] == 2 * rates.of["update"]


def test_amounts_and_times_are_short():
    said = [amount(n) for n in (0, 999, 1000, 12_345, 9.56e6, 1.5e18)]
    assert said == ["0", "999", "1 k", "12.3 k", "9.56 M", "1.5 E"]
    times = [duration(s) for s in (0.5, 12, 600, 7200, 10 * 86400)]
    assert times == ["0.5 s", "12 s", "10 min", "2.0 h", "10.0 days"]


def test_what_is_not_known_is_a_dash_and_what_does_not_fit_is_marked():
    total = StageTotal("arm", 2, 1e6, None, None, 3e9, 10.0)
    assert cells(total, 2e9) == ("arm", "2", "1 M", "-", "-", "3 GB (too much)", "10 B")
