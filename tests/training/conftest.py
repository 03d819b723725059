"""A corpus of random tokens: 120 rows of 16 + 1, vocabulary 64."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mda.data.stream import open_corpus
from mda.data.token_files import map_rows
from mda.data.tokens import build_tokens

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="package")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    np.save(folder / "rows.npy", np.random.default_rng(0).integers(2, 60, (120, 17), np.uint16))
    build_tokens(
        folder / "corpus",
        path=folder / "rows.npy",
        seq_len=16,
        dtype="uint16",
        vocab_size=64,
        special_ids=(0, 1),
        held_out=16,
    )
    return open_corpus(folder / "corpus", "fp", map_rows(folder / "rows.npy", 16))
