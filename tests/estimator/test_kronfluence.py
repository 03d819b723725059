"""Cross-check with kronfluence 1.0.1, an independent EK-FAC, in float64.

Its convention, to which this test brings our numbers: the loss of a sequence is the SUM over its
tokens; A and S are uncentred means over tokens; Lambda is the mean over sequences; damping is
ADDED (`damping_factor=None` is 0.1 times the mean Lambda, of a whole module); a Linear with a bias
has a column of ones; weights are [J, I]; its scores have the opposite sign and no 1 / N. Both
sides take the data's own labels, so that nothing is random.
"""

import logging

import pytest
import torch
import torch.nn.functional as F
from in_memory import Case
from torch import nn
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from mda.estimator.ekfac import Fit, Labels, fit_curvature
from mda.estimator.score import score_samples
from mda.model.architecture import architecture
from mda.types import Part, Unit
from mda.unit.blocks import Directions
from mda.unit.measurement import copy_objective

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler.*:FutureWarning")
pytest.importorskip(
    "kronfluence", reason="kronfluence 1.0.1 is not installed (dev extra, with --no-deps)"
)
from kronfluence.analyzer import Analyzer, prepare_model  # noqa: E402
from kronfluence.arguments import FactorArguments, ScoreArguments  # noqa: E402
from kronfluence.task import Task  # noqa: E402

T, C, PERIOD = 8, 0.1, 5
UNIFORM = torch.full((40,), 1 / 40, dtype=torch.float64)
COPY = copy_objective(UNIFORM, n=3, length=PERIOD, seed=0)


class SummedLoss(Task):
    """Next-token loss summed over tokens; the measurement is one sequence's part of `copy`."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def compute_train_loss(self, batch, model, sample=False):
        assert not sample
        logits = model(batch[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")

    def compute_measurement(self, batch, model):
        log_p = model(batch[:, :-1]).logits.log_softmax(-1)
        log_p = log_p.gather(2, batch[:, 1:, None]).squeeze(2)
        return log_p[:, PERIOD:].sum() / (3 * PERIOD)

    def get_influence_tracked_modules(self):
        return self.modules


def kronfluence_scores(model, tokens_NS, modules, folder):
    """Score of every sample for every module, by kronfluence, as {module: [N]}."""
    double = torch.float64
    factor_arguments = FactorArguments(
        use_empirical_fisher=True,
        activation_covariance_dtype=double,
        gradient_covariance_dtype=double,
        per_sample_gradient_dtype=double,
        lambda_dtype=double,
    )
    score_arguments = ScoreArguments(
        damping_factor=None,
        compute_per_module_scores=True,
        per_sample_gradient_dtype=double,
        precondition_dtype=double,
        score_dtype=double,
    )
    task = SummedLoss(modules)
    analyzer = Analyzer(
        "check",
        prepare_model(model, task),
        task,
        cpu=True,
        disable_tqdm=True,
        output_dir=str(folder),
        log_level=logging.ERROR,
    )
    train, query = list(tokens_NS), list(COPY.tokens_MS)
    analyzer.fit_all_factors("f", train, per_device_batch_size=4, factor_args=factor_arguments)  # type: ignore
    analyzer.compute_pairwise_scores(
        "s",
        "f",
        query_dataset=query,  # type: ignore
        train_dataset=train,  # type: ignore
        per_device_query_batch_size=3,
        per_device_train_batch_size=4,
        score_args=score_arguments,
    )
    scores = analyzer.load_pairwise_scores("s")
    return {name: total.sum(0) for name, total in scores.items()}


def our_scores(model, table, blocks, wanted):
    """Our production path, all of it: {name: [N]} of (block, owner) by name."""
    curvature = fit_curvature(model, table.rows, table.ids, Fit(blocks, Labels("empirical")))
    directions = curvature.inverse_times(COPY.gradients(model, blocks), C)
    units = [Unit(name, (Part(block, owner),)) for name, (block, owner) in wanted.items()]
    scores = score_samples(model, table.rows, table.ids, Directions.of(units, directions))
    return dict(zip(wanted, scores.values_NU.T, strict=True))


def assert_equal_scores(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, scores in ours.items():
        # summed for mean loss: gradients T times ours, Lambda T^2 times; and the sign
        error = (-scores / T - theirs[name]).norm() / theirs[name].norm()
        assert error < 1e-9, (name, error)


def test_whole_modules_agree(toy, table, tmp_path):
    """Every Linear of attention and MLP, with its bias, as a block with one owner."""
    blocks = [b for part in ("attention", "mlp") for b in Case.of(toy, part).blocks]
    wanted = {block.input.module: (block, 0) for block in blocks}
    assert len(wanted) == 8 and all(block.bias for block in blocks)
    ours = our_scores(toy, table, blocks, wanted)
    assert_equal_scores(ours, kronfluence_scores(toy, table.tokens, list(wanted), tmp_path))


def test_whole_modules_of_a_gated_mlp_agree(llama, table, tmp_path):
    """down_proj and o_proj are blocks of their own; gate and up, q, k and v are joint ones."""
    blocks = [b for part in ("attention", "mlp") for b in Case.of(llama, part).blocks]
    wanted = {b.input.module: (b, 0) for b in blocks if len(b.outputs) == 1}
    assert [name.split(".")[-1] for name in wanted] == 2 * ["o_proj"] + 2 * ["down_proj"]
    ours = our_scores(llama, table, blocks, wanted)
    assert_equal_scores(ours, kronfluence_scores(llama, table.tokens, list(wanted), tmp_path))


def linear(weight_JI, bias_J=None):
    """A Linear with these parameters."""
    made = nn.Linear(*weight_JI.T.shape, bias=bias_J is not None, dtype=weight_JI.dtype)
    made.weight.data.copy_(weight_JI)
    if bias_J is not None:
        made.bias.data.copy_(bias_J)
    return made


class SplitAttention(nn.Module):
    """GPTNeoX attention with a bias-free Linear for each block of each head; biases are added."""

    def __init__(self, model, layer: int) -> None:
        super().__init__()
        packed, k = model.gpt_neox.layers[layer].attention, 6
        qkv, dense = packed.query_key_value, packed.dense
        heads = list(zip(qkv.weight.split(3 * k), qkv.bias.split(3 * k), strict=True))
        self.qk = nn.ModuleList(linear(w[: 2 * k]) for w, _ in heads)
        self.v = nn.ModuleList(linear(w[2 * k :]) for w, _ in heads)
        self.o = nn.ModuleList(linear(w) for w in dense.weight.split(k, dim=1))
        self.register_buffer("qk_bias", torch.stack([b[: 2 * k] for _, b in heads]).detach())
        self.register_buffer("v_bias", torch.stack([b[2 * k :] for _, b in heads]).detach())
        self.register_buffer("o_bias", dense.bias.detach())
        self.model_of_rotary = [model]  # in a list: not a submodule

    def forward(self, hidden_states, attention_mask=None, **_):
        positions = torch.arange(hidden_states.shape[1])[None]
        tables = self.model_of_rotary[0].gpt_neox.rotary_emb(hidden_states, position_ids=positions)
        out = self.o_bias
        for head in range(len(self.qk_bias)):
            query, key = (self.qk[head](hidden_states) + self.qk_bias[head]).chunk(2, dim=-1)
            query, key = apply_rotary_pos_emb(query.unsqueeze(1), key.unsqueeze(1), *tables)
            value = self.v[head](hidden_states) + self.v_bias[head]
            z = F.scaled_dot_product_attention(query[:, 0], key[:, 0], value, is_causal=True)
            out = out + self.o[head](z)
        return out, None


def test_single_heads_agree(toy, table, tmp_path):
    """Against separate Linear modules QK_h, V_h, O_h."""
    layer = 0
    blocks = architecture(toy).head_blocks(layer)
    home = f"gpt_neox.layers.{layer}.attention"
    wanted = {f"{home}.{name}.{h}": (block, h) for name, block in blocks.items() for h in range(2)}
    ours = our_scores(toy, table, list(blocks.values()), wanted)
    toy.gpt_neox.layers[layer].attention = SplitAttention(toy, layer)
    assert_equal_scores(ours, kronfluence_scores(toy, table.tokens, list(wanted), tmp_path))


class SplitMlp(nn.Module):
    """A GPTNeoX MLP with one neuron's input column, bias and output row as Linears of their own."""

    def __init__(self, packed, neuron: int) -> None:
        super().__init__()
        up, down = packed.dense_h_to_4h, packed.dense_4h_to_h
        others = [n for n in range(up.out_features) if n != neuron]
        self.act, one = packed.act, [neuron]
        self.up, self.into = (linear(up.weight[n], up.bias[n]) for n in (others, one))
        self.down, self.out = linear(down.weight[:, others], down.bias), linear(down.weight[:, one])

    def forward(self, hidden_states):
        rest, own = self.up(hidden_states), self.into(hidden_states)
        return self.down(self.act(rest)) + self.out(self.act(own))


def test_one_neuron_agrees(toy, table, tmp_path):
    """Its input column with its bias, and its output row, against separate Linear modules."""
    layer, neuron = 0, 17
    blocks = architecture(toy).neuron_blocks(layer, bias=True)
    home = f"gpt_neox.layers.{layer}.mlp"
    wanted = {f"{home}.into": (blocks["in"], neuron), f"{home}.out": (blocks["out"], neuron)}
    ours = our_scores(toy, table, list(blocks.values()), wanted)
    before = toy(table.tokens[:, :-1]).logits
    toy.gpt_neox.layers[layer].mlp = SplitMlp(toy.gpt_neox.layers[layer].mlp, neuron)
    torch.testing.assert_close(toy(table.tokens[:, :-1]).logits, before)
    assert_equal_scores(ours, kronfluence_scores(toy, table.tokens, list(wanted), tmp_path))
