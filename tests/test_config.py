"""A program's command line: help, one run, a sweep, and mistakes that show up late."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from mda.config import check, compose, setting_word
from mda.config.saved import _with_paths, through_schema
from mda.report.arm import arm_name
from mda.schema import Config, ConfigError, EkfacConfig, TracinConfig, TrainingConfig
from mda.stages.context import Context

PROGRAM = Path(__file__).with_name("program.py")


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def folders(cwd: Path) -> list[str]:
    return sorted(path.parent.relative_to(cwd).as_posix() for path in cwd.rglob("config.yaml")
                  if path.parent.name != ".hydra")  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["seed=1", "--cfg", "job"]])
def test_help_and_configuration_are_shown_without_loading_or_writing_anything(tmp_path, arguments):
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_the_program_does_its_groups_settings_and_examples(tmp_path):
    text = run(tmp_path, "--help").stdout
    assert text.startswith("A program for the tests: prints what it was given")
    for line in (
        "  data          embedded, hf, natural, pile, synthetic, tokens",
        "  training.min_lr_ratio=0.1                last learning rate as a share of the peak",
        "  data.path=...                            file of token rows, .npy or raw little-endian "
        "(data=tokens)",
        "  python program.py seed=0,1,2 -m       a sweep: one job for each seed",
    ):
        assert line in text.splitlines()
    assert "report.dpi" not in text, "a group the program does not need"


def test_a_program_gets_its_typed_configuration_and_a_folder_of_its_own(tmp_path):
    done = run(tmp_path, "seed=3", "name=mine", "estimator=tracin", "output_dir=out")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "runs" / "program" / "mine"
    assert done.stdout.splitlines()[0] == f"Config TracinConfig 3 {folder}"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["seed"] == 3
    assert saved["model"]["vocab_size"] == saved["data"]["vocab_size"]
    assert "${" not in (folder / "config.yaml").read_text()
    assert (folder / ".hydra" / "overrides.yaml").exists()


def test_processes_of_torchrun_are_refused_by_a_program_that_shares_no_work(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run(tmp_path, "seed=1")
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert done.stderr.startswith("error: WORLD_SIZE=2: each process of torchrun would do all the")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(tmp_path, "seed=1").returncode == 0


def test_runs_without_a_name_never_share_a_folder(tmp_path):
    assert [run(tmp_path).returncode for _ in range(2)] == [0, 0]
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("more", [(), ("seed=0,1", "-m")])
def test_results_that_can_lie_nowhere_are_one_sentence(tmp_path, more):
    (tmp_path / "taken").write_text("a file")
    done = run(tmp_path, "output_dir=taken", *more)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: taken/runs/") and "(Not a directory); expected an output" in line


def test_a_sweep_numbers_its_jobs(tmp_path):
    done = run(tmp_path, "seed=0,1", "-m", "estimator=ekfac,random", "name=grid")
    assert done.returncode == 0, done.stderr
    root = "outputs/runs/program/grid"
    assert folders(tmp_path) == [f"{root}/{job}" for job in range(4)]
    jobs = [line.split()[1:3] for line in done.stdout.splitlines() if line.startswith("Config")]
    assert jobs == [["EkfacConfig", "0"], ["RandomConfig", "0"], ["EkfacConfig", "1"],
                    ["RandomConfig", "1"]]  # fmt: skip


def test_a_mistake_that_shows_up_late_is_one_sentence_too(tmp_path):
    done = run(tmp_path, "seed=13")
    assert done.returncode == 2
    assert done.stderr == "error: data.path=a.npy is invalid; expected a file that exists\n"


def arguments(*overrides: str, multirun: bool = True, folder: Path | None = None):
    from argparse import Namespace

    return Namespace(
        overrides=list(overrides),
        multirun=multirun,
        config_name=None,
        config_path=None,
        config_dir=str(folder) if folder else None,
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=0,1", "model=nano,pythia-14mm"], r"model=pythia-14mm does not exist"),
        (["seed=range(0,100)", "training.batch_size=0,8"], r"training\.batch_size=0 is invalid"),
        (
            ["model.n_heads=4,3", "model.d_model=48,64", "model.rotary_pct=1"],
            r"model\.n_heads=3 .*divisor .*=64",
        ),
        (["seed=0,1,2,3", "emergence.seed=0,1", "model.n_layers=1,0,2"], r"n_layers=0 is invalid"),
        (
            ["experiment=smoke", "data=synthetic,embedded", "data.templates.xml=2"],
            r"is a setting of data=synthetic",
        ),
    ],
)
def test_every_alternative_of_a_sweep_is_checked_before_the_first_job(overrides, said):
    with pytest.raises(ConfigError, match=said):
        check(arguments(*overrides), None)


PARALLEL = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")


@pytest.mark.parametrize(
    "sweep",
    [
        ["training.devices=2", "seed=0,1", *PARALLEL],
        ["training.devices=1,2", *PARALLEL],
    ],
)
def test_arms_on_several_devices_side_by_side_are_refused_before_the_first_job(sweep):
    said = r"training\.devices=2 is invalid; expected 1 with hydra\.launcher\.n_jobs=2, or one job"
    with pytest.raises(ConfigError, match=said):
        check(arguments(*sweep), None)
    trace = ("base", "data", "model", "training", "unit", "estimator")  # finds a base run of two
    assert check(arguments(*sweep), trace).at_once == 2
    assert check(arguments(*sweep[:-2]), None).at_once == 1


CARDS = """
import os, time, torch
from pathlib import Path

told = Path(os.environ["TOLD"])

def set_device(gpu):
    (told / f"{os.getpid()}").write_text(str(gpu))
    while len(list(told.iterdir())) < 2:  # the other job is still to come
        time.sleep(0.02)

torch.cuda.device_count = lambda: 2
torch.cuda.get_device_name = lambda i: "card"
torch.cuda.set_device = set_device
"""


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """What torch says of GPUs in all processes started from here; those that were taken."""
    (tmp_path / "sitecustomize.py").write_text(CARDS)
    (tmp_path / "told").mkdir()
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    return lambda: [path.read_text() for path in (tmp_path / "told").iterdir()]


@pytest.mark.slow
def test_of_two_jobs_side_by_side_each_has_a_gpu_of_its_own_and_those_on_the_cpu_none(
    tmp_path, two_gpus
):
    done = run(tmp_path, "training.accelerator=auto,cpu", "seed=0,1", "-m", *PARALLEL)
    assert done.returncode == 0, done.stderr
    assert sorted(two_gpus()) == ["0", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=pile"], r"null, or data\.labels that gives data=pile classes of text"),
        (["data=tokens", "data.path=a.npy"], r"null, or data\.labels that gives data=tokens"),
        (["data=hf", "data.dataset=a", "data.tokenizer=b"], r"null, or data\.label that gives"),
        (
            ["data=pile", "data.labels=a.npy", "data.label_names=[prose,xml]"],
            r"one of data\.label_names=\[prose,xml\]",
        ),
    ],
)
def test_a_unit_that_tells_a_class_of_text_needs_data_that_have_it(words, said):
    unit = ["unit=sae_feature", "unit.label=code"]
    needs = ("data", "unit")
    with pytest.raises(ConfigError, match=rf"^unit\.label=code is invalid; expected {said}"):
        compose([*words, *unit], needs)
    compose(words, needs)
    compose(["data=pile", "data.labels=a.npy", "data.label_names=[prose,code]", *unit], needs)


def test_a_direction_is_of_a_layer_that_the_model_has():
    unit = ["unit=direction", f"unit.file={__file__}", "model.n_layers=4"]
    said = r"^unit\.layer=4 is invalid; expected layers 0 to 3$"
    with pytest.raises(ConfigError, match=said):
        compose([*unit, "unit.layer=4"])
    assert compose([*unit, "unit.layer=3"]).unit.layer == 3
    with pytest.raises(ConfigError, match=r"unit\.layer is not given"):
        compose(unit)


def test_a_sweep_kept_in_a_file_is_checked_as_well(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "grid.yaml").write_text(
        "# @package _global_\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1', estimator: 'ekfac,randm'}}}\n"
    )
    with pytest.raises(ConfigError, match=r"estimator=randm does not exist \(did you mean random"):
        check(arguments("experiment=grid", multirun=False, folder=tmp_path), None)


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    for text, said in {
        "model: {n_hed: 3}": r"unknown setting model\.n_hed \(did you mean model\.n_heads\?\).*"
        r"\(in experiment/mine\.yaml\)",
        "model: {n_heads: many}": r"model\.n_heads=many is invalid; expected an integer.*"
        r"\(in experiment/mine\.yaml\)",
        "model: {n_heads: 3": r"mine\.yaml, line 3 is no valid YAML",
        "defaults: [{override /data: synth}]": r"data=synth does not exist",
    }.items():
        file.write_text(f"# @package _global_\n{text}\n")
        with pytest.raises(ConfigError, match=said):
            check(arguments("experiment=mine", multirun=False, folder=tmp_path), None)


def test_compose_returns_the_schema_s_own_objects():
    config = compose(["estimator=tracin", "intervention.window=[100,200]"])
    assert type(config) is Config
    assert type(config.estimator) is TracinConfig
    assert config.intervention.steps == (100, 200)
    assert type(compose().estimator) is EkfacConfig


def test_rules_between_groups_a_program_does_not_need_are_not_its_concern():
    short = ["data.seq_len=128", "emergence.length=64", "unit.probe.length=100"]
    with pytest.raises(ConfigError, match=r"unit\.probe\.length=100"):
        compose(short)
    assert compose(short, needs=("data", "model", "training", "emergence")).seed == 0


TEXTS = [
    *(
        "a=b",
        "a,b",
        "a'b",
        'a"b',
        "null",
        "True",
        "x\\y",
        "x\\'y",
        "ü ~#()[]{}:%$",
        " a ",
        "1e3",
        "",
    ),
    "/plain-1.2",
]


def test_words_that_are_printed_are_read_back_as_they_were():
    words = [setting_word("report.runs", TEXTS), setting_word("report.title", "a=b, 'c'")]
    assert shlex.split(shlex.join(words)) == words
    report = compose(words, ("report",)).report
    assert (report.runs, report.title) == (TEXTS, "a=b, 'c'")


def test_a_bug_is_not_dressed_up_as_a_mistake(monkeypatch):
    monkeypatch.setattr("mda.schema.validate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compose()


def saved(cwd: Path, folder: str) -> dict:
    return yaml.safe_load(
        (cwd / "outputs" / "runs" / "program" / folder / "config.yaml").read_text()
    )


def test_threads_left_open_are_all_cores_or_a_job_s_share_of_them(tmp_path):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert run(tmp_path, "training.threads=null", "name=alone").returncode == 0
    assert saved(tmp_path, "alone")["training"]["threads"] == cores
    parallel = ("hydra/launcher=parallel", f"hydra.launcher.n_jobs={cores}")
    done = run(tmp_path, "training.threads=null", "seed=0,1", "-m", "output_dir=both", *parallel)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "both" / "runs" / "program").iterdir()  # they were given no name
    jobs = [yaml.safe_load((sweep / job / "config.yaml").read_text()) for job in ("0", "1")]
    assert [(job["training"]["threads"], job["name"]) for job in jobs] == [(1, sweep.name)] * 2


def test_a_job_that_fails_stops_no_other_and_the_sweep_ends_with_a_table(tmp_path):
    done = run(tmp_path, "seed=12,13,1", "-m", "name=table")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: data.path=a.npy is invalid; expected a file that exists" in done.stderr
    text = done.stdout
    assert len([line for line in text.splitlines() if line.startswith("Config")]) == 2
    assert "job 1 failed" in text and "3 jobs: 2 done, 1 failed" in text
    assert "data.path=a.npy is invalid" in text
    assert "to run job 1 again:  mda program seed=13\n" in text


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_folder_of_settings_stays_part_of_printed_commands(tmp_path, sweep, monkeypatch):
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /estimator: tracin]\n"
    )
    done = run(tmp_path, "--config-dir", "my_conf", "experiment=mine", "name=it", *sweep)
    assert done.returncode == 0, done.stderr
    (job,) = (tmp_path / "outputs").rglob("job.json")
    content = json.loads(job.read_text())
    assert content["command"] == "mda program --config-dir=my_conf experiment=mine"
    again = run(tmp_path, *shlex.split(content["command"])[2:], "name=again")
    assert "TracinConfig" in again.stdout
    words = [word for word in content["overrides"] if not word.startswith("name=")]
    monkeypatch.chdir(tmp_path)
    assert isinstance(compose(words).estimator, TracinConfig)


def test_what_inserted_rows_do_not_read_is_not_refused():
    """Losses are asked of the estimator only where a random set is matched by them."""
    words = ["intervention=augment", "intervention.match=loss", "estimator=unrolled"]
    inserted = ["intervention.mode=insert", "intervention.rows=mine.npy"]
    assert compose([*words, *inserted]).intervention.match == "loss"
    with pytest.raises(ConfigError, match=r"with intervention\.match=loss"):
        compose(words)


def test_a_saved_run_is_checked_by_the_rules_of_its_own_program():
    """A training whose contexts have no room for the tasks of an arm's end, which it never sets."""
    words = ["data.seq_len=24", "emergence.length=12", "training.total_steps=200"]
    config = compose([*words, "emergence.every=50"], ("data", "model", "training", "emergence"))
    content = asdict(config)
    assert through_schema(content, "train").data.seq_len == 24
    for program in ("run", "no_program"):
        with pytest.raises(ConfigError, match=r"capabilities\.span=6 is invalid"):
            through_schema(content, program)


def test_a_run_that_was_saved_with_a_threshold_for_every_metric_can_be_read():
    content = asdict(compose([]))
    saved = content | {"emergence": content["emergence"] | {"onset": {"prefix_matching": 0.06}}}
    assert through_schema(saved, "run") == through_schema(content, "run")


def test_paths_of_a_saved_run_are_those_of_its_own_place(tmp_path):
    (tmp_path / "my-sae").mkdir()
    content = {"unit": {"source": "my-sae", "label": "code"}, "data": {"path": "not-there.npy"}}
    found = _with_paths(content, tmp_path)
    assert found["unit"]["source"] == str(tmp_path / "my-sae") and found["data"] == content["data"]


def test_the_name_of_an_arm_says_which_unit_it_was_aimed_at():
    def name(*words):
        return arm_name(compose(list(words)))

    plain = name()
    assert "unit" not in plain
    found = [plain, name("unit.blocks=[qk]"), name("unit=previous_token_head"),
             name("unit=mlp_neuron", "unit.label=code"), name("unit.locate=mechanism")]  # fmt: skip
    assert len(set(found)) == 5 and found[1].endswith("unit.blocks=['qk']")
    for words in ("intervention=control", "estimator=random"):
        assert name(words) == name(words, "unit=previous_token_head"), "they serve every unit"
    matched = "intervention.match=label"
    assert name(matched) != name(matched, "unit=previous_token_head")


def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = compose(["training.accelerator=gpu", f"output_dir={tmp_path}"])
    with pytest.raises(
        ConfigError, match=r"training\.accelerator=gpu is invalid; expected cpu, or"
    ):
        Context.of(config)
    assert Context.of(replace(config, training=TrainingConfig(accelerator="auto"))).store


@pytest.mark.parametrize("layers", ["[]", "[1,1]"])
def test_layers_without_a_neuron_to_find_are_refused(layers):
    with pytest.raises(ConfigError, match=r"unit\.layers=.*distinct layers"):
        compose(["unit=mlp_neuron", "unit.label=code", f"unit.layers={layers}"])


def test_a_saved_configuration_and_an_override_of_old_names_are_read_in_the_words_of_today():
    content = asdict(compose(["capabilities.span=5"]))
    content["behaviour"] = content.pop("capabilities")
    assert through_schema(content, "run").capabilities.span == 5
    with pytest.raises(ConfigError, match=r"^behaviour is called capabilities now"):
        compose(["behaviour.span=5"])
