"""Sparse autoencoders in the layout of EleutherAI's sparsify, which is also ours.

    encoder.weight [F, D], encoder.bias [F], W_dec [F, D], b_dec [D]
    f = top k of relu((x - b_dec) encoder.weight^T + encoder.bias)

The files are `<hookpoint>/{cfg.json, sae.safetensors}`. The folder's name is the module whose
output is read: `layers.3` (the residual stream after layer 3, `hidden_states[4]`),
`layers.3.attention`, `layers.3.mlp`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mda import store
from mda.sae.autoencoder import Sae
from mda.sae.hooks import ModulePaths, module_name, of_module
from mda.sae.reading import only, placed, read_settings, read_tensors, wanted
from mda.schema import refuse

FILES = ("cfg.json", "sae.safetensors")


def load(folder: Path) -> Sae:
    """Returns a top-k SAE of this layout.

    Raises ConfigError for transcoders and other activations.
    """
    settings, weights = (folder / name for name in FILES)
    cfg, tensors = read_settings(settings), read_tensors(weights)
    only(cfg, settings, transcode=False, skip_connection=False, activation="topk", signed=False)
    d_in, W_enc_FD = wanted(cfg, "d_in", settings), wanted(tensors, "encoder.weight", weights)
    if d_in != W_enc_FD.shape[1]:
        raise refuse(f"{settings}: d_in", d_in, f"{W_enc_FD.shape[1]}, as in {weights.name}")
    return Sae(
        "topk",
        placed(of_module(folder.name), folder.name, folder),
        W_enc_FD,
        wanted(tensors, "encoder.bias", weights),
        wanted(tensors, "W_dec", weights),
        wanted(tensors, "b_dec", weights),
        centred=True,
        k=wanted(cfg, "k", settings),
    )


def save(sae: Sae, root: Path, paths: ModulePaths) -> Path:
    """Writes `root/<hookpoint>/` and returns it; `load` and sparsify read the same features.

    Raises ValueError for what the layout cannot express: any SAE but a centred top-k one of plain
    activations, and `resid_pre`.
    """
    if sae.kind != "topk" or not sae.centred or sae.normalization != "none":
        raise ValueError("this layout holds centred top-k SAEs without normalization alone")
    folder = root / module_name(sae.hook, paths)
    norms = sae.W_dec_FD.norm(dim=1)
    settings = {
        "activation": "topk",
        "num_latents": sae.n_features,
        "k": sae.k,
        "d_in": sae.d_in,
        "normalize_decoder": torch.allclose(norms, torch.ones_like(norms), atol=1e-4),
        "skip_connection": False,
        "transcode": False,
    }
    tensors = {
        "encoder.weight": sae.W_enc_FD,
        "encoder.bias": sae.b_enc_F,
        "W_dec": sae.W_dec_FD,
        "b_dec": sae.b_dec_D,
    }
    store.write_safetensors(folder / "sae.safetensors", tensors)
    store.write_json(folder / "cfg.json", settings)
    return folder
