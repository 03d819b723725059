"""The loop on a GPU, held against the same on the CPU. Skipped where there is no GPU."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mda import pipeline
from mda.config import compose
from mda.estimator import through_training
from mda.estimator.unrolled import unrolled_influence
from mda.model.build import initial_model
from mda.model.loss import Unembedding, cross_entropy, sampled_cross_entropy
from mda.stages.context import Context
from mda.stages.measuring import held_bytes, job_of, rates_here
from mda.store import free_memory
from mda.training import loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SMOKE = ("experiment=smoke", "unit.locate=L1H1")
ESTIMATORS = [
    "estimator=ekfac",
    "estimator=ekfac estimator.adam_damping=true",
    "estimator=exact",
    "estimator=tracin",
    "estimator=tracin estimator.adam_preconditioning=true",
    "estimator=unrolled",
    "estimator=unrolled estimator.segment=5 estimator.n_perturbed=2",
    "estimator=loss",
    "estimator=gradient_norm",
    "estimator=repetition",
]
UNITS = {
    "previous_token_head": "L0H1",
    "second_previous_token_head": "L0H0",
    "mlp_neuron": "L1N3",
    "module": "L1.attn",
    "sae_feature": "auto",  # of an autoencoder that each device has trained for itself
}
EDITS = [  # chosen without a model, so that both devices edit the same samples
    "intervention=remove estimator=repetition",
    "intervention=augment estimator=repetition",
    "intervention=remove estimator=random intervention.mode=spans",
]
FORMATS = {  # and how near to the losses of float32
    "training.precision=bf16-mixed": 0.05,
    "training.precision=16-mixed": 0.05,
    "training.activation_checkpointing=true": 1e-3,
    "training.micro_batch_size=1": 1e-3,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def on(device: str, out: Path, *words: str) -> Context:
    settings = [part for word in words for part in word.split()]
    place = [f"output_dir={out}", f"training.accelerator={device}"]
    return Context.of(compose([*SMOKE, *place, *settings]))


def scores(trace: pipeline.Trace) -> np.ndarray:
    """Those of the unit, whatever else was scored in the same pass."""
    found = trace.traced.scores
    return found.values[:, list(found.units).index(trace.unit.name)]


def losses(run) -> np.ndarray:
    with (run.folder / "train.csv").open() as file:
        return np.array([float(row["train/loss"]) for row in csv.DictReader(file)])


def test_a_plan_counts_the_memory_of_the_gpu(out):
    job = job_of(on("auto", out).config)
    total = torch.cuda.get_device_properties(0).total_memory
    assert job.device.type == "cuda" and 0 < held_bytes(job.device) < total
    assert rates_here(job, ("update",), 0.5).memory == total


@pytest.mark.parametrize("n_positions", [3, 5000])
def test_losses_in_a_gpus_chunks_are_those_of_the_cpu(n_positions):
    hidden, weight = torch.randn(n_positions, 1, 8), torch.randn(9000, 8)
    labels, uniforms = torch.randint(9000, (n_positions, 1)), torch.rand(n_positions, 1).double()
    for call, last in ((cross_entropy, labels), (sampled_cross_entropy, uniforms)):
        found = {}
        for device in ("cpu", "cuda"):
            here = hidden.to(device).requires_grad_()
            values = call(here, Unembedding(weight.to(device)), last.to(device))
            losses = values[0] if isinstance(values, tuple) else values
            (gradient,) = torch.autograd.grad(losses.sum(), here)
            found[device] = losses.detach().cpu(), gradient.cpu()
        same = (found["cpu"][0] - found["cuda"][0]).abs() < 1e-3
        assert same.float().mean() > 0.999, "a label at a border may be drawn on either side"
        rows = same.flatten()
        torch.testing.assert_close(
            found["cpu"][1][rows], found["cuda"][1][rows], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("half", [False, True])
def test_a_gradient_in_a_gpus_chunks_is_that_of_the_cpu(half, out, monkeypatch):
    config = on("auto", out).config
    tokens = torch.randint(config.data.vocab_size, (6, 33))
    found = {}
    for device, at_once in (("cpu", loss.LOGITS), ("cuda", 5 * config.data.vocab_size)):
        monkeypatch.setattr(loss, "GPU_LOGITS", at_once)
        model = initial_model(config.model, 0).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=half and device == "cuda"):
            loss.accumulate_gradients(model, tokens.to(device), torch.ones(6, device=device), 6)
        found[device] = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
    apart = (found["cuda"] - found["cpu"]).norm() / found["cpu"].norm()
    assert apart < (0.05 if half else 1e-4)


def test_training_follows_that_on_the_cpu(out):
    (_, here), (_, there) = (pipeline.train(on(device, out)) for device in ("auto", "cpu"))
    assert (here.device.type, there.device.type) == ("cuda", "cpu")
    assert here.fingerprint != there.fingerprint
    assert losses(here) == pytest.approx(losses(there), rel=1e-3)


@pytest.mark.parametrize("words", ESTIMATORS)
def test_scores_are_those_of_the_cpu(words, out):
    a, b = (scores(pipeline.trace(on(device, out, words))) for device in ("auto", "cpu"))
    assert np.isfinite(a).all()
    assert np.corrcoef(a, b)[0, 1] > 0.99
    assert np.std(a) == pytest.approx(np.std(b), rel=0.05)


def test_unrolled_goes_on_where_it_was_stopped(out, monkeypatch):
    words = "estimator=unrolled estimator.segment=4"
    whole = scores(pipeline.trace(on("auto", out, words)))

    def stopped(*arguments, **settings):
        for n, progress in enumerate(unrolled_influence(*arguments, **settings)):
            if n == 2:
                raise KeyboardInterrupt
            yield progress

    again = out.with_name("again")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(through_training, "unrolled_influence", stopped)
        pipeline.trace(on("auto", again, words))
    resumed = scores(pipeline.trace(on("auto", again, words)))
    assert np.corrcoef(whole, resumed)[0, 1] > 0.999


@pytest.mark.parametrize("kind", UNITS)
def test_every_kind_of_unit_is_scored_as_on_the_cpu(kind, out):
    words = f"unit={kind} unit.locate={UNITS[kind]}"
    a, b = (scores(pipeline.trace(on(device, out, words))) for device in ("auto", "cpu"))
    assert np.isfinite(a).all()
    if UNITS[kind] != "auto":
        assert np.corrcoef(a, b)[0, 1] > 0.99


@pytest.mark.parametrize("words", EDITS)
def test_an_edited_window_is_trained_as_on_the_cpu(words, out):
    here, there = (pipeline.arm(on(device, out, words)) for device in ("auto", "cpu"))
    assert losses(here.run) == pytest.approx(losses(there.run), rel=1e-2)
    last, expected = here.run.curve[-1], there.run.curve[-1]
    assert last == pytest.approx(expected, rel=0.05, abs=0.01, nan_ok=True)


def test_single_tokens_are_scored_as_on_the_cpu(out):
    words = "intervention=remove intervention.mode=mask_tokens intervention.fraction=0.05"
    here, there = (pipeline.arm(on(device, out, words)) for device in ("auto", "cpu"))
    assert here.tokens is not None and there.tokens is not None
    a, b = (np.concatenate(list(one.tokens.scores.parts())).ravel() for one in (here, there))
    assert np.corrcoef(a, b)[0, 1] > 0.99
    assert np.isfinite(losses(here.run)).all()


def test_a_control_repeats_the_base_run(out):
    arm = pipeline.arm(on("auto", out, "intervention=control"))
    base, control = (
        load_file(run.folder / "checkpoints" / "step_40" / "model.safetensors")
        for run in (arm.base, arm.run)
    )
    for name, value in base.items():
        torch.testing.assert_close(control[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("words", FORMATS)
def test_other_formats_train(words, out):
    _, here = pipeline.train(on("auto", out, words))
    _, plain = pipeline.train(on("auto", out))
    assert losses(here) == pytest.approx(losses(plain), rel=FORMATS[words])


def test_what_a_job_does_not_need_goes_back_to_the_jobs_beside_it():
    kept = torch.ones(2**20, device="cuda")
    torch.ones(2**26, device="cuda")  # 256 MB, which torch keeps for itself
    before = torch.cuda.memory_reserved()
    free_memory()
    assert before - torch.cuda.memory_reserved() >= 2**28 and kept.sum() == 2**20
