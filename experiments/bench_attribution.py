"""Measure what attribution costs, in plain training passes over the same sequences.

A training pass is forward, `F.cross_entropy` on the logits of transformers' GPTNeoX (sdpa) and
backward, without optimizer step. Against it, for random weights and tokens: scoring every head
(`score_all_ratio`), scoring one head in the middle layer (`score_one_ratio`), and both EK-FAC
passes for all heads (`fit_ratio`). `score_layer_ratio` divides the time for all heads by that for
the heads of the lowest layer, whose gradients come all the way down as well: what the other
layers' heads add. `score_middle_layer_ratio` divides by the middle layer's, a shorter way.

All sides run in this process under the default allocator and take turns, each at its own best
batch size; a ratio is that of the medians over the rounds. Peak memory is that of a process of
its own that scores N sequences, and of one that scores 2N.

    python experiments/bench_attribution.py [--shapes nano,pythia-14m] [--rounds 7] [--json FILE]
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mda.model.head_layout import model_shape
from mda.model.pythia import scratch
from mda.unit.subspace import BlockId, Subspace, Units, all_heads, single_head
from transformers import GPTNeoXForCausalLM

from mda.config import compose
from mda.estimator.ekfac import Labels, fit_curvature
from mda.estimator.score import make_directions, score_samples
from mda.types import HeadId

SEQ_LEN = {"nano": 128, "pythia-14m": 512}
SEQUENCES = {"nano": 64, "pythia-14m": 4}  # in one turn of one side
BATCH_SIZES = {"nano": (8, 16, 32), "pythia-14m": (1, 2, 4)}
SUBSPACE = Subspace()

Side = Callable[[np.ndarray, int], None]
"""One side of the comparison: passes over these sample ids, so many at a time."""


class Bench:
    """A model with random weights, random tokens, and the sides that are compared."""

    def __init__(self, shape: str) -> None:
        self.model: GPTNeoXForCausalLM = scratch(compose([f"model={shape}"]).model, seed=0)
        generator = torch.Generator().manual_seed(0)
        size = (256, SEQ_LEN[shape] + 1)
        self.tokens = torch.randint(self.model.config.vocab_size, size, generator=generator)
        n_layers, n_heads, d_model, d_head = model_shape(self.model)
        self.units = {
            "score_all": all_heads(n_layers, n_heads),
            "score_one": single_head(HeadId(n_layers // 2, 0)),
            "score_layer": heads_of(0, n_heads),
            "score_middle_layer": heads_of(n_layers // 2, n_heads),
        }
        sizes = {"qk": (d_model, 2 * d_head), "v": (d_model, d_head), "o": (d_head, d_model)}
        self.directions = {
            BlockId(layer, block): torch.randn(n_heads, *sizes[block], generator=generator)
            for layer in range(n_layers)
            for block in SUBSPACE.blocks
        }

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor:
        return self.tokens[sample_ids % len(self.tokens)]

    def train(self, sample_ids: np.ndarray, batch_size: int) -> None:
        for ids in np.split(sample_ids, range(batch_size, len(sample_ids), batch_size)):
            batch = self.rows(ids)
            self.model.zero_grad()
            logits = self.model(batch[:, :-1]).logits
            F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()

    def score(self, units: Units, sample_ids: np.ndarray, batch_size: int) -> None:
        directions = make_directions(self.model, self.directions, SUBSPACE, units)
        score_samples(self.model, self.rows, sample_ids, directions, units, batch_size)

    def fit(self, sample_ids: np.ndarray, batch_size: int) -> None:
        layers = range(self.model.config.num_hidden_layers)
        fit_curvature(self.model, self.rows, sample_ids, layers, SUBSPACE, Labels(), batch_size)

    def sides(self) -> dict[str, Side]:
        """Every side by name; `train` is the one the others are divided by."""
        scores = {
            name: lambda ids, size, units=units: self.score(units, ids, size)
            for name, units in self.units.items()
        }
        return {"train": self.train, **scores, "fit": self.fit}


def heads_of(layer: int, n_heads: int) -> Units:
    """Every head of one layer, a unit each."""
    heads = [HeadId(layer, head) for head in range(n_heads)]
    return Units(tuple(map(str, heads)), tuple((head,) for head in heads))


def seconds(side: Side, n: int, batch_size: int) -> float:
    """Wall time for one sequence."""
    start = time.perf_counter()
    side(np.arange(n), batch_size)
    return (time.perf_counter() - start) / n


def measure(shape: str, rounds: int) -> dict[str, float]:
    """Seconds per sequence and ratios to a training pass, each side at its best batch size."""
    bench, n = Bench(shape), SEQUENCES[shape]
    sides = bench.sides()
    best = {}
    for name, side in sides.items():
        tried = {b: min(seconds(side, n, b) for _ in range(2)) for b in BATCH_SIZES[shape]}
        best[name] = min(tried, key=tried.__getitem__)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side, n, best[name]))
    medians = {name: statistics.median(t) for name, t in times.items()}
    result = {f"{name}_s_per_sequence": value for name, value in medians.items()}
    result |= {f"{name}_batch_size": size for name, size in best.items()}
    for name in ("score_all", "score_one", "fit"):
        result[f"{name}_ratio"] = medians[name] / medians["train"]
    for name in ("score_layer", "score_middle_layer"):
        result[f"{name}_ratio"] = medians["score_all"] / medians[name]
    return result


def peak_memory(shape: str, n: int) -> float:
    """Peak resident memory in MB of a fresh process that scores `n` sequences, all heads."""
    command = [sys.executable, __file__, "--shapes", shape, "--only-memory", str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak_memory(shape: str, n: int) -> None:
    """The child of `peak_memory`."""
    bench = Bench(shape)
    bench.score(bench.units["score_all"], np.arange(n), BATCH_SIZES[shape][-1])
    # not getrusage: its maximum includes the parent, whose memory a child shares before exec
    status = Path("/proc/self/status").read_text()
    print(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024)


def allocator() -> str:
    """The C library, whose allocator torch uses on the CPU, and what may have changed it."""
    settings = ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_")
    changed = [f"{name}={os.environ[name]}" for name in settings if os.environ.get(name)]
    return f"allocator of {' '.join(platform.libc_ver())}, {' '.join(changed) or 'default'}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="nano,pythia-14m", help="presets, comma-separated")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only-memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = arguments.shapes.split(",")
    if arguments.only_memory:
        return print_peak_memory(shapes[0], arguments.only_memory)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {allocator()}")
    results = {}
    for shape in shapes:
        if shape not in SEQ_LEN:
            parser.error(f"--shapes {shape}; accepted: {', '.join(SEQ_LEN)}")
        result = results[shape] = measure(shape, arguments.rounds)
        n = 4 * SEQUENCES[shape]
        result |= {f"peak_rss_mb_{k}": peak_memory(shape, m) for k, m in (("n", n), ("2n", 2 * n))}
        print(shape)
        for key, value in result.items():
            print(f"  {key:28} {value:.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
