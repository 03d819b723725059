"""A base run that was published goes through the whole main job, by the real programs and clients.

What is published was trained here, so that everything about it is known: its curve, its updates.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import pytest
import torch
import warm
from hub import Hub, commit_of, serving
from huggingface_hub import constants
from programs import ROOT, command, summary
from publications import STEPS, old_style, publish, sharded
from safetensors.torch import load_file, save_file

from mda import pipeline
from mda.config import compose, prepared
from mda.data.stream import open_corpus
from mda.model.build import read_model
from mda.programs.reproduce import reproduce
from mda.schema import ConfigError, Unavailable
from mda.stages import before
from mda.stages.context import Context
from mda.stages.order import Order
from mda.stages.preview import preview_job
from mda.training.optimizer import adamw, learning_rate

TOKEN = "hf_thisisnottobewritten"
STEP_LIST = "base.steps=[0,20,40,60]"
LLAMA = ("model=nano-llama", "model.n_key_value_heads=1")
WINDOW = "intervention.window=[20,40]"
LOOK = "step0/config.json"  # with the header of the weights, before a corpus is built


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A repository `me/tiny` with four revisions of float32, its hub's root, and the run itself."""
    root = tmp_path_factory.mktemp("trained")
    base = publish(root / "own", root / "hub/me/tiny")
    return root / "hub", base


@pytest.fixture
def hub(trained, tmp_path):
    """A hub with a copy of the repository, to be spoilt."""
    shutil.copytree(trained[0], tmp_path / "hub")
    with serving(tmp_path / "hub") as server:
        yield server


def ask(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process ask a hub for what it fetches."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # HF_ENDPOINT is read at import
    before._refusal.cache_clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def start(hub: Hub, program: str, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A program with `base=published`, in a home of its own."""
    home = {"HF_HOME": str(out / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    args = command(program, out, "base=published", *overrides)
    return subprocess.run(
        args, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **home}, timeout=300
    )


def finished(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def refused(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one sentence with which a program refused."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (code, 1), done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def artifact(out: Path, folder: Path, kind: str) -> Path:
    return out / "store" / kind / summary(folder)["fingerprints"][kind]


@pytest.fixture(scope="module")
def finished_runs(trained, tmp_path_factory):
    """The main job on the repository: curve, removal, control, comparison."""
    out = tmp_path_factory.mktemp("out")
    with serving(trained[0]) as hub:
        hub.token = TOKEN  # private: the client must send it
        where = ("base.repo=me/tiny", STEP_LIST)
        runs = {
            "train": finished(start(hub, "train", out, *where)),
            "remove": finished(
                start(hub, "run", out, *where, "estimator=tracin", "intervention.fraction=0.25")
            ),
            "control": finished(start(hub, "run", out, *where, "intervention=control")),
        }
        asked = hub.fetched()
    args = command("compare", out, f"report.runs=[{out / 'runs/run'}]")
    runs["compare"] = finished(warm.run(args, ROOT))
    return out, runs, asked


def test_its_curve_is_the_one_that_was_measured_in_training(trained, finished_runs):
    """Bit for bit: the same weights, probes and code, once in a callback and once in a stage."""
    _, base = trained
    _, runs, _ = finished_runs
    of_training = [row for row in rows_of(base / "curve.csv") if int(row["step"]) in STEPS]
    assert rows_of(runs["train"] / "curve.csv") == of_training


def test_every_file_is_fetched_once_and_the_token_is_written_nowhere(finished_runs):
    out, _, asked = finished_runs
    wanted = [f"step{s}/{name}" for s in STEPS for name in ("config.json", "model.safetensors")]
    assert sorted(asked) == sorted([LOOK, *wanted])
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_an_arm_is_trained_on_by_a_fresh_adamw_at_that_step_s_learning_rate(trained, finished_runs):
    """The control arm against a loop of plain PyTorch from the published weights."""
    _, base = trained
    out, runs, _ = finished_runs
    config = compose(["experiment=smoke", "base=published", "base.repo=me/tiny", STEP_LIST])
    (folder,) = [path for path in (out / "store/corpus").iterdir() if path.is_dir()]
    corpus = open_corpus(folder, folder.name)
    torch.set_num_threads(1)
    model = read_model(
        base / "model_config.json", base / "checkpoints/step_20/model.safetensors"
    ).train()
    optimizer = adamw(model, config.training)
    stream = Order.of(corpus, config.data, config.training.batch_size, 0).stream(20, 40)
    for step in range(20, 40):
        ids, _ = stream.at(step)
        tokens = corpus.rows(ids)
        logits = model(tokens[:, :-1]).logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.training)
        optimizer.step()
    arm = load_file(artifact(out, runs["control"], "arm") / "checkpoints/step_40/model.safetensors")
    start = load_file(base / "checkpoints/step_20/model.safetensors")
    for name, value in model.named_parameters():
        moved = (arm[name] - start[name]).norm()
        assert (arm[name] - value).norm() <= 1e-3 * moved, name


def test_the_arms_differ_and_are_compared(finished_runs):
    _, runs, _ = finished_runs
    ends = {name: rows_of(runs[name] / "curve.csv") for name in ("remove", "control")}
    assert ends["remove"][0] == ends["control"][0]  # both start from the published weights
    assert ends["remove"][-1] != ends["control"][-1]
    edit = [line for line in (runs["remove"] / "edit.csv").read_text().splitlines() if line]
    assert len(edit) == 2 + 20  # of 80 samples a quarter
    assert (runs["compare"] / "report.html").stat().st_size > 0


def test_the_manifest_has_commit_and_hash_of_every_file(trained, finished_runs):
    root, _ = trained
    _, runs, _ = finished_runs
    rows = rows_of(runs["train"] / "revisions.csv")
    assert len(rows) == 2 * len(STEPS)
    for row in rows:
        content = (root / "me/tiny" / row["revision"] / row["file"]).read_bytes()
        assert row["sha256"] == sha256(content).hexdigest()
        assert row["commit"] == commit_of(f"step{row['step']}")
    about = summary(runs["train"])
    manifest = (runs["train"] / "revisions.csv").read_bytes()
    assert "revisions.csv" in about["files"]
    assert about["hashes"]["revisions.csv"] == sha256(manifest).hexdigest()


def test_a_reproduction_compares_what_was_published(finished_runs, hub, monkeypatch, capsys):
    """The same again is equal; weights that have changed since are not."""
    out, runs, _ = finished_runs
    ask(hub, monkeypatch)
    assert reproduce(runs["train"], out, anyway=False, from_scratch=False)
    assert hub.requests == []  # its weights were in the store
    path = hub.root / "me/tiny/step40/model.safetensors"
    weights = load_file(path)
    weights["gpt_neox.final_layer_norm.bias"] += 1e-3
    save_file(weights, path, {"format": "pt"})
    capsys.readouterr()
    assert not reproduce(runs["train"], out, anyway=False, from_scratch=True)
    said = capsys.readouterr().out
    assert "revisions.csv" in said and "sha256" in said


@pytest.mark.long
@pytest.mark.parametrize("estimator", ["ekfac", "exact", "random", "loss"])
def test_all_estimators_that_need_no_state_work_on_it(trained, finished_runs, estimator):
    out, _, _ = finished_runs
    with serving(trained[0]) as hub:
        where = ("base.repo=me/tiny", STEP_LIST, f"estimator={estimator}")
        folder = finished(start(hub, "trace", out, *where))
        assert hub.requests == []
    assert len(rows_of(folder / "scores.csv")) == 80


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("estimator=unrolled", "estimator=unrolled is invalid"),
        (
            "estimator=tracin estimator.adam_preconditioning=true",
            "adam_preconditioning=true is inv",
        ),
        ("intervention.window=[10,40]", "a start that is one of base.steps=[0,20,40,60]"),
        ("unit.locate=L7H0", "unit.locate=L7H0"),
        ("base.steps=[0,20,20]", "two or more rising steps"),
        ("base.steps=[20,0]", "two or more rising steps"),
        ("base.steps=[0,70]", "steps of the learning-rate schedule, training.total_steps=60"),
        ("base.repo=tiny", "base.repo=tiny is invalid; expected owner/name"),
        ("base.folder=.", "one of the two"),
        ("base.repo=EleutherAI/pythia-2.8b", "pythia/issues/205"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(choice, says):
    where = ["experiment=smoke", "base=published", "base.repo=me/tiny", STEP_LIST]
    with pytest.raises(ConfigError, match=re.escape(says)):
        compose([*where, *choice.split()])


def test_a_revision_known_to_be_bad_is_used_when_told_so():
    where = ["experiment=smoke", "base=published", "base.repo=EleutherAI/pythia-12b"]
    where += ["training.total_steps=143000", "data.n_sequences=1000000"]
    where += ["intervention.window=auto", "base.other_training=true"]
    config = compose([*where, "base.steps=[49000,50000]", "base.allow_bad=true"])
    assert config.base.steps == [49_000, 50_000]  # type: ignore[attr-defined]


def test_sizes_that_are_not_the_repository_s_are_refused_before_weights_are_fetched(hub, attempt):
    says = "model.n_layers=3 is invalid; expected 2, as base.repo=me/tiny, revision step0 has"
    with pytest.raises(ConfigError, match=re.escape(says)):
        attempt("model.n_layers=3")
    assert hub.fetched() == [LOOK, "step0/config.json"]


TRAIN = ("base.repo=me/tiny", STEP_LIST)
FAULTS = {  # file, what goes wrong with it, what is said
    "429": ("step20/model.safetensors", "429", "too many requests"),
    "500": ("step20/model.safetensors", "500", "the hub answers 500; start again"),
    "cut": ("step20/model.safetensors", "cut", "the connection failed"),
    "flipped": ("step20/model.safetensors", "flipped", "arrived damaged: its hash is"),
    "short": ("step20/model.safetensors", "short", "arrived damaged"),
}


@pytest.fixture
def attempt(hub, tmp_path, monkeypatch):
    """Overrides -> `train` on the hub, in this process: a start of the program takes seconds."""

    def run(*overrides: str) -> pipeline.Run:
        ask(hub, monkeypatch)
        where = ["experiment=smoke", "base=published", *TRAIN, f"output_dir={tmp_path / 'out'}"]
        config = compose([*where, *overrides])
        return pipeline.train(replace(Context.of(config), progress=False))[1]

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_one_sentence_and_a_second_start_goes_on(hub, attempt, fault):
    file, kind, says = FAULTS[fault]
    hub.faults = {file: kind}
    with pytest.raises(ConfigError) as found:
        attempt()
    assert isinstance(found.value, Unavailable)
    error = str(found.value)
    assert error.startswith("base.repo=me/tiny, revision step20: model.safetensors")
    assert says in error and "start again" in error and "\n" not in error
    if fault == "cut":  # the client itself tries more than once
        limit = time.monotonic() + 10  # the server notes a request when it has left it
        while hub.fetched().count(file) < 2 and time.monotonic() < limit:
            time.sleep(0.05)
        assert hub.fetched().count(file) > 1
    hub.faults, hub.requests[:] = {}, []
    assert list(attempt().checkpoints) == list(STEPS)
    wanted = [f"step{s}/{name}" for s in (40, 60) for name in ("config.json", "model.safetensors")]
    assert hub.fetched() == ["step20/model.safetensors", *wanted]


@pytest.mark.long
def test_the_program_that_failed_is_started_again_and_goes_on(hub, tmp_path):
    hub.faults = {"step60/model.safetensors": "flipped"}
    error = refused(start(hub, "train", tmp_path, *TRAIN), code=75)
    assert error.startswith("error: base.repo=me/tiny, revision step60: model.safetensors arrived")
    hub.faults, hub.requests[:] = {}, []
    finished(start(hub, "train", tmp_path, *TRAIN))
    assert hub.fetched() == ["step60/model.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("repository", "base.repo=me/none, revision step0: there is no such repository"),
        ("revision", "revision step30: there is no such revision"),
        ("file", "revision step20: model.safetensors: the revision has no such file"),
        ("weights", "revision step20: has no weights; expected one of model.safetensors"),
        ("adapter", "revision step20: has adapter_config.json beside its weights; expected wei"),
        ("server", "revision step0: the connection failed"),
    ],
)
def test_what_is_not_there_is_named(hub, attempt, spoil, says):
    overrides = []
    if spoil == "repository":
        overrides = ["base.repo=me/none"]
    if spoil == "revision":
        overrides = ["base.steps=[20,30]"]
    if spoil == "file":
        hub.faults = {"step20/model.safetensors": "gone"}
    if spoil == "weights":
        (hub.root / "me/tiny/step20/model.safetensors").unlink()
    if spoil == "adapter":
        (hub.root / "me/tiny/step20/adapter_config.json").write_text("{}")
    if spoil == "server":
        hub.url = "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match=re.escape(says)):
        attempt("intervention.window=auto", *overrides)


@pytest.mark.parametrize("choice", ["base.steps=[0,20,30]", "base.repo=me/none"])
def test_every_step_is_asked_for_before_anything_is_fetched_or_built(
    hub, attempt, tmp_path, choice
):
    says = "revision step0: there is no such rep" if "repo" in choice else "revision step30: there "
    with pytest.raises(ConfigError, match=says):
        attempt("intervention.window=auto", choice)
    assert hub.fetched() == []
    assert not (tmp_path / "out/store/corpus").exists()
    where = ["experiment=smoke", "base=published", *TRAIN, f"output_dir={tmp_path / 'out'}"]
    config = compose([*where, "intervention.window=auto", choice])
    assert says in preview_job(config, pipeline.arm).refused


def test_weights_of_a_hub_that_do_not_fit_are_refused_by_their_names(hub, attempt, tmp_path):
    path = hub.root / "me/tiny/step0/model.safetensors"
    weights = {f"module.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    says = r"^base.repo=me/tiny, revision step0: \d+ missing weights, the first gpt_neox"
    with pytest.raises(ConfigError, match=says):
        attempt("intervention.window=auto")
    assert hub.fetched() == [LOOK] and not (tmp_path / "out/store/corpus").exists()


def test_a_plan_is_made_where_the_hub_cannot_be_reached(hub, monkeypatch, tmp_path, capsys):
    hub.url = "http://127.0.0.1:9"
    ask(hub, monkeypatch)
    where = ["experiment=smoke", "base=published", *TRAIN, f"output_dir={tmp_path / 'out'}"]
    found = preview_job(compose(where), pipeline.train)
    assert not found.refused and "corpus" in {kind for kind, _ in found.stages}
    assert "the connection failed" in capsys.readouterr().err


def test_a_token_that_may_not_read_is_refused_and_not_shown(hub, attempt, capsys):
    hub.token = "hf_another"
    says = "revision step0: may not be read (401); expected a repository that HF_"
    with pytest.raises(ConfigError, match=re.escape(says)) as found:
        attempt()
    said = capsys.readouterr()
    assert TOKEN not in str(found.value) + said.out + said.err


# Local folders.


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder of Llama revisions: one plain, one in shards of bf16, one of fp16."""
    root = tmp_path_factory.mktemp("llama")
    base = publish(root / "own", root / "revisions", *LLAMA)
    sharded(root / "revisions/step20", torch.bfloat16)
    sharded(root / "revisions/step40", torch.float16)
    return root / "revisions", base


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No hub: what is local asks none."""
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty") as server:
        ask(server, monkeypatch)
        yield
    assert server.requests == []


@pytest.mark.usefixtures("nowhere")
def test_llama_weights_of_a_local_folder_go_all_the_way(llama, tmp_path):
    folder, base = llama
    where = (f"base.folder={folder}", *LLAMA)
    here("trace", tmp_path, *where, "unit=mlp_neuron", "estimator=tracin")
    removed = here("run", tmp_path, *where, "intervention.fraction=0.25")
    here("run", tmp_path, *where, "intervention=control")
    kept = artifact(tmp_path, removed, "base") / "checkpoints"
    for step, dtype in ((0, torch.float32), (20, torch.bfloat16), (40, torch.float16)):
        published = load_file(base / f"checkpoints/step_{step}/model.safetensors")
        ours = load_file(kept / f"step_{step}/model.safetensors")
        assert ours.keys() == published.keys()
        for name, value in ours.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, published[name].to(dtype).float()), name
    args = command("compare", tmp_path, f"report.runs=[{tmp_path / 'runs/run'}]")
    finished(warm.run(args, ROOT))


def here(program: str, out: Path, *overrides: str) -> Path:
    """A program with `base=published` in this process; returns the folder of its run."""
    module = import_module(f"mda.programs.{program}")
    folder = out / "runs" / program / str(len(list(out.glob("runs/*/*"))))
    words = ["experiment=smoke", "base=published", STEP_LIST, f"output_dir={out}", *overrides]
    with prepared(program, words, folder, module.NEEDS, 1) as config:
        getattr(module, program)(config, folder)
    return folder


@pytest.fixture
def revisions(trained, tmp_path):
    """A local folder with the GPT-NeoX revisions, to be spoilt."""
    shutil.copytree(trained[0] / "me/tiny", tmp_path / "revisions")
    return tmp_path / "revisions"


def test_a_pickle_and_a_config_of_old_are_read(trained, revisions, tmp_path):
    _, base = trained
    old_style(revisions / "step20")
    _, run = pipeline.train(local(revisions, tmp_path / "out"))
    published = load_file(base / "checkpoints/step_20/model.safetensors")
    ours = load_file(run.checkpoint(20) / "model.safetensors")
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[name], published[name].half().float()) for name in ours)


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_pickle_that_holds_more_than_tensors_is_refused_and_not_executed(revisions, tmp_path):
    trace = tmp_path / "executed"
    (revisions / "step20/model.safetensors").unlink()
    torch.save(
        {"gpt_neox.embed_in.weight": Malicious(trace)}, revisions / "step20/pytorch_model.bin"
    )
    with pytest.raises(ConfigError, match=r"step20: pytorch_model\.bin holds more than tensors"):
        pipeline.train(local(revisions, tmp_path / "out"))
    assert not trace.exists()


@pytest.mark.usefixtures("nowhere")
def test_an_optimizer_state_that_is_given_makes_the_control_arm_the_run_itself(trained, tmp_path):
    """Published weights and the run's own optimizer: the window repeats bit for bit."""
    root, base = trained
    choice = (f"base.state={base / 'checkpoints'}", "intervention=control")
    arm = pipeline.arm(local(root / "me/tiny", tmp_path / "out", *choice)).run.checkpoint(40)
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(arm / name), load_file(base / "checkpoints/step_40" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.usefixtures("nowhere")
def test_an_optimizer_state_that_adamw_cannot_have_left_is_refused(trained, tmp_path):
    root, base = trained
    shutil.copytree(base / "checkpoints", tmp_path / "states")
    path = tmp_path / "states/step_20/optimizer.safetensors"
    choice = (f"base.state={tmp_path / 'states'}", "intervention=control")
    moments = load_file(path)
    name = "gpt_neox.embed_in.weight/exp_avg_sq"
    save_file(moments | {name: -moments[name]}, path)
    says = f"{path}: {name} holds negative values; expected mean squares, 0 or above"
    with pytest.raises(ConfigError, match=re.escape(says)):
        pipeline.arm(local(root / "me/tiny", tmp_path / "out", *choice))
    path.write_bytes(b"torn")
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}: not readable as safetensors"):
        pipeline.arm(local(root / "me/tiny", tmp_path / "out", *choice))


def test_two_steps_with_the_same_weights_are_refused(revisions, tmp_path):
    shutil.copytree(revisions / "step20", revisions / "step30")
    with pytest.raises(ConfigError, match="revisions step20 and step30 have the same weights"):
        pipeline.train(local(revisions, tmp_path / "out", "base.steps=[0,20,30,60]"))


def test_steps_0_and_1_may_have_the_same_weights_and_it_is_said(revisions, tmp_path, capsys):
    shutil.copytree(revisions / "step0", revisions / "step1")
    context = local(revisions, tmp_path / "out", "base.steps=[0,1,60]", "intervention.window=auto")
    _, run = pipeline.train(context)
    assert list(run.checkpoints) == [0, 1, 60]
    said = "revisions step0 and step1 have the same weights: the first update"
    assert said in capsys.readouterr().err


def test_a_window_that_the_stream_does_not_reach_is_refused(revisions, tmp_path):
    with pytest.raises(ConfigError, match="n_sequences=150 is invalid; expected at least 192"):
        local(revisions, tmp_path / "out", "data.n_sequences=150")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("another size", "revision step20 has; or model=published"),
        ("a missing weight", "revision step20: 1 missing weights"),
        ("an unknown weight", "revision step20: 1 unexpected weights"),
        ("another family", "revision step20: its model_type is opt"),
        ("a shard elsewhere", "revision step20: model.safetensors.index.json names ../x"),
        ("no folder", "revision step20: "),
    ],
)
def test_a_revision_of_another_model_is_refused(revisions, tmp_path, spoil, says):
    folder = revisions / "step20"
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    if spoil == "another size":
        config["num_attention_heads"] = 4
    if spoil == "a missing weight":
        del weights["gpt_neox.final_layer_norm.bias"]
    if spoil == "an unknown weight":
        weights["another"] = torch.ones(2)
    if spoil == "another family":
        config["model_type"] = "opt"
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if spoil == "a shard elsewhere":
        index = {"weight_map": dict.fromkeys(weights, "../x")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()
    if spoil == "no folder":
        shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=re.escape(says)):
        pipeline.train(local(revisions, tmp_path))


def local(revisions: Path, out: Path, *overrides: str) -> Context:
    """A quiet context for a local folder of revisions."""
    where = ["experiment=smoke", "base=published", f"base.folder={revisions}", STEP_LIST]
    config = compose([*where, f"output_dir={out}", *overrides])
    return replace(Context.of(config), progress=False)


PUBLISHED = ("base=published", "model=published", "model.peak_lr=1e-3")
SMALL = (
    "data=synthetic", "data.seq_len=32", "data.vocab_size=300", "data.held_out=32",
    "data.n_sequences=2000", "training.batch_size=4", "training.total_steps=60",
    "training.warmup_steps=5", "training.threads=1", "emergence.every=10",
    "emergence.n_sequences=4", "emergence.length=16", "emergence.held_out=16", WINDOW,
)  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("unit.locate=L7H0", "unit.locate=L7H0 is invalid; expected L0H0 to L1H1"),
        ("data.vocab_size=400", "data.vocab_size=400 is invalid; expected at most"),
        ("emergence.length=17", "emergence.length=17 is invalid; expected at most 16"),
    ],
)
def test_sizes_come_from_config_json_and_rules_hold_before_weights_are_read(
    revisions, tmp_path, choice, says
):
    """With model=published no size is known to the settings."""
    (revisions / "step0/model.safetensors").write_bytes(b"never read")
    base = [*PUBLISHED, f"base.folder={revisions}", STEP_LIST]
    config = compose([*base, f"output_dir={tmp_path}", *SMALL, choice])
    with pytest.raises(ConfigError, match=re.escape(says)):
        pipeline.trace(Context.of(config))


def test_a_published_model_needs_no_sizes(revisions, tmp_path):
    base = [*PUBLISHED, f"base.folder={revisions}", STEP_LIST]
    found = pipeline.trace(
        Context.of(compose([*base, f"output_dir={tmp_path}", *SMALL, "unit.probe.length=8"]))
    )
    assert found.base.architecture.n_layers == 2
    path = revisions / "step20/config.json"
    path.write_text(
        path.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 4')
    )
    config = compose([*base, f"output_dir={tmp_path}", *SMALL])
    with pytest.raises(ConfigError, match=r"step20: num_attention_heads of its config\.json is"):
        pipeline.train(Context.of(config))
    with pytest.raises(ConfigError, match="model=published is invalid; expected a model with si"):
        compose(["model=published", "model.peak_lr=1e-3"])
