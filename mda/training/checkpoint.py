"""Checkpoints: a folder of safetensors and json, written whole or not at all.

`step_<n>/` holds the state after n updates: `model.safetensors`, `optimizer.safetensors` (AdamW's
moments by parameter name) and `state.json` (the step, and in fp16 the loss scale). The learning
rate is a pure function of the step, so the step is the scheduler's whole state.
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

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def checkpoint_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` updates."""
    return root / f"step_{step}"


def save(
    root: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_scale: Mapping[str, object] | None = None,
) -> Path:
    """Write the checkpoint of `step` and return its folder; one that exists is left alone.

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
    state = {"step": step} | ({"loss_scale": dict(loss_scale)} if loss_scale else {})
    store.write_json(part / "state.json", state)
    os.replace(part, folder)
    return folder


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore weights and optimizer bit for bit; returns the step.

    The optimizer's state may be empty, as it is before the first update. Raises ConfigError,
    naming the tensors, where a file lacks one, has one too many, or one of another shape.
    """
    weights = load_file(folder / "model.safetensors")
    _refuse_misfit(folder / "model.safetensors", weights, model)
    model.load_state_dict(weights, strict=False)
    moments = load_file(folder / "optimizer.safetensors")
    parameters = dict(model.named_parameters())
    wanted = {f"{name}/{key}" for name in parameters for key in MOMENTS}
    if moments:
        _refuse_names(folder / "optimizer.safetensors", wanted - {*moments}, {*moments} - wanted)
        for name, parameter in parameters.items():
            # The fused AdamW wants its step beside the moments, on a GPU too.
            optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].to(parameter.device) for key in MOMENTS
            }
    return store.read_json(folder / "state.json")["step"]


def loss_scale(folder: Path) -> dict[str, Any]:
    """State of fp16's dynamic loss scale; empty where the run had none."""
    return store.read_json(folder / "state.json").get("loss_scale", {})


def _refuse_misfit(path: Path, weights: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Every parameter once, under one of its names where several are tied, in its shape."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    known = model.state_dict()
    missing = {tied[0] for tied in names.values() if not set(tied) & set(weights)}
    _refuse_names(path, missing, set(weights) - set(known))
    for name, value in weights.items():
        if value.shape != known[name].shape:
            found, wanted = list(value.shape), list(known[name].shape)
            raise ConfigError(f"{path}: {name} has the shape {found}, the model's is {wanted}")


def _refuse_names(path: Path, missing: set[str], unknown: set[str]) -> None:
    said = [
        f"{word} {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
        for word, names in (("lacks", missing), ("has the unknown", unknown))
        if names
    ]
    if said:
        raise ConfigError(f"{path} {' and '.join(said)}: it is not a checkpoint of this model")


def second_moments(folder: Path, beta2: float) -> dict[str, torch.Tensor]:
    """Bias-corrected exp_avg_sq of every parameter: v / (1 - beta2^step).

    Raises ConfigError for a checkpoint without an optimizer's state, as before the first update.
    """
    moments = load_file(folder / "optimizer.safetensors")
    if not moments:
        raise ConfigError(
            f"{folder}/optimizer.safetensors has no second moments of Adam; accepted: a checkpoint "
            "after the first update"
        )
    return {
        key.removesuffix("/exp_avg_sq"): value
        / (1 - beta2 ** float(moments[key.removesuffix("exp_avg_sq") + "step"]))
        for key, value in moments.items()
        if key.endswith("/exp_avg_sq")
    }


def steps(root: Path) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending."""
    found = (p.name.removeprefix("step_") for p in root.glob("step_*") if p.is_dir())
    return sorted(int(name) for name in found if name.isdigit())
