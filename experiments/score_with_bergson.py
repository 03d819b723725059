"""Write what bergson scores for a unit: the model, the window's samples, and the measurement.

    python experiments/score_with_bergson.py seed=0 --folder bergson
    (in an environment with bergson) the command that it prints
    mda run seed=0 intervention=remove estimator=file estimator.path=bergson/run/scores

model           checkpoint in the window's middle and tokenizer, as transformers reads them
window.jsonl    the window's samples in stream order, `input_ids`: row i gets score i
query.jsonl     the measurement's rows; `labels` are -100 where the token's loss does not count

The unit's measurement must be a sum of token losses with one weight: copying, the loss on one class
of text, or prompts without wrong continuations. bergson takes no batch of more tokens than the
model has positions, so the saved configuration says `BATCH` rows. The measurement by the saved
model is compared with that by the run's own.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mda import pipeline
from mda.config import compose
from mda.data.stream import Corpus
from mda.estimator.estimator import step_of
from mda.schema import ConfigError
from mda.stages.context import Context
from mda.stages.declared import SCORES, needs
from mda.unit.measurement import TokenObjective

BATCH, ROWS = 32, 4096  # rows that bergson takes at once, and that are read from the corpus at once
IGNORED = -100  # a label whose loss is not counted


def labels_of(asked: TokenObjective) -> Tensor:
    """Returns the tokens whose loss the measurement counts, [M, S], and `IGNORED` elsewhere.

    Raises ConfigError where its weights differ or reward losses, which labels cannot say.
    """
    counted_MT = asked.weights_MT != 0
    if len(asked.weights_MT[counted_MT].unique()) != 1 or asked.weights_MT.min() >= 0:
        raise ConfigError(
            "the unit's measurement weighs losses; expected one weight below 0 for all"
        )
    labels_MS = torch.full_like(asked.tokens_MS, IGNORED)
    labels_MS[:, 1:] = torch.where(counted_MT, asked.tokens_MS[:, 1:], IGNORED)
    return labels_MS


def export(context: Context, folder: Path) -> int:
    """Writes the three parts and returns the tokens of a batch.

    Raises ConfigError for a unit whose measurement is no such sum, or a model that is not the same
    after saving and loading.
    """
    corpus, base = pipeline.train(context, needs(SCORES))
    unit = pipeline.unit_of(context, base)
    asked = getattr(unit.kind, "measured", None)
    if not isinstance(asked, TokenObjective):
        raise ConfigError(
            f"unit={context.config.unit.name} is measured by activations or attention; expected "
            "unit.probe.target=copy or prompts, or unit=module"
        )
    labels_MS, window = labels_of(asked), unit.window
    model = base.model(step_of("window_middle", base.checkpoints, window)).cpu()
    f = asked.value(model)
    longest = max(corpus.seq_len + 1, labels_MS.shape[1])
    model.config.max_position_embeddings = BATCH * longest
    model.save_pretrained(folder / "model")
    tokenizer_of(corpus).save_pretrained(folder / "model")
    saved_f = float(asked.weights_MT.min()) * saved_loss(
        folder / "model", asked.tokens_MS, labels_MS
    )
    print(f"measurement of the unit: {f:.6f}, by the saved model: {saved_f:.6f}")
    if not math.isclose(saved_f, f, rel_tol=1e-4):
        raise ConfigError("the saved model is another; expected rotary positions without a limit")

    def window_rows() -> Iterator[dict[str, list[int]]]:
        ids = base.order.stream(window.start, window.end).sample_ids
        for start in range(0, len(ids), ROWS):
            for row in corpus.rows(ids[start : start + ROWS]).tolist():
                yield {"input_ids": row}

    query = zip(asked.tokens_MS.tolist(), labels_MS.tolist(), strict=True)
    write_lines(folder / "window.jsonl", window_rows())
    write_lines(folder / "query.jsonl", ({"input_ids": a, "labels": b} for a, b in query))
    return BATCH * longest


def tokenizer_of(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Returns the corpus's tokenizer; its ids as words where it has none, as bergson loads one."""
    if corpus.tokenizer is not None:
        return PreTrainedTokenizerFast(tokenizer_file=str(corpus.tokenizer))
    ids_as_words = WordLevel({str(token): token for token in range(corpus.vocab_size)})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(ids_as_words))


@torch.no_grad()
def saved_loss(model_folder: Path, tokens_MS: Tensor, labels_MS: Tensor) -> float:
    """Returns the loss in nats summed over labelled tokens, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    total = 0.0
    for tokens, labels in zip(tokens_MS.split(BATCH), labels_MS.split(BATCH), strict=True):
        mean = model(input_ids=tokens, labels=labels).loss.item()
        total += mean * int((labels[:, 1:] != IGNORED).sum())
    return total


def write_lines(path: Path, rows: Iterator[dict[str, list[int]]]) -> None:
    """Writes one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


def command(folder: Path, tokens: int) -> str:
    """Returns bergson's command: EK-FAC on the window, one score for each of its samples."""
    words = (
        f"bergson ekfac {folder / 'run'} --model {folder / 'model'}",
        f"--data.dataset {folder / 'window.jsonl'} --query.dataset {folder / 'query.jsonl'}",
        "--query.aggregation mean --method kfac --hessian_cfg.ev_correction true",
        f"--token_batch_size {tokens}",
    )
    return " \\\n    ".join(words)


def main() -> None:
    """Exports what the command line says, and prints the command of bergson."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", help="settings of the base run and the unit")
    parser.add_argument("--folder", type=Path, default=Path("bergson"), help="what to write into")
    args = parser.parse_intermixed_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(command(args.folder, export(Context.of(compose(args.overrides)), args.folder)))


if __name__ == "__main__":
    main()
