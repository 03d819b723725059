"""The README's commands, one after the other to their ends, with words that make them small."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import warm
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mda.analysis.folders import read_runs
from mda.model.build import scratch
from mda.schema import ScratchConfig

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
CHEAP = ("report.resamples=99", "report.dpi=30", "logger=csv")
VOCABULARY = 300


def commands(section: str) -> list[list[str]]:
    """The words of every `mda` command in the bash blocks of a section, without `mda`."""
    text = re.search(rf"^## {section}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert text is not None
    blocks = re.findall(r"^```bash\n(.*?)^```", text[1], re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mda ")]


def mda(cwd: Path, *words: str) -> str:
    done = warm.run([sys.executable, "-m", "mda.cli", *words], cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_lead_from_a_base_run_to_a_comparison(tmp_path):
    found = commands("On the command line")
    *steps, plan, sweep = found
    assert [words[0] for words in steps] == ["train", "trace", *["run"] * 3, "compare"]
    assert plan[0] == "plan" and sweep[:2] == ["run", plan[1]]  # hours of work
    said = [mda(tmp_path, *words, "experiment=smoke", *CHEAP) for words in steps]
    assert (Path(said[-1].splitlines()[-1]) / "report.html").is_file()
    arms = read_runs([tmp_path / "outputs/runs/run"])
    assert len({run.arm.name for run in arms}) == 4


@pytest.fixture
def own_folder(tmp_path):
    """A user's own model, texts and settings, as the README describes them."""
    texts = [f"def f{i}(x):\n    return x + {i} # the {i}th of its kind\n" * 6 for i in range(400)]
    lines = (json.dumps({"text": text, "kind": "code"}) for text in texts)
    (tmp_path / "my-texts.jsonl").write_text("\n".join(lines))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[special], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special)
    fast.save_pretrained(tmp_path / "my-model")
    sizes = ScratchConfig(family="llama", n_layers=2, d_model=16, n_heads=2, n_key_value_heads=1,
                          d_ff=32, vocab_size=VOCABULARY, max_seq_len=64)  # fmt: skip
    scratch(sizes, 0).save_pretrained(tmp_path / "my-model")
    mine = re.search(
        r"`(my_conf/\S+\.yaml)`.*?^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL
    )
    assert mine is not None
    (tmp_path / mine[1]).parent.mkdir(parents=True)
    (tmp_path / mine[1]).write_text(mine[2], "utf-8")
    return tmp_path


@pytest.mark.slow
def test_your_own_model_and_data(own_folder):
    small = (
        "training.total_steps=40", "training.warmup_steps=2", "training.batch_size=4",
        "training.checkpoint_every=20", "intervention.window=[10,30]", "data.seq_len=32",
        f"data.vocab_size={VOCABULARY}", "data.held_out=16", "emergence.every=10",
        "emergence.n_sequences=4", "emergence.length=8", "emergence.held_out=8",
    )  # fmt: skip
    said = re.search(r"add `(--config-dir .*?)` to the commands above", README)
    assert said is not None
    own = shlex.split(said[1])
    control, *_ = (words for words in commands("On the command line") if "control" in str(words))
    assert "`outputs-mine/runs/run`" in README
    compare = ["compare", "report.runs=[outputs-mine/runs/run]"]
    found = [["trace"], control, ["run", "intervention=remove"], compare]
    said = [mda(own_folder, words[0], *own, *words[1:], *small, *CHEAP) for words in found]
    assert (Path(said[-1].splitlines()[-1]) / "report.html").is_file()
