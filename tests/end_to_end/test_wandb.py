"""What W&B may not do: be needed for CSV, lose what was logged, mix the jobs of a process."""

import csv
import os
import subprocess
import time
from importlib import import_module

import pytest
from programs import ROOT, command, kill_when, leet

from mda.config import compose
from mda.report.job_log import job_log
from mda.report.wandb_logging import KEPT, group_of, mode_of, project_of
from mda.schema import ConfigError
from mda.store import git_state

FLUSH_S = 1  # W&B writes to disk at least so often, see `wandb_log`


def test_without_wandb_everything_works_from_local_files(tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError('wandb is not installed')\n")
    args = command("run", tmp_path / "out", "intervention=remove", "logger=csv")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(args, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    failed = subprocess.run(
        [*args, "logger=wandb"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert "wandb is not installed" in failed.stderr, "the blocker does not block"


@pytest.mark.long
def test_a_killed_job_keeps_what_it_logged_before_the_last_flush(tmp_path):
    longer = ("training.total_steps=4000", "data.n_sequences=16100", "emergence.every=20")
    args = command("train", tmp_path, *longer, "logger=wandb", "name=killed")
    seen: dict[int, float] = {}  # step -> when its row was in the CSV

    def reached() -> bool:
        for path in tmp_path.glob("store/base/*.part/curve.csv"):
            for row in csv.DictReader(path.open()):
                seen.setdefault(int(row["step"]), time.monotonic())
        return len(seen) >= 12 and max(seen.values()) > min(seen.values()) + 4 * FLUSH_S

    kill_when(args, reached)
    killed = time.monotonic()
    (offline,) = (tmp_path / "runs/train/killed").glob("wandb/offline-run-*")
    history = [r["history"]["item"] for r in leet(offline) if r["type"] == "history"]
    measured = [item for item in history if any(key.startswith("emergence/") for key in item)]
    logged = {int(item["step"]) for item in measured}
    flushed = {step for step, at in seen.items() if at < killed - 2 * FLUSH_S}
    assert len(flushed) > 1 and logged >= flushed


def test_two_jobs_of_one_process_are_two_runs(tmp_path):
    config = compose(["logger=wandb", "logger.project=p", "logger.group=g"])
    for seed in (0, 1):
        config.seed = seed
        folder = tmp_path / f"job{seed}"
        with job_log(config, folder, settings={"seed": seed}, job_type="arm", arm="control") as log:
            for step in range(3):
                log.row({"step": step, "tokens": 8 * step, "val/loss": 10 * seed + step})
        assert "wandb sync" in log.hint
    for seed in (0, 1):
        (offline,) = (tmp_path / f"job{seed}").glob("wandb/offline-run-*")
        records = leet(offline)
        (run,) = [r["run"] for r in records if r["type"] == "run"]
        assert (run["project"], run["run_group"]) == ("p", "g")
        assert run["display_name"] == f"control seed {seed}"
        assert run["config"]["update"]["arm"] == "control"
        history = [r["history"]["item"] for r in records if r["type"] == "history"]
        assert [item["val/loss"] for item in history] == [10 * seed + step for step in range(3)]
        axes = {r["metric"]["name"]: r["metric"].get("step_metric") for r in records
                if "metric" in r}  # fmt: skip
        assert axes["val/loss"] == axes["tokens"] == "step"


def test_heads_are_one_table_and_the_unit_one_metric(tmp_path):
    heads = {f"L{at // 4}H{at % 4}": at / 10 for at in range(8)}
    curve = [
        {"step": step, "val/loss": 3.0, "emergence/prefix_matching/strongest": 0.7}
        | {f"emergence/prefix_matching/{head}": step * value for head, value in heads.items()}
        | {f"emergence/prefix_matching_se/{head}": 0.01 for head in heads}
        for step in (1, 2)
    ]
    config = compose(["logger=wandb"])
    with job_log(config, tmp_path, settings={}, job_type="arm") as log:
        for row in curve:
            log.row(row)
        log.heads(curve)
        log.unit("prefix_matching", ("L0H1", "L0H3"), curve)
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    history = [r["history"]["item"] for r in leet(offline) if r["type"] == "history"]
    names = {name.split(".")[0] for item in history for name in item if name[0] != "_"}
    metric = "emergence/prefix_matching"
    assert names == {"step", "val/loss", f"{metric}/strongest", f"{metric}/unit", "heads"}
    unit = {item["step"]: item[f"{metric}/unit"] for item in history if f"{metric}/unit" in item}
    assert unit == {1: pytest.approx(0.2), 2: pytest.approx(0.4)}
    (table,) = [item for item in history if "heads.nrows" in item]
    assert (table["heads.nrows"], table["heads.ncols"]) == (16, 5)


def test_a_run_tells_its_commit_its_command_and_what_it_can_be_filtered_by(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", "mine,second")
    (tmp_path / "job.json").write_text('{"command": "mda run seed=3"}')
    with job_log(compose(["logger=wandb"]), tmp_path, settings={"a": 1}, job_type="arm"):
        pass
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    (run,) = [r["run"] for r in leet(offline) if r["type"] == "run"]
    assert run["notes"] == "mda run seed=3"
    assert run["tags"] == ["arm", "nano", "embedded", "prefix_matching", "mine", "second"]
    assert run["config"]["update"]["git"] == git_state() and run["config"]["update"]["a"] == 1


def test_a_class_may_have_any_name(tmp_path):
    labels = ("a*b", "a*", "*", "[/red] $x^$", "a, b")
    with job_log(compose(["logger=wandb"]), tmp_path, settings={}, job_type="arm") as log:
        log.row({"step": 1} | {f"val/loss/{label}": i for i, label in enumerate(labels)})
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    records = leet(offline)
    (item,) = [r["history"]["item"] for r in records if r["type"] == "history"]
    names = [label.replace("*", "\N{ASTERISK OPERATOR}") for label in labels]
    assert [item[f"val/loss/{name}"] for name in names] == [0, 1, 2, 3, 4]
    assert not [r for r in records if "glob_name" in r.get("metric", {})]


def test_the_group_is_the_sweep_s_or_the_run_s_own(tmp_path, monkeypatch):
    logger = compose(["logger=wandb"]).logger
    assert group_of(logger, tmp_path / "sweep" / "3") == "sweep"
    assert group_of(logger, tmp_path / "run" / "2026-01-01") == "2026-01-01"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert group_of(logger, tmp_path / "run" / "2026-01-01") == "abc"
    assert group_of(compose(["logger=wandb", "logger.group=g"]).logger, tmp_path / "3") == "g"


@pytest.mark.parametrize("program", ["train", "trace", "run"])
def test_online_without_a_key_is_one_sentence_before_any_work(tmp_path, monkeypatch, program):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    start = getattr(import_module(f"mda.programs.{program}"), program)
    given = ("experiment=smoke", f"output_dir={tmp_path}", "logger=wandb", "logger.mode=online")
    with pytest.raises(ConfigError, match=r"^logger\.mode=online: W&B says: .*expected an account"):
        start(compose(list(given)), tmp_path / "job")
    assert not (tmp_path / "store").exists()


def test_the_environment_counts_where_no_setting_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    config = compose(["logger=wandb"])
    with job_log(config, tmp_path / "job", settings={}, job_type="arm") as log:
        assert log.run.settings.mode == "offline"
    (offline,) = tmp_path.glob("elsewhere/wandb/offline-run-*")
    (run,) = [record["run"] for record in leet(offline) if record["type"] == "run"]
    assert run["project"] == "mine"
    assert not (tmp_path / "job" / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with job_log(config, tmp_path / "job", settings={}, job_type="arm") as log:
        log.row({"step": 1, "val/loss": 2.0})
        assert log.hint == ""
    assert len(list(tmp_path.glob("elsewhere/wandb/offline-run-*"))) == 1
    monkeypatch.setenv("WANDB_MODE", "online")
    given = compose(["logger=wandb", "logger.mode=offline", "logger.project=p"]).logger
    assert (mode_of(given), project_of(given)) == ("offline", "p")


def killed(config, folder, rows):
    """A job that logs rows and dies."""
    with (
        pytest.raises(KeyboardInterrupt),
        job_log(config, folder, settings={"a": 1}, job_type="arm") as log,
    ):
        for row in rows:
            log.row(row)
        raise KeyboardInterrupt


def test_a_killed_job_goes_on_offline_under_its_id_and_the_last_folder_has_it_all(tmp_path):
    """So does W&B's own upload: what comes later under an id replaces what was there."""
    config = compose(["logger=wandb"])
    killed(config, tmp_path, [{"step": 1, "val/loss": 3.0}])
    time.sleep(1.1)  # W&B names folders by the second
    with job_log(config, tmp_path, settings={"a": 1}, job_type="arm") as log:
        for step in (1, 2):
            log.row({"step": step, "val/loss": 4.0 - step})
    one, two = sorted(tmp_path.glob("wandb/offline-run-*"))
    (first,), (second,) = ([r["run"] for r in leet(f) if r["type"] == "run"] for f in (one, two))
    assert first["run_id"] == second["run_id"]
    history = [r["history"]["item"] for r in leet(two) if r["type"] == "history"]
    assert [item["val/loss"] for item in history] == [3.0, 2.0]
    assert not (tmp_path / KEPT).exists(), "the job ended well: another one has its own id"


def test_a_job_with_other_settings_in_the_folder_of_a_killed_one_is_another_run(tmp_path):
    config = compose(["logger=wandb"])
    killed(config, tmp_path, [])
    name = (tmp_path / KEPT).read_text().split()[0]
    with job_log(config, tmp_path, settings={"a": 2}, job_type="arm") as log:
        assert log.id != name


class Online:
    """Stands in for W&B's server, which has `received` of the records that were sent."""

    def __init__(self, received):
        self.id, self.url, self.starting_step, self.rows = "abc", "https://w/abc", received, []
        self.define_metric = lambda *_, **__: None
        self.log = self.rows.append
        self.finish = lambda **_: None


def test_a_killed_job_that_is_sent_goes_on_after_what_the_server_has(tmp_path, monkeypatch, capsys):
    """The third row was on its way when the job died; the replay has another order."""
    config, asked = compose(["logger=wandb", "logger.mode=online"]), []
    runs = [Online(0), Online(2), Online(4)]

    def init(**given):
        asked.append((given["id"], given["resume"]))
        return runs[len(asked) - 1]

    monkeypatch.setattr("wandb.init", init)
    a, b, c, d = ({"step": s, n: 1.0} for s, n in ((1, "x"), (1, "y"), (2, "x"), (2, "y")))
    killed(config, tmp_path, [a, b, c])
    killed(config, tmp_path, [b, a, c, d])
    with job_log(config, tmp_path, settings={"a": 1}, job_type="arm") as log:
        for row in (a, b, c, d, e := {"step": 3, "x": 1.0}):
            log.row(row)
    assert [run.rows for run in runs] == [[a, b, c], [c, d], [e]]
    assert asked == [(None, "allow"), ("abc", "allow"), ("abc", "allow")]
    assert capsys.readouterr().out.count("W&B: https://w/abc") == 3
