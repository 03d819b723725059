"""Small parts of the page, without a browser."""

import json

import pytest

from mda.report.page import as_script, number, p_value


def test_data_cannot_end_the_script_they_stand_in():
    data = {"text": ["</script><script>alert(1)</script>", "<!--", "\u2028 & 'é'"]}
    text = as_script(data)
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == data


def test_numbers_are_written_for_readers():
    assert [number(x) for x in (None, 0.0512345, -1234.5, 0)] == ["–", "0.0512", "−1,234", "0"]  # noqa: RUF001
    assert [p_value(x) for x in (None, 0.03125, 0.00001)] == ["–", "0.031", "< 0.001"]  # noqa: RUF001


def test_not_a_number_is_refused():
    with pytest.raises(ValueError):
        as_script({"x": float("nan")})
