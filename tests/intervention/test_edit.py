"""What an edited stream is, checked by hand and by what every edit must conserve."""

from collections import Counter

import numpy as np
import pytest

from mda.intervention.changes import (
    ACTIONS,
    augment,
    control,
    insert,
    mask_tokens,
    remove,
    save_changes,
    spans,
)
from mda.intervention.edit import edit
from mda.types import Changes, Scores, Stream

START, STEPS, BATCH = 100, 30, 4
UNUSED = np.arange(5000, 5100)


def make_base(steps=STEPS, seed=0) -> Stream:
    n = steps * BATCH
    return Stream(
        start=START,
        batch_size=BATCH,
        offsets=np.arange(0, n + 1, BATCH, dtype=np.int64),
        sample_ids=np.random.default_rng(seed).permutation(n).astype(np.int64),
        weights=np.ones(n, dtype=np.float32),
    )


def scores_of(base: Stream) -> Scores:
    n = len(base.sample_ids)
    return Scores(
        sample_ids=base.sample_ids,
        steps=np.repeat(np.arange(base.start, base.end), np.diff(base.offsets)),
        values=np.zeros((n, 1), np.float32),
        units=("L0H0",),
        losses=np.zeros(n, np.float32),
    )


def make_changes(action: str, base: Stream, n=17, seed=0) -> Changes:
    """Changes of each kind over the window [105, 125)."""
    rng = np.random.default_rng(seed)
    scores = scores_of(base)
    inside = scores.sample_ids[(scores.steps >= 105) & (scores.steps < 125)]
    chosen = rng.choice(inside, n, replace=False)
    if action == "none":
        return control(105, 125)
    if action in ("mask", "drop", "replace"):
        return remove(scores, chosen, 105, 125, action, unused=UNUSED, seed=seed)
    if action == "insert":
        return insert(UNUSED[:n], 105, 125, at_step=110, per_step=3)
    if action in ("mask_tokens", "spans"):  # two tokens of each sample
        at = np.searchsorted(scores.sample_ids, chosen, sorter=np.argsort(scores.sample_ids))
        steps = scores.steps[np.argsort(scores.sample_ids)[at]]
        tokens = np.repeat(chosen, 2), np.repeat(steps, 2), np.tile([3, 8], n)
        if action == "mask_tokens":
            return mask_tokens(*tokens, 105, 125)
        return spans(*tokens, rng.integers(50, size=2 * n), 105, 125, first_id=5000)
    return augment(scores, chosen, 105, 125, action, weight=2.5)


def ids(stream: Stream) -> Counter:
    return Counter(stream.sample_ids.tolist())


FOLLOWING = np.arange(9000, 9100)


def test_mask_by_hand():
    base = make_base(3)
    scores = scores_of(base)
    chosen = base.sample_ids[[1, 6]]
    out = edit(remove(scores, chosen, START, START + 3), base)
    assert np.array_equal(out.sample_ids, base.sample_ids)
    assert out.weights.tolist() == [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert out.weights.dtype == np.float32 and base.weights.min() == 1


def test_drop_by_hand():
    base = make_base(3)
    out = edit(remove(scores_of(base), base.sample_ids[[1, 6]], START, START + 3, "drop"), base,
               following=np.array([901, 902, 903]))  # fmt: skip
    rows = base.sample_ids.tolist()
    assert out.sample_ids.tolist() == [rows[0], *rows[2:6], *rows[7:], 901, 902]
    assert np.array_equal(out.offsets, base.offsets)


def test_duplicate_by_hand():
    base = make_base(3)
    out = edit(augment(scores_of(base), base.sample_ids[[5, 6]], START, START + 3), base)
    rows = base.sample_ids.tolist()
    assert out.at(START)[0].tolist() == rows[:4]
    assert out.at(START + 1)[0].tolist() == [*rows[4:8], rows[5], rows[6]]
    assert out.at(START + 2)[0].tolist() == rows[8:]
    assert out.batch_size == BATCH


def test_insert_by_hand():
    base = make_base(3)
    out = edit(insert(np.array([7, 7, 9]), START, START + 3, START + 1, per_step=2), base)
    assert out.at(START + 1)[0].tolist() == [*base.at(START + 1)[0].tolist(), 7, 7]
    assert out.at(START + 2)[0].tolist() == [*base.at(START + 2)[0].tolist(), 9]


def test_control_is_the_base_byte_for_byte():
    base = make_base()
    out = edit(make_changes("none", base), base)
    for name in ("offsets", "sample_ids", "weights"):
        ours, theirs = getattr(out, name), getattr(base, name)
        assert ours.tobytes() == theirs.tobytes() and ours.dtype == theirs.dtype
    assert (out.start, out.batch_size) == (base.start, base.batch_size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("action", ACTIONS)
def test_the_multiset_of_samples_changes_by_the_edit_only(action, seed):
    base = make_base(seed=seed)
    changes = make_changes(action, base, seed=seed)
    before, after, edited = ids(base), ids(edit(changes, base, FOLLOWING)), Counter()
    edited.update(changes.sample_ids.tolist())
    named = Counter(set(changes.sample_ids.tolist()))
    expected = {
        "none": before,
        "mask": before,
        "mask_tokens": before,
        "spans": before - named + Counter(range(5000, 5017)),
        "upweight": before,
        "duplicate": before + edited,
        "insert": before + edited,
        "drop": before - edited + Counter(FOLLOWING[:17].tolist()),
        "replace": before - edited + Counter(changes.replacements.tolist()),
    }[action]
    assert after == expected


@pytest.mark.parametrize("action", ACTIONS)
def test_the_base_stream_is_left_alone(action):
    base, copy = make_base(), make_base()
    edit(make_changes(action, base), base, FOLLOWING)
    for name in ("offsets", "sample_ids", "weights"):
        assert np.array_equal(getattr(base, name), getattr(copy, name))


@pytest.mark.parametrize("action", ["mask", "upweight", "replace", "duplicate", "insert",
                                    "mask_tokens", "spans"])  # fmt: skip
def test_unedited_samples_keep_step_place_and_weight(action):
    base = make_base()
    changes = make_changes(action, base)
    out = edit(changes, base)
    edited = set(zip(changes.steps.tolist(), changes.sample_ids.tolist(), strict=True))
    for step in range(base.start, base.end):
        was, _ = base.at(step)
        now, weights = out.at(step)
        for place, sample in enumerate(was.tolist()):
            if (step, sample) not in edited or action in ("duplicate", "insert"):
                assert now[place] == sample and weights[place] == 1


@pytest.mark.parametrize("action", ["mask", "replace", "drop"])
def test_removal_takes_exactly_the_chosen_samples_out_of_training(action):
    base = make_base()
    changes = make_changes(action, base)
    out = edit(changes, base, FOLLOWING)
    trained = set(out.sample_ids[out.weights > 0].tolist())
    assert not trained & set(changes.sample_ids.tolist())
    assert set(base.sample_ids.tolist()) - set(changes.sample_ids.tolist()) <= trained
    assert out.end == base.end and np.array_equal(out.offsets, base.offsets)


def test_replace_and_drop_keep_the_number_of_trained_tokens():
    base = make_base()
    for action in ("replace", "drop"):
        out = edit(make_changes(action, base), base, FOLLOWING)
        assert out.weights.sum() == base.weights.sum()


def test_drop_leaves_what_came_before_and_keeps_the_order():
    base = make_base()
    changes = make_changes("drop", base)
    out = edit(changes, base, FOLLOWING)
    stream = [i for i in [*base.sample_ids.tolist(), *FOLLOWING] if i not in changes.sample_ids]
    assert out.sample_ids.tolist() == stream[: len(base.sample_ids)]
    untouched = (changes.steps.min() - START) * BATCH
    assert np.array_equal(out.sample_ids[:untouched], base.sample_ids[:untouched])


def test_a_duplicate_weighs_as_much_as_weight_two():
    base = make_base()
    scores = scores_of(base)
    chosen = base.sample_ids[40:50]
    twice = edit(augment(scores, chosen, 105, 125), base)
    heavy = edit(augment(scores, chosen, 105, 125, "upweight", weight=2.0), base)
    for step in range(base.start, base.end):
        totals = []
        for stream in (twice, heavy):
            total: dict[int, float] = {}
            for sample, weight in zip(*stream.at(step), strict=True):
                total[int(sample)] = total.get(int(sample), 0.0) + float(weight)
            totals.append(total)
        assert totals[0] == totals[1]


@pytest.mark.parametrize("action", ACTIONS)
def test_changes_survive_their_csv(action, tmp_path):
    changes = make_changes(action, make_base())
    if action == "upweight":
        changes.weights[:] = np.float32(1 / 3)
    save_changes(changes, tmp_path / "edit.csv")
    head, _, *lines = (tmp_path / "edit.csv").read_text().splitlines()
    assert head == f"# action={changes.action} start={changes.start} end={changes.end}"
    columns = list(zip(*(line.split(",") for line in lines), strict=True)) or [()] * 6
    names = ("sample_ids", "steps", "weights", "replacements", "positions", "tokens")
    for name, written in zip(names, columns, strict=True):
        expected = getattr(changes, name)
        assert np.array_equal(np.array(list(map(float, written)), expected.dtype), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["edit.csv"]


def test_bad_edits_give_one_clear_error():
    base = make_base()
    scores = scores_of(base)
    some = base.sample_ids[24:27]
    cases = [
        (lambda: remove(scores, some, 110, 120), "seen at step 106, outside the window"),
        (lambda: remove(scores, np.array([777]), 105, 120), "sample 777 has no score"),
        (lambda: remove(scores, some, 105, 120, "erase"), "action='erase'"),
        (lambda: remove(scores, some, 105, 120, "replace"), "there are 0"),
        (lambda: remove(scores, some, 105, 120, "replace", unused=some), "there are 0"),
        (lambda: augment(scores, some, 105, 120, "upweight", weight=0.0), "weight=0.0"),
        (lambda: augment(scores, some, 105, 120, "upweight", weight=float("nan")), "weight=nan"),
        (lambda: augment(scores, some, 105, 120, "mask"), "action='mask'"),
        (lambda: control(120, 120), r"window \[120, 120\) is empty"),
        (lambda: insert(some, 105, 120, 104, 1), "at_step=104"),
        (lambda: insert(some, 105, 120, 119, 2), "window ends at 120"),
        (lambda: insert(some, 105, 120, 110, 0), "per_step=0"),
        (lambda: insert(some[:0], 105, 120, 110, 1), "no rows"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


def test_an_edit_that_does_not_fit_the_stream_is_refused():
    base = make_base()
    n = np.array([3, 3])
    twice = base.sample_ids[[40, 40]]

    def changes(action="mask", start=105, end=120, sample_ids=twice, steps=(110, 110), other=-1):
        n = len(sample_ids)
        weights, others, none = np.zeros(n, np.float32), np.full(n, other), np.full(n, -1)
        return Changes(
            action, start, end, np.asarray(sample_ids), np.asarray(steps), weights, others, none,
            none,
        )  # fmt: skip

    cases = [
        (changes(start=90), r"\[90, 120\) is not inside"),
        (changes(end=140), r"\[105, 140\) is not inside"),
        (changes(steps=(104, 110)), "changes step 104"),
        (changes(sample_ids=n + 5000), "sample 5003 is not in the stream's step 110"),
        (changes("duplicate", sample_ids=n + 5000), "sample 5003 is not in"),
        (changes(), f"sample {twice[0]} at step 110 twice"),
        (changes("burn", sample_ids=twice[:1], steps=(110,)), "action='burn'"),
        (changes("none"), "lists 2 samples"),
        (changes("replace", sample_ids=twice[:1], steps=(110,)), "no replacement"),
        (changes("replace", sample_ids=twice[:1], steps=(110,), other=3), "already in the stream"),
        (changes("replace", sample_ids=base.sample_ids[40:42], steps=(110, 110), other=5000),
         "replaces two others"),
        (changes("drop", sample_ids=twice[:1], steps=(110,)),
         "the stream has 0 left after step 130"),
    ]  # fmt: skip
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            edit(bad, base)


def test_drop_moves_weights_along_with_their_samples():
    base = make_base(3)
    base.weights[:] = np.arange(12)
    out = edit(
        remove(scores_of(base), base.sample_ids[[1, 6]], START, START + 3, "drop"), base, FOLLOWING
    )
    assert out.weights.tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10, 11, 1, 1]
