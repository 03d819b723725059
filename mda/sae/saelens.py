"""Sparse autoencoders as SAELens writes them: `cfg.json` and `sae_weights.safetensors`.

    W_enc [D, F], W_dec [F, D], b_dec [D]; b_enc [F], or of gated ones b_gate, b_mag, r_mag [F];
    threshold [F] of jumprelu ones

`sae_lens_version` in the file, or its absence, decides the form of cfg.json: before 6.0 all
settings are at the top, a top-k SAE is a standard one with an activation function of that name, and
some keys had other names; since then the settings of the model are in `metadata`.

`apply_b_dec_to_input` is `centred` of `Sae`. `expected_average_only_in` means that the SAE reads c
x with c = sqrt(D) / (mean of ||x||). SAELens folds c into the weights at the end of training and
writes `none`; where it did not, c comes from `activation_scaler.json` beside them.
`rescale_acts_by_decoder_norm` is folded, too: a feature is multiplied by its decoder row's norm.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mda.sae.autoencoder import NORMALIZATIONS, Sae
from mda.sae.hooks import KINDS, Hookpoint, of_module
from mda.sae.reading import only, placed, read_settings, read_tensors, wanted
from mda.schema import ConfigError, refuse

FILES = ("cfg.json", "sae_weights.safetensors")
ARCHITECTURES = {"standard": "relu", "jumprelu": "jumprelu", "gated": "gated", "topk": "topk"}
SCALED = "expected_average_only_in"
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
            "activation_fn_str": "activation_fn"}  # fmt: skip


def load(folder: Path) -> Sae:
    """Returns an SAE of this layout.

    Raises ConfigError for transcoders and other architectures, activations of single heads, and
    models whose weights TransformerLens centred: their activations differ.
    """
    file, weights = (folder / name for name in FILES)
    cfg, tensors = _settings(read_settings(file), file), read_tensors(weights)
    only(cfg, file, reshape_activations="none", hook_head_index=None)
    only(cfg.get("model_from_pretrained_kwargs") or {}, file, center_writing_weights=False)
    if cfg["architecture"] not in ARCHITECTURES:
        raise refuse(f"{file}: architecture", cfg["architecture"], ", ".join(ARCHITECTURES))
    if not torch.all(tensors.get("scaling_factor", torch.ones(1)) == 1):
        raise ConfigError(f"{weights}: scaling_factor is invalid; expected weights it is folded in")
    kind = ARCHITECTURES[cfg["architecture"]]
    parts = {
        "W_enc_FD": wanted(tensors, "W_enc", weights).T.contiguous(),
        "b_enc_F": wanted(tensors, "b_gate" if kind == "gated" else "b_enc", weights),
        "W_dec_FD": wanted(tensors, "W_dec", weights),
        "b_dec_D": wanted(tensors, "b_dec", weights),
    }
    if kind == "jumprelu":
        parts["threshold_F"] = wanted(tensors, "threshold", weights)
    if kind == "gated":
        parts["r_mag_F"] = wanted(tensors, "r_mag", weights)
        parts["b_mag_F"] = wanted(tensors, "b_mag", weights)
    normalization = cfg.get("normalize_activations") or "none"
    if normalization == SCALED:
        _fold_scale(parts, _scale(folder))
        normalization = "none"
    if normalization not in NORMALIZATIONS:
        accepted = ", ".join((*NORMALIZATIONS, SCALED))
        raise refuse(f"{file}: normalize_activations", normalization, accepted)
    if kind == "topk" and cfg.get("rescale_acts_by_decoder_norm"):
        _fold_norms(parts)
    name = cfg.get("hook_name")
    return Sae(
        kind,
        placed(_hookpoint(str(name)), name, file),
        centred=bool(cfg.get("apply_b_dec_to_input", True)),
        normalization=normalization,
        k=int(wanted(cfg, "k", file)) if kind == "topk" else None,
        **parts,
    )


def _settings(cfg: dict[str, Any], file: Path) -> dict[str, Any]:
    """Returns all settings at the top level, under the names of version 6."""
    metadata = cfg.get("metadata") or {}
    version = str(cfg.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    if not (major := re.match(r"\d+", version)):
        raise refuse(f"{file}: sae_lens_version", version, "a version such as 6.0.0")
    if int(major[0]) >= 6:
        wanted(cfg, "architecture", file)
        return {**metadata, **cfg}
    cfg = {"architecture": "standard"} | {_RENAMED.get(k, k): v for k, v in cfg.items()}
    kwargs = cfg.get("activation_fn_kwargs") or {}
    if "k" in kwargs and not cfg.get("activation_fn"):
        accepted = "relu or topk by its name, where activation_fn_kwargs has k"
        raise refuse(f"{file}: activation_fn", None, accepted)
    activation = cfg.get("activation_fn") or "relu"
    if activation == "topk":
        cfg["architecture"] = "topk"
        cfg["k"] = wanted(kwargs, "k", file)
    elif activation != "relu":
        raise refuse(f"{file}: activation_fn", activation, "relu, topk")
    if isinstance(cfg.get("normalize_activations"), bool):
        cfg["normalize_activations"] = SCALED if cfg["normalize_activations"] else "none"
    if "hook_z" in str(cfg.get("hook_name")):
        cfg["reshape_activations"] = "hook_z"
    return cfg


def _hookpoint(name: str) -> Hookpoint | None:
    """Returns the hookpoint of TransformerLens' name, `blocks.3.hook_resid_post`, or a module's."""
    if match := re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", name):
        return Hookpoint(match[2], int(match[1])) if match[2] in KINDS else None
    return of_module(name)


def _scale(folder: Path) -> float:
    file = folder / "activation_scaler.json"
    factor = read_settings(file).get("scaling_factor") if file.is_file() else None
    if factor is None:
        raise ConfigError(
            f"{folder}: normalize_activations={SCALED} needs its factor; expected "
            "activation_scaler.json beside the weights, whose scaling_factor is sqrt(d_in) / mean "
            "norm of the activations"
        )
    return float(factor)


def _fold_scale(parts: dict[str, Tensor], c: float) -> None:
    """Scales the weights so that the SAE reads x instead of c x; features are unchanged."""
    parts["W_enc_FD"] = parts["W_enc_FD"] * c
    parts["W_dec_FD"] = parts["W_dec_FD"] / c
    parts["b_dec_D"] = parts["b_dec_D"] / c


def _fold_norms(parts: dict[str, Tensor]) -> None:
    """Gives decoder rows norm 1 and multiplies each feature by the norm its row had."""
    norms_F = parts["W_dec_FD"].norm(dim=1)
    parts["W_enc_FD"] = parts["W_enc_FD"] * norms_F[:, None]
    parts["b_enc_F"] = parts["b_enc_F"] * norms_F
    parts["W_dec_FD"] = parts["W_dec_FD"] / norms_F[:, None]
