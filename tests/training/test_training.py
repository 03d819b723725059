"""The optimiser, the loss and the replay against independent truths, on a model of seconds."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from mda.data.stream import stream_order, unedited
from mda.emergence.callback import EmergenceCurve
from mda.emergence.measure import make_probes
from mda.emergence.steps import curve_steps
from mda.model.build import scratch
from mda.schema import EmergenceConfig, ScratchConfig, TrainingConfig
from mda.training import checkpoint
from mda.training.datamodule import StepDataset
from mda.training.loop import train
from mda.training.optimizer import adamw, learning_rate
from mda.training.scoped import Reach

SHAPE = ScratchConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=64, max_seq_len=16)
SETTINGS = TrainingConfig(
    batch_size=4, total_steps=24, warmup_steps=4, peak_lr=1e-2, accelerator="cpu", threads=1
)


def run(corpus, folder, stream, log=lambda row: None, start_from=None, keep=(0, 10, 24)):
    probes = make_probes(corpus, EmergenceConfig(n_sequences=4, length=8, held_out=16))
    train(
        folder,
        scratch(SHAPE, 0),
        corpus,
        stream,
        SETTINGS,
        checkpoints=[step for step in keep if stream.start <= step <= stream.end],
        start_from=start_from,
        curves=[
            EmergenceCurve(
                folder / "curve.csv",
                probes,
                curve_steps(stream.start, stream.end, 5),
                curve_steps(stream.start, stream.end, 10),
                64,
            )
        ],
        log=log,
        progress=None,
    )
    return folder


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory):
    rows = []
    folder = tmp_path_factory.mktemp("base")
    run(corpus, folder, unedited(stream_order(corpus, 0), 4, 0, 24), rows.append)
    return folder, rows


def same_files(one, two, step):
    for name in ("model.safetensors", "optimizer.safetensors"):
        a = load_file(checkpoint.checkpoint_folder(one / "checkpoints", step) / name)
        b = load_file(checkpoint.checkpoint_folder(two / "checkpoints", step) / name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]), key


def test_a_batch_has_the_unedited_one_beside_it_only_where_they_differ(corpus):
    base = unedited(stream_order(corpus, 0), 4, 0, 3)
    weights = base.weights.copy()
    weights[5] = 0  # in the second step
    one = replace(base, weights=weights)
    first, second, third = StepDataset(corpus, one, 0, Reach(base, {}))
    assert "unedited" not in first and "unedited" not in third
    assert second["unedited"]["weights"].tolist() == [1, 1, 1, 1]
    assert second["weights"].tolist() == [1, 0, 1, 1]
    masked = replace(base, masked=np.array([[9, 2]]))
    *_, last = StepDataset(corpus, masked, 0, Reach(base, {}))
    assert "unedited" in last and last["weights"].shape == (4, 16)


def test_learning_rate_is_warm_up_then_cosine():
    settings = TrainingConfig(total_steps=110, warmup_steps=10, peak_lr=2.0, min_lr_ratio=0.1)
    assert learning_rate(0, settings) == pytest.approx(0.2)
    assert learning_rate(9, settings) == pytest.approx(2.0)
    assert learning_rate(10, settings) == pytest.approx(2.0)
    assert learning_rate(60, settings) == pytest.approx(1.1)
    assert learning_rate(110, settings) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("update", "rate"),
    [  # of Pythia-14m, whose peak is 1e-3: worked out by hand from GPT-NeoX's formula
        (1, 0.0),
        (2, 1e-3 / 1430),
        (716, 0.5e-3),
        (1431, 1e-3),
        (1432, 1e-3 * (1 - 1.2066e-10)),  # half of 1 + cos x is 1 - x^2 / 4 at x = pi / 143,000
        (1431 + 35_750, 0.5e-3 * (1 + 2**-0.5)),  # an eighth of the circle: cos(pi / 4)
        (1431 + 71_500, 0.5e-3),
        (1431 + 107_250, 0.5e-3 * (1 - 2**-0.5)),
        (143_000, 1e-4),  # the floor
    ],
)
def test_the_neox_schedule_is_gpt_neox_s(update, rate):
    settings = TrainingConfig(
        schedule="neox", total_steps=143_000, warmup_steps=1430, peak_lr=1e-3, min_lr_ratio=0.1
    )
    assert learning_rate(update - 1, settings) == pytest.approx(rate, rel=1e-13, abs=0)


def test_the_neox_schedule_stops_falling_a_warm_up_before_the_end():
    settings = TrainingConfig(
        schedule="neox", total_steps=100, warmup_steps=40, peak_lr=1.0, min_lr_ratio=0.0
    )
    lowest = 0.5 * (1 + 0.8090169943749475)  # cos(pi / 5): (min(n, 60) - 40) / 100 is 1 / 5 at most
    assert learning_rate(60, settings) == pytest.approx(lowest)
    assert learning_rate(99, settings) == pytest.approx(lowest)


def test_without_warm_up_the_neox_schedule_starts_at_the_peak():
    settings = TrainingConfig(schedule="neox", total_steps=100, warmup_steps=0, peak_lr=1.0)
    assert learning_rate(0, settings) == 1.0


def test_biases_and_norms_do_not_decay():
    model = scratch(SHAPE, 0)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = adamw(model, SETTINGS).param_groups
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert not any("norm" in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in kept["params"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (SETTINGS.weight_decay, 0)
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_a_run_leaves_what_it_declared(base):
    folder, rows = base
    assert checkpoint.steps(folder / "checkpoints") == [0, 10, 24]
    logged = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in logged] == [0, 5, 10, 15, 20, 24]
    assert [row["tokens"] for row in logged] == [64 * row["step"] for row in logged]
    assert json.loads((folder / "checkpoints/step_10/state.json").read_text())["step"] == 10
    assert logged[-1]["val/loss"] < logged[0]["val/loss"]


def test_replaying_a_window_from_its_checkpoint_is_bit_equal(corpus, base, tmp_path):
    folder, _ = base
    stream = unedited(stream_order(corpus, 0), 4, 10, 24)
    run(corpus, tmp_path, stream, start_from=folder / "checkpoints" / "step_10")
    same_files(folder, tmp_path, 24)
    of = {"tail": folder, "replay": tmp_path}
    lines = {name: (path / "curve.csv").read_text().splitlines() for name, path in of.items()}
    assert lines["replay"][1:] == [x for x in lines["tail"][1:] if int(x.split(",")[0]) >= 10]


def moments(folder, step):
    path = checkpoint.checkpoint_folder(folder / "checkpoints", step) / "optimizer.safetensors"
    found = load_file(path).items()
    return {key.removesuffix("/exp_avg"): m for key, m in found if key.endswith("/exp_avg")}


def test_the_sample_of_weight_0_is_missing_from_its_update_alone(corpus, base, tmp_path):
    """Nine tenths of a first moment and a tenth of the gradient, by plain autograd, is the next."""
    stream = unedited(stream_order(corpus, 0), 4, 10, 24)
    weights = stream.weights.copy()
    weights[6] = 0  # the third sample of the second update
    edited = replace(stream, weights=weights)
    start = base[0] / "checkpoints" / "step_10"
    run(corpus, tmp_path, edited, start_from=start, keep=(10, 11, 12))
    for step, samples in ((10, [0, 1, 2, 3]), (11, [4, 5, 7])):
        weights = load_file(tmp_path / f"checkpoints/step_{step}/model.safetensors")
        model = scratch(SHAPE, 0)
        model.load_state_dict(weights, strict=False)
        tokens = corpus.rows(stream.sample_ids[samples])
        logits = model(tokens[:, :-1]).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")
        (loss / (4 * corpus.seq_len)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.grad_clip)
        before, after = moments(tmp_path, step), moments(tmp_path, step + 1)
        for name, parameter in model.named_parameters():
            wanted = SETTINGS.beta1 * before[name] + (1 - SETTINGS.beta1) * parameter.grad
            torch.testing.assert_close(after[name], wanted, rtol=1e-4, atol=1e-7)


def test_masking_all_tokens_of_a_sample_is_masking_the_sample(corpus, base, tmp_path):
    folder, _ = base
    stream = unedited(stream_order(corpus, 0), 4, 10, 24)
    start, weights = folder / "checkpoints" / "step_10", stream.weights.copy()
    weights[[3, 21]] = 0
    tokens = np.array([[row, t] for row in (3, 21) for t in range(corpus.seq_len)])
    ends = []
    for name, edited in {
        "sample": replace(stream, weights=weights), "tokens": replace(stream, masked=tokens),
    }.items():  # fmt: skip
        run(corpus, tmp_path / name, edited, start_from=start)
        ends.append(load_file(tmp_path / name / "checkpoints/step_24/model.safetensors"))
    for name, weight in ends[0].items():
        assert torch.allclose(weight, ends[1][name], rtol=1e-4, atol=1e-6), name


def test_a_run_cut_off_after_any_file_resumes_bit_equal(corpus, base, tmp_path):
    """What a kill leaves: rows beyond the checkpoint, a torn line, a half-written checkpoint."""
    folder, _ = base
    order = stream_order(corpus, 0)
    run(corpus, tmp_path, unedited(order, 4, 0, 14), keep=(0, 10, 14))
    with (tmp_path / "curve.csv").open("a") as file:
        file.write("15,960,0.1")
    (tmp_path / "checkpoints" / "step_16.part").mkdir()
    (tmp_path / "checkpoints" / "step_16.part" / "model.safetensors").write_bytes(b"torn")
    rows = []
    run(corpus, tmp_path, unedited(order, 4, 0, 24), rows.append)
    same_files(folder, tmp_path, 24)
    # The first call ended at step 14 and measured there; the uninterrupted run did not.
    mine = [x for x in (tmp_path / "curve.csv").read_text().splitlines() if x[:3] != "14,"]
    assert mine == (folder / "curve.csv").read_text().splitlines()
    assert (tmp_path / "train.csv").read_bytes() == (folder / "train.csv").read_bytes()
    points = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in points] == [0, 5, 10, 14, 15, 20, 24]
    with_text = [row["step"] for row in points if math.isfinite(row["val/loss"])]
    assert with_text == [0, 10, 14, 20, 24]
    assert checkpoint.steps(tmp_path / "checkpoints") == [0, 10, 24]


def test_slow_checkpoints_are_written_so_seldom_that_they_take_a_twentieth_of_the_time(
    corpus, tmp_path, monkeypatch
):
    """A clock by which an update takes 4 seconds and a checkpoint 2."""
    now, saved, save = [0.0], [], checkpoint.save

    class Clock(pl.Callback):
        ended = False

        def resume(self, step, log):
            pass

        def on_train_batch_end(self, *_):
            now[0] += 4

    def slowly(root, step, *rest):
        save(root, step, *rest)
        saved.append(step)
        now[0] += 2

    time = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("mda.training.callbacks.time", time)
    monkeypatch.setattr(checkpoint, "save", slowly)
    stream = unedited(stream_order(corpus, 0), 4, 0, 24)
    start = {"checkpoints": [0, 24], "curves": [Clock()], "progress": None}
    train(tmp_path, scratch(SHAPE, 0), corpus, stream, SETTINGS, **start)
    assert saved == [0, 11, 22, 24], "11 updates are the first to take more than 40 seconds"


def test_measuring_does_not_change_the_run(corpus, base, tmp_path):
    folder, _ = base
    stream = unedited(stream_order(corpus, 0), 4, 0, 24)
    train(tmp_path, scratch(SHAPE, 0), corpus, stream, SETTINGS, checkpoints=[24], progress=None)
    same_files(folder, tmp_path, 24)
