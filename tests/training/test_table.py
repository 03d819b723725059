"""The table of a run: rows that read back equal, nothing torn, nothing lost without a word."""

import subprocess
import sys
from pathlib import Path

import pytest

from mda.store import Torn
from mda.store.keys import HOME
from mda.training.table import CsvTable, read_rows, replay

ROWS = [{"step": step, "tokens": 8 * step, "loss": 0.1 * step} for step in range(1, 6)]


@pytest.fixture
def path(tmp_path) -> Path:
    table = CsvTable(tmp_path / "train.csv")
    for row in ROWS:
        table.append(row)
    return table.path


def test_rows_read_back_equal_and_a_torn_last_line_is_dropped(path):
    assert read_rows(path) == ROWS
    with path.open("a") as file:
        file.write("6,48,0.")
    assert CsvTable(path).keep_until(4) == ROWS[:4]
    table = CsvTable(path)
    table.append(ROWS[4])
    assert read_rows(path) == ROWS


@pytest.mark.parametrize("content", ["", "st", "step,tokens,lo"])
def test_a_table_without_a_whole_header_is_begun_again(path, content):
    path.write_text(content)
    table = CsvTable(path)
    assert table.keep_until(0) == []
    table.append(ROWS[0])
    assert read_rows(path) == ROWS[:1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("2,16,", "2,1"),  # a field is gone
        lambda text: text.replace("2,16,0.2", "\0\0\0\0"),
        lambda text: text.replace("step,", "stop,"),
        lambda text: text.replace("16", "1six"),
    ],
)
def test_a_line_that_cannot_be_read_is_said_to_be_torn(path, damage):
    path.write_text(damage(path.read_text()))
    with pytest.raises(Torn, match=r"train\.csv is torn"):
        CsvTable(path).keep_until(5)


def test_a_table_that_ends_before_the_checkpoint_is_refused(path):
    assert replay(CsvTable(path), 4, lambda row: None, wanted=range(1, 5)) == {1, 2, 3, 4}
    path.write_bytes(path.read_bytes()[:40])  # the rows from some step on, and half a line
    with pytest.raises(Torn, match=r"train\.csv has no row of step \d"):
        replay(CsvTable(path), 4, lambda row: None, wanted=range(1, 5))
    path.unlink()
    with pytest.raises(Torn, match="no row of step 1"):
        replay(CsvTable(path), 4, lambda row: None, wanted=range(1, 5))


FULL = """
import resource, signal, sys
from pathlib import Path
from mda.training.table import CsvTable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
table = CsvTable(Path(sys.argv[1]))
limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for row in range(1, 99):
    size = table.path.stat().st_size if table.path.exists() else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[2 if row == 1 else 3]), limit))
    try:
        table.append({"step": row, "loss": 0.5})
    except OSError:
        print(row)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        table.append({"step": row, "loss": 0.5})
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize(
    ("first", "further", "fails"), [(0, 0, 1), (5, 0, 1), (12, 0, 1), (16, 0, 2), (16, 3, 2)]
)
def test_a_full_disk_leaves_the_table_as_it_was_and_the_next_row_is_written(
    tmp_path, first, further, fails
):
    """The file may grow by so many bytes; header and first row have 16, further rows 6."""
    path = tmp_path / "curve.csv"
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, str(first), str(further)],
        cwd=HOME, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{fails}\n"
    assert path.read_text() == "step,loss\n" + "".join(f"{n},0.5\n" for n in range(1, fails + 1))
