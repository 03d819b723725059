"""Tokenizers of any kind: reading, checking, and text token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mda import store
from mda.data.errors import DataError, temporary
from mda.schema import ConfigError, Unavailable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ACCEPTED = "a tokenizer.json, a folder with one, or the id of a repository of the hub"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TORN = "\N{REPLACEMENT CHARACTER}"


class Named(NamedTuple):
    """A tokenizer and the id that it puts between texts, where it has one."""

    tokenizer: Tokenizer
    end_of_text: int | None


def read_tokenizer(name: str) -> Named:
    """Returns the tokenizer of a file, a folder or the hub; it neither truncates nor pads.

    Its tokenizer.json is read directly; without one, the library converts the files that exist.
    Raises DataError for a tokenizer that does not exist or is malformed, and Unavailable where the
    hub cannot be reached.
    """
    path = Path(name)
    if not (path.exists() or (_HUB_ID.fullmatch(name) and path.suffix != ".json")):
        raise DataError(f"data.tokenizer={name}: no such file; expected {ACCEPTED}")
    folder = path if path.is_dir() else None if path.is_file() else _fetched(name)
    if path.is_file():
        named = Named(_from_file(path), None)
    elif folder is not None and (folder / FILE).is_file():
        tokenizer = _from_file(folder / FILE)
        named = Named(tokenizer, _end_in(folder / CONFIG, tokenizer))
    else:
        named = _from_library(name)
    tokenizer, end = named
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if end is None:
        ids = (tokenizer.token_to_id(token) for token in ENDS)
        end = next((token for token in ids if token is not None), None)
    return Named(tokenizer, end)


@cache
def opened(path: Path) -> Tokenizer:
    """Returns the tokenizer of a corpus folder, read once by each process."""
    return _from_file(path)


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """Returns one string for each token, which join to the text.

    A character that spans several tokens is placed at the last of them. Bytes that belong to no
    whole character, as at the start of a row that begins inside one, become replacement characters,
    joined to the first whole character after them.
    """

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    pieces: list[str] = []
    before: list[int] = []  # what a decoder does at the start of a text must not be done again
    pending: list[int] = []
    for token in token_ids:
        pending.append(int(token))
        piece = text(before + pending)[len(text(before)) :]
        torn = piece.endswith(_TORN)
        pieces.append("" if torn else piece)
        if not torn:
            before, pending = pending, []
    if pending:
        pieces[-1] = text(before + pending)[len(text(before)) :]
    return pieces


def _from_file(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare ones
        raise DataError(
            f"data.tokenizer={path}: it cannot be read ({_one_line(error)}); expected {ACCEPTED}"
        ) from error


def _end_in(about: Path, tokenizer: Tokenizer) -> int | None:
    """Returns the id of the `eos_token` that a tokenizer_config.json names, where there is one."""
    if not about.is_file():
        return None
    try:
        named = store.read_json(about).get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{about}: it cannot be read ({_one_line(error)})") from error
    token = named.get("content") if isinstance(named, dict) else named
    return tokenizer.token_to_id(token) if isinstance(token, str) else None


@cache
def _fetched(name: str) -> Path | None:
    """Returns the folder of a repository's tokenizer.json, fetched or cached; None without one.

    It is resolved once by each process, so a repository that changes makes no difference.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        folder = Path(hf_hub_download(name, FILE)).parent
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            return None
        raise Unavailable(f"data.tokenizer={name}: {_later(error)}") from error
    except errors.RemoteEntryNotFoundError:
        return None
    except Exception as error:  # of the network, of the hub, of the disk: each its own kind
        raise _unreadable(name, error) from error
    try:
        hf_hub_download(name, CONFIG, revision=folder.name)
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            raise Unavailable(f"data.tokenizer={name}: {_later(error)}") from error
    except Exception as error:
        raise _unreadable(name, error) from error
    return folder


def _later(error: Exception) -> str:
    return f"it cannot be fetched now ({_one_line(error)}); start again later"


def _unreadable(name: str, error: Exception) -> ConfigError:
    if temporary(error):
        return Unavailable(f"data.tokenizer={name}: {_later(error)}")
    return DataError(
        f"data.tokenizer={name}: there is no such tokenizer, or it cannot be read "
        f"({_one_line(error)}); expected {ACCEPTED}"
    )


def _from_library(name: str) -> Named:
    from transformers import AutoTokenizer

    try:
        pretrained = AutoTokenizer.from_pretrained(name)
        tokenizer = pretrained.backend_tokenizer
    except Exception as error:  # of the network, of the hub, of the files: each its own kind
        raise _unreadable(name, error) from error
    return Named(tokenizer, pretrained.eos_token_id)


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 200 else f"{line[:200]}..."
