"""Measure what the training loop costs over a bare one: tokens per second, and their ratio.

Both sides train the same model on the same batches in the same process, taking turns; each side's
figure is the median over the rounds. The loop is the whole of what `train.py` does while it
trains: Lightning, loss table, emergence curve, checkpoints, and its start-up. The bare loop is
forward, loss, backward, clipping and optimizer step.

    python experiments/bench_training.py [--steps 500] [--rounds 5] [--json FILE]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from mda.model.pythia import scratch

from mda.config import compose
from mda.data.stream import Corpus
from mda.emergence.callback import EmergenceCurve, curve_steps
from mda.emergence.measure import make_probes
from mda.schema import Config
from mda.stages.context import Context
from mda.stages.corpus import base_schedule, corpus
from mda.training.checkpoint import declared_steps
from mda.training.loop import train
from mda.training.optimizer import adamw, learning_rate
from mda.types import Schedule


def loop_seconds(config: Config, rows: Corpus, plan: Schedule) -> float:
    """Wall time of the framework's training of `plan`."""
    model = scratch(config.model, config.seed)
    keep = declared_steps(0, plan.end, config.training.checkpoint_every, True)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        curve = EmergenceCurve(
            Path(folder) / "curve.csv",
            make_probes(rows, config.emergence),
            curve_steps(0, plan.end, config.emergence.every),
            plan.batch_size * rows.seq_len,
        )
        train(
            Path(folder),
            model,
            rows,
            plan,
            config.training,
            checkpoints=keep,
            curves=[curve],
            progress=None,
        )
        return time.perf_counter() - start


def bare_seconds(config: Config, rows: Corpus, plan: Schedule) -> float:
    """Wall time of the same updates in a plain PyTorch loop."""
    model = scratch(config.model, config.seed).train()
    start = time.perf_counter()
    optimizer = adamw(model, config.training)
    for step in range(plan.end):
        tokens = rows.rows(plan.at(step)[0])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.training)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def run(steps: int, rounds: int, overrides: list[str]) -> dict[str, float]:
    """The figures of one benchmark."""
    config = compose([f"training.stop_step={steps}", *overrides])
    rows = corpus(Context.of(config))
    plan = base_schedule(config, rows)
    bare_seconds(config, rows, base_schedule(config, rows, 0, min(20, steps)))  # warm up
    loop, bare = [], []
    for _ in range(rounds):
        loop.append(loop_seconds(config, rows, plan))
        bare.append(bare_seconds(config, rows, plan))
    tokens = steps * plan.batch_size * rows.seq_len
    loop_speed = tokens / statistics.median(loop)
    bare_speed = tokens / statistics.median(bare)
    return {
        "loop_tokens_per_s": loop_speed,
        "bare_tokens_per_s": bare_speed,
        "ratio": loop_speed / bare_speed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500, help="updates in a round")
    parser.add_argument("--rounds", type=int, default=5, help="how often the two take turns")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="configuration, such as model.d_model=128")
    args = parser.parse_args()
    figures = run(args.steps, args.rounds, args.overrides)
    for name, value in figures.items():
        print(f"{name:<20}{value:,.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
