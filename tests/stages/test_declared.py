"""A stage can read what its fields hold: they are compared with what is declared of it."""

from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
from transformers import PreTrainedModel

from mda.programs import run, synthesize, train
from mda.schema import Config
from mda.schema.setting import Group
from mda.stages.context import Context
from mda.stages.curvature import CurvatureStage
from mda.stages.preview import STAGES
from mda.stages.published import PublishedStage
from mda.stages.truth import PerturbedStage

ALL = [*STAGES.values(), CurvatureStage, PublishedStage, PerturbedStage]


def reached(cls: type) -> set[type]:
    """The types of a dataclass' fields, and of theirs; settings are not opened."""
    found, waiting = set(), [cls]
    while waiting:
        one = waiting.pop()
        waiting += get_args(one)
        if not isinstance(one, type) or one in found:
            continue
        found.add(one)
        if is_dataclass(one) and not issubclass(one, Group):
            hints = get_type_hints(one, localns={"PreTrainedModel": PreTrainedModel})
            waiting += [hints[item.name] for item in fields(one)]
    return found


def groups(cls: type) -> set[str]:
    """The groups of settings that can be read from a stage's fields."""
    return {one.key for one in reached(cls) if issubclass(one, Group)}


@pytest.mark.parametrize("stage", ALL, ids=lambda stage: stage.__name__)
def test_a_stage_reaches_the_settings_that_are_declared_and_no_others(stage):
    assert groups(stage) <= set(stage.declared.groups())
    kin = [one for one in ALL if one.declared is stage.declared]
    assert set(stage.declared.reads) <= set().union(*map(groups, kin))


@pytest.mark.parametrize("stage", ALL, ids=lambda stage: stage.__name__)
def test_no_stage_reaches_the_whole_configuration(stage):
    assert reached(stage).isdisjoint({Config, Context})


def test_a_program_needs_the_groups_of_its_last_stage_and_of_those_before():
    own = {"plan", "report", "logger"}
    unit = {"sae", "unit", "estimator", "intervention", "capabilities"}
    assert set(train.NEEDS) - own == {"base", "data", "model", "training", "emergence"}
    assert set(run.NEEDS) == {*train.NEEDS, *unit, "study"}
    assert synthesize.NEEDS == ("data", "synthesis")
