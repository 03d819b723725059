"""An estimator, a kind of unit and a model family from a folder outside the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ESTIMATOR = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from mda.estimator.score import SampleScores
from mda.schema import EstimatorConfig
from mda.schema.plugins import add_option
from mda.schema.setting import setting


@dataclass
class RareConfig(EstimatorConfig):
    """Counts tokens above an id."""

    estimator: ClassVar[str] = "rare_tokens:Rare"
    name: str = setting("rare", "kind of estimator", one_of=("rare",))
    above: int = setting(100, "ids from which a token counts as rare", low=0)


class Rare:
    def __init__(self, settings):
        self.settings = settings

    def steps(self, kept, window):
        return ()

    def score(self, work):
        rows = work.corpus.rows(work.sample_ids)
        counts = (rows > self.settings.above).sum(1).float()
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

    def gradients(self, model, units):
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

FILES = {
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


def trace(folder, *overrides):
    environment = os.environ | {
        "MDA_PLUGINS": "rare_tokens,value_layers,own_family",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }
    return subprocess.run(
        [sys.executable, ROOT / "experiments" / "trace.py", "experiment=smoke",
         "--config-dir", folder / "conf", f"output_dir={folder / 'outputs'}", "name=plugin",
         *overrides],
        env=environment, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


def test_one_file_and_one_yaml_add_an_estimator_a_unit_and_a_family(folder):
    done = trace(folder, "estimator=rare", "unit=values", "model=own", "estimator.above=250")
    assert done.returncode == 0, done.stderr
    assert "next: mda run --config-dir=conf experiment=smoke " in done.stdout
    run = folder / "outputs" / "runs" / "trace" / "plugin"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unit"] in ("L0V", "L1V")
    (manifest,) = (folder / "outputs" / "store" / "scores").glob("*/manifest.json")
    text = manifest.read_text()
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
