"""A program for the tests: trains a model of seconds, with settings from the command line.

python train_small.py FOLDER '{"devices": 2}' UPDATES
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from mda.data.stream import open_corpus, stream_order, unedited
from mda.data.token_files import map_rows
from mda.data.tokens import build_tokens
from mda.model.build import scratch
from mda.schema import ScratchConfig, TrainingConfig
from mda.training.loop import train
from mda.types import Stream

SHAPE = ScratchConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=64, max_seq_len=16)


def corpus(folder: Path):
    rows = np.random.default_rng(0).integers(2, 60, (40_016, 17), np.uint16)
    if not (folder / "rows.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "rows.npy", rows)
        build_tokens(
            folder / "corpus",
            path=folder / "rows.npy",
            seq_len=16,
            dtype="uint16",
            vocab_size=64,
            special_ids=(0, 1),
            held_out=16,
        )
    return open_corpus(folder / "corpus", "fp", map_rows(folder / "rows.npy", 16))


def edited(stream: Stream) -> Stream:
    """Of the first update all samples but one are dropped, the second has one more, of weight 2."""
    sizes = np.diff(stream.offsets)
    keep = np.ones(len(stream.sample_ids), dtype=bool)
    keep[1 : stream.offsets[1]] = False
    sizes[0] = 1
    ids, weights = stream.sample_ids[keep], stream.weights[keep]
    ids, weights = np.insert(ids, 1, 7), np.insert(weights, 1, np.float32(2))
    sizes[1] += 1
    offsets = np.concatenate([[0], sizes.cumsum()])
    return Stream(stream.start, stream.batch_size, offsets, ids, weights)


def run(folder: Path, given: dict, updates: int) -> None:
    """Train into FOLDER/run."""
    torch.set_num_threads(1)
    settings = TrainingConfig(
        **{"batch_size": 4, "total_steps": 10_000, "warmup_steps": 4, "peak_lr": 1e-2, **given}
    )
    rows = corpus(folder / "corpus")
    stream = edited(unedited(stream_order(rows, 0), 4, 0, updates))
    kept = [0, 1, 2, updates]
    model = scratch(SHAPE, 0)
    train(folder / "run", model, rows, stream, settings, checkpoints=kept, progress=None)


if __name__ == "__main__":
    run(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
    print("finished")
