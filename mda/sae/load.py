"""Sparse autoencoders from files, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from mda.sae import dictionary_learning, saelens, sparsify
from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint
from mda.schema import ConfigError, refuse

FORMATS = {
    "saelens": saelens.FILES,
    "sparsify": sparsify.FILES,
    "dictionary_learning": dictionary_learning.FILES,
}


def load_sae(
    folder: Path,
    format: str = "auto",
    *,
    hook: Hookpoint | None = None,
    input_scale: float | None = None,
) -> Sae:
    """The SAE in a folder, in float32; `auto` tells its layout by the names of the files.

    `hook` takes the place of the hookpoint that the files or the folder's name say, for a folder
    that was renamed. `input_scale` concerns SAELens alone, see there. Raises ConfigError, one
    sentence, for a folder of another layout and for an SAE that is not supported.
    """
    folder = Path(folder)
    if format not in ("auto", *FORMATS):
        raise refuse("format", format, f"auto, {', '.join(FORMATS)}")
    looked_for = FORMATS if format == "auto" else {format: FORMATS[format]}
    found = [
        name for name, files in looked_for.items() if all((folder / f).is_file() for f in files)
    ]
    if len(found) != 1:
        layouts = "; or ".join(
            f"{' and '.join(files)} ({name})" for name, files in looked_for.items()
        )
        several = f"holds {' and '.join(found)}" if found else "holds no SAE"
        raise ConfigError(f"{folder}: {several}; accepted: a folder with {layouts}")
    try:
        if found[0] == "saelens":
            return saelens.load(folder, hook, input_scale)
        return (sparsify if found[0] == "sparsify" else dictionary_learning).load(folder, hook)
    except ConfigError:
        raise
    except ValueError as error:  # tensors that don't fit together
        raise ConfigError(f"{folder}: {error}") from error
