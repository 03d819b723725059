"""Find what the samples of highest influence have in common: motifs, in a file that can be edited.

Traces the unit (or finds the trace in the store) and writes motifs.json: records that samples
repeat, as fixed text with slots, each with its share of the chosen samples and of the whole window.
The same scores and tokens give the same file, byte by byte. `mda synthesize`
makes new rows of it.
"""

import time
from functools import partial
from pathlib import Path

from mda.config import main, next_command, setting_word
from mda.schema import Config

NEEDS = (
    "base", "data", "model", "training", "emergence", "sae", "unit", "estimator", "intervention",
    "motifs",
)  # fmt: skip


def motifs(config: Config, folder: Path) -> None:
    from mda import pipeline
    from mda.analysis.motifs import mine
    from mda.data.motif_file import write_motifs
    from mda.report.motifs import FILES, print_motifs, results_of
    from mda.report.summary import write_summary
    from mda.stages.context import Context
    from mda.stages.corpus import corpus_of, tokenizer_of

    start = time.perf_counter()
    context, settings = Context.of(config), config.motifs
    tokenizer_of(corpus_of(context))
    found = pipeline.trace(context)
    unit, traced, base = found.unit, found.traced, found.base
    bar = partial(context.bar, name="reading samples")
    mined = mine(found.corpus, traced.scores, unit.name, settings, lambda ids, n: bar(ids, total=n))
    fingerprints = {
        "corpus": found.corpus.fingerprint,
        "base": base.fingerprint,
        "scores": traced.fingerprint,
    }
    about = {"unit": unit.name, "select": settings.select, "samples": mined.samples}
    write_motifs(folder / "motifs.json", mined.motifs, about | {"made_from": fingerprints})
    write_summary(
        folder,
        "motifs",
        seed=config.seed,
        fingerprints=fingerprints,
        results=results_of(mined),
        files=FILES,
        times={
            "total_s": time.perf_counter() - start,
            "built": [name for name, stage in (("base", base), ("scores", traced)) if stage.built],
        },
        warnings=list(context.store.warnings.values()),
        unit=unit.name,
    )
    print_motifs(mined)
    made_of = setting_word("synthesis.motifs", str(folder / "motifs.json"))
    print(f"next: {next_command('synthesize', folder, made_of)}")
    print(folder)


def start() -> None:
    """Run as the command line says."""
    main(motifs, NEEDS)
