"""`mda store`: what is there, and what may go."""

import os
import time
from pathlib import Path

import pytest

from mda import store
from mda.cli import main
from mda.store import Artifact, Store


def build(house: Store, kind: str, **inputs: object) -> Artifact:
    return house.get_or_build(kind, inputs, lambda part: store.write_json(part / "a.json", [1] * 9))


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

    house.get_or_build("base", {"slow": True}, slow)
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


def test_a_wrong_folder_is_one_sentence(tmp_path, capsys):
    assert run(tmp_path / "nowhere", "ls") == 2
    assert capsys.readouterr().err.count("\n") == 1
