"""Measure the cost of attribution, in plain training passes over the same sequences.

A training pass is forward, `F.cross_entropy` on the logits of transformers' model (sdpa) and
backward, without optimizer step. Against it, for random weights and tokens: scoring all heads, one
head of the middle layer, all MLP neurons, heads with neurons and whole modules in one pass, and
both EK-FAC passes for all heads. `heads / lowest layer` divides the time for all heads by that for
the lowest layer's, which also need the full backward pass; `heads / middle layer` by the middle
layer's, which need half of it.

All sides run in this process under the default allocator and take turns, a batch each; each side
has its own best batch size. A ratio is the median over the rounds, with the least and the most; the
second one is of the process's own CPU seconds, which other work on the cores disturbs less. If
others take more than 10 % of the cores, the figures are marked as unreliable. Peak memory is that
of a separate process that scores N sequences, and of one that scores 2N.

    python experiments/bench_attribution.py [--shapes nano,pythia-14m] [--rounds 7] [--json FILE]
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mda.benchmark import Clock, Load, Ratio, verdict
from mda.config import compose
from mda.estimator.ekfac import Fit, fit_curvature
from mda.estimator.score import score_samples
from mda.model.architecture import architecture
from mda.model.build import scratch
from mda.schema import ScratchConfig
from mda.schema.unit import HEAD_BLOCKS
from mda.types import HeadId, Part, Unit
from mda.unit.blocks import Directions

SMOLLM2 = ScratchConfig(
    name="smollm2-135m", family="llama", n_layers=30, d_model=576, n_heads=9, n_key_value_heads=3,
    d_ff=1536, vocab_size=49152, max_seq_len=2048,
)  # fmt: skip
SHAPES = {  # tokens of a sequence, sequences of a turn, batch sizes that are tried
    "nano": (128, 32, (8, 16, 32)),
    "pythia-14m": (512, 4, (1, 2, 4)),
    "smollm2-135m": (512, 1, (1,)),
}
RATIOS = {  # name -> (above, below)
    "heads": ("heads", "train"),
    "one head": ("one head", "train"),
    "neurons / heads": ("neurons", "heads"),
    "heads+neurons+modules / heads": ("together", "heads"),
    "EK-FAC fit": ("fit", "train"),
    "heads / lowest layer": ("heads", "lowest layer"),
    "heads / middle layer": ("heads", "middle layer"),
}

Side = Callable[[np.ndarray, int], object]
"""One side of the comparison: passes over these sample ids, so many at a time."""


class Bench:
    """A model with random weights, random tokens, and the compared sides."""

    def __init__(self, shape: str) -> None:
        sizes: Any = SMOLLM2 if shape == SMOLLM2.name else compose([f"model={shape}"]).model
        self.model = scratch(sizes, seed=0)
        self.architecture = arch = architecture(self.model)
        self.generator = torch.Generator().manual_seed(0)
        size = (64, SHAPES[shape][0] + 1)
        self.tokens = torch.randint(sizes.vocab_size, size, generator=self.generator)
        layers, middle = range(arch.n_layers), arch.n_layers // 2
        heads, neurons = self.heads(layers), self.neurons(layers)
        self.units = {
            "heads": heads,
            "one head": self.heads([middle], only=0),
            "lowest layer": self.heads([0]),
            "middle layer": self.heads([middle]),
            "neurons": neurons,
            "together": heads + neurons + self.modules(layers),
        }
        self.blocks = heads.blocks

    def heads(self, layers, only: int | None = None) -> Directions:
        """Returns a random direction for every head of some layers, or for one head of each."""
        numbers = range(self.architecture.n_heads) if only is None else [only]
        blocks = {layer: self.architecture.head_blocks(layer) for layer in layers}
        units = [
            Unit(str(HeadId(at, n)), tuple(Part(own[b], n) for b in HEAD_BLOCKS))
            for at, own in blocks.items()
            for n in numbers
        ]
        return self._random(units, [b for own in blocks.values() for b in own.values()])

    def neurons(self, layers) -> Directions:
        """Returns a random direction for every neuron of some layers, its output row included."""
        blocks = {layer: self.architecture.neuron_blocks(layer) for layer in layers}
        units = [
            Unit(f"L{at}N{n}", tuple(Part(block, n) for block in own.values()))
            for at, own in blocks.items()
            for n in range(self.architecture.d_ff)
        ]
        return self._random(units, [b for own in blocks.values() for b in own.values()])

    def modules(self, layers) -> Directions:
        """Returns a random direction for every attention and every MLP as a whole."""
        owned = {
            f"L{at}.{part}": self.architecture.module_blocks(at, part)
            for at in layers
            for part in ("attention", "mlp")
        }
        units = [Unit(name, tuple(Part(b, 0) for b in blocks)) for name, blocks in owned.items()]
        return self._random(units, [block for blocks in owned.values() for block in blocks])

    def _random(self, units, blocks) -> Directions:
        tensors = {b: torch.randn(b.shape, generator=self.generator) for b in blocks}
        return Directions.of(units, tensors)

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor:
        return self.tokens[sample_ids % len(self.tokens)]

    def train(self, sample_ids: np.ndarray, batch_size: int) -> None:
        for ids in np.split(sample_ids, range(batch_size, len(sample_ids), batch_size)):
            batch = self.rows(ids)
            self.model.zero_grad()
            logits = self.model(batch[:, :-1]).logits
            F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()

    def score(self, name: str, sample_ids: np.ndarray, batch_size: int) -> None:
        self.model.zero_grad(set_to_none=True)
        score_samples(self.model, self.rows, sample_ids, self.units[name], batch_size)

    def fit(self, sample_ids: np.ndarray, batch_size: int) -> None:
        self.model.zero_grad(set_to_none=True)
        fit_curvature(self.model, self.rows, sample_ids, Fit(self.blocks, batch_size=batch_size))

    def sides(self) -> dict[str, Side]:
        """Returns every side by name; the others are divided by `train`."""
        scores = {name: partial(self.score, name) for name in self.units}
        return {"train": self.train, **scores, "fit": self.fit}


def measure(shape: str, rounds: int) -> dict[str, Any]:
    """Returns ratios by wall and by CPU seconds, and the load of the machine."""
    bench, (_, n, batch_sizes) = Bench(shape), SHAPES[shape]
    sides, ids = bench.sides(), np.arange(n)
    best = {name: fastest(side, ids, batch_sizes) for name, side in sides.items()}
    load = Load()
    clocks: dict[str, list[Clock]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            with (clock := Clock()):
                side(ids, best[name])
            clocks[name].append(clock)
    result: dict[str, Any] = {"batch_sizes": best, "others": load.others(), "ratios": {}}
    for name, (above, below) in RATIOS.items():
        result["ratios"][name] = {
            kind: vars(Ratio.of(*([getattr(c, kind) for c in clocks[s]] for s in (above, below))))
            for kind in ("wall_s", "cpu_s")
        }
    result["train_s_per_sequence"] = Ratio.of(
        [c.wall_s for c in clocks["train"]], [n] * rounds
    ).median
    return result


def fastest(side: Side, ids: np.ndarray, batch_sizes: tuple[int, ...]) -> int:
    """Returns the batch size with the least CPU time of two tries each."""
    tried = {}
    for size in batch_sizes:
        clocks = [Clock(), Clock()]
        for clock in clocks:
            with clock:
                side(ids, size)
        tried[size] = min(clock.cpu_s for clock in clocks)
    return min(tried, key=tried.__getitem__)


def peak_memory(shape: str, n: int) -> float:
    """Returns the peak resident memory in MB of a fresh process that scores `n` sequences."""
    command = [sys.executable, __file__, "--shapes", shape, "--only-memory", str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak_memory(shape: str, n: int) -> None:
    """Prints its own peak memory, as the child process of `peak_memory`."""
    bench = Bench(shape)
    bench.score("heads", np.arange(n), SHAPES[shape][2][-1])
    # not getrusage: its maximum includes the parent, whose memory a child shares before exec
    status = Path("/proc/self/status").read_text()
    print(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024)


def allocator() -> str:
    """Returns the C library, whose allocator torch uses on the CPU, and possible replacements."""
    settings = ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_")
    changed = [f"{name}={os.environ[name]}" for name in settings if os.environ.get(name)]
    return f"allocator of {' '.join(platform.libc_ver())}, {' '.join(changed) or 'default'}"


def print_result(shape: str, result: dict[str, Any]) -> None:
    """Prints the figures of one shape as a table."""
    print(f"{shape}: {result['train_s_per_sequence']:.4f} s of training a sequence")
    print(f"  {'ratio':32}{'wall: median [least, most]':30}own CPU seconds")
    for name, kinds in result["ratios"].items():
        wall, cpu = (str(Ratio(**kinds[kind])) for kind in ("wall_s", "cpu_s"))
        print(f"  {name:32}{wall:30}{cpu}")
    for key in ("peak_mb_n", "peak_mb_2n"):
        print(f"  {key:32}{result[key]:.0f}")
    print(f"  {verdict(result['others'])}")


def main() -> None:
    """Measures the configured shapes and prints their figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="nano,pythia-14m", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only-memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = arguments.shapes.split(",")
    for shape in shapes:
        if shape not in SHAPES:
            parser.error(f"--shapes {shape}; expected {', '.join(SHAPES)}")
    if arguments.only_memory:
        return print_peak_memory(shapes[0], arguments.only_memory)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {allocator()}")
    results = {}
    for shape in shapes:
        result = results[shape] = measure(shape, arguments.rounds)
        n = 4 * SHAPES[shape][1]
        result |= {f"peak_mb_{k}": peak_memory(shape, m) for k, m in (("n", n), ("2n", 2 * n))}
        print_result(shape, result)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
