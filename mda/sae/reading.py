"""Shared by the loaders: reading files, with a clear error for what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mda import store
from mda.sae.hooks import Hookpoint
from mda.schema import ConfigError, refuse
from mda.schema.setting import show


def read_settings(file: Path) -> dict[str, Any]:
    """Returns a JSON object. Raises ConfigError for anything else."""
    try:
        settings = store.read_json(file)
    except ValueError as error:
        raise ConfigError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: expected a JSON object of settings")
    return settings


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors or, if it holds nothing else, .pt file, in float32.

    Raises ConfigError for a file that is torn, or a pickle of more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            tensors = store.read_safetensors(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ConfigError(f"{file}: not readable ({error})") from error
    except UnpicklingError as error:  # code where tensors should be
        raise ConfigError(f"{file}: expected tensors by name and nothing else") from error
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ConfigError(f"{file}: expected tensors by name and nothing else")
    return {name: tensor.float() for name, tensor in tensors.items()}


def wanted(values: Mapping[str, Any], name: str, file: Path) -> Any:
    """Returns `values[name]`. Raises ConfigError where the file lacks it."""
    if values.get(name) is None:
        raise ConfigError(f"{file}: has no {name}; there: {', '.join(sorted(values))}")
    return values[name]


def only(values: Mapping[str, Any], file: Path, **accepted: Any) -> None:
    """Raises ConfigError for a setting that is given with any value but the accepted one."""
    for name, value in accepted.items():
        if values.get(name, value) not in (value, None):
            raise refuse(f"{file}: {name}", values[name], show(value))


def placed(said: Hookpoint | None, name: object, file: Path) -> Hookpoint:
    """Returns the hookpoint that the files record, by `name`.

    Raises ConfigError where it is not known.
    """
    if said is None:
        raise ConfigError(
            f"{file}: the hookpoint {name!r} is not known; expected the output of a layer, of its "
            "attention or its MLP, or the residual stream before a layer"
        )
    return said
