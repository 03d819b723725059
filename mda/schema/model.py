"""The model group: sizes to start from scratch with, or a checkpoint's own configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from mda.schema.setting import ConfigError, Group, nearest, setting

FAMILIES: dict[str, str] = {
    "gpt_neox": "mda.model.gpt_neox:GptNeox",
    "llama": "mda.model.llama:Llama",
    "mistral": "mda.model.llama:Llama",
    "qwen2": "mda.model.llama:Llama",
    "olmo2": "mda.model.llama:Llama",
    "granite": "mda.model.llama:Llama",
    "gemma2": "mda.model.llama:Llama",
    "qwen3": "mda.model.llama:Llama",
    "olmo3": "mda.model.llama:Llama",
    "gemma3_text": "mda.model.llama:Llama",
    "olmo": "mda.model.llama:Llama",
    "smollm3": "mda.model.llama:Llama",
    "apertus": "mda.model.llama:Apertus",
    "phi3": "mda.model.llama:Phi3",
    "gpt2": "mda.model.llama:Gpt2",
}
"""config.json's model_type -> `module:class` of its adapter; a plugin adds its own."""

MIXTURE = ", a mixture of experts: each token has neurons of its own, in no fixed linear map"

SIZES = {  # ours -> config.json's
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
}
GPT2_SIZES = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
"""GPT-2's own words for them."""

DTYPES = ("float32", "float16", "bfloat16", "float64")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
ADAPTER = "adapter_config.json"
MERGED = "weights into which the adapter is merged, without this file"


@dataclass
class ModelConfig(Group):
    """A model; its class is chosen by `model=...`.

    All have n_layers, n_heads, d_model, d_ff, vocab_size and max_seq_len, as settings or from the
    checkpoint's config.json.
    """

    key: ClassVar[str] = "model"
    known: ClassVar[bool] = True  # before anything is fetched
    name: str = setting("nano", "name of the preset, that of its file")
    peak_lr: float = setting("???", "learning rate it is trained with", above=0)

    def weight_files(self) -> list[Path]:
        """Returns the files of its initial weights; none where they are drawn at random."""
        return []


@dataclass
class ScratchConfig(ModelConfig):
    """Sizes of a model that starts from random weights."""

    peak_lr: float = setting(3e-3, "learning rate this size is trained with", above=0)
    family: str = setting("gpt_neox", "architecture", accepts=f"one of {', '.join(FAMILIES)}")
    n_layers: int = setting(4, "layers", low=1)
    d_model: int = setting(64, "width of the residual stream", low=2)
    n_heads: int = setting(4, "attention heads in a layer", low=1)
    n_key_value_heads: int | None = setting(
        None,
        "key-value heads, null: as many; not in gpt_neox and gpt2",
        low=1,
    )
    d_ff: int = setting(256, "width of the MLP", low=1)
    vocab_size: int = setting(512, "rows of the embedding, padding included", low=2)
    max_seq_len: int = setting(128, "longest context in tokens", low=8)
    rotary_pct: float = setting(
        0.5, "share of a head's dimensions that rotate, in gpt_neox", above=0, high=1
    )
    rotary_base: float = setting(10_000.0, "base of the rotary wave lengths", above=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in FAMILIES:
            known = f"one of {', '.join(FAMILIES)}{nearest(self.family, FAMILIES)}"
            raise self._refuse("family", known)
        if self.d_model % self.n_heads:
            raise self._refuse("n_heads", f"a divisor of model.d_model={self.d_model}")
        if self.n_key_value_heads and self.n_heads % self.n_key_value_heads:
            raise self._refuse("n_key_value_heads", f"a divisor of model.n_heads={self.n_heads}")
        d_head = self.d_model // self.n_heads
        ungrouped = self.family in ("gpt_neox", "gpt2")
        if ungrouped and self.n_key_value_heads not in (None, self.n_heads):
            raise self._refuse("n_key_value_heads", f"null with model.family={self.family}")
        if self.family != "gpt_neox":
            if d_head % 2:
                raise self._refuse("n_heads", f"heads of an even size, not {d_head}")
            return
        rotary = int(d_head * self.rotary_pct)
        if rotary < 2 or rotary % 2:
            raise self._refuse(
                "rotary_pct",
                f"a share of the {d_head} dimensions of a head that is an even number, at least 2 "
                f"(this one is {rotary})",
            )


@dataclass
class CheckpointConfig(ModelConfig):
    """A local folder of weights: built from its own config.json, whatever its sizes."""

    name: str = setting("checkpoint", "kind of model")
    peak_lr: float = setting(1e-4, "learning rate of further training", above=0)
    source: str = setting(
        "???", "folder with config.json and model.safetensors", accepts="a checkpoint's folder"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.checked()

    def weight_files(self) -> list[Path]:
        """Returns the weights, one file or shards."""
        return sorted(Path(self.source).glob("*.safetensors"))

    def checked(self) -> dict[str, Any]:
        """Returns the folder's config.json. Raises ConfigError unless it can be a checkpoint.

        Reads config.json and the names of the files, before anything is allocated.
        """
        folder = Path(self.source)
        weights = ("model.safetensors", "model.safetensors.index.json")
        if not (folder / "config.json").is_file() or not any(
            (folder / name).is_file() for name in weights
        ):
            raise self._refuse("source", f"a folder with config.json and {' or '.join(weights)}")
        return supported_config(folder / "config.json", f"model.source={self.source}")

    def __getattr__(self, name: str) -> int:
        if name in SIZES:
            return self.checked()[SIZES[name]]
        raise AttributeError(name)


@dataclass
class PublishedModelConfig(ModelConfig):
    """The model of a published base run, whose config.json gives the sizes later."""

    known: ClassVar[bool] = False
    name: str = setting("published", "kind of model", one_of=("published",))
    peak_lr: float = setting(
        "???", "learning rate it was trained with", above=0,
        accepts="the highest learning rate of its training, above 0; Pythia's: 14m, 31m and 70m "
        "1e-3, 160m 6e-4, 410m 3e-4, 1b 2.5e-4",
    )  # fmt: skip


def supported_config(path: Path, key: str) -> dict[str, Any]:
    """Returns a config.json that names a supported family and all sizes."""
    config = read_config(path)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        reason = MIXTURE if any(name.endswith("_experts") for name in config) else ""
        raise ConfigError(
            f"{key}: its model_type is {kind}{reason}; expected {', '.join(FAMILIES)}"
        )
    if kind == "gpt2":
        config = _sizes_of_gpt2(config)
    if missing := [name for name in SIZES.values() if not isinstance(config.get(name), int)]:
        raise ConfigError(
            f"{key}: config.json says no {missing[0]}; expected whole numbers for "
            f"{', '.join(SIZES.values())}"
        )
    _refuse_unreadable(path, config, key)
    return config


def _refuse_unreadable(path: Path, config: Mapping[str, Any], key: str) -> None:
    """Raises ConfigError for weights that a model of this configuration cannot use directly.

    An adapter beside them would be ignored, and quantised numbers misread.
    """
    if (path.parent / ADAPTER).is_file():
        raise ConfigError(f"{key}: has {ADAPTER} beside its weights; expected {MERGED}")
    if config.get("quantization_config") is not None:
        raise ConfigError(f"{key}: its weights are quantised; expected {', '.join(DTYPES)}")
    for name in ("dtype", "torch_dtype"):
        if (dtype := config.get(name)) is not None and dtype not in DTYPES:
            raise ConfigError(f"{key}: its {name} is {dtype}; expected {', '.join(DTYPES)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else None
    if kind is not None and kind not in ROPE_TYPES:
        raise ConfigError(f"{key}: its rope_type is {kind}; expected {', '.join(ROPE_TYPES)}")


def _sizes_of_gpt2(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration with sizes under the names of the other families."""
    sizes = {
        name: config[gpt2_name] for name, gpt2_name in GPT2_SIZES.items() if config.get(gpt2_name)
    }
    if isinstance(width := config.get("n_embd"), int):
        sizes = {"intermediate_size": 4 * width} | sizes
    return config | sizes


def read_config(path: Path) -> dict[str, Any]:
    """Returns a config.json as a mapping. Raises ConfigError for anything else."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, _changed: int) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no configuration; expected a JSON object")
    return content
