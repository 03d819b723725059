"""The corpus stage: any source, found again by content, refused when what it names is not there."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
from servers import serving

from mda import pipeline
from mda.config import compose
from mda.data.errors import DataError
from mda.data.stream import stream_order
from mda.schema import ConfigError
from mda.stages.context import Context
from mda.stages.corpus import fetch
from mda.store import Store

from .conftest import sentence

ROOT = Path(__file__).parents[2]
SMALL = ["training.total_steps=4", "training.warmup_steps=1", "training.batch_size=4"]
SMALL += ["emergence.every=2", "emergence.length=8", "emergence.held_out=4", "model.max_seq_len=32"]
NEEDS = ("data", "model", "training", "emergence")


def context(folder, *overrides):
    return Context(compose([*SMALL, *overrides], NEEDS), Store(folder / "store"), progress=False)


def tokens(folder, *overrides):
    path = folder / "rows.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).integers(1, 300, (40, 17), dtype=np.uint16))
    fixed = ("data=tokens", f"data.path={path}", "data.seq_len=16", "data.vocab_size=300")
    return context(folder, *fixed, "data.held_out=4", *overrides)


@pytest.fixture
def named(tmp_path, tokenizer_json):
    """`data.labels` and `data.tokenizer` of 40 rows."""
    np.save(tmp_path / "labels.npy", np.arange(40) % 3)
    return {"labels": tmp_path / "labels.npy", "tokenizer": tokenizer_json}


@pytest.mark.parametrize("typo", ["labels", "tokenizer"])
@pytest.mark.parametrize("there", ["the same corpus", "the corpus without it"])
def test_a_typo_is_refused_also_when_the_corpus_is_in_the_store(tmp_path, named, typo, there):
    given = [f"data.{key}={value}" for key, value in named.items()]
    without = [item for item in given if not item.startswith(f"data.{typo}")]
    first = pipeline.corpus_of(
        tokens(tmp_path, *(given if there == "the same corpus" else without))
    )
    assert len(first.tokens) == 40
    wrong = named[typo].with_name(f"x{named[typo].name}")
    with pytest.raises(DataError, match=rf"^data\.{typo}={wrong}: no such file"):
        pipeline.corpus_of(tokens(tmp_path, *without, f"data.{typo}={wrong}"))


def test_a_malformed_tokenizer_is_refused_before_anything_is_built(tmp_path, named):
    named["tokenizer"].write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {')
    with pytest.raises(DataError, match=r"^data\.tokenizer=.*cannot be read"):
        pipeline.corpus_of(tokens(tmp_path, f"data.tokenizer={named['tokenizer']}"))
    assert not (tmp_path / "store" / "corpus").exists()


def test_a_corpus_is_found_by_what_its_files_hold(tmp_path, named):
    first = pipeline.corpus_of(tokens(tmp_path))
    moved = tmp_path / "elsewhere.npy"
    moved.write_bytes((tmp_path / "rows.npy").read_bytes())
    assert (
        pipeline.corpus_of(tokens(tmp_path, f"data.path={moved}")).fingerprint == first.fingerprint
    )
    for change in ("shuffle=true", "order_seed=null"):
        assert (
            pipeline.corpus_of(tokens(tmp_path, f"data.{change}")).fingerprint == first.fingerprint
        )
    for key, path in named.items():
        assert (
            pipeline.corpus_of(tokens(tmp_path, f"data.{key}={path}")).fingerprint
            != first.fingerprint
        )
    np.save(moved, np.load(moved)[::-1])
    assert (
        pipeline.corpus_of(tokens(tmp_path, f"data.path={moved}")).fingerprint != first.fingerprint
    )


def test_raw_bytes_of_another_type_are_another_corpus(tmp_path):
    rows = np.random.default_rng(0).integers(1, 300, (40, 17), dtype=np.uint16)
    rows.tofile(tmp_path / "rows.bin")
    given = ("data=tokens", f"data.path={tmp_path / 'rows.bin'}", "data.seq_len=16")
    given += ("data.vocab_size=300", "data.held_out=4")
    first = pipeline.corpus_of(context(tmp_path, *given))
    assert (
        pipeline.corpus_of(context(tmp_path, *given, "data.dtype=uint16")).fingerprint
        == first.fingerprint
    )
    with pytest.raises(DataError, match=r"^data\.path=.*: token id \d+ in row \d+"):
        pipeline.corpus_of(context(tmp_path, *given, "data.dtype=uint32"))


def test_one_order_meets_many_initialisations(tmp_path):
    shuffled = ("data.shuffle=true", "data.order_seed=5")
    contexts = [tokens(tmp_path, *shuffled, f"seed={seed}") for seed in (0, 1)]
    rows = pipeline.corpus_of(contexts[0])
    orders = [pipeline.order_of(c).samples for c in contexts]
    assert np.array_equal(*orders)
    assert np.array_equal(orders[0], stream_order(rows, 5))
    streams = [pipeline.order_of(c).stream(0, 4).sample_ids for c in contexts]
    assert np.array_equal(*streams)
    other = tokens(tmp_path, "data.shuffle=true", "data.order_seed=6")
    assert not np.array_equal(pipeline.order_of(other).samples, orders[0])


def test_without_an_order_seed_the_run_s_seed_orders_the_stream(tmp_path):
    contexts = [tokens(tmp_path, "data.shuffle=true", f"seed={seed}") for seed in (0, 1)]
    rows = pipeline.corpus_of(contexts[0])
    first, second = (pipeline.order_of(c).samples for c in contexts)
    assert np.array_equal(first, stream_order(rows, 0))
    assert np.array_equal(second, stream_order(rows, 1))
    assert np.array_equal(pipeline.order_of(tokens(tmp_path)).samples, np.arange(36))


def test_an_edit_replaces_by_what_follows_in_the_same_order(tmp_path):
    shuffled = tokens(tmp_path, "data.shuffle=true", "data.order_seed=5", "seed=1")
    rows = pipeline.corpus_of(shuffled)
    assert np.array_equal(pipeline.order_of(shuffled).following(3), stream_order(rows, 5)[12:])


def test_an_order_seed_that_nothing_reads_is_refused():
    with pytest.raises(ConfigError, match=r"data\.order_seed=3 is invalid; expected null with"):
        compose(["data.order_seed=3", "data.shuffle=false"], NEEDS)


def test_too_few_rows_are_one_sentence_and_exit_2_before_any_training(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((40, 17), dtype=np.uint16))
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), *SMALL, "data=tokens",
               "data.path=rows.npy", "data.seq_len=16", "data.vocab_size=300", "data.held_out=4",
               "training.total_steps=10", "logger=csv", "model.d_model=16", "model.n_heads=2",
               "model.d_ff=32"]  # fmt: skip
    done = warm.run(command, tmp_path)
    assert "error: training to step 10 needs 40 sequences" in done.stderr
    assert "training.batch_size=4 at a step; data has 36 that are not held out" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert not list(tmp_path.rglob("train.csv"))


def test_local_texts_become_a_corpus_streamed_or_not(tmp_path, tokenizer_json, monkeypatch, words):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = (json.dumps({"text": sentence(n, 30)}) + "\n" for n in range(40))
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    given = ("data=hf", f"data.dataset={tmp_path / 'texts.jsonl'}", "data.seq_len=16")
    given += (f"data.tokenizer={tokenizer_json}", "data.vocab_size=300", "data.held_out=4")
    first = pipeline.corpus_of(context(tmp_path, *given))
    again = pipeline.corpus_of(context(tmp_path, *given, "data.streaming=true"))
    assert again.fingerprint == first.fingerprint
    ids = first.rows(np.arange(len(first.tokens))).numpy()
    assert words.decode(ids[0].tolist()) == sentence(0, 30)[: len(words.decode(ids[0].tolist()))]
    (artifact,) = Store(tmp_path / "store").artifacts()
    assert "tokens.arrow" in artifact.manifest["files"]


def test_a_class_that_is_not_held_out_is_told(tmp_path, capsys):
    """The last rows are held out: of rows in the order of their classes, of the last class."""
    rows = np.random.default_rng(0).integers(1, 300, (60, 17), dtype=np.uint16)
    np.save(tmp_path / "rows.npy", rows)
    given = ("data=tokens", f"data.path={tmp_path / 'rows.npy'}", "data.seq_len=16",
             "data.vocab_size=300", "data.held_out=6",
             f"data.labels={tmp_path / 'labels.npy'}")  # fmt: skip
    in_order, mixed = np.repeat([0, 1, 2], [28, 2, 30]), np.tile([0, 2], 30)
    for name, labels, said in (("code", in_order, "is of code, so held"), ("mixed", mixed, ""),
                               ("unlabelled", in_order, "")):  # fmt: skip
        np.save(tmp_path / "labels.npy", labels)
        names = f"data.label_names=[{'unlabelled' if name == 'unlabelled' else 'code'},rare,prose]"
        corpus = pipeline.corpus_of(made := context(tmp_path / name, *given, names))
        warned = made.store.warnings.get(corpus.fingerprint, "")
        assert said in warned and bool(said) == bool(warned)


def test_a_tiny_pile_is_fetched_ahead_and_the_store_leaves_the_rows_alone(tmp_path):
    rows = np.random.default_rng(0).integers(1, 300, (60, 17), dtype=np.uint16)
    folder = tmp_path / "shards"
    folder.mkdir()
    for i, part in enumerate((slice(0, 900), slice(900, 1800), slice(1800, None))):
        (folder / f"{i}.bin").write_bytes(rows.tobytes()[part])
    given = ("data=pile", "data.seq_len=16", "data.vocab_size=300", "data.shard_bytes=900")
    given += ("data.files='{shard}.bin'", "data.total_rows=60", "data.n_sequences=40")
    given += ("data.held_out=4", "data.rows_per_request=4")
    with serving(folder) as server:
        remote = context(tmp_path, *given, f"data.source={server.url}")
        found = pipeline.corpus_of(remote)
        stream = pipeline.order_of(remote).stream(0, remote.config.training.last_step)
        fetch(remote.at, found, stream.sample_ids)
        assert server.sent == (4 + 16) * 34
    assert found.rows(stream.sample_ids).tolist() == rows[:16].tolist(), "the server is gone"
    local = pipeline.corpus_of(context(tmp_path, *given, f"data.source={folder}"))
    assert local.fingerprint == found.fingerprint, "a mirror of the same shards"
    assert Store(tmp_path / "store").unreadable() == []
