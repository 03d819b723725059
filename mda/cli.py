"""The `mda` command: look after what experiments leave in the outputs folder."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mda.store import Artifact, Store, read_json

DAY_S = 86_400.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the command; returns the exit code."""
    args = _parser().parse_args(arguments)
    outputs = Path(args.outputs)
    if not outputs.is_dir():
        print(f"error: --outputs {outputs} is no folder", file=sys.stderr)
        return 2
    store = Store(outputs / "store")
    if args.command == "ls":
        list_store(store, outputs / "runs", args.kind)
        return 0
    return clean_store(store, outputs / "runs", args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mda", description=__doc__)
    topics = parser.add_subparsers(required=True, metavar="TOPIC")
    store = topics.add_parser("store", help="what has been computed: corpora, runs, scores, ...")
    commands = store.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ls = commands.add_parser("ls", help="list artifacts and unfinished builds")
    gc = commands.add_parser(
        "gc",
        help="delete abandoned builds, and artifacts on request",
        description="Deletes unfinished builds that nobody has touched for a day and no live "
        "process holds. Artifacts are deleted only with --kind or --unreferenced; with both, "
        "those of these kinds that no run needs. What is deleted is built again when asked for.",
    )
    for command in (ls, gc):
        command.add_argument("--outputs", default="outputs", help="folder of store/ and runs/")
        command.add_argument("--kind", action="append", help="only this kind; may be repeated")
    gc.add_argument("--unreferenced", action="store_true", help="artifacts that no run refers to")
    gc.add_argument("--days", type=float, default=1.0, help="age of an abandoned build, default 1")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    return parser


def list_store(store: Store, runs: Path, kinds: Sequence[str] | None) -> None:
    """Print a table of artifacts, unfinished builds below."""
    used = referenced(store.artifacts(), runs)
    table = Table("kind", "fingerprint", "size", "built in", "created", "used", box=None)
    for artifact in store.artifacts():
        if kinds and artifact.kind not in kinds:
            continue
        table.add_row(
            artifact.kind,
            artifact.fingerprint,
            _size(artifact.path),
            f"{artifact.manifest['wall_s']:,.0f} s",
            str(artifact.manifest["created"])[:16],
            "yes" if artifact.fingerprint in used else "no",
        )
    for part in store.parts():
        if not kinds or part.parent.name in kinds:
            age = f"{_idle_s(part) / 3600:,.1f} h old"
            table.add_row(part.parent.name, part.stem, _size(part), "unfinished", age, "")
    Console().print(table)


def clean_store(store: Store, runs: Path, args: argparse.Namespace) -> int:
    """Delete what `args` asks for; 1 if something was kept because a process holds it."""
    doomed = [part for part in store.parts() if _idle_s(part) > args.days * DAY_S]
    artifacts = store.artifacts()
    if args.kind:
        known = {artifact.kind for artifact in artifacts}
        if unknown := sorted(set(args.kind) - known):
            there = ", ".join(sorted(known)) or "none"
            print(
                f"error: --kind {unknown[0]} is not in the store; there: {there}", file=sys.stderr
            )
            return 2
    if args.kind or args.unreferenced:
        used = referenced(artifacts, runs) if args.unreferenced else set()
        doomed += [
            artifact.path
            for artifact in artifacts
            if artifact.fingerprint not in used and (not args.kind or artifact.kind in args.kind)
        ]
    held = 0
    for folder in doomed:
        name = f"{folder.parent.name}/{folder.name} ({_size(folder)})"
        if args.dry_run:
            print(f"would delete {name}")
        elif store.remove(folder):
            print(f"deleted {name}")
        else:
            held += 1
            print(f"kept {name}: a process works on it")
    if not doomed:
        print("nothing to delete")
    return 1 if held else 0


def referenced(artifacts: Iterable[Artifact], runs: Path) -> set[str]:
    """Fingerprints that a run's summary.json names, and those that these were made from."""
    by_name = {artifact.fingerprint: artifact for artifact in artifacts}
    waiting = [text for path in runs.glob("**/summary.json") for text in _texts(read_json(path))]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in found:
            found.add(name)
            waiting += _texts(by_name[name].manifest["inputs"])
    return found


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _texts(item)


def _idle_s(folder: Path) -> float:
    times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
    return time.time() - max(times)


def _size(folder: Path) -> str:
    size = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


if __name__ == "__main__":
    raise SystemExit(main())
