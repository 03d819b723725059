"""Compare the choices of factors for EK-FAC's basis with exact curvature, on unfitted rows.

    python experiments/factors.py smollm2 --fit 1024 --score 512
    python experiments/factors.py run seed=0 unit=induction_head --fit 4096 --score 2048

`smollm2` takes SmolLM2-135M out of a package and real text; `run` takes a base run of the store
(`mda train` first) and its window's samples. Curvature is fitted on some rows with drawn labels,
and other rows are scored. A row of the table is one direction of a unit in one of its blocks, or in
`all` of them:

    spearman_exact     rank correlation of its scores with those of `exact`
    gain, low, high    by how much that is above `independent`'s; a 95 % interval over scored rows
    spearman_halves    what the judge repeats: `exact` of one half of the fitted rows with the other
    share_0            median over rows of the share of position 0 in the absolute influence
    largest_0          share of the rows in which the largest is at position 0

The inputs and gradients of a model's layers are kept in `--cache`, so that an interrupted run
resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import smollm2 as pretrained
import torch
from scipy.stats import rankdata
from torch import Tensor

from mda import pipeline, store
from mda.config import compose
from mda.estimator import exact, kfac_math
from mda.estimator.ekfac import Labels, fit_subset
from mda.estimator.estimator import step_of
from mda.model.architecture import architecture
from mda.schema.estimator import FACTORS
from mda.stages.context import Context
from mda.stages.declared import SCORES, needs
from mda.types import HeadId, ParameterBlock, Part
from mda.unit.attention_head import OwnAttention
from mda.unit.capture import Capture, capture, modules_of
from mda.unit.measurement import attention_tokens, copy_objective
from mda.unit.metrics import previous_token
from mda.unit.tokens import token_distribution

SHARD, BATCH, LENGTH = 64, 16, 64
HEADS, PREVIOUS = ("L18H6", "L17H3", "L16H0"), 16  # two induction heads, a previous-token head
SCORED, ENOUGH = 1024, 6000  # of the rows of text, those that may be scored; how many there are


def shards(model, rows, ids: np.ndarray, blocks, labels: Labels, folder: Path) -> list[Path]:
    """Returns the files with the inputs and gradients of these blocks, `SHARD` rows in each."""
    inputs = list(dict.fromkeys(block.input.module for block in blocks))
    outputs = list(dict.fromkeys(tap.module for block in blocks for tap in block.outputs))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(ids), SHARD):
        part = ids[start : start + SHARD]
        path = folder / f"{labels.kind}_{part[0]:06d}_{len(part)}.pt"
        paths.append(path)
        if path.exists():
            continue
        found = []
        for some in np.split(part, range(BATCH, len(part), BATCH)):
            tokens_BS = rows(some)
            drawn_BT = labels.uniforms(some, tokens_BS.shape[1] - 1)
            found.append(capture(model, tokens_BS, modules_of(blocks), uniforms_BT=drawn_BT))
        kept = {f"in {m}": torch.cat([c.inputs[m] for c in found]) for m in inputs}
        kept |= {f"dy {m}": torch.cat([c.output_gradients[m] for c in found]) for m in outputs}
        torch.save(kept, path)
        print(path.name, flush=True)
    return paths


def captured(paths: Sequence[Path], block: ParameterBlock) -> Iterator[Capture]:
    """Yields a block's inputs and gradients, a shard at a time."""
    for path in paths:
        kept = torch.load(path, mmap=True)
        x = kept[f"in {block.input.module}"]
        gradients = {tap.module: kept[f"dy {tap.module}"] for tap in block.outputs}
        yield Capture({block.input.module: x}, gradients, torch.zeros(len(x)))


def own(tensor: Tensor, owner: int) -> Tensor:
    """Returns one owner's part of [B, T, G, I], as [B, T, 1, I]."""
    return tensor[:, :, [owner if tensor.shape[2] > 1 else 0]]


def basis_of(paths, block: ParameterBlock, owner: int, factors: str) -> tuple[Tensor, Tensor]:
    """Returns Q_A and Q_S of one owner, by `kfac_math.factor_sums` of all owners."""
    total: list[Tensor] = []
    for seen in captured(paths, block):
        sums = kfac_math.factor_sums(seen.x(block), seen.dy(block), factors)
        total = [a.double() + b for a, b in zip(sums, total or (0, 0), strict=True)]
    a, s = (m[[owner if len(m) > 1 else 0]] for m in total)
    return kfac_math.eigenvectors(a), kfac_math.eigenvectors(s)


def gradients_of(paths, part: Part) -> Tensor:
    """Returns the gradients of single sequences in one owner's parameters, [N, 1, I, J]."""
    found = []
    for seen in captured(paths, part.block):
        x, dy = own(seen.x(part.block), part.row), own(seen.dy(part.block), part.row)
        found.append(kfac_math.sequence_gradients(x, dy))
    return torch.cat(found)


def directions(paths, part: Part, v_IJ: Tensor, damping: float) -> dict[str, Tensor]:
    """Returns the measurement's gradient, and (H + c D)^-1 of it with every curvature."""
    gradients, v = gradients_of(paths, part), v_IJ.double()[None]
    found = {"plain product": v[0]}
    for factors in FACTORS:
        basis = basis_of(paths, part.block, part.row, factors)
        q_a, q_s = (q.to(gradients) for q in basis)
        sums = [
            kfac_math.rotated(some, q_a, q_s).double().square().sum(0)
            for some in gradients.split(SHARD)
        ]
        values = torch.stack(sums).sum(0) / len(gradients)
        damped = values + kfac_math.damping(values, damping)
        found[factors] = kfac_math.apply_inverse(v, *basis, damped)[0]
    half = len(gradients) // 2
    for name, rows in (
        ("exact", slice(None)), ("first half", slice(half)), ("second half", slice(half, None)),
    ):  # fmt: skip
        own_NP = gradients[rows].flatten(1)
        found[name] = exact.inverse_times(own_NP, v.flatten(1), damping).view_as(v[0])
    return found


def influence_of(paths, part: Part, direction_IJ: Tensor) -> Tensor:
    """Returns the influence of every position of the scored rows, [M, T]."""
    found = []
    for seen in captured(paths, part.block):
        x, dy = own(seen.x(part.block), part.row), own(seen.dy(part.block), part.row)
        found.append(-((x[:, :, 0] @ direction_IJ.to(x)) * dy[:, :, 0]).sum(-1))
    return torch.cat(found)


def compare(about: dict, fitted, scored, parts: dict[Part, Tensor], damping: float) -> list[dict]:
    """Returns the table of one unit; `parts` has its measurement's gradient in each part."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, v_IJ in parts.items():
        name = part.block.name.partition(".")[2]
        for direction, tensor in directions(fitted, part, v_IJ, damping).items():
            found.setdefault(direction, {})[name] = influence_of(scored, part, tensor)
    for by_block in found.values():
        by_block["all"] = torch.stack(list(by_block.values())).sum(0)

    def ranks(direction: str, block: str) -> np.ndarray:
        return rankdata(found[direction][block].sum(1).double())

    def agreement(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1])

    generator = np.random.default_rng(0)
    draws = generator.integers(0, about["scored"], (1000, about["scored"]))
    rows = []
    for direction in ("plain product", *FACTORS, "exact"):
        for block, values_MT in found[direction].items():
            share = values_MT.abs() / values_MT.abs().sum(1, keepdim=True)
            row = about | {"damping": damping, "direction": direction, "block": block}
            mine, today = ranks(direction, block), ranks("independent", block)
            judge = ranks("exact", block)
            gains = [agreement(mine[d], judge[d]) - agreement(today[d], judge[d]) for d in draws]
            row |= {
                "spearman_exact": agreement(mine, judge),
                "gain": agreement(mine, judge) - agreement(today, judge),
                "low": float(np.quantile(gains, 0.025)),
                "high": float(np.quantile(gains, 0.975)),
                "spearman_halves": agreement(
                    ranks("first half", block), ranks("second half", block)
                ),
                "share_0": float(share[:, 0].median()),
                "largest_0": float((share.argmax(1) == 0).double().mean()),
            }
            rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            print(*rows[-1].values(), flush=True)
    return rows


def text_rows(tokenizer) -> np.ndarray:
    """Returns rows of `LENGTH` + 1 tokens of the embedded corpus's packages, within documents."""
    from mda.data.documents import documents_of, source_files
    from mda.data.embedded import PACKAGES

    files = [file for package in PACKAGES for file in source_files(package)]
    random = Random(0)
    random.shuffle(files)
    rows: list[list[int]] = []
    for file in files:
        for document in documents_of(file) if len(rows) <= ENOUGH else ():
            ids = tokenizer(document.text[:6000])["input_ids"]
            for _ in range(2 if document.label == "code" else 1):
                if len(ids) > LENGTH + 1:
                    at = random.randrange(len(ids) - LENGTH - 1)
                    rows.append(ids[at : at + LENGTH + 1])
    random.shuffle(rows)
    return np.array(rows)


def smollm2(args: argparse.Namespace) -> list[dict]:
    """Returns SmolLM2's heads `HEADS`, measured by copying or by their own attention."""
    model, tokenizer = pretrained.load()
    arch, file = architecture(model), args.cache / "rows.npy"
    if not file.exists():
        store.write_npy(file, text_rows(tokenizer))
    tokens = torch.from_numpy(np.load(file))
    heads = [HeadId.parse(name) for name in args.heads]
    layers = sorted({HeadId.parse(name).layer for name in HEADS})  # one pass serves all of them
    blocks = [block for at in layers for block in arch.head_blocks(at).values()]
    ids = np.arange(args.score), SCORED + np.arange(args.fit)
    kinds = Labels("empirical"), Labels()
    scored, fitted = (
        shards(model, tokens.__getitem__, part, blocks, labels, args.cache)
        for part, labels in zip(ids, kinds, strict=True)
    )
    counts = np.bincount(tokens.flatten(), minlength=model.config.vocab_size)
    shape = {"n": 32, "repeats": 2, "seed": 1}
    probabilities = token_distribution(counts, (), "unigram_sqrt")
    copied = copy_objective(probabilities, length=LENGTH // 2, **shape)
    random_MT = attention_tokens(probabilities, length=LENGTH // 2, **shape)
    rows = []
    for head in heads:
        own_blocks = arch.head_blocks(head.layer)
        if head.layer == PREVIOUS:
            own_attention = OwnAttention(arch, random_MT, previous_token, LENGTH // 2)
            gradients = own_attention.own_gradients(model, {head.layer: own_blocks["qk"]})
        else:
            gradients = copied.gradients(model, list(own_blocks.values()))
        parts = {Part(block, head.head): g[head.head] for block, g in gradients.items()}
        about = {"model": "SmolLM2-135M", "unit": str(head), "fitted": args.fit}
        about |= {"scored": args.score, "length": LENGTH}
        rows += compare(about, fitted, scored, parts, args.damping)
    return rows


def base_run(args: argparse.Namespace) -> list[dict]:
    """Returns the unit that a base run of the store is traced for, at its window's middle."""
    context = Context.of(compose(args.overrides))
    corpus, base = pipeline.train(context, needs(SCORES))
    unit = pipeline.unit_of(context, base)
    window = unit.window
    ids = base.order.stream(window.start, window.end).sample_ids
    fit_ids = fit_subset(ids, args.fit, 0)
    score_ids = fit_subset(np.setdiff1d(ids, fit_ids), args.score, 1)
    step = step_of("window_middle", base.checkpoints, window)
    model = base.model(step)
    wanted = next(one for one in unit.units if one.name == unit.name)
    gradients = unit.kind.gradients(model, [wanted])
    folder = args.cache / f"{base.fingerprint}_{step}_{unit.name}"
    parts = {
        part: gradients[part.block][part.row] for part in wanted.parts if part.block in gradients
    }
    blocks = [part.block for part in parts]
    scored = shards(model, corpus.rows, score_ids, blocks, Labels("empirical"), folder)
    fitted = shards(model, corpus.rows, fit_ids, blocks, Labels(), folder)
    about = {"model": f"nano, seed {context.config.seed}", "unit": f"{context.config.unit.name}"}
    about |= {"fitted": len(fit_ids), "scored": len(score_ids), "length": corpus.seq_len}
    return compare(about, fitted, scored, parts, args.damping)


def main() -> None:
    """Compares the factors for the model or run of the command line."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("smollm2", "run"))
    parser.add_argument("overrides", nargs="*", help="settings of the base run and the unit")
    parser.add_argument("--fit", type=int, default=1024, help="rows that curvature is fitted on")
    parser.add_argument("--score", type=int, default=512, help="other rows, which are scored")
    parser.add_argument("--heads", nargs="+", default=HEADS, help="of smollm2, of these layers")
    parser.add_argument("--damping", type=float, default=0.1)
    parser.add_argument("--cache", type=Path, default=Path("outputs/factors"))
    parser.add_argument("--table", type=Path, help="CSV file to write")
    args = parser.parse_intermixed_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    rows = smollm2(args) if args.what == "smollm2" else base_run(args)
    if args.table:
        store.write_csv(args.table, rows)


if __name__ == "__main__":
    main()
