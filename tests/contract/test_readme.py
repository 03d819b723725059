"""Every command of README.md and CONTRIBUTING.md is one that the programs take."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra._internal.utils import get_args_parser
from transformers import PreTrainedTokenizerFast

from mda.cli import PROGRAMS
from mda.config import check
from mda.data.packing import train_tokenizer
from mda.model.build import scratch
from mda.schema import ConfigError, ScratchConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
LEAST = {  # page -> commands on it, at least
    "README.md": 10,
    "CONTRIBUTING.md": 2,
    "experiments/README.md": 12,
    "experiments/published.md": 2,
    "experiments/machines.md": 3,
}
PAGES = tuple(LEAST)
FILE = r"experiments/(\w+)\.py\b"
STARTS = re.compile(rf"(?:\S*python3? {FILE}|torchrun .*?{FILE}|mda(?= |$))")


def fenced(text: str) -> list[str]:
    """The lines of all bash blocks, continued lines joined, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]


def inline(text: str) -> list[str]:
    """What stands in backquotes outside of the blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(program, words after it) for every command of ours in a page."""
    found = []
    for line in fenced(text) + inline(text):
        match = STARTS.match(line)
        if not match or "PROGRAM" in line:  # `mda PROGRAM` stands for any
            continue
        words = shlex.split(line[match.end() :])
        name = match[1] or match[2] or (words.pop(0) if words else "--help")
        found.append((name, words))
    return found


def take(name: str, words: list[str]) -> None:
    """Compose what the command would run; raises ConfigError or SystemExit for a mistake."""
    if name in ("--help", "-sc") or "--help" in words or [name, *words] == ["push"]:
        return
    if name in ("push", "store", "view"):
        if words:  # else the page only names it
            import_module(f"mda.programs.{name}")._parser().parse_args(words)
        return
    if name not in PROGRAMS or name == "reproduce":  # results, bench_*: they have no settings
        command = [sys.executable, ROOT / "experiments" / f"{name}.py", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return
    module = import_module(f"mda.programs.{'run' if name == 'plan' else name}")
    words = [word for word in words if word not in ("--dry-run", "--cfg", "job")]
    check(get_args_parser().parse_args(words), module.NEEDS, every=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with the files that the pages speak of."""
    sizes = ScratchConfig(family="llama", n_layers=3, d_model=8, n_heads=2, n_key_value_heads=1,
                          d_ff=16, vocab_size=32000, max_seq_len=1024)  # fmt: skip
    scratch(sizes, 0).save_pretrained(tmp_path / "my-model")
    (tmp_path / "my-texts.jsonl").write_text(json.dumps({"text": "a", "kind": "b"}))
    example = {"prompt": "a", "right": "b", "wrong": "c"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(example))
    np.save(tmp_path / "probe.npy", np.ones(8, "float32"))
    np.save(tmp_path / "rows.npy", np.zeros((2, 2049), "uint16"))
    for name in ("bergson/run/scores", "scores"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "srun").write_text("")  # the pages may speak of a cluster
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    told = r"`(my_conf/\S+\.yaml)`.*?^```yaml\n(.*?)^```"
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for name, written in re.findall(told, text, re.MULTILINE | re.DOTALL):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(written, "utf-8")
    assert sorted(p.stem for p in tmp_path.glob("my_conf/*/*.yaml")) == ["mine", "my_claims"]
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme_runs(folder):
    """On a tiny model of the user's own, in a process of its own."""
    text = "the cat sat on the mat and the cat saw the dog. " * 30
    Path("my-texts.txt").write_text("\n\n".join([text] * 20), "utf-8")
    tokenizer = train_tokenizer([text * 40, README], 400)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained("my-model")
    code = README.partition("```python\n")[2].partition("```")[0]
    code += "assert len(edit) == len(rows) // 10 and shading.shape == (2, 128)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0].split() == ["unit", "prefix_matching"]  # the table of heads
    assert re.fullmatch(r"-?\d\.\d\de[+-]\d\d.*", lines[-1])  # a sample, or the end of one


@pytest.mark.parametrize("page", PAGES)
def test_every_command_composes(folder, page):
    found = commands((ROOT / page).read_text("utf-8"))
    assert len(found) >= LEAST[page]
    for name, words in found:
        try:
            take(name, words)
        except (ConfigError, SystemExit) as error:
            pytest.fail(f"{page}: mda {name} {shlex.join(words)}: {error}")


@pytest.mark.parametrize(
    "text",
    [
        "Say `mda train model=nanno`.",
        "```bash\nmda run 'intervention.fraktion=0.1'   # less\n```",
        "```bash\na && python experiments/trace.py \\\n    unit=mlp_neurons\n```",
        "```bash\ntorchrun --nproc-per-node 2 experiments/trace.py estimator=fac\n```",
        "`mda store lss`",
    ],
)
def test_a_mistake_in_a_page_is_found(folder, text):
    ((name, words),) = commands(text)
    with pytest.raises((ConfigError, SystemExit)):
        take(name, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text("utf-8"))
    place = (ROOT / page).parent
    paths = [link.partition("#")[0] for link in links if "://" not in link]
    missing = [path for path in paths if path and not (place / path).exists()]
    assert links and missing == []


def test_the_manual_names_every_option_of_units_and_estimators():
    manual = (ROOT / "experiments" / "README.md").read_text("utf-8")
    for group in ("unit", "estimator"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{group}={path.stem}`" in manual


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    version = project["tool"]["hatch"]["version"]["raw-options"]["fallback_version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert citation["version"] == version
    assert newest is not None and newest[1] == version


def test_two_commands_of_the_readme_run_every_test_and_the_script_runs_the_first_as_it_stands():
    told = r"^<!-- (test|long test) command -->\n```bash\n(.*?)\n```"
    found = dict(re.findall(told, README, re.MULTILINE | re.DOTALL))
    _, _, plain = found["test"].rpartition(" && ")
    assert found["long test"] == f"{plain} -m long" and " -m " not in plain.partition("pytest")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["pytest"]["ini_options"]["addopts"].endswith("-m 'not long'")
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert 'bash -euo pipefail -c "$command"' in script and "export" not in script


def test_the_workflow_calls_the_script_and_the_hooks_are_installed_tools():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == ".ci/run" and os.access(ROOT / ".ci" / "run", os.X_OK)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]
    tools = {hook["entry"].split()[0] for hook in hooks["hooks"]}
    assert tools == {".venv/bin/ruff", ".venv/bin/pyright"}


def test_the_workflows_build_the_documentation_as_told_and_publish_what_this_project_is_named():
    docs, release = (
        yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text("utf-8"))["jobs"]
        for name in ("docs", "release")
    )
    runs = [step["run"] for step in docs["build"]["steps"] if "run" in step]
    told = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert all(run in told for run in runs[1:]) and len(runs) == 3
    name = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"]
    publish = release["publish"]
    assert publish["environment"]["url"].endswith(f"/{name}")
    assert publish["permissions"] == {"id-token": "write"}, "trusted publishing"
    assert re.fullmatch(
        r"pypa/gh-action-pypi-publish@[0-9a-f]{40}", publish["steps"][-1]["uses"]
    ), "pinned to a commit: a tag can be moved"
