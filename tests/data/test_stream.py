"""Sample id <-> step is a pure function, and token files are mapped, checked and refused."""

import numpy as np
import pytest

from mda import store
from mda.data.errors import DataError
from mda.data.stream import open_corpus, stream_hash, stream_order, unedited
from mda.data.token_files import map_rows
from mda.data.tokens import build_tokens


@pytest.fixture
def corpus(tmp_path):
    rows = np.random.default_rng(0).integers(2, 50, (40, 9), dtype=np.uint16)
    np.save(tmp_path / "rows.npy", rows)
    build_tokens(
        tmp_path / "corpus",
        path=tmp_path / "rows.npy",
        seq_len=8,
        dtype="uint16",
        vocab_size=64,
        special_ids=(0, 1),
        held_out=8,
    )
    return open_corpus(tmp_path / "corpus", "fp", map_rows(tmp_path / "rows.npy", 8))


def test_a_corpus_says_what_its_file_holds(corpus):
    assert corpus.seq_len == 8
    assert corpus.counts.sum() == 40 * 9
    assert corpus.counts[7] == (np.asarray(corpus.tokens) == 7).sum()
    assert corpus.held_out.tolist() == list(range(32, 40))
    assert corpus.decode([3, 4]) == ["3 ", "4 "]
    assert corpus.rows(np.array([5, 2])).tolist() == np.asarray(corpus.tokens)[[5, 2]].tolist()


def test_raw_and_npy_files_give_the_same_rows(tmp_path, corpus):
    np.asarray(corpus.tokens).tofile(tmp_path / "rows.bin")
    assert np.array_equal(map_rows(tmp_path / "rows.bin", 8, "uint16"), corpus.tokens)


def test_rows_are_mapped_not_read(corpus):
    assert isinstance(corpus.tokens, np.memmap)


def test_order_is_a_permutation_of_what_is_not_held_out(corpus):
    order = stream_order(corpus, 3)
    assert sorted(order) == list(range(32))
    assert np.array_equal(order, stream_order(corpus, 3))
    assert not np.array_equal(order, stream_order(corpus, 4))
    assert stream_order(corpus, None).tolist() == list(range(32))


def test_a_step_trains_on_its_slice_of_the_order(corpus):
    order = stream_order(corpus, 3)
    whole = unedited(order, 4, 0, 8)
    part = unedited(order, 4, 5, 8)
    for step in range(5, 8):
        ids, weights = part.at(step)
        assert ids.tolist() == order[4 * step : 4 * step + 4].tolist()
        assert np.array_equal(ids, whole.at(step)[0])
        assert weights.tolist() == [1.0] * 4
    with pytest.raises(IndexError, match="outside"):
        part.at(4)


def test_a_stream_needs_enough_samples(corpus):
    with pytest.raises(ValueError, match="32"):
        unedited(stream_order(corpus, 0), 4, 0, 9)


def test_stream_hash_sees_every_field(corpus):
    order = stream_order(corpus, 0)
    base = unedited(order, 4, 0, 8)
    assert stream_hash(base) == stream_hash(unedited(order, 4, 0, 8))
    assert stream_hash(base) != stream_hash(unedited(order, 4, 1, 8))
    assert stream_hash(base) != stream_hash(unedited(order[::-1], 4, 0, 8))


def bad_files(folder):
    rows = np.zeros((6, 9), dtype=np.uint16)
    np.save(folder / "float.npy", rows.astype(np.float32))
    np.save(folder / "flat.npy", rows.ravel())
    np.save(folder / "wide.npy", np.zeros((6, 10), dtype=np.uint16))
    np.save(folder / "none.npy", rows[:0])
    np.save(folder / "large.npy", rows + 64)
    rows.tofile(folder / "cut.bin")
    (folder / "cut.bin").write_bytes((folder / "cut.bin").read_bytes()[:-3])
    (folder / "empty.bin").touch()
    np.save(folder / "cut.npy", rows)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:60])
    (folder / "text.npy").write_text("no tokens")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.npy", "no such file"),
        ("float.npy", "dtype float32; expected uint16"),
        ("flat.npy", r"shape \[54\]; expected \[rows, 9\]"),
        ("wide.npy", r"shape \[6, 10\]"),
        ("none.npy", "no rows"),
        ("large.npy", "token id 64.*below data.vocab_size=64"),
        ("cut.bin", "not a whole number of rows"),
        ("empty.bin", "empty"),
        ("cut.npy", "not a readable"),
        ("text.npy", "not a readable"),
    ],
)
def test_bad_files_are_refused_with_one_clear_error(tmp_path, name, says):
    bad_files(tmp_path)
    with pytest.raises(DataError, match=says) as error:
        build_tokens(
            tmp_path / "out",
            path=tmp_path / name,
            seq_len=8,
            dtype="uint16",
            vocab_size=64,
            held_out=2,
        )
    assert str(error.value).startswith(f"data.path={tmp_path / name}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(5, dtype=np.int16), "one integer for each of the 40 rows"),
        (np.zeros(40), "float64"),
        (np.full(40, -1), "0 and above"),
        (np.full(40, 2), "label_names has 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, corpus, labels, says):
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match=says):
        build_tokens(
            tmp_path / "out",
            path=tmp_path / "rows.npy",
            seq_len=8,
            dtype="uint16",
            vocab_size=64,
            labels=tmp_path / "labels.npy",
            label_names=("a", "b"),
            held_out=8,
        )


def test_store_writes_what_a_corpus_reads(corpus, tmp_path):
    assert store.read_json(tmp_path / "corpus" / "corpus.json")["vocab_size"] == 64


def test_decoding_keeps_characters_of_several_tokens_whole(tmp_path, corpus):
    from dataclasses import replace

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a ─ é \N{MATHEMATICAL ITALIC SMALL ALPHA} z"
    pieces = replace(corpus, tokenizer=tmp_path / "tokenizer.json").decode(
        tokenizer.encode(text).ids
    )
    assert "".join(pieces) == text
    assert len(pieces) == len(text.encode())
