"""Checkpoints: folders of safetensors and json, written atomically.

`step_<n>/` holds the state after n updates: `model.safetensors`, `optimizer.safetensors` (AdamW's
moments by parameter name) and `state.json` (the step, the SHA-256 of the other two, and in fp16 the
loss scale). The learning rate is a pure function of the step, so the step is the scheduler's whole
state.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mda import store
from mda.schema import ConfigError

FILES = ("model.safetensors", "optimizer.safetensors")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def checkpoint_folder(root: Path, step: int) -> Path:
    """Returns the folder of the checkpoint after `step` updates."""
    return root / f"step_{step}"


def save(
    root: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_scale: Mapping[str, object] | None = None,
) -> Path:
    """Writes the checkpoint of `step` and returns its folder. An existing one is kept.

    `loss_scale` is the state of fp16's dynamic loss scale, empty for other arithmetic.
    """
    folder = checkpoint_folder(root, step)
    if folder.exists():
        return folder
    part = root / f"step_{step}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    save_file(weights, part / "model.safetensors")
    moments = {
        f"{name}/{key}": optimizer.state[parameter][key].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key in MOMENTS
    }
    save_file(moments, part / "optimizer.safetensors")
    state: dict[str, object] = {
        "step": step,
        "sha256": {path.name: store.hash_file(path) for path in sorted(part.iterdir())},
    }
    if loss_scale:
        state["loss_scale"] = dict(loss_scale)
    store.write_json(part / "state.json", state)
    # Renamed last: a folder of this name is complete, whenever the process is killed.
    os.replace(part, folder)
    return folder


def verify(folder: Path) -> None:
    """Raises Torn unless the files of a checkpoint match their recorded hashes."""
    hashes = store.read_json(folder / "state.json").get("sha256", {})
    for name in FILES:
        if store.hash_file(folder / name) != hashes.get(name):
            raise store.Torn(f"{folder.name}/{name} has changed since it was saved")


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Returns restores weights and optimizer bit for bit; returns the step.

    The optimizer's state may be empty, as it is before the first update. Raises ConfigError,
    naming the tensors, where a file lacks one, has one too many, or one of another shape, and for
    moments that AdamW cannot have left (`check_moments`).
    """
    weights = load_file(folder / "model.safetensors")
    _refuse_misfit(folder / "model.safetensors", weights, model)
    model.load_state_dict(weights, strict=False)
    step = store.read_json(folder / "state.json")["step"]
    moments = load_file(folder / "optimizer.safetensors")
    parameters = dict(model.named_parameters())
    if moments:
        check_moments(folder / "optimizer.safetensors", moments, parameters, step)
        for name, parameter in parameters.items():
            # The fused AdamW wants its step beside the moments, on a GPU too.
            optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].to(parameter.device) for key in MOMENTS
            }
    return step


def check_moments(
    path: Path,
    moments: Mapping[str, torch.Tensor],
    parameters: Mapping[str, torch.Tensor],
    step: int,
) -> None:
    """Raises ConfigError, naming a tensor, for moments that AdamW cannot have after `step` updates.

    Every parameter has the mean gradient and the mean squared gradient, in its precision and shape,
    finite, the latter not negative, and the number of updates, from 0 to `step`: an arm's optimizer
    may be younger than its weights.
    """
    expected_names = {f"{name}/{key}" for name in parameters for key in MOMENTS}
    _refuse_names(path, expected_names - {*moments}, {*moments} - expected_names)
    for name, parameter in parameters.items():
        for key in MOMENTS:
            moment = moments[f"{name}/{key}"]
            like = torch.zeros(()) if key == "step" else parameter
            if (moment.dtype, moment.shape) != (like.dtype, like.shape):
                fault = f"is {moment.dtype} of the shape {list(moment.shape)}"
                accepted = f"{like.dtype} of the shape {list(like.shape)}"
            elif not torch.isfinite(moment).all():
                fault, accepted = "holds values that are not finite", "finite values"
            elif key == "exp_avg_sq" and (moment < 0).any():
                fault, accepted = "holds negative values", "mean squares, 0 or above"
            elif key == "step" and not (0 <= moment <= step and moment == moment.round()):
                fault, accepted = f"is {moment:g}", f"whole numbers from 0 to {step}"
            else:
                continue
            raise ConfigError(f"{path}: {name}/{key} {fault}; expected {accepted}")


def loss_scale(folder: Path) -> dict[str, Any]:
    """Returns the state of fp16's dynamic loss scale; empty where the run had none."""
    return store.read_json(folder / "state.json").get("loss_scale", {})


def _refuse_misfit(path: Path, weights: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Raises ConfigError unless a file has every parameter once, in its shape.

    Tied parameters are stored under one of their names.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    parameters = model.state_dict()
    missing = {tied[0] for tied in names.values() if not set(tied) & set(weights)}
    _refuse_names(path, missing, set(weights) - set(parameters))
    for name, value in weights.items():
        if value.shape != parameters[name].shape:
            shape, expected = list(value.shape), list(parameters[name].shape)
            raise ConfigError(f"{path}: {name} has the shape {shape}, the model's is {expected}")


def _refuse_names(path: Path, missing: set[str], unknown: set[str]) -> None:
    said = [
        f"{word} {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
        for word, names in (("lacks", missing), ("has the unknown", unknown))
        if names
    ]
    if said:
        raise ConfigError(f"{path} {' and '.join(said)}: it is not a checkpoint of this model")


def second_moments(folder: Path, beta2: float) -> dict[str, torch.Tensor]:
    """Returns the bias-corrected exp_avg_sq of every parameter: v / (1 - beta2^step).

    Raises ConfigError for a checkpoint without an optimizer's state, as before the first update.
    """
    moments = load_file(folder / "optimizer.safetensors")
    if not moments:
        raise ConfigError(
            f"{folder}/optimizer.safetensors has no second moments of Adam; expected a checkpoint "
            "after the first update"
        )
    return {
        key.removesuffix("/exp_avg_sq"): value
        / (1 - beta2 ** float(moments[key.removesuffix("exp_avg_sq") + "step"]))
        for key, value in moments.items()
        if key.endswith("/exp_avg_sq")
    }


def steps(root: Path) -> list[int]:
    """Returns the steps of the complete checkpoints under `root`, ascending."""
    names = (p.name.removeprefix("step_") for p in root.glob("step_*") if p.is_dir())
    return sorted(int(name) for name in names if name.isdigit())
