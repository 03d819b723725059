"""Token files such as users have: their type, index, padding and labels are read or refused."""

import struct

import numpy as np
import pytest

from mda.data.errors import DataError
from mda.data.stream import open_corpus
from mda.data.token_files import count_ids, map_rows, read_index, read_inserted
from mda.data.tokens import build_tokens
from mda.schema import ConfigError, TokensConfig
from mda.training.table import CsvTable, read_rows

VOCAB, WIDTH = 5000, 9
CODES = {"int32": 4, "int64": 5, "uint16": 8}


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(1, VOCAB, (40, WIDTH), dtype=np.int64)


def write_index(path, dtype, lengths, documents=None, code=None):
    """An index as gpt-neox writes it."""
    lengths = np.asarray(lengths, dtype="<i4")
    ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(dtype).itemsize
    starts = np.concatenate([[0], ends[:-1]]).astype("<i8")
    documents = np.arange(len(lengths) + 1) if documents is None else np.asarray(documents)
    head = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, CODES[dtype] if code is None else code)
    sizes = struct.pack("<QQ", len(lengths), len(documents))
    parts = (lengths.tobytes(), starts.tobytes(), documents.astype("<i8").tobytes())
    path.write_bytes(head + sizes + b"".join(parts))


def build(folder, path, **settings):
    given = {"seq_len": WIDTH - 1, "dtype": None, "vocab_size": VOCAB, "held_out": 4}
    build_tokens(folder / "corpus", path=path, **(given | settings))
    tokens = map_rows(path, WIDTH - 1, given.get("dtype") or settings.get("dtype"))
    return open_corpus(folder / "corpus", "fp", tokens)


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64"])
def test_wider_integers_read_as_uint16_are_refused_not_read_as_twice_the_rows(
    tmp_path, rows, dtype
):
    path = tmp_path / "rows.bin"
    rows.astype(dtype).tofile(path)
    with pytest.raises(DataError, match=r"every second id is 0.*such as uint32"):
        build(tmp_path, path)
    assert build(tmp_path, path, dtype=dtype).rows(np.arange(40)).tolist() == rows.tolist()


def test_half_of_all_ids_being_0_is_warned_about(tmp_path, rows, capsys):
    rows[:, : WIDTH // 2 + 1] = 0
    rows.astype(np.uint16).tofile(tmp_path / "rows.bin")
    corpus = build(tmp_path, tmp_path / "rows.bin")
    assert "warning: data.path=" in (said := capsys.readouterr().err)
    assert "56% of all ids are 0" in said
    assert corpus.counts[0] == 40 * 5


def test_an_ordinary_file_is_not_warned_about(tmp_path, rows, capsys):
    rows.astype(np.uint16).tofile(tmp_path / "rows.bin")
    build(tmp_path, tmp_path / "rows.bin")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16"])
def test_the_index_beside_a_file_says_its_type(tmp_path, rows, dtype):
    rows.astype(dtype).tofile(tmp_path / "rows.bin")
    write_index(tmp_path / "rows.idx", dtype, [WIDTH] * 40)
    assert read_index(tmp_path / "rows.idx").lengths.tolist() == [WIDTH] * 40
    corpus = build(tmp_path, tmp_path / "rows.bin")
    assert corpus.rows(np.arange(40)).tolist() == rows.tolist()
    assert isinstance(corpus.tokens, np.memmap)


def test_a_large_vocabulary_needs_a_file_that_says_its_type(tmp_path, rows):
    """uint32 ids above 65,535 read as uint16 would be twice the rows, with few zeros in them."""
    path, large = tmp_path / "rows.bin", {"seq_len": WIDTH - 1, "vocab_size": 128_256}
    rows.astype(np.int32).tofile(path)
    with pytest.raises(ConfigError, match=r"data\.dtype=null is invalid; expected uint32"):
        TokensConfig(path=str(path), **large)
    TokensConfig(path=str(path), dtype="uint16", **large)
    TokensConfig(path=str(path.with_suffix(".npy")), **large)
    write_index(tmp_path / "rows.idx", "int32", [WIDTH] * 40)
    TokensConfig(path=str(path), **large)


def test_documents_of_an_index_are_laid_end_to_end(tmp_path, rows, capsys):
    flat = rows.ravel()
    flat[:350].astype(np.uint16).tofile(tmp_path / "rows.bin")
    write_index(tmp_path / "rows.idx", "uint16", [100, 7, 243])
    corpus = build(tmp_path, tmp_path / "rows.bin")
    assert corpus.rows(np.arange(38)).ravel().tolist() == flat[: 38 * WIDTH].tolist()
    assert "3 documents are laid end to end" in (said := capsys.readouterr().err)
    assert "38 rows; 8 tokens are left over" in said


@pytest.mark.parametrize(
    ("index", "dtype", "says"),
    [
        (("int32", [WIDTH] * 40), "uint16", "says int32; data.dtype=uint16 contradicts it"),
        (("int32", [12] * 30), None, "rows of 12 tokens; .*contradicts it, expected 11"),
        (("int32", [WIDTH] * 39), None, "says 1,404 bytes and the file has 1,440"),
        (("int64", [WIDTH] * 40), None, "says 2,880 bytes and the file has 1,440"),
        (("int32", [WIDTH] * 40, None, 7), None, "type 7"),
        (("int32", [WIDTH] * 40, None, 99), None, "type 99"),
    ],
)  # fmt: skip
def test_an_index_that_contradicts_is_refused(tmp_path, rows, index, dtype, says):
    rows.astype(np.int32).tofile(tmp_path / "rows.bin")
    write_index(tmp_path / "rows.idx", *index)
    with pytest.raises(DataError, match=says):
        build(tmp_path, tmp_path / "rows.bin", dtype=dtype)
    assert not (tmp_path / "corpus").exists()


def test_a_torn_index_and_another_file_of_that_name_are_refused(tmp_path, rows):
    rows.astype(np.int32).tofile(tmp_path / "rows.bin")
    write_index(tmp_path / "rows.idx", "int32", [WIDTH] * 40)
    whole = (tmp_path / "rows.idx").read_bytes()
    for content, says in ((whole[:-5], "type 4, 40 sequences"), (b"text", "does not begin as")):
        (tmp_path / "rows.idx").write_bytes(content)
        with pytest.raises(DataError, match=says):
            build(tmp_path, tmp_path / "rows.bin")


@pytest.mark.parametrize("padding", [-1, -100])
@pytest.mark.parametrize(
    ("stored", "read"),
    [("int32", "int32"), ("int32", "uint32"), ("int64", "int64"), ("uint16", "uint16")],
)
def test_padding_is_one_sentence_and_asks_for_no_memory(tmp_path, rows, padding, stored, read):
    """-1 read as uint32 is 4294967295, and counting up to it would ask for 32 GB."""
    rows[7, 3:] = padding
    rows.astype(stored).tofile(tmp_path / "rows.bin")
    found = np.array(padding).astype(stored).view(read).item()
    signed = "" if found == padding else rf" \({padding} as a signed number\)"
    says = rf"token id {found}{signed} in row 7; expected 0 to below .*{VOCAB}; .*padding"
    with pytest.raises(DataError, match=says):
        build(tmp_path, tmp_path / "rows.bin", dtype=read)
    assert not (tmp_path / "corpus").exists()


def test_the_row_of_a_bad_id_is_named_beyond_the_first_chunk(monkeypatch, rows):
    monkeypatch.setattr("mda.data.token_files.CHUNK_TOKENS", 5 * WIDTH)
    rows[23, 4] = VOCAB
    with pytest.raises(DataError, match=rf"token id {VOCAB} in row 23; expected 0 to below"):
        count_ids(rows, VOCAB, "x")
    rows[23, 4] = 1
    assert (
        count_ids(rows, VOCAB, "x").tolist() == np.bincount(rows.ravel(), minlength=VOCAB).tolist()
    )


def test_zeros_at_every_second_place_are_found_over_chunks_of_odd_length(monkeypatch):
    monkeypatch.setattr("mda.data.token_files.CHUNK_TOKENS", 3 * WIDTH)
    narrow = np.arange(1, 1 + 20 * WIDTH, dtype=np.uint32).view(np.uint16).reshape(-1, WIDTH)
    with pytest.raises(DataError, match="every second id is 0"):
        count_ids(narrow, VOCAB, "x")


def test_rows_for_insertion_are_checked_like_the_corpus(tmp_path, rows):
    np.save(tmp_path / "good.npy", rows)
    assert read_inserted(tmp_path / "good.npy", WIDTH - 1, VOCAB).tolist() == rows.tolist()
    for name, change, says in (
        ("padded", -1, "token id -1 in row 0; .*padding"),
        ("beyond", VOCAB, f"token id {VOCAB} in row 0; expected 0 to below"),
    ):
        bad = rows.copy()
        bad[0, 2] = change
        np.save(tmp_path / f"{name}.npy", bad)
        with pytest.raises(DataError, match=rf"^intervention\.rows=.*{name}\.npy: {says}"):
            read_inserted(tmp_path / f"{name}.npy", WIDTH - 1, VOCAB)
    with pytest.raises(DataError, match=r"^intervention\.rows=.*: no such file"):
        read_inserted(tmp_path / "none.npy", WIDTH - 1, VOCAB)


def labelled(tmp_path, values, **settings):
    rows = np.random.default_rng(1).integers(1, VOCAB, (len(values), WIDTH), dtype=np.uint16)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "labels.npy", values)
    return build(tmp_path, tmp_path / "rows.npy", labels=tmp_path / "labels.npy", **settings)


def test_labels_above_32767_do_not_wrap(tmp_path):
    values = np.repeat([100, 40_000, 65_636], [18, 25, 37])
    np.random.default_rng(2).shuffle(values)
    corpus = labelled(tmp_path, values)
    names = corpus.labels_of(np.arange(80))
    assert names == [f"class_{value}" for value in values]
    shares = {name: names.count(name) / 80 for name in corpus.label_names}
    assert shares == {"class_100": 0.225, "class_40000": 0.3125, "class_65636": 0.4625}


def test_many_named_labels_keep_their_names(tmp_path):
    values = np.array([0, 39_999, 3, 39_998, 7])
    names = [f"kind {i}" for i in range(40_000)]
    corpus = labelled(tmp_path, values, label_names=names)
    assert corpus.labels_of(np.arange(5)) == [f"kind {i}" for i in values]


def test_a_class_name_with_a_comma_can_be_resumed(tmp_path):
    corpus = labelled(tmp_path, np.arange(20) % 2, label_names=["lists, tables", 'so "called"'])
    table = CsvTable(tmp_path / "curve.csv")
    rows = [
        {"step": step, **{f"val/loss/{name}": 0.5 * step for name in corpus.label_names}}
        for step in (1, 2, 3)
    ]
    for row in rows:
        table.append(row)
    with (tmp_path / "curve.csv").open("a") as file:
        file.write("4,2.")  # killed in the middle of a line
    again = CsvTable(tmp_path / "curve.csv")
    assert again.keep_until(2) == rows[:2]
    again.append(rows[2])
    assert read_rows(tmp_path / "curve.csv") == rows


def test_a_label_file_that_cannot_be_read_is_one_sentence(tmp_path, rows):
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "labels.npy").write_text("no labels")
    with pytest.raises(DataError, match=r"^data\.labels=.*not a readable \.npy file"):
        build(tmp_path, tmp_path / "rows.npy", labels=tmp_path / "labels.npy")


def test_without_labels_every_row_has_the_same_and_no_memory_is_spent_on_it(tmp_path, rows):
    np.save(tmp_path / "rows.npy", rows)
    corpus = build(tmp_path, tmp_path / "rows.npy")
    assert corpus.labels_of(np.array([39, 0])) == ["all", "all"]
    assert corpus.labels.strides == (0,)


def test_a_tokenizer_that_lacks_ids_of_the_file_is_refused(tmp_path, rows, tokenizer_json):
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(DataError, match=rf"has 300 tokens and the data has id {rows.max()}"):
        build(tmp_path, tmp_path / "rows.npy", tokenizer=str(tokenizer_json))
    assert not (tmp_path / "corpus").exists()
