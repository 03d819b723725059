"""Motifs and rows made from them, on a corpus whose templates are known."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mda.analysis.motifs import SPAN, VALUES, Found, mine, motifs_of, records, tandem
from mda.data.errors import DataError
from mda.data.motif_file import Motif, Slot, read_motifs, write_motifs
from mda.data.stream import open_corpus
from mda.data.synthesis import COPIED, GRAM, copied_share, grams, synthesize
from mda.data.synthetic import build_synthetic
from mda.estimator.repetition import repetition
from mda.schema import MotifsConfig
from mda.types import Scores

PLANTED = {  # template -> skeletons of its record, a slot being a brace
    "xml": ['<{} {}="{}">{}</{}>\n  '],
    "latex": [" & ".join(["{}"] * columns) + " \\\\\n" for columns in (2, 3, 4)],
    "json": ['{{"{}": "{}", "{}": "{}"}},\n  '.replace("{{", "{").replace("}}", "}")],
    "log": ["{} {} {} {} {} id={}\n"],
    "repeat": ["{}"],
}
KINDS = ("motif", "shuffled", "random", "repetition")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("planted")
    weights = dict.fromkeys(("xml", "latex", "json", "log", "repeat", "salad"), 1.0)
    build_synthetic(out, weights=weights, vocab_size=512, seq_len=128, n_sequences=900, held_out=36,
                    seed=0)  # fmt: skip
    return open_corpus(out, "planted")


@pytest.fixture(scope="module")
def ids(corpus):
    return np.setdiff1d(np.arange(len(corpus.tokens)), corpus.held_out)


@pytest.fixture(scope="module")
def found(corpus, ids):
    return list(records(corpus, ids))


@pytest.fixture(scope="module")
def motifs(found, ids):
    return motifs_of(found, ids, found, least=9)


def braces(motif: Motif) -> str:
    return "".join("{}" if isinstance(part, int) else part for part in motif.skeleton)


@pytest.mark.parametrize("template", PLANTED)
def test_planted_templates_are_recovered(corpus, ids, motifs, template):
    """Recall: the share of a template's samples that have the motif of its very record."""
    labels = dict(zip(ids.tolist(), corpus.labels_of(ids), strict=True))
    mine_ = [one for one in motifs if braces(one) in PLANTED[template]]
    hit = Counter(labels[i] for one in mine_ for i in one.sample_ids)
    label = f"generated_{template}"
    assert hit[label] > 2 / 3 * sum(name == label for name in labels.values())
    assert hit[label] > 0.8 * hit.total(), "precision"
    assert hit["generated_salad"] == 0


def test_slots_have_the_kinds_that_were_planted(motifs):
    by_record = {braces(one): one for one in motifs}
    xml = by_record[PLANTED["xml"][0]]
    kinds = [slot.kind for slot in xml.slots]
    assert kinds == ["word", "word", "identifier", "identifier", "repeat"]
    assert xml.slots[4].repeat_of == 0
    assert [slot.distinct[1] for slot in xml.slots[:2]] == [1, 1], (
        "one row and attribute a document"
    )
    assert xml.cast == (2, 4), "as the template draws it"
    log = by_record[PLANTED["log"][0]]
    assert set(log.slots[0].values) == {"INFO", "WARN"}
    assert by_record["{}"].slots[0].kind == "span"


def test_the_blocks_that_are_kept_are_as_long_as_those_of_the_samples():
    """A sample repeats a short block more often, and so short ones would be all that is kept."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 61, 400)
    blocks = ["".join(rng.choice(list("abcdefgh"), n)) for n in lengths]
    samples = [Found(frozenset(), SPAN, ((one,),) * (128 // len(one)), one) for one in blocks]
    (plain,) = motifs_of(samples, np.arange(400), samples, least=1)
    kept = [len(block) for block in plain.slots[0].values or ()]
    assert len(kept) == VALUES
    quantiles = [0.1, 0.5, 0.9]
    assert np.quantile(kept, quantiles) == pytest.approx(np.quantile(lengths, quantiles), abs=1.5)


def test_the_shares_of_a_motif_are_counted(corpus, ids):
    """Scores that single out XML: its motif is most of the top and a sixth of the window."""
    labels = np.array(corpus.labels_of(ids))
    values = np.where(labels == "generated_xml", 1.0, 0.0) + 1e-6 * np.arange(len(ids))
    scores = Scores(ids, np.arange(len(ids)), values[:, None], ("L0H0",), np.full(len(ids), np.nan))
    made = mine(corpus, scores, "L0H0", MotifsConfig(samples=100))
    assert made.motifs == mine(corpus, scores, "L0H0", MotifsConfig(samples=100)).motifs
    (xml,) = [one for one in made.motifs if braces(one) == PLANTED["xml"][0]]
    shaped = [one.shape for one in records(corpus, ids)]
    shape = shaped[ids.tolist().index(xml.sample_ids[0])]
    assert xml.share_window == pytest.approx(shaped.count(shape) / len(ids), abs=1e-6)
    assert xml.share == len(xml.sample_ids) / 100 > 0.7
    assert xml.enrichment == pytest.approx(xml.share / xml.share_window, rel=1e-3)
    assert {str(labels[ids.tolist().index(i)]) for i in xml.sample_ids} == {"generated_xml"}
    lowest = mine(corpus, scores, "L0H0", MotifsConfig(samples=100, select="bottom"))
    assert lowest.motifs and all(
        labels[ids.tolist().index(i)] != "generated_xml"
        for one in lowest.motifs for i in one.sample_ids
    )  # fmt: skip
    turned = replace(scores, values=-scores.values)
    assert lowest.motifs == mine(corpus, turned, "L0H0", MotifsConfig(samples=100)).motifs
    drawn = [mine(corpus, scores, "L0H0", MotifsConfig(samples=300, select="random", seed=s)).motifs
             for s in (0, 1)]  # fmt: skip
    assert drawn[0] != drawn[1]
    assert all(0.5 < one.share / one.share_window < 2 for one in drawn[0] if one.share_window > 0.1)


def longest_by_hand(row: list[int], copies: int) -> tuple[int, int]:
    """(length, period) of the longest stretch that repeats itself, the shortest period first."""
    best = (0, 0)
    for period in range(1, len(row) // copies + 1):
        for start in range(len(row)):
            end = start + period
            while end < len(row) and row[end] == row[end - period]:
                end += 1
            if end - start >= copies * period and end - start > best[0]:
                best = (end - start, period)
    return best


@pytest.mark.parametrize("copies", [2, 3])
def test_stretches_that_repeat_are_those_found_by_hand(copies):
    rows = np.random.default_rng(0).integers(0, 3, (40, 24))
    rows[0, 3:18] = np.resize([0, 1, 2, 2, 1], 15)
    start, period, length = tandem(rows, copies)
    for row, s, p, n in zip(rows.tolist(), start, period, length, strict=True):
        assert (n, p) == longest_by_hand(row, copies)
        assert all(row[i] == row[i - p] for i in range(s + p, s + n))


def test_a_motif_file_is_read_as_it_was_written(motifs, tmp_path):
    for name in "ab":
        write_motifs(tmp_path / name, motifs, {"select": "top"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_motifs(tmp_path / "a") == (motifs, read_motifs(tmp_path / "b")[1])
    text = (tmp_path / "a").read_text()
    lines = text.splitlines()
    assert all(line.count('"kind"') <= 1 for line in lines), "each slot has a line of its own"
    (tmp_path / "b").write_text(text.replace('"title": "",', "", 1))
    assert read_motifs(tmp_path / "b")[0] == motifs, "files of an older version have no titles"
    (tmp_path / "b").write_text(text.replace('"title": ""', '"title": "a table"', 1))
    assert read_motifs(tmp_path / "b")[0][0].title == "a table", "a title written by hand is kept"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"format": 1', '"format": 7', "its format is 7; expected 1"),
        ('"kind": "word"', '"kind": "wrod"', "kind 'wrod'; expected identifier, number"),
        ('"repeat_of": 0', '"repeat_of": 4', "slot 4 must repeat one that is no repeat"),
        ('"skeleton": [0, ', '"skeleton": [0, 0, ', "must name each of its 6 slots once"),
        ('"cast": [', '"cats": [', "motif_0: missing or unknown: cast, cats"),
        ('"INFO"', '""', "slot 0 needs values that are not empty"),
        ('"motifs": [', '"motifs": "', "is not a motif file"),
    ],
)
def test_an_edited_file_with_a_mistake_is_refused_in_one_sentence(motifs, tmp_path, old, new, says):
    path = tmp_path / "motifs.json"
    write_motifs(path, motifs, {})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=re.escape(f"synthesis.motifs={path} is not")) as error:
        read_motifs(path)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_rows_and_every_kind_as_many_tokens(corpus, motifs, kind):
    a, b, c = (synthesize(kind, corpus, motifs, 50, seed) for seed in (0, 0, 1))
    assert a.tokens.tobytes() == b.tokens.tobytes() != c.tokens.tobytes()
    assert (a.labels.tolist(), a.sources) == (b.labels.tolist(), b.sources)
    assert (a.tokens.shape, a.tokens.dtype) == ((50, 129), corpus.tokens.dtype)
    assert len(a.labels) == len(a.sources) == len(a.copied) == 50


def test_rows_of_a_motif_are_its_records_with_names_that_no_sample_has(corpus, motifs):
    made = synthesize("motif", corpus, motifs, 60, 0)
    assert made.sources == tuple(made.names[label] for label in made.labels)
    assert set(made.sources) == {one.name for one in motifs}, "each has its share"
    for label, tokens in zip(made.labels, made.tokens, strict=True):
        motif, text = motifs[label], "".join(corpus.decode(tokens))
        groups = [f"(?P<s{k}>.+?)" if slot.kind == "span" else f"(?P<s{k}>\\w+)"
                  for k, slot in enumerate(motif.slots)]  # fmt: skip
        pattern = "".join(re.escape(p) if isinstance(p, str) else groups[p] for p in motif.skeleton)
        if motif.slots[0].kind == "span":
            pattern += "(?P=s0)"
        record = re.match(pattern, text, re.DOTALL)
        assert record, (motif.name, text)
        for k, slot in enumerate(motif.slots):
            if slot.kind == "repeat":
                assert record[f"s{k}"] == record[f"s{slot.repeat_of}"]
            elif slot.kind == "word":
                assert record[f"s{k}"] in slot.values
            elif slot.kind == "identifier":
                assert record[f"s{k}"] not in slot.values


def test_motifs_of_made_rows_are_the_motifs_they_were_made_from(corpus, motifs):
    made = synthesize("motif", corpus, motifs, 120, 0)
    rows = replace(corpus, tokens=made.tokens, held_out=np.arange(0))
    seen = motifs_of(list(records(rows, np.arange(120))), np.arange(120), [], least=2)
    names = {braces(one): one for one in motifs}
    right = [i for one in seen for i in one.sample_ids
             if names.get(braces(one)) is motifs[made.labels[i]]]  # fmt: skip
    assert len(right) > 2 / 3 * 120


def test_each_control_destroys_what_it_says_and_no_more(corpus, motifs):
    made = {kind: synthesize(kind, corpus, motifs, 80, 0) for kind in KINDS}
    nats = {kind: repetition(one.tokens.astype(np.int64), corpus.counts).sum(1).mean()
            for kind, one in made.items()}  # fmt: skip
    tokens = {kind: np.sort(one.tokens.ravel()).tolist() for kind, one in made.items()}
    assert tokens["shuffled"] == tokens["motif"]
    assert nats["shuffled"] < 0.02 * nats["motif"]
    assert nats["repetition"] > nats["motif"] > nats["random"]
    _, _, covered = tandem(made["repetition"].tokens, 2)
    assert (covered == 129).all()
    assert not np.isin(made["repetition"].tokens, corpus.special_ids).any()
    ids = [int(source.removeprefix("sample ")) for source in made["random"].sources]
    assert len(set(ids)) == 80 and not set(ids) & set(corpus.held_out.tolist())
    assert (corpus.tokens[ids] == made["random"].tokens).all()


def test_a_row_is_a_copy_as_far_as_its_long_runs_stand_in_held_out_text():
    rng = np.random.default_rng(0)
    held_out = rng.integers(0, 500, (3, 60))
    rows = rng.integers(500, 900, (4, 60))
    rows[1] = held_out[2]
    rows[2, 10 : 10 + GRAM] = held_out[0, 7 : 7 + GRAM]
    rows[3, 10 : 10 + GRAM - 1] = held_out[0, 7 : 7 + GRAM - 1]  # one token short
    assert copied_share(rows, grams(held_out)).tolist() == [0, 1, GRAM / 60, 0]


def test_a_motif_that_only_copies_held_out_text_is_refused(corpus, motifs):
    text = "".join(corpus.decode(corpus.tokens[corpus.held_out[0]].tolist())).split("|>")[-1]
    slots = (Slot("word", values={"x": 1}),)
    copier = Motif("motif_0", "", (text, 0), slots, text, (1, 1), (1, 1), 1, 1.0, 1.0, 1.0, (0,))
    with pytest.raises(DataError, match="motif_0 gives copies of held-out text only"):
        synthesize("motif", corpus, [copier], 2, 0)
    assert synthesize("motif", corpus, motifs, 50, 0).copied.max() <= COPIED


def test_more_rows_than_the_corpus_has_are_refused(corpus):
    with pytest.raises(DataError, match=r"synthesis\.rows=9000; expected at most the corpus' 864"):
        synthesize("random", corpus, (), 9000, 0)
