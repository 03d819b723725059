"""The group truth: the retrained sets and the comparisons of a benchmark of estimators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mda.schema.setting import Group, setting

UNITS = ("induction_head", "previous_token_head", "mlp_neuron")
ESTIMATORS = (
    "unrolled", "exact", "ekfac", "tracin", "repetition", "loss", "gradient_norm", "random",
)  # fmt: skip
STRATIFIED = ("unrolled", "ekfac", "repetition")


@dataclass
class TruthConfig(Group):
    """The estimators, units and retrained sets that a benchmark compares."""

    key: ClassVar[str] = "truth"
    name: str = setting("default", "preset, for tables")
    units: list[str] = setting(
        list(UNITS), "options of unit, each with settings of its own: 'mlp_neuron label=prose'"
    )
    estimators: list[str] = setting(
        list(ESTIMATORS), "options of estimator, each with settings: 'unrolled n_perturbed=4'"
    )
    subsets: int = setting(
        48, "sets that are removed to compare summed scores with, 0: none", low=0
    )
    fractions: list[float] = setting(
        [0.05, 0.3], "shares of the window that the sets have, in turn", above=0, below=1
    )
    strata: int = setting(3, "bands of scores that every second set is drawn within", low=1)
    strata_of: list[str] = setting(
        list(STRATIFIED), "estimators whose scores make the bands, in turn; []: draw all at random"
    )
    reruns: int = setting(
        1, "trainings of each set from perturbed starts: how well it repeats, 0: none", low=0
    )
    perturbation: float = setting(
        0.01, "noise in a perturbed start's weights, as a share of each parameter's spread", above=0
    )
    edits: list[float] = setting(
        [0.01, 0.03, 0.1], "shares of highest score that are removed and doubled", above=0, below=1
    )
    edits_of: list[str] | None = setting(
        None, "units whose highest samples are edited, here and in other runs; null: all"
    )
    transfer: list[int] = setting(
        [100], "seeds of other initial weights, on the same order, without the same samples", low=0
    )
    planted: list[str] = setting(
        [], "labels of the samples that cause the heads; a neuron's is its own; []: not known"
    )
    seed: int = setting(0, "seed of the sets and of the perturbations", low=0, high=2**32 - 1)
    finished_only: bool = setting(False, "build nothing: tables of what the store has")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("units", "estimators"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values) or not all(v.split() for v in values):
                raise self._refuse(name, "one or more, each once")
        for name in ("edits", "edits_of", "transfer"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise self._refuse(name, "each once")
        if self.transfer and not (self.edits and self.edited):
            raise self._refuse("transfer", "[] with truth.edits=[] or truth.edits_of=[]")
        if self.subsets and not self.fractions:
            raise self._refuse("fractions", "a share or more, or truth.subsets=0")
        if unknown := [name for name in self.strata_of if name not in self.estimators]:
            raise self._refuse("strata_of", f"those of truth.estimators, not {unknown[0]}")
        if unknown := [name for name in self.edited if name not in self.units]:
            raise self._refuse("edits_of", f"those of truth.units, not {unknown[0]}; or null")
        if self.subsets and self.strata_of and max(self.fractions) > 1 / self.strata:
            raise self._refuse("fractions", f"at most a band of 1 / truth.strata={self.strata}")

    def of_units(self, units: list[str]) -> TruthConfig:
        """Returns the same settings for some of the units."""
        edited = [unit for unit in self.edited if unit in units]
        transfer = self.transfer if edited else []
        return replace(self, units=units, edits_of=edited, transfer=transfer)

    @property
    def edited(self) -> list[str]:
        """The units whose highest samples are edited."""
        return self.units if self.edits_of is None else self.edits_of

    @property
    def retrains(self) -> bool:
        """True if any window is trained again."""
        return bool(self.subsets or (self.edits and self.edited))
