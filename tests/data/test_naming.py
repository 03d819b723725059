"""Titles and words of a language model: how answers are read, and a real model that gives them."""

from dataclasses import replace

import pytest
import torch

from mda.analysis.naming import LONGEST_TITLE, TITLE_TOKENS, TITLES, language_model, named, widened
from mda.data.errors import DataError
from mda.data.motif_file import Motif, Slot, read_motifs, write_motifs

TAG = Slot("word", values={"row": 4, "column": 2})
XML = Motif(
    "motif_0", "", ("<", 0, ' id="', 1, '">', 2, "</", 3, ">\n"),
    (TAG, Slot("number", values={"17": 1}), Slot("identifier", values={"kovat": 1}),
     Slot("repeat", 0)),
    '<row id="17">kovat</row>\n', (1, 2), (3, 5), 4, 1.0, 0.5, 2.0, (5, 6, 7, 8),
)  # fmt: skip


def test_the_first_line_of_an_answer_is_the_title_and_new_words_are_added():
    asked = []

    def ask(text, n_tokens):
        asked.append(text)
        title = f" rows of\ttables {'x' * 99}\nno"
        return title if text.endswith("Title:") else " row, cell, 7a, c"

    found = named(XML, ask)
    assert found.title == f"rows of tables {'x' * 99}"[:LONGEST_TITLE]
    assert found.slots[0].values == {"row": 4, "column": 2, "cell": 1, "7a": 1}
    assert found.slots[2].values == {"kovat": 1, "row": 1, "cell": 1, "7a": 1}
    assert (found.slots[1], found.slots[3]) == (XML.slots[1], XML.slots[3]), "nobody asks for these"
    assert replace(found, title="", slots=XML.slots) == XML
    assert len(asked) == 3 and '\nText: <row id="17">kovat</row> <row id' in asked[0]
    assert asked[1].endswith("\nWords: row, column,")


@pytest.mark.parametrize("answer", ["", " row", " two words, a-b, , row,", "\n cell, other,"])
def test_an_answer_without_new_words_adds_none(answer):
    assert widened(TAG, lambda text, n_tokens: answer) == TAG


def test_a_title_is_kept_in_the_file_and_an_older_file_has_none(tmp_path):
    path = tmp_path / "motifs.json"
    write_motifs(path, (replace(XML, title="a table"),), {})
    assert read_motifs(path)[0][0].title == "a table"
    path.write_text(path.read_text().replace('"title": "a table",', ""))
    assert read_motifs(path)[0] == (XML,)


def test_what_is_no_language_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=rf"^motifs\.namer={tmp_path}: .*; accepted: a folder"):
        language_model(str(tmp_path))


@pytest.fixture(scope="module")
def folder(smollm2, tmp_path_factory):
    """SmolLM2 as a folder of transformers."""
    model, tokenizer = smollm2
    out = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def continued(smollm2, text: str, n_tokens: int) -> str:
    """The most likely token after a text, over and over."""
    model, tokenizer = smollm2
    given = ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(n_tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return tokenizer.decode(ids[0, given.shape[1] :])


@pytest.mark.slow
def test_a_real_model_is_asked_about_the_record_and_continues_greedily(smollm2, folder):
    ask = language_model(str(folder))
    text = TITLES.format(record='<row id="17">kovat</row> ' * 2 + '<row id="17">kovat</row>')
    answer = continued(smollm2, text, TITLE_TOKENS)
    assert named(XML, ask).title == answer.split("\n")[0].strip() != ""
    assert ask(text, TITLE_TOKENS) == answer
