"""The whole configuration as plain dataclasses, and the rules its values must obey.

One class for each Hydra group, or one for each of its options where they differ in kind. A field
carries its default, what it means with its unit, and what is accepted; the command line's help
and its errors are made from these. Only the standard library is imported here, so a wrong
configuration is refused before anything heavy is loaded.

Rules within a group are checked when its object is made, those between groups by `validate`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

HEAD_METRICS = ("prefix_matching", "previous_token")
DISTRIBUTIONS = ("unigram_sqrt", "unigram", "uniform")
BLOCKS = ("qk", "v", "o")


class ConfigError(ValueError):
    """Something the user can put right: one sentence with key, value and what is accepted."""


def refuse(key: str, value: object, accepted: str) -> ConfigError:
    """The error for `key=value`, to be raised by the caller."""
    return ConfigError(f"{key}={show(value)} is refused; accepted: {accepted}")


def show(value: object) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(show(item) for item in value)}]"
    return str(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the known word closest to `word`; empty if none is close."""
    known = list(known)
    tails = {name.rsplit(".", 1)[-1]: name for name in known}
    tail = word.rsplit(".", 1)[-1]
    if match := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f", did you mean {match[0]}?"
    if match := difflib.get_close_matches(tail, tails, n=1, cutoff=0.8):
        return f", did you mean {tails[match[0]]}?"
    return ""


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a group. `limits`: low, high (inclusive), above, below, one_of, each.

    A mutable default is copied for each object; `each` says that limits hold for list items.
    """
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def accepted(item: Field[Any]) -> str:
    """What a field accepts, in words, from its type and limits."""
    if said := item.metadata.get("accepts"):
        return said
    kind = str(item.type)
    nullable = "None" in kind
    names = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a text"}
    base = kind.replace(" | None", "")
    words = names.get(base, base)
    if match := re.fullmatch(r"list\[(\w+)\]", base):
        words = f"a list of {names[match[1]].split()[-1]}s"
    limits = item.metadata
    if "one_of" in limits:
        choices = ", ".join(limits["one_of"])
        words = f"a list of {choices}" if base.startswith("list") else f"one of {choices}"
    bounds = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    said = [f"{word} {limits[name]}" for name, word in bounds.items() if name in limits]
    return " ".join([words, " and ".join(said)]).strip() + (", or null" if nullable else "")


@dataclass
class Group:
    """Base of all groups: checks every field against its limits."""

    key: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            for one in value if isinstance(value, list) else [value]:
                if one is not None and not _within(one, item.metadata):
                    raise refuse(f"{self.key}.{item.name}", value, self._accepted(item, one))

    def _accepted(self, item: Field[Any], value: object) -> str:
        return accepted(item) + nearest(str(value), item.metadata.get("one_of", ()))

    def _refuse(self, name: str, accepted: str) -> ConfigError:
        return refuse(f"{self.key}.{name}", getattr(self, name), accepted)


def _within(value: Any, limits: Any) -> bool:
    return (
        ("one_of" not in limits or value in limits["one_of"])
        and ("low" not in limits or value >= limits["low"])
        and ("above" not in limits or value > limits["above"])
        and ("high" not in limits or value <= limits["high"])
        and ("below" not in limits or value < limits["below"])
    )


# ------------------------------------------------------------------------------------- data


@dataclass
class DataConfig(Group):
    """The ordered token stream; its class is chosen by `data=...`."""

    key: ClassVar[str] = "data"
    name: str = setting("???", "kind of corpus, set by data=...")
    seq_len: int = setting(128, "T, predicted tokens in a sequence", low=8)
    vocab_size: int = setting(512, "tokens in the vocabulary", low=2, high=2**32)
    held_out: int = setting(512, "sequences kept out of the stream for evaluation", low=1)
    shuffle: bool = setting(True, "order the stream by the run's seed, else as it is stored")


@dataclass
class EmbeddedConfig(DataConfig):
    """Real text of installed packages, one class label for each sequence."""

    name: str = setting("embedded", "kind of corpus", one_of=("embedded",))
    generated_share: float = setting(
        0.2, "share of the bytes that are generated documents", low=0, below=1
    )
    n_sequences: int | None = setting(None, "sequences to keep, null for all", low=16)
    seed: int = setting(0, "seed of generated documents and of their order", low=0)


@dataclass
class TemplateWeights(Group):
    """Shares of the generated document kinds, relative to each other."""

    key: ClassVar[str] = "data.templates"
    xml: float = setting(1.0, "records under random tags", low=0)
    latex: float = setting(1.0, "tables", low=0)
    json: float = setting(1.0, "objects with shared keys", low=0)
    log: float = setting(1.0, "log lines", low=0)
    salad: float = setting(1.0, "independent words: nothing to copy", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(getattr(self, item.name) for item in fields(self)):
            raise refuse(self.key, "all 0", "at least one weight above 0")


@dataclass
class SyntheticConfig(DataConfig):
    """Documents generated from seeded templates with planted, labelled repetition."""

    name: str = setting("synthetic", "kind of corpus", one_of=("synthetic",))
    n_sequences: int = setting(4096, "sequences in all, held-out ones included", low=16)
    templates: TemplateWeights = field(default_factory=TemplateWeights)
    seed: int = setting(0, "seed of the documents", low=0)


@dataclass
class TokensConfig(DataConfig):
    """Token rows of your own: a 2-D .npy, or a raw file of rows of seq_len + 1 tokens."""

    name: str = setting("tokens", "kind of corpus", one_of=("tokens",))
    path: str = setting("???", "file of token rows, .npy or raw little-endian")
    dtype: str = setting("uint16", "tokens of a raw file", one_of=("uint16", "uint32"))
    labels: str | None = setting(None, ".npy of one integer for each row, null for none")
    label_names: list[str] = setting([], "names of the labels, in their order")
    tokenizer: str | None = setting(None, "tokenizer.json, to show text in place of ids")
    special_ids: list[int] = setting([], "ids that no probe may draw: end of text, padding", low=0)


# ------------------------------------------------------------------------------------ model


@dataclass
class ModelConfig(Group):
    """Shape and origin of a GPT-NeoX model."""

    key: ClassVar[str] = "model"
    name: str = setting("nano", "preset, for tables and figures")
    n_layers: int = setting(4, "layers", low=1)
    d_model: int = setting(64, "width of the residual stream", low=2)
    n_heads: int = setting(4, "attention heads in a layer", low=1)
    d_ff: int = setting(256, "width of the MLP", low=1)
    vocab_size: int = setting(512, "rows of the embedding, padding included", low=2)
    max_seq_len: int = setting(128, "longest context in tokens", low=8)
    rotary_pct: float = setting(1.0, "share of a head's dimensions that rotate", above=0, high=1)
    rotary_base: float = setting(10_000.0, "base of the rotary wave lengths", above=1)
    peak_lr: float = setting(3e-3, "learning rate this size is trained with", above=0)
    source: str = setting("scratch", "`scratch`, or the folder of a local checkpoint")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.n_heads:
            raise self._refuse("n_heads", f"a divisor of model.d_model={self.d_model}")
        d_head = self.d_model // self.n_heads
        rotary = int(d_head * self.rotary_pct)
        if rotary < 2 or rotary % 2:
            raise self._refuse(
                "rotary_pct",
                f"a share of the {d_head} dimensions of a head that is an even number, at least 2 "
                f"(this one is {rotary})",
            )


# --------------------------------------------------------------------------------- training


@dataclass
class TrainingConfig(Group):
    """AdamW with warm-up and cosine decay, and which checkpoints are kept."""

    key: ClassVar[str] = "training"
    batch_size: int = setting(8, "sequences in a step", low=1)
    total_steps: int = setting(4000, "steps of the learning-rate schedule", low=1)
    stop_step: int | None = setting(None, "end the run early at this step, null: run all", low=1)
    peak_lr: float = setting(3e-3, "learning rate after warm-up", above=0)
    min_lr_ratio: float = setting(0.1, "last learning rate as a share of the peak", low=0, high=1)
    warmup_steps: int = setting(100, "steps of linear warm-up", low=0)
    beta1: float = setting(0.9, "AdamW, decay of the first moment", low=0, below=1)
    beta2: float = setting(0.95, "AdamW, decay of the second moment", low=0, below=1)
    eps: float = setting(1e-8, "AdamW, added to the denominator", above=0)
    weight_decay: float = setting(0.01, "AdamW; biases and norms do not decay", low=0)
    grad_clip: float = setting(1.0, "largest gradient norm, 0: no clipping", low=0)
    checkpoint_every: int = setting(250, "steps between checkpoints, 0: none", low=0)
    checkpoint_log_spaced: bool = setting(True, "keep steps 1, 2, 4, 8, ... too")
    accelerator: str = setting("cpu", "device", one_of=("auto", "cpu", "gpu"))
    devices: int = setting(1, "processes, one for each device", low=1)
    precision: str = setting(
        "32-true", "arithmetic of the forward pass", one_of=("32-true", "bf16-mixed", "16-mixed")
    )
    threads: int | None = setting(None, "CPU threads, null: all cores", low=1)

    @property
    def last_step(self) -> int:
        """The step at which the run ends."""
        return self.total_steps if self.stop_step is None else self.stop_step

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = f"training.total_steps={self.total_steps}"
        if self.warmup_steps >= self.total_steps:
            raise self._refuse("warmup_steps", f"fewer than {steps}")
        if self.last_step > self.total_steps:
            raise self._refuse("stop_step", f"at most {steps}, or null")
        if self.batch_size % self.devices:
            raise self._refuse("devices", f"a divisor of training.batch_size={self.batch_size}")
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise self._refuse("precision", "32-true or bf16-mixed with training.accelerator=cpu")


# -------------------------------------------------------------------------------- emergence


@dataclass
class OnsetConfig(Group):
    """Values that a metric must cross for its head to count as emerged."""

    key: ClassVar[str] = "emergence.onset"
    prefix_matching: float = setting(0.06, "induction score of a head", above=0, below=1)
    previous_token: float = setting(0.3, "previous-token score of a head", above=0, below=1)


@dataclass
class EmergenceConfig(Group):
    """What is measured while a model trains, on which probe tokens, and how often."""

    key: ClassVar[str] = "emergence"
    every: int = setting(50, "steps between measurements", low=1)
    n_sequences: int = setting(32, "probe sequences", low=1)
    length: int = setting(64, "tokens that a probe sequence repeats twice", low=2)
    distribution: str = setting(
        "unigram_sqrt", "what probe tokens are drawn from", one_of=DISTRIBUTIONS
    )
    seed: int = setting(0, "seed of the probe tokens", low=0)
    held_out: int = setting(256, "held-out sequences for loss and ICL score", low=1)
    icl_late: int | None = setting(None, "ICL position, null: 500 scaled from 2,048", low=1)
    icl_early: list[int] | None = setting(
        None, "ICL positions [start,end), null: [0,50] scaled from 2,048", low=0
    )
    onset: OnsetConfig = field(default_factory=OnsetConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.icl_early is not None and not _is_range(self.icl_early):
            raise self._refuse("icl_early", "[start,end] with start below end, or null")


# ------------------------------------------------------------------------------------- unit


@dataclass
class ProbeConfig(Group):
    """The differentiable probe of a unit: what it asks and on which tokens."""

    key: ClassVar[str] = "unit.probe"
    target: str = setting(
        "copy",
        "copy: log p of the token that followed the first time; previous_token: A[t, t-1]",
        one_of=("copy", "previous_token"),
    )
    n_sequences: int = setting(64, "probe sequences", low=1)
    length: int = setting(64, "tokens of a sequence before it repeats", low=2)
    repeats: int = setting(2, "how often these tokens stand in a sequence", low=1)
    distribution: str = setting(
        "unigram_sqrt", "what probe tokens are drawn from", one_of=DISTRIBUTIONS
    )
    seed: int = setting(1, "seed of the probe tokens; another than emergence.seed", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "copy" and self.repeats < 2:
            raise self._refuse("repeats", "at least 2 with unit.probe.target=copy")


@dataclass
class UnitConfig(Group):
    """The triple of a unit: metric, own parameters, probe."""

    key: ClassVar[str] = "unit"
    name: str = setting("induction_head", "preset, for tables and figures")
    metric: str = setting("prefix_matching", "metric that finds it", one_of=HEAD_METRICS)
    threshold: float = setting(0.06, "metric from which a head counts as one", above=0, below=1)
    locate: str = setting(
        "auto",
        "auto: strongest head of the base run; mechanism: the k strongest together; all; or L3H1",
        accepts="auto, mechanism, all, or a head such as L3H1",
    )
    k: int = setting(2, "heads of the mechanism", low=1)
    blocks: list[str] = setting(
        list(BLOCKS), "its own parameters; qk is W_Q and W_K as one block", one_of=BLOCKS
    )
    biases: bool = setting(False, "count the biases of these blocks as its own")
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("auto", "mechanism", "all")
        if self.locate not in known and self.head is None:
            raise self._refuse(
                "locate", f"{', '.join(known)}, or a head such as L3H1{nearest(self.locate, known)}"
            )
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise self._refuse("blocks", f"each of {', '.join(BLOCKS)} at most once, one at least")

    @property
    def head(self) -> tuple[int, int] | None:
        """Layer and head where `locate` names one, else None."""
        match = re.fullmatch(r"L(\d+)H(\d+)", self.locate)
        return (int(match[1]), int(match[2])) if match else None


# -------------------------------------------------------------------------------- estimator

MOMENTS = ("onset", "window_middle", "window_end")


@dataclass
class EstimatorConfig(Group):
    """How samples are scored; its class is chosen by `estimator=...`."""

    key: ClassVar[str] = "estimator"
    name: str = setting("???", "kind of estimator, set by estimator=...")


@dataclass
class EkfacConfig(EstimatorConfig):
    """Influence with EK-FAC curvature at one checkpoint."""

    name: str = setting("ekfac", "kind of estimator", one_of=("ekfac",))
    checkpoint: int | str = setting(
        "window_middle",
        f"which is scored: {', '.join(MOMENTS)}, or a step",
        accepts=f"{', '.join(MOMENTS)}, or a step that has a checkpoint",
    )
    damping: float = setting(0.1, "added to the eigenvalues, as a share of their mean", above=0)
    fit_sequences: int | None = setting(
        4096, "samples the curvature is fitted on, null: the whole window", low=1
    )
    labels: str = setting(
        "sampled", "labels of the Fisher: the model's own, or the data's",
        one_of=("sampled", "empirical"),
    )  # fmt: skip
    batch_size: int = setting(32, "sequences in a pass; no effect on the result", low=1)
    seed: int = setting(0, "seed of the subset and of sampled labels", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.checkpoint, int) and self.checkpoint >= 0:
            return
        if self.checkpoint not in MOMENTS:
            close = nearest(str(self.checkpoint), MOMENTS)
            raise self._refuse("checkpoint", f"{', '.join(MOMENTS)}, or a step{close}")


@dataclass
class TracinConfig(EstimatorConfig):
    """Gradient dot products summed over checkpoints."""

    name: str = setting("tracin", "kind of estimator", one_of=("tracin",))
    checkpoints: list[int] | None = setting(
        None, "steps, null: every checkpoint in the window", low=0
    )
    lr_weights: bool = setting(True, "weight each checkpoint by its learning rate")
    adam_preconditioning: bool = setting(False, "divide by the root of Adam's second moment")
    batch_size: int = setting(32, "sequences in a pass; no effect on the result", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoints is not None and not self.checkpoints:
            raise self._refuse("checkpoints", "at least one step, or null")


@dataclass
class RandomConfig(EstimatorConfig):
    """Scores drawn from a seeded generator: the baseline of equal size."""

    name: str = setting("random", "kind of estimator", one_of=("random",))
    seed: int = setting(0, "seed of the scores", low=0)


# ----------------------------------------------------------------------------- intervention


@dataclass
class InterventionConfig(Group):
    """Where the stream is edited; the class is chosen by `intervention=...`."""

    key: ClassVar[str] = "intervention"
    name: str = setting("???", "kind of edit, set by intervention=...")
    window: Any = setting(
        "auto",
        "steps [start,end) that are edited and retrained; auto: around the onset",
        accepts="auto, or steps [start,end] with start below end",
    )
    before_onset: int = setting(500, "auto window: starts at least so many steps before", low=0)
    after_onset: int = setting(1000, "auto window: ends so many steps after", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window != "auto" and not _is_range(self.window):
            raise self._refuse("window", "auto, or steps [start,end] with 0 <= start < end")

    @property
    def steps(self) -> tuple[int, int] | None:
        """The window where it is given in steps, None for auto."""
        return None if self.window == "auto" else (self.window[0], self.window[1])


@dataclass
class EditConfig(InterventionConfig):
    """Which samples of the window are edited."""

    select: str = setting(
        "top", "samples by their score", one_of=("top", "bottom", "random", "ids")
    )
    fraction: float | None = setting(0.1, "share of the window's samples", above=0, high=1)
    count: int | None = setting(None, "number of samples, in place of fraction", low=1)
    label: str | None = setting(None, "choose among samples of this class only")
    ids: list[int] = setting([], "sample ids, with select=ids", low=0)
    match: str = setting(
        "none", "give a random set the targeted one's distribution",
        one_of=("none", "label", "loss"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.select == "ids") != bool(self.ids):
            raise self._refuse("ids", "a list of sample ids with intervention.select=ids, else []")
        if self.select != "ids" and (self.fraction is None) == (self.count is None):
            raise self._refuse("count", "either a count or intervention.fraction, the other null")


@dataclass
class RemoveConfig(EditConfig):
    """Take samples out of the window."""

    name: str = setting("remove", "kind of edit", one_of=("remove",))
    mode: str = setting(
        "mask",
        "mask: loss weight 0 in place; drop: the stream closes up; replace: by unused samples",
        one_of=("mask", "drop", "replace"),
    )


@dataclass
class AugmentConfig(EditConfig):
    """Give samples of the window more weight, or insert rows of your own."""

    name: str = setting("augment", "kind of edit", one_of=("augment",))
    mode: str = setting(
        "duplicate",
        "duplicate: one more copy in its step; upweight: its loss; insert: rows from a file",
        one_of=("duplicate", "upweight", "insert"),
    )
    weight: float = setting(2.0, "loss weight with mode=upweight", above=0)
    rows: str | None = setting(None, ".npy of token rows with mode=insert")
    at_step: int | None = setting(None, "first step of mode=insert, null: window's start", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mode == "insert") != (self.rows is not None):
            raise self._refuse("rows", "a file of token rows with mode=insert, else null")


@dataclass
class ControlConfig(InterventionConfig):
    """The unedited stream through the same code."""

    name: str = setting("control", "kind of edit", one_of=("control",))


# -------------------------------------------------------------------------- report and logger


@dataclass
class ReportConfig(Group):
    """Tables and figures."""

    key: ClassVar[str] = "report"
    top_heads: int = setting(5, "heads in the table of the strongest", low=1)
    dpi: int = setting(150, "resolution of figures, dots per inch", low=30)


@dataclass
class LoggerConfig(Group):
    """Where metrics go besides the CSV that is always written."""

    key: ClassVar[str] = "logger"
    name: str = setting("csv", "csv: nowhere else; wandb: Weights & Biases", one_of=("csv",))


@dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases; offline runs are uploaded with `wandb sync`."""

    name: str = setting("wandb", "csv: nowhere else; wandb: Weights & Biases", one_of=("wandb",))
    mode: str = setting("offline", "offline needs no account", one_of=("offline", "online"))
    project: str = setting("mda", "project, one for each study")
    entity: str | None = setting(None, "user or team, null: your default")
    group: str | None = setting(None, "group of runs, null: the sweep's or run's name")


# -------------------------------------------------------------------------------- everything


@dataclass
class Config(Group):
    """All groups, and what belongs to none."""

    seed: int = setting(0, "seed of initial weights and of the stream's order", low=0)
    name: str = setting("run", "folder of the run under outputs/runs/<program>/")
    output_dir: str = setting("outputs", "folder of store/, runs/ and reports/")
    data: DataConfig = field(default_factory=EmbeddedConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    emergence: EmergenceConfig = field(default_factory=EmergenceConfig)
    unit: UnitConfig = field(default_factory=UnitConfig)
    estimator: EstimatorConfig = field(default_factory=EkfacConfig)
    intervention: InterventionConfig = field(default_factory=RemoveConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    logger: LoggerConfig = field(default_factory=WandbConfig)

    def _refuse(self, name: str, accepted: str) -> ConfigError:
        return refuse(name, getattr(self, name), accepted)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.,=+-]+", self.name) or self.name.startswith("."):
            raise self._refuse("name", "letters, digits and any of _ . , = + -")


OPTIONS: dict[str, dict[str, type[Group]]] = {
    "data": {"embedded": EmbeddedConfig, "synthetic": SyntheticConfig, "tokens": TokensConfig},
    "estimator": {"ekfac": EkfacConfig, "tracin": TracinConfig, "random": RandomConfig},
    "intervention": {"remove": RemoveConfig, "augment": AugmentConfig, "control": ControlConfig},
    "logger": {"csv": LoggerConfig, "wandb": WandbConfig},
}
"""Groups whose options differ in kind, and the class of each."""


def _is_range(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(item) is int for item in value)
        and 0 <= value[0] < value[1]
    )


# ------------------------------------------------------------------- rules between the groups


def _data_fits_model(c: Config) -> None:
    if c.data.vocab_size > c.model.vocab_size:
        limit = f"at most model.vocab_size={c.model.vocab_size}"
        raise refuse("data.vocab_size", c.data.vocab_size, limit)
    if c.data.seq_len > c.model.max_seq_len:
        limit = f"at most model.max_seq_len={c.model.max_seq_len}"
        raise refuse("data.seq_len", c.data.seq_len, limit)


def _data_lasts(c: Config) -> None:
    total = getattr(c.data, "n_sequences", None)
    needed = c.training.last_step * c.training.batch_size + c.data.held_out
    if total is not None and total < needed:
        raise refuse(
            "data.n_sequences",
            total,
            f"at least {needed}: {c.training.last_step} steps x training.batch_size="
            f"{c.training.batch_size} + data.held_out={c.data.held_out}",
        )


def _held_out_exists(c: Config) -> None:
    if c.emergence.held_out > c.data.held_out:
        limit = f"at most data.held_out={c.data.held_out}"
        raise refuse("emergence.held_out", c.emergence.held_out, limit)


def _icl_positions_exist(c: Config) -> None:
    early, late = c.emergence.icl_early, c.emergence.icl_late
    limit = f"positions below data.seq_len={c.data.seq_len}"
    if late is not None and late >= c.data.seq_len:
        raise refuse("emergence.icl_late", late, limit)
    if early is not None and early[1] > c.data.seq_len:
        raise refuse("emergence.icl_early", early, limit)


def _metric_probe_fits_context(c: Config) -> None:
    if 2 * c.emergence.length > c.model.max_seq_len:
        limit = f"at most {c.model.max_seq_len // 2}, half of model.max_seq_len"
        raise refuse("emergence.length", c.emergence.length, limit)


def _measured_in_time(c: Config) -> None:
    if c.emergence.every > c.training.last_step:
        limit = f"at most the run's {c.training.last_step} steps"
        raise refuse("emergence.every", c.emergence.every, limit)


def _unit_exists(c: Config) -> None:
    layers, heads = c.model.n_layers, c.model.n_heads
    if c.unit.head and (c.unit.head[0] >= layers or c.unit.head[1] >= heads):
        raise refuse("unit.locate", c.unit.locate, f"L0H0 to L{layers - 1}H{heads - 1}")
    if c.unit.locate == "mechanism" and c.unit.k > layers * heads:
        raise refuse("unit.k", c.unit.k, f"at most the model's {layers * heads} heads")


def _unit_probe_fits_context(c: Config) -> None:
    probe, context = c.unit.probe, c.model.max_seq_len
    if probe.length * probe.repeats > context:
        limit = f"at most {context // probe.repeats}, model.max_seq_len / unit.probe.repeats"
        raise refuse("unit.probe.length", probe.length, limit)


def _scored_steps_exist(c: Config) -> None:
    last = c.training.last_step
    step = getattr(c.estimator, "checkpoint", None)
    if isinstance(step, int) and step > last:
        raise refuse("estimator.checkpoint", step, f"a step of the run, 0 to {last}")
    steps = getattr(c.estimator, "checkpoints", None) or []
    if any(step > last for step in steps):
        raise refuse("estimator.checkpoints", steps, f"steps of the run, 0 to {last}")


def _window_in_run(c: Config) -> None:
    last = c.training.last_step
    if c.intervention.steps and c.intervention.steps[1] > last:
        raise refuse("intervention.window", c.intervention.window, f"steps within [0,{last}]")
    step = getattr(c.intervention, "at_step", None)
    if step is not None and step >= last:
        raise refuse("intervention.at_step", step, f"a step below the run's {last}")


def _enough_to_edit(c: Config) -> None:
    count = getattr(c.intervention, "count", None)
    if c.intervention.steps and count is not None:
        start, end = c.intervention.steps
        samples = (end - start) * c.training.batch_size
        if count > samples:
            limit = f"at most the window's {samples} samples"
            raise refuse("intervention.count", count, limit)


RULES: tuple[tuple[tuple[str, ...], Callable[[Config], None]], ...] = (
    (("data", "model"), _data_fits_model),
    (("data", "training"), _data_lasts),
    (("data", "emergence"), _held_out_exists),
    (("data", "emergence"), _icl_positions_exist),
    (("model", "emergence"), _metric_probe_fits_context),
    (("training", "emergence"), _measured_in_time),
    (("model", "unit"), _unit_exists),
    (("model", "unit"), _unit_probe_fits_context),
    (("training", "estimator"), _scored_steps_exist),
    (("training", "intervention"), _window_in_run),
    (("training", "intervention"), _enough_to_edit),
)


def validate(config: Config, groups: Iterable[str] | None = None) -> None:
    """Check the rules between groups; only those between `groups`, where given.

    Raises ConfigError, one sentence with the full key, the value and what is accepted.
    """
    used = set(groups) if groups is not None else {item.name for item in fields(Config)}
    for needed, rule in RULES:
        if used.issuperset(needed):
            rule(config)
