"""Damage to a store as a user meets it: named, built again, and the same result in the end."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import warm
from programs import ROOT, command, kill_when
from safetensors.torch import load_file, save_file

STEPS = ("training.total_steps=200", "training.checkpoint_every=20", "intervention.window=[20,40]")


def run(program: str, out: Path, *overrides: str) -> tuple[Path, str]:
    """(folder of the run, what was said of the store)."""
    done = warm.run(command(program, out, *STEPS, *overrides), ROOT)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "set aside" in line]
    return Path(done.stdout.strip().splitlines()[-1]), "\n".join(said)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("whole")
    return out, run("train", out)[0]


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory) -> Path:
    """A store whose base run was killed after its checkpoint of step 60."""
    out = tmp_path_factory.mktemp("killed")
    shutil.copytree(whole[0] / "store" / "corpus", out / "store" / "corpus")
    reached = "store/base/*.part/checkpoints/step_60"
    kill_when(command("train", out, *STEPS), lambda: any(out.glob(reached)))
    return out


def newest(part: Path) -> Path:
    steps = [path for path in part.glob("checkpoints/step_*") if path.suffix != ".part"]
    return max(steps, key=lambda path: int(path.name.removeprefix("step_")))


def torn_weights(part: Path) -> None:
    path = newest(part) / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def flipped_weight(part: Path) -> None:
    flipped_bit(newest(part) / "model.safetensors")


def flipped_moment_of_an_earlier_step(part: Path) -> None:
    flipped_bit(part / "checkpoints" / "step_20" / "optimizer.safetensors")


def renamed_tensor(part: Path) -> None:
    path = newest(part) / "model.safetensors"
    weights = load_file(path)
    save_file({name.replace("final_", "last_"): value for name, value in weights.items()}, path)


def lost_moments(part: Path) -> None:
    (newest(part) / "optimizer.safetensors").unlink()


def lost_checkpoint(part: Path) -> None:
    shutil.rmtree(part / "checkpoints" / "step_40")


def short_table(part: Path) -> None:
    path = part / "train.csv"
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    torn_weights: "model.safetensors is torn",
    flipped_weight: "/model.safetensors has changed since it was saved",
    flipped_moment_of_an_earlier_step: "step_20/optimizer.safetensors has changed since it was",
    renamed_tensor: "/model.safetensors has changed since it was saved",
    lost_moments: "optimizer.safetensors",
    lost_checkpoint: "the checkpoint of step 40 is missing",
    short_table: "train.csv has no row of step",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_torn_unfinished_run_is_named_and_trained_again(whole, killed, tmp_path, damage):
    shutil.copytree(killed / "store", tmp_path / "store")
    (part,) = tmp_path.glob("store/base/*.part")
    damage(part)
    folder, said = run("train", tmp_path)
    assert said.startswith("unfinished base ") and DAMAGES[damage] in said
    for name in ("curve.csv", "train.csv"):
        assert (folder / name).read_bytes() == (whole[1] / name).read_bytes()


@pytest.mark.slow
def test_a_lost_checkpoint_does_not_move_the_scoring_to_another(whole, tmp_path):
    shutil.copytree(whole[0] / "store", tmp_path / "store")
    before, _ = run("trace", tmp_path)
    (lost,) = tmp_path.glob("store/base/*/checkpoints/step_40")
    shutil.rmtree(lost)
    shutil.rmtree(tmp_path / "store" / "scores")
    after, said = run("trace", tmp_path)
    assert "checkpoints/step_40/model.safetensors is missing" in said
    assert (after / "scores.csv").read_bytes() == (before / "scores.csv").read_bytes()


def test_a_checkpoint_that_no_manifest_names_is_not_used_and_named(whole, tmp_path):
    shutil.copytree(whole[0] / "store", tmp_path / "store")
    at = ("estimator.checkpoint=window_middle", "estimator.fit_sequences=40")
    before, _ = run("trace", tmp_path, *at)
    (base,) = (path for path in tmp_path.glob("store/base/*") if path.is_dir())
    shutil.copytree(base / "checkpoints/step_20", base / "checkpoints/step_30")  # the middle
    shutil.rmtree(tmp_path / "store" / "scores")
    after, said = run("trace", tmp_path, *at)
    assert said == ""
    assert (after / "scores.csv").read_bytes() == (before / "scores.csv").read_bytes()
    found = warm.run(
        [sys.executable, "-m", "mda.cli", "store", "verify", "--outputs", str(tmp_path)], ROOT
    )
    name = "checkpoints/step_30/model.safetensors and 2 more: in the folder, but not in its manif"
    assert found.returncode == 1 and f"base/{base.name}: {name}" in found.stdout
    assert base.is_dir() and "left where it is" in found.stdout
