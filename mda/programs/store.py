"""`mda store`: list, verify and clean the store in the outputs folder."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mda.store import Artifact, Store, read_json, texts

DAY_S = 86_400.0
STATES = {".part": "unfinished", ".broken": "set aside", ".trash": "half deleted"}


def main(arguments: Sequence[str]) -> int:
    """Parses the command line, runs the command and returns the exit code."""
    args = _parser().parse_args(arguments)
    outputs = Path(args.outputs)
    if not outputs.is_dir():
        print(f"error: --outputs {outputs} is not a folder", file=sys.stderr)
        return 2
    store = Store(outputs / "store")
    if args.kind:
        known = {path.parent.name for path in store.root.glob("*/*") if path.is_dir()}
        if unknown := sorted(set(args.kind) - known):
            there = ", ".join(sorted(known)) or "none"
            print(
                f"error: --kind {unknown[0]} is not in the store; there: {there}", file=sys.stderr
            )
            return 2
    if args.command == "ls":
        list_store(store, outputs / "runs", args.kind)
        return 0
    if args.command == "verify":
        return verify_store(store, args.kind)
    return clean_store(store, outputs / "runs", args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mda store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ls = commands.add_parser("ls", help="list artifacts and unfinished builds")
    verify = commands.add_parser(
        "verify",
        help="read every byte and compare it with what was built",
        description="Compares size and hash of every file with its manifest. An artifact that is "
        "not what was built is set aside, and built again when it is asked for. Exit code 1 if "
        "there is one.",
    )
    gc = commands.add_parser(
        "gc",
        help="delete abandoned builds, and artifacts on request",
        description="Deletes unfinished builds, and what was set aside, that nobody has touched "
        "for a day and no live process holds. Artifacts are deleted only with --kind or "
        "--unreferenced; with both, those of these kinds that no run needs. What an unfinished "
        "or failed job uses is kept; delete the job's folder to give it up. What is deleted is "
        "built again when it is asked for. Links are never followed out of the store.",
    )
    for command in (ls, verify, gc):
        command.add_argument("--outputs", default="outputs", help="folder of store/ and runs/")
        command.add_argument("--kind", action="append", help="only this kind; may be repeated")
    gc.add_argument("--unreferenced", action="store_true", help="artifacts that no run refers to")
    gc.add_argument("--days", type=float, default=1.0, help="age of an abandoned build, default 1")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    return parser


def list_store(store: Store, runs: Path, kinds: Sequence[str] | None) -> None:
    """Prints a table of artifacts, then unfinished builds and broken artifacts."""
    artifacts = store.artifacts()
    used = made_from(artifacts, references(runs).names)
    table = Table("kind", "fingerprint", "size", "built in", "created", "used", box=None)
    for artifact in artifacts:
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
    for folder in [*store.unreadable(), *store.parts()]:
        if not kinds or folder.parent.name in kinds:
            age = f"{_idle_s(folder) / 3600:,.1f} h old"
            state = STATES.get(folder.suffix.partition("-")[0], "broken")
            table.add_row(folder.parent.name, folder.stem, _size(folder), state, age, "")
    Console().print(table)


def verify_store(store: Store, kinds: Sequence[str] | None) -> int:
    """Compares every artifact with its manifest, byte by byte. Returns 1 if any differs."""
    whole = broken = 0
    for folder, reason in store.verify(kinds):
        whole, broken = whole + (reason is None), broken + (reason is not None)
        if reason is not None:
            done = "left where it is" if folder.exists() else "set aside"
            print(f"{folder.parent.name}/{folder.name}: {reason}; {done}")
    print(f"{whole + broken} artifacts: {whole} as they were built, {broken} not")
    return 1 if broken else 0


def clean_store(store: Store, runs: Path, args: argparse.Namespace) -> int:
    """Deletes what `args` names. Returns 1 if something was kept because it may be in use."""
    doomed = [part for part in store.parts() if _idle_s(part) > args.days * DAY_S]
    artifacts, kept = store.artifacts(), 0
    if args.kind or args.unreferenced:
        found = references(runs)
        entering = set(store.entering(part for part in store.parts() if part not in doomed))
        used = made_from(artifacts, found.working | entering)
        if args.unreferenced:
            used |= made_from(artifacts, found.names)
            for path in found.unreadable:
                print(f"{path} cannot be read: no artifact is deleted, as it may name any")
            kept = len(found.unreadable)
        doomed += [
            artifact.path
            for artifact in artifacts
            if artifact.fingerprint not in used and (not args.kind or artifact.kind in args.kind)
            if not kept
        ]
    for folder in doomed:
        name = f"{folder.parent.name}/{folder.name} ({_size(folder)})"
        if args.dry_run:
            print(f"would delete {name}")
            continue
        try:
            deleted, reason = store.remove(folder), "a process works on it"
        except ValueError as error:
            deleted, reason = False, str(error)
        print(f"deleted {name}" if deleted else f"kept {name}: {reason}")
        kept += not deleted
    if not doomed and not kept:
        print("nothing to delete")
    return 1 if kept else 0


@dataclass(frozen=True)
class References:
    """The references in run folders: all of them, those of unfinished jobs, and torn files."""

    names: set[str]
    working: set[str]
    unreadable: list[Path]


def references(runs: Path) -> References:
    """Returns every string in the runs' summary.json, and the artifacts of unfinished jobs."""
    names: set[str] = set()
    working: set[str] = set()
    unreadable = []
    for path in sorted([*runs.glob("**/summary.json"), *runs.glob("**/job.json")]):
        try:
            content = read_json(path)
            if path.name == "summary.json":
                names.update(texts(content))
            elif content["status"] in ("unfinished", "failed"):
                working.update(texts(content.get("uses", {})))
            elif path.with_name("summary.json").exists():
                names.update(texts(content.get("uses", {})))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            unreadable.append(path)
    return References(names | working, working, unreadable)


def made_from(artifacts: Iterable[Artifact], names: Iterable[str]) -> set[str]:
    """Returns the fingerprints among some names, and those of all their inputs."""
    by_name = {artifact.fingerprint: artifact for artifact in artifacts}
    waiting = list(names)
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in found:
            found.add(name)
            waiting += texts(by_name[name].manifest["inputs"])
    return found


def _idle_s(folder: Path) -> float:
    times = [path.lstat().st_mtime for path in (folder, *folder.rglob("*"))]
    return time.time() - max(times)


def _size(folder: Path) -> str:
    size = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
