"""A finished run as a data set: tables as Parquet, pages and figures, and a card.

Every CSV that a run lists among its files becomes one Parquet file of the same name, which is a
configuration of the data set for `datasets.load_dataset`. Runs inside the folder, such as trace and
arms of a quickstart, share one table of a name: its column `run` says which one a row is of.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import yaml

from mda import store
from mda.schema import Config, ConfigError, EstimatorConfig, ModelConfig, PublishedConfig
from mda.schema.setting import show
from mda.types import Scores

CARD = "README.md"
ID = "sample_id"
COLUMNS = {
    "run": "folder of the run that the row is of, below the one that was pushed",
    ID: "number of the sample's row in the corpus",
    "step": "training step: of the update that sees the sample, or of a measurement",
    "label": "class of the sample's text",
    "loss": "mean loss of the sample's tokens in nats",
    "score": "influence of the sample on the unit; the sign is explained above",
    "weight": "what the sample's loss is multiplied by in the edited stream",
    "replacement": "row that takes the sample's place, -1 for none",
    "position": "position of the edited token in its row, -1 for the whole row",
    "token": "token that replaces it, -1 for none",
    "tokens": "tokens trained on so far",
    "train/loss": "loss of the update in nats",
    "train/lr": "learning rate of the update",
    "val/loss": "loss on held-out text in nats",
}
"""Columns of the tables whose names do not say what they hold."""
UNTOLD = ("name", "path", "source")


@dataclass(frozen=True)
class Part:
    """A finished run: its folder, relative to the one that is pushed, and its summary."""

    name: str
    folder: Path
    summary: Mapping[str, Any]

    def files(self) -> dict[str, str]:
        """Returns the files that the run lists, with their descriptions; no path leads out."""
        listed = self.summary["files"]
        told = dict(listed) if isinstance(listed, dict) else dict.fromkeys(listed, "")
        return {
            name: about
            for name, about in told.items()
            if name == Path(name).name and (self.folder / name).is_file()
        }


def parts_of(run: Path) -> list[Part]:
    """Returns a finished run and the finished runs inside its folder.

    Raises ConfigError for another folder.
    """
    if not (run / "summary.json").is_file():
        raise ConfigError(f"{run} is invalid; expected the folder of a finished run")
    found = sorted(path.parent for path in run.rglob("job.json"))
    done = [path for path in found if (path / "summary.json").is_file()]
    return [
        Part(path.relative_to(run).as_posix(), path, store.read_object(path / "summary.json"))
        for path in done
    ]


def write_dataset(
    parts: Sequence[Part],
    config: Config,
    scores: Scores | None,
    folder: Path,
    licence: str,
    repo: str,
) -> list[str]:
    """Writes the data set of some runs into a new folder, the card last.

    `scores` are those of an arm without its trace. Returns the names of the data set's files.
    Raises ConfigError where no run has a table.
    """
    tables: dict[str, pa.Table] = {}
    for name in dict.fromkeys(path for part in parts for path in part.files()):
        if name.endswith(".csv"):
            table = _table(name, [part for part in parts if name in part.files()])
            if len(table):
                tables[Path(name).stem] = _inside(table, parts[0].folder)
    if scores is not None:
        tables["scores"] = _scores(scores, str(parts[0].summary["unit"]))
    if not tables:
        raise ConfigError(f"{parts[0].folder} is invalid; expected a run that has tables")
    folder.mkdir(parents=True)
    for name, table in tables.items():
        pa_parquet.write_table(table, folder / f"{name}.parquet")
    for part in parts:
        for name in part.files():
            if not name.endswith((".csv", ".json")) or name == "top_samples.json":
                (folder / part.name).mkdir(parents=True, exist_ok=True)
                _copy(part.folder / name, folder / part.name / name, config.output_dir)
    settings = yaml.safe_load((parts[0].folder / "config.yaml").read_text("utf-8"))
    settings["output_dir"] = "outputs"  # not where it was on this machine
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    card = "\n".join(_card(parts, config, tables, licence, repo))
    (folder / CARD).write_text(card, "utf-8")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def _table(name: str, parts: Sequence[Part]) -> pa.Table:
    """Returns the table of a name of one run, or those of several with a column `run`."""
    found = [_read(part.folder / name) for part in parts]
    if len(parts) == 1:
        return found[0]
    named = [
        table.add_column(0, "run", pa.array([part.name] * len(table)))
        for part, table in zip(parts, found, strict=True)
    ]
    return pa.concat_tables(named, promote_options="permissive")


def _read(path: Path) -> pa.Table:
    with path.open(encoding="utf-8") as file:
        comment = file.readline().startswith("#")  # the action and the window of an edit
    table = pa_csv.read_csv(path, pa_csv.ReadOptions(skip_rows=int(comment)))
    names = [ID if name == "id" else name for name in table.column_names]
    return table.rename_columns(names)


def _scores(scores: Scores, unit: str) -> pa.Table:
    """Returns the scores that an arm chose its samples by."""
    columns = {ID: scores.sample_ids, "step": scores.steps, "loss": scores.losses}
    return pa.table({**columns, "score": scores.of(unit)})


def _inside(table: pa.Table, run: Path) -> pa.Table:
    """Returns a table whose paths do not say where the run was on this machine."""
    options = pc.ReplaceSubstringOptions(f"{run}/", "")
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts = pc.call_function("replace_substring", [table[field.name]], options)
            table = table.set_column(at, field.name, texts)
    return table


def _copy(path: Path, place: Path, outputs: str) -> None:
    """Copies a page or a figure; a page's commands say `outputs` for the folder of this machine."""
    if path.suffix == ".html":
        place.write_text(path.read_text("utf-8").replace(outputs, "outputs"), "utf-8")
    else:
        shutil.copyfile(path, place)


def _card(
    parts: Sequence[Part], config: Config, tables: Mapping[str, pa.Table], licence: str, repo: str
) -> Iterator[str]:
    """Returns the lines of the card."""
    unit = next((str(part.summary["unit"]) for part in parts if part.summary.get("unit")), "")
    model = config.model.name
    title = (
        f"Influence of training samples on {unit} of {model}" if unit else f"Training of {model}"
    )
    first = "scores" if "scores" in tables else next(iter(tables))
    names = [first, *(name for name in tables if name != first)]
    head = {
        "license": licence,
        "pretty_name": title,
        "tags": ["mechanistic-data-attribution", "training-data-attribution", "interpretability"],
        "configs": [
            {"config_name": name, "data_files": f"{name}.parquet"}
            | ({"default": True} if name == first else {})
            for name in names
        ],
    }
    yield f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"
    yield f"# {title}\n"
    yield "Made with [mechanistic-data-attribution](https://arxiv.org/abs/2601.21996) by\n"
    yield f"```bash\n{_command(parts[0])}\n```\n"
    yield "| what | value |\n|---|---|"
    for what, value in _facts(parts, config, unit).items():
        yield f"| {what} | {_cell(value)} |"
    yield "\n## Sign\n"
    yield (
        "A score above 0 means that training on more of the sample makes the unit stronger; below\n"
        "0, weaker. Scores have no unit and can be compared within one run.\n"
    )
    yield "## Tables\n"
    yield "```python\nfrom datasets import load_dataset\n"
    yield f'load_dataset("{repo}", "{first}")\n```\n'
    about = {name: text for part in parts for name, text in part.files().items()}
    for name in names:
        told = about.get(f"{name}.csv") or "every sample of the window and its score"
        yield f"**{name}** ({len(tables[name]):,} rows): {told}.\n"
        yield from _columns(tables[name])
    if "scores" in tables:
        yield "## Use the scores\n"
        yield "With the corpus of `config.yaml`, these scores choose the samples of an edit:\n"
        yield (
            f"```bash\nhf download {repo} --repo-type dataset --local-dir scores\n"
            "mda run intervention=remove estimator=file estimator.path=scores\n```\n"
        )
    yield "## Cite\n"
    yield (
        "Mechanistic Data Attribution: Tracing the Training Origins of Interpretable LLM Units,\n"
        "arXiv 2601.21996, and the software by its commit above."
    )
    yield f"\nLicence: {licence}. Texts that are quoted here keep the licence of their source.\n"


def _facts(parts: Sequence[Part], config: Config, unit: str) -> dict[str, str]:
    """Returns what the card says of the runs, by name."""
    summaries = [part.summary for part in parts]
    git, windows = summaries[0]["git"], [one["window"] for one in summaries if one.get("window")]
    facts = {
        "traced": f"{unit}, a unit of kind {config.unit.name}, metric {config.unit.metric}",
        "window": f"steps {windows[0]['start']} to {windows[0]['end']}" if windows else "",
        **origins(config),
        "edits": ", ".join(dict.fromkeys(_edit(one) for one in summaries if one.get("edit"))),
        "seeds": ", ".join(sorted({str(one["seed"]) for one in summaries})),
        "corpus, base run": ", ".join(
            dict.fromkeys(
                str(one["fingerprints"][kind])
                for one in summaries
                for kind in ("corpus", "base")
                if kind in one["fingerprints"]
            )
        ),
        "commit": f"{git['sha'] or 'none'}{' with changes' if git['dirty'] else ''}",
        "versions": ", ".join(f"{name} {v}" for name, v in summaries[0]["versions"].items() if v),
    }
    return {
        name: value
        for name, value in facts.items()
        if value and not (name in ("traced", "estimator") and not unit)
    }


def origins(config: Config) -> dict[str, str]:
    """Returns model, data and estimator in words, without the paths of this machine."""
    base = config.base
    repo = base.repo if isinstance(base, PublishedConfig) else None
    return {
        "model": f"{repo}, as published" if repo else _settings(config.model),
        "data": f"{config.data.name}, rows of {config.data.seq_len} tokens",
        "estimator": _settings(config.estimator),
    }


def _settings(group: ModelConfig | EstimatorConfig) -> str:
    told = {name: value for name, value in vars(group).items() if name not in UNTOLD}
    return f"{group.name} ({', '.join(f'{key}={show(value)}' for key, value in told.items())})"


def _edit(summary: Mapping[str, Any]) -> str:
    told = summary["intervention"]
    return f"{told['name']} ({told['action']}, {told['n']} samples)"


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def _command(part: Part) -> str:
    command = str(store.read_object(part.folder / "job.json").get("command", ""))
    kept = [word for word in shlex.split(command) if not word.startswith("output_dir=")]
    return shlex.join(kept)


def _columns(table: pa.Table) -> Iterator[str]:
    """Returns a list of the columns that have a description, and the number of the others."""
    known = [name for name in table.column_names if name in COLUMNS]
    yield from (f"- `{name}`: {COLUMNS[name]}" for name in known)
    if rest := [name for name in table.column_names if name not in COLUMNS]:
        shown = ", ".join(f"`{name}`" for name in rest[:8])
        yield f"- {shown}{f' and {len(rest) - 8} more' if len(rest) > 8 else ''}"
    yield ""
