"""Write sweeps/results/plans.md: the cost of the paper's experiments, as `mda plan` estimates it.

Nothing is measured and nothing is fetched: times are a card's by its data sheet, with the share of
its rate that `plan.share` assumes. The end of the page has measurements of a card with `python
experiments/bench_size.py --device gpu --json sweeps/results/h200.json`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mda.config import compose, conf_dir, main
from mda.schema import Config

NEEDS = ("plan",)
PAGE = Path(__file__).parents[1] / "sweeps" / "results" / "plans.md"
HEAD = """# What the paper's experiments take

One arm of each, from nothing to its curve, as `mda plan experiment=paper/14m plan.hardware=h100`
reckons it. A further arm of the same unit costs one more row `arm`; another estimator one more row
`scores`. The experiments are files of [conf/experiment/paper](../../conf/experiment/paper). Made by
`python experiments/plans.py`, from formulas that are tested against counted operations and bytes
([mda/cost](../../mda/cost/passes.py)); none of the experiments was run. At the end stands what an
update, a score and a fit take on a card.
"""
MEASURED = PAGE.with_name("h200.json")
FOOT = """## Measured on a card

64 sequences of 2,048 tokens with random weights on an NVIDIA H200, by
`python experiments/bench_size.py --device gpu`: an update of AdamW in float32 and with
`training.precision=bf16-mixed`, the score of every sequence for all heads, and an EK-FAC fit. The
share is that of the data sheet's rate, 67 TFLOP/s in float32 and 989 in bf16; peaks are of tensors.
The planned peaks are those that the formulas gave then. The fit of 160m was not measured.
"""


def page(hardware: str = "h100") -> str:
    """Returns the page, for one card."""
    from mda.report.costs import HEADERS, cells, duration
    from mda.stages.preview import Estimates

    lines = [HEAD]
    names = [path.stem for path in (conf_dir() / "experiment" / "paper").glob("*.yaml")]
    for name in sorted(names, key=lambda name: int(name.rstrip("m"))):
        lines += [f"## experiment=paper/{name}", ""]
        for precision in ("32-true", "bf16-mixed"):
            choice = [f"experiment=paper/{name}", f"training.precision={precision}"]
            config = compose([*choice, f"plan.hardware={hardware}"])
            estimates = Estimates([(config, stage) for stage in stages_of(config)])
            (rates,) = estimates.rates.values()
            totals = estimates.totals()
            if precision == "32-true":
                start, end = config.intervention.steps or (0, 0)
                window = f"steps {start:,} to {end:,}, {(end - start) * 1024:,} samples"
                lines += [f"{window}. {rates.source}.", ""]
                lines += [*table(HEADERS, [cells(one, rates.memory) for one in totals]), ""]
            else:
                (arm,) = [total for total in totals if total.stage == "arm"]
                said = duration(arm.seconds or 0)
                lines += [f"With `training.precision={precision}` an arm takes {said}.", ""]
    return "\n".join([*lines, FOOT, *measured()]).rstrip() + "\n"


def stages_of(config: Config) -> list[str]:
    """Returns the builds of one arm from nothing, without asking the hub for its files."""
    weights = ["weights"] * len(getattr(config.base, "steps", []))
    return ["corpus", *weights, "curve", "scores", "arm", "capabilities"]


def measured() -> list[str]:
    """Returns the table of measurements, and the cost of scoring in updates."""
    found = json.loads(MEASURED.read_text("utf-8"))
    heads = ("model and work", "tokens a second", "share", "peak", "planned peak")
    rows = []
    for name, of in found.items():
        sizes = (f"{of[key]:.3g} GB" for key in ("peak_gb", "planned_gb"))
        rows.append((name, f"{of['tokens_per_s']:,.0f}", f"{of['share']:.1%}", *sizes))
    pairs = [(name, name.replace("score", "update")) for name in found if "score" in name]
    ratios = [found[score]["seconds"] / found[update]["seconds"] for score, update in pairs]
    said = (
        f"The score of a sequence for all heads takes {min(ratios):.2f} to {max(ratios):.2f} of "
        "the time of its update in float32."
    )
    return [*table(heads, rows), "", said]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table, all columns but the first aligned to the right."""
    rule = ("---", *("---:",) * (len(headings) - 1))
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]


def plans(config: Config, folder: Path) -> None:
    """Writes the page of plans."""
    PAGE.write_text(page(), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main(plans, NEEDS)
