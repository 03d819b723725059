"""Measure what models of published sizes need: peak memory and time of updates and of scoring.

Each figure comes from a process of its own with random weights and random tokens. `update` is one
update of 64 sequences in micro-batches, forward, backward, clipping and AdamW, in the middle of a
training; `gradient` is the largest difference between the gradients of two sizes of micro-batches,
over the largest entry; `score` is the score of 64 sequences for all heads, `fit` an EK-FAC fit on
as many. Of the largest model it is two sequences. Beside each peak stands what the formulas of
`mda plan` say, and both hold the process itself.

    python experiments/bench_size.py [--sequences 64] [--only NAME] [--json FILE]
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from mda.config import compose
from mda.cost import passes
from mda.model.build import initial_model
from mda.stages.measuring import Bench, job_of, resident_bytes
from mda.training.loss import accumulate_gradients

SEQUENCES = 64
FIGURES = {  # name -> model, context, sequences, at a time, what is done
    "14m update": ("pythia-14m", 2048, SEQUENCES, 2, "update"),
    "14m gradient": ("pythia-14m", 2048, SEQUENCES, 2, "gradient"),
    "14m score": ("pythia-14m", 2048, SEQUENCES, 1, "score"),
    "14m fit": ("pythia-14m", 2048, SEQUENCES, 1, "fit"),
    "160m update": ("pythia-160m", 2048, 2, 1, "update"),
    "160m score": ("pythia-160m", 2048, 2, 1, "score"),
    "160m fit": ("pythia-160m", 2048, 2, 1, "fit"),
}


def measured(name: str, threads: int, most: int) -> dict[str, float]:
    """The figures of one line, in this process, on `most` sequences or fewer."""
    model, length, n, at_once, what = FIGURES[name]
    n = min(n, most)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    settings = [f"model={model}", "training=pythia", "data=pile", "data.source=."]
    settings += [f"data.seq_len={length}", f"training.micro_batch_size={at_once}"]
    job = job_of(compose(settings))
    process = resident_bytes()
    if what == "gradient":
        return {"difference": gradient_difference(job, n, at_once, 2 * at_once, length)}
    bench = Bench(job)
    bench.model  # noqa: B018  # built before the clock starts
    if what == "update":
        bench.update(1, 64)  # AdamW's moments are there, as in the middle of a training
        planned = passes.update_bytes(job.shape, at_once, length)
    elif what == "score":
        planned = passes.capture_bytes(job.shape, at_once, length)
        planned += 12 * sum(direction.numel() for direction in bench.blocks.values())
    else:
        planned = passes.fit_bytes(job.shape, job.rows, at_once, length)
    start, cpu = time.perf_counter(), time.process_time()
    flops = getattr(bench, what)(n, length, at_once)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "tokens_per_s": n * length / seconds,
        "gflop_per_s": flops / seconds / 1e9,
        "peak_gb": peak_bytes() / 1e9,
        "planned_gb": (process + planned) / 1e9,
    }


def gradient_difference(job, n: int, one: int, other: int, length: int) -> float:
    """Largest difference between the gradients of two micro-batch sizes, over the largest entry."""
    tokens = torch.randint(job.config.data.vocab_size, (n, length + 1))
    model = initial_model(job.config.model, 0).train()
    found = []
    for size in (one, other):
        model.zero_grad(set_to_none=True)
        accumulate_gradients(model, tokens, torch.ones(n), n, size)
        found.append([parameter.grad for parameter in model.parameters()])
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None]
    largest = max(a.abs().max().item() for a, _ in pairs)
    return max((a - b).abs().max().item() for a, b in pairs) / largest


def peak_bytes() -> float:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=FIGURES, help="one figure, measured in this process")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="at most so many")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(arguments.only, arguments.threads, arguments.sequences)))
        return
    figures = {}
    for name, (_, length, n, at_once, _) in FIGURES.items():
        n = min(n, arguments.sequences)
        command = [sys.executable, __file__, "--only", name, f"--threads={arguments.threads}"]
        command += [f"--sequences={n}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures[name] = json.loads(done.stdout.splitlines()[-1])
        said = ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items())
        print(f"{name}: {n} sequences of {length} tokens, {at_once} at a time: {said}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
