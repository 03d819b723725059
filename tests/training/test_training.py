"""The optimiser, the loss and the replay against independent truths, on a model of seconds."""

import json

import numpy as np
import pytest
import torch
from mda.model.pythia import scratch
from safetensors.torch import load_file

from mda.data.stream import open_corpus, schedule, stream_order
from mda.data.tokens import build_tokens, map_rows
from mda.emergence.callback import EmergenceCurve, curve_steps
from mda.emergence.measure import make_probes
from mda.schema import EmergenceConfig, ModelConfig, TrainingConfig
from mda.training import checkpoint
from mda.training.loop import train
from mda.training.module import LanguageModel, sample_losses
from mda.training.optimizer import adamw, learning_rate
from mda.types import Schedule

SHAPE = ModelConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=64, max_seq_len=16)
SETTINGS = TrainingConfig(
    batch_size=4, total_steps=24, warmup_steps=4, peak_lr=1e-2, accelerator="cpu", threads=1
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    np.save(folder / "rows.npy", np.random.default_rng(0).integers(2, 60, (120, 17), np.uint16))
    build_tokens(
        folder / "corpus",
        path=folder / "rows.npy",
        seq_len=16,
        dtype="uint16",
        vocab_size=64,
        special_ids=(0, 1),
        held_out=16,
    )
    return open_corpus(folder / "corpus", "fp", map_rows(folder / "rows.npy", 16))


def run(corpus, folder, plan, log=lambda row: None, start_from=None, keep=(0, 10, 24)):
    probes = make_probes(corpus, EmergenceConfig(n_sequences=4, length=8, held_out=16))
    train(
        folder,
        scratch(SHAPE, 0),
        corpus,
        plan,
        SETTINGS,
        checkpoints=[step for step in keep if plan.start <= step <= plan.end],
        start_from=start_from,
        curves=[
            EmergenceCurve(folder / "curve.csv", probes, curve_steps(plan.start, plan.end, 5), 64)
        ],
        log=log,
        progress=None,
    )
    return folder


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory):
    rows = []
    folder = tmp_path_factory.mktemp("base")
    run(corpus, folder, schedule(stream_order(corpus, 0), 4, 0, 24), rows.append)
    return folder, rows


def same_files(one, two, step):
    for name in ("model.safetensors", "optimizer.safetensors"):
        a = load_file(checkpoint.checkpoint_folder(one / "checkpoints", step) / name)
        b = load_file(checkpoint.checkpoint_folder(two / "checkpoints", step) / name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]), key


def test_learning_rate_is_warm_up_then_cosine():
    settings = TrainingConfig(total_steps=110, warmup_steps=10, peak_lr=2.0, min_lr_ratio=0.1)
    assert learning_rate(0, settings) == pytest.approx(0.2)
    assert learning_rate(9, settings) == pytest.approx(2.0)
    assert learning_rate(10, settings) == pytest.approx(2.0)
    assert learning_rate(60, settings) == pytest.approx(1.1)
    assert learning_rate(110, settings) == pytest.approx(0.2)


def test_biases_and_norms_do_not_decay():
    model = scratch(SHAPE, 0)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = adamw(model, SETTINGS).param_groups
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert not any("norm" in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in kept["params"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (SETTINGS.weight_decay, 0)
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_sample_loss_is_the_library_s_own(corpus):
    model, tokens = scratch(SHAPE, 0), corpus.rows(np.arange(5))
    ours = sample_losses(model, tokens)
    for row, loss in zip(tokens, ours, strict=True):
        theirs = model(input_ids=row[None], labels=row[None]).loss
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_weight_zero_takes_a_sample_out_and_leaves_the_others_as_they_were(corpus):
    module = LanguageModel(scratch(SHAPE, 0), SETTINGS)
    tokens = corpus.rows(np.arange(4))

    def gradient(rows, weights):
        module.zero_grad()
        batch = {"tokens": tokens[rows], "weights": torch.tensor(weights), "batch_size": 4}
        module.training_step(batch, 0).backward()
        return torch.cat([p.grad.flatten() for p in module.model.parameters()])

    masked = gradient([0, 1, 2, 3], [1.0, 0.0, 1.0, 1.0])
    assert torch.allclose(masked, gradient([0, 2, 3], [1.0] * 3), atol=1e-7)
    twice = gradient([0, 1, 1, 2, 3], [1.0] * 5)
    assert torch.allclose(twice, gradient([0, 1, 2, 3], [1.0, 2.0, 1.0, 1.0]), atol=1e-7)
    assert not torch.allclose(masked, twice, atol=1e-4)


def test_a_run_leaves_what_it_declared(base):
    folder, rows = base
    assert checkpoint.steps(folder / "checkpoints") == [0, 10, 24]
    logged = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in logged] == [0, 5, 10, 15, 20, 24]
    assert [row["tokens"] for row in logged] == [64 * row["step"] for row in logged]
    assert json.loads((folder / "checkpoints/step_10/state.json").read_text()) == {"step": 10}
    assert logged[-1]["val/loss"] < logged[0]["val/loss"]


def test_replaying_a_window_from_its_checkpoint_is_bit_equal(corpus, base, tmp_path):
    folder, _ = base
    plan = schedule(stream_order(corpus, 0), 4, 10, 24)
    run(corpus, tmp_path, plan, start_from=folder / "checkpoints" / "step_10")
    same_files(folder, tmp_path, 24)
    of = {"tail": folder, "replay": tmp_path}
    lines = {name: (path / "curve.csv").read_text().splitlines() for name, path in of.items()}
    assert lines["replay"][1:] == [x for x in lines["tail"][1:] if int(x.split(",")[0]) >= 10]


def test_an_edit_moves_the_weights(corpus, base, tmp_path):
    folder, _ = base
    plan = schedule(stream_order(corpus, 0), 4, 10, 24)
    weights = plan.weights.copy()
    weights[3] = 0
    edited = Schedule(plan.start, plan.batch_size, plan.offsets, plan.sample_ids, weights)
    run(corpus, tmp_path, edited, start_from=folder / "checkpoints" / "step_10")
    with pytest.raises(AssertionError):
        same_files(folder, tmp_path, 24)


def test_a_run_cut_off_after_any_file_resumes_bit_equal(corpus, base, tmp_path):
    """What a kill leaves: rows beyond the checkpoint, a torn line, a half-written checkpoint."""
    folder, _ = base
    order = stream_order(corpus, 0)
    run(corpus, tmp_path, schedule(order, 4, 0, 14), keep=(0, 10, 14))
    with (tmp_path / "curve.csv").open("a") as file:
        file.write("15,960,0.1")
    (tmp_path / "checkpoints" / "step_16.part").mkdir()
    (tmp_path / "checkpoints" / "step_16.part" / "model.safetensors").write_bytes(b"torn")
    rows = []
    run(corpus, tmp_path, schedule(order, 4, 0, 24), rows.append)
    same_files(folder, tmp_path, 24)
    # The first call ended at step 14 and measured there; the uninterrupted run did not.
    mine = [x for x in (tmp_path / "curve.csv").read_text().splitlines() if x[:3] != "14,"]
    assert mine == (folder / "curve.csv").read_text().splitlines()
    assert (tmp_path / "train.csv").read_bytes() == (folder / "train.csv").read_bytes()
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 5, 10, 14, 15, 20, 24]
    assert checkpoint.steps(tmp_path / "checkpoints") == [0, 10, 24]


def test_measuring_does_not_change_the_run(corpus, base, tmp_path):
    folder, _ = base
    plan = schedule(stream_order(corpus, 0), 4, 0, 24)
    train(tmp_path, scratch(SHAPE, 0), corpus, plan, SETTINGS, checkpoints=[24], progress=None)
    same_files(folder, tmp_path, 24)
