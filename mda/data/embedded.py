"""The default corpus: real text of pinned packages, a class label for each sequence.

The packages are pure Python, so one version has the same text on every platform. The real classes
are accompanied by generated documents, labelled `generated_*` (`mda.data.synthetic`): real text of
this size alone rewards copying too rarely for a head of 16 dimensions to learn it in minutes.

`embedded.json` records what the default settings give: the hash of the corpus, and version and text
hash of every package, so that the error for a mismatch can name the package. Its `sha256` and
`sources` are those of the corpus's own corpus.json.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random

from mda import store
from mda.data import packing, synthetic
from mda.data.documents import REAL_LABELS, documents_of, package_version, source_files
from mda.data.errors import DataError
from mda.schema import EmbeddedConfig
from mda.types import Document

PACKAGES = ("docutils", "jinja2", "mpmath", "networkx", "pygments", "rich", "sympy")
TOOLS = ("docutils", "tokenizers")
REAL_MIX = {"code": 0.5, "prose": 0.1, "latex": 0.13, "xml": 0.13, "html": 0.14}
GENERATED_MIX = {"repeat": 0.76, "xml": 0.06, "latex": 0.06, "json": 0.06, "log": 0.06}
RECORD = Path(__file__).with_name("embedded.json")


def shares(generated: float) -> dict[str, float]:
    """Returns the share of each class when `generated` of all sequences are generated documents."""
    real = {label: (1 - generated) * share for label, share in REAL_MIX.items()}
    made = {synthetic.PREFIX + name: generated * share for name, share in GENERATED_MIX.items()}
    return {label: round(share, 12) for label, share in (real | made).items() if share > 0}


def inputs(config: EmbeddedConfig, hash_file: Callable[[Path], str]) -> dict[str, object]:
    """Returns the inputs beside the settings: the versions of the packages and of the tools."""
    versions = {name: package_version(name) for name in sorted({*PACKAGES, *TOOLS})}
    return {
        "versions": versions,
        "shares": shares(config.generated_share),
        "format": synthetic.FORMAT,
    }


def build_from_config(out: Path, config: EmbeddedConfig, downloads: Path) -> None:
    """Builds the corpus folder with the settings of `data=embedded`."""
    settings = {
        "packages": PACKAGES,
        "shares": shares(config.generated_share),
        "vocab_size": config.vocab_size,
        "seq_len": config.seq_len,
        "n_sequences": config.n_sequences,
        "held_out": config.held_out,
        "seed": config.seed,
    }
    workers = min(os.cpu_count() or 1, 8)
    build_embedded(out, **settings, workers=workers, expected_sha256=recorded_sha256(settings))


def build_embedded(
    out: Path,
    *,
    packages: Sequence[str],
    shares: Mapping[str, float],
    vocab_size: int,
    seq_len: int,
    n_sequences: int,
    held_out: int,
    seed: int,
    workers: int,
    expected_sha256: str | None,
) -> None:
    """Builds the corpus folder: n_sequences rows of seq_len + 1 tokens, held_out of them kept out.

    `shares` gives the share of the sequences of each class: `code`, `prose`, `latex`, `xml`,
    `html`, or `generated_<template>`. Equal arguments and package versions give equal bytes,
    whatever the number of workers. Raises DataError for an unknown class, a class whose text
    runs out, and a result that is not `expected_sha256`, naming the package that differs.
    """
    classes = [*REAL_LABELS, *(synthetic.PREFIX + name for name in synthetic.TEMPLATES)]
    if unknown := sorted(set(shares) - set(classes)):
        raise DataError(f"shares has {', '.join(unknown)}; the classes are {', '.join(classes)}")
    packing.refuse(shares, vocab_size=vocab_size, n_sequences=n_sequences, held_out=held_out)
    documents = harvest(packages, workers)
    described = describe(packages, documents)
    packing.build(
        out,
        _texts(documents, shares, seed),
        shares,
        vocab_size=vocab_size,
        seq_len=seq_len,
        n_sequences=n_sequences,
        held_out=held_out,
        seed=seed,
        about={"sources": described},
        verify=lambda actual: check(actual, expected_sha256, described),
    )


def harvest(packages: Sequence[str], workers: int) -> list[Document]:
    """Returns every document of the packages' source files, in the order of packages and paths."""
    files = [file for package in packages for file in source_files(package)]
    documents: list[Document] = []
    with packing.progress() as bars, ExitStack() as stack:
        task = bars.add_task("reading and rendering packages", total=len(files))
        parts = map(documents_of, files)
        # A worker of joblib has a start method of its own, which a process it spawned would lack.
        can_spawn = multiprocessing.get_start_method() in multiprocessing.get_all_start_methods()
        if workers > 1 and can_spawn:
            # Spawned: the caller's process may hold threads, which a fork would break.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent)
            parts = stack.enter_context(pool).map(documents_of, files, chunksize=8)
        for part in parts:
            documents += part
            bars.advance(task)
    return documents


def describe(packages: Sequence[str], documents: Iterable[Document]) -> dict[str, dict]:
    """Returns the version, document and character counts and text hash of each package."""
    digests = {package: sha256() for package in packages}
    described = {
        p: {"version": package_version(p), "documents": 0, "characters": 0} for p in packages
    }
    for document in documents:
        digests[document.source].update(f"{document.label}\0{document.text}\0".encode())
        described[document.source]["documents"] += 1
        described[document.source]["characters"] += len(document.text)
    for package in packages:
        described[package]["sha256"] = digests[package].hexdigest()
    tools = {tool: package_version(tool) for tool in TOOLS} | {"python": platform.python_version()}
    return {"packages": described, "tools": tools}


def check(
    actual: str, expected: str | None, found: Mapping, recorded: Mapping | None = None
) -> None:
    """Raises DataError, saying what differs from the recorded build, unless the hashes agree.

    `found` and `recorded` are what `describe` returned for this build and for the recorded one.
    """
    if expected is None or actual == expected:
        return
    recorded = recorded or dict(store.read_json(RECORD)["sources"])
    ours, theirs = _versions(found), _versions(recorded)
    causes = [
        f"{name} is {version}, recorded with {theirs[name]}"
        for name, version in ours.items()
        if name in theirs and version != theirs[name]
    ]
    before = recorded["packages"]
    causes = causes or [
        f"the text of {name} {about['version']} is not the recorded text"
        for name, about in found["packages"].items()
        if name in before and about["sha256"] != before[name]["sha256"]
    ]
    causes = causes or ["every package has its recorded text, so the code of mda.data differs"]
    raise DataError(
        f"the embedded corpus has SHA-256 {actual[:16]}..., recorded is {expected[:16]}...: "
        f"{'; '.join(causes)}. Install the versions that pyproject.toml pins"
    )


def _versions(sources: Mapping) -> dict[str, str]:
    packages = {name: about["version"] for name, about in sources["packages"].items()}
    return packages | {tool: sources["tools"][tool] for tool in TOOLS}


def recorded_sha256(settings: Mapping[str, object]) -> str | None:
    """Returns the recorded hash if it was recorded for these settings, else None."""
    record = store.read_json(RECORD) if RECORD.exists() else {"settings": None}
    return record["sha256"] if record["settings"] == _plain(settings) else None


def _plain(settings: Mapping[str, object]) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _texts(
    documents: Sequence[Document], shares: Mapping[str, float], seed: int
) -> dict[str, Callable[[], Iterable[str]]]:
    """Returns a function for each class that starts its run of texts: shuffled, or generated."""
    sources: dict[str, Callable[[], Iterable[str]]] = {}
    for label in shares:
        if label in REAL_LABELS:
            texts = [document.text for document in documents if document.label == label]
            Random(f"{seed}:{label}").shuffle(texts)
            sources[label] = partial(iter, texts)
        else:
            sources[label] = partial(synthetic.texts, label.removeprefix(synthetic.PREFIX), seed)
    return sources


def end_with_parent() -> None:
    """Makes a worker end when its parent process is killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
