"""Sparse autoencoders read from files of any supported library."""

from __future__ import annotations

from pathlib import Path

from mda.sae import dictionary_learning, saelens, sparsify
from mda.sae.autoencoder import Sae
from mda.schema import ConfigError, refuse

MODULES = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
}
FORMATS = {name: module.FILES for name, module in MODULES.items()}


def load_sae(folder: Path, format: str = "auto") -> Sae:
    """Returns the SAE in a folder, in float32; `auto` detects its layout by the file names.

    Raises ConfigError for a folder of another layout and for an SAE that is not supported.
    """
    folder = Path(folder)
    if format not in ("auto", *FORMATS):
        raise refuse("format", format, f"auto, {', '.join(FORMATS)}")
    looked_for = FORMATS if format == "auto" else {format: FORMATS[format]}
    layouts_here = [
        name for name, files in looked_for.items() if all((folder / f).is_file() for f in files)
    ]
    if len(layouts_here) != 1:
        layouts = "; or ".join(
            f"{' and '.join(files)} ({name})" for name, files in looked_for.items()
        )
        several = f"holds {' and '.join(layouts_here)}" if layouts_here else "holds no SAE"
        raise ConfigError(f"{folder}: {several}; expected a folder with {layouts}")
    try:
        sae = MODULES[layouts_here[0]].load(folder)
    except ConfigError:
        raise
    except ValueError as error:  # tensors that don't fit together
        raise ConfigError(f"{folder}: {error}") from error
    for name, tensor in sae.tensors().items():
        # A feature whose threshold is infinite is never active.
        if not (tensor.isfinite() | (tensor.isinf() if name == "threshold_F" else False)).all():
            raise ConfigError(f"{folder}: {name} holds values that are not finite")
    return sae
