"""Run folders with MADE-UP numbers, in the form that experiments/run.py writes them.

Nothing was trained: the curves are logistic functions with planted effects of each arm, so tests
know what a comparison must find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mda import store
from mda.schema import AugmentConfig, ControlConfig, InterventionConfig, RemoveConfig
from mda.schema.edit import as_data

START, END, EVERY, BATCH, SEQ_LEN = 1000, 3000, 100, 8, 128
LAYERS = HEADS = 4
STARTED = "2026-03-01T12:00:00+00:00"


@dataclass(frozen=True)
class Edit:
    """An arm and its planted effect: the share of control's rise, and a delay in steps."""

    intervention: str
    estimator: str = ""
    select: str = "top"
    strength: float = 1.0
    delay: float = 0.0
    replicates: int = 1
    fraction: float = 0.1
    band: tuple[float, float] | None = None
    match: str = "none"
    match_targeted: str = "exclude"
    mode: str = ""  # of an edit of tokens; else the usual one
    able: dict[str, float] | None = None  # what its model can do at the end


STANDARD = (
    Edit("control"),
    Edit("remove", "ekfac", strength=0.6, delay=300),
    Edit("remove", "tracin", strength=0.75, delay=150),
    Edit("remove", "random", strength=0.97, delay=10, replicates=3),
    Edit("augment", "ekfac", strength=1.15, delay=-150),
    Edit("augment", "random", strength=1.0, delay=-5, replicates=2),
)
BANDS = tuple(
    Edit(
        "remove",
        "ekfac",
        "band",
        strength=1 - 0.04 * d,
        delay=25 * d,
        band=(round(d / 10, 1), round(d / 10 + 0.1, 1)),
    )
    for d in range(10)
)


def write_runs(
    root: Path, seeds: Sequence[int] = range(5), edits: Sequence[Edit] = STANDARD, noise=0.004
) -> list[Path]:
    """One folder for each seed, arm and replicate; returns them."""
    return [
        _write_run(root, seed, edit, replicate, noise)
        for seed in seeds
        for edit in edits
        for replicate in range(edit.replicates)
    ]


def aim_at_neurons(folders: Sequence[Path]) -> None:
    """Make the unit of these runs a neuron, which rises as their head does, twice as high."""
    for folder in folders:
        summary = store.read_json(folder / "summary.json")
        head = f"emergence/prefix_matching/{summary['unit']}"
        name, metric = summary["unit"].replace("H", "N"), "label_auc"
        curve = store.read_csv(folder / "curve.csv")
        rows = [row | {f"emergence/{metric}/{name}": 0.5 + 2 * float(row[head])} for row in curve]
        store.write_csv(folder / "curve.csv", rows)
        unit = {"unit": name, "heads": [name], "metric": metric, "threshold": 0.65}
        results = summary["results"] | {"base_heads": {f"emergence/{metric}/{name}": 0.8}}
        changed = {"fingerprints": summary["fingerprints"]
                   | {"arm": f"{summary['fingerprints']['arm']}-neuron"}}  # fmt: skip
        store.write_json(folder / "summary.json", summary | unit | changed | {"results": results})
        seal(folder)


def seal(folder: Path) -> None:
    """Let the summary of a run have the hash of its curve as it is."""
    summary = store.read_json(folder / "summary.json")
    hashes = {"curve.csv": store.hash_file(folder / "curve.csv")}
    store.write_json(folder / "summary.json", summary | {"hashes": hashes})


def _write_run(root: Path, seed: int, edit: Edit, replicate: int, noise: float) -> Path:
    name = f"{edit.intervention}_{edit.estimator}_{edit.select}_{edit.band}_{edit.fraction}"
    folder = (
        root
        / f"seed{seed}"
        / f"{name}_{edit.match}_{edit.match_targeted}_{replicate}".replace(" ", "")
    )
    rng = np.random.default_rng([seed, replicate, *name.encode()])
    unit = _unit(seed)
    rows = list(_curve(seed, edit, rng, noise))
    rows[-1] |= {f"capabilities/{name}": value for name, value in (edit.able or {}).items()}
    store.write_csv(folder / "curve.csv", rows, list(rows[-1]))
    store.write_json(folder / "summary.json", _summary(seed, edit, replicate, unit, folder.name))
    store.write_csv(folder / "edit.csv", [])
    seal(folder)
    lines = [f"intervention={edit.intervention}", f"estimator={edit.estimator or 'ekfac'}"]
    overrides = [*lines, f"seed={seed}"]
    store.write_json(folder / "job.json", {"program": "run", "overrides": overrides})
    return folder


def _unit(seed: int) -> tuple[int, int]:
    return 2 + seed % 2, seed % HEADS


def _curve(seed: int, edit: Edit, rng: np.random.Generator, noise: float):
    shared = np.random.default_rng([99, seed])
    onset, height = 1800 + 150 * shared.normal(), 0.13 + 0.02 * shared.normal()
    unit = _unit(seed)
    second = (unit[0], (unit[1] + 1) % HEADS)
    offsets = noise * rng.normal(size=8)
    jitter = 0.1 * noise * rng.normal(size=(LAYERS, HEADS))
    for step in range(START, END + 1, EVERY):
        rise = 1 / (1 + np.exp(-(step - onset - edit.delay) / 150)) * edit.strength
        row: dict[str, Any] = {"step": step, "tokens": step * BATCH * SEQ_LEN}
        for layer, head in np.ndindex(LAYERS, HEADS):
            score = 0.01 + 0.002 * ((layer + head) % 3) + jitter[layer, head]
            if (layer, head) == unit:
                score += height * rise + offsets[0]
            elif (layer, head) == second:
                score += 0.7 * height * rise + offsets[1]
            row[f"emergence/prefix_matching/L{layer}H{head}"] = score
            row[f"emergence/prefix_matching_se/L{layer}H{head}"] = 0.003
            row[f"emergence/previous_token/L{layer}H{head}"] = 0.1 + 0.05 * (layer == 1)
            row[f"emergence/previous_token_se/L{layer}H{head}"] = 0.003
        for metric in ("prefix_matching", "previous_token"):
            prefix = f"emergence/{metric}/L"
            row[f"emergence/{metric}/strongest"] = max(
                v for k, v in row.items() if k.startswith(prefix)
            )
        row["emergence/copy_gain"] = 0.45 * rise + 5 * offsets[2]
        row["emergence/prompts"] = 1.5 * rise + 5 * offsets[2]
        row["emergence/icl_score"] = -0.02 - 0.18 * rise + offsets[3]
        row["emergence/icl_score/real"] = -0.01 - 0.08 * rise + offsets[3]
        row["emergence/icl_score/generated"] = -0.03 - 0.28 * rise + offsets[3]
        row["val/loss"] = 3.5 - step / 4000 + offsets[4]
        for i, label in enumerate(("code", "latex", "prose")):
            row[f"val/loss/{label}"] = 3.2 + 0.3 * i - step / 4000 + offsets[5 + i]
        yield row


def _base_heads(seed: int) -> dict[str, float]:
    """The base run after the window: the fixed head and the second are induction heads."""
    unit = _unit(seed)
    high = {unit: 0.15, (unit[0], (unit[1] + 1) % HEADS): 0.11}
    return {
        f"emergence/{metric}/L{layer}H{head}": value
        for layer, head in np.ndindex(LAYERS, HEADS)
        for metric, value in (
            ("prefix_matching", high.get((layer, head), 0.012)),
            ("previous_token", 0.15 if layer == 1 else 0.1),
        )
    }


def _settings(edit: Edit) -> InterventionConfig:
    if edit.intervention == "control":
        return ControlConfig()
    kind = {"remove": RemoveConfig, "augment": AugmentConfig}[edit.intervention]
    mode = {"mode": edit.mode} if edit.mode else {}
    band = None if edit.band is None else list(edit.band)
    return kind(
        select=edit.select,
        fraction=edit.fraction,
        band=band,
        match=edit.match,
        match_targeted=edit.match_targeted,
        **mode,
    )


def _summary(seed: int, edit: Edit, replicate: int, unit: tuple[int, int], name: str) -> dict:
    settings = _settings(edit)
    what = settings.edit(edit.estimator)
    n = 0 if edit.intervention == "control" else round(edit.fraction * (END - START) * BATCH)
    action = getattr(settings, "mode", "none")
    intervention = asdict(settings) | {"action": action, "n": n, "tokens": n * SEQ_LEN}
    estimator: dict[str, Any] = {"name": edit.estimator, "seed": replicate}
    return {
        "program": "run",
        "seed": seed,
        "unit": f"L{unit[0]}H{unit[1]}",
        "heads": [f"L{unit[0]}H{unit[1]}"],
        "metric": "prefix_matching",
        "threshold": 0.06,
        "edit": as_data(what),
        "intervention": intervention,
        "results": {"started": STARTED, "base_heads": _base_heads(seed)},
        "estimator": estimator,
        "window": {"start": START, "end": END},
        "batch_size": BATCH,
        "seq_len": SEQ_LEN,
        "fingerprints": {
            "corpus": "made-up",
            "base": f"base{seed}",
            "scores": f"scores{seed}",
            "edit": f"edit-{seed}-{name}",
            "arm": f"arm-{seed}-{name}",
        },
        "times": {"total_s": 1.0},
        "versions": {},
        "git": {"sha": "0" * 40, "dirty": False},
    }
