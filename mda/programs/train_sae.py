"""Train a sparse autoencoder on the activations of a base run.

Trains the base run (or takes it from the store), then a top-k autoencoder on the output of one
layer of its last model, and reports its quality on held-out text. The autoencoder is kept in the
store in the layout of sparsify; `unit=sae_feature` finds it there.
"""

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from mda.config import next_command
from mda.schema import Config
from mda.stages.declared import SAE, needs

NEEDS = (*needs(SAE), "logger")
FILES = {"history.csv": "explained variance and share of dead features in the course of training"}


def train_sae(config: Config, folder: Path) -> None:
    """Trains the sparse autoencoder and writes its quality into `folder`."""
    from mda import pipeline
    from mda.report.job_log import job_log
    from mda.report.summary import of_stages, write_summary
    from mda.stages.context import Context
    from mda.stages.sae import SaeStage
    from mda.stages.stage import make

    start = time.perf_counter()
    with job_log(config, folder, settings=asdict(config), job_type="sae", arm="SAE") as log:
        corpus, base = pipeline.train(Context.of(config), needs(SAE))
        found = make(SaeStage(base, config.sae), Context.of(config, log.row).at)
        results = {"hookpoint": str(found.hook), "step": found.step, **asdict(found.quality)}
        log.summary(results)
    for name in FILES:
        shutil.copyfile(found.folder / name, folder / name)
    write_summary(
        folder,
        "train_sae",
        seed=config.seed,
        **of_stages(corpus.fingerprint, {"base": base, "sae": found}, start),
        results=results,
        files=FILES,
    )
    reached = found.quality
    print(
        f"{found.hook} at step {found.step:,}: explained variance "
        f"{reached.explained_variance:.3f}, {reached.l0:.1f} features of a token active, "
        f"{reached.dead_share:.1%} dead on {reached.tokens:,} held-out tokens"
    )
    print(f"autoencoder: {found.folder}")
    follows = next_command("trace", folder, "unit=sae_feature", f"seed={config.seed}")
    print(f"{log.hint}next: {follows}")
    print(folder)
