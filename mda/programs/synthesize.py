"""Make token rows from motifs, or rows for comparison, for `intervention.mode=insert`.

kind=motif writes records of a file's motifs with names that occur in no sample. The other kinds
give the same number of rows and tokens: the same tokens without repetition (shuffled), rows of the
corpus (random), repeated blocks of random tokens (repetition). Rows of motifs that are near-copies
of held-out text are drawn again. The same settings give the same files, byte by byte.
"""

import time
from dataclasses import asdict
from pathlib import Path

from mda.config import command_of, overrides_of, setting_word
from mda.schema import Config, refuse
from mda.stages.declared import CORPUS, needs

NEEDS = (*needs(CORPUS), "synthesis")


def synthesize(config: Config, folder: Path) -> None:
    """Writes the token rows and their table into `folder`."""
    from mda import pipeline, store
    from mda.data.motif_file import read_motifs
    from mda.data.synthesis import GRAM
    from mda.data.synthesis import synthesize as rows_from
    from mda.report.motifs import ROWS_FILES, rows_of
    from mda.report.summary import write_summary
    from mda.stages.context import Context
    from mda.stages.corpus import tokenizer_of

    start = time.perf_counter()
    settings, motifs, about = config.synthesis, (), {}
    if settings.from_motifs and settings.motifs is None:
        wanted = f"a motif file of `mda motifs`, with synthesis.kind={settings.kind}"
        raise refuse("synthesis.motifs", None, wanted)
    if settings.motifs is not None:
        motifs, about = read_motifs(Path(settings.motifs))
    corpus = pipeline.corpus_of(Context.of(config))
    if settings.from_motifs:
        tokenizer_of(corpus)
    made = rows_from(settings.kind, corpus, motifs, settings.rows, settings.seed)
    chosen = about.get("select", "top") if settings.from_motifs else "top"
    name = settings.arm or (settings.kind if chosen == "top" else f"{chosen}_{settings.kind}")
    rows = folder / f"{name}.npy"
    store.write_npy(rows, made.tokens)
    store.write_npy(folder / "labels.npy", made.labels)
    store.write_csv(folder / "rows.csv", rows_of(made))
    samples = {one.name: one.sample_ids for one in motifs if settings.from_motifs}
    store.write_json(folder / "rows.json", asdict(settings) | {"labels": made.names} | samples)
    results = {
        "rows": len(made.tokens),
        "tokens": made.tokens.size,
        "held_out_share": {"mean": float(made.copied.mean()), "max": float(made.copied.max())},
        "redrawn": made.redrawn,
    }
    write_summary(
        folder,
        "synthesize",
        seed=settings.seed,
        fingerprints={"corpus": corpus.fingerprint, "rows": store.hash_arrays(made.tokens)}
        | ({} if settings.motifs is None else {"motifs": store.hash_file(Path(settings.motifs))}),
        results=results,
        files={rows.name: "the rows, for intervention.rows; its name is the arm's"} | ROWS_FILES,
        times={"total_s": time.perf_counter() - start},
    )
    print(
        f"{len(made.tokens):,} rows of {made.tokens.shape[1]} tokens; held-out text has "
        f"{made.copied.mean():.1%} of their tokens in runs of {GRAM}, at most "
        f"{made.copied.max():.1%} of a row's; drawn again: {made.redrawn}"
    )
    insert = ("intervention=augment", "intervention.mode=insert")
    insert += (setting_word("intervention.rows", str(rows)),)
    print(f"next: {command_of('run', [*_without_synthesis(folder), *insert])}")
    print(folder)


def _without_synthesis(folder: Path) -> list[str]:
    return [word for word in overrides_of(folder) if not word.startswith("synthesis")]
