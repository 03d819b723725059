"""Makes an edit's changes from scores, and an arm's stream from the changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor

from mda.data.stream import Corpus, stream_hash
from mda.data.token_files import read_inserted
from mda.estimator.repetition import repetition
from mda.estimator.score import batches
from mda.intervention.choice import Choice
from mda.intervention.edit import edit
from mda.schema import (
    ConfigError,
    EditConfig,
    InterventionConfig,
    refuse,
)
from mda.schema.plugins import implementation
from mda.schema.setting import show
from mda.stages.attribution import Traced
from mda.stages.corpus import fetch
from mda.stages.found import NotBuilt, known
from mda.stages.locating import Located
from mda.stages.order import Order
from mda.stages.runs import EditedStream
from mda.stages.tokens import TracedTokens
from mda.store import hash_arrays
from mda.types import Changes, Scores, Stream, TokenScores, Unit
from mda.unit.scope import masks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Edited:
    """The training data of an arm: the changes, the stream, and the rows of the stream."""

    changes: Changes
    stream: Stream
    corpus: Corpus
    inserted: str | None  # hash of rows from outside the corpus

    @property
    def n_tokens(self) -> int:
        """The number of tokens that the edit changes."""
        n = len(self.changes.sample_ids)
        return n if self.changes.by_token else n * self.corpus.seq_len


def check_edit(
    intervention: InterventionConfig, order: Order, steps: tuple[int, int] | None
) -> None:
    """Raises ConfigError for an edit of the window's steps that is impossible for any scores.

    If the window is not known yet (None), only the label and the inserted rows are checked.
    """
    corpus = order.corpus
    label = getattr(intervention, "label", None)
    if label is not None and label not in corpus.label_names:
        accepted = f"null, or one of the corpus' labels {show(corpus.label_names)}"
        raise refuse("intervention.label", label, accepted)
    if steps is None and intervention.inserted is not None:
        read_inserted(Path(intervention.inserted), corpus.seq_len, corpus.vocab_size)
    if steps is None or not intervention.edits:
        return
    choice = _choice(intervention, order, steps)
    with _named(intervention):
        if intervention.inserted is not None:
            _planned(choice)
        else:
            _check_amount(choice)


def _check_amount(choice: Choice) -> None:
    """Raises ConfigError for an amount that cannot be chosen, by choosing from made-up scores."""
    config, ids = cast(EditConfig, choice.settings), choice.base.sample_ids
    ranking = np.arange(len(ids), dtype=np.float32)
    made_up = Scores(ids, np.zeros_like(ids), ranking[:, None], ("",), ranking)
    unmatched = replace(config, match="none")
    choice = replace(choice, settings=unmatched, of_samples=made_up)
    if config.by_token:
        _ = choice.n_tokens, choice.order("top")
        return
    n, left = len(choice.sample_ids), len(choice.unused)
    if config.edit_mode.takes_unused and n > left:
        accepted = f"an edit of at most {left} samples, all that come after step {choice.end}"
        mode = getattr(config, "mode", "")
        raise refuse("intervention.mode", mode, f"{accepted}; here it is {n}")


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
    order, key = unit.base.order, unit.window_key
    inputs: object = order.inputs | {"window": key}
    if intervention.edits:
        scored = tokens or traced
        own = decided_by(intervention, unit.at.store.hash_file)
        if own["scores"]:
            found = {"unit": unit.members_key, "together": unit.together}
            own |= {"scores": scored and scored.fingerprint, **found}
        run = order.inputs | {"corpus": order.corpus.fingerprint, "seed": order.seed}
        inputs = known(
            lambda: [stream_hash(edited().stream), edited().inserted],
            run | {"window": key, "edit": own},
        )
    try:
        rows = edited().corpus
    except NotBuilt:
        rows = order.corpus
    inside, scope = None, getattr(intervention, "scope", "all")
    if scope != "all":
        whose = {"units": unit.units_key, "found": [unit.members_key, unit.together]}
        whose["biases"] = unit.settings.biases
        inputs, inside = {"stream": inputs, "scope": scope, **whose}, partial(_inside, unit, scope)
    until = intervention.until
    return EditedStream(unit.steps, inputs, lambda: edited().stream, rows, inside, until)


def _own(located: Located) -> Unit:
    return next(unit for unit in located.units if unit.name == located.name)


def _inside(located: Located, scope: str, model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the parameters that an edit of this scope reaches, bool by name."""
    own = masks_of(_own(located), model)
    return own if scope == "unit" else {name: ~mask for name, mask in own.items()}


def decided_by(config: InterventionConfig, hash_file: Callable[[Path], str]) -> dict[str, object]:
    """Returns the settings that decide the edit, without those that have no effect on it.

    `scores` is True if the choice depends on the samples' scores.
    """
    place = {item.name for item in fields(InterventionConfig)}
    names = {item.name for item in fields(config)} - place - config.idle
    decided: dict[str, object] = {name: getattr(config, name) for name in names}
    if config.inserted is not None:
        decided["rows"] = hash_file(Path(config.inserted))
    return decided | {"kind": config.name, "scores": config.by_scores}


def make_edit(
    intervention: InterventionConfig,
    unit: Located,
    scores: Scores | None,
    tokens: TokenScores | None = None,
) -> Edited:
    """Chooses samples or tokens, makes the changes, and applies them to the unedited stream.

    `scores` are not needed by a control arm, `tokens` by edits of scored tokens alone. Raises
    ConfigError where the edit is impossible.
    """
    order, window = unit.base.order, unit.window
    if intervention.until is not None and intervention.until <= window.end:
        accepted = f"a step after the window's end, {window.end}, or null"
        raise refuse("intervention.until", intervention.until, accepted)
    choice = _choice(intervention, order, (window.start, window.end), unit.name)
    fetched = partial(fetch, unit.at, order.corpus)

    def repeated(ids: np.ndarray) -> np.ndarray:
        fetched(ids)
        parts = (order.corpus.rows(some).numpy() for some in batches(ids, 4096))
        return np.concatenate([repetition(rows, order.corpus.counts).sum(1) for rows in parts])

    given = {"fetch": fetched, "of_samples": scores, "of_tokens": tokens, "repetition": repeated}
    with _named(intervention):
        return _planned(replace(choice, **given))


def _choice(
    intervention: InterventionConfig, order: Order, steps: tuple[int, int], unit: str = ""
) -> Choice:
    base, unused = order.stream(*steps), order.following(steps[1])
    return Choice(intervention, unit, base, order.corpus, unused, order.seed)


def _planned(choice: Choice) -> Edited:
    """Returns the edit as its maker makes it."""
    changes = implementation(choice.settings.edit_mode.maker)(choice.settings, choice)
    stream, corpus = edit(changes, choice.base, choice.unused), choice.corpus
    if changes.rows is None:
        return Edited(changes, stream, corpus, None)
    longer = replace(corpus, extra=changes.rows.astype(corpus.tokens.dtype))
    return Edited(changes, stream, longer, hash_arrays(changes.rows))
