"""Which devices this machine can train on: asked before any work, without Lightning."""

from __future__ import annotations

import torch

from mda.schema import TrainingConfig, refuse


def check_devices(settings: TrainingConfig) -> None:
    """Raises ConfigError for devices or a precision that this machine cannot train with."""
    gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    if gpu and settings.devices > torch.cuda.device_count():
        raise refuse("training.devices", settings.devices, f"at most {torch.cuda.device_count()}, "
                     "the GPUs of this machine")  # fmt: skip
    if settings.precision == "16-mixed" and not gpu:  # Lightning would take bf16 in its place
        raise refuse("training.precision", settings.precision, "32-true or bf16-mixed: there is no "
                     "CUDA here")  # fmt: skip
