"""Trace folders with MADE-UP samples, in the form that experiments/trace.py writes them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from mda import store
from mda.analysis.catalysts import catalysts

WORDS = (
    "def ", "self", "\n", "    ", "<b>", "</script>", "&amp;", "x", "(", ")", "\\frac", "{", "é"
)  # fmt: skip
LABELS = ("code", "latex", "html", "prose")


def write_trace(folder: Path, n: int = 12, seed: int = 0, length: int = 128) -> Path:
    """n highest and n lowest samples of `length` + 1 tokens; labels go round in `LABELS`."""
    rng = np.random.default_rng(seed)
    groups = {}
    for title, sign in ((f"The {n} highest", 1), (f"The {n} lowest", -1)):
        groups[title] = [
            {
                "id": 1000 * seed + i,
                "step": 1000 + i,
                "label": LABELS[i % len(LABELS)],
                "score": float(sign * (n - i) / n),
                "loss": None if i % 7 == 0 else float(rng.gamma(3)),
                "tokens": [WORDS[k] for k in rng.integers(0, len(WORDS), length + 1)],
                "influence": [float(f"{x:.4g}") for x in rng.standard_t(3, length)],
            }
            for i in range(n)
        ]
    store.write_json(folder / "top_samples.json", {"unit": f"L2H{seed}", "samples": groups})
    scores, labels = rng.normal(size=400), [LABELS[i % len(LABELS)] for i in range(400)]
    repetition, losses = scores + rng.normal(size=400) + 5, rng.gamma(3, size=400)
    store.write_json(
        folder / "catalysts.json", asdict(catalysts(scores, repetition, losses, labels))
    )
    store.write_json(
        folder / "summary.json",
        {
            "program": "trace",
            "seed": seed,
            "estimator": {"name": "ekfac"},
            "fingerprints": {"scores": f"scores{seed}"},
        },
    )
    return folder
