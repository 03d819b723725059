"""The share of influence that repetition, loss and label explain, together and by itself.

All of it is on ranks: y is the rank of a sample's score, x_1 that of its repetition (nats that
copying its earlier text predicts, see `mda.estimator.baselines`), x_2 that of its loss, and the
label is a set of indicators. Least squares with a constant gives R^2 of any of these together.

    together            R^2 of y on all of them
    alone               R^2 of y on one of them
    partial correlation of x, the others held:
                        corr(y - y_hat, x - x_hat), y_hat and x_hat fitted on the others;
                        the partial Spearman correlation, and its square is
                        (R^2_all - R^2_others) / (1 - R^2_others)
    of the label        the root of that last expression, which has no sign
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 20_000  # of a larger window a random part, which says R^2 to within a hundredth


@dataclass(frozen=True)
class Cause:
    """One property that may explain influence."""

    name: str  # repetition, loss or label
    alone: float  # R^2
    partial: float | None  # None where the others leave nothing of it, or of the scores


@dataclass(frozen=True)
class Decile:
    """A tenth of the samples by score; the first has the lowest scores."""

    score: float  # means over the samples
    repetition: float  # nats
    loss: float | None  # nats
    label: str  # the one that it has most of beyond its share of the window
    share: float  # of this label in the decile
    share_all: float  # and in the window


@dataclass(frozen=True)
class Catalysts:
    """The properties that explain the scores of a trace."""

    samples: int
    together: float
    causes: tuple[Cause, ...]
    deciles: tuple[Decile, ...]


def catalysts(
    scores: np.ndarray, repetition: np.ndarray, losses: np.ndarray, labels: list[str]
) -> Catalysts:
    """Explains the scores [N] of some samples.

    Constant or unknown properties are left out.

    Raises ValueError below ten samples.
    """
    n = len(scores)
    if n < 10:
        raise ValueError(f"{n} samples have no deciles")
    properties = {
        "repetition": repetition[:, None],
        "loss": losses[:, None],
        "label": _ones(labels),
    }
    columns = {
        name: values if name == "label" else _ranks(values[:, 0])[:, None]
        for name, values in properties.items()
        if np.isfinite(values).all() and (values != values[:1]).any()
    }
    y = _ranks(scores)
    causes = tuple(
        Cause(name, _r2(y, [columns[name]]), _partial(y, columns, name)) for name in columns
    )
    order = np.argsort(scores, kind="stable")
    deciles = tuple(
        _decile(at, scores, repetition, losses, labels) for at in np.array_split(order, 10)
    )
    return Catalysts(n, _r2(y, list(columns.values())), causes, deciles)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy import stats  # takes half a second

    return stats.rankdata(values).astype(np.float64)


def _ones(labels: Sequence[str]) -> np.ndarray:
    """Returns indicators of all labels but the first, float64 [N, labels - 1], or a constant."""
    names, which = np.unique(np.asarray(labels), return_inverse=True)
    return np.eye(len(names))[which][:, 1:] if len(names) > 1 else np.zeros((len(which), 1))


def _residual(y: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the residual of y after least squares on the columns and a constant."""
    design = np.concatenate([np.ones((len(y), 1)), *columns], 1)
    design[:, 1:] -= design[:, 1:].mean(0)
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


def _r2(y: np.ndarray, columns: Sequence[np.ndarray]) -> float:
    whole = np.square(y - y.mean()).sum()
    if not columns or whole == 0:
        return 0.0
    return float(max(0.0, 1 - np.square(_residual(y, columns)).sum() / whole))


def _partial(y: np.ndarray, columns: Mapping[str, np.ndarray], name: str) -> float | None:
    others = [values for other, values in columns.items() if other != name]
    left, all_of_them = 1 - _r2(y, others), 1 - _r2(y, list(columns.values()))
    if left < 1e-9:
        return None
    size = float(np.sqrt(max(0.0, (left - all_of_them) / left)))
    if name == "label":
        return size
    x = columns[name][:, 0]
    if _r2(x, others) > 1 - 1e-9:
        return None
    return float(np.copysign(size, _residual(y, others) @ _residual(x, others)))


def _decile(
    at: np.ndarray,
    scores: np.ndarray,
    repetition: np.ndarray,
    losses: np.ndarray,
    labels: list[str],
) -> Decile:
    here, everywhere = Counter(labels[i] for i in at), Counter(labels)
    beyond = {
        name: n / len(at) - everywhere[name] / len(labels) for name, n in sorted(here.items())
    }
    label = max(beyond, key=lambda name: beyond[name])
    loss = float(losses[at].mean())
    return Decile(
        score=float(scores[at].mean()),
        repetition=float(repetition[at].mean()),
        loss=loss if np.isfinite(loss) else None,
        label=label,
        share=here[label] / len(at),
        share_all=everywhere[label] / len(labels),
    )
