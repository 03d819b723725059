"""What `mda plan` says will be built is what `mda run` builds, job by job from an empty store."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mda import pipeline
from mda.config import compose
from mda.data.stream import stream_hash
from mda.stages.context import Context
from mda.stages.preview import preview_job
from mda.store import Store
from mda.store.keys import HOME

HEAVY = {
    "transformers.modeling_utils", "torch._dynamo", "sympy", "scipy", "matplotlib", "pandas",
    "datasets", "pyarrow", "pytorch_lightning", "wandb", "plotly",
}  # fmt: skip
AFTER_SCORES = ("arm", "capabilities")  # known by what was chosen, where the scores are there
SETTINGS = (
    "seed=1", "training.checkpoint_every=10", "training.stop_step=50", "emergence.every=20",
    "unit.threshold=0.04", "unit.threshold=0.05", "unit.locate=L0H1", "unit.locate=L1H0",
    "unit.locate=mechanism", "unit.blocks=[qk,o]", "unit.probe.seed=9",
    "unit.metric=previous_token",
    "unit=previous_token_head", "unit=mlp_neuron unit.label=generated_json", "unit=module",
    "estimator.batch_size=8", "estimator.batch_size=16", "estimator.damping=0.5",
    "estimator.checkpoint=window_end", "estimator.checkpoint=32", "estimator=tracin",
    "estimator=tracin estimator.n_checkpoints=1", "estimator=random", "estimator=repetition",
    "estimator=loss", "estimator=unrolled", "estimator=random estimator.seed=1",
    "intervention=control", "intervention.window=[21,40]", "intervention.window=[20,50]",
    "intervention.before_onset=9", "intervention.fraction=0.2", "intervention.mode=drop",
    "intervention.select=random", "intervention.select=bottom", "intervention.ngram=4",
    "intervention.select=random intervention.seed=2", "intervention.match_targeted=allow",
    "intervention.mode=mask_tokens estimator=tracin", "intervention=augment", "intervention.seed=3",
    "intervention=augment intervention.weight=3.0", "capabilities.prompts=5",
    "intervention.window=auto unit.threshold=0.005 intervention.after_onset=20",
    "intervention.window=auto unit.threshold=0.006 intervention.after_onset=20",
)  # fmt: skip
DRAWN = np.random.default_rng(0)
PAIRS = [tuple(map(str, DRAWN.choice(SETTINGS, 2, replace=False))) for _ in range(20)]


def config_of(words: str, output: Path):
    given = ["experiment=smoke", "training.threads=1", f"output_dir={output}"]
    return compose([*given, *words.split()])


def planned(configs) -> Counter:
    """How many artifacts of each kind the jobs build, as they are counted: each once."""
    stages = [preview_job(config, pipeline.arm).stages for config in configs]
    return Counter(kind for kind, _ in {key for one in stages for key in one if not one[key]})


def built(output: Path) -> Counter:
    """How many artifacts of each kind there are; curvature is a part of the scores' cost."""
    artifacts = Store(output / "store").artifacts()
    return Counter(one.kind for one in artifacts if one.kind != "curvature")


def agree(output: Path, pair: tuple[str, ...]) -> Counter:
    """Plan two jobs and build them; returns what was built where both agree."""
    configs = [config_of(words, output) for words in pair]
    foreseen = planned(configs)
    arms = [pipeline.arm(Context(c, Store(output / "store"), progress=False)) for c in configs]
    there = built(output)
    edits = {(one.base.fingerprint, stream_hash(one.edited.stream)) for one in arms}
    chosen_alike = len(edits) < len(arms)  # which no plan can know before the scores
    for kind in foreseen | there:
        if not (chosen_alike and kind in AFTER_SCORES):
            assert foreseen[kind] == there[kind], kind
    for kind in AFTER_SCORES:
        shutil.rmtree(output / "store" / kind)
    assert planned(configs) == Counter({kind: there[kind] for kind in AFTER_SCORES})
    return there


@pytest.mark.parametrize(
    ("pair", "several"),
    [
        (("estimator.batch_size=8", "estimator.batch_size=16"), set()),
        (("unit.threshold=0.04", "unit.threshold=0.05"), set()),
        (("intervention=control", "intervention=control estimator=random"), set()),
        (("capabilities.seed=0", "intervention.fraction=0.5"), {"arm", "capabilities"}),
    ],
)
def test_a_plan_counts_what_a_run_builds(tmp_path, pair, several):
    there = agree(tmp_path, pair)
    assert {kind for kind, n in there.items() if n > 1} == several


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" | ".join)
def test_a_plan_of_two_random_settings_counts_what_runs_build(tmp_path, pair):
    agree(tmp_path, pair)


def test_a_plan_of_what_is_in_the_store_loads_no_code_of_models(traced):
    _, context = traced()
    folder = context.store.root.parent
    code = "import sys; from mda import cli; cli.main(); print('loaded', *sys.modules)"
    words = ["experiment=smoke", "intervention.window=[20,60]", "training.threads=1"]
    command = [sys.executable, "-c", code, "trace", *words, f"output_dir={folder}", "--dry-run"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert "to build: nothing" in done.stdout, done.stdout + done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded" and "torch" in loaded
    assert HEAVY & set(loaded) == set()
