"""The library: find units, score rows and follow emergence on models that are in memory.

    rows = mda.pack(texts, tokenizer, length=128)
    heads = mda.locate(model, "induction_head")
    found = mda.influence(model, rows, heads.strongest)
    found.top(10)

Nothing here needs Hydra or a store. The computation is that of the programs: the same kinds of
units, the same estimators, the same pass over the samples.

Sign: a score above 0 means that training on more of the row makes the unit stronger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mda.data.packers import Document, across
from mda.data.stream import Corpus
from mda.emergence.measure import make_probes, measure
from mda.estimator.ekfac import Curvature, Fit, fit_curvature
from mda.estimator.estimator import Work
from mda.estimator.replay import TrainingState, TrainingWindow
from mda.estimator.score import SampleScores
from mda.model.architecture import architecture
from mda.schema import (
    OPTIONS,
    ConfigError,
    EmergenceConfig,
    EstimatorConfig,
    HeadConfig,
    ProbeConfig,
    UnitConfig,
)
from mda.schema.setting import nearest
from mda.stages.plugin import estimator_of, kind_of
from mda.types import Window
from mda.unit.kind import Materials, UnitKind
from mda.unit.scope import scored

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Item = TypeVar("Item")

HEADS = {
    "induction_head": HeadConfig(),
    "previous_token_head": HeadConfig(
        name="previous_token_head",
        metric="previous_token",
        blocks=["qk"],
        probe=ProbeConfig(target="previous_token", n_sequences=32, repeats=1),
    ),
    "second_previous_token_head": HeadConfig(
        name="second_previous_token_head",
        metric="second_previous_token",
        blocks=["qk"],
        probe=ProbeConfig(target="second_previous_token", n_sequences=32, repeats=1),
    ),
}
"""Kinds of heads that differ in their settings alone, as in conf/unit."""

STEP = 0  # what the one checkpoint in memory is called


def pack(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """Tokenizes texts and cuts them into rows of `length` predictions, int64 [N, length + 1].

    The texts are joined end to end with the end-of-text token after each; the rest that does not
    fill a row is left out. Raises ValueError for a tokenizer without an end-of-text token and for
    texts that do not fill a row.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise ValueError("the tokenizer has no eos_token; expected one, to end each text with")
    documents = (
        Document(np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64), 0)
        for text in texts
    )
    parts = [packed.rows for packed in across(documents, length + 1, end)]
    if not parts:
        raise ValueError(f"the texts have fewer than {length + 1} tokens; expected at least a row")
    return torch.from_numpy(np.concatenate(parts))


@dataclass(frozen=True)
class LocatedUnit:
    """A unit of a model: its name, its kind, and its metric where that was measured."""

    name: str
    score: float
    kind: UnitKind = field(repr=False)


@dataclass(frozen=True)
class Ranking:
    """Every unit of a kind with its metric, strongest first. `ranking["L3H1"]` is one of them."""

    metric: str
    scores: Mapping[str, float]
    kind: UnitKind = field(repr=False)
    measure: Callable[[PreTrainedModel], Mapping[str, float]] = field(repr=False)

    @property
    def strongest(self) -> LocatedUnit:
        """The unit with the highest metric."""
        return self[next(iter(self.scores))]

    def __getitem__(self, name: str) -> LocatedUnit:
        if name not in self.scores:
            raise KeyError(f"no unit {name}{nearest(name, list(self.scores))}")
        return LocatedUnit(name, self.scores[name], self.kind)

    def __len__(self) -> int:
        return len(self.scores)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a table with a row for each unit: `unit` and its metric, strongest first."""
        from pandas import DataFrame

        return DataFrame({"unit": list(self.scores), self.metric: list(self.scores.values())})


def locate(
    model: PreTrainedModel,
    kind: str = "induction_head",
    rows: Tensor | np.ndarray | None = None,
    *,
    labels: Sequence[str] | None = None,
    **settings: Any,
) -> Ranking:
    """Measures every unit of a kind and ranks them.

    `kind` is a unit of conf/unit: `induction_head`, `previous_token_head`, `mlp_neuron`, `module`,
    or one that a plugin has added; `settings` are those of the kind. Heads are measured on random
    tokens, drawn as often as the square root of their count in `rows`, or uniformly without rows.
    Neurons need `rows` [N, T + 1] with a class for each in `labels`, and the class that they should
    separate from the others as `label=`. Raises ConfigError for a setting that the kind does not
    have.
    """
    chosen = unit_settings(kind, settings)
    corpus = corpus_of(model, rows, labels)
    made = kind_of(chosen, Materials(corpus, architecture(_checked(model))))
    if isinstance(chosen, HeadConfig):
        probes = make_probes(corpus, EmergenceConfig(length=chosen.probe.length))
        prefix = f"emergence/{chosen.metric}/"

        def scores(model: PreTrainedModel) -> Mapping[str, float]:
            row = measure(model, probes, held_out=False)
            named = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
            return {k: v for k, v in named.items() if re.fullmatch(chosen.pattern, k)}
    else:
        scores = made.ranking
    found = scores(model)
    order = sorted(found, key=lambda name: -found[name])  # stable: ties in the model's order
    return Ranking(chosen.metric, {name: found[name] for name in order}, made, scores)


def emergence_curve(
    models: Mapping[int, PreTrainedModel] | Iterable[tuple[int, PreTrainedModel]], units: Ranking
) -> pandas.DataFrame:
    """Measures the units of a ranking in the models of several checkpoints.

    `models` are pairs of a step and its model; an iterator may load them one at a time. Returns a
    table with the steps as its index and a column for each unit.
    """
    from pandas import DataFrame

    pairs = models.items() if isinstance(models, Mapping) else models
    table = {step: dict(units.measure(_checked(model))) for step, model in pairs}
    found = DataFrame.from_dict(table, orient="index", columns=list(units.scores))
    found.index.name = "step"
    return found


@dataclass(frozen=True)
class Influence:
    """Scores of rows for one unit, the result of `influence`."""

    unit: str
    estimator: str
    scores: np.ndarray  # float64 [N]
    losses: np.ndarray  # float64 [N], mean loss of each row in nats; NaN where none was computed
    score_tokens: Callable[[np.ndarray], Tensor | None] = field(repr=False)

    def top(self, n: int) -> list[int]:
        """Returns the numbers of the n rows with the highest scores, highest first."""
        return np.argsort(-self.scores, kind="stable")[:n].tolist()

    def bottom(self, n: int) -> list[int]:
        """Returns the numbers of the n rows with the lowest scores, lowest first."""
        return np.argsort(self.scores, kind="stable")[:n].tolist()

    def tokens(self, rows: Sequence[int]) -> np.ndarray:
        """Returns each position's part of some rows' scores, float64 [n, T].

        A position is that of the input token at which the unit's parameters act; a row's sum is its
        score. Raises ValueError for an estimator that does not score tokens.
        """
        found = self.score_tokens(np.asarray(rows, dtype=np.int64))
        if found is None:
            raise ValueError(f"estimator {self.estimator!r} does not score single tokens")
        return found.double().cpu().numpy()

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a table with `row`, `score` and `loss`, in the order of the rows."""
        from pandas import DataFrame

        n = range(len(self.scores))
        return DataFrame({"row": n, "score": self.scores, "loss": self.losses})

    def plot(self, ax: Any = None) -> Any:
        """Draws the scores by rank on matplotlib axes, new ones without `ax`; returns the axes."""
        from mda.report.ranked import plot_ranked

        return plot_ranked(self.scores, f"{self.unit}, {self.estimator}", ax)


def influence(
    model: PreTrainedModel,
    rows: Tensor | np.ndarray,
    unit: LocatedUnit | str,
    estimator: str | EstimatorConfig = "ekfac",
    *,
    prompts: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Influence:
    """Returns the influence of every row on a unit of the model, as scores.

    `rows` are token ids, integers [N, T + 1]. `unit` comes from `locate`, or is the name of an
    attention head, such as "L3H1", which then is traced as an induction head: by the copying of
    repeated tokens, or by a file of `prompts`, JSON lines with token ids as in `mda.unit.prompts`
    (a unit from `locate` takes `probe=` there). `estimator` is a name of conf/estimator with its
    `settings` (`damping=`, `batch_size=`, ...), or settings as a whole.
    The curvature is fitted on the rows themselves. For EK-FAC,

        score(z) = - grad f^T (H + c mean(Lambda))^-1 grad L(z)

    in the unit's own parameters, or with `scope="all"` in the model's, with f its measurement and
    L(z) the row's mean loss (arXiv 2601.21996). Raises ConfigError for settings that the estimator
    does not have, and for an estimator that needs more of the training than one model, such as
    `unrolled`.
    """
    chosen = estimator_settings(estimator, settings)
    corpus = corpus_of(_checked(model), rows, None)
    if isinstance(unit, str):
        head = HEADS["induction_head"]
        if prompts is not None:
            head = replace(head, probe=ProbeConfig(target="prompts", file=str(prompts)))
        kind = kind_of(head, Materials(corpus, architecture(model)))
        unit = LocatedUnit(unit, float("nan"), kind)
    elif prompts is not None:
        raise ConfigError("prompts: expected with a unit's name, or as `probe=` of `locate`")
    own = [one for one in unit.kind.units([unit.name]) if one.name == unit.name]
    if not own:
        raise ConfigError(f"unit={unit.name} does not exist in this model")
    own = scored(own, unit.name, chosen.requires.scope, model)
    made = estimator_of(chosen)
    work = InMemory(
        chosen,
        corpus,
        np.arange(len(corpus.tokens)),
        unit.kind,
        own,
        unit.name,
        [unit.name],
        made.steps([STEP], Window(STEP, STEP + 1, STEP, "the model in memory")),
        seed=0,
        adam_eps=1e-8,
        only=model,
        progress=progress,
    )
    found = made.score(work)
    return Influence(
        unit.name,
        chosen.name,
        found.values_NU[:, 0].double().cpu().numpy(),
        found.losses_N.double().cpu().numpy(),
        lambda ids: made.token_influence(work, ids),
    )


def remove(rows: Iterable[int]) -> list[tuple[int, float]]:
    """Returns an edit that takes rows out of training: each with weight 0."""
    return [(int(row), 0.0) for row in rows]


def upweight(rows: Iterable[int], weight: float = 2.0) -> list[tuple[int, float]]:
    """Returns an edit that multiplies the loss of rows; weight 2 equals a second copy."""
    return [(int(row), float(weight)) for row in rows]


@dataclass(frozen=True)
class InMemory(Work):
    """What a model and its rows in memory lend to an estimator."""

    only: PreTrainedModel
    progress: bool
    fitted: dict[Fit, Curvature] = field(default_factory=dict, repr=False)

    def model(self, step: int) -> PreTrainedModel:
        return self.only

    def curvature(self, step: int, fit: Fit) -> Curvature:
        if fit in self.fitted:  # scores of tokens come after those of rows
            return self.fitted[fit]
        ids = fit.subset(self.sample_ids)

        def in_pieces(name: str, sums: Callable[[np.ndarray], dict[str, Tensor]]):
            total: dict[str, Tensor] = {}
            for part in self._pieces(ids, f"EK-FAC {name}", fit.batch_size):
                for key, value in sums(part).items():
                    total[key] = total[key] + value if key in total else value
            return total

        self.fitted[fit] = fit_curvature(self.only, self.corpus.rows, ids, fit, in_pieces)
        return self.fitted[fit]

    def learning_rate(self, step: int) -> float:
        return 1.0

    def second_moments(self, step: int) -> dict[str, Tensor]:
        raise ConfigError("Adam's moments are not in memory; expected an estimator without them")

    def training(self) -> tuple[TrainingWindow, dict[int, TrainingState]]:
        raise ConfigError(
            "estimator=unrolled repeats the training, which is not in memory; expected another "
            "estimator here, or mda trace estimator=unrolled"
        )

    def bar(self, items: Iterable[Item], name: str, total: int) -> Iterator[Item]:
        return iter(tqdm(items, name, total, disable=not self.progress, leave=False))

    def over_samples(self, name: str, scores: Callable[[np.ndarray], SampleScores]) -> SampleScores:
        found = [scores(part) for part in self._pieces(self.sample_ids, name, 256)]
        return SampleScores(
            torch.cat([part.values_NU for part in found]),
            torch.cat([part.losses_N for part in found]),
        )

    def _pieces(self, ids: np.ndarray, name: str, size: int) -> Iterator[np.ndarray]:
        pieces = [ids[first : first + size] for first in range(0, len(ids), size)]
        return self.bar(pieces, name, len(pieces))


def unit_settings(kind: str, settings: Mapping[str, Any]) -> UnitConfig:
    """Returns the settings of a kind of unit by its name.

    Raises ConfigError, with the known kinds, for any other name.
    """
    if kind in HEADS:
        _known("unit", kind, type(HEADS[kind]), settings)
        return replace(HEADS[kind], **settings)
    options = {name: one for name, one in OPTIONS["unit"].items() if name != "head"}
    if kind not in options:
        there = [*HEADS, *options]
        close = nearest(kind, there)
        raise ConfigError(f"unit={kind!r}; expected one of {', '.join(there)}{close}")
    _known("unit", kind, options[kind], settings)
    return options[kind](**{"name": kind, **settings})  # type: ignore[return-value]


def estimator_settings(
    estimator: str | EstimatorConfig, settings: Mapping[str, Any]
) -> EstimatorConfig:
    """Returns the settings of an estimator by its name.

    Raises ConfigError, with the known estimators, for any other name.
    """
    if isinstance(estimator, EstimatorConfig):
        if settings:
            raise ConfigError(f"{', '.join(settings)}: expected inside the estimator's settings")
        return estimator
    if estimator not in OPTIONS["estimator"]:
        known = list(OPTIONS["estimator"])
        close = nearest(estimator, known)
        raise ConfigError(f"estimator={estimator!r}; expected one of {', '.join(known)}{close}")
    _known("estimator", estimator, OPTIONS["estimator"][estimator], settings)
    return OPTIONS["estimator"][estimator](**{"name": estimator, **settings})  # type: ignore


def corpus_of(
    model: PreTrainedModel,
    rows: Tensor | np.ndarray | None,
    labels: Sequence[str] | None,
) -> Corpus:
    """Returns rows in memory as a corpus, all of them held out.

    Without rows, there are only tokens to draw from. Raises ValueError for rows that are not token
    ids of the model.
    """
    size = int(model.config.vocab_size)
    special = {
        value
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if isinstance(value := getattr(model.config, name, None), int) and 0 <= value < size
    }
    if rows is None:
        tokens, counts = np.zeros((2, 2), np.int64), np.ones(size, np.int64)
    else:
        tokens = np.asarray(rows)
        if tokens.ndim != 2 or tokens.shape[1] < 2 or not np.issubdtype(tokens.dtype, np.integer):
            about = f"{tokens.dtype} {list(tokens.shape)}"
            raise ValueError(
                f"rows are {about}; expected integers [samples, tokens of two or more]"
            )
        if not len(tokens) or tokens.min() < 0 or tokens.max() >= size:
            raise ValueError(f"rows have ids outside the vocabulary; expected 0 to {size - 1}")
        counts = np.bincount(tokens.ravel(), minlength=size).astype(np.int64)
    if labels is not None and len(labels) != len(tokens):
        raise ValueError(f"{len(labels)} labels; expected one for each of {len(tokens)} rows")
    names = tuple(sorted(set(labels))) if labels is not None else ("unlabelled",)
    numbers = [names.index(label) for label in labels] if labels is not None else [0] * len(tokens)
    return Corpus(
        tokens=tokens,
        labels=np.asarray(numbers),
        label_names=names,
        vocab_size=size,
        special_ids=tuple(sorted(special)),
        counts=counts,
        tokenizer=None,
        held_out=np.arange(len(tokens)),
        fingerprint="in memory",
    )


def _known(group: str, name: str, settings: type, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that a dataclass does not have."""
    there = [field.name for field in fields(settings) if field.name != "name"]
    for word in given:
        if word not in there:
            close = nearest(word, there)
            raise ConfigError(f"{group}={name} has no {word}; expected {', '.join(there)}{close}")


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model. Raises ValueError for a precision too low to differentiate in."""
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the model is {model.dtype}; expected float32: model.float()")
    return model
