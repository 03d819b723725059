"""Sparse autoencoders trained here in a few lines, in the conventions and files of each library.

Everything is written out from the libraries' own definitions, with their names and shapes, and
uses nothing of the package that is tested.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

N_FEATURES = 48
Parameters = dict[str, Tensor]


@dataclass
class Written:
    """A folder, what its SAE computes, and how well it does on the activations."""

    folder: Path
    encode: Callable[[Tensor], Tensor]
    reconstruct: Callable[[Tensor], Tensor]


def explained_variance(x: Tensor, back: Tensor) -> float:
    x, back = x.reshape(-1, x.shape[-1]), back.reshape(-1, x.shape[-1])
    return 1 - ((x - back).square().sum() / (x - x.mean(0)).square().sum()).item()


def fit(
    x: Tensor,
    parameters: Parameters,
    encode: Callable[[Parameters, Tensor], Tensor],
    decode: Callable[[Parameters, Tensor, Tensor], Tensor],
    fixed: tuple[str, ...],
    steps: int,
) -> None:
    """Least squares with a little L1, by Adam, on every other sequence."""
    x = x[::2].reshape(-1, x.shape[-1])
    free = [p.requires_grad_() for name, p in parameters.items() if name not in fixed]
    optimizer = torch.optim.Adam(free, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        f = encode(parameters, x)
        loss = (x - decode(parameters, f, x)).square().mean() + 1e-4 * f.abs().mean()
        loss.backward()
        optimizer.step()
    for p in free:
        p.requires_grad_(False)


def top(pre: Tensor, k: int) -> Tensor:
    """The k largest of the last dimension, the rest 0."""
    values, indices = pre.relu().topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def saelens(
    folder: Path,
    x: Tensor,
    architecture: str,
    *,
    centred: bool = True,
    normalize: str = "none",
    rescale: bool = False,
    c: float = 1.0,
    steps: int = 300,
) -> Written:
    """W_enc [D, F], W_dec [F, D]; features of c x where activations are scaled by their average."""
    d, n = x.shape[-1], N_FEATURES
    g = torch.Generator().manual_seed(5)
    W_dec = torch.randn(n, d, generator=g) / d**0.5
    p = {"W_enc": W_dec.T.clone(), "b_enc": torch.zeros(n), "W_dec": W_dec, "b_dec": torch.zeros(d)}
    fixed: tuple[str, ...] = ()
    if architecture == "jumprelu":
        p["threshold"], fixed = 0.5 + 1.5 * torch.rand(n, generator=g), ("threshold",)
    if architecture == "gated":
        del p["b_enc"]
        p |= {"b_gate": -torch.rand(n, generator=g), "b_mag": torch.zeros(n),
              "r_mag": torch.zeros(n)}  # fmt: skip
        fixed = ("b_gate",)

    def normalized(x: Tensor) -> Tensor:
        if normalize == "layer_norm":
            x = x - x.mean(-1, keepdim=True)
            return x / (x.std(-1, keepdim=True) + 1e-5)
        if normalize == "constant_norm_rescale":
            return x * (d**0.5 / x.norm(dim=-1, keepdim=True))
        return c * x

    def encode(p: Parameters, x: Tensor) -> Tensor:
        sae_in = normalized(x) - p["b_dec"] * centred
        if architecture == "gated":
            gate = (sae_in @ p["W_enc"] + p["b_gate"] > 0).float()
            return gate * (sae_in @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]).relu()
        pre = sae_in @ p["W_enc"] + p["b_enc"]
        if architecture == "topk":
            return top(pre * p["W_dec"].norm(dim=-1) if rescale else pre, 8)
        if architecture == "jumprelu":
            return pre.relu() * (pre > p["threshold"])
        return pre.relu()

    def decode(p: Parameters, f: Tensor, x: Tensor) -> Tensor:
        if rescale:
            f = f * (1 / p["W_dec"].norm(dim=-1))
        back = f @ p["W_dec"] + p["b_dec"]
        if normalize == "layer_norm":
            return back * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
        if normalize == "constant_norm_rescale":
            return back * x.norm(dim=-1, keepdim=True) / d**0.5
        return back / c

    p["b_dec"] += normalized(x).mean((0, 1))
    fit(x, p, encode, decode, fixed, steps)
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in p.items()}, folder / "sae_weights.safetensors")
    cfg = {
        "architecture": architecture, "d_in": d, "d_sae": n, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": centred, "normalize_activations": normalize,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post",
                     "hook_head_index": None, "model_name": "toy"},
    }  # fmt: skip
    if architecture == "topk":
        cfg |= {"k": 8, "rescale_acts_by_decoder_norm": rescale}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return Written(folder, lambda x: encode(p, x), lambda x: decode(p, encode(p, x), x))


def before_version_6(folder: Path, **changes: object) -> None:
    """Rewrite a cfg.json as SAELens 3 did: all at the top, with the names of then."""
    cfg = json.loads((folder / "cfg.json").read_text())
    metadata = cfg.pop("metadata")
    old = {key: cfg[key] for key in ("d_in", "d_sae", "dtype", "device")}
    old |= {"hook_point": metadata["hook_name"], "hook_point_head_index": None,
            "model_name": "toy", "normalize_activations": "none"}  # fmt: skip
    if cfg["architecture"] == "topk":
        old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": cfg["k"]}}
    (folder / "cfg.json").write_text(json.dumps(old | changes))


def sparsify(root: Path, x: Tensor, hookpoint: str = "layers.1", steps: int = 300) -> Written:
    """An nn.Linear encoder [F, D], W_dec [F, D]: topk(relu((x - b_dec) W^T + b))."""
    d, n, k = x.shape[-1], N_FEATURES, 8
    W_dec = torch.nn.functional.normalize(
        torch.randn(n, d, generator=torch.Generator().manual_seed(6))
    )
    p = {"encoder.weight": W_dec.clone(), "encoder.bias": torch.zeros(n), "W_dec": W_dec,
         "b_dec": x.mean((0, 1))}  # fmt: skip

    def encode(p: Parameters, x: Tensor) -> Tensor:
        return top((x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"], k)

    def decode(p: Parameters, f: Tensor, x: Tensor) -> Tensor:
        return f @ p["W_dec"] + p["b_dec"]

    fit(x, p, encode, decode, (), steps)
    folder = root / hookpoint
    folder.mkdir(parents=True)
    save_file(p, folder / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": 3, "normalize_decoder": True, "num_latents": 0,
           "k": k, "multi_topk": False, "skip_connection": False, "transcode": False,
           "d_in": d}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return Written(folder, lambda x: encode(p, x), lambda x: decode(p, encode(p, x), x))


def dictionary_learning(root: Path, x: Tensor, name: str, steps: int = 300) -> Written:
    """nn.Linear encoder [F, D] and decoder [D, F], a .pt file; features after normalisation."""
    d, n, k = x.shape[-1], N_FEATURES, 8
    g = torch.Generator().manual_seed(7)
    W = torch.randn(n, d, generator=g) / d**0.5
    matrices = name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
    p = {"encoder.weight": W.clone(), "decoder.weight": W.T.clone(), "encoder.bias": torch.zeros(n)}
    if matrices:
        p = {"W_enc": W.T.clone(), "W_dec": W.clone(), "b_enc": torch.zeros(n)}
    centre = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias",
              "GatedAutoEncoder": "decoder_bias"}.get(name, "b_dec")  # fmt: skip
    p[centre] = x.mean((0, 1))
    fixed: tuple[str, ...] = ()
    if name == "GatedAutoEncoder":
        del p["encoder.bias"]
        p |= {"r_mag": torch.zeros(n), "mag_bias": torch.zeros(n),
              "gate_bias": -torch.rand(n, generator=g)}  # fmt: skip
        fixed = ("gate_bias",)
    if name == "JumpReluAutoEncoder":
        p["threshold"], fixed = 0.5 + 1.5 * torch.rand(n, generator=g), ("threshold",)
    if "TopK" in name:
        p |= {"threshold": torch.tensor(1.0), "k": torch.tensor(k, dtype=torch.int)}
        fixed = ("threshold", "k")

    def encode(p: Parameters, x: Tensor) -> Tensor:
        if name not in ("AutoEncoderNew", "JumpReluAutoEncoder"):
            x = x - p[centre]
        if name == "GatedAutoEncoder":
            x_enc = x @ p["encoder.weight"].T
            gate = (x_enc + p["gate_bias"] > 0).float()
            return gate * (p["r_mag"].exp() * x_enc + p["mag_bias"]).relu()
        pre = (
            x @ p["W_enc"] + p["b_enc"]
            if matrices
            else x @ p["encoder.weight"].T + p["encoder.bias"]
        )
        if name == "AutoEncoderTopK":
            return top(pre, k)
        if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            return pre.relu() * (pre.relu() > p["threshold"])
        if name == "JumpReluAutoEncoder":
            return (pre * (pre > p["threshold"])).relu()
        return pre.relu()

    def decode(p: Parameters, f: Tensor, x: Tensor) -> Tensor:
        return f @ (p["W_dec"] if matrices else p["decoder.weight"].T) + p[centre]

    fit(x, p, encode, decode, fixed, steps)
    norms = p["decoder.weight"].norm(dim=0) if name == "AutoEncoder" else torch.ones(n)
    folder = root / "resid_out_layer1" / "10_48"
    folder.mkdir(parents=True)
    if name == "MatryoshkaBatchTopKSAE":
        p["group_sizes"] = torch.tensor([n // 2, n // 2])
    torch.save(p, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": d, "dict_size": n, "layer": 1, "k": k}
    cfg = {"trainer": trainer, "buffer": {"d_submodule": d, "io": "out", "ctx_len": 32}}
    (folder / "config.json").write_text(json.dumps(cfg))
    return Written(folder, lambda x: encode(p, x) * norms, lambda x: decode(p, encode(p, x), x))
