"""A revision of a repository on a hub, brought to a folder file by file; every file is verified.

The client is huggingface_hub: HF_ENDPOINT and HF_TOKEN have their usual meaning, and the token is
sent only to the hub. A restart after a failure keeps the files in the folder; the client itself
retries a cut connection a few times, from where the file was cut.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mda.data.errors import temporary
from mda.schema import ConfigError, Unavailable
from mda.schema.model import ADAPTER, MERGED

WEIGHTS = (  # the first that a revision has is read; an index names its shards
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
AGAIN = "start again to go on with what was fetched"


def fetch_revision(
    repo: str, revision: str, folder: Path, check: Callable[[Path], None]
) -> tuple[str, list[Path]]:
    """Fetches config.json and the weights; returns the commit of the revision, and the files.

    `check` sees config.json before any weights are fetched. Raises ConfigError, with repository and
    revision, for a file that is missing, not readable with this token, or damaged on arrival.
    """
    key = _key(repo, revision)
    commit, names = _described(repo, revision)

    def get(name: str) -> Path:
        return _verified(repo, commit, name, folder, key)

    files = [get("config.json")]
    check(files[0])
    files += weight_files(key, lambda name: get(name) if name in names else None)
    return commit, files


def ask_for(repo: str, revision: str) -> None:
    """Raises ConfigError for a revision that does not exist or has no weights; fetches nothing."""
    _with_weights(repo, revision)


def _with_weights(repo: str, revision: str) -> tuple[str, set[str]]:
    """Returns the commit of a revision and the names of its files, weights among them."""
    commit, names = _described(repo, revision)
    if names.isdisjoint(WEIGHTS):
        raise _no_weights(_key(repo, revision))
    return commit, names


def ask_for_shapes(repo: str, revision: str, folder: Path) -> dict[str, list[int]]:
    """Returns the shapes of a revision's weights by their names; brings config.json to the folder.

    Reads the headers of its safetensors, some 100 kB each. A revision without any has no shapes.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    key = _key(repo, revision)
    commit, names = _with_weights(repo, revision)
    _verified(repo, commit, "config.json", folder, key)
    if names.isdisjoint(name for name in WEIGHTS if name.startswith("model.")):
        return {}
    with _explained(key):
        try:
            described = HfApi().get_safetensors_metadata(repo, revision=commit)
        except SafetensorsParsingError as error:
            raise ConfigError(f"{key}: its weights are no safetensors") from error
    headers = described.files_metadata.values()
    return {name: info.shape for header in headers for name, info in header.tensors.items()}


def _key(repo: str, revision: str) -> str:
    return f"base.repo={repo}, revision {revision}"


def _described(repo: str, revision: str) -> tuple[str, set[str]]:
    """Returns the commit of a revision and the names of its files.

    Raises ConfigError for an adapter.
    """
    from huggingface_hub import HfApi  # it takes a moment, and most runs need none of it

    key = _key(repo, revision)
    with _explained(key):
        info = HfApi().model_info(repo, revision=revision)
    names = {item.rfilename for item in info.siblings or []}
    if ADAPTER in names:
        raise ConfigError(f"{key}: has {ADAPTER} beside its weights; expected {MERGED}")
    return str(info.sha), names


def _no_weights(key: str) -> ConfigError:
    return ConfigError(f"{key}: has no weights; expected one of {', '.join(WEIGHTS)}")


def weight_files(key: str, get: Callable[[str], Path | None]) -> list[Path]:
    """Returns the files with a model's weights, and the index of its shards."""
    for name in WEIGHTS:
        if (path := get(name)) is None:
            continue
        return [path, *_shards(key, path, get)] if name.endswith(".index.json") else [path]
    raise _no_weights(key)


def _shards(key: str, index: Path, get: Callable[[str], Path | None]) -> Iterator[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{key}: {index.name} is no index of shards") from error
    for name in names:
        # A name is not a path: it could lead out of the folder.
        path = get(name) if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name) else None
        if path is None:
            raise ConfigError(f"{key}: {index.name} names {name}, which is not there")
        yield path


def _verified(repo: str, commit: str, name: str, folder: Path, key: str) -> Path:
    """Returns one file of a commit, fetched if missing. Its size and hash are those of the hub."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    with _explained(key, name):
        said = get_hf_file_metadata(hf_hub_url(repo, name, revision=commit))
        path = Path(hf_hub_download(repo, name, revision=commit, local_dir=folder))
    if problem := _damage(path, said.etag or "", said.size):
        path.unlink()
        raise Unavailable(f"{key}: {name} arrived damaged: {problem}; {AGAIN}")
    return path


def _damage(path: Path, etag: str, size: int | None) -> str:
    """Returns how a file differs from the hub's: by SHA-256 if large, else by git's SHA-1."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"{found:,} bytes instead of {size:,}"
    digest = hashlib.sha1(b"blob %d\0" % found) if len(etag) == 40 else hashlib.sha256()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
        return ""  # a mirror that names no hash
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return "" if digest.hexdigest() == etag else f"its hash is {digest.hexdigest()}, not {etag}"


@contextmanager
def _explained(key: str, name: str = "") -> Iterator[None]:
    """Turns errors of the hub's client into ConfigError, or Unavailable where a retry may succeed.

    Messages have no address, no header and no token.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the client's transport, and with it its errors, has changed twice
        disk = isinstance(error, OSError) and error.errno is not None
        if disk and not isinstance(error, ConnectionError | TimeoutError):
            raise
        file, lasting = f"{name}: " if name else "", _lasting(error)
        if lasting:
            raise ConfigError(f"{key}: {file}{lasting}") from None
        raise Unavailable(f"{key}: {file}{_passing(error)}; {AGAIN}") from None


def _lasting(error: Exception) -> str:
    """Returns the reason of an error that no retry can fix, or an empty text."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such revision; expected base.steps that were published"
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return "the revision has no such file"
    if status in (401, 403):
        return f"may not be read ({status}); expected a repository that HF_TOKEN may read"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository; expected owner/name of a public one"
    if isinstance(error, errors.HFValidationError):
        return "is no name of a repository; expected owner/name"
    return f"the hub answers {status}" if status and not temporary(error) else ""


def _passing(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 429:
        return "the hub answers too many requests (429); wait"
    if status is not None:
        return f"the hub answers {status}"
    if "Consistency check failed" in str(error):
        return "arrived damaged: not of the size that the hub says"
    return f"the connection failed ({type(error).__name__})"
