"""What may stand against what: edits of one strength, draws that count once, seeds that are two."""

from pathlib import Path

import numpy as np
import pytest

from mda.analysis.arms import by_arm, run_of
from mda.analysis.effects import pair
from mda.analysis.folders import read_runs
from mda.analysis.headline import headline
from mda.analysis.metrics import measure, references_of
from mda.analysis.table import write_table
from mda.config import compose

INDUCTION, PREVIOUS = ("L1H1", "prefix_matching"), ("L0H1", "previous_token")
NEURON = ("L1N3", "label_auc")
CONTROL = {"name": "control"}


def made_up(name, edit=None, unit=INDUCTION, end=1.0, seed=0, origin=None, able=None, **summary):
    """A run of two measured steps whose numbers all rise from 0 to `end`."""
    settings = {"name": "augment", "mode": "upweight", "fraction": 0.1, "select": "top",
                "match": "none", "weight": 2.0, "n": 8, "seed": 0}  # fmt: skip
    columns = (
        "prefix_matching/L1H1",
        "prefix_matching/L1H0",
        "previous_token/L0H1",
        f"{unit[1]}/{unit[0]}",
    )
    curve = {f"emergence/{column}": np.array([0.0, end]) for column in columns}
    curve |= {
        f"capabilities/{key}": np.array([np.nan, value]) for key, value in (able or {}).items()
    }
    fingerprints = {"base": f"base{seed}", "arm": name} | ({"origin": origin} if origin else {})
    content = {
        "seed": seed,
        "unit": unit[0],
        "heads": [unit[0]],
        "metric": unit[1],
        "threshold": 0.5,
        "window": {"start": 0, "end": 10},
        "intervention": settings | (edit or {}),
        "estimator": {"name": "ekfac", "damping": 0.1, "seed": 0},
        "batch_size": 1,
        "seq_len": 1,
        "fingerprints": fingerprints,
        "results": {},
    }
    return run_of(Path(name), content | summary, {"step": np.array([0.0, 10.0])} | curve)


@pytest.fixture
def read(tmp_path):
    """Runs as a comparison reads them, by the name of their arm's fingerprint."""

    def read_back(*runs):
        write_table(runs, tmp_path)
        return {run.fingerprint: run for run in read_runs([tmp_path])}

    return read_back


def names(runs):
    return sorted(run.fingerprint for run in runs)


@pytest.mark.parametrize(
    ("mode", "key", "low", "high"),
    [("upweight", "weight", 2.0, 8.0), ("spans", "ngram", 3, 5), ("insert", "per_step", 1, 4)],
)
def test_an_edit_is_compared_with_random_ones_of_its_own_strength(read, mode, key, low, high):
    own = {"spans": {"name": "remove", "spans": "fresh"}, "insert": {"rows": "made.npy"}}
    shared = {"mode": mode, **own.get(mode, {})}
    found = read(
        made_up("control", CONTROL),
        *(
            made_up(f"{name}{value}", {**shared, "select": select, key: value, **rows})
            for name, select, rows in (
                ("top", "top", {}),
                ("any", "random", {"rows": "random.npy"} if mode == "insert" else {}),
            )
            for value in (low, high)
        ),
    )
    runs = list(found.values())
    for value in (low, high):
        assert names(references_of(found[f"top{value}"], runs, "random")) == [f"any{value}"]


def test_a_matched_set_is_compared_with_the_unit_that_it_was_drawn_for(read):
    units = {"induction": INDUCTION, "previous": PREVIOUS}
    found = read(
        made_up("control", CONTROL),
        *(made_up(f"top {name}", unit=unit) for name, unit in units.items()),
        *(made_up(f"as {name}", {"match": "label"}, unit) for name, unit in units.items()),
    )
    runs = list(found.values())
    for name in units:
        assert names(references_of(found[f"top {name}"], runs, "matched")) == [f"as {name}"]
    assert found["as induction"].arm != found["as previous"].arm


def test_settings_of_the_unit_tell_arms_apart_and_its_name_does_not(read):
    def settings(blocks, target, locate):
        return {"name": "induction_head", "locate": locate, "blocks": blocks,
                "probe": {"target": target}}  # fmt: skip

    found = read(
        made_up("control", CONTROL),
        made_up("qk", unit_settings=settings(["qk"], "copy", "auto")),
        made_up("v", unit_settings=settings(["v"], "copy", "auto")),
        made_up("named", seed=1, unit_settings=settings(["v"], "copy", "L1H1")),
        made_up("control1", CONTROL, seed=1),
        made_up("before units' settings were kept", seed=1),
    )
    arms = {name: run.arm for name, run in found.items()}
    assert arms["qk"] != arms["v"] == arms["named"]
    assert arms["qk"].name.endswith("unit.blocks=['qk']") and "target" not in arms["qk"].name


def test_a_threshold_of_its_own_counts_for_each_arm(read):
    found = read(
        made_up("control", CONTROL),
        *(made_up(f"from {t}", threshold=t, unit_settings={"threshold": t}) for t in (0.2, 0.6)),
    )
    measured = measure(list(found.values()))
    for threshold in (0.2, 0.6):
        run = found[f"from {threshold}"]
        assert measured.of(run, run).values["onset_step"] == pytest.approx(10 * threshold)
        assert measured.of(found["control"], run).values["onset_step"] == pytest.approx(
            10 * threshold
        )


def test_a_random_draw_that_was_trained_for_two_units_counts_once(read):
    random = {"select": "random"}
    found = read(
        made_up("control", CONTROL),
        made_up("control with neuron", CONTROL, NEURON),
        made_up("top", end=0.9),
        made_up("top neuron", unit=NEURON, end=0.9),
        made_up("draw", random, end=0.3),
        made_up("draw with neuron", random, NEURON, end=0.3),
        made_up("another", random | {"seed": 1}, end=0.4),
    )
    runs = list(found.values())
    measured = measure(runs)
    for name, values in (("top", [0.3, 0.4]), ("top neuron", [0.3])):
        arm = found[name].arm
        (seed,) = pair(measured, arm, by_arm(runs)[arm], "random", "unit").labelled
        assert sorted(seed.reference) == values, "a neuron stands in the curves of its own runs"
    assert found["draw"].arm != found["draw with neuron"].arm, "a head's score, a neuron's AUC"


def test_what_a_model_can_do_is_compared_where_it_was_asked_the_same(read):
    able = {"copy_gain": 2.0, "copy_gain/top_heads": -1.0}
    found = read(
        made_up("control", CONTROL, able=able, capabilities={"prompts": 8}),
        made_up("induction", able=able, capabilities={"prompts": 8}),
        made_up("previous", unit=PREVIOUS, able=able, capabilities={"prompts": 8}),
        made_up("fewer", {"fraction": 0.2}, able=able, capabilities={"prompts": 4}),
    )
    measured = measure(list(found.values()))

    def known(name):
        values = measured.of(found["control"], found[name]).values
        return [key for key in able if values[f"capabilities/{key}"] is not None]

    assert known("induction") == list(able)
    assert known("previous") == ["copy_gain"], "other heads were ablated"
    assert known("fewer") == []


def test_seeds_that_are_copies_of_each_other_are_refused(read):
    runs = [made_up(f"{name}{seed}", edit, seed=seed, origin="same")
            for name, edit in (("control", CONTROL), ("top", {})) for seed in (0, 1)]  # fmt: skip
    with pytest.raises(
        ValueError, match="seeds 0 and 1 are copies of each other: they start from the same"
    ):
        read(*runs)
    read(*(run for run in runs if run.seed == 0))


def test_the_sentence_says_how_much_more_a_sample_weighed(read):
    found = read(made_up("control", CONTROL), made_up("top", {"weight": 0.5}))
    said = headline(measure(list(found.values())), compose(["study=none"]).study)
    assert said.startswith("With 0.5 times the loss of the 8 samples that EK-FAC chose, L1H1 ")


def test_a_training_that_two_units_share_counts_for_each(tmp_path):
    """Repetition picks the same samples for both, and all heads are followed: one training."""
    counted = {"name": "repetition"}
    draw = {"select": "random"}
    runs = [made_up("plain", CONTROL)]
    for unit in (INDUCTION, ("L1H0", "prefix_matching"), PREVIOUS):
        runs.append(made_up("edit", unit=unit, estimator=counted, end=0.5))
        runs.append(made_up("drawn", draw, unit=unit, end=0.9))
    for i, run in enumerate(runs):
        write_table([run], tmp_path / str(i))
    found = read_runs([tmp_path])
    repetition = [run for run in found if run.arm.edit.source == "repetition"]
    assert [(run.unit, run.metric) for run in repetition] == [
        ("L1H0", "prefix_matching"), INDUCTION, PREVIOUS
    ]  # fmt: skip
    assert len({run.arm for run in repetition}) == 3
    drawn = [run for run in found if run.arm.edit.is_random]
    assert sorted(run.metric for run in drawn) == ["prefix_matching", "previous_token"]
    assert len([run for run in found if run.arm.edit.is_control]) == 1
    measured = measure(found)
    for arm, seeds in by_arm(found).items():
        if arm.edit.source == "repetition":
            (labelled,) = pair(measured, arm, seeds, "random", "unit").labelled
            assert (labelled.arm, labelled.reference) == ((0.5,), (0.9,))
