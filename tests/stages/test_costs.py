"""What a plan says of a job against the finished job: its tokens, units, and bytes on disk."""

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import GPTNeoXModel

from mda import pipeline
from mda.cost.hardware import WORK, Rates
from mda.cost.job import Cost
from mda.emergence.capabilities import make_trials
from mda.emergence.steps import curve_steps
from mda.model.plain_attention import eager_attention
from mda.report.costs import duration
from mda.schema.estimator import RandomConfig
from mda.stages.attribution import score
from mda.stages.measuring import Bench, job_of, rates_here
from mda.stages.preview import STAGES, Estimates, print_costs
from mda.store import Store, hash_arrays
from mda.training.loss import GPU_LOGITS, LOGITS


class Operations(TorchDispatchMode):
    """Counts by torch's formulas, without the hooks of FlopCounterMode, which `capture` breaks."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def size_of(folder: Path, pattern: str = "**/*") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


@pytest.fixture(scope="module")
def finished(traced):
    return traced("training.threads=1")


def cost_of(config, stage: str, part: str | None = None):
    return next(c for c in STAGES[stage].costs(job_of(config)) if c.stage == (part or stage))


def fitted_for(trace, inputs) -> bool:
    """Whether a curvature is this trace's: other tests of the folder leave theirs beside it."""
    (step,) = trace.traced.steps
    wanted = {"base": trace.base.fingerprint, "step": step}
    wanted |= {"samples": hash_arrays(trace.traced.scores.sample_ids)}
    heads = {"L0.qk", "L0.v", "L0.o", "L1.qk", "L1.v", "L1.o"}
    return inputs.items() >= wanted.items() and set(inputs["blocks"]) == heads


def test_the_disk_of_every_stage_is_what_it_takes(finished, outputs):
    """Without the heads of files and the tables, which count at this size alone."""
    trace, context = finished
    config, store = context.config, outputs / "store"
    corpus = store / "corpus" / trace.corpus.fingerprint
    assert cost_of(config, "corpus").disk == pytest.approx(size_of(corpus, "tokens.npy"), abs=200)
    states = size_of(trace.base.folder, "checkpoints/step_*/*.safetensors")
    assert cost_of(config, "base").disk == pytest.approx(states, rel=0.1)
    (size,) = {
        path.stat().st_size
        for path in (store / "curvature").glob("*/curvature.safetensors")
        if fitted_for(trace, json.loads((path.parent / "manifest.json").read_text())["inputs"])
    }  # one, whatever the labels were
    planned = cost_of(config, "scores", "curvature").disk
    assert planned == pytest.approx(size, rel=0.1)
    scores = size_of(trace.traced.folder, "*.npy")
    assert cost_of(config, "scores").disk == pytest.approx(scores, abs=1000)


@pytest.mark.parametrize(
    "choice", ["unit.locate=mechanism", "unit=previous_token_head", "unit=module",
               "unit=mlp_neuron unit.label=generated_json", "unit.locate=L1H0 estimator.scope=all"],
)  # fmt: skip
def test_the_units_of_a_plan_are_those_that_are_scored(traced, choice):
    trace, context = traced(*choice.split(), "estimator=tracin")
    planned = job_of(context.config)
    assert sorted(unit.name for unit in planned.units) == sorted(trace.traced.scores.units)
    assert planned.samples == len(trace.traced.scores.sample_ids)


@dataclass
class Twice(RandomConfig):
    """An estimator of a plugin, which says what its scores take."""

    cost: ClassVar[str] = f"{__name__}:two_tokens_a_sample"


def two_tokens_a_sample(job):
    return [Cost("scores", 2 * job.samples, {"score": 5.0 * job.samples})]


def test_an_estimator_s_settings_tell_what_its_scores_take(context_of):
    config = replace(context_of().config, estimator=Twice())
    found = cost_of(config, "scores")
    n = job_of(config).samples
    assert (found.tokens, found.flops) == (2 * n, {"score": 5 * n}) and found.disk
    assert cost_of(replace(config, estimator=RandomConfig()), "scores").tokens == 0


def test_a_score_by_embedding_takes_a_pass_over_the_window_and_one_over_the_probe(context_of):
    config = context_of("estimator=embedding", "unit.probe.n_sequences=5").config
    job, probe = job_of(config), config.unit.probe
    asked = 5 * probe.length * probe.repeats
    found = cost_of(config, "scores")
    assert found.tokens == job.samples * config.data.seq_len + asked
    assert found.flops and found.flops["measure"]


def test_tokens_are_those_of_updates_and_measurements(finished):
    trace, context = finished
    config = context.config
    updates = config.training.last_step * config.training.batch_size * config.data.seq_len
    curve = trace.base.curve
    probes = len(curve) * config.emergence.n_sequences * 2 * config.emergence.length
    with_text = sum(math.isfinite(row["val/loss"]) for row in curve)
    assert 2 <= with_text < len(curve)
    text = with_text * config.emergence.held_out * config.data.seq_len
    assert cost_of(config, "base").tokens == updates + probes + text


def test_prompts_are_counted_at_every_point_of_a_curve(context_of, tmp_path):
    """Two of five tokens, of which four go through the model, right and wrong."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [5, 6, 7, 8], "right": [9], "wrong": [4]}\n' * 2)
    without, given = (
        cost_of(context_of(*words).config, "base") for words in ((), (f"emergence.prompts={file}",))
    )
    points = len(curve_steps(0, 60, context_of().config.emergence.every))
    assert given.tokens - without.tokens == points * 4 * 4
    assert given.flops and without.flops and given.flops["measure"] > without.flops["measure"]


def test_tracin_passes_over_the_window_once_for_each_checkpoint_it_reads(traced):
    trace, context = traced("estimator=tracin")
    planned = cost_of(context.config, "scores")
    once = job_of(context.config).samples * context.config.data.seq_len
    assert planned.tokens == len(trace.traced.steps) * once


@pytest.mark.parametrize("weighted", [True, False])
def test_tracin_spends_no_pass_on_a_checkpoint_whose_learning_rate_is_0(traced, weighted):
    """The first, where the warm-up is GPT-NeoX's."""
    overrides = ("training.schedule=neox", "intervention.window=[0,40]", "estimator=tracin")
    every = ("estimator.n_checkpoints=null", f"estimator.lr_weights={weighted}")
    trace, context = traced(*overrides, *every)
    inside = tuple(step for step in trace.base.checkpoints if step <= 40)
    assert inside[0] == 0 and trace.traced.steps == (inside[1:] if weighted else inside)
    once = job_of(context.config).samples * context.config.data.seq_len
    assert cost_of(context.config, "scores").tokens == len(trace.traced.steps) * once


def test_scores_of_tokens_are_another_pass_and_what_an_arm_can_do_is_a_row(context_of, outputs):
    context = context_of("intervention.mode=mask_tokens", "estimator=tracin")
    job, length = job_of(context.config), context.config.data.seq_len
    (tokens,) = STAGES["tokens"].costs(job)
    (scores,) = STAGES["scores"].costs(job)
    assert tokens.tokens == scores.tokens
    done = pipeline.arm(context)
    assert done.tokens is not None
    folder = outputs / "store/tokens" / done.tokens.fingerprint
    files = [path.read_bytes() for path in folder.glob("*.safetensors")]
    heads = sum(8 + int.from_bytes(content[:8], "little") for content in files)
    assert tokens.disk == sum(map(len, files)) - heads
    (capabilities,) = STAGES["capabilities"].costs(job)
    trials = make_trials(done.corpus, context.config.capabilities, ((16, 32), (0, 1)))
    rows = [trials.text_MT1, trials.copying.tokens_MS]
    rows += [trials.labelling.tokens_MS] if trials.labelling else []
    once = sum((row.shape[1] - 1) * len(row) for row in rows)
    again = 2 + context.config.capabilities.random_sets
    means = len(trials.text_MT1) * length
    assert capabilities.tokens == pytest.approx(again * once + means, rel=0.02)


def test_what_cannot_be_told_is_not_said(context_of):
    cost = cost_of(context_of("unit=sae_feature", "unit.label=generated_xml").config, "scores")
    assert cost.flops is None and cost.memory is None and cost.disk


def scored(context, trace, folder) -> tuple[Operations, int]:
    """What scoring takes: operations, and tokens that go through the model."""
    tokens = 0

    def see(module, args, output):
        nonlocal tokens
        if isinstance(module, GPTNeoXModel):
            tokens += output.last_hidden_state[..., 0].numel()

    hook = register_module_forward_hook(see)
    try:
        with Operations() as counter:
            fresh = replace(context, store=Store(folder))  # which finds no other test's scores
            score(replace(trace.unit, at=fresh.at), fresh.config.estimator, fresh.at)
    finally:
        hook.remove()
    return counter, tokens


def probe_tokens(context) -> int:
    """Tokens of the measurement's gradient, which a plan leaves out."""
    probe = context.config.unit.probe
    return probe.n_sequences * probe.length * probe.repeats


@pytest.mark.parametrize(
    "choice",
    ["", "estimator.segment=7", "estimator.n_perturbed=1 estimator.last_steps=15"],
)  # fmt: skip
def test_unrolled_has_the_operations_that_torch_counts(finished, context_of, tmp_path, choice):
    """Without attention in training, which torch's counter does not know."""
    context = context_of("estimator=unrolled", *choice.split())
    counter, tokens = scored(context, finished[0], tmp_path)
    planned = cost_of(context.config, "scores")
    assert planned.flops is not None
    assert sum(planned.flops.values()) == pytest.approx(counter.total, rel=0.1)
    assert tokens == planned.tokens + probe_tokens(context)


def test_a_plan_counts_every_perturbed_start_of_unrolled(context_of):
    """Each is a training of its own from the window's start; none begins at a checkpoint inside."""
    one, three = (
        cost_of(context_of("estimator=unrolled", f"estimator.n_perturbed={n}").config, "scores")
        for n in (1, 3)
    )
    assert one.flops is not None and three.flops == {k: 3 * v for k, v in one.flops.items()}
    assert (three.tokens, three.memory) == (3 * one.tokens, one.memory)


@pytest.mark.parametrize(("n", "scope"), [(30, "unit"), (200, "unit"), (30, "all")])
def test_exact_has_at_most_the_operations_that_are_said(traced, tmp_path, n, scope):
    """A pass back ends in the block's layer, and what is added in place is not counted."""
    wide = ("model.d_model=64", "model.d_ff=256", f"estimator.fit_sequences={n}")
    wide += (f"estimator.scope={scope}",)
    trace, context = traced("estimator=exact", *wide)
    counter, tokens = scored(context, trace, tmp_path)
    planned = cost_of(context.config, "scores")
    assert planned.flops is not None
    assert 0.6 < counter.total / sum(planned.flops.values()) <= 1
    assert tokens == planned.tokens + probe_tokens(context)


class Machine:
    """A clock that fake work sets forward; others take half of the cores where it is `busy`."""

    slower = (10, 1, 2, 1, 1.5)  # than it can: what is built at first, a trial, three tries

    def __init__(self, busy: bool) -> None:
        self.wall, self.cpu, self.busy, self.calls = 0.0, 0.0, busy, []

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu

    def busy_s(self) -> float:
        return self.cpu + self.busy * 0.5 * (os.cpu_count() or 1) * self.wall

    def work(self, kind: str, rate: float, n: int, length: int) -> float:
        """A thousand operations for each token; beside others it takes four times as long."""
        flops = 1000.0 * n * length
        seconds = flops / rate * self.slower[[k for k, *_ in self.calls].count(kind)]
        self.calls.append((kind, n, length))
        self.cpu += seconds
        self.wall += seconds * (4 if self.busy else 1)
        return flops


@pytest.mark.parametrize("busy", [False, True])
def test_a_rate_is_that_of_the_fastest_try_left_alone(context_of, monkeypatch, busy):
    """An update has 2 MFLOP/s here, a score 1; of 8 s a try has one.

    Beside others a try takes four times as long, and the first one uses up the time.
    """
    job = job_of(context_of("data.seq_len=128", "training.batch_size=16").config)
    machine = Machine(busy)
    monkeypatch.setattr("mda.benchmark.time", machine)
    monkeypatch.setattr("mda.benchmark._busy_s", machine.busy_s)
    for kind, rate in (("update", 2e6), ("score", 1e6)):
        monkeypatch.setattr(Bench, kind, lambda _, *size, of=(kind, rate): machine.work(*of, *size))
    rates = rates_here(job, ("update", "score"), 8.0)
    slower = 2 if busy else 1
    assert rates.of == pytest.approx({"update": 2e6 / slower, "score": 1e6 / slower})
    assert rates.seconds({"update": 6e6, "score": 2e6}) == pytest.approx((3 + 2) * slower)
    assert ("others take 50% of its cores" in rates.source) == busy
    # A second is 2000 tokens of updates, 1000 of scores: so many whole sequences, 16 at most.
    times = 1 if busy else 3
    tries = [("update", 15, 128)] * times, [("score", 7, 128)] * times
    first = [[(kind, 1, 64)] * 2 for kind in ("update", "score")]
    assert machine.calls == [*first[0], *tries[0], *first[1], *tries[1]]


def test_a_sequence_that_takes_too_long_is_tried_at_a_part_of_its_length(context_of, monkeypatch):
    """400 tokens a second, 1 s for a try: of 512 tokens half."""
    job = job_of(context_of("data.seq_len=512", "model.max_seq_len=512").config)
    machine = Machine(busy=False)
    monkeypatch.setattr("mda.benchmark.time", machine)
    monkeypatch.setattr("mda.benchmark._busy_s", machine.busy_s)
    monkeypatch.setattr(Bench, "update", lambda _, *size: machine.work("update", 4e5, *size))
    assert rates_here(job, ("update",), 4.0).of == pytest.approx({"update": 4e5})
    assert machine.calls[2:] == [("update", 1, 256)] * 3


def test_a_model_whose_first_tries_take_all_the_time_is_asked_no_more(context_of, monkeypatch):
    """64 tokens take 0.64 s, at first 10 times as long: 7 s where 4 were allowed."""
    job = job_of(context_of("data.seq_len=512", "model.max_seq_len=512").config)
    machine = Machine(busy=False)
    monkeypatch.setattr("mda.benchmark.time", machine)
    monkeypatch.setattr("mda.benchmark._busy_s", machine.busy_s)
    monkeypatch.setattr(Bench, "update", lambda _, *size: machine.work("update", 1e5, *size))
    rates = rates_here(job, ("update",), 4.0)
    assert rates.of == pytest.approx({"update": 1e5})
    assert machine.calls == [("update", 1, 64)] * 2
    assert "update 0.0 at 64 of 512 tokens" in rates.source


@pytest.mark.parametrize("kind", WORK)
def test_a_kind_of_work_has_at_most_the_operations_that_it_says(context_of, kind):
    """And at least three quarters of them, by torch's count, which leaves out sums in place."""
    wide = ("model.d_model=64", "model.d_ff=256", "data.seq_len=64")
    bench = Bench(job_of(context_of(*wide).config))
    with eager_attention(bench.model), Operations() as counter:  # torch can't count the fused one
        said = getattr(bench, kind)(4, 64)
    assert 0.75 < counter.total / said <= 1


@pytest.mark.parametrize("threads", [1, 3])
def test_rates_are_measured_with_the_threads_of_the_job(context_of, monkeypatch, threads):
    job, seen, update = (
        job_of(context_of(f"training.threads={threads}").config),
        set(),
        Bench.update,
    )

    def spy(self, *args):
        seen.add(torch.get_num_threads())
        return update(self, *args)

    monkeypatch.setattr(Bench, "update", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    rates_here(job, ("update",), 0.2)
    assert seen == {threads} and torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_card_holds_more_logits_at_a_time_than_a_cpu(context_of):
    big = ("model=pythia-14m", "training.batch_size=16", "data.seq_len=2048")
    memory = {}
    for words in ("gpu plan.hardware=h100", "cpu plan.hardware=h100", "cpu"):
        config = context_of(*big, *f"training.accelerator={words}".split()).config
        memory[words] = cost_of(config, "base").memory
    more = 3 * 4 * (GPU_LOGITS - LOGITS)
    assert memory["gpu plan.hardware=h100"] - memory["cpu"] == pytest.approx(more)
    assert memory["cpu plan.hardware=h100"] == memory["cpu"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_process_s_own_memory_counts_where_its_stage_has_its_tensors(
    context_of, monkeypatch, device
):
    """`cuda` is only reckoned with: a corpus is packed beside the card, not on it."""
    rates = Rates(dict.fromkeys(WORK, 1.0), "", process=1e9)
    monkeypatch.setattr(Estimates, "_rates", lambda *_: rates)
    monkeypatch.setattr("mda.stages.preview.job_device", lambda config: torch.device(device))
    config = context_of().config
    found = {t.stage: t for t in Estimates([(config, s) for s in ("corpus", "base")]).totals()}
    more = {stage: total.memory - cost_of(config, stage).memory for stage, total in found.items()}
    assert more == pytest.approx({"corpus": 1e9 if device == "cpu" else 0.0, "base": 1e9})


@pytest.mark.parametrize(("device", "of_updates"), [("gpu", 0.5), ("cpu", 1.0)])
def test_two_cards_halve_the_time_of_updates_and_of_nothing_else(
    context_of, monkeypatch, capsys, device, of_updates
):
    """By rates of one operation a second for updates, and of one in 3 seconds for all else."""
    rates = Rates(dict.fromkeys(WORK, 1 / 3) | {"update": 1.0}, "")
    monkeypatch.setattr(Estimates, "_rates", lambda *_: rates)
    card = ("plan.hardware=h100", f"training.accelerator={device}", "training.devices=2")
    config = context_of(*card).config
    found = Estimates([(config, stage) for stage in ("base", "scores")])
    base, scores = cost_of(config, "base").flops, cost_of(config, "scores").flops
    seconds = {total.stage: total.seconds for total in found.totals()}
    assert base and base.keys() == {"update", "measure"} and scores and "update" not in scores
    assert seconds["base"] == pytest.approx(of_updates * base["update"] + 3 * base["measure"])
    assert seconds["scores"] == pytest.approx(3 * scores["score"])
    print_costs(found)
    said = "training.devices=2 share the updates; scores, curves and capabilities run on one\n"
    assert (said in capsys.readouterr().out) == (device == "gpu")


def test_several_builds_of_a_stage_are_added_and_the_most_memory_counts(context_of):
    config = context_of("plan.hardware=h100").config
    wide = replace(config, model=replace(config.model, d_model=32))
    one, other, both = (
        {t.stage: t for t in Estimates([(c, "arm") for c in cs]).totals()}["arm"]
        for cs in ([config], [wide], [config, wide])
    )
    assert both.times == 2
    for name in ("tokens", "flops", "seconds", "disk"):
        assert getattr(both, name) == pytest.approx(getattr(one, name) + getattr(other, name))
    assert both.memory == max(one.memory, other.memory) > 0
    assert np.isfinite(both.seconds)


@pytest.mark.parametrize(
    ("at_once", "arms"),
    [(1, lambda short, long: 3 * short + long), (2, lambda short, long: 3 * short),
     (3, lambda short, long: long), (16, lambda short, long: long)],
)  # fmt: skip
def test_jobs_side_by_side_share_the_builds_of_a_stage_and_stages_follow_each_other(
    context_of, monkeypatch, at_once, arms
):
    """A base run, and after it an arm that takes longer than two of the other three."""
    monkeypatch.setattr(Estimates, "_rates", lambda *_: Rates(dict.fromkeys(WORK, 1.0), ""))
    config = context_of("plan.hardware=h100").config
    wide = replace(config, model=replace(config.model, d_model=32))
    base, short, long = (
        sum(cost_of(one, stage).flops.values())
        for one, stage in ((config, "base"), (config, "arm"), (wide, "arm"))
    )
    assert 2 * short < long < 3 * short
    builds = [(config, "base"), (wide, "arm"), *[(config, "arm")] * 3]
    assert Estimates(builds).elapsed(at_once) == pytest.approx(base + arms(short, long))


@pytest.mark.parametrize(
    ("device", "words", "said", "at_once"),
    [
        ("cpu", "training.threads=2", ", counted as 4 at a time", 4),
        ("cpu", "training.threads=16", ", counted as 1 at a time", 1),
        ("cpu", "training.threads=1", ", counted as 9 at a time", 9),
        ("cuda", "training.threads=1", ", counted as 2 at a time", 2),
        ("cuda", "plan.hardware=h100", ", each on a card of its own", 16),
    ],
)
def test_no_more_jobs_count_than_have_a_gpu_or_cores(
    context_of, monkeypatch, capsys, device, words, said, at_once
):
    """On a machine of 9 cores and, where there are any, 2 GPUs."""
    monkeypatch.setattr(Estimates, "_rates", lambda *_: Rates(dict.fromkeys(WORK, 1.0), ""))
    monkeypatch.setattr("mda.stages.preview.job_device", lambda config: torch.device(device))
    monkeypatch.setattr("mda.stages.preview.cores", lambda: 9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = context_of(words).config
    arm = sum(cost_of(config, "arm").flops.values())
    print_costs(Estimates([(config, "arm")] * 16), 16)
    time = duration(arm * math.ceil(16 / at_once))
    assert f"estimate: {time}, 16 jobs side by side{said}\n" in capsys.readouterr().out
