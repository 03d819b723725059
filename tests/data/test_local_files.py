"""`data=hf` with local files: the files that were named are read, whole, once, as they are now."""

import gzip
import json
import lzma
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mda.data import hf
from mda.data.errors import DataError
from mda.data.stream import open_corpus
from mda.schema import HfConfig
from mda.store import hash_file


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def of(dataset, **other):
    """Settings for documents of eight ids each, which are rows already."""
    given = {"seq_len": 8, "vocab_size": 300, "held_out": 1, "tokens": "ids", "packing": "rows"}
    return HfConfig(dataset=str(dataset), **(given | {"shuffle": False} | other))


def row(number):
    return {"ids": [number] * 9}


def read(dataset, **other):
    """First id of every document that is read."""
    config = of(dataset, **other)
    hf.inputs(config, hash_file)  # what is refused, is so before anything is read
    return [int(document.ids[0]) for document in hf.documents(config, hf.open_data(config), {})]


def labels(dataset, tmp_path, **other):
    out = tmp_path / "corpus"
    shutil.rmtree(out, ignore_errors=True)
    config = of(dataset, **({"label": "kind"} | other))
    hf.build_from_config(out, config, tmp_path)
    corpus = open_corpus(out, "", hf.open_rows(out, config, tmp_path))
    return corpus.labels_of(np.arange(len(corpus.tokens)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["run[2]", "data[1].jsonl", "a*.jsonl", "$HOME.jsonl", "b?.jsonl"])
def test_a_path_that_exists_is_no_pattern(tmp_path, name, streaming):
    """What the pattern would match lies beside it."""
    for other in ("run2/x.jsonl", "data1.jsonl", "ab.jsonl", "bc.jsonl"):
        lines(tmp_path / other, row(7))
    path = tmp_path / name
    lines(path if path.suffix else path / "x[0].jsonl", row(1), row(2))
    assert read(path, streaming=streaming) == [1, 2]


def test_a_pattern_that_is_no_path_takes_what_it_matches(tmp_path):
    for number, name in enumerate(("a1.jsonl", "a2.jsonl", "b1.jsonl", "a[1].jsonl")):
        lines(tmp_path / name, row(number))
    assert read(tmp_path / "a[12].jsonl") == [0, 1]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_was_replaced_is_read_anew(tmp_path, kind, streaming):
    """Under the same path, with the same size and the same time."""
    path = tmp_path / f"x.{kind}"
    for number in (1, 2):
        if kind == "jsonl":
            lines(path, row(number))
        else:
            pq.write_table(pa.table({"ids": [row(number)["ids"]]}), path)
        os.utime(path, (10**9, 10**9))
        assert read(path, streaming=streaming) == [number]


def test_hidden_copies_are_no_data(tmp_path):
    lines(tmp_path / "texts/x.jsonl", row(1))
    for name in (".ipynb_checkpoints/x-checkpoint.jsonl", ".git/y.jsonl", "deep/.a/z.jsonl",
                 "._x.jsonl"):  # fmt: skip
        lines(tmp_path / "texts" / name, row(9))
    assert read(tmp_path / "texts") == [1]


def test_a_file_is_read_once_by_whatever_names(tmp_path):
    lines(tmp_path / "texts/x.jsonl", row(1))
    (tmp_path / "texts/y.jsonl").symlink_to(tmp_path / "texts/x.jsonl")
    assert read(tmp_path / "texts") == read(tmp_path / "texts/*.jsonl") == [1]


def test_a_file_beside_its_compressed_copy_is_refused_by_name(tmp_path):
    path = lines(tmp_path / "texts/x.jsonl", row(1))
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"x\.jsonl\.gz and .*x\.jsonl are one file, once compre"):
        read(tmp_path / "texts")


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_compressed_lines_are_read(tmp_path, ending):
    content = lines(tmp_path / "plain.jsonl", row(1), row(2)).read_bytes()
    path = tmp_path / f"x.jsonl{ending}"
    if ending == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes((gzip if ending == ".gz" else lzma).compress(content))
    assert read(path) == [1, 2]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"it cannot be read \({path}"):
        read(path)


@pytest.mark.parametrize("layout", ["train-0.jsonl val-0.jsonl", "train/0.jsonl dev/0.jsonl"])
def test_a_folder_s_splits_are_told_apart_by_their_names(tmp_path, layout):
    for number, name in enumerate(layout.split()):
        lines(tmp_path / "texts" / name, row(number))
    assert read(tmp_path / "texts") == [0]
    assert read(tmp_path / "texts", split="validation") == [1]
    with pytest.raises(DataError, match=r"data\.split=test: .* expected train, validation"):
        read(tmp_path / "texts", split="test")
    lines(tmp_path / "texts/more.jsonl", row(5))
    with pytest.raises(DataError, match=r"more\.jsonl names no split, where other files"):
        read(tmp_path / "texts")


def test_a_split_of_what_has_none_is_refused(tmp_path):
    path = lines(tmp_path / "texts/validation_of_it.jsonl", row(1))
    lines(tmp_path / "plain/testament.jsonl", row(1))
    assert read(tmp_path / "plain") == read(path) == [1]
    for dataset in (tmp_path / "plain", path):
        with pytest.raises(DataError, match=r"data\.split=validation: .*expected train"):
            read(dataset, split="validation")


UNLABELLED = [
    [{"kind": "a"}, {"kind": None}, {}, {"kind": "None"}, {"kind": "nan"}],
    [{"kind": 1}, {"kind": float("nan")}, {}, {"kind": 0.5}, {"kind": 2}],
]


@pytest.mark.parametrize("records", UNLABELLED)
def test_a_document_without_a_label_is_unlabelled(tmp_path, records):
    path = lines(tmp_path / "x.jsonl", *(row(1) | record for record in records))
    found = labels(path, tmp_path)
    assert found[1:3] == ["unlabelled"] * 2
    if records is UNLABELLED[0]:
        assert found == ["a", "unlabelled", "unlabelled", "None", "nan"], "texts stay texts"


def test_a_label_that_a_later_file_lacks_is_unlabelled(tmp_path):
    for name, more in (("a", {"kind": ["x"]}), ("b", {})):
        pq.write_table(pa.table({"ids": [[1] * 9]} | more), tmp_path / f"{name}.parquet")
    assert labels(tmp_path, tmp_path) == ["x", "unlabelled"]


def test_the_hub_s_class_without_a_name_is_unlabelled(tmp_path):
    kinds = Features({"ids": [Value("int64")], "kind": ClassLabel(names=["no", "yes"])})
    table = Dataset.from_dict({"ids": [[1] * 9] * 3, "kind": [1, -1, 0]}, features=kinds)
    table.to_parquet(tmp_path / "x.parquet")
    for streaming in (False, True):
        found = labels(tmp_path / "x.parquet", tmp_path, streaming=streaming)
        assert found == ["yes", "unlabelled", "no"]


@pytest.mark.parametrize("kind", [["a"], {"b": "c"}])
def test_a_label_that_is_no_text_or_number_is_refused(tmp_path, kind):
    path = lines(tmp_path / "x.jsonl", row(1) | {"kind": kind}, row(2) | {"kind": kind})
    with pytest.raises(DataError, match=r"data\.label=kind: a column of (list|struct)<.* expected"):
        labels(path, tmp_path)


@pytest.mark.parametrize("text", ["['a']", "2024-01-02", "1e3", "2024-01-02T03:04:05Z"])
def test_texts_stay_as_they_are_written(tmp_path, text):
    path = lines(tmp_path / "x.jsonl", *[row(1) | {"kind": text}] * 2)
    assert labels(path, tmp_path) == [text] * 2


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_label_may_lie_in_a_nested_column(tmp_path, kind):
    records = [row(1) | {"meta": {"kind": "a", "n": 1}}, row(2) | {"meta": {"kind": "b", "n": 2}}]
    path = lines(tmp_path / "x.jsonl", *records)
    if kind == "parquet":
        path = tmp_path / "x.parquet"
        pq.write_table(pa.Table.from_pylist(records), path)
    assert labels(path, tmp_path, label="meta.kind") == ["a", "b"]
    with pytest.raises(DataError, match=r"no such column \(did you mean meta\.kind\?\)"):
        labels(path, tmp_path, label="meta.kin")
    flat = lines(tmp_path / "flat.jsonl", *[row(1) | {"meta.kind": "a"}] * 2)
    assert labels(flat, tmp_path, label="meta.kind") == ["a", "a"]


def test_a_label_that_comes_late_is_found(tmp_path):
    records = [row(1)] * 300 + [row(2) | {"kind": "a"}] * 3
    assert labels(lines(tmp_path / "x.jsonl", *records), tmp_path).count("unlabelled") == 300


def test_one_list_is_read_as_lines_are(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([row(1), row(2)], indent=1))
    assert read(tmp_path / "x.json") == [1, 2]


BAD = {
    "latin-1": (b'{"ids": [1]}\n{"ids": [1], "a": "caf\xe9"}\n', "'utf-8' codec can't decode"),
    "no object": (b'{"ids": [1]}\n\n[]\n3\n', "line 3 is not JSON"),
    "a number": (b'{"ids": [1]}\n3\n', "line 2 has a record that is no JSON object"),
    "torn": (b'{"ids": [1]}\n{"ids": [1', "line 2 is not JSON: "),
    "deep": (b'{"ids": [1]}\n' + b"[" * 10**5, "recursion"),
    "mixed": (b'{"ids": [1]}\n{"ids": "a"}\n', "x.jsonl: "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_of_another_form_is_one_sentence_with_its_name(tmp_path, case):
    content, says = BAD[case]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"it cannot be read \(.*x\.jsonl: ") as error:
        read(tmp_path / "texts")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_document_without_its_place_in_the_order_is_named(tmp_path):
    path = lines(tmp_path / "x.jsonl", row(1) | {"n": 1}, row(2))
    with pytest.raises(DataError, match="document 1 has no n"):
        read(path, ordered_by="n")


def test_held_out_rows_of_shuffled_data_are_drawn_from_all_of_them(tmp_path):
    """The last rows would be of the last class alone; every run has the same ones."""
    path = lines(tmp_path / "x.jsonl", *(row(n) | {"kind": f"{n // 25}"} for n in range(100)))
    held_out = []
    for shuffle in (True, True, False):
        out = tmp_path / f"corpus{len(held_out)}"
        config = of(path, label="kind", held_out=20, shuffle=shuffle, order_seed=None)
        hf.build_from_config(out, config, tmp_path)
        held_out.append(open_corpus(out, "", hf.open_rows(out, config, tmp_path)).held_out.tolist())
    assert held_out[0] == held_out[1] == sorted(set(held_out[0])) and len(held_out[0]) == 20
    assert {n // 25 for n in held_out[0]} == {0, 1, 2, 3}
    assert held_out[2] == [*range(80, 100)]
    drawn, last = (hf.inputs(of(path, shuffle=shuffle), hash_file) for shuffle in (True, False))
    assert drawn != last
