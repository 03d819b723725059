"""The paper's experiments, each a thousandth of its size: the same files of conf/experiment/paper,
a hub and the Pile on loopback, one step in place of 125 and four sequences in place of 1,024."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import serving
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from servers import serving as serving_ranges

from mda import pipeline
from mda.config import compose
from mda.schema import ConfigError
from mda.stages.context import Context

STEP, BATCH, T, N = 125, 4, 16, 80
TOKENS = np.random.default_rng(0).integers(2, 300, (N, T + 1), dtype=np.uint16)
MODEL = ("n_layers=2", "d_model=16", "n_heads=2", "d_ff=32", "vocab_size=300", f"max_seq_len={T}")
TINY = (
    *(f"model.{size}" for size in MODEL), f"data.seq_len={T}", "data.vocab_size=300",
    "data.held_out=8", f"training.batch_size={BATCH}", "training.threads=1",
    "training.accelerator=cpu", "emergence.every=4", "emergence.length=8",
    "emergence.held_out=8", "emergence.n_sequences=4", "unit.probe.n_sequences=4",
    "capabilities.span=2", "capabilities.snippet=3", "capabilities.prompts=4",
    "capabilities.random_sets=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A hub with the repository `me/tiny`, the Pile in shards, and in parquet; all of it tiny."""
    root = tmp_path_factory.mktemp("paper")
    np.save(root / "rows.npy", TOKENS)
    own = ["data=tokens", f"data.path={root / 'rows.npy'}", "data.shuffle=false", "logger=csv"]
    own += ["training.total_steps=16", "training.warmup_steps=2", "training.checkpoint_every=8"]
    config = compose([f"output_dir={root / 'own'}", *own, *TINY])
    base = pipeline.train(replace(Context.of(config), progress=False))[1]
    for step in (0, 1, 2, 4, 8, 16):
        revision = root / f"hub/me/tiny/step{step}"
        revision.mkdir(parents=True)
        content = json.loads((base.folder / "model_config.json").read_text())
        (revision / "config.json").write_text(json.dumps(content))
        weights = load_file(base.checkpoint(step) / "model.safetensors")
        save_file(weights, revision / "model.safetensors", {"format": "pt"})
    (root / "pile").mkdir()
    content = TOKENS.astype("<u2").tobytes()
    for i in range(3):
        shard = root / f"pile/document-{i:05d}-of-00002.bin"
        shard.write_bytes(content[i * 1000 : (i + 1) * 1000])
    columns = {"token_ids": TOKENS.tolist(), "batch_idx": np.arange(N) // BATCH}
    pq.write_table(pa.table(columns), root / "deduped.parquet")
    with serving(root / "hub") as hub, serving_ranges(root / "pile") as pile:
        yield root, hub, pile


def ask(hub, monkeypatch) -> None:
    """Let this process take the local server for the hub."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)


def window_of(config) -> tuple[int, int]:
    steps = config.intervention.steps
    assert steps is not None
    return steps


def shrunk(size: str, root, pile, out) -> list[str]:
    """The overrides that make a paper's experiment tiny, from its own numbers."""
    paper = compose([f"experiment=paper/{size}"])
    steps = [step // STEP for step in paper.base.steps]
    first, last = window_of(paper)
    start, end = first // STEP, last // STEP
    share = paper.intervention.count / ((last - first) * 1024)
    count = max(1, round(share * (end - start) * BATCH))
    data = [f"data.n_sequences={N}"]
    if paper.data.name == "pile":
        data += [f"data.source={pile.url}", f"data.total_rows={N}", "data.shard_bytes=1000"]
        data += [f"data.rows_per_request={BATCH}"]
    else:
        data += [f"data.dataset={root / 'deduped.parquet'}"]
    window = [f"intervention.window=[{start},{end}]", f"intervention.count={count}"]
    base = [
        "base.other_training=true",
        "base.repo=me/tiny",
        f"base.steps=[{','.join(map(str, steps))}]",
    ]
    return [f"experiment=paper/{size}", f"output_dir={out}", *base, *data, *window, *TINY]


@pytest.mark.parametrize(
    "size",  # one of each source, parquet and the Pile; the others differ in numbers
    ["14m", *(pytest.param(size, marks=pytest.mark.long) for size in ("31m", "70m")), "160m"],
)
def test_a_miniature_of_the_paper_s_experiment_runs(published, tmp_path, monkeypatch, size):
    root, hub, pile = published
    ask(hub, monkeypatch)
    config = compose(shrunk(size, root, pile, tmp_path))
    start, end = window_of(config)
    done = pipeline.arm(replace(Context.of(config), progress=False))
    assert list(done.base.checkpoints) == config.base.steps == [0, 1, 2, 4, 8, 16]
    assert done.traced is not None and done.traced.scores.units == ("L0H0", "L0H1", "L1H0", "L1H1")
    window = done.traced.scores.sample_ids
    assert window.tolist() == list(range(BATCH * start, BATCH * end)), "rows in Pythia's order"
    assert done.corpus.rows(window).tolist() == TOKENS[window].tolist()
    scores = done.traced.scores.of(done.unit.name)
    removed = done.edited.changes.sample_ids
    assert len(removed) == config.intervention.count
    highest = np.argsort(-scores, kind="stable")[: len(removed)]
    assert set(removed) == set(window[highest])
    published_curve = {row["step"]: row for row in done.base.curve}
    assert done.run.curve[0] == published_curve[start], "it starts from the published weights"
    assert int(done.run.curve[-1]["step"]) == end


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (72, None),  # 64 rows to step 16, and 8 that are held out
        (71, "checkpoints from step 16 on were trained on rows that data.n_sequences=71 holds out: "
         "their held-out loss is that of training text; data.n_sequences=72 holds out later ones"),
        (40, "checkpoints from step 16 on were trained on rows that data.n_sequences=40 holds out: "
         "their held-out loss is that of training text; data.n_sequences=72 holds out later ones"),
    ],
)  # fmt: skip
def test_held_out_rows_that_a_checkpoint_was_trained_on_are_warned_of(
    published, tmp_path, monkeypatch, rows, says
):
    root, hub, pile = published
    ask(hub, monkeypatch)
    config = compose([*shrunk("160m", root, pile, tmp_path), f"data.n_sequences={rows}"])
    context = Context.of(config)
    corpus, _ = pipeline.train(replace(context, progress=False))
    assert context.store.warnings.get(corpus.fingerprint) == says
    assert set(context.store.warnings.values()) == ({says} if says else set())


@pytest.mark.parametrize(
    ("size", "window", "share"),
    [("14m", [1000, 2000], 0.098), ("31m", [0, 1200], 0.098), ("70m", [0, 1000], 0.098),
     ("160m", [0, 800], 0.098)],
)  # fmt: skip
def test_windows_counts_and_units_are_the_paper_s(size, window, share):
    config = compose([f"experiment=paper/{size}"])
    assert config.intervention.window == window
    assert 80_000 <= config.intervention.count <= 120_000
    samples = (window[1] - window[0]) * config.training.batch_size
    assert config.intervention.count / samples == pytest.approx(share, abs=0.001)
    assert (config.training.batch_size, config.data.seq_len) == (1024, 2048)
    assert config.unit.blocks == ["qk", "v", "o"] and config.unit.probe.length == 64
    assert config.model.name == f"pythia-{size}" and config.base.repo.endswith(f"pythia-{size}")
    assert config.data.shuffle is False
    assert config.emergence.n_sequences == 100
    other = compose([f"experiment=paper/{size}", "unit=previous_token_head"])
    assert other.unit.blocks == ["qk"] and other.unit.probe.target == "previous_token"


@pytest.mark.parametrize("size", ["14m", "31m", "70m", "160m"])
@pytest.mark.parametrize(
    ("edit", "unit"),
    [("control", "induction_head"), ("remove", "sae_feature"), ("augment", "mlp_neuron"),
     ("control", "module")],
)  # fmt: skip
def test_every_edit_of_every_unit_can_be_chosen_with_the_paper_s_presets(size, edit, unit):
    words = [f"experiment=paper/{size}", f"intervention={edit}", f"unit={unit}"]
    config = compose(words, needs=("base", "training", "intervention"))
    assert (config.intervention.name, config.unit.name) == (edit, unit)
    assert config.intervention.steps is not None, "the paper's window"


@pytest.mark.parametrize(
    "edit",
    ["intervention=control",
     "intervention=augment intervention.mode=insert intervention.rows=mine.npy"],
)  # fmt: skip
def test_the_presets_amount_is_not_asked_of_an_edit_that_chooses_no_samples(edit):
    short = ["experiment=paper/160m", "intervention.window=[0,50]"]
    assert compose([*short, *edit.split()]).intervention.count == 80_000
    with pytest.raises(ConfigError, match="count=80000 is invalid; expected at most the window's"):
        compose(short)
