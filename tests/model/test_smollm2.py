"""A pretrained model of another family, end to end: its heads found, all of them scored."""

import numpy as np
import pytest
import torch

from mda.estimator.ekfac import Fit, fit_curvature
from mda.estimator.score import score_samples
from mda.model.architecture import architecture
from mda.model.plain_attention import eager_attention
from mda.unit.blocks import Directions, gather
from mda.unit.metrics import prefix_matching, previous_token

pytestmark = pytest.mark.slow
N, LENGTH = 2, 64


def test_its_known_induction_and_previous_token_heads_are_found(smollm2):
    model, _ = smollm2
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, 49_000, (8, 64), generator=generator).repeat(1, 2)
    with eager_attention(model), torch.no_grad():
        patterns = model.base_model(tokens, output_attentions=True).attentions
    found = {
        metric.__name__: torch.stack([metric(a, 64).mean(0) for a in patterns])
        for metric in (prefix_matching, previous_token)
    }
    assert divmod(found["prefix_matching"].argmax().item(), 9) == (18, 6)
    assert found["prefix_matching"][18, 6] >= 0.90
    assert divmod(found["previous_token"].argmax().item(), 9) == (16, 0)


def test_all_its_heads_are_scored_in_one_pass(smollm2):
    """Every head of 30 layers by EK-FAC; a copier's scores rank repeated text above prose."""
    model, tokenizer = smollm2
    arch = architecture(model)
    blocks = [block for at in range(arch.n_layers) for block in arch.head_blocks(at).values()]
    text = "The committee met on Tuesday to discuss the budget of the new library. " * 40
    generator = torch.Generator().manual_seed(1)
    prose = tokenizer(text)["input_ids"][: LENGTH + 1]
    random = torch.randint(20, 49_000, (N, LENGTH // 4), generator=generator)
    rows = torch.cat([random.repeat(1, 5)[:, : LENGTH + 1], torch.tensor([prose] * N)])
    parameters = dict(model.named_parameters())
    directions = {block: gather(block, parameters) for block in blocks}  # any direction will do
    ids = np.arange(len(rows))
    curvature = fit_curvature(model, lambda i: rows[i], ids[:2], Fit(blocks[:3], batch_size=2))
    assert curvature.eigenvalues["L0.qk"].shape == (9, 576, 128)
    units = heads(arch)
    scores = score_samples(model, lambda i: rows[i], ids, Directions.of(units, directions), 4)
    assert scores.values_NU.shape == (len(rows), 270)
    assert scores.values_NU.isfinite().all() and (scores.values_NU.std(0) > 0).all()
    one = score_samples(
        model, lambda i: rows[i], ids[:1],
        Directions.of([units[100]], {b: directions[b] for b in arch.head_blocks(11).values()}),
    )  # fmt: skip
    torch.testing.assert_close(one.values_NU[0, 0], scores.values_NU[0, 100], rtol=1e-3, atol=1e-3)


def heads(arch):
    from mda.types import Part, Unit

    return [
        Unit(f"L{at}H{head}", tuple(Part(block, head) for block in arch.head_blocks(at).values()))
        for at in range(arch.n_layers)
        for head in range(arch.n_heads)
    ]
