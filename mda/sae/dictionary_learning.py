"""Sparse autoencoders as dictionary_learning writes them: `.../{ae.pt, config.json}`.

    class                   kind      features
    AutoEncoder             relu      relu(W (x - bias) + b), after the decoder is normalised
    AutoEncoderNew          relu      relu(W x + b)
    GatedAutoEncoder        gated     centred
    AutoEncoderTopK         topk      centred
    BatchTopKSAE, Matryoshka...       centred, jumprelu with one threshold for all features, which
                                      is how both encode after training
    JumpReluAutoEncoder     jumprelu  not centred

Where the class is not named (the Pythia dictionaries), the tensors identify `AutoEncoder`. Its
loader gives every decoder row norm 1 and multiplies the feature by the old norm, and so does this
one: features are those that dictionary_learning computes, and the reconstruction is unchanged.

The activation is named by `trainer.submodule_name` or a folder on the way: `resid_out_layer3`,
`attn_out_layer3`, `mlp_out_layer3`, or `embed`, the residual stream before layer 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint
from mda.sae.reading import only, placed, read_settings, read_tensors, wanted
from mda.schema import refuse

FILES = ("config.json", "ae.pt")
CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
}
_KINDS = {"resid": "resid_post", "attn": "attn_out", "mlp": "mlp_out"}
_FOLDERS = 3  # how far up a folder may name the activation


def load(folder: Path) -> Sae:
    """Returns an SAE of this layout.

    Raises ConfigError for a class or an activation that is not known.
    """
    settings, weights = (folder / name for name in FILES)
    cfg, tensors = read_settings(settings), read_tensors(weights)
    trainer: dict[str, Any] = cfg.get("trainer") or {}
    only(cfg.get("buffer") or {}, settings, io="out")
    name = trainer.get("dict_class")
    if name is None and set(tensors) == {"bias", "encoder.weight", "encoder.bias",
                                         "decoder.weight"}:  # fmt: skip
        name = "AutoEncoder"
    if name not in CLASSES:
        raise refuse(f"{settings}: trainer.dict_class", name, ", ".join(CLASSES))

    def first(*names: str) -> Tensor:
        present = [candidate for candidate in names if candidate in tensors]
        return wanted(tensors, present[0] if present else names[0], weights)

    kind = CLASSES[name]
    linear = "encoder.weight" in tensors  # of nn.Linear, else matrices that x is multiplied with
    W_enc_FD = first("encoder.weight", "W_enc")
    W_dec_FD = first("decoder.weight", "W_dec")
    W_enc_FD, W_dec_FD = (W_enc_FD, W_dec_FD.T) if linear else (W_enc_FD.T, W_dec_FD)
    b_enc_F = first("gate_bias" if kind == "gated" else "encoder.bias", "b_enc")
    if name == "AutoEncoder":
        norms_F = W_dec_FD.norm(dim=1)
        if not torch.allclose(norms_F, torch.ones_like(norms_F)):
            W_dec_FD = W_dec_FD / norms_F[:, None]
            W_enc_FD, b_enc_F = W_enc_FD * norms_F[:, None], b_enc_F * norms_F
    threshold = wanted(tensors, "threshold", weights) if kind == "jumprelu" else None
    said, where = _activation(folder, trainer)
    return Sae(
        kind,
        placed(said, where, folder),
        W_enc_FD.contiguous(),
        b_enc_F,
        W_dec_FD.contiguous(),
        first("b_dec", "bias", "decoder_bias", "decoder.bias"),
        centred=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        k=int(wanted(tensors, "k", weights)) if kind == "topk" else None,
        threshold_F=threshold if threshold is None else threshold.expand(len(b_enc_F)).clone(),
        r_mag_F=wanted(tensors, "r_mag", weights) if kind == "gated" else None,
        b_mag_F=wanted(tensors, "mag_bias", weights) if kind == "gated" else None,
    )


def _activation(folder: Path, trainer: dict[str, Any]) -> tuple[Hookpoint | None, str]:
    """Returns the hookpoint, and the name that it was read from."""
    above = [folder.resolve(), *folder.resolve().parents][:_FOLDERS]
    for name in [str(trainer.get("submodule_name") or ""), *(path.name for path in above)]:
        if name == "embed":
            return Hookpoint("resid_pre", 0), name
        if match := re.fullmatch(r"(resid|attn|mlp)_(?:out|post)_layer_?(\d+)", name):
            return Hookpoint(_KINDS[match[1]], int(match[2])), name
    return None, str(trainer.get("submodule_name") or folder.name)
