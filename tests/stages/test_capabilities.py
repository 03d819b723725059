"""Which heads of a finished run count as its strongest."""

import csv

import pytest
import torch

from mda import pipeline
from mda.config import compose
from mda.emergence.capabilities import make_trials
from mda.stages.capabilities import strongest_heads
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
    return Run(artifact, torch.device("cpu"), (0, 60), {}, None, None)


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
    assert [str(head) for head in strongest_heads(config.unit, run)] == order


def test_the_icl_score_of_a_model_is_of_the_bands_that_are_asked_for(context_of):
    bands = ("emergence.icl_late=[20,30]", "emergence.icl_early=[1,3]")
    context = context_of("intervention=control", *bands)
    arm = pipeline.arm(context)
    text_MT1 = make_trials(arm.corpus, context.config.capabilities, ((1, 2), (0, 1))).text_MT1
    with torch.no_grad():
        logits = arm.run.model(60)(text_MT1[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.mT, text_MT1[:, 1:], reduction="none")
    expected = loss[:, 20:30].mean() - loss[:, 1:3].mean()
    found = arm.capabilities.values["capabilities/icl_score"]
    assert found == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert abs(found) > 1e-3
