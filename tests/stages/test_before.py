"""What the base run starts from is looked at before a corpus is built for it."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file, save_file

from mda import pipeline, store
from mda.config import compose
from mda.model.build import check_memory, saved_config, scratch
from mda.schema import ConfigError, ScratchConfig
from mda.stages.context import Context
from mda.stages.preview import preview_job

LOST = "gpt_neox.final_layer_norm.bias"
SPOILT = {
    "missing": (lambda w: w.pop(LOST), f"1 missing weights, the first {LOST}"),
    "prefixed": (
        lambda w: [w.__setitem__(f"module.{name}", w.pop(name)) for name in [*w]],
        "missing weights, the first gpt_neox",
    ),
    "misshapen": (
        lambda w: w.update({LOST: torch.ones(3)}),
        f"1 mismatched weights, the first {LOST}",
    ),
}


def written(folder, sizes, spoil=None):
    model = scratch(sizes, 0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(saved_config(model)))
    store.write_safetensors(folder / "model.safetensors", dict(model.named_parameters()))
    if spoil:
        weights = load_file(folder / "model.safetensors")
        SPOILT[spoil][0](weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("way", ["checkpoint", "published"])
def test_weights_that_do_not_fit_are_refused_before_a_corpus_is_built(
    context_of, tmp_path, spoil, way
):
    sizes = ScratchConfig() if way == "checkpoint" else context_of().config.model
    for step in (0, 60):
        written(tmp_path / f"from/step{step}", sizes, spoil if step else None)
    out = f"output_dir={tmp_path / 'out'}"
    if way == "checkpoint":
        config = compose(["model=checkpoint", f"model.source={tmp_path / 'from/step60'}", out])
        context = Context(config, store.Store(tmp_path / "out/store"), progress=False)
    else:
        context = context_of("base=published", f"base.folder={tmp_path / 'from'}",
                             "base.steps=[0,60]", "intervention.window=[0,60]", out)  # fmt: skip
    for start in (pipeline.train, pipeline.arm):
        with pytest.raises(ConfigError, match=re.escape(SPOILT[spoil][1])) as error:
            start(context)
        assert re.match(r"(model\.source|base\.folder)=", str(error.value))
    assert SPOILT[spoil][1] in preview_job(context.config, pipeline.train).refused
    assert not (tmp_path / "out/store/corpus").exists()


def test_a_model_that_no_memory_holds_is_refused_before_a_corpus_is_built(context_of, tmp_path):
    context = context_of("model.d_model=100000000", f"output_dir={tmp_path}")
    says = r"^model: weights of [\d,]+ GB in float32, and this machine has [\d,]+ GB of memory; exp"
    with pytest.raises(ConfigError, match=says):
        pipeline.train(context)
    with pytest.raises(ConfigError, match=says):
        scratch(context.config.model, 0)
    assert not (tmp_path / "store/corpus").exists()
    check_memory(ScratchConfig())


def test_what_is_refused_at_the_start_is_one_sentence_also_where_wandb_looks_on(tmp_path):
    program = Path(__file__).parents[2] / "experiments/train.py"
    words = ("experiment=smoke", "logger=wandb", "model.d_model=100000000", "output_dir=out")
    done = warm.run([sys.executable, str(program), *words], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model: weights of ") and done.stderr.count("\n") == 1


def test_a_plan_for_another_machine_asks_nothing_of_the_memory_of_this_one(context_of, tmp_path):
    context = context_of("model.d_model=100000000", f"output_dir={tmp_path}")
    assert not preview_job(context.config, pipeline.train).refused
