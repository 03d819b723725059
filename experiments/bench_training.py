"""Measure the overhead of the training loop over a bare one: tokens per second, and their ratio.

Both sides train the same model on the same batches in the same process. They take turns every 20
updates, whenever the loop has logged a row, so that a busy spell of the machine meets both. The
loop is the whole of what `train.py` does while it trains: Lightning, loss table, emergence curve,
checkpoints, and its start-up. The bare loop is forward, loss, backward, clipping and optimizer
step, in the same micro-batches. Each figure is the median over the rounds, with the least and the
most; the ratio of CPU times is given beside that of wall times.

    python experiments/bench_training.py [--steps 1000] [--rounds 5] [--json FILE] [overrides]
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from mda import pipeline
from mda.benchmark import Clock, Load, Ratio, verdict
from mda.config import compose
from mda.data.stream import Corpus
from mda.emergence.callback import EmergenceCurve
from mda.emergence.measure import make_probes
from mda.emergence.steps import curve_steps, held_out_every
from mda.model.build import initial_model
from mda.schema import Config
from mda.stages.context import Context
from mda.training.loop import train
from mda.training.optimizer import adamw, learning_rate
from mda.types import Stream


def bare_updates(config: Config, rows: Corpus, stream: Stream) -> Iterator[int]:
    """Runs the same updates in a plain PyTorch loop, one for each item, and yields the step."""
    settings = config.training
    model = initial_model(config.model, config.seed).train()
    optimizer = adamw(model, settings)
    for step in range(stream.end):
        tokens = rows.rows(stream.at(step)[0])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        for part in tokens.split(settings.micro_batch_size or len(tokens)):
            logits = model(input_ids=part[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
            (loss * (len(part) / len(tokens))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1


def one_round(config: Config, rows: Corpus, stream: Stream) -> tuple[Clock, Clock]:
    """Returns the time of the framework's training of `stream`, and of the bare loop's."""
    model, updates = initial_model(config.model, config.seed), bare_updates(config, rows, stream)
    keep = replace(config.training, stop_step=stream.end).checkpoints
    both, bare, done = Clock(), Clock(), 0

    def turn(row: Mapping[str, float]) -> None:
        nonlocal done
        with bare:
            while done < row["step"]:
                done = next(updates)

    with tempfile.TemporaryDirectory() as folder, both:
        curve = EmergenceCurve(
            Path(folder) / "curve.csv",
            make_probes(rows, config.emergence),
            curve_steps(0, stream.end, config.emergence.every),
            curve_steps(0, stream.end, held_out_every(config.emergence)),
            stream.batch_size * rows.seq_len,
        )
        train(
            Path(folder),
            model,
            rows,
            stream,
            config.training,
            checkpoints=keep,
            curves=[curve],
            log=turn,
            progress=None,
        )
        turn({"step": stream.end})
    return both - bare, bare


def run(steps: int, rounds: int, overrides: list[str]) -> dict[str, object]:
    """Returns the figures of one benchmark."""
    config = compose([f"training.stop_step={steps}", *overrides])
    order = pipeline.order_of(Context.of(config))
    rows, stream = order.corpus, order.stream(0, config.training.last_step)
    one_round(config, rows, order.stream(0, min(20, steps)))  # warm up
    load = Load()
    loop, bare = zip(*(one_round(config, rows, stream) for _ in range(rounds)), strict=True)
    others = load.others()
    tokens = steps * stream.batch_size * rows.seq_len
    return {
        "loop_tokens_per_s": tokens / statistics.median(clock.wall_s for clock in loop),
        "bare_tokens_per_s": tokens / statistics.median(clock.wall_s for clock in bare),
        "ratio": Ratio.of([clock.wall_s for clock in bare], [clock.wall_s for clock in loop]),
        "cpu_ratio": Ratio.of([clock.cpu_s for clock in bare], [clock.cpu_s for clock in loop]),
        "others": others,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="updates in a round")
    parser.add_argument("--rounds", type=int, default=5, help="how often the two are measured")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="configuration, such as model.d_model=128")
    args = parser.parse_args()
    figures = run(args.steps, args.rounds, args.overrides)
    for name, value in figures.items():
        print(f"{name:<20}{f'{value:,.0f}' if isinstance(value, float) and value > 1 else value}")
    print(verdict(figures["others"]))  # type: ignore[arg-type]
    if args.json:
        plain = {k: asdict(v) if isinstance(v, Ratio) else v for k, v in figures.items()}
        args.json.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
