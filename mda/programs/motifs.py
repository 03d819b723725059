"""Find motifs: records that samples of highest influence share, in a file that can be edited.

Traces the unit (or finds the trace in the store) and writes motifs.json: records that samples
repeat, as fixed text with slots, each with its share of the chosen samples and of the whole window.
The same scores and tokens give the same file, byte by byte. `mda synthesize` makes new rows from
it.
"""

import time
from functools import partial
from pathlib import Path

from mda.config import next_command, setting_word
from mda.schema import Config
from mda.stages.declared import SCORES, needs

NEEDS = (*needs(SCORES), "motifs")


def motifs(config: Config, folder: Path) -> None:
    """Finds the motifs of the unit's highest samples and writes them into `folder`."""
    from mda import pipeline
    from mda.analysis.motifs import mine
    from mda.data.motif_file import write_motifs
    from mda.report.motifs import FILES, print_motifs, results_of
    from mda.report.summary import of_stages, write_summary
    from mda.stages.context import Context
    from mda.stages.corpus import tokenizer_of

    start = time.perf_counter()
    context, settings = Context.of(config), config.motifs
    tokenizer_of(pipeline.corpus_of(context))
    found = pipeline.trace(context)
    unit, traced, base = found.unit, found.traced, found.base
    bar = partial(context.at.bar, name="reading samples")
    mined = mine(found.corpus, traced.scores, unit.name, settings, lambda ids, n: bar(ids, total=n))
    stages = of_stages(found.corpus.fingerprint, {"base": base, "scores": traced}, start)
    about = {"unit": unit.name, "select": settings.select, "samples": mined.samples}
    write_motifs(
        folder / "motifs.json", mined.motifs, about | {"made_from": stages["fingerprints"]}
    )
    write_summary(
        folder,
        "motifs",
        seed=config.seed,
        **stages,
        results=results_of(mined),
        files=FILES,
        warnings=list(context.store.warnings.values()),
        unit=unit.name,
    )
    print_motifs(mined)
    made_of = setting_word("synthesis.motifs", str(folder / "motifs.json"))
    print(f"next: {next_command('synthesize', folder, made_of)}")
    print(folder)
