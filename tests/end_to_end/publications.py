"""Trainings, published: a smoke run's checkpoints as a repository's revisions."""

import json
from pathlib import Path

import torch
from programs import run, summary
from safetensors.torch import load_file, save_file

STEPS = (0, 20, 40, 60)


def publish(out: Path, repository: Path, *overrides: str, steps: tuple[int, ...] = STEPS) -> Path:
    """Train at smoke size under `out`; `repository` gets a folder `step<n>` for each step."""
    folder = run("train", out, *overrides)
    base = out / "store/base" / summary(folder)["fingerprints"]["base"]
    config = json.loads((base / "model_config.json").read_text())
    for step in steps:
        revision = repository / f"step{step}"
        revision.mkdir(parents=True)
        (revision / "config.json").write_text(json.dumps(config))
        weights = load_file(base / f"checkpoints/step_{step}/model.safetensors")
        save_file(weights, revision / "model.safetensors", {"format": "pt"})
    return base


def old_style(revision: Path) -> None:
    """Make a GPT-NeoX revision as Pythia's were first published: old keys, a pickle, buffers."""
    path = revision / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    config["torch_dtype"] = "float16"
    path.write_text(json.dumps(config))
    weights = {k: v.half() for k, v in load_file(revision / "model.safetensors").items()}
    for layer in range(config["num_hidden_layers"]):
        at = f"gpt_neox.layers.{layer}.attention"
        size = config["max_position_embeddings"]
        weights[f"{at}.bias"] = torch.ones(1, 1, size, size, dtype=torch.bool).tril()
        weights[f"{at}.masked_bias"] = torch.tensor(-1e9)
        weights[f"{at}.rotary_emb.inv_freq"] = torch.ones(2)
    torch.save(weights, revision / "pytorch_model.bin")
    (revision / "model.safetensors").unlink()


def sharded(revision: Path, dtype: torch.dtype) -> None:
    """Split a revision's weights into two files with an index, in another precision."""
    weights = load_file(revision / "model.safetensors")
    (revision / "model.safetensors").unlink()
    names = sorted(weights)
    placed = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        tensors = {name: weights[name].to(dtype).contiguous() for name in part}
        save_file(tensors, revision / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": placed}
    (revision / "model.safetensors.index.json").write_text(json.dumps(index))
