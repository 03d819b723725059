"""sweeps/results/plans.md is what experiments/plans.py writes."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_plans_is_current():
    page = runpy.run_path(str(ROOT / "experiments" / "plans.py"))["page"]()
    assert (ROOT / "sweeps" / "results" / "plans.md").read_text("utf-8") == page
    for path in (ROOT / "conf" / "experiment" / "paper").glob("*.yaml"):
        assert f"## experiment=paper/{path.stem}\n" in page
