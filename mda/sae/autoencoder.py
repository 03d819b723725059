"""Sparse autoencoders: an activation x written as a few of many features.

With u = x, or x - b_dec where `centred`, after the input's normalization, and the linear part
a = W_enc u for F features:

    relu       f = relu(a + b_enc)
    jumprelu   f = relu(a + b_enc) where a + b_enc > threshold, else 0
    topk       f = relu(a + b_enc) for the k largest a + b_enc of a position, else 0
    gated      f = relu(exp(r_mag) a + b_mag) where a + b_enc > 0, else 0  (b_enc is the gate's)

and x is about W_dec^T f + b_dec. F is the number of features, D the width of the activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mda import store
from mda.sae.hooks import Hookpoint

KINDS = ("relu", "jumprelu", "topk", "gated")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_OF_KIND = {"jumprelu": ("threshold_F",), "topk": ("k",), "gated": ("r_mag_F", "b_mag_F")}
_CHUNK = 2**24  # pre-activations that `encode_some` forms at a time
_EPS = 1e-5  # of `layer_norm`, as SAELens adds it to the standard deviation


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class Sae:
    """A sparse autoencoder and the activation it reads.

    `normalization` is applied to each position's x before anything else and undone by `decode`:
    `layer_norm` is (x - mean) / (std + 1e-5) over D, with n - 1 in std; `constant_norm_rescale` is
    sqrt(D) x / ||x||. Raises ValueError where shapes or the parameters of a kind do not fit.
    """

    kind: str
    hook: Hookpoint
    W_enc_FD: Tensor
    b_enc_F: Tensor
    W_dec_FD: Tensor
    b_dec_D: Tensor
    centred: bool
    normalization: str = "none"
    k: int | None = None
    threshold_F: Tensor | None = None
    r_mag_F: Tensor | None = None
    b_mag_F: Tensor | None = None

    def __post_init__(self) -> None:
        for name, accepted in (("kind", KINDS), ("normalization", NORMALIZATIONS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} {getattr(self, name)!r}; expected {', '.join(accepted)}")
        needed = _OF_KIND.get(self.kind, ())
        for name in ("k", "threshold_F", "r_mag_F", "b_mag_F"):
            if (getattr(self, name) is None) == (name in needed):
                raise ValueError(f"a {self.kind} SAE takes {', '.join(needed) or 'no k'} alone")
        sizes = {"F": self.n_features, "D": self.d_in}
        for name, tensor in self.tensors().items():
            wanted = [sizes[letter] for letter in name.rpartition("_")[2]]
            if list(tensor.shape) != wanted:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {wanted}")
        if self.k is not None and not 1 <= self.k <= self.n_features:
            raise ValueError(f"k={self.k}; expected 1 to the {self.n_features} features")

    @property
    def n_features(self) -> int:
        """F."""
        return self.W_enc_FD.shape[0]

    @property
    def d_in(self) -> int:
        """D."""
        return self.W_enc_FD.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Returns the parameters by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Sae:
        """Returns a copy on another device or in another precision."""
        return replace(self, **{n: t.to(device, dtype) for n, t in self.tensors().items()})

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all that decides features and reconstruction, 64 hex digits."""
        rest = [self.kind, str(self.hook), self.centred, self.normalization, self.k]
        arrays = {name: tensor.detach().cpu() for name, tensor in self.tensors().items()}
        hashes = {name: store.hash_arrays(tensor.numpy()) for name, tensor in arrays.items()}
        return store.fingerprint("sae", {"settings": rest, "tensors": hashes})

    def encode(self, x_BTD: Tensor) -> Tensor:
        """Returns all features, [..., F] for x [..., D], differentiable, in the SAE's precision.

        The choice of the active features has no gradient: an active feature has the gradient of its
        linear part, any other has 0.
        """
        return self._activate(F.linear(self._input(x_BTD), self.W_enc_FD), slice(None))

    def encode_some(self, x_BTD: Tensor, ids: Sequence[int]) -> Tensor:
        """Returns the features `ids`, [B, T, len(ids)], differentiable, without forming all F.

        Equal to `encode(x)[..., ids]` up to rounding. For `topk`, whether a feature is among the k
        largest depends on all the others: this is computed without a graph, a few positions at a
        time, exactly as in `encode`, ties included.
        """
        chosen = torch.as_tensor(ids, device=self.W_enc_FD.device)
        u_BTD = self._input(x_BTD)
        linear = F.linear(u_BTD, self.W_enc_FD[chosen])
        if self.kind != "topk":
            return self._activate(linear, chosen)
        with torch.no_grad():
            rows = u_BTD.reshape(-1, self.d_in).split(max(1, _CHUNK // self.n_features))
            pre = (F.linear(part, self.W_enc_FD) + self.b_enc_F for part in rows)
            active = torch.cat([_largest(part, self.k)[:, chosen] for part in pre])
        return (linear + self.b_enc_F[chosen]).relu() * active.view(linear.shape)

    def decode(self, f_BTF: Tensor, x_BTD: Tensor | None = None) -> Tensor:
        """Returns the activation that features represent, [B, T, D].

        With a normalization, `x` is the activation that was encoded, whose mean and norm are
        restored. Raises ValueError without it.
        """
        x_hat_BTD = f_BTF @ self.W_dec_FD + self.b_dec_D
        if self.normalization == "none":
            return x_hat_BTD
        if x_BTD is None:
            raise ValueError(
                f"normalization {self.normalization} is undone with the encoded x only"
            )
        x_BTD = x_BTD.to(self.W_enc_FD.dtype)
        if self.normalization == "layer_norm":
            return x_hat_BTD * x_BTD.std(-1, keepdim=True) + x_BTD.mean(-1, keepdim=True)
        return x_hat_BTD * x_BTD.norm(dim=-1, keepdim=True) / self.d_in**0.5

    def reconstruct(self, x_BTD: Tensor) -> Tensor:
        """Returns decode(encode(x))."""
        return self.decode(self.encode(x_BTD), x_BTD)

    def _input(self, x_BTD: Tensor) -> Tensor:
        u = x_BTD.to(self.W_enc_FD.dtype)
        if self.normalization == "layer_norm":
            u = (u - u.mean(-1, keepdim=True)) / (u.std(-1, keepdim=True) + _EPS)
        elif self.normalization == "constant_norm_rescale":
            u = u * (self.d_in**0.5 / u.norm(dim=-1, keepdim=True))
        return u - self.b_dec_D if self.centred else u

    def _activate(self, linear: Tensor, ids: slice | Tensor) -> Tensor:
        """Returns features from their linear part; for `topk`, all of them."""
        pre = linear + self.b_enc_F[ids]
        if self.threshold_F is not None:
            return pre.relu() * (pre > self.threshold_F[ids])
        if self.r_mag_F is not None and self.b_mag_F is not None:
            return (self.r_mag_F[ids].exp() * linear + self.b_mag_F[ids]).relu() * (pre > 0)
        if self.k is not None:
            return pre.relu() * _largest(pre.detach(), self.k)
        return pre.relu()


def _largest(pre: Tensor, k: int | None) -> Tensor:
    """Returns a mask of the k largest pre-activations of each position, bool, shaped like `pre`."""
    assert k is not None
    indices = pre.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, indices, True)
