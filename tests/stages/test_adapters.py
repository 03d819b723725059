"""The source of the family's adapter is in the key of all that reads a model, and of nothing else.

Adapters are found by name, so that no import leads to them; of a published run no other part of a
key holds them.
"""

from mda import pipeline, store
from mda.model.build import saved_config, scratch
from mda.stages.truth import Asked, Bench

READS_NO_MODEL = {"corpus", "weights", "base"}
READS_ONE = {
    "curve", "sae", "ranking", "emergence", "curvature", "scores", "tokens", "state", "arm",
    "capabilities",
}  # fmt: skip


def test_all_that_reads_a_model_of_a_published_run_has_its_adapter_in_its_key(context_of, tmp_path):
    for step in (0, 20, 40, 60):
        folder, model = tmp_path / f"step{step}", scratch(context_of().config.model, step)
        store.write_json(folder / "config.json", saved_config(model))
        weights = dict(model.named_parameters())
        store.write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})
    context = context_of(
        "base=published", f"base.folder={tmp_path}", "base.steps=[0,20,40,60]",
        f"output_dir={tmp_path / 'out'}", "intervention.window=[20,40]",
        "intervention.mode=mask_tokens", "unit=sae_feature",
    )  # fmt: skip
    arm = pipeline.arm(context)
    config = context.config
    feature = Asked(config.unit, config.sae, config.intervention)
    bench = Bench.of({"feature": feature}, arm.base, arm.unit.window, context.at)
    bench.perturbed_start(0.02, 0, 1)
    found = {one.kind: one.manifest for one in context.store.artifacts()}
    code = {kind: manifest.get("computed", {}).get("code", {}) for kind, manifest in found.items()}
    with_it = {kind for kind, modules in code.items() if "mda.model.gpt_neox" in modules}
    assert with_it == READS_ONE
    assert code.keys() - with_it == READS_NO_MODEL
