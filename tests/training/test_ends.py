"""How a run ends that goes wrong early: with the message that says what went wrong."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from safetensors.torch import load_file

from mda import store
from mda.data.stream import stream_order, unedited
from mda.emergence.callback import EmergenceCurve
from mda.emergence.measure import make_probes
from mda.model.build import scratch
from mda.schema import ConfigError, EmergenceConfig, ScratchConfig, TrainingConfig
from mda.training import checkpoint
from mda.training.callbacks import Checkpoints, LossLog
from mda.training.fit import fit
from mda.training.loop import train
from mda.training.table import read_rows

SHAPE = ScratchConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=64, max_seq_len=16)


def run(corpus, folder, model=None, curves=(), **settings):
    settings = {"batch_size": 4, "total_steps": 12, "warmup_steps": 2, **settings}
    stream = unedited(stream_order(corpus, 0), 4, 0, settings["total_steps"])
    model = model or scratch(SHAPE, 0)
    kept = [0, stream.end]
    train(
        folder, model, corpus, stream, TrainingConfig(**settings), checkpoints=kept, curves=curves
    )
    return folder


def curve_that(corpus, folder, error):
    def raises(model):
        raise error

    probes = make_probes(corpus, EmergenceConfig(n_sequences=4, length=8, held_out=16))
    return EmergenceCurve(folder / "curve.csv", probes, [0, 12], [0], 64, follow=raises)


@pytest.mark.parametrize("error", [ValueError("the probe is gone"), KeyboardInterrupt()])
def test_what_ends_the_first_point_of_the_curve_is_what_the_caller_sees(corpus, tmp_path, error):
    """With a progress bar, which has not started yet."""
    with pytest.raises(type(error)) as seen:
        run(corpus, tmp_path, curves=[curve_that(corpus, tmp_path, error)])
    assert str(seen.value) == str(error)


def test_weights_that_came_in_bad_are_named_before_any_update(corpus, tmp_path):
    model = scratch(SHAPE, 0)
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[3, 4] = torch.nan
    with pytest.raises(FloatingPointError) as seen:
        run(corpus, tmp_path, model)
    assert "1 of the model's tensors" in str(seen.value)
    assert "gpt_neox.layers.1.mlp.dense_h_to_4h.weight: the weights came in bad" in str(seen.value)
    assert not (tmp_path / "train.csv").exists()


def test_a_loss_that_diverges_advises_a_lower_rate(corpus, tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step \d+: lower training\.peak_lr"):
        run(corpus, tmp_path, peak_lr=1e30, grad_clip=0.0)


def test_a_first_loss_that_is_not_finite_advises_no_lower_rate(corpus, tmp_path):
    model = scratch(SHAPE, 0)
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)  # finite, and too large to multiply
    with pytest.raises(FloatingPointError, match=r"at step 1: though the weights were finite"):
        run(corpus, tmp_path, model)


def test_one_process_is_meant_inside_a_slurm_job(corpus, tmp_path, monkeypatch):
    """As `sbatch -n 4` sets it, without srun."""
    for name in ("NTASKS=4", "JOB_ID=7", "PROCID=0", "LOCALID=0", "NODEID=0", "NODELIST=n1"):
        monkeypatch.setenv(f"SLURM_{name.split('=')[0]}", name.split("=")[1])
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert len(read_rows(run(corpus, tmp_path) / "train.csv")) == 12


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_mixed_precision_trains_with_and_without_clipping(corpus, tmp_path, clip):
    plain = read_rows(run(corpus, tmp_path / "32", grad_clip=clip) / "train.csv")
    mixed = run(corpus, tmp_path / "bf16", precision="bf16-mixed", grad_clip=clip) / "train.csv"
    losses = [row["train/loss"] for row in read_rows(mixed)]
    assert losses != [row["train/loss"] for row in plain]
    assert losses == pytest.approx([row["train/loss"] for row in plain], rel=2e-3)


def test_clipping_bounds_the_whole_update_s_gradient(corpus, tmp_path):
    """In micro-batches; Adam's first moment after one update is a tenth of the gradient."""
    norms = {}
    for clip in (0.0, 0.01):
        settings = {"grad_clip": clip, "micro_batch_size": 1, "total_steps": 1, "warmup_steps": 0}
        folder = run(corpus, tmp_path / str(clip), **settings)
        moments = load_file(folder / "checkpoints" / "step_1" / "optimizer.safetensors")
        parts = [10 * value for key, value in moments.items() if key.endswith("/exp_avg")]
        norms[clip] = torch.cat([part.flatten() for part in parts]).norm().item()
    assert norms[0.0] > 0.05
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)


def fp16(corpus, folder, scale, resume=None):
    """Train in fp16 on the CPU, which torch can and Lightning's own choice of precision can't."""
    folder.mkdir(exist_ok=True)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    stream = unedited(stream_order(corpus, 0), 4, 0, 3)
    settings = TrainingConfig(batch_size=4, total_steps=12, warmup_steps=2, grad_clip=0.01)
    log = LossLog(folder / "train.csv", 64, 0)
    log.resume(0, lambda row: None)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        plugins=[precision],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[log, Checkpoints(folder, [1, 3])],
    )
    fit(trainer, scratch(SHAPE, 0), corpus, stream, settings, 0, resume)
    return folder


def test_the_loss_scale_of_fp16_leaves_gradient_and_clipping_as_they_are(corpus, tmp_path):
    norms = {}
    for scale in (1.0, 1024.0):
        folder = fp16(corpus, tmp_path / str(scale), scale)
        moments = load_file(folder / "step_1" / "optimizer.safetensors")
        parts = [10 * value for key, value in moments.items() if key.endswith("/exp_avg")]
        norms[scale] = torch.cat([part.flatten() for part in parts]).norm().item()
        assert checkpoint.loss_scale(folder / "step_3")["scale"] == scale
    assert norms == pytest.approx({1.0: 0.01, 1024.0: 0.01}, rel=1e-3)


def test_an_overflow_of_fp16_skips_the_update_and_takes_the_scale_back(corpus, tmp_path):
    folder = fp16(corpus, tmp_path, 2.0**60)
    fresh = scratch(SHAPE, 0).state_dict()
    for name, value in load_file(folder / "step_1" / "model.safetensors").items():
        assert torch.equal(value, fresh[name]), "no update was made"
    assert checkpoint.loss_scale(folder / "step_3")["scale"] == 2.0**57
    assert len(read_rows(folder / "train.csv")) == 3, "the batches are used up all the same"


def test_fp16_starts_from_weights_that_were_published_without_a_loss_scale(corpus, tmp_path):
    start = tmp_path / "published"
    weights = {name: p.detach() for name, p in scratch(SHAPE, 1).named_parameters()}
    store.write_safetensors(start / "model.safetensors", weights)
    store.write_safetensors(start / "optimizer.safetensors", {})
    store.write_json(start / "state.json", {"step": 0})
    folder = fp16(corpus, tmp_path / "arm", 1024.0, start)
    assert checkpoint.loss_scale(folder / "step_3")["scale"] == 1024.0


def test_fp16_without_a_gpu_is_refused(corpus, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"training\.precision=16-mixed"):
        run(corpus, tmp_path, precision="16-mixed", accelerator="auto")


def test_devices_that_are_not_there_are_refused(corpus, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"training\.accelerator=gpu training\.devices=1"):
        run(corpus, tmp_path, accelerator="gpu")


SIGNALS = [
    pytest.param(signal.SIGTERM, 1, 143, marks=pytest.mark.long),
    (signal.SIGINT, 1, 130),
    pytest.param(signal.SIGTERM, 2, 143, marks=pytest.mark.long),
    pytest.param(signal.SIGINT, 2, 130, marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "devices", "code"), SIGNALS)
def test_a_signal_ends_a_program_with_its_code_and_one_sentence(tmp_path, sent, devices, code):
    program = Path(__file__).with_name("program_small.py")
    process = subprocess.Popen(
        [sys.executable, str(program), f"output_dir={tmp_path}", f"training.devices={devices}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with Ctrl-C ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    table = tmp_path / "small" / "run" / "train.csv"
    deadline = time.monotonic() + 120
    while not (table.exists() and table.read_text().count("\n") > 20):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == "stopped; the same command goes on from here\n"
    assert "closed" in out, "what was open is closed on the way out"
    rows = read_rows(table)
    assert 20 <= len(rows) < 9000


def test_a_micro_batch_larger_than_the_batch_is_refused():
    with pytest.raises(ConfigError, match=r"training\.micro_batch_size=9 is invalid; expected at"):
        TrainingConfig(batch_size=8, micro_batch_size=9)
