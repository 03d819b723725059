"""What a user can get wrong: each is one sentence and exit code 2, and nothing is written."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from mda.config import explain, main

PROGRAM = Path(__file__).with_name("program.py")
NEEDS = (
    "base", "data", "model", "training", "emergence", "unit", "estimator", "intervention",
    "capabilities", "logger",
)  # fmt: skip

# The sentences below name these values; the defaults may change.
GIVEN = [
    *("data.seq_len=128", "data.vocab_size=512", "data.held_out=512"),
    *("model.n_layers=4", "model.n_heads=4", "model.d_model=64", "model.rotary_pct=1.0"),
    *("training.batch_size=8", "training.total_steps=4000", "training.warmup_steps=100"),
    *("emergence.every=100", "emergence.length=64", "emergence.held_out=256"),
    *("unit.probe.length=64", "unit.probe.repeats=2"),
]

PUBLISHED = "base=published base.repo=a/b base.steps=[0,1000,4000]"
PILE = "data=pile data.seq_len=64 data.vocab_size=512"
BAD_CONFIG = {
    "typo in a key": (
        "model.n_head=8",
        "unknown setting model.n_head (did you mean model.n_heads?); expected in model: d_ff, ",
    ),
    "typo in a nested key": (
        "unit.probe.lenght=8",
        "unknown setting unit.probe.lenght (did you mean unit.probe.length?); expected in",
    ),
    "key without its group": (
        "batch_size=4",
        "unknown setting batch_size (did you mean training.batch_size?); expected at the top: ",
    ),
    "typo in a group": ("modle=nano", "unknown setting modle (did you mean model?); expected"),
    "typo in an option": (
        "model=pythia-14mm",
        "model=pythia-14mm does not exist (did you mean pythia-14m?); expected checkpoint, nano, ",
    ),
    "typo in an experiment": ("experiment=smoek", "experiment=smoek does not exist (did you mean"),
    "text for a number": (
        "model.n_heads=eight",
        "model.n_heads=eight is invalid; expected an integer at least 1",
    ),
    "fraction for a count": (
        "training.total_steps=1.5",
        "training.total_steps=1.5 is invalid; expected an integer from 1 to 10000000",
    ),
    "text for a switch": ("data.shuffle=maybe", "data.shuffle=maybe is invalid; expected true or"),
    "one value for a list": ("unit.blocks=qk", "unit.blocks=qk is invalid; expected a list of qk"),
    "null where a value is needed": (
        "model.n_layers=null",
        "model.n_layers=null is invalid; expected an integer at least 1",
    ),
    "unknown choice": (
        "intervention.mode=maks",
        "intervention.mode=maks is invalid; expected one of mask, drop, replace, mask_tokens, sp",
    ),
    "tokens of an estimator that scores none": (
        "intervention.mode=mask_tokens estimator=loss",
        "estimator=loss is invalid; expected bm25, ekfac, exact, ngram, random, repetition, t",
    ),
    "layer of an embedding": (
        "estimator=embedding estimator.layer=4",
        "estimator.layer=4 is invalid; expected layers 0 to 3, or null",
    ),
    "prompts that are not there": (
        "emergence.prompts=none.jsonl",
        "emergence.prompts=none.jsonl: No such file or directory; expected a file of JSON lines",
    ),
    "Adam's moments before the first update": (
        "estimator.checkpoint=0 estimator.adam_damping=true",
        "estimator.checkpoint=0 is invalid; expected a step from 1 with estimator.adam_damping=tr",
    ),
    "Adam's moments before the first update, of one of several": (
        "estimator=tracin estimator.checkpoints=[0,500] estimator.adam_preconditioning=true",
        "estimator.checkpoints=[0,500] is invalid; expected steps from 1 with estimator.adam_prec",
    ),
    "losses of an estimator that computes none": (
        "intervention.match=loss estimator=unrolled",
        "estimator=unrolled is invalid; expected ekfac, exact, gradient_norm, loss, tracin with i",
    ),
    "tokens by a list of samples": (
        "intervention.mode=mask_tokens intervention.select=band intervention.band=[0,0.1]",
        "intervention.select=band is invalid; expected top, bottom, random with mode=mask_tokens",
    ),
    "tokens matched by label": (
        "intervention.mode=mask_tokens intervention.match=label",
        "intervention.match=label is invalid; expected none, sample",
    ),
    "samples matched by sample": (
        "intervention.match=sample",
        "intervention.match=sample is invalid; expected none, label, loss, repetition; sample whe",
    ),
    "samples within samples": (
        "intervention.within=0.5",
        "intervention.within=0.5 is invalid; expected null, or intervention.mode=mask_tokens",
    ),
    "more tokens than the window has": (
        "intervention.mode=mask_tokens intervention.fraction=null intervention.count=99999 "
        "intervention.window=[1000,1050]",
        "intervention.count=99999 is invalid; expected at most the window's 51200 tokens",
    ),
    "spans too long for the context": (
        "capabilities.span=40",
        "capabilities.span=40 is invalid; expected so few that an example and a question fit into",
    ),
    "unknown choice in a list": (
        "unit.blocks=[qk,w]",
        "unit.blocks=[qk,w] is invalid; expected a list of qk, v, o",
    ),
    "out of bounds": (
        "training.peak_lr=-0.1",
        "training.peak_lr=-0.1 is invalid; expected a number above 0",
    ),
    "not a number": ("training.peak_lr=nan", "training.peak_lr=nan is invalid; expected a number"),
    "fraction above 1": (
        "intervention.fraction=1.5",
        "intervention.fraction=1.5 is invalid; expected a number above 0 and at most 1, or null",
    ),
    "setting of another option": (
        "estimator=random estimator.damping=0.1",
        "estimator.damping is a setting of estimator=ekfac or estimator=exact; choose that option",
    ),
    "value that must be given": ("data=tokens", "data.path is not given; expected the path of"),
    "several values without a sweep": (
        "seed=0,1",
        "seed=0,1 names several values; expected one value, a list as [a,b], or a sweep",
    ),
    "bad alternative of a sweep": (
        "-m estimator=ekfac,tracn",
        "estimator=tracn does not exist (did you mean tracin?); expected bm25, ekfac, embe",
    ),
    "no override": ("smoke", "smoke cannot be read; expected key=value, such as model.n_heads=4"),
    "equals sign in a path": (
        "data=tokens data.path=/a=b.npy",
        "data.path=/a=b.npy cannot be read; expected key=value, such as model.n_heads=4; texts "
        "with special characters need quotes: 'data.path=\"/a=b.npy\"'\n",
    ),
    "comma in a path": (
        "data=tokens data.path=/a,b.npy",
        "data.path=/a,b.npy names several values; expected one value, a list as [a,b], or a sweep "
        "over them with -m; texts with special characters need quotes: "
        "'data.path=\"/a,b.npy\"'\n",
    ),
    "special characters in a list": (
        "report.runs=[/a=b,/c]",
        "report.runs=[/a=b,/c] cannot be read; expected key=value, such as model.n_heads=4; texts "
        "with special characters need quotes: 'report.runs=[\"/a=b\",/c]'\n",
    ),
    "option with dashes": ("--batch-size=4", "unrecognized arguments: --batch-size=4; see --help"),
    "setting nobody reads": (
        "+model.dropout=0",
        "unknown setting model.dropout; expected in model: d_ff",
    ),
    "setting taken away": ("~model", "~model takes a setting away; expected another value"),
    "typo inside a named claim": (
        "study.claims.removal_delays.margn=0.1",
        "unknown setting study.claims.removal_delays.margn (did you mean study.claims.*.margin?)",
    ),
    "reference to nothing": (
        "model.vocab_size=${data.vocab}",
        "model.vocab_size refers to what does not exist: Interpolation key 'data.vocab' not found",
    ),
    "setting of Hydra's that is not there": (
        "hydra.run.dirr=x",
        "unknown setting of Hydra hydra.run.dirr; expected what --cfg hydra shows",
    ),
    "heads that do not divide the width": (
        "model.n_heads=3",
        "model.n_heads=3 is invalid; expected a divisor of model.d_model=64",
    ),
    "odd number of rotary dimensions": (
        "model.rotary_pct=0.2",
        "model.rotary_pct=0.2 is invalid; expected a share of the 16 dimensions of a head that is",
    ),
    "vocabulary beyond the model's": (
        "model.vocab_size=256",
        "data.vocab_size=512 is invalid; expected at most model.vocab_size=256",
    ),
    "vocabulary below a byte-level tokenizer's": (
        "data.vocab_size=257",
        "data.vocab_size=257 is invalid; expected an integer from 258 to ",
    ),
    "as many sequences held out as there are": (
        "data.n_sequences=512",
        "data.held_out=512 is invalid; expected fewer than data.n_sequences=512",
    ),
    "all generated documents held out": (
        "data=synthetic data.n_sequences=500",
        "data.held_out=512 is invalid; expected fewer than data.n_sequences=500",
    ),
    "sequence beyond the context": (
        "model.max_seq_len=64 emergence.length=32 unit.probe.length=32",
        "data.seq_len=128 is invalid; expected at most model.max_seq_len=64",
    ),
    "too few sequences for the steps": (
        "data=synthetic data.n_sequences=1000",
        "data.n_sequences=1000 is invalid; expected at least 32512: 4000 steps x training.batch_",
    ),
    "window outside the run": (
        "intervention.window=[3000,5000]",
        "intervention.window=[3000,5000] is invalid; expected steps within [0,4000]",
    ),
    "first step of inserted rows before the window": (
        "intervention=augment intervention.mode=insert intervention.rows=x.npy "
        "intervention.window=[100,200] intervention.at_step=99",
        "intervention.at_step=99 is invalid; expected a step of the window, 100 to 199, or null\n",
    ),
    "first step of inserted rows at the run's end": (
        "intervention=augment intervention.mode=insert intervention.rows=x.npy "
        "intervention.window=auto intervention.at_step=4000",
        "intervention.at_step=4000 is invalid; expected a step of the run, 0 to 3999, or null\n",
    ),
    "window that ends before it starts": (
        "intervention.window=[2000,1000]",
        "intervention.window=[2000,1000] is invalid; expected auto, or steps [start,end] with 0",
    ),
    "more edits than samples": (
        "intervention.window=[0,10] intervention.count=81 intervention.fraction=null",
        "intervention.count=81 is invalid; expected at most the window's 80 samples",
    ),
    "count beside a fraction": (
        "intervention.count=80",
        "intervention.count=80 is invalid; expected either a count or intervention.fraction",
    ),
    "selection by ids without ids": (
        "intervention.select=ids",
        "intervention.ids=[] is invalid; expected a list of sample ids with intervention.select",
    ),
    "probe longer than the context": (
        "unit.probe.repeats=3",
        "unit.probe.length=64 is invalid; expected at most 42, model.max_seq_len / unit.probe.",
    ),
    "metric's probe longer than the context": (
        "emergence.length=65",
        "emergence.length=65 is invalid; expected at most 64, half of model.max_seq_len",
    ),
    "nothing measured": (
        "emergence.every=5000",
        "emergence.every=5000 is invalid; expected at most the run's 4000 steps",
    ),
    "position beyond the sequence": (
        "emergence.icl_late=[100,129]",
        "emergence.icl_late=[100,129] is invalid; expected positions below data.seq_len=128",
    ),
    "head the model does not have": (
        "unit.locate=L4H0",
        "unit.locate=L4H0 is invalid; expected L0H0 to L3H3",
    ),
    "head in another notation": (
        "unit.locate=3.1",
        "unit.locate=3.1 is invalid; expected auto, mechanism, or a unit's name such as L3H1",
    ),
    "checkpoint after the end": (
        "estimator.checkpoint=4001",
        "estimator.checkpoint=4001 is invalid; expected a step that has a checkpoint, such as 400",
    ),
    "step between two checkpoints": (
        "training.checkpoint_every=250 estimator.checkpoint=2600",
        "estimator.checkpoint=2600 is invalid; expected a step that has a checkpoint, such as 2500"
        " or 2750\n",
    ),
    "power of two without a checkpoint": (
        "training.checkpoint_every=0 training.checkpoint_log_spaced=false estimator.checkpoint=2",
        "estimator.checkpoint=2 is invalid; expected a step that has a checkpoint, such as 0 or 4",
    ),
    "step between two checkpoints, of one of several": (
        "training.checkpoint_every=250 estimator=tracin estimator.checkpoints=[512,2500,2701]",
        "estimator.checkpoints=[512,2500,2701] is invalid; expected steps that have a checkpoint, "
        "such as 2500 or 2750 instead of 2701\n",
    ),
    "step between two published checkpoints": (
        f"{PUBLISHED} estimator.checkpoint=512",
        "estimator.checkpoint=512 is invalid; expected a step that has a checkpoint, such as 0 or "
        "1000\n",
    ),
    "checkpoint by an unknown name": (
        "estimator.checkpoint=onst",
        "estimator.checkpoint=onst is invalid; expected onset, window_middle, window_end, or a",
    ),
    "warm-up longer than the run": (
        "training.warmup_steps=4000",
        "training.warmup_steps=4000 is invalid; expected fewer than training.total_steps=4000",
    ),
    "batch that the devices cannot share": (
        "training.devices=3",
        "training.devices=3 is invalid; expected a divisor of training.batch_size=8",
    ),
    "data without its file": (
        "data=hf data.tokenizer=t.json",
        "data.dataset is not given; expected a hub id, or a file, folder or pattern of .parquet",
    ),
    "texts without a tokenizer": (
        "data=hf data.dataset=x.jsonl",
        "data.tokenizer=null is invalid; expected a tokenizer for the texts, or data.tokens=<col",
    ),
    "rows of texts": (
        "data=hf data.dataset=x.jsonl data.tokenizer=t.json data.packing=rows",
        "data.packing=rows is invalid; expected across or within, or data.tokens=<column of rows",
    ),
    "documents of ids without an end": (
        "data=hf data.dataset=x.jsonl data.tokens=ids",
        "data.end_of_text=null is invalid; expected an id between documents of token ids",
    ),
    "first token of rows that are given": (
        "data=hf data.dataset=x.parquet data.tokens=ids data.packing=rows data.begin_of_text=0",
        "data.begin_of_text=0 is invalid; expected null with data.packing=rows, whose rows are gi",
    ),
    "typo in a packing": (
        "data=hf data.dataset=x.jsonl data.tokenizer=t.json data.packing=acros",
        "data.packing=acros is invalid; expected one of across, within, rows (did you mean acros",
    ),
    "type of tokens that there is not": (
        "data=tokens data.path=x.bin data.dtype=uint8",
        "data.dtype=uint8 is invalid; expected one of uint16, uint32, int32, int64, or null",
    ),
    "raw tokens of a vocabulary beyond their type": (
        "data=tokens data.path=x.bin data.vocab_size=128256",
        "data.dtype=null is invalid; expected uint32, int32 or int64: uint16 cannot hold data.voc",
    ),
    "rows to insert of a vocabulary beyond their type": (
        "data=tokens data.path=x.npy data.vocab_size=128256 model.vocab_size=128256 "
        "intervention=augment intervention.mode=insert intervention.rows=x.bin",
        "intervention.rows=x.bin is invalid; expected a .npy file: raw uint16 cannot hold data.vo",
    ),
    "label with a terminal escape": (
        "data=tokens data.path=x.bin data.label_names=['a\x1bc']",
        "data.label_names has 'a\\x1bc'; expected names of printable characters",
    ),
    "order seed that nothing reads": (
        "data.shuffle=false data.order_seed=1",
        "data.order_seed=1 is invalid; expected null with data.shuffle=false, which keeps the or",
    ),
    "typo in a setting of the Pile": (
        "data=pile data.sorce=x",
        "unknown setting data.sorce (did you mean data.source?); expected in data: ",
    ),
    "setting of another source": (
        "data=pile data.dataset=x",
        "data.dataset is a setting of data=hf; choose that option or leave the key out",
    ),
    "too few rows of the Pile for the steps": (
        "data=pile data.seq_len=64 data.vocab_size=512 data.n_sequences=1000",
        "data.n_sequences=1000 is invalid; expected at least 32512: 4000 steps x training.batch_",
    ),
    "too few rows for the window of a published run": (
        f"{PUBLISHED} data=synthetic data.n_sequences=1000 intervention.window=[0,1000]",
        "data.n_sequences=1000 is invalid; expected at least 8512: 1000 steps x training.batch_"
        "size=8 + data.held_out=512, to the end of intervention.window=[0,1000]\n",
    ),
    "data that Pythia never saw": (
        "base=published base.repo=EleutherAI/pythia-70m base.steps=[0,512]",
        "data=embedded is invalid; expected pile, or hf or tokens with the rows that Pythia saw; ",
    ),
    "updates in other arithmetic than unrolled repeats": (
        "estimator=unrolled training.precision=bf16-mixed",
        "training.precision=bf16-mixed is invalid; expected 32-true with estimator=unrolled, wh",
    ),
    "the standard Pile for a Pythia of the deduplicated one": (
        "base=published base.repo=EleutherAI/pythia-70m-deduped base.steps=[0,512] data=pile",
        "data=pile is invalid; expected with base.repo=EleutherAI/pythia-70m-deduped the rows th",
    ),
    "Pythia's order for one of another seed": (
        "base=published base.repo=EleutherAI/pythia-160m-seed3 base.steps=[0,512] data=pile",
        "data=pile is invalid; expected with base.repo=EleutherAI/pythia-160m-seed3 the rows tha",
    ),
    "the Pile in other batches than Pythia's": (
        f"{PUBLISHED} {PILE}",
        "training.batch_size=8 is invalid; expected 1024, as Pythia was trained; or base.other_",
    ),
    "the Pile with another learning rate than Pythia's": (
        f"{PUBLISHED} {PILE} training.batch_size=1024",
        "training.schedule=cosine is invalid; expected neox, as Pythia was trained; or base.oth",
    ),
    "the Pile in another order than Pythia's": (
        f"{PUBLISHED} {PILE} training.batch_size=1024 training.schedule=neox data.shuffle=true",
        "data.shuffle=true is invalid; expected false, as Pythia was trained; or base.other_trai",
    ),
    "the Pile otherwise than Pythia, as it was meant, in too few rows": (
        f"{PUBLISHED} {PILE} base.other_training=true data.n_sequences=1000 "
        "intervention.window=[0,1000]",
        "data.n_sequences=1000 is invalid; expected at least 8512: 1000 steps x training.batch_",
    ),
    "name that is a path": ("name=../x", "name=../x is invalid; expected letters, digits and any"),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_a_bad_configuration_is_one_sentence(case, tmp_path, monkeypatch, capsys):
    overrides, sentence = BAD_CONFIG[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program.py", *GIVEN, *overrides.split()])
    with pytest.raises(SystemExit) as stop:
        main(lambda config, folder: pytest.fail("it ran"), NEEDS)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["typo in a key", "bad alternative of a sweep", "typo in a group"])
def test_so_it_is_in_a_process_of_its_own(case, tmp_path):
    overrides, sentence = BAD_CONFIG[case]
    command = [sys.executable, str(PROGRAM), *GIVEN, *overrides.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == "heavy:\n", "nothing heavy is loaded to say so"
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_whose_plugin_is_missing_is_explained():
    error = MissingConfigException("", "hydra/launcher/joblib", ["basic"])
    assert str(explain(error)) == (
        "hydra/launcher needs the plugin for joblib; "
        "pip install 'mechanistic-data-attribution[launchers]' brings it"
    )
