"""The embedded corpus: the same bytes everywhere, pure labels, nothing lost, causes named."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mda import store
from mda.data import embedded, packing
from mda.data.documents import REAL_LABELS
from mda.data.embedded import build_embedded, check, describe, recorded_sha256, shares
from mda.data.errors import DataError
from mda.data.stream import open_corpus
from mda.schema import EmbeddedConfig
from mda.types import Document

SETTINGS = {
    "packages": ("jinja2",),
    "shares": {"code": 0.5, "prose": 0.1, "html": 0.1, "generated_xml": 0.3},
    "vocab_size": 320,
    "seq_len": 32,
    "n_sequences": 200,
    "held_out": 20,
    "seed": 0,
    "workers": 1,
    "expected_sha256": None,
}
SOURCES = {
    "packages": {
        "rich": {"version": "1.0", "sha256": "aa"},
        "sympy": {"version": "2.0", "sha256": "bb"},
    },
    "tools": {"docutils": "0.23", "tokenizers": "0.23.3", "python": "3.11.7"},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    build_embedded(out, **SETTINGS)
    return out


@pytest.fixture
def corpus(folder):
    return open_corpus(folder, "fp")


def test_the_number_of_workers_does_not_show(tmp_path, folder):
    build_embedded(tmp_path, **SETTINGS | {"workers": 2})
    assert contents(tmp_path) == contents(folder)


def test_another_seed_gives_other_rows(tmp_path, folder):
    build_embedded(tmp_path, **SETTINGS | {"seed": 1})
    assert (tmp_path / "tokens.npy").read_bytes() != (folder / "tokens.npy").read_bytes()


def test_the_folder_holds_what_is_asked_for(corpus, folder):
    assert corpus.tokens.shape == (200, 33) and corpus.tokens.dtype == np.uint16
    assert corpus.special_ids == (0, 1) and corpus.vocab_size == 320
    assert corpus.counts.tolist() == np.bincount(corpus.tokens.ravel(), minlength=320).tolist()
    assert corpus.label_names == ("code", "generated_xml", "html", "prose")
    assert np.bincount(corpus.labels).tolist() == [100, 60, 20, 20]
    assert np.bincount(corpus.labels[corpus.held_out]).tolist() == [10, 6, 2, 2]
    about = store.read_json(folder / "corpus.json")
    assert about["sources"]["packages"]["jinja2"]["documents"] > 50


def test_classes_are_mixed_along_the_corpus_order(corpus):
    for quarter in np.split(np.asarray(corpus.labels), 4):
        assert set(quarter) == {0, 1, 2, 3}


def test_a_row_is_text_of_its_class(corpus):
    """Decoded rows, cut at document borders, are found in documents of their label."""
    documents = embedded.harvest(SETTINGS["packages"], 1)
    known = {
        label: "\0".join(d.text for d in documents if d.label == label) for label in REAL_LABELS
    }
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer))
    seen = 0
    for row, label in zip(corpus.tokens, corpus.labels_of(np.arange(200)), strict=True):
        for piece in tokenizer.decode(row.tolist(), skip_special_tokens=False).split(
            "<|endoftext|>"
        ):
            text = piece.strip("\ufffd")
            if label in REAL_LABELS:
                assert text in known[label], (label, text)
                seen += 1
    assert seen >= 140


def tiny_tokenizer(texts):
    return packing.train_tokenizer(texts, 258)


def test_packing_loses_nothing_but_the_tail():
    texts = [f"text {i}: " + "ab cd " * i for i in range(30)]
    tokenizer = tiny_tokenizer(texts)
    rows = packing.pack(texts, tokenizer, 9, 10_000)
    whole = [t for text in texts for t in [0, *tokenizer.encode(text).ids]]
    assert rows.ravel().tolist() == whole[: len(rows) * 10]
    assert 0 <= len(whole) - rows.size < 10
    assert np.array_equal(packing.pack(texts, tokenizer, 9, 5), rows[:5])


def test_packing_reads_no_more_than_it_needs():
    tokenizer = tiny_tokenizer(["abc"])
    assert packing.pack(iter(lambda: "x" * 50, None), tokenizer, 9, 100).shape == (100, 10)


def test_held_out_rows_come_after_the_trained_ones_of_their_class():
    texts = {"a": [chr(97 + i % 26) * 9 for i in range(40)], "b": ["0123456789" * 20]}
    tokenizer = tiny_tokenizer(texts["a"])
    tokens, labels, held = packing.assemble(
        {label: partial(iter, run) for label, run in texts.items()},
        {"a": 2, "b": 1},
        tokenizer,
        seq_len=9,
        n_sequences=30,
        held_out=6,
        seed=0,
    )
    packed = packing.pack(texts["a"], tokenizer, 9, 20)
    assert {r.tobytes() for r in tokens[held][labels[held] == 0]} == {
        r.tobytes() for r in packed[-4:]
    }


def test_progress_reaches_the_total():
    told = []
    packing.pack(["abc " * 5] * 400, tiny_tokenizer(["abc"]), 9, 700, told.append)
    assert sum(told) == 700


@pytest.mark.parametrize(
    ("total", "given", "parts"),
    [
        (10, {"b": 1, "a": 1, "c": 1}, {"a": 4, "b": 3, "c": 3}),
        (7, {"a": 0.5, "b": 0.5}, {"a": 4, "b": 3}),
        (0, {"a": 1.0}, {"a": 0}),
    ],
)
def test_apportioning_is_exact(total, given, parts):
    assert packing.apportion(total, given) == parts


def test_default_settings_are_at_least_two_thirds_real():
    config = EmbeddedConfig(name="embedded")
    mix = shares(config.generated_share)
    assert sum(mix.values()) == pytest.approx(1)
    assert set(REAL_LABELS) <= set(mix)
    assert sum(mix[label] for label in REAL_LABELS) >= 2 / 3
    assert all(label.startswith("generated_") for label in set(mix) - set(REAL_LABELS))
    assert set(shares(0.0)) == set(REAL_LABELS)


def test_default_settings_have_a_recorded_hash(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(embedded, "build_embedded", lambda out, **kw: seen.append(kw))
    config = EmbeddedConfig(name="embedded")
    for other in (config, replace(config, seed=1), replace(config, generated_share=0.5)):
        embedded.build_from_config(tmp_path, other, tmp_path)
    hashes = [kw["expected_sha256"] for kw in seen]
    assert hashes[0] == store.read_json(embedded.RECORD)["sha256"]
    assert hashes[1:] == [None, None]
    settings = {k: v for k, v in seen[0].items() if k not in ("workers", "expected_sha256")}
    assert recorded_sha256(settings) == hashes[0]
    recorded = store.read_json(embedded.RECORD)["sources"]["packages"]
    assert {name: about["version"] for name, about in recorded.items()} == {
        name: embedded.package_version(name) for name in embedded.PACKAGES
    }


def changed(package: str, **values: str) -> dict:
    packages = SOURCES["packages"]
    return SOURCES | {"packages": packages | {package: packages[package] | values}}


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (changed("rich", version="1.1", sha256="xx"), "rich is 1.1, recorded with 1.0[.]"),
        (changed("sympy", sha256="xx"), "the text of sympy 2.0 is not the recorded text[.]"),
        (
            SOURCES | {"tools": SOURCES["tools"] | {"tokenizers": "0.24.0"}},
            "tokenizers is 0.24.0, recorded with 0.23.3[.]",
        ),
        (SOURCES, "every package has its recorded text"),
    ],
)
def test_a_mismatch_names_its_cause(found, cause):
    with pytest.raises(DataError, match=cause):
        check("1" * 64, "2" * 64, found, SOURCES)


def test_equal_hashes_need_no_cause():
    check("1" * 64, "1" * 64, changed("rich", version="1.1"), SOURCES)
    check("1" * 64, None, SOURCES, SOURCES)


def test_a_wrong_result_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="SHA-256"):
        build_embedded(tmp_path, **SETTINGS | {"expected_sha256": "0" * 64})
    assert not list(tmp_path.iterdir())


def test_the_text_hash_belongs_to_its_package():
    documents = [Document("code", "a", "rich"), Document("prose", "b", "jinja2")]
    first = describe(("jinja2", "rich"), documents)["packages"]
    other = describe(("jinja2", "rich"), [documents[0], Document("prose", "c", "jinja2")])[
        "packages"
    ]
    assert first["rich"] == other["rich"]
    assert first["jinja2"]["sha256"] != other["jinja2"]["sha256"]
    relabelled = describe(("jinja2", "rich"), [Document("html", "a", "rich"), documents[1]])
    assert relabelled["packages"]["rich"]["sha256"] != first["rich"]["sha256"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": {"code": 1, "generated_poem": 1}}, r"generated_poem; the classes are code"),
        ({"shares": {"code": 1, "xml": -1}}, "shares >= 0"),
        ({"n_sequences": 20}, "held_out 20: expected 0 to below n_sequences=20"),
        ({"vocab_size": 259}, "class 'code': there is text for [0-9]+ .*lower n_sequences"),
        ({"vocab_size": 257}, "vocab_size 257.*258"),
        ({"vocab_size": 10**6, "shares": {"generated_repeat": 1}}, "pairs for [0-9]+ tokens"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(tmp_path, monkeypatch, settings, message):
    few = [Document("code", "some text of code\n" * 9, "jinja2")] * 3
    monkeypatch.setattr(embedded, "harvest", lambda packages, workers: few)
    monkeypatch.setattr(packing, "TRAINING_CHARS", 20_000)
    with pytest.raises(DataError, match=message):
        build_embedded(tmp_path, **SETTINGS | {"shares": {"code": 1}} | settings)
    assert not list(tmp_path.iterdir())


def test_a_worker_of_joblib_can_harvest_too():
    """Sweeps side by side build the corpus in such a worker."""
    joblib = pytest.importorskip("joblib")
    job = (embedded.harvest, (["mpmath"],), {"workers": 2})
    (found,) = joblib.Parallel(n_jobs=2, backend="loky")([job])
    assert found == embedded.harvest(["mpmath"], workers=2)
