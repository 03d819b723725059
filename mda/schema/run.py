"""Groups that make a base run: training and emergence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mda.schema.prompts import read_prompts
from mda.schema.setting import Group, is_range, setting

DISTRIBUTIONS = ("unigram_sqrt", "unigram", "uniform")


@dataclass
class TrainingConfig(Group):
    """AdamW with warm-up and cosine decay, and which checkpoints are kept."""

    key: ClassVar[str] = "training"
    batch_size: int = setting(8, "sequences in a step", low=1)
    micro_batch_size: int | None = setting(
        None, "sequences in a forward pass, null: all of a step's; sets the memory", low=1
    )
    activation_checkpointing: bool = setting(
        False, "recompute activations instead of keeping them, to save memory"
    )
    total_steps: int = setting(6000, "steps of the learning-rate schedule", low=1, high=10**7)
    stop_step: int | None = setting(None, "end the run early at this step, null: run all", low=1)
    ends: str = setting(
        "schedule",
        "schedule: the base run ends at its last step; window: at the first point of its curve at "
        "or after the window's end",
        one_of=("schedule", "window"),
    )
    schedule: str = setting(
        "cosine", "learning rate over the steps, neox: GPT-NeoX's", one_of=("cosine", "neox")
    )
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
    threads: int | None = setting(1, "CPU threads, null: all cores", low=1)

    @property
    def last_step(self) -> int:
        """The step at which the run ends."""
        return self.total_steps if self.stop_step is None else self.stop_step

    @property
    def checkpoints(self) -> list[int]:
        """The steps at which the run keeps a checkpoint: both ends, every n, and 1, 2, 4, ..."""
        last, every = self.last_step, self.checkpoint_every
        kept = {0, last, *(range(0, last, every) if every else ())}
        if self.checkpoint_log_spaced:
            kept.update(2**i for i in range(last.bit_length()))
        return sorted(kept)

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = f"training.total_steps={self.total_steps}"
        if self.warmup_steps >= self.total_steps:
            raise self._refuse("warmup_steps", f"fewer than {steps}")
        if self.last_step > self.total_steps:
            raise self._refuse("stop_step", f"at most {steps}, or null")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            limit = f"at most training.batch_size={self.batch_size}, or null"
            raise self._refuse("micro_batch_size", limit)
        if self.batch_size % self.devices:
            raise self._refuse("devices", f"a divisor of training.batch_size={self.batch_size}")
        if self.ends == "window" and self.devices > 1:
            raise self._refuse("ends", f"schedule with training.devices={self.devices}")
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise self._refuse("precision", "32-true or bf16-mixed with training.accelerator=cpu")


@dataclass
class EmergenceConfig(Group):
    """The measurements during training: probe tokens, metrics and their spacing."""

    key: ClassVar[str] = "emergence"
    every: int = setting(125, "steps between measurements", low=1)
    n_sequences: int = setting(32, "probe sequences", low=1)
    length: int = setting(64, "tokens that a probe sequence repeats twice", low=2)
    distribution: str = setting(
        "unigram_sqrt", "distribution of the probe tokens", one_of=DISTRIBUTIONS
    )
    seed: int = setting(0, "seed of the probe tokens", low=0, high=2**32 - 1)
    held_out: int | None = setting(
        None, "most held-out sequences for loss and ICL score, null: all of them", low=2
    )
    held_out_every: int = setting(
        8,
        "points of the curve per measurement of loss and ICL score; both ends are measured",
        low=1,
    )
    arm_held_out_every: int | None = setting(
        None, "the same in arms, 1: at every point of their window; null: as in the base run", low=1
    )
    prompts: str | None = setting(
        None, "file of prompts, as unit.probe.file, measured at every point; null: none"
    )
    icl_late: list[int] | None = setting(
        None, "late positions [start,end) of the ICL score, null: the second half", low=0
    )
    icl_early: list[int] | None = setting(
        None, "early positions [start,end), null: the first 50 scaled from a context of 2,048",
        low=0,
    )  # fmt: skip

    @property
    def in_arms(self) -> EmergenceConfig:
        """Returns the measurements during an arm's training."""
        return replace(self, held_out_every=self.arm_held_out_every or self.held_out_every)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts is not None:
            read_prompts(self.prompts, f"{self.key}.prompts")
        for name in ("icl_late", "icl_early"):
            if getattr(self, name) is not None and not is_range(getattr(self, name)):
                raise self._refuse(name, "[start,end] with start below end, or null")
