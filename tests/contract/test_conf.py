"""Every file of conf/ is composed and becomes the objects of the schema."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from mda import schema
from mda.config import compose, conf_dir
from mda.data.documents import REAL_LABELS
from mda.data.embedded import shares
from mda.model.build import scratch
from mda.schema import Config, ConfigError, ScratchConfig

CONF = conf_dir()
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
GROUPS = sorted({path.parts[0] for path in FILES if len(path.parts) > 1} - {"hydra", "experiment"})

ALSO = {
    "base/published.yaml": ["base.repo=a/b", "base.steps=[0,6000]"],
    "model/published.yaml": [
        "base=published", "base.repo=a/b", "base.steps=[0,6000]", "model.peak_lr=1e-3",
    ],
    "data/tokens.yaml": ["data.path=rows.npy"],
    "data/hf.yaml": ["data.dataset=texts.jsonl", "data.tokenizer=tokenizer.json"],
    "experiment/pythia.yaml": ["data.path=rows.npy"],
    "estimator/file.yaml": ["estimator.path=README.md"],
    "unit/direction.yaml": ["unit.file=README.md", "unit.layer=1"],
    "training/pythia.yaml": ["data=tokens", "data.path=rows.npy"],
}  # fmt: skip
"""Overrides that a file cannot do without: what it leaves to the user, or to other groups."""
PRESETS = {"model": "scratch", "unit": "head", "data": "embedded"}
"""Groups in which several files are of one class: its option, for the files that name none."""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_becomes_a_checked_configuration(path, tmp_path):
    if len(path.parts) == 1:
        assert path.name == "config.yaml", "a second primary file: say here what it is for"
        choice = []
    else:
        deep = 2 if path.parts[0] == "hydra" else 1  # hydra/callbacks=jobs; experiment=paper/14m
        parts = path.with_suffix("").parts
        choice = [f"{'/'.join(parts[:deep])}={'/'.join(parts[deep:])}"]
    if path.as_posix() == "model/checkpoint.yaml":
        scratch(ScratchConfig(), 0).save_pretrained(tmp_path)
        choice += [f"model.source={tmp_path}"]
    config = compose(choice + ALSO.get(path.as_posix(), []))
    group = path.parts[0]
    if group in GROUPS:
        chosen = getattr(config, group)
        options = schema.OPTIONS.get(group, {})
        default = options.get(PRESETS.get(group, ""), get_type_hints(Config)[group])
        expected = options.get(path.stem, default)
        assert type(chosen) is expected
        kind = PRESETS["data"] if path.as_posix() == "data/natural.yaml" else path.stem
        assert getattr(chosen, "name", kind) == kind or group == "training"


def test_every_group_is_a_folder_and_every_folder_a_group():
    hints = get_type_hints(Config)
    assert sorted(name for name, kind in hints.items() if is_dataclass(kind)) == GROUPS


@pytest.mark.parametrize("group", sorted(schema.OPTIONS))
def test_every_option_of_another_kind_has_its_file(group):
    files = {path.stem for path in (CONF / group).iterdir()}
    named = set(schema.OPTIONS[group]) - {PRESETS.get(group)}
    assert named <= files and (group in PRESETS or named == files)


@pytest.mark.parametrize("choice", ["", "data=synthetic", "estimator=tracin", "estimator=random",
                                    "intervention=augment", "intervention=control", "logger=csv",
                                    "unit=induction_head"])  # fmt: skip
def test_defaults_in_python_and_in_yaml_are_the_same(choice):
    config = compose([choice] if choice else [])
    config.study = Config().study  # studies are data: they stand in conf/ alone
    config.name = Config().name
    different = {
        f"{group.name}.{item.name}": (getattr(here, item.name), getattr(type(here)(), item.name))
        for group in fields(Config)
        if is_dataclass(here := getattr(config, group.name))
        for item in fields(here)
        if getattr(here, item.name) != getattr(type(here)(), item.name)
    }
    assert different == {}, "(in conf/, in mda/schema/)"


def test_the_natural_corpus_is_the_embedded_one_without_generated_documents():
    mixed, natural = compose([]).data, compose(["data=natural"]).data
    assert natural == replace(mixed, generated_share=0)
    assert all(label in REAL_LABELS for label in shares(natural.generated_share))
    assert compose(["experiment=natural"]).data == natural


def test_a_file_with_a_value_left_to_the_user_is_refused_without_it():
    with pytest.raises(ConfigError, match=r"data\.path is not given; expected the path of"):
        compose(["data=tokens"])
    base = ["base=published", "base.repo=EleutherAI/pythia-160m", "base.steps=[0,512]"]
    pile = ["model=published", "training=pythia", "data=pile"]
    with pytest.raises(ConfigError, match=r"model\.peak_lr is not given; .* 160m 6e-4, 410m 3e-4"):
        compose([*base, *pile])
    assert compose([*base, *pile, "model.peak_lr=6e-4"]).training.peak_lr == 6e-4
    with pytest.raises(
        ConfigError, match=r"model\.peak_lr=high is invalid; expected a number above 0"
    ):
        compose(["model.peak_lr=high"])


@pytest.mark.parametrize(
    ("size", "layers", "width", "heads", "lr", "rotary"),
    [
        ("14m", 6, 128, 4, 1e-3, 8),
        ("31m", 6, 256, 8, 1e-3, 8),
        ("70m", 6, 512, 8, 1e-3, 16),
        ("160m", 12, 768, 12, 6e-4, 16),
        ("410m", 24, 1024, 16, 3e-4, 16),
        ("1b", 16, 2048, 8, 2.5e-4, 64),
    ],
)
def test_pythia_presets_are_pythia_s(size, layers, width, heads, lr, rotary):
    config = compose(["experiment=pythia", "data.path=rows.npy", f"model=pythia-{size}"])
    model = config.model
    assert (model.n_layers, model.d_model, model.n_heads) == (layers, width, heads)
    assert (model.vocab_size, model.max_seq_len, model.d_ff) == (50_304, 2048, 4 * width)
    assert config.training.peak_lr == lr
    assert model.d_model // model.n_heads * model.rotary_pct == rotary


def test_conf_of_the_checkout_is_the_one_that_is_read():
    assert Path(__file__).parents[2] / "conf" == CONF


@pytest.mark.parametrize("path", sorted((CONF / "study").iterdir()), ids=lambda path: path.stem)
def test_every_study_has_the_hash_of_its_content(path):
    study = compose([f"study={path.stem}"]).study
    assert study.hash == study.content_hash() or (path.stem, study.hash) == ("none", None)
    assert len(study.claims) == len({claim.text for claim in study.claims.values()})
    with pytest.raises(ConfigError, match=r"study\.hash="):
        compose([f"study={path.stem}", "study.alpha=0.1", "study.hash=0123456789abcdef"])


def test_the_fresh_study_asks_whether_influence_beats_the_trivial_baseline():
    study = compose(["study=fresh_seeds"]).study
    assert study.seeds == list(range(8, 16)) and not study.exploratory
    against = {c.arm for c in study.claims.values() if c.reference == "repetition"}
    assert against == {"remove_ekfac", "augment_ekfac", "remove_tracin", "augment_tracin"}
    unrun = {c.arm for c in study.claims.values()} - set(study.arms)
    assert unrun == set()
