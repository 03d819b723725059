"""The page that Neuronpedia has of a feature, where the SAE's own settings name its place there."""

from __future__ import annotations

import re
from pathlib import Path

from mda.sae.reading import read_settings
from mda.schema import SaeFeatureConfig, UnitConfig

SITE = "https://www.neuronpedia.org"


def feature_page(settings: UnitConfig, unit: str) -> str | None:
    """Returns the address of a unit, such as L8F120, on Neuronpedia.

    SAELens writes `neuronpedia_id`, model and SAE as `gpt2-small/8-res-jb`, into cfg.json: at the
    top, or since version 6 into `metadata`. Returns None without it, for several features, and for
    units that are no features.
    """
    source = settings.source if isinstance(settings, SaeFeatureConfig) else None
    file, feature = Path(source or "") / "cfg.json", re.fullmatch(r"L\d+F(\d+)", unit)
    if source is None or feature is None or not file.is_file():
        return None
    cfg = read_settings(file)
    place = {**cfg, **(cfg.get("metadata") or {})}.get("neuronpedia_id")
    if not isinstance(place, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return None
    return f"{SITE}/{place}/{feature[1]}"
