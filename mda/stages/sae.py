"""The sparse autoencoder whose features are units, where the unit asks for one."""

from __future__ import annotations

from mda.data.stream import Corpus
from mda.sae.autoencoder import Sae
from mda.stages.context import Context
from mda.stages.runs import Run


def sae_of(context: Context, corpus: Corpus, base: Run) -> Sae | None:
    """The unit's autoencoder: read from its folder, or trained on the base run's last model."""
    if not context.config.unit.reads_sae:
        return None
    raise NotImplementedError
