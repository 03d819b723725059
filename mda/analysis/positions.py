"""The distribution of influence over positions, which shows attention sinks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BANDS = (0, 1, 8, 64)  # first positions of the bands
TOO_MUCH = 1 / 3  # of all absolute influence, at one position


@dataclass(frozen=True)
class PositionShares:
    """Shares of the absolute influence of some samples, each a mean over samples."""

    samples: int
    bands: dict[str, float]  # "0", "1-7", "8-63" and "64+", as far as there are positions
    position: int  # the one with the largest share
    share: float  # that it has

    @property
    def warning(self) -> str | None:
        """A sentence if one position has more than a third of the influence."""
        if self.share <= TOO_MUCH:
            return None
        return (
            f"position {self.position} has {self.share:.0%} of the absolute influence: scores "
            "say what the unit does there, such as in an attention sink; compare "
            "estimator.factors=sequence or estimator=exact"
        )


def position_shares(influence_NT: np.ndarray) -> PositionShares | None:
    """Returns shares of positions in |influence|, without samples that have none.

    Returns None without any.
    """
    size_NT = np.abs(influence_NT)
    size_NT = size_NT[size_NT.sum(1) > 0]
    if not len(size_NT):
        return None
    share_T = (size_NT / size_NT.sum(1, keepdims=True)).mean(0)
    bands = {}
    for first, end in zip(BANDS, (*BANDS[1:], None), strict=True):
        if first < len(share_T):
            last = len(share_T) - 1 if end is None else min(end, len(share_T)) - 1
            name = f"{first}+" if end is None else f"{first}-{last}" if last > first else f"{first}"
            bands[name] = float(share_T[first:end].sum())
    largest = int(share_T.argmax())
    return PositionShares(len(size_NT), bands, largest, float(share_T[largest]))
