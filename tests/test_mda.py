"""The `mda` command: every program by its name, the same as experiments/<name>.py."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import warm

from mda import cli
from mda.cli import PROGRAMS
from mda.config import setting_word
from mda.programs.view import page_of
from mda.schema import ConfigError

ROOT = Path(__file__).parents[1]
OWN_WORDS = ("plan", "push", "store", "view")  # a part of run, and no experiments
FILES = sorted(set(PROGRAMS) - set(OWN_WORDS))


def mda(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mda.cli", *words]
    if not environment:
        return warm.run(command, cwd)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def test_help_names_every_program_and_its_module_is_there():
    text = mda("--help").stdout
    assert mda().stdout == text
    modules = {path.stem for path in (ROOT / "mda" / "programs").glob("*.py")} - {"__init__"}
    assert modules == set(PROGRAMS) - {"plan"}
    for name in PROGRAMS:
        assert f"\n  {name} " in text


@pytest.mark.parametrize("name", FILES)
def test_the_file_for_those_who_clone_only_starts_the_program_of_its_name(name):
    text = (ROOT / f"experiments/{name}.py").read_text("utf-8")
    about, _, code = text.partition('"""\n\n')
    assert about.startswith(f'"""`mda {name}` for those who clone: ')
    assert code == (
        f'from mda.programs import start\n\nif __name__ == "__main__":\n    start("{name}")\n'
    )


@pytest.mark.parametrize("name", FILES)
def test_the_help_of_a_program_is_headed_by_its_docstring(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mda"])
    try:
        code = cli.main([name, "--help"])
    except SystemExit as stop:  # of argparse
        code = stop.code
    assert code == 0
    about = import_module(f"mda.programs.{name}").__doc__.strip()
    text = capsys.readouterr().out
    assert about.splitlines()[0] in text and f"mda {name} " in text


def test_the_file_and_the_command_say_the_same():
    file = [sys.executable, "experiments/trace.py", "--help"]
    cloned = subprocess.run(file, cwd=ROOT, capture_output=True, text=True)
    done = mda("trace", "--help")
    assert (done.returncode, done.stdout) == (cloned.returncode, cloned.stdout)
    assert done.returncode == 0 and "mda trace " in done.stdout


def test_a_run_lies_where_the_file_s_would_and_finds_what_the_file_has_built(tmp_path):
    out = tmp_path / "a=b, 'c'"
    overrides = ["experiment=smoke", setting_word("output_dir", str(out)), "report.dpi=30"]
    file = [sys.executable, "experiments/train.py", *overrides, "name=file"]
    assert warm.run(file, ROOT).returncode == 0
    done = mda("train", *overrides, "name=own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = out / "runs" / "train" / "own"
    assert done.stdout.splitlines()[-1] == str(folder)
    assert json.loads((folder / "summary.json").read_text())["times"]["built"] == []
    (follows,) = (line for line in done.stdout.splitlines() if line.startswith("next: "))
    told = subprocess.run(["bash", "-c", f"printf '%s\\n' {follows.removeprefix('next: ')}"],
                          capture_output=True, text=True)  # fmt: skip
    assert told.stdout.splitlines() == ["mda", "trace", *overrides, "seed=0"]


@pytest.fixture
def printed(monkeypatch, capsys):
    """Words -> what `mda` prints, in this process."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mda"])
        assert cli.main(words) == 0
        return capsys.readouterr().out

    return run


def test_plan_is_the_dry_run_of_run(printed, tmp_path):
    words = ["experiment=smoke", f"output_dir={tmp_path}", "plan.hardware=h100"]  # not measured
    planned = printed("plan", *words)
    assert "to build: 1 corpus, 1 base" in planned
    assert planned == printed("run", "--dry-run", *words)
    assert list(tmp_path.iterdir()) == []


def test_what_one_job_builds_is_planned_one_after_the_other(printed, tmp_path):
    words = ["experiment=smoke", f"output_dir={tmp_path}", "plan.hardware=h100", "truth=blocks"]
    parallel = ["hydra/launcher=parallel", "hydra.launcher.n_jobs=16", "-m"]
    assert "one job at a time" in printed("truth", "--dry-run", *words, *parallel)


def test_an_unknown_program_is_one_sentence():
    done = mda("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: mda trian is invalid; expected quickstart, train, ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mda ", {"train", "trace", "plan", "store"}),
        ("mda tr", {"train", "trace"}),
        ("mda trace estimator=", {"estimator=ekfac", "estimator=unrolled"}),
        ("mda plan inter", {"intervention="}),
    ],
)
def test_the_shell_completes_programs_and_then_their_settings(line, offered):
    done = mda("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0, done.stderr
    assert offered <= set(done.stdout.split())


def test_bash_takes_the_completion(tmp_path):
    """The words that bash itself offers after `mda trace unit=`, with the rule installed."""
    program = tmp_path / "mda"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mda.cli "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(mda -sc install=bash)"\n'
        'COMP_LINE="mda trace unit=" COMP_POINT=15 COMP_CWORD=2 hydra_bash_completion\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert "unit=induction_head" in done.stdout.split(), done.stderr


@pytest.fixture
def pages(tmp_path):
    """An outputs folder with a trace and a newer comparison; a browser that notes its word."""
    for age, place in ((20, "trace/first/top_samples.html"), (10, "compare/second/report.html")):
        path = tmp_path / "outputs" / "runs" / place
        path.parent.mkdir(parents=True)
        path.touch()
        path.with_name("job.json").touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    copied = path.with_name("dataset") / path.name  # by mda push
    copied.parent.mkdir()
    copied.touch()
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/asked\n')
    browser.chmod(0o755)
    return tmp_path


def test_view_opens_the_newest_page_in_the_browser_and_prints_its_path(pages):
    done = mda("view", cwd=pages, BROWSER=f"{pages}/browser %s")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "outputs/runs/compare/second/report.html\n"
    page = pages / "outputs" / "runs" / "compare" / "second" / "report.html"
    assert (pages / "asked").read_text() == f"{page.as_uri()}\n"


def test_view_takes_a_run_and_refuses_one_without_a_page(pages):
    outputs = pages / "outputs"
    trace = outputs / "runs" / "trace" / "first"
    assert page_of(trace, outputs) == trace / "top_samples.html"
    (outputs / "runs" / "train" / "third").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"third has no page; expected the folder of"):
        page_of(outputs / "runs" / "train" / "third", outputs)
    with pytest.raises(ConfigError, match=r"--outputs .*none has no page"):
        page_of(None, pages / "none")
