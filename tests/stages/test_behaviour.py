"""Which heads of a finished run count as its strongest."""

import csv

import pytest
import torch

from mda.config import compose
from mda.stages.behaviour import strongest_heads
from mda.stages.runs import Run
from mda.store import Artifact

PREVIOUS, INDUCTION = "emergence/previous_token", "emergence/prefix_matching"
BEGINNING = {"L0H0": (0.9, 0.1), "L0H1": (0.2, 0.2), "L1H0": (0.1, 0.9), "L1H1": (0.3, 0.3)}
END = {"L0H0": (0.1, 0.2), "L0H1": (0.7, 0.4), "L1H0": (0.7, 0.1), "L1H1": (0.8, 0.3)}


@pytest.fixture
def run(tmp_path):
    """A run of four heads whose order turns around, and is another for each metric."""
    with (tmp_path / "curve.csv").open("w") as file:
        heads = [f"{metric}/{head}" for head in END for metric in (PREVIOUS, INDUCTION)]
        rows = csv.writer(file)
        rows.writerow(["step", *heads])
        for step, values in ((0, BEGINNING), (60, END)):
            rows.writerow([step, *(value for pair in values.values() for value in pair)])
    artifact = Artifact(tmp_path, "base", "made up", {}, True)
    return Run(artifact, torch.device("cpu"), (0, 60), {})


@pytest.mark.parametrize(
    ("unit", "order"),
    [
        (["unit=previous_token_head"], ["L1H1", "L0H1", "L1H0", "L0H0"]),
        (["unit=induction_head"], ["L0H1", "L1H1", "L0H0", "L1H0"]),
        (["unit=mlp_neuron", "unit.label=code"], ["L0H1", "L1H1", "L0H0", "L1H0"]),
    ],
)
def test_the_strongest_heads_are_those_of_the_units_metric_at_the_end_or_else_of_induction(
    run, unit, order
):
    config = compose(["experiment=smoke", *unit])
    assert [str(head) for head in strongest_heads(config, run)] == order
