"""Every file of sweeps/ is one command, and every job of it composes."""

import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest
import warm
import yaml
from hydra._internal.utils import get_args_parser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from mda.config import check, compose
from mda.schema import ConfigError

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
WANDB = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))
JOBS = {
    "causal_grid": 72, "damping": 15, "deciles": 20, "estimators": 9, "false_positives": 24,
    "fractions": 80, "fresh_matched": 8, "fresh_random": 48, "fresh_seeds": 96, "matched": 8,
    "other_heads": 72, "scales": 48, "scales_control": 8, "scales_rows": 4, "scope": 24, "seeds": 8,
    "sizes": 96, "smoke": 24, "spans": 32, "tokens": 24, "tokens_bottom": 8, "tokens_matched": 8,
    "tokens_samples": 32, "tokens_tenth": 8, "truth": 2, "windows": 54,
}  # fmt: skip


def command(path: Path) -> list[str]:
    """The command that the head of a sweep file gives."""
    (line,) = re.findall(r"^#   python (experiments/\w+\.py .*)$", path.read_text(), re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_command_of_a_sweep_file_composes_every_job(path, every, monkeypatch):
    """Every combination of its values, or each value once."""
    program, *overrides = command(path)
    assert (ROOT / program).is_file()
    assert f"sweeps={path.stem}" in overrides
    monkeypatch.setattr("mda.config.command.EXHAUSTIVE", 1)
    found = check(get_args_parser().parse_args(overrides), None, every)
    assert (found.at_once, found.jobs) == (2, JOBS[path.stem])
    plain = [repr(config) for config in found.configs]
    assert not every or len(plain) == JOBS[path.stem]
    assert len(set(plain)) == len(plain), "two jobs are the same"


def test_a_mistake_in_a_sweep_is_found_before_it_starts():
    args = get_args_parser().parse_args(["sweeps=causal_grid", "estimator=ekfac,tracing"])
    with pytest.raises(ConfigError, match="estimator=tracing does not exist"):
        check(args, None)


def agent_s_commands(path: Path) -> list[list[str]]:
    """What a W&B agent runs for the corners of a sweep, by W&B's own functions."""
    sweep = yaml.safe_load(path.read_text())
    corners = []
    for name, values in sweep["parameters"].items():
        found = values.get("values", [values.get("value")])
        if "distribution" in values:
            found = [values["min"], values["max"]]
        corners.append([(name, value) for value in found])
    commands = []
    for corner in itertools.product(*corners):
        args = {name: {"value": value} for name, value in corner}
        filled = create_sweep_command_args({"args": args})
        filled |= {"program": [sweep["program"]], "env": ["/usr/bin/env"]}
        words: list[str] = []
        for chunk in create_sweep_command(list(sweep["command"])):
            macro = re.fullmatch(r"\$\{(\w+)\}", str(chunk))
            words += filled[macro[1]] if macro else [str(chunk)]
        commands.append(words)
    return commands


@pytest.mark.parametrize("path", WANDB, ids=lambda path: path.stem)
def test_every_command_of_a_wandb_agent_composes(path):
    commands = agent_s_commands(path)
    seen = {}
    for env, python, program, *overrides in commands:
        assert (env, python) == ("/usr/bin/env", "python")
        assert (ROOT / program).is_file()
        for override in overrides:  # each value once; all of them together below
            seen.setdefault(override, (program, overrides))
    for _, overrides in {tuple(o): (p, o) for p, o in seen.values()}.values():
        config = compose(overrides)
        assert config.logger.mode == "online"
    grid = [tuple(words) for words in commands]
    assert len(set(grid)) == len(grid) == {"causal_grid": 72, "damping": 6}[path.stem]


def test_a_dry_run_tells_what_is_missing_and_builds_nothing(tmp_path):
    args = [
        sys.executable,
        "experiments/run.py",
        "sweeps=smoke",
        "seed=0,1",
        f"output_dir={tmp_path}",
    ]
    done = warm.run([*args, "--dry-run"], ROOT)
    assert done.returncode == 0, done.stderr
    assert "12 jobs; to build: 1 corpus, 2 base, 10 arm, 10 capabilities, 4 scores." in done.stdout
    assert re.search(r"^estimate: [\d.]+ (s|min), one job at a time$", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
