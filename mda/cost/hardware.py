"""The speed of passes: of a card by its data sheet, or of this machine as measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WORK: tuple[str, ...] = ("update", "measure", "score", "fit")
"""Kinds of work that differ in speed; a rate is known for each."""

TERA, GB = 1e12, 1e9


@dataclass(frozen=True)
class Card:
    """An accelerator: dense rates in operations a second, without sparsity, and memory."""

    name: str
    bf16: float  # tensor cores, sums in float32
    fp32: float  # without tensor cores
    memory: float  # bytes
    bandwidth: float  # of that memory, bytes a second
    source: str


CARDS = {
    "a100": Card("NVIDIA A100 SXM 80 GB", 312 * TERA, 19.5 * TERA, 80 * GB, 2.039 * TERA,
                 "NVIDIA A100 Tensor Core GPU data sheet"),
    "h100": Card("NVIDIA H100 SXM", 989 * TERA, 67 * TERA, 80 * GB, 3.35 * TERA,
                 "NVIDIA H100 Tensor Core GPU data sheet, without sparsity"),
    "h200": Card("NVIDIA H200 SXM", 989 * TERA, 67 * TERA, 141 * GB, 4.8 * TERA,
                 "NVIDIA H200 Tensor Core GPU data sheet, without sparsity"),
    "l40s": Card("NVIDIA L40S", 362 * TERA, 91.6 * TERA, 48 * GB, 0.864 * TERA,
                 "NVIDIA L40S data sheet"),
}  # fmt: skip
"""Names that `plan.hardware` takes."""


INTENSITY = 0.045
"""Operations for each byte a second that memory moves and each unit of the model's width.

Narrow models wait for memory. On an H200, updates in bf16 reached 0.039 to 0.050 with 4 sequences
at a time, and 0.061 to 0.065 with 16, at widths from 128 to 768 (sweeps/results/h200.json). That
float32, which moves more bytes, reaches no more is an assumption.
"""


@dataclass(frozen=True)
class Rates:
    """Operations per second for each kind of work, and their source, in words."""

    of: Mapping[str, float]
    source: str
    process: float = 0.0  # bytes of a process before it holds a model
    memory: float | None = None  # bytes there are, where that is known

    def seconds(self, flops: Mapping[str, float]) -> float:
        """Returns the time of some work, by its kinds."""
        return sum(amount / self.of[kind] for kind, amount in flops.items())


def rates_of_card(name: str, share: float, half: bool, width: int) -> Rates:
    """Returns a share of a card's rates: bf16 in training with `half`, float32 otherwise.

    They are limited by the memory bandwidth for a model of this width.
    """
    card = CARDS[name]
    most = INTENSITY * width * card.bandwidth
    rates = dict.fromkeys(WORK, min(share * card.fp32, most))
    if half:
        rates["update"] = min(share * card.bf16, most)
    said = f"bf16 in training, {card.bf16 / TERA:,.0f} TFLOP/s, " if half else ""
    source = (
        f"{card.name}: {said}float32 {'else' if half else 'throughout'}, {card.fp32 / TERA:g} "
        f"TFLOP/s ({card.source}); assumed: {share:.0%} of it is reached"
    )
    if share * (card.bf16 if half else card.fp32) > most:
        source += (
            f", or {most / TERA:,.0f} TFLOP/s where that is less: what {card.bandwidth / TERA:g} "
            f"TB/s feed to a width of {width}, as measured on an H200"
        )
    return Rates(rates, source, memory=card.memory)
