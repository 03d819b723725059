"""The output of `mda motifs` and `mda synthesize`: a table, and results for the summary."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mda.analysis.motifs import Mined
from mda.data.motif_file import Motif
from mda.data.synthesis import Synthetic
from mda.schema.setting import printable

FILES = {"motifs.json": "skeleton, slots, shares and samples of every motif; it can be edited"}
ROWS_FILES = {
    "labels.npy": "the label of each row, an index into the labels of rows.json",
    "rows.csv": "each row's label, what it was made from, and how much of it held-out text has too",
    "rows.json": "settings, names of the labels, and the samples that each motif came from",
}
SHOWN = 20


def print_motifs(mined: Mined) -> None:
    """Prints a table of the most frequent motifs."""
    table = Table(title=f"motifs of {mined.samples:,} samples", title_justify="left")
    for column in ("motif", "record, slots in braces"):
        table.add_column(column, overflow="fold")
    for column in ("of these", "of the window", "ratio", "copies"):
        table.add_column(column, justify="right")
    for one in mined.motifs[:SHOWN]:
        ratio = "-" if one.enrichment is None else f"{one.enrichment:.2f}"
        copies = f"{one.copies[0]} to {one.copies[1]}"
        shares = (f"{one.share:.1%}", f"{one.share_window:.1%}")
        name = Text(printable(f"{one.name}\n{one.title}".strip()))
        table.add_row(name, Text(printable(as_text(one))), *shares, ratio, copies)
    Console().print(table)
    print(f"{len(mined.motifs)} motifs; {mined.covered:.0%} of the samples have one of them")


def as_text(motif: Motif) -> str:
    """Returns a motif in one line: `<{word} {word}="{identifier}">{identifier}</{repeat of 0}>`."""
    kinds = [
        slot.kind if slot.repeat_of is None else f"repeat of {slot.repeat_of}"
        for slot in motif.slots
    ]
    parts = (f"{{{kinds[p]}}}" if isinstance(p, int) else p for p in motif.skeleton)
    return "".join(parts).replace("\n", "\\n")


def results_of(mined: Mined) -> dict[str, Any]:
    """Returns the numbers for summary.json."""
    return {
        "samples": mined.samples,
        "window_samples": mined.window,
        "covered": mined.covered,
        "motifs": {
            one.name: {
                "title": one.title,
                "text": as_text(one),
                "samples": one.samples,
                "share": one.share,
                "share_window": one.share_window,
                "enrichment": one.enrichment,
            }
            for one in mined.motifs
        },
    }


def rows_of(made: Synthetic) -> list[dict[str, Any]]:
    """Returns the rows of rows.csv."""
    columns = zip(made.labels.tolist(), made.sources, made.copied.tolist(), strict=True)
    return [
        {"row": i, "label": made.names[label], "source": source, "held_out_share": round(share, 6)}
        for i, (label, source, share) in enumerate(columns)
    ]
