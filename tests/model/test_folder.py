"""Models from folders: what a config.json decides, what comes back from a run, refusals."""

import json

import pytest
import torch
from families import FAMILIES, config_of, enlarge
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mda.model.architecture import architecture, family
from mda.model.build import (
    attention_of,
    check_weights,
    from_folder,
    function_of,
    initial_model,
    layout,
    read_model,
    saved_config,
)
from mda.schema import CheckpointConfig, ConfigError
from mda.schema.model import ROPE_TYPES

TOKENS = torch.arange(20)[None] % 31


def written(folder, case="neox", seed=0, **changes):
    """A folder as others publish it, and the model in it."""
    model = AutoModelForCausalLM.from_config(config_of(case, **changes), dtype=torch.float32)
    model.set_attn_implementation(attention_of(model.config))
    enlarge(model, seed).eval().save_pretrained(folder)
    return model


def edited(folder, **changes):
    """Changes config.json; None takes a key out."""
    file = folder / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def of(folder):
    return CheckpointConfig(source=str(folder))


def load(folder):
    check_weights(folder, f"model.source={folder}")
    return initial_model(of(folder), seed=0).eval()


def through_a_run(folder, run):
    """Loaded, saved as a run saves it, and read again."""
    run.mkdir()
    model = load(folder)
    assert str(folder) not in json.dumps(saved_config(model))
    (run / "model_config.json").write_text(json.dumps(saved_config(model)))
    save_file(dict(model.named_parameters()), run / "model.safetensors")
    return read_model(run / "model_config.json", run / "model.safetensors").eval()


def rope(theta, share):
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}


CHANGES = {
    "sequential residual": ("neox", {"use_parallel_residual": False}),
    "another rotary share": ("neox", {"rope_parameters": rope(100.0, 1.0)}),
    "another rotary base": ("neox sequential", {"rope_parameters": rope(5.0, 0.5)}),
    "another eps": ("neox", {"layer_norm_eps": 0.5}),
    "another activation": ("neox", {"hidden_act": "relu"}),
    "tied": ("neox", {"tie_word_embeddings": True}),
    "no attention bias": ("neox", {"attention_bias": False}),
    "another rms eps": ("llama", {"rms_norm_eps": 0.5}),
    "groups": ("llama", {"num_key_value_heads": 2}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama head size": ("llama", {"head_dim": 6}),
    "llama scaled rotary": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e2, "factor": 4.0}},
    ),
    "olmo2 activation": ("olmo2", {"hidden_act": "relu"}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_computes_what_the_folder_s_config_says(tmp_path, change):
    case, changes = CHANGES[change]
    plain = written(tmp_path / "plain", case)
    model = written(tmp_path / "changed", case, **changes)
    again = through_a_run(tmp_path / "changed", tmp_path / "run")
    with torch.no_grad():
        logits = model(TOKENS).logits
        assert torch.equal(load(tmp_path / "changed")(TOKENS).logits, logits)
        assert torch.equal(again(TOKENS).logits, logits)
        assert (plain(TOKENS).logits - logits).abs().max() > 1e-3  # the change does something
    assert function_of(of(tmp_path / "plain")) != function_of(of(tmp_path / "changed"))


@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_comes_back_from_a_run(tmp_path, case):
    model = written(tmp_path / "folder", case)
    again = through_a_run(tmp_path / "folder", tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert type(architecture(again)) is type(architecture(model))
    meta = layout(json.loads((tmp_path / "run" / "model_config.json").read_text()))
    assert all(p.is_meta for p in meta.parameters())
    blocks = [architecture(m).head_blocks(1, bias=True) for m in (meta, model)]
    assert blocks[0] == blocks[1]


def test_the_key_is_blind_to_what_does_not_compute(tmp_path):
    written(tmp_path)
    before = function_of(of(tmp_path))
    edited(
        tmp_path,
        torch_dtype="float16",
        dtype="float16",
        _name_or_path="EleutherAI/pythia-14m",
        architectures=["GPTNeoXForCausalLM"],
        transformers_version="4.24.0",
        use_cache=False,
        bos_token_id=7,
        attention_dropout=0.1,
    )
    assert function_of(of(tmp_path)) == before
    edited(tmp_path, num_attention_heads=6)
    assert function_of(of(tmp_path)) != before


@pytest.mark.parametrize("case", ["neox", "llama"])
def test_an_output_embedding_of_its_own_is_kept_whatever_the_config_says(tmp_path, case, capsys):
    model = written(tmp_path / "folder", case)
    edited(tmp_path / "folder", tie_word_embeddings=True)
    again = through_a_run(tmp_path / "folder", tmp_path / "run")
    assert "tie_word_embeddings=true is switched off: the weights have" in capsys.readouterr().err
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    written(tmp_path / "tied", case, tie_word_embeddings=True)
    load(tmp_path / "tied")
    assert "tie_word_embeddings" not in capsys.readouterr().err


UNREADABLE = {
    "its rope_type is fancy; expected default, linear, dynamic, yarn, longrope, llama3, propor": (
        {"rope_parameters": {"rope_type": "fancy", "rope_theta": 100.0}},
        {"rope_parameters": None, "rope_scaling": {"type": "fancy", "factor": 2.0}},
    ),
    "its weights are quantised; expected float32, float16, bfloat16, float64": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ),
    "its dtype is float7; expected float32, float16, bfloat16, float64": ({"dtype": "float7"},),
    "its torch_dtype is int8; expected float32,": ({"torch_dtype": "int8"},),
}


@pytest.mark.parametrize(
    ("says", "changes"), [(says, one) for says, changes in UNREADABLE.items() for one in changes]
)
def test_a_config_of_weights_that_could_not_be_read_is_refused_at_once(tmp_path, says, changes):
    written(tmp_path, "llama")
    of(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ConfigError) as refused:
        of(tmp_path)
    assert str(refused.value).startswith(f"model.source={tmp_path}: {says}")


def test_the_rope_types_that_are_accepted_are_those_of_the_library():
    assert ("default", *ROPE_INIT_FUNCTIONS) == ROPE_TYPES


def test_an_adapter_beside_weights_is_refused_and_not_left_out(tmp_path):
    written(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has adapter_config\.json beside its weights; expected"):
        of(tmp_path)


def test_a_half_precision_folder_becomes_float32(tmp_path):
    model = written(tmp_path).half()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for one, other in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other.float())


def test_an_old_config_is_read_right(tmp_path):
    """Pythia's own files: rotary_pct and rotary_emb_base, torch_dtype, and buffers as weights."""
    model = written(tmp_path, rope_parameters=rope(77.0, 0.5))
    edited(tmp_path, rope_parameters=None, dtype=None, attention_bias=None)
    edited(tmp_path, rotary_pct=0.5, rotary_emb_base=77, torch_dtype="float16")
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        home = f"gpt_neox.layers.{layer}.attention"
        weights[f"{home}.bias"] = torch.ones(1, 1, 32, 32).tril().bool()
        weights[f"{home}.masked_bias"] = torch.tensor(-1e9)
        weights[f"{home}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = through_a_run(tmp_path, tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_dropout_is_off_and_said(tmp_path, capsys):
    written(tmp_path, attention_dropout=0.1, hidden_dropout=0.2)
    model = initial_model(of(tmp_path), seed=0).train()
    said = capsys.readouterr().err
    assert "attention_dropout=0.1 is switched off" in said
    assert "hidden_dropout=0.2 is switched off" in said
    assert said.count("switched off") == 2
    assert torch.equal(model(TOKENS).logits, model.eval()(TOKENS).logits)


def test_the_unembedding_is_found_under_either_of_its_names(tmp_path):
    """Pythia's folders call it embed_out, transformers' model lm_head."""
    model = written(tmp_path)
    logits = model(TOKENS).logits
    for name in ("embed_out.weight", "lm_head.weight"):
        weights = {key: p.detach() for key, p in model.named_parameters()}
        weights[name] = weights.pop("lm_head.weight")
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(load(tmp_path)(TOKENS).logits, logits)


def test_sharded_weights_are_loaded(tmp_path):
    model = written(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="8KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert not (tmp_path / "many" / "model.safetensors").exists()
    assert torch.equal(
        load(tmp_path / "many")(TOKENS).logits, load(tmp_path / "one")(TOKENS).logits
    )
    next((tmp_path / "many").glob("model-00002*")).unlink()
    with pytest.raises(ConfigError, match=r"model\.source=.*many"):
        load(tmp_path / "many")


# ---- refusals


def rewritten(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DENSE = "gpt_neox.layers.1.attention.dense.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop(DENSE), f"1 missing weights, the first {DENSE}"),
        (lambda w: w.update(extra=torch.ones(2)), "1 unexpected weights, the first extra"),
        (
            lambda w: w.update({DENSE: torch.ones(3, 24)}),
            f"1 mismatched weights, the first {DENSE}",
        ),
        (lambda w: w.pop("embed_out.weight"), r"missing weights, the first lm_head\.weight"),
        (
            lambda w: [w.__setitem__(f"module.{name}", w.pop(name)) for name in [*w]],
            r"28 missing weights, the first gpt_neox\.",
        ),
    ],
    ids=["missing", "extra", "misshapen", "no unembedding", "prefixed"],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, says):
    written(tmp_path)
    rewritten(tmp_path, change)
    for look in (check_weights, from_folder):  # by their names alone, and when they are read
        with pytest.raises(ConfigError, match=f"model.source={tmp_path}: .*{says}"):
            look(tmp_path, f"model.source={tmp_path}")


def test_a_lost_layer_is_never_drawn_at_random(tmp_path):
    for folder, n_layers in (("deeper", 3), ("shallower", 1)):
        written(tmp_path / folder)
        edited(tmp_path / folder, num_hidden_layers=n_layers)
        word = "missing" if n_layers == 3 else "unexpected"
        lost = rf"gpt_neox\.layers\.{max(1, n_layers - 1)}"
        with pytest.raises(ConfigError, match=f"{word} weights, the first {lost}"):
            load(tmp_path / folder)


BIG = {  # a 20-billion-parameter model's sizes
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "vocab_size": 50432,
    "max_position_embeddings": 2048,
}


class NoTensors(TorchFunctionMode):
    """Fails at the first call of torch that makes or takes a tensor."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was called")


def test_another_family_is_refused_before_anything_is_allocated(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom", **BIG}))
    (tmp_path / "model.safetensors").touch()
    refusal = pytest.raises(ConfigError, match="its model_type is bloom; expected gpt_neox, llama")
    with NoTensors(), refusal:
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"model_type=bloom is not supported; .*neox"):
        family("bloom")


def test_a_mixture_of_experts_is_refused_with_its_reason(tmp_path):
    config = AutoConfig.for_model("olmoe")
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with (
        NoTensors(),
        pytest.raises(ConfigError, match=r"is olmoe, a mixture of experts: .*;"),
    ):
        load(tmp_path)


@pytest.mark.parametrize("n_inner", [None, 13])
def test_the_sizes_of_a_gpt2_folder_have_our_names(tmp_path, n_inner):
    written(tmp_path, "gpt2", n_inner=n_inner)
    settings = of(tmp_path)
    assert (settings.n_layers, settings.n_heads, settings.max_seq_len) == (2, 3, 32)
    assert (settings.d_model, settings.d_ff, settings.vocab_size) == (24, n_inner or 96, 31)
    assert architecture(load(tmp_path)).d_ff == settings.d_ff
    edited(tmp_path, n_layer=None)
    with pytest.raises(ConfigError, match="says no num_hidden_layers"):
        of(tmp_path)


def test_dropout_under_gpt2_s_names_is_off_and_said(tmp_path, capsys):
    written(tmp_path, "gpt2", attn_pdrop=0.1, embd_pdrop=0.2, resid_pdrop=0.3)
    model = initial_model(of(tmp_path), seed=0).train()
    assert capsys.readouterr().err.count("switched off") == 3
    assert torch.equal(model(TOKENS).logits, model.eval()(TOKENS).logits)


def test_a_mistral_file_that_says_nothing_of_its_window_has_one_of_4096(tmp_path):
    written(tmp_path, "mistral")
    edited(tmp_path, sliding_window=None)
    assert load(tmp_path).config.sliding_window == 4096


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 32}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True}),
    ],
)
def test_a_window_as_wide_as_the_context_changes_nothing(tmp_path, case, change):
    plain = written(tmp_path / "plain", case)
    written(tmp_path / "window", case, **change)
    edited(tmp_path / "window", **{k: v for k, v in change.items() if v is not None})
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "window")(TOKENS).logits, plain(TOKENS).logits)


def test_a_qwen2_file_that_does_not_switch_its_window_on_has_none(tmp_path):
    plain = written(tmp_path, "qwen2")
    edited(tmp_path, sliding_window=8, use_sliding_window=None)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(TOKENS).logits, plain(TOKENS).logits)


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.source=no/such/folder is invalid"):
        CheckpointConfig(source="no/such/folder")
    written(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    accepted = r"config\.json and model\.safetensors or model\.safetensors\.index\.json"
    with pytest.raises(ConfigError, match=accepted):
        of(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "model.safetensors")
    for content, says in (
        ("[]", "a JSON object"),
        ("{", "is not JSON"),
        (json.dumps({"model_type": "llama", "hidden_size": 4}), "says no num_hidden_layers"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=says):
            of(tmp_path)


def test_a_config_that_transformers_refuses_is_one_error(tmp_path):
    written(tmp_path)
    edited(tmp_path, num_attention_heads=5)
    with pytest.raises(ConfigError, match=r"model\.source=.*: config\.json: .*divisible"):
        load(tmp_path)


def test_a_torn_file_is_refused(tmp_path):
    written(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"model\.source="):
        load(tmp_path)
