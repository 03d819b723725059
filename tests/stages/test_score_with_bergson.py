"""What is written for bergson: the model, the window in stream order, and the measurement."""

import json

import numpy as np
import pytest
import score_with_bergson
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mda import pipeline
from mda.schema import ConfigError
from mda.unit.measurement import TokenObjective


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_the_windows_in_stream_order_and_labels_are_what_the_unit_measures(
    context_of, tmp_path
):
    context = context_of("estimator=random")
    tokens = score_with_bergson.export(context, tmp_path)
    found = pipeline.trace(context)
    ids = found.traced.scores.sample_ids
    window = np.array([line["input_ids"] for line in lines(tmp_path / "window.jsonl")])
    np.testing.assert_array_equal(window, found.corpus.rows(ids))

    rows = lines(tmp_path / "query.jsonl")
    asked, labels = (torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels"))
    half = asked.shape[1] // 2  # the first copy, whose losses do not count
    assert (labels[:, : half + 1] == -100).all()
    assert torch.equal(labels[:, half + 1 :], asked[:, half + 1 :])
    assert torch.equal(asked[:, half:-1], asked[:, :half])

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").double()
    with torch.no_grad():
        logits = model(asked).logits[:, half:-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), asked[:, half + 1 :].flatten())
    (f,) = found.unit.kind.measurements(found.base.model(40).double(), found.unit.units[:1])
    assert float(losses) == pytest.approx(-float(f), rel=1e-6)
    assert model.config.max_position_embeddings == tokens == 32 * max(window.shape[1], 2 * half + 1)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) >= found.corpus.vocab_size


def test_a_measurement_that_labels_cannot_say_is_refused(context_of, tmp_path):
    with pytest.raises(ConfigError, match=r"measured by activations or attention.*target=copy"):
        score_with_bergson.export(context_of("unit=previous_token_head"), tmp_path)
    weights = torch.tensor([[0.0, -1.0, -2.0]])
    with pytest.raises(ConfigError, match="one weight below 0"):
        score_with_bergson.labels_of(TokenObjective(torch.ones(1, 4, dtype=torch.long), weights))
