"""Rules between the groups; those within a group are checked by the group itself."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

from mda.schema.base import PublishedConfig
from mda.schema.data import EmbeddedConfig, PileConfig, SyntheticConfig, untyped
from mda.schema.estimator import WithCurvature
from mda.schema.metrics import HEAD_METRICS
from mda.schema.model import SIZES, PublishedModelConfig
from mda.schema.prompts import read_prompts
from mda.schema.root import OPTIONS, Config
from mda.schema.setting import refuse, show
from mda.schema.unit import DirectionConfig, HeadConfig

VOCABULARY = 8192  # largest whose square EK-FAC can hold: half a gigabyte in float64


def last_step(c: Config) -> int:
    """Returns the step at which the base run ends."""
    return checkpoints(c)[-1]


def checkpoints(c: Config) -> list[int]:
    """Returns the steps at which the base run has a checkpoint."""
    return c.base.steps if isinstance(c.base, PublishedConfig) else c.training.checkpoints


def _data_fits_model(c: Config) -> None:
    sizes: Any = c.model  # of a model from scratch its settings, else its checkpoint's
    if c.data.vocab_size > sizes.vocab_size:
        limit = f"at most model.vocab_size={sizes.vocab_size}"
        raise refuse("data.vocab_size", c.data.vocab_size, limit)
    if c.data.seq_len > sizes.max_seq_len:
        limit = f"at most model.max_seq_len={sizes.max_seq_len}"
        raise refuse("data.seq_len", c.data.seq_len, limit)


def _data_lasts(c: Config) -> None:
    if not isinstance(c.base, PublishedConfig):  # of a published run the window alone is read
        _lasts_to(c, last_step(c))


def _window_lasts(c: Config) -> None:
    if isinstance(c.base, PublishedConfig) and c.intervention.steps:
        _lasts_to(
            c,
            c.intervention.steps[1],
            f", to the end of intervention.window={show(c.intervention.window)}",
        )


def _lasts_to(c: Config, step: int, why: str = "") -> None:
    total = getattr(c.data, "n_sequences", None)
    needed = step * c.training.batch_size + c.data.held_out
    if total is not None and total < needed:
        raise refuse(
            "data.n_sequences",
            total,
            f"at least {needed}: {step} steps x training.batch_size="
            f"{c.training.batch_size} + data.held_out={c.data.held_out}{why}",
        )


def _label_is_told(c: Config) -> None:
    label, by = getattr(c.unit, "label", None), c.data.labelled_by
    if label is None or by is None:
        return
    if getattr(c.data, by) is None:
        accepted = f"null, or data.{by} that gives data={c.data.name} classes of text"
        raise refuse("unit.label", label, accepted)
    names = getattr(c.data, "label_names", [])
    if names and label not in names:
        raise refuse("unit.label", label, f"one of data.label_names={show(names)}")


def _icl_positions_exist(c: Config) -> None:
    for name in ("icl_late", "icl_early"):
        band = getattr(c.emergence, name)
        if band is not None and band[1] > c.data.seq_len:
            limit = f"positions below data.seq_len={c.data.seq_len}"
            raise refuse(f"emergence.{name}", band, limit)


def _metric_probe_fits_context(c: Config) -> None:
    sizes: Any = c.model
    if 2 * c.emergence.length > sizes.max_seq_len:
        limit = f"at most {sizes.max_seq_len // 2}, half of model.max_seq_len"
        raise refuse("emergence.length", c.emergence.length, limit)


def _measured_in_time(c: Config) -> None:
    if c.emergence.every > last_step(c):
        limit = f"at most the run's {last_step(c)} steps"
        raise refuse("emergence.every", c.emergence.every, limit)


def _window_is_seen_in_time(c: Config) -> None:
    """Checks that the curve of a base run that ends with the window shows where that is."""
    trained = not isinstance(c.base, PublishedConfig)
    if not trained or c.training.ends != "window" or c.intervention.steps:
        return
    if not isinstance(c.unit, HeadConfig):
        limit = (
            f"schedule with unit={c.unit.name}, whose metric is not on the base run's curve; or "
            "intervention.window=[start,end]"
        )
        raise refuse("training.ends", c.training.ends, limit)


def _sae_layer_exists(c: Config) -> None:
    sizes: Any = c.model
    if c.sae.layer is not None and c.sae.layer >= sizes.n_layers:
        raise refuse("sae.layer", c.sae.layer, f"layers 0 to {sizes.n_layers - 1}, or null")


def _sae_checkpoint_exists(c: Config) -> None:
    step = c.sae.checkpoint
    if step is not None and (near := _instead_of(c, step)):
        limit = f"a step that has a checkpoint, such as {near}, or null"
        raise refuse("sae.checkpoint", step, limit)


def _metric_has_gradients(c: Config) -> None:
    wanted: Any = c.estimator
    if getattr(wanted, "target", "") != "metric" or wanted.requires.trajectory:
        return  # through training the found unit's metric is differentiated, in all parameters
    if not isinstance(c.unit, HeadConfig):
        return
    if "qk" not in c.unit.blocks:
        raise refuse("unit.blocks", c.unit.blocks, "qk among them with estimator.target=metric")
    if c.unit.locate == "mechanism" and c.unit.probe.target not in HEAD_METRICS:
        limit = (
            f"measurement with unit.locate=mechanism and unit.probe.target={c.unit.probe.target}"
        )
        raise refuse("estimator.target", wanted.target, limit)


def _unit_exists(c: Config) -> None:
    sizes: Any = c.model  # of a model from scratch its settings, else its checkpoint's
    layers, heads = sizes.n_layers, sizes.n_heads
    if c.unit.named:
        layer, *rest = (int(part) for part in c.unit.named if part and part.isdigit())
        letter, width = {"head": ("H", heads), "mlp_neuron": ("N", sizes.d_ff)}.get(
            "head" if isinstance(c.unit, HeadConfig) else c.unit.name, ("", 0)
        )
        if layer >= layers or (width and rest[0] >= width):
            first, last = (f"{letter}0", f"{letter}{width - 1}") if width else ("", "")
            raise refuse("unit.locate", c.unit.locate, f"L0{first} to L{layers - 1}{last}")
    if isinstance(c.unit, DirectionConfig) and c.unit.layer >= layers:
        raise refuse("unit.layer", c.unit.layer, f"layers 0 to {layers - 1}")
    searched = getattr(c.unit, "layers", None) or []
    if any(layer >= layers for layer in searched):
        raise refuse("unit.layers", searched, f"layers 0 to {layers - 1}")
    if c.unit.locate == "mechanism" and getattr(c.unit, "k", 0) > layers * heads:
        raise refuse(
            "unit.k", getattr(c.unit, "k", 0), f"at most the model's {layers * heads} heads"
        )


def _scope_fits(c: Config) -> None:
    """EK-FAC of the embeddings has factors as large as the vocabulary squared."""
    if c.estimator.requires.scope != "all" or not isinstance(c.estimator, WithCurvature):
        return
    if (size := getattr(c.model, "vocab_size", 0)) > VOCABULARY:
        accepted = f"unit, or upstream; all with model.vocab_size of at most {VOCABULARY}"
        raise refuse("estimator.scope", "all", f"{accepted}, here {size}; or estimator=tracin")


def _unit_probe_fits_context(c: Config) -> None:
    probe, context = getattr(c.unit, "probe", None), c.model.max_seq_len  # type: ignore[attr-defined]
    if probe is not None and probe.length * probe.repeats > context:
        limit = f"at most {context // probe.repeats}, model.max_seq_len / unit.probe.repeats"
        raise refuse("unit.probe.length", probe.length, limit)


def _probed_prompts_fit(c: Config) -> None:
    probe = getattr(c.unit, "probe", None)
    if probe is not None:
        _prompts_fit(c, probe.file, "unit.probe.file")


def _measured_prompts_fit(c: Config) -> None:
    _prompts_fit(c, c.emergence.prompts, "emergence.prompts")


def _prompts_fit(c: Config, file: str | None, key: str) -> None:
    """Checks token ids; a text has at least one token, and more is known with its tokenizer."""
    for one in read_prompts(file, key) if file else ():
        for tokens, _ in one.tokens(lambda _: [0]):
            one.check(tokens, c.data.vocab_size, c.data.seq_len + 1)


def _scored_layer_exists(c: Config) -> None:
    sizes: Any = c.model
    layer = getattr(c.estimator, "layer", None)
    if layer is not None and layer >= sizes.n_layers:
        raise refuse("estimator.layer", layer, f"layers 0 to {sizes.n_layers - 1}, or null")


def _scored_steps_exist(c: Config) -> None:
    step = getattr(c.estimator, "checkpoint", None)
    if isinstance(step, int) and (near := _instead_of(c, step)):
        limit = f"a step that has a checkpoint, such as {near}"
        raise refuse("estimator.checkpoint", step, limit)
    steps = getattr(c.estimator, "checkpoints", None) or []
    for step in steps:
        if near := _instead_of(c, step):
            limit = f"steps that have a checkpoint, such as {near} instead of {step}"
            raise refuse("estimator.checkpoints", steps, limit)


def _instead_of(c: Config, step: int) -> str:
    """Returns the nearest steps with a checkpoint; none where the step itself has one."""
    kept = checkpoints(c)
    at = bisect(kept, step)
    return "" if step in kept else " or ".join(map(str, kept[max(at - 1, 0) : at + 1]))


def _window_in_run(c: Config) -> None:
    last = last_step(c)
    if c.intervention.steps and c.intervention.steps[1] > last:
        raise refuse("intervention.window", c.intervention.window, f"steps within [0,{last}]")
    if c.intervention.until is not None and c.intervention.until > last:
        raise refuse("intervention.until", c.intervention.until, f"at most the run's {last} steps")
    start, end = c.intervention.steps or (0, last)
    step = getattr(c.intervention, "at_step", None)
    if step is not None and not start <= step < end:
        what = "window" if c.intervention.steps else "run"
        limit = f"a step of the {what}, {start} to {end - 1}, or null"
        raise refuse("intervention.at_step", step, limit)


def _enough_to_edit(c: Config) -> None:
    count = getattr(c.intervention, "count", None)
    if c.intervention.chooses and c.intervention.steps and count is not None:
        start, end = c.intervention.steps
        samples = (end - start) * c.training.batch_size
        tokens = (samples * c.data.seq_len, "tokens")
        there, what = tokens if c.intervention.by_token else (samples, "samples")
        if count > there:
            limit = f"at most the window's {there} {what}"
            raise refuse("intervention.count", count, limit)


def _tasks_fit_context(c: Config) -> None:
    if c.capabilities.shortest > c.data.seq_len:
        name = "span" if 2 * c.capabilities.span > c.capabilities.snippet else "snippet"
        limit = f"so few that an example and a question fit into data.seq_len={c.data.seq_len}"
        raise refuse(f"capabilities.{name}", getattr(c.capabilities, name), limit)


def _scoped_on_one_device(c: Config) -> None:
    if getattr(c.intervention, "scope", "all") == "all":
        return
    scope = f"with intervention.scope={c.intervention.scope}"  # type: ignore[attr-defined]
    if c.training.devices > 1:
        raise refuse("training.devices", c.training.devices, f"1 {scope}")
    if c.training.precision == "16-mixed":
        raise refuse("training.precision", "16-mixed", f"32-true, bf16-mixed {scope}")


def _tokens_are_scored(c: Config) -> None:
    if c.intervention.scores_tokens:
        _able(c, "tokens", "intervention.mode=mask_tokens")


def _losses_are_known(c: Config) -> None:
    if c.intervention.chooses and "loss" in getattr(c.intervention, "matched_by", ()):
        _able(c, "losses", f"intervention.match={c.intervention.match}")  # type: ignore[attr-defined]


def _able(c: Config, what: str, needed_by: str) -> None:
    if what not in c.estimator.gives:
        options = OPTIONS["estimator"].items()
        able = sorted(name for name, cls in options if what in getattr(cls, "gives", ()))
        raise refuse("estimator", c.estimator.name, f"{', '.join(able)} with {needed_by}")


def _model_is_known(c: Config) -> None:
    if isinstance(c.model, PublishedModelConfig) and not isinstance(c.base, PublishedConfig):
        raise refuse("model", c.model.name, "a model with sizes or weights, or base=published")


def _published_within_schedule(c: Config) -> None:
    if isinstance(c.base, PublishedConfig) and c.base.steps[-1] > c.training.total_steps:
        total = f"training.total_steps={c.training.total_steps}"
        raise refuse("base.steps", c.base.steps, f"steps of the learning-rate schedule, {total}")


def _trained_as_pythia(c: Config) -> None:
    if not isinstance(c.base, PublishedConfig) or c.base.other_training:
        return
    if c.base.is_pythia and isinstance(c.data, EmbeddedConfig | SyntheticConfig):
        accepted = (
            "pile, or hf or tokens with the rows that Pythia saw; or base.other_training=true"
        )
        raise refuse("data", c.data.name, accepted)
    if isinstance(c.data, PileConfig):
        if c.base.other_order and c.data.is_standard:
            accepted = "the rows that this model saw, in their order; or base.other_training=true"
            raise refuse("data", c.data.name, f"with base.repo={c.base.repo} {accepted}")
        for key, given, expected in (
            ("training.batch_size", c.training.batch_size, 1024),
            ("training.schedule", c.training.schedule, "neox"),
            ("data.shuffle", c.data.shuffle, False),
        ):
            if given != expected:
                accepted = f"{show(expected)}, as Pythia was trained; or base.other_training=true"
                raise refuse(key, given, accepted)


def _state_is_published(c: Config) -> None:
    required = c.estimator.requires
    if not isinstance(c.base, PublishedConfig) or not (required.moments or required.trajectory):
        return
    setting = (f"estimator.{required.moments}", True) if required.moments else None
    key, value = setting or ("estimator", c.estimator.name)
    raise refuse(key, value, "what needs no optimizer state, which base=published lacks")


def _unrolled_in_float32(c: Config) -> None:
    if c.estimator.requires.trajectory and c.training.precision != "32-true":
        known = f"32-true with estimator={c.estimator.name}, which repeats the training"
        raise refuse("training.precision", c.training.precision, known)


def _window_starts_at_revision(c: Config) -> None:
    window = c.intervention.steps
    if isinstance(c.base, PublishedConfig) and window and window[0] not in c.base.steps:
        accepted = f"a start that is one of base.steps={show(c.base.steps)}"
        raise refuse("intervention.window", c.intervention.window, accepted)


def _inserted_rows_are_typed(c: Config) -> None:
    rows = c.intervention.inserted
    if rows is not None and c.data.vocab_size > 2**16 and untyped(rows):
        limit = f"a .npy file: raw uint16 cannot hold data.vocab_size={c.data.vocab_size}"
        raise refuse("intervention.rows", rows, limit)


RULES: tuple[tuple[tuple[str, ...], Callable[[Config], None]], ...] = (
    (("base", "model"), _model_is_known),
    (("base", "training"), _published_within_schedule),
    (("base", "data", "training"), _trained_as_pythia),
    (("base", "estimator"), _state_is_published),
    (("training", "estimator"), _unrolled_in_float32),
    (("base", "intervention"), _window_starts_at_revision),
    (("data", "model"), _data_fits_model),
    (("data", "training"), _data_lasts),
    (("base", "data", "training", "intervention"), _window_lasts),
    (("data", "intervention"), _inserted_rows_are_typed),
    (("data", "unit"), _label_is_told),
    (("data", "unit"), _probed_prompts_fit),
    (("data", "emergence"), _measured_prompts_fit),
    (("data", "emergence"), _icl_positions_exist),
    (("data", "capabilities"), _tasks_fit_context),
    (("model", "emergence"), _metric_probe_fits_context),
    (("training", "emergence"), _measured_in_time),
    (("training",), _window_is_seen_in_time),
    (("model", "sae"), _sae_layer_exists),
    (("base", "training", "sae"), _sae_checkpoint_exists),
    (("model", "unit"), _unit_exists),
    (("unit", "estimator"), _metric_has_gradients),
    (("model", "estimator"), _scope_fits),
    (("model", "unit"), _unit_probe_fits_context),
    (("base", "training", "estimator"), _scored_steps_exist),
    (("model", "estimator"), _scored_layer_exists),
    (("training", "intervention"), _window_in_run),
    (("data", "training", "intervention"), _enough_to_edit),
    (("training", "intervention"), _scoped_on_one_device),
    (("estimator", "intervention"), _tokens_are_scored),
    (("estimator", "intervention"), _losses_are_known),
)


def validate(config: Config, groups: Iterable[str] | None = None) -> None:
    """Checks the rules between groups, with `groups` only those between these.

    Raises ConfigError with the full key, the value and what is accepted.
    """
    used = set(groups) if groups is not None else {item.name for item in fields(Config)}
    for needed, rule in RULES:
        unknown = isinstance(config.model, PublishedModelConfig) and "model" in needed
        if used.issuperset(needed) and not (unknown and "base" not in needed):
            rule(config)


def validate_sizes(
    config: Config, content: Mapping[str, Any], groups: Iterable[str], where: str
) -> None:
    """Checks the rules between groups that need the model's sizes, from its config.json.

    Sizes in `model` itself, as in a preset, must be the same. Raises ConfigError, which names
    `where` the config.json comes from.
    """
    sizes = {ours: content[theirs] for ours, theirs in SIZES.items()}
    if not isinstance(config.model, PublishedModelConfig):
        for name, size in sizes.items():
            if (given := getattr(config.model, name)) != size:
                limit = f"{size}, as {where} has; or model=published"
                raise refuse(f"model.{name}", given, limit)
    model: Any = SimpleNamespace(**sizes)
    validate(replace(config, model=model), groups)
