"""Tables of anybody's run: read with bounds, compared value by value, obeyed by no terminal."""

import os

import pytest

from mda.report.reproduction import agreement, print_agreement, read_tables
from mda.schema import ConfigError

BAD = {
    "long": b"step\n" + b"1\n" * 5_000,
    "binary": b"\xff\n",
    "torn": b"step,loss\n1",
    "ragged": b"step\n1,2\n",
    "field": b"step\n" + b"1" * 200_000,
}


@pytest.mark.parametrize("content", [*BAD, "/dev/zero", "pipe", "folder"])
def test_a_table_without_bounds_or_form_is_refused(tmp_path, monkeypatch, content):
    if content != "field":
        monkeypatch.setattr("mda.report.reproduction.LIMIT", 5_000)
    path = tmp_path / "curve.csv"
    if content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content in BAD:
        path.write_bytes(BAD[content])
    else:
        path.symlink_to(content)
    with pytest.raises(ConfigError, match=r"curve\.csv is invalid; expected a table of a run"):
        read_tables(tmp_path)


def test_a_run_without_tables_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is invalid; expected a run with one of curve\.csv"):
        read_tables(tmp_path)


def tables(folder, **contents):
    folder.mkdir()
    for name, text in contents.items():
        (folder / f"{name}.csv").write_text(text)
    return read_tables(folder)


def test_values_are_compared_as_they_were_written(tmp_path):
    old = tables(tmp_path / "old", curve="step,x,y\n1,0.1,2\n2,0.5,4\n", edit="# mask\nid\n",
                 train="step\n1\n")  # fmt: skip
    new = tables(tmp_path / "new", curve="step,x,y\n1,0.1,2\n2,0.25,4.0\n")
    found = {(one.table, one.column): (one.equal, one.largest) for one in agreement(old, new)}
    assert found == {
        ("curve.csv", "step"): (True, 0.0),
        ("curve.csv", "x"): (False, 0.25),
        ("curve.csv", "y"): (False, 0.0),  # 4 and 4.0 are not the same to the last bit
        ("train.csv", "step"): (False, float("inf")),
    }


def test_what_was_not_measured_in_both_is_no_difference():
    def one(a: list[str], b: list[str]) -> tuple[bool, float]:
        (found,) = agreement({"curve.csv": {"x": a}}, {"curve.csv": {"x": b}})
        return found.equal, found.largest

    assert one(["nan", "1.0"], ["nan", "1.0"]) == (True, 0)
    assert one(["nan", "1.0", "2.0"], ["nan", "1.5", "2.0"]) == (False, 0.5)
    assert one(["nan", "1.0"], ["3.0", "1.0"]) == (False, float("inf"))


def test_names_of_columns_speak_to_no_terminal(tmp_path, capsys):
    both = [tables(tmp_path / v, curve=f"step,[/red]\x1b[2J\n1,{v}\n") for v in ("1", "2")]
    assert not print_agreement(agreement(*both))
    out = capsys.readouterr().out
    assert "[/red]?[2J" in out and "\x1b" not in out


def test_the_tables_of_an_old_run_are_read_in_the_words_of_today(tmp_path):
    old = tables(tmp_path / "old", plan="sample_id\n3\n", curve="step,behaviour/real_loss\n1,2.5\n")
    assert old == {"edit.csv": {"sample_id": ["3"]},
                   "curve.csv": {"step": ["1"], "capabilities/real_loss": ["2.5"]}}  # fmt: skip
