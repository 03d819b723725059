"""Estimator, unit, model family, head metrics, edit and page section from outside the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

ESTIMATOR = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from mda.estimator.score import SampleScores
from mda.schema import EstimatorConfig, Requires
from mda.schema.plugins import add_option
from mda.schema.setting import setting


@dataclass
class RareConfig(EstimatorConfig):
    """Counts tokens of the probe that are above an id."""

    estimator: ClassVar[str] = "rare_tokens:Rare"
    name: str = setting("rare", "kind of estimator", one_of=("rare",))
    above: int = setting(100, "ids from which a token counts as rare", low=0)

    @property
    def requires(self):
        return Requires(query=True)


class Rare:
    def __init__(self, settings):
        self.settings = settings

    def steps(self, kept, window):
        return ()

    def score(self, work):
        rows = work.corpus.rows(work.sample_ids)
        asked = torch.cat(list(work.query))
        counts = ((rows > self.settings.above) & torch.isin(rows, asked)).sum(1).float()
        return SampleScores(counts[:, None].expand(-1, len(work.units)), counts * torch.nan)

    def token_influence(self, work, sample_ids):
        return None


add_option("estimator", "rare", RareConfig)
'''

UNIT = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from mda.schema import UnitConfig
from mda.schema.plugins import add_option
from mda.schema.setting import setting
from mda.types import Part, Unit
from mda.unit.measurement import copy_objective


@dataclass
class ValueConfig(UnitConfig):
    """All value projections of a layer."""

    kind: ClassVar[str] = "value_layers:ValueLayers"
    pattern: ClassVar[str] = r"L(\\d+)V"
    example: ClassVar[str] = "L1V"
    name: str = setting("values", "kind of unit", one_of=("values",))
    metric: str = setting("value_norm", "norm of its weights", one_of=("value_norm",))


class ValueLayers:
    def __init__(self, settings, materials):
        self.blocks = [
            materials.architecture.head_blocks(layer)["v"]
            for layer in range(materials.architecture.n_layers)
        ]
        self.measured = copy_objective(materials.probabilities("uniform"), n=4, length=8, seed=0)

    def ranking(self, model):
        return self.metrics(model, [f"L{i}V" for i in range(len(self.blocks))])

    def metrics(self, model, names):
        weights = dict(model.named_parameters())
        return {n: weights[self.blocks[int(n[1])].input.module + ".weight"].norm().item()
                for n in names}

    def units(self, names, together=False):
        return [
            Unit(f"L{i}V", tuple(Part(block, head) for head in range(block.owners)))
            for i, block in enumerate(self.blocks)
        ]

    def query(self):
        return self.measured.tokens_MS

    def gradients(self, model, units, target="measurement"):
        return self.measured.gradients(model, self.blocks)

    def measurements(self, model, units):
        return torch.full((len(units),), self.measured.value(model))


add_option("unit", "values", ValueConfig)
'''

FAMILY = '''
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mda.model.llama import Llama
from mda.schema.plugins import add_family


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


AutoConfig.register("own_llama", OwnConfig)
AutoModelForCausalLM.register(OwnConfig, OwnModel)


class Own(Llama):
    """A family that is laid out like Llama."""


add_family("own_llama", "own_family:Own")
'''

METRICS = '''
from mda.schema.metrics import HeadMetric
from mda.schema.plugins import add_metric


def sink(attention_MHTT, length):
    """Mean attention of the later tokens to the first one."""
    return attention_MHTT[:, :, 1:, 0].mean(-1)


def duplicate_token(attention_MHTT, length):
    """Mean attention of the second copy's tokens to themselves in the first."""
    return attention_MHTT.diagonal(-length, 2, 3).mean(-1)


add_metric(HeadMetric("sink", "attention_metrics:sink", "attention to position 0", 0.2))
add_metric(
    HeadMetric(
        "duplicate_token", "attention_metrics:duplicate_token", "duplicate-token score", 0.1,
        repeats=2,
    )
)
'''

SINK_HEAD = """defaults: [/schema/unit/head, _self_]

name: sink_head
metric: sink
blocks: [qk]
probe: {target: sink, n_sequences: 8, length: 16, repeats: 1}
"""

EDIT = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mda.schema import EditConfig
from mda.schema.plugins import add_option
from mda.schema.setting import setting


@dataclass
class ReverseConfig(EditConfig):
    """Turn the end of samples around."""

    maker: ClassVar[str] = "reverse_edit:reverse"
    name: str = setting("reverse", "kind of edit", one_of=("reverse",))
    last: int = setting(8, "tokens that are turned around", low=2)


def reverse(config, choice):
    rows, n = choice.rows(choice.sample_ids), config.last
    length = rows.shape[1]
    return choice.rewritten(
        np.repeat(choice.sample_ids, n),
        np.tile(np.arange(length - n, length), len(rows)), rows[:, :-n - 1:-1].ravel(),
    )


add_option("intervention", "reverse", ReverseConfig)
'''

SECTION = """
from pathlib import Path

from mda.schema.plugins import add_section
from mda.schema.sections import Section


def spread(compared):
    return {"arms": sorted({run.arm.name for run in compared.measured.runs}), "word": "<b>"}


template = Path(__file__).with_name("spread.html.j2")
add_section(Section("spread", "Names of arms", "spread_section:spread", template))
"""

FILES = {
    "reverse_edit.py": EDIT,
    "conf/intervention/reverse.yaml": "defaults: [/schema/intervention/reverse, _self_]\nlast: 4\n",
    "spread_section.py": SECTION,
    "spread.html.j2": "{% for arm in arms %}<p>{{ word }} {{ arm }}</p>{% endfor %}",
    "attention_metrics.py": METRICS,
    "conf/unit/sink_head.yaml": SINK_HEAD,
    "rare_tokens.py": ESTIMATOR,
    "value_layers.py": UNIT,
    "own_family.py": FAMILY,
    "conf/estimator/rare.yaml": "defaults: [/schema/estimator/rare, _self_]\n\nabove: 200\n",
    "conf/unit/values.yaml": "defaults: [/schema/unit/values, _self_]\n\nthreshold: 1.0\n",
    "conf/model/own.yaml": "defaults: [/schema/model/scratch, _self_]\n\nfamily: own_llama\n"
    "vocab_size: ${data.vocab_size}\nmax_seq_len: ${data.seq_len}\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "plugin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "plugin"


def start(program, folder, *overrides, plugins="rare_tokens,value_layers,own_family"):
    environment = os.environ | {
        "MDA_PLUGINS": plugins,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }
    return subprocess.run(
        [sys.executable, ROOT / "experiments" / f"{program}.py", "experiment=smoke",
         "--config-dir", folder / "conf", f"output_dir={folder / 'outputs'}", "name=plugin",
         *overrides],
        env=environment, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


def trace(folder, *overrides):
    return start("trace", folder, *overrides)


def test_one_file_and_one_yaml_add_an_estimator_a_unit_and_a_family(folder):
    done = trace(folder, "estimator=rare", "unit=values", "model=own", "estimator.above=250")
    assert done.returncode == 0, done.stderr
    assert "next: mda run --config-dir=conf experiment=smoke " in done.stdout
    run = folder / "outputs" / "runs" / "trace" / "plugin"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unit"] in ("L0V", "L1V")
    (manifest,) = (folder / "outputs" / "store" / "scores").glob("*/manifest.json")
    text = manifest.read_text()
    assert "value_layers" in text  # whose probe it reads
    assert "rare_tokens" in text and '"above": 250' in text
    (base,) = (folder / "outputs" / "store" / "base").glob("*/manifest.json")
    assert "own_family" in base.read_text()


def test_a_wrong_setting_of_a_plugin_is_refused_like_any_other(folder):
    done = trace(folder, "estimator=rare", "estimator.abovee=250")
    assert done.returncode == 2
    assert "estimator.abovee" in done.stderr and "above" in done.stderr


def test_a_plugin_that_is_not_there_is_named(folder):
    environment = os.environ | {"MDA_PLUGINS": "no_such_plugin"}
    done = subprocess.run(
        [sys.executable, ROOT / "experiments" / "trace.py", "--help"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "MDA_PLUGINS=no_such_plugin" in done.stderr


def test_a_head_metric_goes_the_whole_way_from_the_base_run_to_the_page(folder):
    """Two metrics of one file: both are measured, and a unit is found, scored and edited by one."""
    plugins = {"plugins": "attention_metrics"}
    settings = ("unit=sink_head", "estimator.fit_sequences=20", "unit.locate=mechanism")
    trained = start("train", folder, **plugins)
    assert trained.returncode == 0, trained.stderr
    base = folder / "outputs" / "runs" / "train" / "plugin"
    assert (base / "sink.png").exists() and (base / "duplicate_token.png").exists()
    heads = json.loads((base / "summary.json").read_text())["results"]["heads"]
    assert {"sink", "duplicate_token", "prefix_matching"} <= heads.keys()
    for kind in ("remove", "control"):
        arm = start("run", folder, *settings, f"intervention={kind}", f"name={kind}", **plugins)
        assert arm.returncode == 0, arm.stderr
    summary = json.loads((folder / "outputs/runs/run/remove/summary.json").read_text())
    strongest = [row["head"] for row in heads["sink"][:2]]
    assert (summary["metric"], summary["threshold"]) == ("sink", 0.2)
    assert summary["heads"] == strongest
    assert len(list((folder / "outputs/store/base").glob("*/manifest.json"))) == 1
    compared = start("compare", folder, f"report.runs=[{folder / 'outputs/runs/run'}]", **plugins)
    assert compared.returncode == 0, compared.stderr
    page = next((folder / "outputs").rglob("*.html")).read_text()
    assert "attention to position 0" in page and '"metric":"duplicate_token"' in page


def test_an_edit_and_a_section_of_the_page_come_from_outside(folder):
    plugins = {"plugins": "reverse_edit,spread_section"}
    cheap = ("estimator=repetition", "intervention.window=[20,40]")
    for kind in ("reverse", "control"):
        arm = start("run", folder, *cheap, f"intervention={kind}", f"name={kind}", **plugins)
        assert arm.returncode == 0, arm.stderr
    runs = folder / "outputs" / "runs" / "run"
    lines = (runs / "reverse" / "edit.csv").read_text().splitlines()
    changes = [dict(zip(lines[1].split(","), line.split(","), strict=True)) for line in lines[2:]]
    (rows,) = (folder / "outputs" / "store" / "corpus").glob("*/tokens.npy")
    corpus = np.load(rows)
    assert len(changes) == 4 * 8  # a tenth of 80 samples
    for edited in changes:
        own = corpus[int(edited["sample_id"])]
        mirrored = own[2 * len(own) - 5 - int(edited["position"])]
        assert int(edited["token"]) == mirrored
    edit = json.loads((runs / "reverse" / "summary.json").read_text())["edit"]
    assert edit["intervention"] == "reverse" and edit["by"]["estimator"] == "repetition"
    compared = start("compare", folder, f"report.runs=[{runs}]", **plugins)
    assert compared.returncode == 0, compared.stderr
    page = next((folder / "outputs").rglob("*.html")).read_text()
    assert "<p>&lt;b&gt; control</p><p>&lt;b&gt; reverse repetition top 10 %</p>" in page
    assert '<a href="#spread">Names of arms</a>' in page
