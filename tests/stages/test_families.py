"""Every family from a folder, through the settings: trained further, and its heads traced.

The scores are held against gradients of transformers' own loss and of its eager patterns.
"""

import json

import numpy as np
import pytest
import torch
from families import FAMILIES, config_of, enlarge
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mda import pipeline
from mda.config import compose
from mda.model.architecture import architecture
from mda.model.build import attention_of, from_config
from mda.stages.context import Context
from mda.store import Store
from mda.types import HeadId
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import gather
from mda.unit.kind import Materials

N_VOCAB, STEP, N_CHECKED = 300, 16, 6
CASES = ["granite", "gemma2", "gemma3", "qwen3", "olmo clipped", "olmo3", "smollm3", "apertus"]
CASES += ["phi3", "gpt2"]
SETTINGS = f"""
data=synthetic data.seq_len=32 data.vocab_size={N_VOCAB} data.held_out=32 data.n_sequences=400
training.batch_size=4 training.total_steps=24 training.warmup_steps=2 training.checkpoint_every=8
training.threads=1 emergence.every=8 emergence.n_sequences=4 emergence.length=16
emergence.held_out=16 intervention.window=[8,24] model=checkpoint unit=previous_token_head
unit.locate=L1H0 unit.biases=true unit.probe.n_sequences=8 estimator=tracin
estimator.checkpoints=[{STEP}] estimator.lr_weights=false
""".split()


def folder_of(case, path):
    """A folder as others publish it."""
    config = config_of(case, vocab_size=N_VOCAB, max_position_embeddings=64)
    config._attn_implementation = attention_of(config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    enlarge(model).save_pretrained(path)
    return path


def gradients(model, value):
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_any_family_is_trained_and_its_heads_are_scored(case, tmp_path):
    source = folder_of(case, tmp_path / "folder")
    config = compose([*SETTINGS, f"model.source={source}", f"output_dir={tmp_path}"])
    trace = pipeline.trace(Context(config, Store(tmp_path / "store"), progress=False))
    found, base = trace.traced.scores, trace.base.folder

    model = from_config(
        json.loads((base / "model_config.json").read_text()),
        load_file(base / f"checkpoints/step_{STEP}/model.safetensors"),
    )
    assert model.config.model_type == FAMILIES[case][0]
    model.set_attn_implementation("eager")
    materials = Materials(trace.corpus, architecture(model))
    tokens = AttentionHeads(config.unit, materials).measured.tokens_MT
    patterns = model(tokens, output_attentions=True).attentions
    unit = next(unit for unit in trace.unit.units if unit.name == "L1H0")
    head = HeadId.parse(unit.name)
    attention = patterns[head.layer][:, head.head].diagonal(-1, 1, 2).mean()
    wanted = gradients(model, attention)
    expected = []
    for row in trace.corpus.rows(found.sample_ids[:N_CHECKED]):
        loss = model(input_ids=row[None], labels=row[None]).loss
        own = gradients(model, loss)
        products = [
            (gather(block, wanted)[owner] * gather(block, own)[owner]).sum().item()
            for block, owner in unit.parts
        ]
        expected.append(-sum(products))
    ours = found.of(unit.name)[:N_CHECKED]
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
