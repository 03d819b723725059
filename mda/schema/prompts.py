"""A file of prompts: JSON lines, each with a prompt, a right and perhaps a wrong continuation.

    {"prompt": "The capital of France is", "right": " Paris", "wrong": " Rome"}
    {"prompt": [464, 3139], "right": [6342], "wrong": [10598]}

A value is a text or a list of token ids. Either every line has a wrong continuation or none has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from mda.schema.setting import ConfigError, nearest

Text = str | list[int]
VALUE = "a text or a list of token ids, not empty"


@dataclass(frozen=True)
class Prompt:
    """A line of the file; `line` names it in errors."""

    line: str
    prompt: Text
    right: Text
    wrong: Text | None = None

    @property
    def continuations(self) -> tuple[Text, ...]:
        """The right one, and the wrong one if there is one."""
        return (self.right,) if self.wrong is None else (self.right, self.wrong)

    def tokens(self, encode: Callable[[str], Sequence[int]] | None) -> list[tuple[list[int], int]]:
        """Returns the tokens of the prompt with each continuation, and how many are the prompt's.

        Texts are encoded each by itself. Raises ConfigError for a text without `encode`, and for
        one that has no tokens.
        """
        pairs = []
        for continuation in self.continuations:
            before, after = (self._ids(value, encode) for value in (self.prompt, continuation))
            pairs.append(([*before, *after], len(before)))
        return pairs

    def _ids(self, value: Text, encode: Callable[[str], Sequence[int]] | None) -> list[int]:
        if isinstance(value, list):
            return value
        if encode is None:
            raise self.refuse(f"the text {value!r}", "token ids, as these data have no tokenizer")
        if not (ids := list(encode(value))):
            raise self.refuse(f"the text {value!r} has no tokens", "a text with at least one")
        return ids

    def check(self, tokens: Sequence[int], vocab_size: int, longest: int | None) -> None:
        """Raises ConfigError for tokens outside the vocabulary, or too many of them."""
        if outside := [token for token in tokens if token >= vocab_size]:
            raise self.refuse(f"token {outside[0]}", f"ids from 0 to {vocab_size - 1}")
        if longest is not None and len(tokens) > longest:
            limit = f"at most {longest}, data.seq_len and one to predict"
            raise self.refuse(f"{len(tokens)} tokens with a continuation", limit)

    def refuse(self, what: str, accepted: str) -> ConfigError:
        """Returns the error for this line, to be raised by the caller."""
        return ConfigError(f"{self.line}: {what} is invalid; expected {accepted}")


def read_prompts(file: str, key: str) -> list[Prompt]:
    """Returns the prompts of a file that the setting `key` names.

    Raises ConfigError, which names the file and the line, for anything else.
    """
    path = Path(file)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        accepted = "a file of JSON lines with prompt, right and wrong"
        raise ConfigError(f"{key}={file}: {reason}; expected {accepted}") from error
    numbered = [(f"{key}={file}, line {n}", line) for n, line in enumerate(lines, 1)]
    prompts = [_parsed(where, line) for where, line in numbered if line.strip()]
    if not prompts:
        raise ConfigError(f"{key}={file} has no lines; expected at least one prompt")
    for prompt in prompts:
        if (prompt.wrong is None) != (prompts[0].wrong is None):
            has = "no wrong continuation" if prompt.wrong is None else "a wrong continuation"
            raise prompt.refuse(has, "one in every line, or in none")
    return prompts


def _parsed(where: str, line: str) -> Prompt:
    known = [item.name for item in fields(Prompt)][1:]
    accepted = f'a JSON object such as {{"prompt": "a b a", "right": " b", "wrong": " c"}}, {VALUE}'
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: it is no JSON; expected {accepted}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: {line[:40]} is invalid; expected {accepted}")
    for name in content:
        if name not in known:
            close = nearest(name, known)
            raise ConfigError(f"{where}: {name} is invalid; expected {', '.join(known)}{close}")
    for name in ("prompt", "right"):
        if name not in content:
            raise ConfigError(f"{where}: it has no {name}; expected {accepted}")
    for name, value in content.items():
        ids = isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
        if not (value and (isinstance(value, str) or ids)):
            raise ConfigError(
                f"{where}: {name}={json.dumps(value)[:40]} is invalid; expected {VALUE}"
            )
    if content["right"] == content.get("wrong"):
        raise ConfigError(f"{where}: right and wrong are the same; expected two continuations")
    return Prompt(where, **content)


def size_of(prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Returns the sequences that go through the model, and about how long they are.

    A text counts a token for every four characters.
    """
    pairs = [tokens for one in prompts for tokens, _ in one.tokens(lambda text: text[::4].encode())]
    return len(pairs), max(map(len, pairs)) - 1
