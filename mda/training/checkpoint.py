"""Checkpoints: a folder of safetensors and json, written whole or not at all.

`step_<n>/` holds the state after n updates: `model.safetensors`, `optimizer.safetensors` (AdamW's
moments by parameter name) and `state.json`. The learning rate is a pure function of the step, so
the step is the scheduler's whole state.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mda import store

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def checkpoint_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` updates."""
    return root / f"step_{step}"


def save(root: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write the checkpoint of `step` and return its folder; one that exists is left alone."""
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
    store.write_json(part / "state.json", {"step": step})
    os.replace(part, folder)
    return folder


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore weights and optimizer bit for bit; returns the step."""
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        if f"{name}/step" in moments:
            optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].to(
                    parameter.device if key != "step" else moments[f"{name}/step"].device
                )
                for key in MOMENTS
            }
    return store.read_json(folder / "state.json")["step"]


def second_moments(folder: Path, beta2: float) -> dict[str, torch.Tensor]:
    """Bias-corrected exp_avg_sq of every parameter: v / (1 - beta2^step)."""
    moments = load_file(folder / "optimizer.safetensors")
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


def declared_steps(
    start: int, end: int, every: int, log_spaced: bool, also: tuple[int, ...] = ()
) -> list[int]:
    """Steps at which a run keeps a checkpoint: its ends, every n, 1, 2, 4, ..., and `also`."""
    wanted = {start, end, *also}
    if every:
        wanted.update(range(0, end + 1, every))
    if log_spaced:
        wanted.update(2**i for i in range(end.bit_length()))
    return sorted(step for step in wanted if start <= step <= end)
