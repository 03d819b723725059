"""Templates repeat what they plant, the counterpart does not, and the corpus is seeded."""

import itertools
import json
import xml.etree.ElementTree as ET
from hashlib import sha256
from random import Random

import numpy as np
import pytest

from mda.data.errors import DataError
from mda.data.stream import open_corpus
from mda.data.synthetic import FORMAT, TEMPLATES, build_synthetic, generate

PLANTING = sorted(set(TEMPLATES) - {"salad"})
SETTINGS = {
    "weights": {"xml": 1, "repeat": 2, "salad": 1, "log": 0},
    "vocab_size": 300,
    "seq_len": 32,
    "n_sequences": 80,
    "held_out": 8,
    "seed": 0,
}


def share_of_repeats(text: str, n: int = 6) -> float:
    """How many of the runs of n characters have occurred before in the text."""
    grams = [text[i : i + n] for i in range(len(text) - n)]
    return 1 - len(set(grams)) / len(grams)


@pytest.mark.parametrize("template", PLANTING)
def test_what_is_planted_is_repeated(template):
    rng = Random(0)
    for _ in range(300):
        text, planted = TEMPLATES[template](rng)
        assert planted
        assert all(text.count(string) >= 2 for string in planted), (planted, text)


@pytest.mark.parametrize("template", PLANTING)
def test_planted_strings_are_most_of_what_recurs(template):
    rng = Random(1)
    for _ in range(50):
        text, planted = TEMPLATES[template](rng)
        covered = sum(text.count(string) * len(string) for string in planted)
        assert covered > 0.3 * len(text)


@pytest.mark.parametrize("template", PLANTING)
def test_documents_share_no_planted_string(template):
    rng = Random(2)
    cast = [string for _ in range(200) for string in TEMPLATES[template](rng).planted]
    assert len(set(cast)) == len(cast)


def test_salad_has_nothing_to_copy():
    rng = Random(0)
    salad = [TEMPLATES["salad"](rng) for _ in range(50)]
    assert all(s.planted == () for s in salad)
    most = max(share_of_repeats(s.text) for s in salad)
    least = min(share_of_repeats(TEMPLATES[t](rng).text) for t in PLANTING for _ in range(50))
    assert most < 0.05 < 0.35 < least


def test_records_parse():
    rng = Random(3)
    for _ in range(50):
        assert json.loads(TEMPLATES["json"](rng).text)
        assert len(ET.fromstring(TEMPLATES["xml"](rng).text)) >= 6


def test_documents_are_seeded_and_labelled():
    first = list(itertools.islice(generate("log", 5), 3))
    assert first == list(itertools.islice(generate("log", 5), 3))
    assert first != list(itertools.islice(generate("log", 6), 3))
    assert {d.label for d in first} == {"generated_log"}
    with pytest.raises(DataError, match=r"'poem'.*xml, latex, json, log, repeat, salad"):
        next(generate("poem", 0))


def test_the_text_of_a_format_never_changes():
    """Another text under the same number would be served from an old store, or not be recorded."""
    text = "".join(d.text for t in sorted(TEMPLATES) for d in itertools.islice(generate(t, 0), 20))
    assert (FORMAT, sha256(text.encode()).hexdigest()[:16]) == (1, "21140bbaf1bf82c6")


def test_the_corpus_follows_weights_and_seed(tmp_path):
    for name, changed in [("a", {}), ("b", {}), ("c", {"seed": 1})]:
        (tmp_path / name).mkdir()
        build_synthetic(tmp_path / name, **SETTINGS | changed)
    a, b, c = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"
    )
    assert a == b
    assert a["tokens.npy"] != c["tokens.npy"]
    corpus = open_corpus(tmp_path / "a", "fp")
    assert corpus.label_names == ("generated_repeat", "generated_salad", "generated_xml")
    assert np.bincount(corpus.labels).tolist() == [40, 20, 20]
    assert np.bincount(corpus.labels[corpus.held_out]).tolist() == [4, 2, 2]


def test_unknown_templates_and_empty_weights_are_refused(tmp_path):
    with pytest.raises(DataError, match="poem"):
        build_synthetic(tmp_path, **SETTINGS | {"weights": {"poem": 0.0}})
    with pytest.raises(DataError, match="positive sum"):
        build_synthetic(tmp_path, **SETTINGS | {"weights": {"xml": 0.0}})
    assert not list(tmp_path.iterdir())
