"""Every kind of arm through the pipeline, in one process, at smoke size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mda import pipeline
from mda.config import compose
from mda.data.stream import stream_order
from mda.estimator.repetition import repetition
from mda.intervention.choice import select
from mda.schema import ConfigError
from mda.stages.context import Context
from mda.stages.editing import make_edit


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")

    def run(*overrides: str) -> pipeline.Arm:
        fixed = ("experiment=smoke", "intervention.window=[20,40]", f"output_dir={out}")
        context = Context(config := compose([*fixed, *overrides]), Context.of(config).store)
        quiet = Context(config, context.store, progress=False)
        return pipeline.arm(quiet, quiet)

    return run


def insert(tmp_path, rows: np.ndarray, per_step: int) -> tuple[str, ...]:
    """Overrides that insert rows, so many in a step."""
    np.save(tmp_path / "rows.npy", rows)
    return (
        "intervention=augment", "intervention.mode=insert", f"intervention.per_step={per_step}",
        f"intervention.rows={tmp_path / 'rows.npy'}",
    )  # fmt: skip


def refused_before(kind: str, out, *overrides: str, says: str) -> None:
    """The pipeline says so, and has nothing of a kind in its store."""
    first = ("experiment=smoke", "intervention.window=[20,40]", f"output_dir={out}")
    config = compose([*first, *overrides])
    with pytest.raises(ConfigError, match=says):
        pipeline.arm(Context(config, Context.of(config).store, progress=False))
    assert not (out / "store" / kind).exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("intervention=augment",),
        ("intervention=augment", "intervention.mode=upweight", "intervention.weight=3"),
        ("intervention=remove", "intervention.mode=drop"),
        ("intervention=remove", "intervention.mode=replace"),
        ("intervention=remove", "intervention.select=band", "intervention.band=[0.5,0.6]"),
        ("intervention=remove", "intervention.match=label"),
        ("estimator=random",),
        ("estimator=tracin", "estimator.adam_preconditioning=true"),
        ("estimator.labels=empirical", "unit.blocks=[qk]", "unit.biases=true"),
        ("unit=previous_token_head", "unit.probe.length=16", "intervention.select=bottom"),
        ("unit.locate=mechanism",),
        ("unit.locate=mechanism", "unit=previous_token_head", "unit.probe.length=16"),
    ],
    ids=" ".join,
)
def test_every_kind_of_arm_edits_and_differs_from_control(arm, overrides):
    control, found = arm("intervention=control"), arm(*overrides)
    assert len(found.edited.changes.sample_ids) == 8
    assert found.base.fingerprint == control.base.fingerprint
    assert found.run.fingerprint != control.run.fingerprint
    assert found.run.curve[-1] != control.run.curve[-1]


@pytest.mark.parametrize("clip", [0.05, 100])
@pytest.mark.parametrize("mode", ["mask", "drop"])
def test_a_scoped_update_is_the_edited_one_in_some_parameters_and_the_unedited_one_elsewhere(
    arm, clip, mode
):
    """From the same weights and moments, whether both gradients are clipped or neither is."""
    one = ("intervention.window=[20,21]", "unit.locate=L1H1", f"training.grad_clip={clip}")
    remove = ("intervention.fraction=0.5", f"intervention.mode={mode}", "estimator=random")

    def after(*overrides: str) -> dict[str, torch.Tensor]:
        return dict(arm(*one, *overrides).run.model(21).named_parameters())

    edited, unedited = after(*remove), after("intervention=control")
    unit, others = (after(*remove, f"intervention.scope={s}") for s in ("unit", "others"))
    own = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in edited.items()}
    home = "gpt_neox.layers.1.attention"
    own[f"{home}.query_key_value.weight"][24:48] = True  # of two heads of 8, each with q, k and v
    own[f"{home}.dense.weight"][:, 8:] = True
    for name, mask in own.items():
        assert torch.equal(unit[name], torch.where(mask, edited[name], unedited[name])), name
        assert torch.equal(others[name], torch.where(mask, unedited[name], edited[name])), name
    changed = sum((edited[name] != unedited[name]).sum() for name in own)
    inside = sum((unit[name] != unedited[name]).sum() for name in own)
    assert 0 < inside < changed


def test_an_arm_trains_on_unedited_after_its_window(arm):
    """The control goes on as the base run, to the last bit; an edited arm stays another."""
    words = ("estimator=random", "intervention.fraction=0.3")
    control, short = arm("intervention=control", "intervention.until=60"), arm(*words)
    longer = arm(*words, "intervention.until=60", "intervention.scope=unit")
    plain = arm(*words, "intervention.until=60")
    assert [row["step"] for row in plain.run.curve] == [20, 30, 40, 50, 60]
    columns = "emergence/prefix_matching/L1H0", "emergence/copy_gain"
    first, whole = ([[row[c] for c in columns] for row in one.run.curve] for one in (short, plain))
    assert first == whole[:3] and len(first) == 3 and "val/loss" in plain.run.curve[2]
    runs = control.base, control.run, plain.run, longer.run
    base, unedited, edited, scoped = (
        load_file(run.folder / "checkpoints/step_60/model.safetensors") for run in runs
    )
    assert all(torch.equal(base[name], unedited[name]) for name in base)
    for other in (edited, scoped):
        assert any((other[name] != base[name]).any() for name in base)
    assert short.run.checkpoints == plain.run.checkpoints == (40,)
    with pytest.raises(ConfigError, match=r"intervention.until=60 is invalid; expected null with"):
        arm("intervention.mode=drop", "intervention.until=60")
    with pytest.raises(ConfigError, match=r"intervention.until=40 is invalid; expected a step af"):
        arm("intervention.until=40")


def test_an_edit_s_scope_tells_arms_apart_and_reaches_inserted_rows_too(arm, tmp_path):
    rows = np.random.default_rng(0).integers(2, 250, (4, 33)).astype(np.uint16)
    added = insert(tmp_path, rows, 2)
    arms = [arm(*added, *more) for more in ((), *((f"intervention.scope={s}",)
            for s in ("all", "unit", "others")))]  # fmt: skip
    keys = [found.run.fingerprint for found in arms]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert len({found.run.curve[-1]["val/loss"] for found in arms}) == 3


def test_an_arm_keeps_the_study_that_it_was_first_begun_for(arm):
    """Whatever study is asked for when it is found again: nobody can register what was seen."""
    edit = ("estimator=random", "intervention.fraction=0.15")
    for study in ("fresh_seeds", "tokens"):
        manifest = arm(f"study={study}", *edit).run.artifact.manifest
        assert manifest["study"] == {"name": "fresh_seeds", "hash": "709341fbbed795d2"}
    exploratory = arm("study=causal_grid", *edit, "estimator.seed=1")
    assert exploratory.run.artifact.manifest["study"] is None


def test_held_out_text_is_measured_as_often_as_is_asked_of_arms(arm):
    """Whether ICL moves along with the unit is seen between the ends of the window."""
    few, every = (
        arm("intervention=control"),
        arm("intervention=control", "emergence.arm_held_out_every=1"),
    )
    assert few.base.fingerprint == every.base.fingerprint
    counts = [
        sum(np.isfinite(row.get("emergence/icl_score", np.nan)) for row in found.run.curve)
        for found in (few, every)
    ]
    assert 2 <= counts[0] < counts[1] == len(every.run.curve)


def test_a_matched_set_leaves_targeted_samples_out_or_may_hold_them(arm):
    def samples(fraction: float, *overrides: str) -> set[int]:
        found = arm(f"intervention.fraction={fraction}", *overrides)
        return set(found.edited.changes.sample_ids.tolist())

    without = ("intervention.match=label", "intervention.match_targeted=exclude")
    allowed = ("intervention.match=label", "intervention.match_targeted=allow")
    assert not samples(0.1) & samples(0.1, *without)
    assert 0 < len(samples(0.2) & samples(0.2, *allowed)) < len(samples(0.2))
    with pytest.raises(ConfigError, match=r"allow targeted samples \(intervention.match_targeted"):
        arm("intervention.fraction=0.2", *without)  # most of a label is targeted


def test_what_comes_in_place_of_removed_samples_lies_behind_the_window_in_the_stream(arm):
    """The samples that come next where the stream closes up, and any later ones as replacements."""
    dropped = arm("intervention=remove", "intervention.mode=drop")
    later = stream_order(dropped.corpus, 0)[40 * 4 :]
    assert dropped.edited.stream.sample_ids[-8:].tolist() == later[:8].tolist()
    replaced = arm("intervention=remove", "intervention.mode=replace", "intervention.fraction=1")
    assert len(set(replaced.edited.changes.replacements.tolist())) == 80
    assert set(replaced.edited.changes.replacements.tolist()) <= set(later.tolist())


def test_every_seed_draws_its_own_replacements_for_the_same_samples(arm):
    found = arm("intervention.mode=replace")
    made = {}
    for seed, own in ((0, 0), (1, 0), (1, 1)):
        config = compose([
            "experiment=smoke", "intervention.window=[20,40]", "intervention.mode=replace",
            f"seed={seed}", f"intervention.seed={own}", "data.order_seed=0",
        ])  # fmt: skip
        assert found.traced is not None
        order = replace(found.base.order, seed=seed)
        unit = replace(found.unit, base=replace(found.base, order=order))
        edited = make_edit(config.intervention, unit, found.traced.scores)
        made[seed, own] = edited.changes
    drawn = {seeds: frozenset(changes.replacements.tolist()) for seeds, changes in made.items()}
    assert all(
        np.array_equal(changes.sample_ids, found.edited.changes.sample_ids)
        for changes in made.values()
    )
    assert np.array_equal(made[0, 0].replacements, found.edited.changes.replacements)
    assert len(set(drawn.values())) == 3


def test_an_arm_is_trained_once_however_it_was_chosen(arm):
    first = arm("estimator=random", "estimator.seed=3")
    ids = ",".join(map(str, first.edited.changes.sample_ids))
    again = arm("intervention.select=ids", f"intervention.ids=[{ids}]")
    assert not again.run.built
    assert again.run.fingerprint == first.run.fingerprint


def test_upweighting_twice_is_a_duplicate(arm):
    one = arm("intervention=augment", "intervention.mode=duplicate")
    two = arm("intervention=augment", "intervention.mode=upweight", "intervention.weight=2")
    assert np.array_equal(one.edited.changes.sample_ids, two.edited.changes.sample_ids)
    a, b = one.run.curve[-1]["val/loss"], two.run.curve[-1]["val/loss"]
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize(("at_step", "first"), [("null", 20), ("25", 25)])
def test_inserted_rows_are_trained_on(arm, tmp_path, at_step, first):
    rows = np.random.default_rng(0).integers(2, 250, (10, 33), dtype=np.uint16)
    found = arm(*insert(tmp_path, rows, per_step=4), f"intervention.at_step={at_step}")
    extra = dict(zip(range(first, first + 3), (4, 4, 2), strict=True))
    sizes = np.diff(found.edited.stream.offsets)
    assert sizes.tolist() == [4 + extra.get(step, 0) for step in range(20, 40)]
    ids, _ = found.edited.stream.at(first)
    assert found.edited.corpus.rows(ids[-4:]).tolist() == rows[:4].tolist()


ALL_LEFT = "data.n_sequences=280"  # 8 after the run's last step
NOT_ENOUGH = "is invalid; expected an edit of at most 8 samples, all that come after step 60; here"
WHOLE = "intervention.fraction=1"
AUTO = "intervention.window=auto"
LATE = "intervention.window=[30,60]"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            (AUTO, "intervention.label=poem"),
            r"intervention\.label=poem is invalid; expected null, ",
        ),
        ((AUTO, "intervention=augment", "intervention.label=poem"), r"intervention\.label=poem is"),
        (("intervention.select=ids", "intervention.ids=[399]"), "intervention=remove: .* 399, are"),
        (
            (LATE, WHOLE, ALL_LEFT, "intervention.mode=replace"),
            f"mode=replace {NOT_ENOUGH} it is 120",
        ),
        ((LATE, WHOLE, ALL_LEFT, "intervention.mode=drop"), f"mode=drop {NOT_ENOUGH} it is 120"),
        (("intervention.fraction=0.001",), r"intervention=remove: fraction=0\.001 means 0 samples"),
        (
            ("intervention.fraction=0.0001", "intervention.mode=mask_tokens"),
            r"intervention=remove: fraction=0\.0001 means 0 tokens",
        ),
    ],
)
def test_edits_that_no_scores_make_possible_are_refused_before_the_base_run(
    tmp_path, overrides, says
):
    refused_before("base", tmp_path, *overrides, says=says)


def test_more_inserted_rows_than_the_window_takes_are_refused_before_the_base_run(tmp_path):
    rows = insert(tmp_path, np.full((21, 33), 2, dtype=np.uint16), per_step=1)
    says = "intervention=augment: 21 rows, 1 a step from step 20, need steps up to 41"
    refused_before("base", tmp_path, *rows, says=says)


def test_rows_that_an_automatic_window_lacks_are_missed_before_the_scores(tmp_path):
    own = ("unit=previous_token_head", "unit.locate=L1H0", ALL_LEFT, f"output_dir={tmp_path}")
    config = compose(["experiment=smoke", *own])
    _, base = pipeline.train(Context(config, Context.of(config).store, progress=False))
    values = [row["emergence/previous_token/L1H0"] for row in base.curve]
    own += (AUTO, f"unit.threshold={(min(values) + max(values)) / 2}", WHOLE)
    says = r"intervention\.mode=replace is invalid; expected an edit of at most 8 samples"
    refused_before("scores", tmp_path, *own, "intervention.mode=replace", says=says)


@pytest.mark.parametrize("padding", [-1, -100])
def test_rows_that_cannot_be_inserted_are_refused_before_the_base_run(tmp_path, padding):
    rows = insert(tmp_path, np.full((10, 33), padding, dtype=np.int32), per_step=4)
    says = rf"^intervention\.rows=.*: token id {padding} in row 0"
    refused_before("base", tmp_path, *rows, says=says)


def test_a_set_matched_by_loss_has_the_loss_deciles_of_the_targeted_set(arm):
    found = arm()
    scores, config = found.traced.scores, compose(["intervention.match=loss"]).intervention
    decile = dict(zip(np.argsort(scores.losses, kind="stable"), np.arange(80) // 8, strict=True))
    targeted = np.argsort(-scores.of(found.unit.name), kind="stable")[:8]
    drawn = select(found.corpus, found.unit.name, config, scores, 0)
    places = [scores.sample_ids.tolist().index(sample) for sample in drawn]
    assert sorted(decile[at] for at in places) == sorted(decile[at] for at in targeted)
    assert not set(places) & set(targeted.tolist())


@pytest.mark.parametrize("match", ["repetition", "label+repetition", "repetition+loss"])
def test_a_set_matched_by_repetition_repeats_as_much_as_the_targeted_set(arm, match):
    words = ("estimator=loss", "intervention.match_targeted=allow", "intervention.fraction=0.3")
    targeted, found = arm(*words), arm(*words, f"intervention.match={match}")
    ids = targeted.traced.scores.sample_ids
    tokens, labels = targeted.corpus.rows(ids).numpy(), np.array(targeted.corpus.labels_of(ids))
    counted = repetition(tokens, targeted.corpus.counts).sum(1)
    n = 5 if "loss" in match else 10
    sides = [counted.argsort(kind="stable").argsort() * n // len(ids)]
    if "loss" in match:
        losses = targeted.traced.scores.losses
        sides.append(losses.argsort(kind="stable").argsort() * n // len(ids))
    if "label" in match:
        sides.append(np.unique(labels, return_inverse=True)[1])

    def groups(one) -> list[tuple[int, ...]]:
        chosen = np.isin(ids, one.edited.changes.sample_ids)
        return sorted(map(tuple, np.stack(sides, 1)[chosen].tolist()))

    assert groups(targeted) == groups(found)
    assert set(targeted.edited.changes.sample_ids) != set(found.edited.changes.sample_ids)


def test_scores_without_losses_can_match_none(arm):
    found = arm()
    scores, config = found.traced.scores, compose(["intervention.match=loss"]).intervention
    without = replace(scores, losses=np.full_like(scores.losses, np.nan))
    with pytest.raises(ValueError, match="without samples' losses"):
        select(found.corpus, found.unit.name, config, without, 0)


def test_curvature_is_shared_between_units_and_dampings(arm):
    one = arm()
    folders = one.traced.folder.parent.parent / "curvature"
    before = {path.name for path in folders.glob("*/manifest.json")}
    assert before
    arm("estimator.damping=0.5")
    arm("unit.probe.seed=7")
    assert {path.name for path in folders.glob("*/manifest.json")} == before


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("intervention.window=[21,40]", "training.checkpoint_every=20"), None),
        (("intervention.window=auto",), "intervention.window=auto: .*did not emerge"),
    ],
)
def test_impossible_edits_are_refused_in_one_sentence(arm, overrides, says):
    if says is None:  # the ends of a given window are always kept
        assert arm(*overrides).unit.window.start == 21
        return
    with pytest.raises(ConfigError, match=says):
        arm(*overrides)
