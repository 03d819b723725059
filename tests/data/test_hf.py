"""`data=hf`: local parquet, JSON lines and text, streamed or not, become the rows that they are."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from servers import serving
from transformers import PreTrainedTokenizerFast

from mda.data import hf
from mda.data.arrow import ArrowRows, ArrowWriter
from mda.data.errors import DataError
from mda.data.stream import open_corpus
from mda.data.tokenizer import read_tokenizer
from mda.schema import ConfigError, HfConfig
from mda.store import hash_file

from .conftest import sentence

WIDTH = 17
TEXTS = [sentence(n, 5 + 11 * (n % 7)) for n in range(60)]
KINDS = [("prose", "code", "a, b")[n % 3] for n in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)


def settings(dataset, tokenizer, **other):
    given = {"seq_len": WIDTH - 1, "vocab_size": 300, "held_out": 4, "shuffle": False}
    named = str(tokenizer) if tokenizer else None
    return HfConfig(dataset=str(dataset), tokenizer=named, **(given | other))


def build(folder, config):
    hf.build_from_config(folder / "corpus", config, folder)
    return open_corpus(folder / "corpus", "fp", hf.open_rows(folder / "corpus", config, folder))


def test_what_stands_between_documents_is_part_of_the_key(words, tmp_path):
    """One tokenizer's content, as a file and as a folder that names another end of text."""
    folder, other = tmp_path / "named", words.id_to_token(299)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=other).save_pretrained(folder)
    (tmp_path / "a.txt").write_text("the text")
    ends, keys = [], []
    for tokenizer in (folder, folder / "tokenizer.json"):
        config = settings(tmp_path / "a.txt", tokenizer)
        keys.append(hf.inputs(config, hash_file))
        ends.append(read_tokenizer(str(tokenizer)).end_of_text)
    assert ends[0] != ends[1] and keys[0] != keys[1]
    assert keys[0] | {"end_of_text": None} == keys[1] | {"end_of_text": None}, "the same content"
    given = settings(tmp_path / "a.txt", folder, end_of_text=3)
    assert "end_of_text" not in hf.inputs(given, hash_file), "it is one of the settings"


def end_to_end(words, texts=TEXTS, end=0):
    """What packing across documents must give, the plain way."""
    flat = [token for text in texts for token in [*words.encode(text).ids, end]]
    n = len(flat) // WIDTH
    return np.array(flat[: n * WIDTH]).reshape(n, WIDTH)


def write(folder, kind):
    if kind == "parquet":
        table = pa.table({"text": TEXTS, "kind": KINDS, "n": list(range(60))})
        for part in range(2):  # two files: their order is that of their names
            pq.write_table(table.slice(30 * part, 30), folder / f"part-{part}.parquet")
        return folder / "part-*.parquet"
    if kind == "jsonl":
        rows = (
            {"text": t, "kind": k, "n": n}
            for n, (t, k) in enumerate(zip(TEXTS, KINDS, strict=True))
        )
        (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "texts.jsonl"
    (folder / "texts").mkdir()
    for n, text in enumerate(TEXTS):
        (folder / "texts" / f"{n:03d}.txt").write_text(text)
    return folder / "texts"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_documents_are_laid_end_to_end_with_their_boundaries(
    tmp_path, words, tokenizer_json, kind, streaming
):
    config = settings(write(tmp_path, kind), tokenizer_json, streaming=streaming)
    corpus = build(tmp_path, config)
    expected = end_to_end(words)
    assert corpus.rows(np.arange(len(corpus.tokens))).tolist() == expected.tolist()
    assert corpus.counts.tolist() == np.bincount(expected.ravel(), minlength=300).tolist()
    assert corpus.held_out.tolist() == list(range(len(expected) - 4, len(expected)))
    assert corpus.special_ids == (0,)
    assert "".join(corpus.decode(expected[3])) == words.decode(
        expected[3].tolist(), skip_special_tokens=False
    )


@pytest.mark.parametrize("packing", ["across", "within"])
def test_every_row_begins_as_the_model_was_trained(tmp_path, words, tokenizer_json, packing):
    """Rows are those of one token less, behind the first token, which no probe draws."""
    path = write(tmp_path, "jsonl")
    config = settings(path, tokenizer_json, packing=packing, begin_of_text=7)
    corpus = build(tmp_path, config)
    plain = settings(path, tokenizer_json, packing=packing, seq_len=WIDTH - 2)
    (tmp_path / "plain").mkdir()
    expected = build(tmp_path / "plain", plain)
    ids = np.arange(len(corpus.tokens))
    rows = corpus.rows(ids)
    assert rows.shape[1] == WIDTH and (rows[:, 0] == 7).all()
    assert rows[:, 1:].tolist() == expected.rows(np.arange(len(expected.tokens))).tolist()
    assert corpus.special_ids == (0, 7)


def test_rows_within_documents_never_cross_a_boundary(tmp_path, words, tokenizer_json):
    config = settings(write(tmp_path, "jsonl"), tokenizer_json, packing="within")
    corpus = build(tmp_path, config)
    expected = []
    for text in TEXTS:
        ids = [*words.encode(text).ids, 0]
        expected += [ids[i : i + WIDTH] for i in range(0, len(ids) - WIDTH + 1, WIDTH)]
    assert corpus.rows(np.arange(len(corpus.tokens))).tolist() == expected
    assert not np.isin(np.array(expected)[:, :-1], 0).any()


def test_a_row_has_the_label_of_most_of_its_tokens(tmp_path, words, tokenizer_json):
    config = settings(write(tmp_path, "jsonl"), tokenizer_json, label="kind")
    corpus = build(tmp_path, config)
    flat = [k for t, k in zip(TEXTS, KINDS, strict=True) for _ in range(len(words.encode(t)) + 1)]
    found = corpus.labels_of(np.arange(len(corpus.tokens)))
    assert corpus.label_names == ("a, b", "code", "prose")
    for i, label in enumerate(found):
        of_row = flat[i * WIDTH : (i + 1) * WIDTH]
        assert of_row.count(label) == max(map(of_row.count, set(of_row)))
    assert set(found) == set(KINDS)


def preshuffled(folder, order=None, length=WIDTH):
    """The form of the deduplicated Pile in Pythia's order."""
    rows = np.random.default_rng(0).integers(1, 300, (48, length))
    batches = np.arange(48) // 8 if order is None else np.asarray(order)
    ids = pa.array(list(rows.astype(np.uint16)), pa.list_(pa.uint16()))
    table = pa.table({"uid": np.arange(48), "batch_idx": batches, "token_ids": ids})
    pq.write_table(table, folder / "train-00000.parquet", row_group_size=10)
    return folder / "train-00000.parquet", rows


ROWS = {"tokens": "token_ids", "packing": "rows", "ordered_by": "batch_idx", "special_ids": [0]}


@pytest.mark.parametrize("streaming", [False, True])
def test_finished_rows_are_taken_as_they_are(tmp_path, streaming):
    path, rows = preshuffled(tmp_path)
    corpus = build(tmp_path, settings(path, None, streaming=streaming, n_sequences=40, **ROWS))
    assert corpus.rows(np.arange(40)).tolist() == rows[:40].tolist()
    assert len(corpus.tokens) == 40
    assert corpus.tokens.dtype == np.uint16
    assert corpus.held_out.tolist() == [36, 37, 38, 39]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for open files in /proc")
@pytest.mark.parametrize("name", ["parquet", "jsonl"])
def test_a_stream_that_is_stopped_early_leaves_no_file_open_and_no_reader(tmp_path, name):
    """With the readers' threads alive the process may never end."""
    path = tmp_path / f"rows.{name}"
    rows = [[int(id) for id in row] for row in np.full((5000, WIDTH), 7)]
    if name == "parquet":
        pq.write_table(pa.table({"token_ids": rows}), path, row_group_size=500)
    else:
        path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    config = settings(path, None, streaming=True, n_sequences=40, tokens="token_ids",
                      packing="rows")  # fmt: skip
    opened = hf.open_data(config)
    found = hf.documents(config, opened, {})
    for _ in zip(range(40), found, strict=False):
        pass
    assert _open(path)
    hf.stop(found)
    assert not _open(path)
    assert len(build(tmp_path, config).tokens) == 40
    assert not _open(path)


def _open(path) -> bool:
    links = Path("/proc/self/fd").iterdir()
    return any(link.exists() and link.resolve() == path.resolve() for link in links)


def test_rows_out_of_order_or_of_another_length_are_refused(tmp_path):
    order = np.arange(48) // 8
    order[30] = 1
    path, _ = preshuffled(tmp_path, order)
    with pytest.raises(DataError, match="ordered_by=batch_idx: 1 after 3, at document 30"):
        build(tmp_path, settings(path, None, **ROWS))
    path, _ = preshuffled(tmp_path, length=WIDTH + 1)
    with pytest.raises(DataError, match=rf"document 0 has {WIDTH + 1} tokens; expected .*{WIDTH}"):
        build(tmp_path, settings(path, None, **ROWS))


def test_token_lists_are_packed_with_the_given_end(tmp_path):
    lists = [[5, 6, 7], list(range(10, 60)), [], [8] * 30]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in lists))
    config = settings(tmp_path / "ids.jsonl", None, tokens="ids", end_of_text=299, held_out=1)
    corpus = build(tmp_path, config)
    flat = [token for ids in lists if ids for token in [*ids, 299]]
    assert corpus.rows(np.arange(5)).ravel().tolist() == flat[: 5 * WIDTH]


def test_the_corpus_is_one_mapped_arrow_file_that_datasets_opens_too(
    tmp_path, words, tokenizer_json
):
    build(tmp_path, settings(write(tmp_path, "jsonl"), tokenizer_json))
    path = tmp_path / "corpus" / "tokens.arrow"
    expected = end_to_end(words)
    opened = Dataset.from_file(str(path))
    assert opened["tokens"][:] == expected.tolist()
    rows = ArrowRows(path)
    for batch in rows._batches:
        assert not batch.flags.owndata and not batch.flags.writeable, "a view of the file"
    copy = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 500, "a copy for another process maps the file again"
    assert np.array_equal(copy[np.array([4, 1])], expected[[4, 1]])


def test_rows_of_many_batches_are_found_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr("mda.data.arrow.BATCH_TOKENS", 30)
    expected = np.random.default_rng(3).integers(0, 70_000, (50, 7))
    with ArrowWriter(tmp_path / "rows.arrow", 7, 70_000) as writer:
        for part in np.split(expected, [1, 2, 9, 30]):
            writer.write(part)
    rows = ArrowRows(tmp_path / "rows.arrow")
    order = np.random.default_rng(4).permutation(50)
    assert len(rows._batches) == 3
    assert rows.dtype == np.uint32
    assert np.array_equal(rows[order], expected[order])
    assert rows[order[:0]].shape == (0, 7)
    with pytest.raises(IndexError, match="of 50"):
        rows[np.array([50])]


def test_packing_does_not_depend_on_the_chunks_in_which_it_is_done(
    tmp_path, words, tokenizer_json, monkeypatch
):
    monkeypatch.setattr("mda.data.packers.CHUNK_TOKENS", 40)
    monkeypatch.setattr(hf, "BATCH", 7)
    corpus = build(tmp_path, settings(write(tmp_path, "jsonl"), tokenizer_json))
    expected = end_to_end(words)
    assert corpus.rows(np.arange(len(expected))).tolist() == expected.tolist()
    assert len(corpus.tokens) == len(expected)


def test_long_documents_are_tokenized_few_at_a_time_and_too_long_ones_refused(
    tmp_path, words, tokenizer_json, monkeypatch
):
    path = write(tmp_path, "jsonl")
    longest = max(len(json.loads(line)["text"]) for line in path.read_text().splitlines())
    monkeypatch.setattr(hf, "CHARACTERS", 2 * longest)
    monkeypatch.setattr(hf, "LONGEST", longest)
    given = []
    together = hf._together
    monkeypatch.setattr(hf, "_together", lambda *a: given.extend(found := [*together(*a)]) or found)
    corpus = build(tmp_path, settings(path, tokenizer_json))
    expected = end_to_end(words)
    assert corpus.rows(np.arange(len(expected))).tolist() == expected.tolist()
    assert len(given) > 2 and all(sum(map(len, texts)) <= 2 * longest for texts in given)
    monkeypatch.setattr(hf, "LONGEST", longest - 1)
    said = rf"document \d+ has {longest} characters and is tokenized whole; expected at most"
    with pytest.raises(DataError, match=said):
        build(tmp_path, settings(path, tokenizer_json))


def inputs(dataset, tokenizer, **other):
    return hf.inputs(settings(dataset, tokenizer, **other), hash_file)


def test_what_enters_is_the_content_of_files_and_tokenizer_not_their_place(
    tmp_path, tokenizer_json, words
):
    path = write(tmp_path, "jsonl")
    first = inputs(path, tokenizer_json)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(path.read_bytes())
    assert inputs(moved, tokenizer_json.parent) == first
    moved.write_text(moved.read_text() + json.dumps({"text": "more"}) + "\n")
    assert inputs(moved, tokenizer_json) != first
    tokenizer_json.write_text(words.to_str().replace('"content":"<|endoftext|>"',
                                                     '"content":"<|end|>"'))  # fmt: skip
    assert inputs(path, tokenizer_json) != first


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            {"text": "txt"},
            r"data\.text=txt: no such column \(did you mean text\?\); expected text",
        ),
        ({"label": "kinds"}, r"data\.label=kinds: no such column \(did you mean kind\?\)"),
        ({"ordered_by": "m"}, r"data\.ordered_by=m: no such column"),
        ({"vocab_size": 270}, r"token id \d+ in document 0; expected 0 to below .*vocab_size=270"),
        ({"n_sequences": 9999}, r"data\.n_sequences=9999: .* gives only \d+ sequences"),
        ({"held_out": 9999}, r"data\.held_out=9999: .* gives only \d+ sequences"),
        ({"end_of_text": 300}, r"data\.end_of_text=300: expected below data\.vocab_size=300"),
        ({"tokens": "text", "end_of_text": 0}, r"data\.tokens=text: a column of \w+, no lists"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_settings_that_the_data_contradicts_are_one_sentence(
    tmp_path, tokenizer_json, other, says, streaming
):
    path = write(tmp_path, "jsonl")
    with pytest.raises(DataError, match=says) as error:
        build(tmp_path, settings(path, tokenizer_json, streaming=streaming, **other))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "corpus" / "corpus.json").exists()


def test_files_that_are_not_there_or_of_several_kinds_are_refused(tmp_path, tokenizer_json):
    write(tmp_path, "parquet")
    write(tmp_path, "jsonl")
    for name, says in (
        ("none.jsonl", "no such file"),
        ("none-*.parquet", "no files; expected files of one kind, .parquet, .jsonl"),
        ("*t*", "files of"),
    ):
        with pytest.raises(DataError, match=says):
            inputs(tmp_path / name, tokenizer_json)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["texts.jsonl", "texts.parquet"])
def test_a_file_that_is_torn_is_one_sentence(tmp_path, tokenizer_json, name, streaming):
    (tmp_path / name).write_text('{"text": "the red fox"}\n{"text": "the b')
    with pytest.raises(DataError, match=r"^data\.dataset=.*it cannot be read \(") as error:
        build(tmp_path, settings(tmp_path / name, tokenizer_json, streaming=streaming))
    assert "\n" not in str(error.value)


def test_a_column_that_holds_no_texts_is_refused(tmp_path, tokenizer_json):
    path = write(tmp_path, "jsonl")
    with pytest.raises(DataError, match=r"data\.text=n: a column of int64, no texts"):
        build(tmp_path, settings(path, tokenizer_json, text="n"))


def test_class_labels_of_a_data_set_have_their_names(tmp_path, tokenizer_json):
    names = ClassLabel(names=["prose", "code", "a, b"])
    kinds = [names.str2int(kind) for kind in KINDS]
    features = Features({"text": Value("string"), "kind": names})
    table = Dataset.from_dict({"text": TEXTS, "kind": kinds}, features=features)
    table.to_parquet(tmp_path / "texts.parquet")
    plain = settings(write(tmp_path, "jsonl"), tokenizer_json, label="kind")
    expected = build(tmp_path / "plain", plain)
    found = build(tmp_path, settings(tmp_path / "texts.parquet", tokenizer_json, label="kind"))
    ids = np.arange(len(expected.tokens))
    assert found.labels_of(ids) == expected.labels_of(ids)


def test_a_document_without_text_is_named(tmp_path, tokenizer_json):
    (tmp_path / "x.jsonl").write_text('{"text": "the red fox"}\n{"text": null}\n')
    with pytest.raises(DataError, match="document 1 has no text"):
        build(tmp_path, settings(tmp_path / "x.jsonl", tokenizer_json))


HUB = {
    "unknown": (404, {"X-Error-Code": "RepoNotFound"}),
    "private": (401, {"X-Error-Code": "GatedRepo"}),
    "busy": (429, {"Retry-After": "1"}),
    "broken": (500, {}),
}


@pytest.mark.parametrize("case", HUB)
def test_a_hub_that_refuses_is_one_sentence(tmp_path, tokenizer_json, monkeypatch, case):
    with serving(tmp_path) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        hub.answers = [HUB[case]] * 20
        with pytest.raises(ConfigError, match=r"^data\.dataset=some/texts: .*the hub") as error:
            inputs("some/texts", tokenizer_json)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == (75 if case in ("busy", "broken") else 2)
    assert any(path.startswith("/api/datasets/some/texts") for path, *_ in hub.requests)


def test_a_branch_that_moves_is_read_at_the_commit_that_entered_the_key(
    tokenizer_json, monkeypatch
):
    shas = iter(["a" * 40, "b" * 40])
    answer = lambda api, dataset, revision: SimpleNamespace(sha=next(shas))  # noqa: E731
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", answer)
    asked = []

    def load(name, subset, **other):
        asked.append(other["revision"])
        return Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr("datasets.load_dataset", load)
    found = inputs("some/moving", tokenizer_json, revision="main")
    hf.open_data(settings("some/moving", tokenizer_json, revision="main"))
    assert found["source"]["commit"] == "a" * 40 and asked == ["a" * 40]


def test_a_commit_of_the_hub_is_taken_at_its_word(tokenizer_json):
    commit = "0123456789" * 4
    found = inputs("some/texts", tokenizer_json, revision=commit)
    assert found["source"] == {"repo": "some/texts", "commit": commit}
