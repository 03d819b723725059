"""Makes an edit plan from scores, and an arm's stream from the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from mda.data.stream import Corpus, schedule_hash
from mda.data.token_files import read_inserted
from mda.estimator.baselines import mixed_seed
from mda.intervention import plan as plans
from mda.intervention.edit import edit
from mda.intervention.select import amount, choose, loss_groups, matched_random, ranked
from mda.intervention.spans import fresh, renamed, within_budget
from mda.intervention.tokens import matched_tokens, random_tokens, top_tokens
from mda.schema import (
    AugmentConfig,
    ConfigError,
    EditConfig,
    InterventionConfig,
    RemoveConfig,
    refuse,
)
from mda.schema.plugins import implementation
from mda.schema.setting import show
from mda.stages.attribution import Traced
from mda.stages.corpus import fetch
from mda.stages.found import NotBuilt, known
from mda.stages.locating import Located
from mda.stages.runs import EditedStream
from mda.stages.stream import Stream
from mda.stages.tokens import TracedTokens
from mda.store import hash_arrays
from mda.types import EditPlan, Schedule, Scores, TokenScores, Window

SPANS = 2  # the number of these draws; random scores of tokens have 1, of samples none


@dataclass(frozen=True)
class Edited:
    """The training data of an arm: the plan, its schedule, and the rows of the schedule."""

    plan: EditPlan
    schedule: Schedule
    corpus: Corpus
    inserted: str | None  # hash of rows from outside the corpus

    @property
    def n_tokens(self) -> int:
        """The number of tokens that the plan edits."""
        n = len(self.plan.sample_ids)
        return n if self.plan.by_token else n * self.corpus.seq_len


def check_edit(
    intervention: InterventionConfig, stream: Stream, steps: tuple[int, int] | None
) -> None:
    """Raises ConfigError for an edit of the window's steps that is impossible for any scores.

    If the window is not known yet (None), only the label and the inserted rows are checked.
    """
    corpus = stream.corpus
    label = getattr(intervention, "label", None)
    if label is not None and label not in corpus.label_names:
        accepted = f"null, or one of the corpus' labels {show(corpus.label_names)}"
        raise refuse("intervention.label", label, accepted)
    if steps is None and intervention.inserted is not None:
        read_inserted(Path(intervention.inserted), corpus.seq_len, corpus.vocab_size)
    if steps is None or not intervention.edits:
        return
    base = stream.schedule(*steps)
    with _named(intervention):
        if intervention.inserted is not None:
            _inserted(corpus, base, cast(AugmentConfig, intervention))
        else:
            _check_amount(stream, base, cast(EditConfig, intervention))


def _check_amount(stream: Stream, base: Schedule, config: EditConfig) -> None:
    """Raises ConfigError for an amount that cannot be chosen, by choosing from made-up scores."""
    corpus, ids = stream.corpus, base.sample_ids
    order = np.arange(len(ids), dtype=np.float32)
    made_up = Scores(ids, np.zeros_like(ids), order[:, None], ("",), order)
    if config.by_token:
        amount(len(ids) * corpus.seq_len, config.fraction, config.count, "tokens")
        if config.label is not None:
            ranked(made_up, "", label=config.label, labels=corpus.labels_of(ids))
        return
    chosen = select(corpus, "", replace(config, match="none"), made_up, stream.seed)
    mode = getattr(config, "mode", "")
    if mode in ("drop", "replace"):
        left = len(stream.following(base.end))
        if len(chosen) > left:
            accepted = f"an edit of at most {left} samples, all that come after step {base.end}"
            raise refuse("intervention.mode", mode, f"{accepted}; here it is {len(chosen)}")


@contextmanager
def _named(intervention: InterventionConfig) -> Iterator[None]:
    """Turns errors of an impossible edit into errors of the configuration."""
    try:
        yield
    except ConfigError:  # has said its own key
        raise
    except (ValueError, KeyError) as error:
        raise ConfigError(f"intervention={intervention.name}: {error}") from error


def edited_stream(
    intervention: InterventionConfig,
    unit: Located,
    traced: Traced | None,
    tokens: TracedTokens | None,
    edited: Callable[[], Edited],
) -> EditedStream:
    """Returns the stream of an arm, with a key of its content or of the settings behind it.

    The key of the unedited stream is its steps. That of an edited stream is its hash, so that edits
    which mean the same training share an arm; before there are scores, it is the settings that
    decide the choice.
    """
    stream, key = unit.base.stream, unit.window_key
    inputs: object = stream.inputs | {"window": key}
    if intervention.edits:
        scored = tokens or traced
        own = decided_by(intervention, unit.at.store.hash_file)
        if own["scores"]:
            found = {"unit": unit.members_key, "together": unit.together}
            own |= {"scores": scored and scored.fingerprint, **found}
        run = stream.inputs | {"corpus": stream.corpus.fingerprint, "seed": stream.seed}
        inputs = known(
            lambda: [schedule_hash(edited().schedule), edited().inserted],
            run | {"window": key, "edit": own},
        )
    try:
        rows = edited().corpus
    except NotBuilt:
        rows = stream.corpus
    return EditedStream(unit.steps, inputs, lambda: edited().schedule, rows)


def decided_by(config: InterventionConfig, hash_file: Callable[[Path], str]) -> dict[str, object]:
    """Returns the settings that decide the edit, without those that have no effect on it.

    `scores` is True if the choice depends on the samples' scores.
    """
    if config.inserted is not None:
        rows = cast(AugmentConfig, config)
        insert = {"at_step": rows.at_step, "per_step": rows.per_step}
        return {"rows": hash_file(Path(config.inserted)), "scores": False, **insert}
    edit, mode = cast(EditConfig, config), getattr(config, "mode", "")
    found: dict[str, object] = {"mode": mode, "select": edit.select, "planner": edit.planner}
    by_scores = edit.select in ("top", "bottom", "band") or edit.match == "loss"
    drawn = edit.select == "random" or edit.match != "none" or mode in ("replace", "spans")
    used = {
        "label": edit.select != "ids",
        "fraction": edit.by_token or edit.select in ("top", "bottom", "random"),
        "count": edit.by_token or edit.select in ("top", "bottom", "random"),
        "ids": edit.select == "ids",
        "band": edit.select == "band",
        "match": True,
        "match_targeted": edit.match != "none",
        "seed": drawn,
        "weight": mode == "upweight",
        "within": mode == "mask_tokens",
        "spans": mode == "spans",
        "ngram": mode == "spans",
    }
    if not isinstance(edit, RemoveConfig | AugmentConfig):  # of which nobody has said what matters
        used |= {item.name: True for item in fields(edit)}
    found |= {name: getattr(edit, name, None) for name, matters in used.items() if matters}
    return found | {"scores": by_scores}


def plan_edit(
    intervention: InterventionConfig,
    unit: Located,
    scores: Scores | None,
    tokens: TokenScores | None = None,
) -> Edited:
    """Chooses samples or tokens, writes the plan, and applies it to the unedited schedule.

    `scores` are not needed by a control arm, `tokens` by edits of scored tokens alone. Raises
    ConfigError where the edit is impossible.
    """
    stream, window = unit.base.stream, unit.window
    corpus, base = stream.corpus, stream.schedule(window.start, window.end)
    if not intervention.edits:
        plan = plans.control(window.start, window.end)
        return Edited(plan, edit(plan, base), corpus, None)
    with _named(intervention):
        if intervention.inserted is not None:
            return _inserted(corpus, base, cast(AugmentConfig, intervention))
        assert scores is not None
        if intervention.by_token:
            return _by_token(unit, cast(RemoveConfig, intervention), scores, tokens)
        return _planned(unit, cast(EditConfig, intervention), scores)


def _planned(unit: Located, config: EditConfig, scores: Scores) -> Edited:
    """Returns an edit of whole samples as its planner makes it."""
    stream, corpus, window = unit.base.stream, unit.base.corpus, unit.window
    chosen = select(corpus, unit.name, config, scores, stream.seed)

    def rows(ids: np.ndarray) -> np.ndarray:
        fetch(unit.at, corpus, ids)
        return corpus.rows(ids).numpy()

    choice = plans.Choice(
        scores,
        chosen,
        window.start,
        window.end,
        unused=stream.following(window.end),
        seed=mixed_seed(stream.seed, config.seed),
        rows=rows,
        first_id=len(corpus.tokens),
    )
    plan = implementation(config.planner)(config, choice)
    base = stream.schedule(window.start, window.end)
    if plan.action == "spans":
        return _rewritten(plan, base, corpus)
    return Edited(plan, edit(plan, base, choice.unused), corpus, None)


def _rewritten(plan: EditPlan, base: Schedule, corpus: Corpus) -> Edited:
    """Returns an edit that puts rows of its own in the place of samples."""
    extra = plans.rewritten(plan, lambda ids: corpus.rows(ids).numpy())
    longer = replace(corpus, extra=extra.astype(corpus.tokens.dtype))
    return Edited(plan, edit(plan, base), longer, hash_arrays(extra))


def select(
    corpus: Corpus, unit: str, config: EditConfig, scores: Scores, run_seed: int
) -> np.ndarray:
    """Returns sample ids to edit, in stream order; with `match`, a matched random set.

    Random choices depend on the run's seed as well as on the edit's.
    """
    seed = mixed_seed(run_seed, config.seed)
    labels = corpus.labels_of(scores.sample_ids)
    lower, upper = config.band or (None, None)
    chosen = choose(
        scores,
        unit,
        config.select,
        fraction=config.fraction,
        count=config.count,
        lower=lower,
        upper=upper,
        label=config.label,
        labels=labels,
        ids=config.ids,
        seed=seed,
    )
    if config.match == "none":
        return chosen
    if config.match == "loss" and np.isnan(scores.losses).any():
        raise ValueError("match=loss: these scores have come without the samples' losses")
    groups = np.asarray(labels) if config.match == "label" else loss_groups(scores.losses)
    exclude = config.match_targeted == "exclude"
    return matched_random(scores.sample_ids, groups, chosen, seed, exclude)


def _by_token(
    unit: Located,
    config: RemoveConfig,
    scores: Scores,
    tokens: TokenScores | None,
) -> Edited:
    """Returns the plan for single tokens; amounts are of the window's tokens."""
    stream, corpus = unit.base.stream, unit.base.corpus
    base = stream.schedule(unit.window.start, unit.window.end)
    n_tokens = len(scores.sample_ids) * corpus.seq_len
    n = amount(n_tokens, config.fraction, config.count, "tokens")
    seed = mixed_seed(stream.seed, config.seed)
    labels = corpus.labels_of(scores.sample_ids) if config.label else None
    order = partial(ranked, scores, unit.name, label=config.label, labels=labels, seed=seed)
    if config.mode == "mask_tokens":
        pool = None if config.label is None else order("random")
        if config.within is not None:
            chosen = order(config.select)
            pool = chosen[: amount(len(chosen), config.within)]
        parts = None if tokens is None else tokens.parts
        plan = mask_tokens(scores, config, unit.window, corpus.seq_len, n, pool, parts, seed)
        return Edited(plan, edit(plan, base), corpus, None)
    fetch(unit.at, corpus, scores.sample_ids)
    # Another number than that of random scores: a sample's draws must not depend on its score.
    seed = mixed_seed(stream.seed, config.seed, SPANS)
    plan = replace_spans(corpus, scores, config, unit.window, n, order(config.select), seed)
    return _rewritten(plan, base, corpus)


def mask_tokens(
    scores: Scores,
    config: RemoveConfig,
    window: Window,
    length: int,
    n: int,
    pool: np.ndarray | None,
    parts: Callable[[], Iterable[np.ndarray]] | None,
    seed: int,
) -> EditPlan:
    """Returns the plan that masks n tokens of the window's samples, or of those in `pool`.

    `parts` are the tokens' scores; without them the tokens are drawn at random.
    """
    if parts is None:
        chosen = random_tokens(len(scores.sample_ids), length, n, seed, pool)
    else:
        chosen = top_tokens(parts(), n, pool, config.select)
    if config.match == "sample":
        chosen = matched_tokens(chosen, length, seed, config.match_targeted == "exclude")
    rows, positions = chosen
    return plans.mask_tokens(
        scores.sample_ids[rows], scores.steps[rows], positions, window.start, window.end
    )


def replace_spans(
    corpus: Corpus,
    scores: Scores,
    config: RemoveConfig,
    window: Window,
    n: int,
    order: np.ndarray,
    seed: int,
) -> EditPlan:
    """Returns the plan that replaces repeated spans of the first samples of `order`.

    It edits up to n tokens. The new tokens have the distribution of the replaced ones. Except for
    that distribution, a sample's new tokens depend only on the seed and its id.
    """
    rows = (corpus.rows(scores.sample_ids[[at]])[0].numpy() for at in order)
    chosen = within_budget(rows, config.ngram, n, corpus.special_ids)
    marks = {at: marked for at, marked in zip(order, chosen, strict=False) if marked.any()}
    places = np.array(sorted(marks))
    marked, ids = np.stack([marks[at] for at in places]), scores.sample_ids[places]
    old = corpus.rows(ids).numpy()
    counts = np.bincount(old[marked], minlength=corpus.vocab_size)
    probabilities = counts / counts.sum()
    draw = {"fresh": fresh, "renamed": renamed}[config.spans]
    new = np.stack([
        draw(row, mark, probabilities, config.ngram, _generator(seed, sample))
        for row, mark, sample in zip(old, marked, ids, strict=True)
    ])  # fmt: skip
    at, positions = np.nonzero(marked)
    return plans.spans(
        ids[at], scores.steps[places][at], positions, new[at, positions],
        window.start, window.end, first_id=len(corpus.tokens),
    )  # fmt: skip


def _generator(seed: int, sample_id: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, int(sample_id)]))


def _inserted(corpus: Corpus, base: Schedule, config: AugmentConfig) -> Edited:
    assert config.rows is not None
    extra = read_inserted(Path(config.rows), corpus.seq_len, corpus.vocab_size)
    first = base.start if config.at_step is None else config.at_step
    ids = np.arange(len(corpus.tokens), len(corpus.tokens) + len(extra))
    plan = plans.insert(ids, base.start, base.end, first, config.per_step)
    longer = replace(corpus, extra=extra)
    return Edited(plan, edit(plan, base), longer, hash_arrays(extra))
