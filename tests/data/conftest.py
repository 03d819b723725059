"""A small tokenizer, trained here, and a file of it."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "the red fox and the blue dog saw a small house by the river before it was dark"
WORDS = TEXT.split()


def sentence(n: int, length: int = 40) -> str:
    """Words in an order that differs from one number to the next."""
    return " ".join(WORDS[(n * 7 + i * (n % 5 + 1)) % len(WORDS)] for i in range(length))


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    """A byte-level BPE of 300 tokens, of which 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(sentence, range(50)), trainer)
    assert tokenizer.get_vocab_size() == 300
    return tokenizer


@pytest.fixture
def tokenizer_json(words, tmp_path):
    path = tmp_path / "words" / "tokenizer.json"
    path.parent.mkdir()
    words.save(str(path))
    return path
