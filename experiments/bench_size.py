"""Measure peak memory and time of updates and of scoring, for models of published sizes.

Weights and tokens are random; on a CPU each figure comes from a process of its own. `update` is one
update of 64 sequences in micro-batches, forward, backward, clipping and AdamW, in the middle of a
training; `gradient` is the largest difference between the gradients of two sizes of micro-batches,
over the largest entry; `score` is the score of 64 sequences for all heads, `fit` an EK-FAC fit on
as many. For the largest model it is two sequences on a CPU. Each peak is compared with the formulas
of `mda plan`. On a CPU both include the process itself; on a GPU they count tensors only, and a
rate is also given as a share of the card's data sheet.

    python experiments/bench_size.py [--device cpu] [--sequences 64] [--only NAME] [--json FILE]
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mda.config import compose
from mda.cost import passes
from mda.cost.hardware import CARDS
from mda.model.build import initial_model
from mda.model.loss import chunk_at_once
from mda.stages.measuring import Bench, held_bytes, job_of
from mda.training.loss import accumulate_gradients, logits_at_once

SEQUENCES = 64
LENGTH = 2048


@dataclass(frozen=True)
class Figure:
    """One measurement: so many sequences, some at a time."""

    model: str
    sequences: int
    at_once: int
    what: str
    precision: str = "32-true"


ON_CPU = {
    "14m update": Figure("pythia-14m", SEQUENCES, 2, "update"),
    "14m gradient": Figure("pythia-14m", SEQUENCES, 2, "gradient"),
    "14m score": Figure("pythia-14m", SEQUENCES, 1, "score"),
    "14m fit": Figure("pythia-14m", SEQUENCES, 1, "fit"),
    "160m update": Figure("pythia-160m", 2, 1, "update"),
    "160m score": Figure("pythia-160m", 2, 1, "score"),
    "160m fit": Figure("pythia-160m", 2, 1, "fit"),
}
ON_GPU = {
    f"{size} {what}{f', {precision}' if precision else ''}, {at_once} at a time": Figure(
        f"pythia-{size}", SEQUENCES, at_once, what, precision or "32-true"
    )
    for size in ("14m", "31m", "70m", "160m")
    for what, precision, at_once in (
        ("update", "", 4), ("update", "", 16), ("update", "bf16-mixed", 4),
        ("update", "bf16-mixed", 16), ("score", "", 4), ("score", "", 16), ("fit", "", 4),
    )
}  # fmt: skip
FIGURES = {"cpu": ON_CPU, "gpu": ON_GPU}


def measured(figure: Figure, device: str, threads: int, most: int) -> dict[str, float]:
    """Returns the figures of one line, in this process, on at most `most` sequences."""
    n, at_once, what = min(figure.sequences, most), figure.at_once, figure.what
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    settings = [f"model={figure.model}", "training=pythia", "data=pile", "data.source=."]
    settings += [f"data.seq_len={LENGTH}", f"training.micro_batch_size={at_once}"]
    settings += [f"training.accelerator={device}", f"training.precision={figure.precision}"]
    job = job_of(compose(settings))
    process = held_bytes(job.device) if device == "cpu" else 0
    if what == "gradient":
        return {"difference": gradient_difference(job, n, at_once, 2 * at_once, LENGTH)}
    bench = Bench(job)
    bench.model  # noqa: B018  # built before the clock starts
    if what == "update":
        bench.update(1, 64)  # AdamW's moments are there, as in the middle of a training
        logits = logits_at_once(job.device)
        planned = passes.update_bytes(job.shape, at_once, LENGTH, logits=logits)
    elif what == "score":
        planned = passes.capture_bytes(job.shape, at_once, LENGTH)
        planned += passes.tile_bytes(job.shape, at_once * LENGTH, chunk_at_once(job.device))
        planned += 12 * sum(direction.numel() for direction in bench.blocks.values())
    else:
        planned = passes.fit_bytes(job.shape, job.rows, at_once, LENGTH)
        planned += passes.label_bytes(job.shape, at_once * LENGTH, chunk_at_once(job.device))
    if device == "gpu":
        getattr(bench, what)(at_once, LENGTH, at_once)  # chooses its kernels
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, cpu = time.perf_counter(), time.process_time()
    flops = getattr(bench, what)(n, LENGTH, at_once)
    if device == "gpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    found = {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "tokens_per_s": n * LENGTH / seconds,
        "gflop_per_s": flops / seconds / 1e9,
        "peak_gb": peak_bytes(device) / 1e9,
        "planned_gb": (process + planned) / 1e9,
    }
    name = torch.cuda.get_device_name() if device == "gpu" else ""
    if card := next((c for key, c in CARDS.items() if key in name.lower()), None):
        promised = card.fp32 if figure.precision == "32-true" else card.bf16
        found["share"] = flops / seconds / promised
    return found


def gradient_difference(job, n: int, one: int, other: int, length: int) -> float:
    """Returns the largest gradient difference of two micro-batch sizes, over the largest entry."""
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


def peak_bytes(device: str) -> float:
    """Returns this process's peak resident memory, or on a GPU the peak of its tensors."""
    if device == "gpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def main() -> None:
    """Measures the lines of the table, each in its own process on a CPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=FIGURES, default="cpu")
    parser.add_argument("--only", help="one figure, measured in this process")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="at most so many")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    device, most = arguments.device, arguments.sequences
    wanted = FIGURES[device]
    if arguments.only:
        if arguments.only not in wanted:
            parser.error(f"--only {arguments.only!r}; expected {', '.join(wanted)}")
        print(json.dumps(measured(wanted[arguments.only], device, arguments.threads, most)))
        return
    figures = {}
    for name, figure in wanted.items():
        if device == "gpu":
            figures[name] = measured(figure, device, arguments.threads, most)
            torch.cuda.empty_cache()
        else:  # the peak is that of a process
            command = [sys.executable, __file__, "--only", name, f"--threads={arguments.threads}"]
            command += [f"--sequences={most}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[name] = json.loads(done.stdout.splitlines()[-1])
        said = ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items())
        n = min(figure.sequences, most)
        print(f"{name}: {n} sequences of {LENGTH} tokens, {figure.at_once} at a time: {said}")
        sys.stdout.flush()
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
