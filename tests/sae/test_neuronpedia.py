"""Which features have a page on Neuronpedia: those whose SAE says where."""

import json

import pytest

from mda.sae.neuronpedia import feature_page
from mda.schema import HeadConfig, SaeFeatureConfig

PLACE = "gpt2-small/8-res-jb"
PAGE = "https://www.neuronpedia.org/gpt2-small/8-res-jb/120"


@pytest.mark.parametrize(
    "cfg, unit, page",
    [
        ({"neuronpedia_id": PLACE}, "L8F120", PAGE),
        ({"metadata": {"neuronpedia_id": PLACE}}, "L8F120", PAGE),
        ({"neuronpedia_id": None, "metadata": {"neuronpedia_id": PLACE}}, "L8F120", PAGE),
        ({"metadata": {"neuronpedia_id": None}}, "L8F120", None),
        ({}, "L8F120", None),
        ({"neuronpedia_id": PLACE}, "mechanism", None),
        ({"neuronpedia_id": '../a" onclick="b'}, "L8F120", None),
        ({"neuronpedia_id": 8}, "L8F120", None),
    ],
)
def test_a_feature_has_the_page_that_its_autoencoder_names(tmp_path, cfg, unit, page):
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    assert feature_page(SaeFeatureConfig(source=str(tmp_path)), unit) == page


def test_other_units_and_autoencoders_trained_here_have_none(tmp_path):
    assert feature_page(HeadConfig(), "L8H1") is None
    assert feature_page(SaeFeatureConfig(), "L8F120") is None
    assert feature_page(SaeFeatureConfig(source=str(tmp_path)), "L8F120") is None
