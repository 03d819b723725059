"""`mda store`: what is there, and what may go."""

import os
import shutil
import time
from pathlib import Path

import pytest

from mda import store
from mda.cli import main
from mda.config.jobs import recorded
from mda.store import Artifact, Store, make_key


def build(house: Store, kind: str, **inputs: object) -> Artifact:
    return house.get_or_build(
        make_key(kind, inputs), lambda part: store.write_json(part / "a.json", [1] * 9)
    )


def abandon(house: Store, kind: str, days: float) -> Path:
    part = house.root / kind / "00ff00ff00ff00ff.part"
    store.write_json(part / "half.json", 1)
    for path in (part / "half.json", part):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    return part


@pytest.fixture
def outputs(tmp_path):
    """A run that needs base, which was made from corpus; and an arm nobody refers to."""
    house = Store(tmp_path / "store")
    corpus = build(house, "corpus", seed=0)
    base = build(house, "base", corpus=corpus.fingerprint)
    arm = build(house, "arm", base=base.fingerprint)
    summary = {"fingerprints": {"base": base.fingerprint}}
    store.write_json(tmp_path / "runs" / "train" / "a" / "summary.json", summary)
    return tmp_path, house, {"corpus": corpus, "base": base, "arm": arm}


def kinds(house: Store) -> list[str]:
    return [artifact.kind for artifact in house.artifacts()]


def run(outputs: Path, *arguments: str) -> int:
    return main(["store", *arguments, "--outputs", str(outputs)])


def test_ls_shows_artifacts_their_use_and_unfinished_builds(outputs, capsys):
    folder, house, made = outputs
    abandon(house, "base", days=0.5)
    assert run(folder, "ls") == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert lines[made["corpus"].fingerprint].split()[-1] == "yes"
    assert lines[made["arm"].fingerprint].split()[-1] == "no"
    assert "unfinished" in lines["00ff00ff00ff00ff"]
    assert "12.0 h old" in lines["00ff00ff00ff00ff"]
    assert run(folder, "ls", "--kind", "arm") == 0
    assert "corpus" not in capsys.readouterr().out


def test_gc_alone_deletes_abandoned_builds_only(outputs, capsys):
    folder, house, _ = outputs
    old, young = abandon(house, "base", days=1.5), abandon(house, "arm", days=0.5)
    assert run(folder, "gc", "--dry-run") == 0
    assert "would delete base/00ff00ff00ff00ff.part" in capsys.readouterr().out
    assert old.exists()
    assert run(folder, "gc") == 0
    assert (old.exists(), young.exists()) == (False, True)
    assert kinds(house) == ["arm", "base", "corpus"]


def test_gc_keeps_an_old_build_that_a_process_works_on(outputs, capsys):
    folder, house, _ = outputs

    def slow(part: Path) -> None:
        for path in (*part.iterdir(), part):
            os.utime(path, (0, 0))
        assert run(folder, "gc") == 1
        assert part.exists()

    house.get_or_build(make_key("base", {"slow": True}), slow)
    assert "a process works on it" in capsys.readouterr().out


def test_gc_unreferenced_keeps_what_a_run_was_made_from(outputs):
    folder, house, _ = outputs
    assert run(folder, "gc", "--unreferenced", "--kind", "base") == 0
    assert kinds(house) == ["arm", "base", "corpus"]
    assert run(folder, "gc", "--unreferenced") == 0
    assert kinds(house) == ["base", "corpus"]


def test_gc_deletes_the_kinds_it_is_told_to(outputs, capsys):
    folder, house, _ = outputs
    assert run(folder, "gc", "--kind", "base", "--dry-run") == 0
    assert kinds(house) == ["arm", "base", "corpus"]
    assert run(folder, "gc", "--kind", "base") == 0
    assert kinds(house) == ["arm", "corpus"]
    capsys.readouterr()
    assert run(folder, "gc", "--kind", "bse") == 2
    assert capsys.readouterr().err == (
        "error: --kind bse is not in the store; there: arm, corpus\n"
    )


def unfinished(folder: Path, **uses: Artifact) -> Path:
    job = {"status": "unfinished", "uses": {k: [a.fingerprint] for k, a in uses.items()}}
    store.write_json(folder / "runs" / "run" / "b" / "job.json", job)
    return folder / "runs" / "run" / "b" / "job.json"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), MemoryError()])
@pytest.mark.parametrize("arguments", [["--unreferenced"], ["--kind", "scores"]])
def test_gc_keeps_what_a_stopped_job_has_computed(outputs, stop, arguments):
    folder, house, _ = outputs
    job = folder / "runs" / "run" / "b"
    job.mkdir(parents=True)
    with pytest.raises(type(stop)), recorded(job, "run", [], {"seed": 0}):
        build(house, "scores", seed=0)
        raise stop
    assert run(folder, "gc", *arguments) == 0
    assert "scores" in kinds(house)
    shutil.rmtree(job)
    assert run(folder, "gc", *arguments) == 0
    assert "scores" not in kinds(house)


@pytest.mark.parametrize("arguments", [["--unreferenced"], ["--kind", "arm", "--kind", "corpus"]])
def test_gc_keeps_what_an_unfinished_job_uses_and_what_that_was_made_from(outputs, arguments):
    folder, house, made = outputs
    (folder / "runs/train/a/summary.json").unlink()
    job = unfinished(folder, arm=made["arm"])
    assert run(folder, "gc", *arguments) == 0
    assert kinds(house) == ["arm", "base", "corpus"]
    store.write_json(job, store.read_json(job) | {"status": "done"})
    assert run(folder, "gc", *arguments) == 0
    assert "arm" not in kinds(house) and "corpus" not in kinds(house)


def test_gc_keeps_what_a_finished_job_used_though_its_summary_does_not_name_it(outputs):
    """As a benchmark's arms, or the autoencoder that was trained on the way."""
    folder, house, made = outputs
    (folder / "runs/train/a/summary.json").unlink()
    job = unfinished(folder, arm=made["arm"])
    store.write_json(job, store.read_json(job) | {"status": "done"})
    store.write_json(job.with_name("summary.json"), {"fingerprints": {}})
    assert run(folder, "gc", "--unreferenced") == 0
    assert kinds(house) == ["arm", "base", "corpus"]


def test_gc_keeps_what_an_unfinished_build_is_made_from(outputs):
    folder, house, made = outputs
    (folder / "runs/train/a/summary.json").unlink()

    def slow(part: Path) -> None:
        assert run(folder, "gc", "--unreferenced") == 0
        assert kinds(house) == ["base", "corpus"]

    house.get_or_build(make_key("scores", {"base": made["base"].fingerprint}), slow)


@pytest.mark.parametrize("name", ["summary.json", "job.json"])
@pytest.mark.parametrize("content", ["", "{", "[1", '{"fingerprints": {"base": "12'])
def test_gc_names_a_torn_file_of_a_run_and_deletes_no_artifact(outputs, capsys, name, content):
    folder, house, _ = outputs
    torn = folder / "runs" / "trace" / "x" / name
    torn.parent.mkdir(parents=True)
    torn.write_text(content)
    old = abandon(house, "base", days=1.5)
    assert run(folder, "gc", "--unreferenced") == 1
    assert kinds(house) == ["arm", "base", "corpus"]
    assert not old.exists()  # no run can refer to it
    assert f"{torn} cannot be read: no artifact is deleted" in capsys.readouterr().out


def test_gc_deletes_links_and_never_what_they_lead_to(outputs, tmp_path_factory, capsys):
    _, house, made = outputs
    there = tmp_path_factory.mktemp("reproduction")
    (there / "store" / "base").mkdir(parents=True)
    link = there / "store" / "base" / made["base"].fingerprint
    link.symlink_to(made["base"].path, target_is_directory=True)
    whole = there / "store" / "arm"
    whole.symlink_to(house.root / "arm", target_is_directory=True)
    old = abandon(house, "arm", days=3)
    assert run(there, "gc", "--unreferenced") == 1
    assert not link.exists() and not link.is_symlink()
    assert kinds(house) == ["arm", "base", "corpus"] and old.exists()
    assert (made["base"].path / "a.json").exists()
    assert "leads out of the store" in capsys.readouterr().out


def test_verify_reads_every_byte_and_sets_aside_what_is_not_as_it_was_built(outputs, capsys):
    folder, house, made = outputs
    assert run(folder, "verify") == 0
    assert "3 artifacts: 3 as they were built, 0 not" in capsys.readouterr().out
    path = made["base"].path / "a.json"
    path.write_text(path.read_text().replace("1", "2", 1))
    (made["arm"].path / "manifest.json").write_text("")
    assert run(folder, "verify", "--kind", "corpus") == 0
    capsys.readouterr()
    assert run(folder, "verify") == 1
    out = capsys.readouterr().out
    assert f"base/{path.parent.name}: a.json has changed since it was built; set aside" in out
    assert f"arm/{made['arm'].fingerprint}: manifest.json is empty; set aside" in out
    assert "3 artifacts: 1 as they were built, 2 not" in out
    assert kinds(house) == ["corpus"]
    assert run(folder, "ls") == 0
    assert capsys.readouterr().out.count("set aside") == 2


def test_a_wrong_folder_is_one_sentence(tmp_path, capsys):
    assert run(tmp_path / "nowhere", "ls") == 2
    assert capsys.readouterr().err.count("\n") == 1
