"""Which GPU a process takes where several processes share the GPUs of a machine."""

from __future__ import annotations

import gc
from collections.abc import Sequence


def gpu_of(number: int, kinds: Sequence[str]) -> int | None:
    """The GPU of process `number`, in turn; `kinds` are what the GPUs are called. None for none.

    Raises ValueError for GPUs of several kinds: each process would look for results of its own.
    """
    if len(set(kinds)) > 1:
        raise ValueError(
            f"{' and '.join(sorted(set(kinds)))} together; accepted: GPUs of one kind, see "
            "CUDA_VISIBLE_DEVICES"
        )
    return number % len(kinds) if kinds else None


def take_gpu(number: int) -> None:
    """Make the GPU of process `number` the one that `cuda` means in this process."""
    import torch

    kinds = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if (gpu := gpu_of(number, kinds)) is not None:
        torch.cuda.set_device(gpu)


def free_memory() -> None:
    """Give back what this process keeps of its GPU's memory without need, to those beside it."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
