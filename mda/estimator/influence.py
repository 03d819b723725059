"""The estimators that multiply a direction with a sample's gradient: EK-FAC, exact, and TracIn.

EK-FAC     score(z) = - <(H + c D)^-1 grad f, grad L(z)> at one checkpoint, see `ekfac`.
exact      the same with each block's damped Gauss-Newton matrix itself, see `exact`.
TracIn     score(z) = - sum_k eta_k <M_k grad f(theta_k), grad L(z; theta_k)>

(Pruthi et al. 2020, arXiv 2002.08484, equation 2, the measurement in place of a test loss), with
the learning rate eta_k or 1, and M_k the identity or Adam's step sizes. With one checkpoint and
eta = 1 it is the plain gradient dot product.

The damping D is the identity, or with `adam_damping` Adam's denominator sqrt(v) + eps. Training
with the steps eta D^-1 for a while answers a gradient g by -(H + D / tau)^-1 g up to the shape of
the cut-off: directions that are flat in Adam's own metric have not moved yet (for plain gradient
descent, Bae et al. 2024, arXiv 2405.12186). For large c only D^-1 is left, TracIn's M.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mda.estimator import exact
from mda.estimator.directions import DirectionEstimator
from mda.estimator.ekfac import INDEPENDENT, Fit, Labels
from mda.estimator.estimator import Work, kept_step, step_of
from mda.estimator.kfac_math import sequence_gradients
from mda.estimator.score import Rows
from mda.schema import ConfigError, EkfacConfig, ExactConfig, TracinConfig
from mda.schema.estimator import WithCurvature
from mda.types import ParameterBlock, Unit, Window
from mda.unit.blocks import BlockTensors, Directions, gather
from mda.unit.scope import UNIT

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Ekfac(DirectionEstimator):
    """Influence with EK-FAC curvature at one checkpoint."""

    settings: EkfacConfig

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        kept = with_moments(kept) if self.settings.adam_damping else kept
        return (step_of(self.settings.checkpoint, kept, window),)

    def directions(self, work: Work, step: int) -> tuple[PreTrainedModel, Directions]:
        """Returns (H + c D)^-1 grad f."""
        settings, model = self.settings, work.model(step)
        gradients = work.gradients(model)
        curvature = work.curvature(step, fit_of(settings, gradients))
        metric = adam_denominators(work, step, gradients) if settings.adam_damping else None
        blocks = curvature.inverse_times(gradients, settings.damping, metric)
        return model, Directions.of(work.units, blocks)


class Tracin(DirectionEstimator):
    """Gradient dot products along the checkpoints of the run itself."""

    settings: TracinConfig

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        if given := self.settings.checkpoints:
            return tuple(kept_step(kept, step, "estimator.checkpoints") for step in given)
        inside = [step for step in kept if window.start <= step <= window.end]
        if self.settings.adam_preconditioning and not (inside := with_moments(inside)):
            raise ConfigError(
                "estimator.adam_preconditioning=true is invalid; expected false, or an "
                f"intervention.window with a kept checkpoint after step 0, of {[*kept]}"
            )
        if not inside:
            raise ConfigError(
                f"estimator=tracin: no checkpoint lies in [{window.start},{window.end}]; "
                f"expected an intervention.window with one of {[*kept]}, or estimator.checkpoints"
            )
        return spread(inside, self.settings.n_checkpoints)

    def directions(self, work: Work, step: int) -> tuple[PreTrainedModel, Directions]:
        """Returns eta grad f, with Adam's step sizes if configured."""
        model = work.model(step)
        gradients = work.gradients(model)
        eta = work.learning_rate(step) if self.settings.lr_weights else 1.0
        sizes = None
        if self.settings.adam_preconditioning:
            sizes = adam_step_sizes(work.second_moments(step), gradients, work.adam_eps)
        return model, Directions.of(work.units, preconditioned(gradients, eta, sizes))


class Exact(DirectionEstimator):
    """Influence with each block's damped Gauss-Newton matrix itself, see `exact`."""

    settings: ExactConfig

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        kept = with_moments(kept) if self.settings.adam_damping else kept
        return (step_of(self.settings.checkpoint, kept, window),)

    def directions(self, work: Work, step: int) -> tuple[PreTrainedModel, Directions]:
        """Returns (F + c D)^-1 grad f by owner; 0 for an owner without a gradient.

        Beyond the unit's own parameters, F is one matrix of all of the scope's.
        """
        settings, model = self.settings, work.model(step)
        gradients = work.gradients(model)
        metric = adam_denominators(work, step, gradients) if settings.adam_damping else None
        if settings.scope != UNIT:
            return model, self._jointly(work, model, gradients, metric)
        blocks: dict[ParameterBlock, Tensor] = {}
        for block, v_RIJ in gradients.items():
            fit = fit_of(settings, [block])
            ids = fit.subset(work.sample_ids)
            parts = sequence_gradients_of(model, work.corpus.rows, ids, fit)
            blocks[block] = torch.zeros_like(v_RIJ, dtype=torch.float64)
            for owner in range(block.owners):
                rows = slice(None) if block.owners == 1 else slice(owner, owner + 1)
                own_NP = parts[:, owner].flatten(1).to(v_RIJ.device)
                own_P = None if metric is None else metric[block][owner].flatten().to(own_NP.device)
                if own_NP.any():
                    v_RP = v_RIJ[rows].flatten(1)
                    direction_RP = exact.inverse_times(own_NP, v_RP, settings.damping, own_P)
                    blocks[block][rows] = direction_RP.view_as(v_RIJ[rows])
        return model, Directions.of(work.units, blocks)

    def _jointly(
        self,
        work: Work,
        model: PreTrainedModel,
        gradients: BlockTensors,
        metric: BlockTensors | None,
    ) -> Directions:
        """Returns (F + c D)^-1 grad f of one unit with F of all its parts together."""
        settings, (unit,) = self.settings, work.units
        ids = fit_of(settings, gradients).subset(work.sample_ids)
        _check_size(settings.scope, len(ids), unit)

        def of_sequences(place: int) -> Tensor:
            block, row = unit.parts[place]
            fit = fit_of(settings, [block])
            parts = sequence_gradients_of(model, work.corpus.rows, ids, fit)
            return parts[:, row].flatten(1).to(model.device)

        v = [gradients[block][row].flatten() for block, row in unit.parts]
        denominators = None
        if metric is not None:
            denominators = [
                metric[block][row].flatten().to(model.device) for block, row in unit.parts
            ]
        directions = exact.joint_inverse_times(
            of_sequences, len(ids), v, denominators, settings.damping
        )
        blocks = {block: torch.zeros_like(v, dtype=torch.float64) for block, v in gradients.items()}
        for (block, row), part in zip(unit.parts, directions, strict=True):
            blocks[block][row] = part.view_as(blocks[block][row])
        return Directions.of(work.units, blocks)


def _check_size(scope: str, n: int, unit: Unit) -> None:
    """Raises ConfigError where the exact matrix of a scope does not fit into `exact.MOST` bytes."""
    largest = max(block.shape[1] * block.shape[2] for block, _ in unit.parts)
    if (needed := exact.joint_bytes(n, largest)) > exact.MOST:
        raise ConfigError(
            f"estimator.scope={scope} is invalid: with estimator=exact {n} sequences and a map of "
            f"{largest:,} parameters take {needed / 1e9:,.0f} GB; expected fewer "
            "estimator.fit_sequences, estimator=ekfac, or estimator.scope=unit"
        )


def fit_of(settings: WithCurvature, blocks: Iterable[ParameterBlock]) -> Fit:
    """Returns the fit of some blocks that an estimator's settings ask for."""
    return Fit(
        tuple(blocks),
        Labels(settings.labels, settings.seed),
        settings.batch_size,
        settings.fit_sequences,
        getattr(settings, "factors", INDEPENDENT),
        settings.skip_positions,
    )


def sequence_gradients_of(
    model: PreTrainedModel, rows: Rows, sample_ids: np.ndarray, fit: Fit
) -> Tensor:
    """Returns the gradient of samples' mean token loss in a fit's block, [N, H, I, J], on the CPU.

    Raises ValueError for a fit of several blocks.
    """
    (block,) = fit.blocks
    captures = fit.captures(model, rows, sample_ids)
    return torch.cat([sequence_gradients(c.x(block), c.dy(block)).cpu() for c in captures])


def with_moments(steps: Sequence[int]) -> list[int]:
    """Returns the steps whose checkpoint has Adam's moments: those after the first update."""
    return [step for step in steps if step > 0]


def adam_step_sizes(
    second_moments: Mapping[str, Tensor], blocks: Iterable[ParameterBlock], eps: float
) -> dict[ParameterBlock, Tensor]:
    """Returns 1 / (sqrt(v) + eps) of every block, [H, I, J]: the factors of Adam's update.

    `second_moments` is the bias-corrected v = exp_avg_sq / (1 - beta2^step) by parameter name.
    Raises KeyError naming a parameter that is missing.
    """
    return {block: 1 / (gather(block, second_moments).sqrt() + eps) for block in blocks}


def adam_denominators(
    work: Work, step: int, blocks: Iterable[ParameterBlock]
) -> dict[ParameterBlock, Tensor]:
    """Returns D = sqrt(v) + eps of every block at a step, [H, I, J]."""
    sizes = adam_step_sizes(work.second_moments(step), blocks, work.adam_eps)
    return {block: 1 / size for block, size in sizes.items()}


def preconditioned(
    gradients: BlockTensors, weight: float = 1.0, step_sizes: BlockTensors | None = None
) -> dict[ParameterBlock, Tensor]:
    """Returns P = eta M grad f by block; without `step_sizes`, M is the identity."""
    if step_sizes is None:
        return {at: weight * gradient for at, gradient in gradients.items()}
    return {at: weight * step_sizes[at].to(g) * g for at, g in gradients.items()}


def spread(steps: Sequence[int], n: int | None) -> tuple[int, ...]:
    """Returns n of some rising steps, those nearest to an even grid from first to last.

    n = 1 gives the middle one; None, or an n that is not below their number, gives all.
    """
    if n is None or len(steps) <= n:
        return tuple(steps)
    middle = [(steps[0] + steps[-1]) / 2]
    grid = middle if n == 1 else np.linspace(steps[0], steps[-1], n)
    return tuple(sorted({min(steps, key=lambda step: (abs(step - at), step)) for at in grid}))
