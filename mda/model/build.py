"""Building models from scratch and from files. The config.json alone decides a model's function.

Weights from scratch are drawn as GPT-NeoX draws Pythia's: every matrix N(0, 2 / (5 d)) ("small
init", Nguyen & Salazar 2019, arXiv 1910.05895), matrices that write into the residual stream N(0,
(2 / (L sqrt d))^2) ("wang init"), biases 0, norms 1; for other families the same rule.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers  # it loads its models' code, seconds of work, where a name of it is used
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mda.model.agreement import check_agreement
from mda.model.architecture import family
from mda.model.plain_attention import register_capped
from mda.schema import CheckpointConfig, ConfigError, ModelConfig, ScratchConfig
from mda.schema.model import supported_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DROPOUTS = (
    "attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop",
)  # fmt: skip
CONFIG_FILE = "model_config.json"
UNTIED = "the weights have an output embedding of their own"
NOT_THE_FUNCTION = (  # keys of a config.json that do not change what the model computes
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "classifier_dropout", *DROPOUTS,
)  # fmt: skip


def initial_model(settings: ModelConfig, seed: int) -> PreTrainedModel:
    """Returns the model a run starts from: a checkpoint's, or drawn from the seed alone."""
    if isinstance(settings, CheckpointConfig):
        return from_folder(Path(settings.source), f"model.source={settings.source}")
    assert isinstance(settings, ScratchConfig)
    return scratch(settings, seed)


def scratch(sizes: ScratchConfig, seed: int) -> PreTrainedModel:
    """Returns a freshly initialised float32 model; the seed alone decides its weights."""
    check_memory(sizes)
    adapter = family(sizes.family)
    model = _empty(adapter.scratch(sizes))
    generator = torch.Generator().manual_seed(seed)
    small = math.sqrt(2 / (5 * sizes.d_model))
    wang = 2 / (sizes.n_layers * math.sqrt(sizes.d_model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                std = wang if name.endswith(tuple(adapter.residual_writers)) else small
                parameter.normal_(0, std, generator=generator)
    check_agreement(model, f"model.family={sizes.family}")
    return model


def from_folder(folder: Path, key: str) -> PreTrainedModel:
    """Returns the model of a local checkpoint folder in float32, built from its own config.json.

    Dropout is off, whatever the file says, and so is the tie to an output embedding that has its
    own weights; both are reported. Raises ConfigError, before anything is allocated, where the
    folder's family or one of its features is not supported, and afterwards for weights that are
    missing, unknown or of another shape; `key` names the folder in it.
    """
    config = _config_in(folder, key)
    for name in DROPOUTS:
        if getattr(config, name, 0.0):
            print(f"{key}: {name}={getattr(config, name)} is switched off", file=sys.stderr)
            setattr(config, name, 0.0)
    model = _loaded(key, config, folder, use_safetensors=True, local_files_only=True)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if config.tie_word_embeddings and head.weight is not embedding.weight:  # type: ignore[union-attr]
        print(f"{key}: tie_word_embeddings=true is switched off: {UNTIED}", file=sys.stderr)
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
    check_agreement(model, key)
    return model


def check_weights(folder: Path, key: str) -> None:
    """Raises ConfigError for names and shapes of weights that `from_folder` does not accept.

    Reads the headers of a folder of safetensors, not the weights.
    """
    config = _config_in(folder, key)
    shapes: dict[str, list[int]] = {}
    try:
        for path in _safetensors_in(folder):
            with safe_open(path, "pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{key}: {_one_line(error)}") from error
    _check_shapes(config, shapes, key)


def check_shapes(folder: Path, shapes: Mapping[str, Sequence[int]], key: str) -> None:
    """Raises ConfigError for names and shapes of weights that a config.json does not ask for."""
    _check_shapes(_config_in(folder, key), shapes, key)


def _check_shapes(config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], key: str) -> None:
    stand_ins = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    _loaded(key, config, None, state_dict=stand_ins)


def _safetensors_in(folder: Path) -> list[Path]:
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _config_in(folder: Path, key: str) -> PretrainedConfig:
    supported_config(folder / "config.json", key)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"{key}: config.json: {_one_line(error)}") from error
    config._attn_implementation = attention_of(config)
    return config


def _loaded(
    key: str, config: PretrainedConfig, folder: Path | None, **source: Any
) -> PreTrainedModel:
    """Returns a model with weights from a folder or a `state_dict`, exactly all that it needs."""
    try:
        model, found = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(  # type: ignore
            folder,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            output_loading_info=True,
            **source,
        )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{key}: {_one_line(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(name if isinstance(name, str) else name[0] for name in found[what]):
            word = what.removesuffix("_keys")
            raise ConfigError(
                f"{key}: {len(names)} {word} weights, the first {names[0]}; expected exactly the "
                "weights that config.json asks for"
            )
    return model


def check_memory(sizes: ScratchConfig) -> None:
    """Raises ConfigError for a model whose embedding and linear maps alone exceed the memory."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    adapter = family(sizes.family)
    layout = adapter(adapter.scratch(sizes))  # counted without the code of models, for quick starts
    maps = [one for part in ("attention", "mlp") for one in layout.module_blocks(0, part)]
    per_layer = sum(math.prod(one.shape) for one in maps)
    needed = 4 * (sizes.vocab_size * sizes.d_model + sizes.n_layers * per_layer)
    if needed > there:
        raise ConfigError(
            f"model: weights of {needed / 1e9:,.0f} GB in float32, and this machine has "
            f"{there / 1e9:,.0f} GB of memory; expected a smaller model.d_model, model.d_ff, "
            "model.n_layers or model.vocab_size"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def from_config(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Returns a float32 model from a saved configuration and all of its weights by name.

    Raises ValueError for weights that are missing or unknown; tied ones are given once.
    """
    content = dict(content)
    config = transformers.AutoConfig.for_model(content.pop("model_type"), **content)
    model = _empty(config)
    load_weights(model, weights)
    return model


def load_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Copies every weight into the model. Raises ValueError for a missing or unknown one."""
    own = dict(model.named_parameters())
    if different := own.keys() ^ weights.keys():
        name = min(different)
        problem = "is missing" if name in own else "is unknown to the model"
        raise ValueError(f"weight {name} {problem}; expected all of the model's, once each")
    model.load_state_dict(dict(weights), strict=False)


def read_model(config_file: Path, weights_file: Path) -> PreTrainedModel:
    """Returns the model of a run's configuration with the weights of one of its checkpoints."""
    return from_config(json.loads(config_file.read_text("utf-8")), load_file(weights_file))


def layout(config: Mapping[str, Any]) -> PreTrainedModel:
    """Returns the model of a config.json without weights: its sizes and names, at no cost."""
    with torch.device("meta"):
        return _empty(configuration(config))


def configuration(content: Mapping[str, Any]) -> PretrainedConfig:
    """Returns transformers' configuration, as far as it decides the layout, of a config.json."""
    content = {**content, "pad_token_id": None}  # its default may lie outside of the vocabulary
    return transformers.AutoConfig.for_model(content.pop("model_type"), **content)


def layout_of(settings: ModelConfig) -> PreTrainedModel:
    """Returns the model of these settings without weights."""
    return layout(function_of(settings))


def saved_config(model: PreTrainedModel) -> dict[str, Any]:
    """Returns the plain JSON from which `from_config` builds this model again."""
    unwanted = ("architectures", "_name_or_path")  # the latter is a folder of this machine
    return {key: value for key, value in model.config.to_dict().items() if key not in unwanted}


def function_of(settings: ModelConfig) -> dict[str, Any]:
    """Returns everything but the weights that decides the model's function, for a key."""
    if isinstance(settings, CheckpointConfig):
        content = settings.checked()
    else:
        assert isinstance(settings, ScratchConfig)
        content = json.loads(family(settings.family).scratch(settings).to_json_string())
    return {key: value for key, value in content.items() if key not in NOT_THE_FUNCTION}


def _empty(config: PretrainedConfig) -> PreTrainedModel:
    config._attn_implementation = attention_of(config)
    config.use_cache = False
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def attention_of(config: PretrainedConfig) -> str:
    """Returns a model's implementation of attention: fused, where the family supports it."""
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if model._supports_sdpa else register_capped()  # type: ignore[attr-defined]
