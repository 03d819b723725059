"""Many processes: samples split without duplicates, sums merged, rows gathered.

Under `torchrun` every process takes its contiguous part of the sample ids. Parts differ in length
by one at most and none is padded, so no sample is counted twice. Without a process group every
function is that of a single process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Key = TypeVar("Key")


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def shard(sample_ids: np.ndarray, rank: int | None = None, size: int | None = None) -> np.ndarray:
    """The contiguous part of the ids that belongs to a process, by default this one."""
    here = rank_and_size()
    rank, size = here[0] if rank is None else rank, here[1] if size is None else size
    return np.array_split(np.asarray(sample_ids), size)[rank]


def sum_over_processes(sums: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Each tensor summed over the processes; every process must hold the same keys."""
    merged = {key: value.clone() for key, value in sums.items()}
    if rank_and_size()[1] > 1:
        for value in merged.values():
            dist.all_reduce(value)
    return merged


def from_first_process(tensors: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """The first process's tensors, on every process."""
    shared = {key: value.clone() for key, value in tensors.items()}
    if rank_and_size()[1] > 1:
        for value in shared.values():
            dist.broadcast(value, src=0)
    return shared


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their shards; the number of rows may differ."""
    size = rank_and_size()[1]
    if size == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
