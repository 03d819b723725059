"""The unit group: the traced part of a model.

One class for each kind of unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mda.schema.metrics import HEAD_METRICS, modules
from mda.schema.prompts import read_prompts
from mda.schema.run import DISTRIBUTIONS
from mda.schema.sae import HOOKS
from mda.schema.setting import Group, nearest, setting

HEAD_BLOCKS = ("qk", "v", "o")


@dataclass
class ProbeConfig(Group):
    """The tokens of a measurement, and the quantity that is measured on them."""

    key: ClassVar[str] = "unit.probe"
    target: str = setting(
        "copy",
        "copy: log p of the token that followed the first time; label: log p of held-out text of "
        "one class; prompts: log p of right continuations minus wrong ones; or a metric of heads, "
        "such as previous_token: the attention A[t, t-1]",
        accepts="copy, label, prompts, or a metric of heads such as previous_token",
    )
    n_sequences: int = setting(64, "probe sequences", low=1)
    length: int = setting(64, "tokens of a sequence before it repeats", low=2)
    repeats: int = setting(2, "occurrences of these tokens in a sequence", low=1)
    distribution: str = setting(
        "unigram_sqrt", "distribution of the probe tokens", one_of=DISTRIBUTIONS
    )
    seed: int = setting(
        1, "seed of the probe tokens; must differ from emergence.seed", low=0, high=2**32 - 2
    )
    file: str | None = setting(
        None,
        "prompts with unit.probe.target=prompts: JSON lines with prompt, right and, in all or "
        "none, wrong, each a text or token ids",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("copy", *HEAD_METRICS, "label", "prompts")
        if self.target not in known:
            near = nearest(self.target, known)
            raise self._refuse("target", f"one of {', '.join(known)}{near}")
        if (self.target == "prompts") != (self.file is not None):
            raise self._refuse(
                "file", "a file of prompts with unit.probe.target=prompts, else null"
            )
        if self.file is not None:
            read_prompts(self.file, f"{self.key}.file")
        metric, beside = HEAD_METRICS.get(self.target), f"with unit.probe.target={self.target}"
        repeats = metric.repeats if metric else 1 + (self.target == "copy")
        if self.repeats < repeats:
            raise self._refuse("repeats", f"at least {repeats} {beside}")
        if metric and self.length < metric.length:
            raise self._refuse("length", f"at least {metric.length} {beside}")


@dataclass
class UnitConfig(Group):
    """A kind of unit: the metric that finds it, and its own parameters."""

    key: ClassVar[str] = "unit"
    kind: ClassVar[str] = ""  # `module:class` that carries it out, see mda/unit/kind.py
    pattern: ClassVar[str] = ""  # what a unit's name looks like
    example: ClassVar[str] = ""
    words: ClassVar[tuple[str, ...]] = ("auto",)
    reads_sae: ClassVar[bool] = False
    those_found: ClassVar[bool] = False  # its units are those that were found, and no others

    name: str = setting("???", "kind of unit, set by unit=...")
    metric: str = setting("???", "metric that finds it, as in emergence/<metric>/<unit>")
    threshold: float | None = setting(0.5, "metric from which a unit counts as present")
    locate: str = setting("auto", "auto: strongest unit of the base run; or a unit's name")
    only: bool = setting(False, "score it alone, in its own blocks, and no other unit of its kind")
    biases: bool = setting(False, "count the biases of its blocks as its own")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.onset_threshold
        if self.locate not in self.words and self.named is None:
            known = f"{', '.join(self.words)}, or a unit's name such as {self.example}"
            raise self._refuse("locate", known + nearest(self.locate, self.words))

    @property
    def onset_threshold(self) -> float:
        """The value of its metric from which a unit counts as emerged."""
        if self.threshold is None:
            raise self._refuse("threshold", "a number")
        return self.threshold

    def files(self) -> list[Path]:
        """Files whose content decides the measurement, or the units."""
        probe = getattr(self, "probe", None)
        return [Path(probe.file)] if probe is not None and probe.file else []

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that carry the kind out: their source is part of a key."""
        return (self.kind.partition(":")[0],)

    @property
    def named(self) -> tuple[str, ...] | None:
        """The numbers in the name of the unit if `locate` names one, else None."""
        match = re.fullmatch(self.pattern, self.locate)
        return match.groups() if match else None


@dataclass
class HeadConfig(UnitConfig):
    """An attention head."""

    kind: ClassVar[str] = "mda.unit.attention_head:AttentionHeads"
    pattern: ClassVar[str] = r"L(\d+)H(\d+)"
    example: ClassVar[str] = "L3H1"
    words: ClassVar[tuple[str, ...]] = ("auto", "mechanism")

    name: str = setting("induction_head", "name of the preset, that of its file")
    metric: str = setting("prefix_matching", "metric that finds it", one_of=HEAD_METRICS)
    threshold: float | None = setting(
        None, "metric from which a head counts as one, null: the metric's own", above=0, below=1
    )
    locate: str = setting(
        "auto",
        "auto: strongest head of the base run; mechanism: the k strongest together; or L3H1",
        accepts="auto, mechanism, or a head such as L3H1",
    )
    k: int = setting(2, "heads of the mechanism", low=1)
    blocks: list[str] = setting(
        list(HEAD_BLOCKS), "its own parameters; qk is W_Q and W_K as one block", one_of=HEAD_BLOCKS
    )
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            known = ", ".join(HEAD_BLOCKS)
            raise self._refuse("blocks", f"each of {known} at most once, one at least")
        if self.probe.target == "label":
            raise self.probe._refuse(
                "target", f"copy, {', '.join(HEAD_METRICS)} or prompts for heads"
            )
        if self.probe.target in HEAD_METRICS and "qk" not in self.blocks:
            raise self._refuse(
                "blocks", f"qk among them with unit.probe.target={self.probe.target}"
            )

    @property
    def onset_threshold(self) -> float:
        own = HEAD_METRICS[self.metric].threshold
        return own if self.threshold is None else self.threshold

    @property
    def modules(self) -> tuple[str, ...]:
        attended = [self.probe.target] if self.probe.target in HEAD_METRICS else []
        return (*super().modules, *modules(self.metric, *attended))


@dataclass
class NeuronConfig(UnitConfig):
    """An MLP neuron whose activation separates one class of text from the others."""

    kind: ClassVar[str] = "mda.unit.mlp_neuron:MlpNeurons"
    pattern: ClassVar[str] = r"L(\d+)N(\d+)"
    example: ClassVar[str] = "L2N41"

    name: str = setting("mlp_neuron", "kind of unit", one_of=("mlp_neuron",))
    metric: str = setting("label_auc", "ROC AUC for the label", one_of=("label_auc",))
    threshold: float = setting(0.65, "ROC AUC from which it counts as present", above=0.5, below=1)
    label: str = setting("???", "class of text that it must separate from the others")
    layers: list[int] | None = setting(None, "layers that are searched, null: all", low=0)
    biases: bool = setting(True, "count the bias of its input weights as its own")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and (
            not self.layers or len(set(self.layers)) < len(self.layers)
        ):
            raise self._refuse("layers", "null, or distinct layers")


@dataclass
class ModuleConfig(UnitConfig):
    """A layer's attention or MLP as a whole, or both."""

    kind: ClassVar[str] = "mda.unit.module:Modules"
    pattern: ClassVar[str] = r"L(\d+)(?:\.(attn|mlp))?"
    example: ClassVar[str] = "L2.mlp"

    name: str = setting("module", "kind of unit", one_of=("module",))
    metric: str = setting(
        "ablation", "nats of the measurement that its mean ablation costs", one_of=("ablation",)
    )
    threshold: float = setting(0.1, "nats from which it counts as present", above=0)
    parts: list[str] = setting(
        ["attention", "mlp"],
        "which modules are units; both: a layer's attention and MLP as one",
        one_of=("attention", "mlp", "both"),
    )
    label: str | None = setting(None, "class of text, with unit.probe.target=label")
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise self._refuse("parts", "attention, mlp or both, each at most once, one at least")
        if self.probe.target in HEAD_METRICS:
            raise self.probe._refuse("target", "copy, label or prompts for modules")
        if (self.probe.target == "label") != (self.label is not None):
            raise self._refuse("label", "a class of text with unit.probe.target=label, else null")


@dataclass
class DirectionConfig(UnitConfig):
    """A direction at a hook point along which one class of text stands apart from the others."""

    kind: ClassVar[str] = "mda.unit.direction:StreamDirections"
    pattern: ClassVar[str] = r"L(\d+)D(\d+)"
    example: ClassVar[str] = "L2D0"
    those_found: ClassVar[bool] = True

    name: str = setting("direction", "kind of unit", one_of=("direction",))
    metric: str = setting("label_auc", "ROC AUC for the label", one_of=("label_auc",))
    threshold: float = setting(0.65, "ROC AUC from which it counts as present", above=0.5, below=1)
    label: str = setting("???", "class of text that it must separate from the others")
    file: str = setting(
        "???", ".npy of a vector [d_model], such as a probe's, or of several [n, d_model]"
    )
    layer: int = setting("???", "layer that writes what it is a direction of, from 0", low=0)
    hook: str = setting(
        "resid_post",
        "resid_post: the residual stream after the layer; or the output of its attention or MLP",
        one_of=HOOKS,
    )
    k: int = setting(
        8, "directions of the file traced together, the strongest for the label", low=1
    )
    owners: list[str] = setting(
        ["attention", "mlp"],
        "modules of the layer whose output projections count as its own",
        one_of=("attention", "mlp"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.owners or len(set(self.owners)) < len(self.owners):
            raise self._refuse("owners", "attention, mlp, or both, each at most once")
        wanted = {"attn_out": "attention", "mlp_out": "mlp"}.get(self.hook)
        if wanted is not None and wanted not in self.owners:
            raise self._refuse("owners", f"{wanted} among them with unit.hook={self.hook}")
        if self.named is not None and int(self.named[0]) != self.layer:
            raise self._refuse(
                "locate", f"L{self.layer}D and a number with unit.layer={self.layer}"
            )
        if self.file != "???" and not Path(self.file).is_file():
            raise self._refuse("file", "a .npy file that exists")

    def files(self) -> list[Path]:
        return [Path(self.file)]


@dataclass
class SaeFeatureConfig(UnitConfig):
    """A feature of a sparse autoencoder that separates one class of text from the others."""

    kind: ClassVar[str] = "mda.unit.sae_feature:SaeFeatures"
    pattern: ClassVar[str] = r"L(\d+)F(\d+)"
    example: ClassVar[str] = "L2F120"
    reads_sae: ClassVar[bool] = True
    those_found: ClassVar[bool] = True

    name: str = setting("sae_feature", "kind of unit", one_of=("sae_feature",))
    metric: str = setting("label_auc", "ROC AUC for the label", one_of=("label_auc",))
    threshold: float = setting(0.7, "ROC AUC from which it counts as present", above=0.5, below=1)
    label: str = setting("???", "class of text that it must separate from the others")
    k: int = setting(8, "features traced together, the strongest for the label", low=1)
    source: str | None = setting(None, "folder of an SAE, null: one is trained as sae=... says")
    owners: list[str] = setting(
        ["attention", "mlp"],
        "modules of the layer that writes what it reads which count as its own",
        one_of=("attention", "mlp"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.owners or len(set(self.owners)) < len(self.owners):
            raise self._refuse("owners", "attention, mlp, or both, each at most once")
