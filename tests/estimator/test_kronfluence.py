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
from mda.model.head_layout import attention, block_bias, block_weight, rotary_tables, rotate
from mda.unit.gradients import capture
from mda.unit.probe import draw_probe, probe_gradients
from mda.unit.subspace import Subspace, single_head
from torch import nn
from transformers import GPTNeoXForCausalLM

from mda.estimator import kfac_math
from mda.estimator.ekfac import Labels, fit_curvature
from mda.estimator.score import make_directions, score_samples
from mda.types import HeadId

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler.*:FutureWarning")
pytest.importorskip(
    "kronfluence", reason="kronfluence 1.0.1 is not installed (dev extra, with --no-deps)"
)
from kronfluence.analyzer import Analyzer, prepare_model  # noqa: E402
from kronfluence.arguments import FactorArguments, ScoreArguments  # noqa: E402
from kronfluence.task import Task  # noqa: E402

LAYER, T, C = 0, 8, 0.1
PROBE = draw_probe("copy", torch.full((40,), 1 / 40, dtype=torch.float64), n=3, length=5, seed=0)


class SummedLoss(Task):
    """Next-token loss summed over tokens; the measurement is one sequence's part of the probe."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def compute_train_loss(self, batch, model, sample=False):
        assert not sample
        logits = model(batch[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")

    def compute_measurement(self, batch, model):
        log_p = model(batch[:, :-1]).logits.log_softmax(-1)
        log_p = log_p.gather(2, batch[:, 1:, None]).squeeze(2)
        return log_p[:, PROBE.period :].sum() / (3 * PROBE.period)

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
    train, query = list(tokens_NS), list(PROBE.tokens_MS)
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


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("linear", ["query_key_value", "dense"])
def test_whole_attention_modules_agree(toy, table, tmp_path, linear):
    """The pure functions on a whole Linear with its bias: one 'head' that spans the module."""

    def pair(tokens, weights):
        layer = capture(toy, tokens, [LAYER], weights_BT=weights).layers[LAYER]
        x, dy = layer.x_BTD, layer.dqkv_BTHJ.flatten(2)
        if linear == "dense":
            x, dy = layer.z_BTHK.flatten(2), layer.do_BTD
        return torch.cat((x, torch.ones_like(x[..., :1])), -1).unsqueeze(2), dy.unsqueeze(2)

    x, dy = pair(table.tokens, torch.ones(9, T))
    q_a = kfac_math.eigenvectors(kfac_math.second_moment_sum(x))
    q_s = kfac_math.eigenvectors(kfac_math.second_moment_sum(dy))
    values = kfac_math.squared_projection_sum(x, dy, q_a, q_s) / len(x)
    x_probe, dy_probe = pair(PROBE.tokens_MS, PROBE.weights(PROBE.tokens_MS[:, 1:]))
    probe = torch.einsum("btgi,bthj->hij", x_probe, dy_probe)
    damped = values + kfac_math.damping(values, C)
    direction = kfac_math.apply_inverse(probe, q_a, q_s, damped)
    ours = torch.einsum("btgi,bthj,hij->b", x, dy, direction)

    name = f"gpt_neox.layers.{LAYER}.attention.{linear}"
    theirs = kronfluence_scores(toy, table.tokens, [name], tmp_path)[name]
    assert relative_error(ours, theirs) < 1e-9


class SplitAttention(nn.Module):
    """GPTNeoX attention with a bias-free Linear for each block of each head; biases are added."""

    def __init__(self, model: GPTNeoXForCausalLM, layer: int) -> None:
        super().__init__()
        packed = attention(model, layer)
        qkv, dense, n = packed.query_key_value, packed.dense, model.config.num_attention_heads
        for block in ("qk", "v", "o"):
            linears = nn.ModuleList()
            for weight_IJ in block_weight(qkv.weight, dense.weight, block, n).unbind():
                linear = nn.Linear(*weight_IJ.shape, bias=False, dtype=weight_IJ.dtype)
                linear.weight.data.copy_(weight_IJ.T)
                linears.append(linear)
            self.add_module(block, linears)
        self.register_buffer("qk_bias", block_bias(qkv.bias, "qk", n).detach().squeeze(1))
        self.register_buffer("v_bias", block_bias(qkv.bias, "v", n).detach().squeeze(1))
        self.register_buffer("o_bias", dense.bias.detach())
        self.model_of_rotary = [model]  # in a list: not a submodule

    def forward(self, hidden_states, attention_mask=None, **_):
        cos, sin = rotary_tables(self.model_of_rotary[0], hidden_states.shape[1])
        out = self.o_bias
        for head in range(len(self.qk_bias)):
            query, key = (self.qk[head](hidden_states) + self.qk_bias[head]).chunk(2, dim=-1)
            query, key = (rotate(s.unsqueeze(2), cos, sin).squeeze(2) for s in (query, key))
            value = self.v[head](hidden_states) + self.v_bias[head]
            z = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            out = out + self.o[head](z)
        return out, None


def test_single_heads_agree(toy, table, tmp_path):
    """Our production path, all of it, against separate Linear modules QK_h, V_h, O_h."""
    ours, subspace = {}, Subspace()
    curvature = fit_curvature(toy, table.rows, table.ids, [LAYER], subspace, Labels("empirical"))
    for head in range(2):
        units = single_head(HeadId(LAYER, head))
        for block in subspace.blocks:
            alone = Subspace((block,))
            gradient = probe_gradients(toy, PROBE, [LAYER], alone).blocks
            directions = curvature.inverse_times(gradient, C)
            packed = make_directions(toy, directions, alone, units)
            scores = score_samples(toy, table.rows, table.ids, packed, units)
            ours[f"gpt_neox.layers.{LAYER}.attention.{block}.{head}"] = scores.values_NU[:, 0]

    toy.gpt_neox.layers[LAYER].attention = SplitAttention(toy, LAYER)
    theirs = kronfluence_scores(toy, table.tokens, list(ours), tmp_path)
    assert ours.keys() == theirs.keys()
    for name, scores in ours.items():
        # summed for mean loss: gradients T times ours, Lambda T^2 times; and the sign
        assert relative_error(-scores / T, theirs[name]) < 1e-9, name
