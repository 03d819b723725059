"""Tokens become text without losing a character; a tokenizer that cannot be read is refused."""

import json
from functools import cache

import numpy as np
import pytest
from hub import serving
from huggingface_hub import constants
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mda.data import tokenizer
from mda.data.errors import DataError
from mda.data.stream import open_corpus
from mda.data.tokenizer import decode, opened, read_tokenizer
from mda.data.tokens import build_tokens
from mda.schema import ConfigError

TEXT = "a ─ é \N{MATHEMATICAL ITALIC SMALL ALPHA}\N{MUSICAL SYMBOL G CLEF} z"


@pytest.fixture
def of_bytes():
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_characters_of_several_tokens_stay_whole(of_bytes):
    pieces = decode(of_bytes, of_bytes.encode(TEXT).ids)
    assert "".join(pieces) == TEXT
    assert len(pieces) == len(TEXT.encode())
    assert pieces[:3] == ["a", " ", ""]
    assert pieces[4] == "─"


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_row_that_begins_inside_a_character_keeps_the_whole_ones_after_it(of_bytes, cut):
    data = TEXT.encode()[cut:]
    pieces = decode(of_bytes, of_bytes.encode(TEXT).ids[cut:])
    whole = data.decode(errors="ignore")
    assert "".join(pieces).replace("\N{REPLACEMENT CHARACTER}", "") == whole
    assert len(pieces) == len(data)
    at = [i for i in range(len(data)) if data[: i + 1].decode(errors="ignore")
          != data[:i].decode(errors="ignore")]  # fmt: skip
    shown = [i for i, piece in enumerate(pieces)
             if piece.replace("\N{REPLACEMENT CHARACTER}", "")]  # fmt: skip
    assert shown == at, "each character stands at the last of its tokens"


def test_a_row_that_ends_inside_a_character_says_so_at_its_last_token(of_bytes):
    ids = of_bytes.encode("ab\N{MUSICAL SYMBOL G CLEF}").ids[:-1]
    pieces = decode(of_bytes, ids)
    assert pieces[:4] == ["a", "b", "", ""]
    assert set(pieces[4]) == {"\N{REPLACEMENT CHARACTER}"}


def test_spaces_that_a_decoder_strips_at_the_start_are_kept_inside():
    vocab = {"<unk>": 0, "▁the": 1, "▁red": 2, "▁fox": 3, "es": 4}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    assert decode(tokenizer, [1, 2, 3, 4, 2]) == ["the", " red", " fox", "es", " red"]


def test_any_kind_of_tokenizer_gives_the_same_ids(words, tokenizer_json, tmp_path):
    library = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")
    library.save_pretrained(tmp_path / "library")
    text = "the red fox saw the river"
    for name in (tokenizer_json, tokenizer_json.parent, tmp_path / "library"):
        tokenizer, end = read_tokenizer(str(name))
        assert tokenizer.encode(text).ids == words.encode(text).ids
        assert end == 0


def test_a_tokenizer_that_cuts_and_pads_does_so_no_more(words, tmp_path):
    cutting = Tokenizer.from_str(words.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=4)
    cutting.save(str(tmp_path / "tokenizer.json"))
    text = "the red fox saw the river before it was dark"
    found = read_tokenizer(str(tmp_path / "tokenizer.json")).tokenizer
    assert len(cutting.encode(text).ids) == 4
    assert found.encode(text).ids == words.encode(text).ids


@pytest.mark.parametrize(
    ("content", "says"),
    [("{}", "cannot be read"), ("no json", "cannot be read"), (None, "no such")],
)
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(tmp_path, content, says):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=says) as error:
        read_tokenizer(str(path))
    assert str(error.value).startswith(f"data.tokenizer={path}: ")
    assert "\n" not in str(error.value)


def test_a_corpus_reads_its_tokenizer_once(tmp_path, tokenizer_json, words):
    rows = np.array([words.encode("the red fox saw the river").ids[:5]] * 20, dtype=np.uint16)
    np.save(tmp_path / "rows.npy", rows)
    build_tokens(tmp_path / "corpus", path=tmp_path / "rows.npy", seq_len=4, dtype=None,
                 vocab_size=300, tokenizer=str(tokenizer_json), held_out=4)  # fmt: skip
    corpus = open_corpus(tmp_path / "corpus", "fp", rows)
    before = opened.cache_info().misses
    for row in rows:
        assert "".join(corpus.decode(row)) == words.decode(row.tolist())
    assert opened.cache_info().misses == before


def test_a_corpus_with_a_broken_tokenizer_is_refused_when_it_is_opened(tmp_path, tokenizer_json):
    rows = np.ones((20, 5), dtype=np.uint16)
    np.save(tmp_path / "rows.npy", rows)
    build_tokens(tmp_path / "corpus", path=tmp_path / "rows.npy", seq_len=4, dtype=None,
                 vocab_size=300, tokenizer=str(tokenizer_json), held_out=4)  # fmt: skip
    (tmp_path / "corpus" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        open_corpus(tmp_path / "corpus", "fp", rows)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback, whose repository me/words is the folder `me/words/main`."""
    monkeypatch.setattr(tokenizer, "_fetched", cache(tokenizer._fetched.__wrapped__))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path / "cache")
    with serving(tmp_path / "hub") as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        (tmp_path / "hub/me/words/main").mkdir(parents=True)
        yield server


def test_a_tokenizer_of_the_hub_is_its_tokenizer_json(words, hub):
    """The library's class for it would know nothing of these steps, which its file has."""
    own = Tokenizer.from_str(words.to_str())
    own.normalizer = normalizers.Lowercase()
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"), own.pre_tokenizer]
    )
    folder = hub.root / "me/words/main"
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": own.id_to_token(299)})
    )
    text = "The Red fox saw 1234567 houses"
    found, end = read_tokenizer("me/words")
    assert found.encode(text).ids == own.encode(text).ids != words.encode(text).ids
    assert end == 299
    asked = len(hub.requests)
    assert read_tokenizer("me/words").tokenizer.to_str() == found.to_str()
    assert len(hub.requests) == asked, "once by each process"


def test_without_a_tokenizer_json_the_library_makes_one(words, hub, tmp_path):
    folder = hub.root / "me/words/main"
    model = json.loads(words.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    text = "the red fox"
    assert read_tokenizer("me/words").tokenizer.encode(text).ids == words.encode(text).ids


@pytest.mark.parametrize("fault", ["429", "500", "cut", "unknown", "gone away"])
def test_a_tokenizer_that_the_hub_does_not_give_is_one_sentence(words, hub, fault, monkeypatch):
    words.save(str(hub.root / "me/words/main/tokenizer.json"))
    hub.faults["main/tokenizer.json"] = fault
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again, for long
    if fault == "gone away":
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}"
                            "/resolve/{revision}/{filename}")  # fmt: skip
    name = "me/others" if fault == "unknown" else "me/words"
    with pytest.raises(ConfigError, match=f"^data\\.tokenizer={name}: ") as error:
        read_tokenizer(name)
    assert error.value.exit_code == (2 if fault == "unknown" else 75)
    assert "\n" not in str(error.value)
