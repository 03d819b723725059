"""Damage to a store as a user meets it: named, built again, and the same result in the end."""

import os
import shutil
from pathlib import Path

import pytest
import warm
from programs import ROOT, command, kill_when

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


def lost_moments(part: Path) -> None:
    (newest(part) / "optimizer.safetensors").unlink()


def lost_checkpoint(part: Path) -> None:
    shutil.rmtree(part / "checkpoints" / "step_40")


def short_table(part: Path) -> None:
    path = part / "train.csv"
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    torn_weights: "model.safetensors is torn",
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
