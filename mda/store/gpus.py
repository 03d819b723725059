"""One GPU for each process where several processes share the GPUs of a machine."""

from __future__ import annotations

import gc
from collections.abc import Sequence


def gpu_of(number: int, kinds: Sequence[str]) -> int | None:
    """Returns the GPU of process `number`, taken in turn, or None without GPUs.

    `kinds` are the names of the GPUs. Raises ValueError for GPUs of different kinds, because
    results, and so their keys, differ between kinds.
    """
    if len(set(kinds)) > 1:
        raise ValueError(
            f"{' and '.join(sorted(set(kinds)))} together; expected GPUs of one kind, see "
            "CUDA_VISIBLE_DEVICES"
        )
    return number % len(kinds) if kinds else None


def take_gpu(number: int) -> None:
    """Makes the GPU of process `number` the one that `cuda` means in this process."""
    import torch

    kinds = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if (gpu := gpu_of(number, kinds)) is not None:
        torch.cuda.set_device(gpu)


def free_memory() -> None:
    """Returns cached but unused GPU memory to the driver, for other processes on the GPU."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
