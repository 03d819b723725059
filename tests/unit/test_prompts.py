"""Prompts with right and wrong continuations: the measurement, its gradient, and bad files."""

import json

import numpy as np
import pytest
import torch
from derivatives import slope
from families import N_VOCAB
from families import toy as make_toy

from mda.emergence.measure import make_probes, measure
from mda.model.architecture import architecture
from mda.schema import ConfigError, EmergenceConfig, HeadConfig, ModuleConfig, ProbeConfig
from mda.schema.prompts import read_prompts
from mda.unit import measurement
from mda.unit.attention_head import AttentionHeads
from mda.unit.kind import Materials
from mda.unit.module import Modules
from mda.unit.prompts import prompt_objective

PROMPTS = [  # of three lengths
    {"prompt": [5, 6, 7], "right": [8], "wrong": [9]},
    {"prompt": [4, 11], "right": [2, 13], "wrong": [1]},
    {"prompt": [14, 5, 9, 9, 10], "right": [7], "wrong": [6, 6, 12]},
]
ONE_SIDED = [{k: v for k, v in one.items() if k != "wrong"} for one in PROMPTS]


def written(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return {
        "both": written(tmp_path / "both.jsonl", PROMPTS),
        "right": written(tmp_path / "right.jsonl", ONE_SIDED),
    }


def log_probability(model, prompt, continuation):
    """Of a continuation, token by token, from the logits of one sequence without padding."""
    total = 0.0
    for n, token in enumerate(continuation):
        before = torch.tensor([[*prompt, *continuation[:n]]])
        total += model(before).logits[0, -1].double().log_softmax(-1)[token]
    return total


def contrasts(model, lines):
    return [
        log_probability(model, one["prompt"], one["right"])
        - (log_probability(model, one["prompt"], one["wrong"]) if "wrong" in one else 0)
        for one in lines
    ]


@pytest.mark.parametrize("case", ["neox", "llama groups of 3", "gemma2"])
@pytest.mark.parametrize(("file", "lines"), [("both", PROMPTS), ("right", ONE_SIDED)])
def test_the_measurement_is_the_mean_log_probability_ratio(
    case, file, lines, files, corpus, monkeypatch
):
    monkeypatch.setattr(measurement, "CHUNK", 4)
    model = make_toy(case)
    objective = prompt_objective(files[file], "unit.probe.file", corpus)
    expected = [value.item() for value in contrasts(model, lines)]
    assert objective.contrasts(model).tolist() == pytest.approx(expected, rel=1e-9)
    assert objective.value(model) == pytest.approx(np.mean(expected), rel=1e-9)
    assert objective.differentiable(model).item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_the_contrast_of_single_tokens_is_the_difference_of_their_logits(tmp_path, corpus):
    lines = [{"prompt": [5, 6, 7], "right": [8], "wrong": [9]}]
    objective = prompt_objective(written(tmp_path / "one.jsonl", lines), "key", corpus)
    model = make_toy("neox")
    logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    assert objective.value(model) == pytest.approx((logits[8] - logits[9]).item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["heads", "modules"])
def test_gradients_are_the_slopes_of_the_ratio_itself(kind, files, corpus):
    """By finite differences of the log-probabilities computed here."""
    model, probe = make_toy("neox"), ProbeConfig(target="prompts", file=files["both"])
    materials = Materials(corpus, architecture(model))
    made = AttentionHeads(HeadConfig(probe=probe), materials)
    if kind == "modules":
        made = Modules(ModuleConfig(probe=probe), materials)
    units = made.units([])
    gradients = made.gradients(model, units)

    def f():
        with torch.no_grad():
            return torch.stack(contrasts(model, PROMPTS)).mean().item()

    assert made.measurements(model, units).tolist() == pytest.approx([f()] * len(units))
    for block in list(gradients)[:4]:
        own_IJ = gradients[block][0]
        found = slope(model, block, 0, own_IJ / own_IJ.norm(), f)
        assert found == pytest.approx(own_IJ.norm().item(), rel=1e-6)


def test_what_the_probe_reads_is_the_right_continuations_without_padding(files, corpus):
    model, probe = make_toy("neox"), ProbeConfig(target="prompts", file=files["both"])
    made = AttentionHeads(HeadConfig(probe=probe), Materials(corpus, architecture(model)))
    found = [sequence.tolist() for sequence in made.query()]
    assert found == [one["prompt"] + one["right"] for one in PROMPTS]


def test_a_curve_has_the_contrast_and_its_standard_error(files, corpus):
    model = make_toy("neox").float()
    row = measure(model, make_probes(corpus, EmergenceConfig(length=4, prompts=files["both"])))
    expected = torch.stack(contrasts(model, PROMPTS)).detach().numpy()
    assert row["emergence/prompts"] == pytest.approx(expected.mean(), rel=1e-4)
    error = expected.std(ddof=1) / 3**0.5
    assert row["emergence/prompts_se"] == pytest.approx(error, rel=1e-4)
    assert "emergence/prompts" not in measure(model, make_probes(corpus, EmergenceConfig(length=4)))


BAD = {
    "no JSON": ("{prompt: 1}", "line 2: it is no JSON; expected a JSON object such as"),
    "no object": ("[1, 2]", r"line 2: \[1, 2\] is invalid; expected a JSON object"),
    "an unknown key": (
        '{"prompt": [1], "right": [2], "wrng": [3]}',
        r"line 2: wrng is invalid; expected prompt, right, wrong \(did you mean wrong\?\)",
    ),
    "no right one": ('{"prompt": [1], "wrong": [2]}', "line 2: it has no right; expected "),
    "an empty prompt": (
        '{"prompt": "", "right": [2]}',
        'line 2: prompt="" is invalid; expected a',
    ),
    "a number": ('{"prompt": [1], "right": 2}', "line 2: right=2 is invalid; expected a text or"),
    "a negative id": ('{"prompt": [1], "right": [-2]}', r"line 2: right=\[-2\] is invalid"),
    "a switch": ('{"prompt": [1], "right": [true]}', r"line 2: right=\[true\] is invalid"),
    "twice the same": (
        '{"prompt": [1], "right": [2], "wrong": [2]}',
        "line 2: right and wrong are",
    ),
    "no wrong one where others have": (
        '{"prompt": [1], "right": [2]}',
        "line 2: no wrong continuation is invalid; expected one in every line, or in none",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_refused_by_file_and_number(case, tmp_path):
    line, said = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(PROMPTS[0])}\n{line}\n")
    for make, key in (
        (lambda: ProbeConfig(target="prompts", file=str(path)), "unit.probe.file"),
        (lambda: EmergenceConfig(prompts=str(path)), "emergence.prompts"),
    ):
        with pytest.raises(ConfigError, match=rf"^{key}={path}, {said}"):
            make()


def test_a_file_without_lines_and_one_that_is_not_there_are_refused(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(ConfigError, match="has no lines; expected at least one prompt"):
        read_prompts(str(empty), "unit.probe.file")
    with pytest.raises(ConfigError, match="No such file or directory; expected a file of JSON"):
        read_prompts(str(tmp_path / "none.jsonl"), "unit.probe.file")
    empty.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is no UTF-8; expected a file of JSON lines"):
        read_prompts(str(empty), "unit.probe.file")


def test_tokens_that_the_data_do_not_have_are_refused(tmp_path, corpus):
    large = written(tmp_path / "large.jsonl", [{"prompt": [1], "right": [N_VOCAB]}])
    with pytest.raises(
        ConfigError, match=rf"line 1: token {N_VOCAB} is invalid; expected ids from"
    ):
        prompt_objective(large, "unit.probe.file", corpus)
    text = written(tmp_path / "text.jsonl", [{"prompt": "a", "right": "b"}])
    with pytest.raises(ConfigError, match="'a' is invalid; expected token ids, as these data have"):
        prompt_objective(text, "unit.probe.file", corpus)
    long = written(tmp_path / "long.jsonl", [{"prompt": [1] * 8, "right": [2, 3]}])
    assert prompt_objective(long, "key", corpus, longest=10).n == 1
    with pytest.raises(ConfigError, match="line 1: 10 tokens with a continuation is invalid; exp"):
        prompt_objective(long, "key", corpus, longest=9)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": "prompts"}, r"unit\.probe\.file=null is invalid; expected a file of prompts"),
        ({"file": "x.jsonl"}, r"unit\.probe\.file=x\.jsonl is invalid; .* else null"),
    ],
)
def test_a_file_and_its_target_belong_together(settings, said):
    with pytest.raises(ConfigError, match=said):
        ProbeConfig(**settings)
