"""TensorBoard gets the values of the CSV, told by TensorBoard's own reader."""

import math
import sys

import numpy as np
import pytest
from programs import run

from mda.config import compose
from mda.programs.train import train
from mda.report.job_log import HEAD
from mda.report.tensorboard_logging import tensorboard_log
from mda.schema import ConfigError
from mda.training.table import LOGGED_EVERY, read_rows

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    """The scalars of the only event file of a folder: name -> step -> value."""
    (path,) = folder.glob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(path))
    events.Reload()
    scalars = {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }
    return scalars, events


def test_a_run_has_the_scalars_of_its_csv_and_its_figures(tmp_path):
    folder = run("train", tmp_path, "logger=tensorboard", "report.dpi=30")
    scalars, events = read(folder / "tensorboard")
    (curve,) = tmp_path.glob("store/base/*/curve.csv")
    steps = read_rows(curve.with_name("train.csv"))
    steps = [row for row in steps if row["step"] % LOGGED_EVERY == 0]
    expected: dict[str, dict[int, float]] = {}
    for row in [*read_rows(curve), *steps]:
        for name, value in row.items():
            if name != "step" and not HEAD.match(name) and not math.isnan(value):
                kept = float(np.float32(value))  # as TensorBoard keeps it
                expected.setdefault(name, {})[int(row["step"])] = kept
    assert "train/loss" in expected and "emergence/prefix_matching/strongest" in expected
    assert scalars == expected
    assert {f"figures/{path.stem}" for path in folder.glob("*.png")} == set(events.Tags()["images"])
    (settings,) = events.Tensors("settings/text_summary")
    assert b'"n_sequences": 2000' in settings.tensor_proto.string_val[0]


def test_a_job_that_is_started_again_has_one_file_with_everything(tmp_path):
    with pytest.raises(KeyboardInterrupt), tensorboard_log(tmp_path, {}) as log:
        log.row({"step": 1, "val/loss": 3.0})
        raise KeyboardInterrupt
    assert read(tmp_path / "tensorboard")[0] == {"val/loss": {1: 3.0}}
    with tensorboard_log(tmp_path, {}) as log:
        for step in (1, 2):
            log.row({"step": step, "val/loss": 4.0 - step, "gone": math.nan})
    assert read(tmp_path / "tensorboard")[0] == {"val/loss": {1: 3.0, 2: 2.0}}
    assert log.hint == f"to look at it:  tensorboard --logdir {tmp_path}/tensorboard\n"


def test_without_the_package_a_job_says_what_to_install_before_any_work(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = compose(["experiment=smoke", f"output_dir={tmp_path}", "logger=tensorboard"])
    with pytest.raises(ConfigError, match=r"pip install 'mechanistic-data-attribution\[tensorb"):
        train(config, tmp_path / "job")
    assert list(tmp_path.iterdir()) == []
