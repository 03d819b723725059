"""Content-addressed artifacts: a result is found again by what went into it.

`keys` makes the key of an artifact, `artifacts` keeps the folders, `integrity` checks that they are
what was built, `locks` lets one process build while others wait, `gpus` gives each process its own
GPU, `files` reads and writes.
"""

from mda.store.artifacts import Artifact, Store, noting_uses, texts
from mda.store.environment import git_diff, git_state, versions
from mda.store.files import (
    csv_rows,
    hash_arrays,
    hash_file,
    read_csv,
    read_json,
    read_npy,
    read_object,
    read_safetensors,
    replacing,
    write_csv,
    write_json,
    write_npy,
    write_npy_parts,
    write_safetensors,
)
from mda.store.gpus import free_memory, gpu_of, take_gpu
from mda.store.integrity import Torn
from mda.store.keys import Key, device_kind, fingerprint, make_key
from mda.store.locks import Busy, hold, say

__all__ = [
    "Artifact", "Busy", "Key", "Store", "Torn", "csv_rows", "device_kind", "fingerprint",
    "free_memory", "git_diff", "git_state", "gpu_of", "hash_arrays", "hash_file", "hold",
    "make_key", "noting_uses", "read_csv", "read_json", "read_npy", "read_object",
    "read_safetensors", "replacing", "say", "take_gpu", "texts", "versions", "write_csv",
    "write_json", "write_npy", "write_npy_parts", "write_safetensors",
]  # fmt: skip
