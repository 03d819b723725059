"""How fast passes run: on a card by its data sheet, or on this machine as it was measured."""

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
    source: str


CARDS = {
    "a100": Card("NVIDIA A100 SXM 80 GB", 312 * TERA, 19.5 * TERA, 80 * GB,
                 "NVIDIA A100 Tensor Core GPU data sheet"),
    "h100": Card("NVIDIA H100 SXM", 989 * TERA, 67 * TERA, 80 * GB,
                 "NVIDIA H100 Tensor Core GPU data sheet; half of its rate with sparsity"),
    "h200": Card("NVIDIA H200 SXM", 989 * TERA, 67 * TERA, 141 * GB,
                 "NVIDIA H200 Tensor Core GPU data sheet; half of its rate with sparsity"),
    "l40s": Card("NVIDIA L40S", 362 * TERA, 91.6 * TERA, 48 * GB, "NVIDIA L40S data sheet"),
}  # fmt: skip
"""Names that `plan.hardware` takes."""


@dataclass(frozen=True)
class Rates:
    """Operations a second for each kind of work, and where they come from, in words."""

    of: Mapping[str, float]
    source: str
    process: float = 0.0  # bytes of a process before it holds a model
    memory: float | None = None  # bytes there are, where that is known

    def seconds(self, flops: Mapping[str, float]) -> float:
        """Time of some work, by its kinds."""
        return sum(amount / self.of[kind] for kind, amount in flops.items())


def rates_of_card(name: str, share: float, half: bool) -> Rates:
    """A share of a card's rate: bf16 in training where `half`, else and in all else float32."""
    card = CARDS[name]
    rates = dict.fromkeys(WORK, share * card.fp32)
    if half:
        rates["update"] = share * card.bf16
    said = f"bf16 in training, {card.bf16 / TERA:,.0f} TFLOP/s, " if half else ""
    source = (
        f"{card.name}: {said}float32 {'else' if half else 'throughout'}, {card.fp32 / TERA:g} "
        f"TFLOP/s ({card.source}); assumed: {share:.0%} of it is reached"
    )
    return Rates(rates, source, memory=card.memory)
