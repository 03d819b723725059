"""The estimator group: the scores of samples. One class for each estimator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mda.schema.setting import Group, entering, nearest, setting

MOMENTS = ("onset", "window_middle", "window_end")
FACTORS = ("independent", "weighted", "sequence")
SKIP = "first positions at which what the unit's parameters do is left out of fit and scores"
SCOPES = ("unit", "upstream", "all")
SCOPE = (
    "parameters of gradient and curvature: the unit's own; upstream, with every map below it; all "
    "maps of the model. Beyond its own, the unit is scored alone"
)
TARGETS = ("measurement", "metric")
TARGET = (
    "what is differentiated of a unit: its measurement, or its metric where that has a gradient"
)
BATCH = "sequences in a pass; no effect on the result"
SEED = {"low": 0, "high": 2**32 - 1}


@dataclass(frozen=True)
class Requires:
    """The inputs of an estimator beside the window's samples and the models of its steps.

    The key of scores holds what is read, a base run that lacks it is refused, and nothing else is
    lent.
    """

    target: str = ""  # what is differentiated of a unit: its `measurement` or its `metric`
    scope: str = "unit"  # the parameters of all gradients, see mda/unit/scope.py
    query: bool = False  # the tokens that the measurement asks on
    moments: str = ""  # Adam's second moments: the setting that asks for them
    trajectory: bool = False  # the window's training, which is repeated in float32
    moving: bool = False  # the kept checkpoints whose learning rate is not 0, and no others

    @property
    def found(self) -> bool:
        """True if the function of the found unit is used, so that scores may be of it alone."""
        return self.target == "metric" or self.trajectory or self.scope != "unit"


@dataclass
class EstimatorConfig(Group):
    """The scoring of samples; its class is chosen by `estimator=...`."""

    key: ClassVar[str] = "estimator"
    estimator: ClassVar[str] = ""  # `module:class` that carries it out
    cost: ClassVar[str] = ""  # `module:function` of what scores take, see mda/cost/scoring.py
    gives: ClassVar[tuple[str, ...]] = ()  # beside scores: `tokens`, of single losses; `losses`

    name: str = setting("???", "kind of estimator, set by estimator=...")

    def files(self) -> list[Path]:
        """Files whose content decides the scores."""
        return []

    @property
    def requires(self) -> Requires:
        """The inputs that it reads with these settings."""
        return Requires()

    @property
    def inputs(self) -> dict[str, Any]:
        """The settings that its scores depend on."""
        return entering(self)


@dataclass
class AtCheckpoint(EstimatorConfig):
    """An estimator that reads one checkpoint."""

    gives: ClassVar[tuple[str, ...]] = ("losses",)

    checkpoint: int | str = setting(
        "window_middle",
        f"which is scored: {', '.join(MOMENTS)}, or a step",
        accepts=f"{', '.join(MOMENTS)}, or a step that has a checkpoint",
        enters=False,  # the step is in the key instead
    )
    batch_size: int = setting(32, BATCH, low=1, enters=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.checkpoint, int) and self.checkpoint >= 0:
            return
        if self.checkpoint not in MOMENTS:
            close = nearest(str(self.checkpoint), MOMENTS)
            raise self._refuse("checkpoint", f"{', '.join(MOMENTS)}, or a step{close}")


@dataclass
class WithCurvature(AtCheckpoint):
    """An estimator that fits the curvature of the loss on samples of the window."""

    gives: ClassVar[tuple[str, ...]] = ("losses", "tokens")

    target: str = setting("measurement", TARGET, one_of=TARGETS)
    scope: str = setting("unit", SCOPE, one_of=SCOPES)
    skip_positions: int = setting(0, SKIP, low=0)
    damping: float = setting(0.1, "added to the curvature, as a share of its mean", above=0)
    fit_sequences: int | None = setting(
        4096, "samples the curvature is fitted on, null: the whole window", low=1
    )
    labels: str = setting(
        "sampled", "labels of the Fisher: the model's own, or the data's",
        one_of=("sampled", "empirical"),
    )  # fmt: skip
    seed: int = setting(0, "seed of the subset and of sampled labels", **SEED)
    adam_damping: bool = setting(False, "add what Adam divides by in place of the identity")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adam_damping and self.checkpoint == 0:
            accepted = "a step from 1 with estimator.adam_damping=true"
            raise self._refuse("checkpoint", f"{accepted}: Adam has no moments at step 0")

    @property
    def requires(self) -> Requires:
        moments = "adam_damping" if self.adam_damping else ""
        return Requires(self.target, self.scope, moments=moments)


@dataclass
class EkfacConfig(WithCurvature):
    """Influence with EK-FAC curvature at one checkpoint."""

    estimator: ClassVar[str] = "mda.estimator.influence:Ekfac"
    cost: ClassVar[str] = "mda.cost.scoring:ekfac"

    name: str = setting("ekfac", "kind of estimator", one_of=("ekfac",))
    factors: str = setting(
        "independent",
        "whose eigenvectors are the basis: moments of inputs and output gradients each by itself, "
        "weighted by each other's size, or moments of sequences' gradients",
        one_of=FACTORS,
    )


@dataclass
class TracinConfig(EstimatorConfig):
    """Gradient dot products summed over checkpoints."""

    estimator: ClassVar[str] = "mda.estimator.influence:Tracin"
    cost: ClassVar[str] = "mda.cost.scoring:tracin"
    gives: ClassVar[tuple[str, ...]] = ("losses", "tokens")

    name: str = setting("tracin", "kind of estimator", one_of=("tracin",))
    checkpoints: list[int] | None = setting(
        None,
        "steps that are summed over, null: estimator.n_checkpoints of the window",
        low=0,
        enters=False,  # the steps are in the key instead
    )
    n_checkpoints: int | None = setting(
        3,
        "spread over the window's steps; each is a pass, none at rate 0; null: all there are",
        low=1,
        enters=False,
    )
    target: str = setting("measurement", TARGET, one_of=TARGETS)
    scope: str = setting("unit", SCOPE, one_of=SCOPES)
    skip_positions: int = setting(0, SKIP, low=0)
    lr_weights: bool = setting(True, "weight each checkpoint by its learning rate")
    adam_preconditioning: bool = setting(False, "divide by the root of Adam's second moment")
    batch_size: int = setting(32, BATCH, low=1, enters=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoints is not None and not self.checkpoints:
            raise self._refuse("checkpoints", "at least one step, or null")
        if self.adam_preconditioning and 0 in (self.checkpoints or ()):
            accepted = "steps from 1 with estimator.adam_preconditioning=true"
            raise self._refuse("checkpoints", f"{accepted}: Adam has no moments at step 0")

    @property
    def requires(self) -> Requires:
        moments = "adam_preconditioning" if self.adam_preconditioning else ""
        moving = self.lr_weights and self.checkpoints is None  # at rate 0 a pass is wasted
        return Requires(self.target, self.scope, moments=moments, moving=moving)


@dataclass
class ExactConfig(WithCurvature):
    """Influence with the damped Gauss-Newton matrix itself, block by block: for small blocks."""

    estimator: ClassVar[str] = "mda.estimator.influence:Exact"
    cost: ClassVar[str] = "mda.cost.scoring:exact"

    name: str = setting("exact", "kind of estimator", one_of=("exact",))


@dataclass
class UnrolledConfig(EstimatorConfig):
    """Influence through all updates of the window: the derivative of the unit at its end."""

    estimator: ClassVar[str] = "mda.estimator.through_training:Unrolled"
    cost: ClassVar[str] = "mda.cost.scoring:unrolled"

    name: str = setting("unrolled", "kind of estimator", one_of=("unrolled",))
    target: str = setting("metric", TARGET, one_of=TARGETS)
    segment: int | None = setting(
        50,
        "steps whose states are in memory at a time, null: from checkpoint to checkpoint",
        low=1,
        enters=False,
    )
    last_steps: int | None = setting(None, "steps that are differentiated, null: all", low=1)
    n_perturbed: int = setting(0, "average over so many perturbed starts, 0: as trained", low=0)
    perturbation: float = setting(
        0.01, "noise in a perturbed start's weights, as a share of each parameter's spread", above=0
    )
    seed: int = setting(0, "seed of the perturbations", **SEED)

    @property
    def requires(self) -> Requires:
        return Requires(self.target, trajectory=True)


@dataclass
class RandomConfig(EstimatorConfig):
    """Scores drawn from a seeded generator: the baseline of equal size."""

    estimator: ClassVar[str] = "mda.estimator.baselines:Random"
    cost: ClassVar[str] = "mda.cost.scoring:no_model"
    gives: ClassVar[tuple[str, ...]] = ("tokens",)

    name: str = setting("random", "kind of estimator", one_of=("random",))
    seed: int = setting(0, "seed of the scores, beside the run's own", **SEED)


@dataclass
class RepetitionConfig(EstimatorConfig):
    """A count of repetitions in the sample's tokens: the baseline that influence must beat."""

    estimator: ClassVar[str] = "mda.estimator.baselines:Repetition"
    cost: ClassVar[str] = "mda.cost.scoring:no_model"
    gives: ClassVar[tuple[str, ...]] = ("tokens",)

    name: str = setting("repetition", "kind of estimator", one_of=("repetition",))


@dataclass
class Bm25Config(EstimatorConfig):
    """BM25 of the probe's tokens in each sample: the lexical baseline."""

    estimator: ClassVar[str] = "mda.estimator.bm25:Bm25"
    cost: ClassVar[str] = "mda.cost.scoring:no_model"
    gives: ClassVar[tuple[str, ...]] = ("tokens",)

    name: str = setting("bm25", "kind of estimator", one_of=("bm25",))
    k1: float = setting(1.2, "how fast a token's repetitions count for less, 0: at once", low=0)
    b: float = setting(0.75, "how much a sample's length counts", low=0, high=1)

    @property
    def requires(self) -> Requires:
        return Requires(query=True)


@dataclass
class NgramConfig(EstimatorConfig):
    """The share of a sample's n-grams that the probe has."""

    estimator: ClassVar[str] = "mda.estimator.ngram:Ngram"
    cost: ClassVar[str] = "mda.cost.scoring:no_model"
    gives: ClassVar[tuple[str, ...]] = ("tokens",)

    name: str = setting("ngram", "kind of estimator", one_of=("ngram",))
    n: int = setting(2, "tokens of an n-gram", low=1)

    @property
    def requires(self) -> Requires:
        return Requires(query=True)


@dataclass
class EmbeddingConfig(AtCheckpoint):
    """The cosine similarity of a sample's mean hidden state to the probe's, at one checkpoint."""

    estimator: ClassVar[str] = "mda.estimator.embedding:Embedding"
    cost: ClassVar[str] = "mda.cost.scoring:embedding"
    gives: ClassVar[tuple[str, ...]] = ()

    name: str = setting("embedding", "kind of estimator", one_of=("embedding",))
    layer: int | None = setting(
        None, "layer whose output is compared, null: the last, after the final norm", low=0
    )

    @property
    def requires(self) -> Requires:
        return Requires(query=True)


@dataclass
class LossConfig(AtCheckpoint):
    """The sample's mean token loss at one checkpoint."""

    estimator: ClassVar[str] = "mda.estimator.baselines:Loss"
    cost: ClassVar[str] = "mda.cost.scoring:loss"

    name: str = setting("loss", "kind of estimator", one_of=("loss",))


@dataclass
class GradientNormConfig(AtCheckpoint):
    """The norm of the sample's gradient in the unit's parameters, at one checkpoint."""

    estimator: ClassVar[str] = "mda.estimator.baselines:GradientNorm"
    cost: ClassVar[str] = "mda.cost.scoring:one_pass"

    name: str = setting("gradient_norm", "kind of estimator", one_of=("gradient_norm",))
    scope: str = setting("unit", SCOPE, one_of=SCOPES)

    @property
    def requires(self) -> Requires:
        return Requires(scope=self.scope)


PUSHED = "scores.parquet"
"""The table of scores in a data set of `mda push`."""


@dataclass
class FileConfig(EstimatorConfig):
    """Scores that another tool has made, read from a file."""

    estimator: ClassVar[str] = "mda.estimator.from_file:FromFile"
    cost: ClassVar[str] = "mda.cost.scoring:no_model"

    name: str = setting("file", "kind of estimator", one_of=("file",))
    path: str = setting(
        "???",
        "scores of the window's samples: .npy in stream order; .csv or .parquet with sample_id; "
        "or a folder of bergson, dattri-llm or `mda push`",
        enters=False,  # the content of the files is in the key instead
    )
    column: str | None = setting(
        None, "which scores, where there are several: a column, score_1 (bergson) or a question's "
        "number (dattri-llm); null: the only ones, or the first",
    )  # fmt: skip
    negate: bool = setting(False, "turn the sign around: a score above 0 must strengthen the unit")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path != "???" and not Path(self.path).exists():
            raise self._refuse("path", "a file or a folder that exists")

    def files(self) -> list[Path]:
        """Files whose content decides the scores: the file, or all of the folder's."""
        path = Path(self.path)
        if (path / PUSHED).is_file():
            return [path / PUSHED]
        return sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]


ESTIMATORS: dict[str, type[Group]] = {
    "ekfac": EkfacConfig,
    "tracin": TracinConfig,
    "exact": ExactConfig,
    "unrolled": UnrolledConfig,
    "random": RandomConfig,
    "repetition": RepetitionConfig,
    "bm25": Bm25Config,
    "ngram": NgramConfig,
    "embedding": EmbeddingConfig,
    "loss": LossConfig,
    "gradient_norm": GradientNormConfig,
    "file": FileConfig,
}
"""The options of `estimator`; plugins add theirs."""
