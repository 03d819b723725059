"""The store: artifacts in folders that are named by what they are made from.

An artifact is a folder `root/<kind>/<fingerprint>/`. The fingerprint is a hash of everything that
enters the computation (`mda.store.keys`), so a stale result cannot be mistaken for a fresh one.
Builds write into `<fingerprint>.part` under a lock and rename it when done. A killed process leaves
the `.part` behind, and the next build of the same artifact may resume from it.

The content of a store is checked, not trusted: the sizes of an artifact's files are compared with
its manifest whenever it is used, their hashes when a process first uses it. An artifact that
differs from its manifest is set aside as `<fingerprint>.broken-<n>`, reported in one sentence, and
built again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mda.store.environment import git_state, versions
from mda.store.files import read_json, write_json
from mda.store.integrity import (
    MANIFEST,
    Torn,
    delete,
    misfit,
    other_owner,
    read_manifest,
    recorded_files,
    set_aside,
    torn,
    unlisted,
)  # fmt: skip
from mda.store.keys import Key, difference
from mda.store.locks import Busy, hold, say
from mda.store.memory import HashMemory

if TYPE_CHECKING:
    pass

REUSE = "MDA_REUSE"

_sound: set[Path] = set()  # folders whose hashes this process has compared
_said: set[str] = set()
_listeners: list[Callable[[str, str], None]] = []


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. `built` is True when this very call computed it.

    `warning` is a sentence where the artifact or one of its inputs was computed by other code,
    other versions or another device, and is empty otherwise. Whatever shows the values must show
    the sentence.
    """

    path: Path
    kind: str
    fingerprint: str
    manifest: dict[str, Any]
    built: bool
    warning: str = ""


class Store:
    """All artifacts under one root folder, usually `outputs/store`.

    With MDA_REUSE=1 in the environment, an artifact of the same inputs that other code, other
    versions or another device has computed is used, with a warning; else it is computed again.
    `warnings` collects the sentences of what this store has handed out. `study`, a name and a hash,
    is what builds are begun for: the manifest keeps it, and no key has it.
    """

    def __init__(self, root: Path, study: Mapping[str, str] | None = None) -> None:
        self.root = Path(root)
        self.study = study
        self.memory = HashMemory(self.root / "hashes.json")
        self.warnings: dict[str, str] = {}  # fingerprint -> sentence

    def get_or_build(self, key: Key, build: Callable[[Path], None]) -> Artifact:
        """Returns the artifact of a key (`make_key`), built by `build(part)` unless it is there.

        `build` writes its files into the folder `part`. The folder may hold what an earlier,
        killed build left (never a torn file, if written by the writers of `mda.store.files`): the
        build may resume from it. If `build` raises, the folder is kept and the error passed on; a
        resumed one that raises Torn is built again from nothing. Any number of processes may ask
        for the same artifact; one builds, the others wait for it.
        """
        _tell_use(key.kind, key.fingerprint)
        folder = self._folder(key)
        if (artifact := self._open(folder)) or (artifact := self._of_other_code(key)):
            return artifact
        waiting = f"waiting for another process that builds {key.kind}/{folder.name}"
        with hold(folder.with_name(f"{folder.name}.lock"), waiting):
            if artifact := self._open(folder, repair=True):
                return artifact
            manifest = self._build(key, folder.with_name(f"{folder.name}.part"), build)
            folder.with_name(f"{folder.name}.part").rename(folder)
        _sound.add(folder.resolve())
        return self._handed_out(Artifact(folder, key.kind, folder.name, manifest, built=True))

    def find(self, key: Key) -> Artifact | None:
        """Returns the artifact that `get_or_build` would find.

        Nothing is built and nothing set aside.
        """
        return self._open(self._folder(key)) or self._of_other_code(key)

    def part(self, key: Key) -> Path:
        """Returns the folder in which this artifact is built."""
        folder = self._folder(key)
        return folder.with_name(f"{folder.name}.part")

    def hash_file(self, path: Path) -> str:
        """Returns the SHA-256 of a file outside of the store, from memory if it is unchanged."""
        return self.memory.hash_file(Path(path))

    def artifacts(self, kind: str = "*") -> list[Artifact]:
        """Returns the finished artifacts with a readable manifest, sorted by fingerprint."""
        artifacts = []
        for folder in self._finished(kind):
            with suppress(ValueError):
                manifest = read_manifest(folder)
                artifacts.append(Artifact(folder, manifest["kind"], folder.name, manifest, False))
        return artifacts

    def unreadable(self) -> list[Path]:
        """Returns the folders named like finished artifacts whose manifest cannot be read."""
        readable = {artifact.path for artifact in self.artifacts()}
        return [folder for folder in self._finished() if folder not in readable]

    def entering(self, parts: Iterable[Path]) -> Iterator[str]:
        """Yields every string among the inputs of some unfinished builds."""
        for part in parts:
            with suppress(OSError, ValueError, AttributeError):
                yield from texts(read_json(part / MANIFEST).get("inputs"))

    def parts(self) -> list[Path]:
        """Returns unfinished builds, artifacts set aside as broken, and interrupted removals."""
        endings = ("part", "trash", "broken-*")
        return sorted(path for ending in endings for path in self.root.glob(f"*/*.{ending}"))

    def verify(self, kinds: Sequence[str] | None = None) -> Iterator[tuple[Path, str | None]]:
        """Reads every byte and yields each artifact with its fault, or None where it is intact.

        A broken artifact is set aside, unless a process works on it; an artifact with a file that
        its manifest does not name stays where it is, as nothing reads that file.
        """
        for folder in self._finished():
            if kinds and folder.parent.name not in kinds:
                continue
            reason = self._wrong(folder, lambda paths: self.memory.hash_files(paths, again=True))
            if reason is not None:
                lock = folder.with_name(f"{folder.name}.lock")
                if self._holds(folder):
                    with suppress(Busy), hold(lock, waiting=None):
                        set_aside(folder)
            else:
                reason = unlisted(folder, read_manifest(folder)["files"])
            yield folder, reason

    def remove(self, folder: Path) -> bool:
        """Deletes an artifact or a left-over folder; False if a live process holds its lock.

        A link is deleted, never its target. Raises ValueError for a folder outside of the store.
        """
        folder = Path(folder)
        if not self._holds(folder):
            raise ValueError(f"{folder} leads out of the store")
        try:
            with hold(folder.with_name(f"{folder.stem}.lock"), waiting=None):
                # Out of its final name first: a removal that is killed leaves no half artifact.
                trash = folder.with_suffix(".trash")
                if folder != trash:
                    delete(trash)
                    folder.rename(trash)
                delete(trash)
        except Busy:
            return False
        return True

    def _holds(self, folder: Path) -> bool:
        """Returns whether a folder lies in this store, and not behind a link to another one."""
        return folder.parent.resolve() == self.root.resolve() / folder.parent.name

    def _folder(self, key: Key) -> Path:
        return self.root / key.kind / key.fingerprint

    def _finished(self, kind: str = "*") -> list[Path]:
        entries = self.root.glob(f"{kind}/*")
        return sorted(path for path in entries if path.is_dir() and not path.suffix)

    def _wrong(self, folder: Path, hashes: Callable[[list[Path]], list[str]] | None) -> str | None:
        try:
            return misfit(folder, read_manifest(folder)["files"], hashes)
        except (OSError, ValueError) as error:
            return str(error)

    def _open(self, folder: Path, repair: bool = False) -> Artifact | None:
        if not os.path.lexists(folder):
            return None
        compared = folder.resolve() in _sound
        reason = self._wrong(folder, None if compared else self.memory.hash_files)
        if reason is not None:
            name = f"{folder.parent.name} {folder.name}"
            if repair:
                say(f"{name}: {reason}; it is set aside as {set_aside(folder).name}, built again")
            return None
        _sound.add(folder.resolve())
        if stranger := other_owner(folder):
            _say_once(
                f"warning: {self.root} has artifacts of another user, {stranger}: their hashes say "
                "that they are as they were built, not by whom"
            )
        manifest = read_manifest(folder)
        return self._handed_out(Artifact(folder, manifest["kind"], folder.name, manifest, False))

    def _of_other_code(self, key: Key) -> Artifact | None:
        """Warns of the newest artifact of the same inputs by other code.

        Returns it where reuse is on.
        """
        if not key.code:
            return None
        same = []
        for folder in self._finished(key.kind):
            if folder.name == key.fingerprint:
                continue
            with suppress(ValueError):
                manifest = read_manifest(folder)
                if manifest["inputs"] == key.inputs:
                    same.append((manifest["created"], folder, manifest))
        if not same:
            return None
        _, folder, manifest = max(same, key=lambda candidate: candidate[:2])
        why = difference(key.computed(), manifest.get("computed", {}))
        computed = f"{key.kind} {folder.name} was computed by other code ({why})"
        if os.environ.get(REUSE) != "1":
            _say_once(f"{computed} and is computed again; {REUSE}=1 uses it")
            return None
        if (artifact := self._open(folder)) is None:
            return None
        sentence = f"{computed} and is used, as {REUSE}=1 says"
        _say_once(f"warning: {sentence}")
        return self._handed_out(replace(artifact, warning=sentence))

    def warn(self, fingerprint: str, sentence: str) -> None:
        """Prints a warning about an artifact, which also holds for everything made from it."""
        _say_once(f"warning: {sentence}")
        self.warnings[fingerprint] = f"{self.warnings.get(fingerprint, '')} {sentence}".strip()

    def _handed_out(self, artifact: Artifact) -> Artifact:
        _tell_use(artifact.kind, artifact.fingerprint)
        warnings = [artifact.warning, *artifact.manifest.get("warnings", [])]
        warnings += [self.warnings.get(name, "") for name in texts(artifact.manifest["inputs"])]
        if warning := " ".join(dict.fromkeys(filter(None, warnings))):
            self.warnings[artifact.fingerprint] = warning
        return replace(artifact, warning=warning)

    def _build(self, key: Key, part: Path, build: Callable[[Path], None]) -> dict[str, Any]:
        """Runs a build in its folder, writes the manifest there, and returns it."""
        resumed = part.is_dir() and any(path.name != MANIFEST for path in part.iterdir())
        begun = _begun(part) if resumed else {"started": _now(), "study": self.study}
        if resumed and (reason := torn(part)):
            _start_over(part, key, reason)
            resumed = False
        start, cpu_start = time.perf_counter(), time.process_time()
        entering = {
            "kind": key.kind,
            "fingerprint": key.fingerprint,
            "inputs": dict(key.inputs),
            **begun,  # the first time, however often it was resumed
        }
        if key.code:
            entering["computed"] = key.computed()
        _prepare(part, entering)
        try:
            build(part)
        except (Torn, FileNotFoundError) as error:
            if not resumed or not (isinstance(error, Torn) or str(part) in str(error)):
                raise
            _start_over(part, key, str(error))
            resumed = False
            _prepare(part, entering)
            build(part)
        except BaseException:
            if not any(path.name != MANIFEST for path in part.iterdir()):
                delete(part)  # refused before anything was written
            raise
        used = set(texts(entering["inputs"]))
        manifest = entering | {
            "files": recorded_files(part, self.memory.hash_files),
            "warnings": [text for name, text in self.warnings.items() if name in used],
            "versions": versions(),
            "git": git_state(),
            "wall_s": round(time.perf_counter() - start, 3),
            "cpu_s": round(time.process_time() - cpu_start, 3),  # of this process alone
            "resumed": resumed,
            "created": _now(),
        }
        write_json(part / MANIFEST, manifest)
        return manifest


@contextmanager
def noting_uses(note: Callable[[str, str], None]) -> Iterator[None]:
    """Calls `note(kind, fingerprint)` for every artifact that is requested in the block."""
    _listeners.append(note)
    try:
        yield
    finally:
        _listeners.remove(note)


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        say(sentence)


def _tell_use(kind: str, name: str) -> None:
    for note in _listeners:
        note(kind, name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _begun(part: Path) -> dict[str, Any]:
    """Returns when an unfinished build was begun, for which study; None where that is unknown."""
    try:
        manifest = read_json(part / MANIFEST)
        return {name: manifest.get(name) for name in ("started", "study")}
    except (OSError, ValueError):
        return {"started": None, "study": None}


def _prepare(part: Path, entering: Mapping[str, object]) -> None:
    part.mkdir(parents=True, exist_ok=True)
    for left in part.rglob(".*.tmp"):
        left.unlink()
    write_json(part / MANIFEST, entering)  # what an unfinished build is made from must be kept


def _start_over(part: Path, key: Key, reason: str) -> None:
    aside = set_aside(part)
    say(f"unfinished {key.kind} {key.fingerprint}: {reason}; it is set aside as {aside.name}, "
        "built from the start")  # fmt: skip


def texts(content: object) -> Iterator[str]:
    """Yields every string in nested lists and mappings."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping | list):
        for item in content.values() if isinstance(content, Mapping) else content:
            yield from texts(item)
