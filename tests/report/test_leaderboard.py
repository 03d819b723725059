"""The benchmark's numbers, on worlds whose truth is known, and its tables as files."""

import numpy as np
import pytest
from leaderboard_page import leaderboard_page
from scipy import stats

from mda.analysis import leaderboard as board
from mda.analysis.leaderboard import Tables, comparisons, groups_of, read_tables, write_tables
from mda.analysis.truth import (
    Group,
    ceiling,
    rank_correlation,
    rank_correlation_gain,
    recall_at,
    roc_area,
    spearman,
)
from mda.report.leaderboard import cell
from mda.report.truth import report_truth
from mda.schema import ReportConfig

UNIT = "induction_head"


def world(noise=0.0, sets=24, seeds=(0, 1), lacking=(), preset="default"):
    """A unit whose metric is the sum of its samples' true scores, and estimators of them."""
    rows, edits = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        true = rng.normal(size=400)
        scores = {
            "unrolled": true,
            "ekfac": true + 2 * rng.normal(size=400),
            "repetition": -true,
            "random": rng.normal(size=400),
        }
        for i in range(sets):
            share = (0.05, 0.3)[i % 2]
            gone = rng.choice(400, int(share * 400), replace=False)
            metric = 10 - true[gone].sum() + noise * rng.normal()
            rerun = 10 - true[gone].sum() + noise * rng.normal()
            removed = {f"removed/{name}": values[gone].sum() for name, values in scores.items()}
            rows.append(
                {"seed": seed, "unit": UNIT, "subset": i, "fraction": share, "draw": "random",
                 "metric": metric, "measurement": -metric, "control_metric": 10.0,
                 "control_measurement": -10.0, "rerun_metric": rerun,
                 "rerun_measurement": -rerun, "reruns": 1, **removed}
            )  # fmt: skip
        for name, values in scores.items():
            lost = float(np.sort(values)[-40:].sum() if name == "unrolled" else 1.0)
            for edit, to in (("remove", seed), ("augment", seed), ("remove", seed + 7)):
                sign = 1 if edit == "augment" else -1
                edits.append(
                    {"seed": seed, "to_seed": to, "unit": UNIT, "located": "L3H1",
                     "estimator": name, "edit": edit, "fraction": 0.1, "n": 40,
                     "metric": 10 + sign * lost / (1 if to == seed else 2),
                     "measurement": 0.0, "control_metric": 10.0, "control_measurement": 0.0}
                )  # fmt: skip
    warnings = ["scores 1 was computed by other code"] if lacking else []
    about = [
        {"seed": seed, "units": {UNIT: "L3H1"}, "estimators": list(scores), "window": [10, 60],
         "samples": 400, "warnings": warnings, "planned": {"sets": sets},
         "settings": {"name": preset}, "fingerprints": {"corpus": preset},
         "done": {"sets": sets - len(lacking)}}
        for seed in seeds
    ]  # fmt: skip
    tables = dict.fromkeys(board.TABLES, ()) | {"subsets": rows, "edits": edits}
    return Tables({name: list(rows) for name, rows in tables.items()}, about)


def of(rows, name):
    return next(row for row in rows if row["estimator"] == name)


def group(predicted, measured, band=None):
    alone = np.arange(len(measured))
    return Group(np.asarray(predicted, float), np.asarray(measured, float),
                 alone if band is None else band)  # fmt: skip


def test_the_rank_correlation_is_scipy_s_ties_included():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    many = np.random.default_rng(0).normal(size=(2, 200_000)).round(2)  # a matrix would be 40 GB
    assert spearman(*many) == pytest.approx(stats.spearmanr(*many).statistic)
    pairs = [(x, y), (y[:20], x[:20])]
    expected = np.mean([stats.spearmanr(a, b).statistic for a, b in pairs])
    assert rank_correlation([group(a, b) for a, b in pairs]).mean == pytest.approx(expected)
    counts = rng.multinomial(30, np.full(30, 1 / 30), size=5)  # some pairs several times
    wanted = [stats.spearmanr(np.repeat(x, n), np.repeat(y, n)).statistic for n in counts]
    assert spearman(x, y, counts) == pytest.approx(np.array(wanted))
    assert np.isnan(spearman(np.ones(4), y[:4]))


def test_the_interval_is_that_of_scipy_s_percentile_bootstrap():
    rng = np.random.default_rng(2)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    found = rank_correlation([group(x, y)], resamples=4000)
    other = stats.bootstrap(
        (x, y), spearman, paired=True, vectorized=False, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.03)


def test_sets_of_one_band_count_as_one():
    """Each set three times over: the interval is that of the sets once, and not narrower."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    thrice = [np.repeat(values, 3) for values in (x, y, np.arange(20))]
    once, banded, apart = (
        rank_correlation([one], resamples=2000)
        for one in (group(x, y), group(*thrice), group(*thrice[:2]))
    )
    assert (banded.low, banded.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert apart.high - apart.low < 0.8 * (once.high - once.low)
    few = group(*thrice[:2], np.repeat(np.arange(6), 10))
    assert rank_correlation([few]).low is None, "six bands are too few"


def test_few_sets_have_no_interval_and_one_or_constant_ones_no_correlation():
    few = group([1, 2, 3], [1, 3, 2])
    assert rank_correlation([few]) == (3, pytest.approx(0.5), None, None)
    one, many = group([1], [1]), group(range(9), range(9))
    assert rank_correlation([few, one, many]) == (9, 1, 1, 1), "few sets say nothing of many"
    assert rank_correlation([group(np.ones(9), range(9))]).mean is None
    assert rank_correlation([]).mean is None


def test_an_estimator_that_knows_the_truth_has_1_the_opposite_minus_1_and_chance_0():
    rows = board.leaderboard(world(), resamples=200)
    assert of(rows, "unrolled")["metric_lds"] == pytest.approx(1)
    assert of(rows, "repetition")["metric_lds"] == pytest.approx(-1)
    assert 0.2 < of(rows, "ekfac")["metric_lds"] < 0.8
    chance = of(rows, "random")
    assert chance["metric_lds/low"] < 0 < chance["metric_lds/high"] and chance["metric_lds/n"] == 48


def test_sets_that_scores_had_a_part_in_drawing_can_be_left_out():
    tables = world()
    for i, row in enumerate(tables.rows["subsets"][::2]):
        row["draw"], row["removed/unrolled"] = f"unrolled {i}/24", -row["removed/unrolled"]
    row = of(board.leaderboard(tables, resamples=99), "unrolled")
    assert row["metric_lds_at_random"] == pytest.approx(1) and row["metric_lds_at_random/n"] == 24
    assert row["metric_lds"] == pytest.approx(0)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_set_without_an_outcome_is_left_out_and_counted_not_ranked_lowest(missing, tmp_path):
    """The sets that should have the highest outcome: as the lowest they would spoil the order."""
    tables = world(seeds=(0,))
    whole = of(board.leaderboard(tables), "ekfac")
    assert "metric_lds/left_out" not in whole
    for share in (0.05, 0.3):
        own = [row for row in tables.rows["subsets"] if row["fraction"] == share]
        max(own, key=lambda row: row["metric"])["metric"] = missing
    gone = of(rows := board.leaderboard(tables), "unrolled")
    assert (gone["metric_lds"], gone["metric_lds/n"], gone["metric_lds/left_out"]) == (
        pytest.approx(1),
        22,
        2,
    )
    kept = [row for row in tables.rows["subsets"] if np.isfinite(row["metric"] or np.nan)]
    assert (
        of(rows, "ekfac")["metric_lds"]
        == of(board.leaderboard(Tables(tables.rows | {"subsets": kept}, tables.about)), "ekfac")[
            "metric_lds"
        ]
    )
    assert "1.00" in cell(gone, "metric_lds", rows) and "(2 without an outcome left out)" in cell(
        gone, "metric_lds", rows
    )
    assert comparisons(tables)[0]["n"] == 22
    report_truth(tables, tmp_path, ReportConfig(resamples=99))


@pytest.mark.parametrize("column", ["metric", "control_metric"])
def test_an_edit_without_an_outcome_is_no_effect(column):
    tables = world()
    before = of(board.leaderboard(tables), "ekfac")
    for row in tables.rows["edits"]:
        if row["estimator"] == "ekfac" and row["seed"] == 1:
            row[column] = None
    after = of(board.leaderboard(tables), "ekfac")
    assert (before["remove/0.1/n"], after["remove/0.1/n"]) == (2, 1)
    assert after["remove/0.1"] == pytest.approx(-1.0)


def test_sets_of_different_sizes_are_never_ranked_together():
    """Equal scores know how large a set is, and nothing else."""
    tables = world()
    for row in tables.rows["subsets"]:
        row["removed/random"] = 400 * row["fraction"]
    assert of(board.leaderboard(tables, resamples=99), "random")["metric_lds"] is None


def test_the_ceiling_is_what_a_rerun_predicts_and_noise_lowers_it():
    quiet, loud = (board.leaderboard(world(noise), resamples=99) for noise in (0.0, 10.0))
    assert of(quiet, board.RERUN)["metric_lds"] == pytest.approx(1)
    assert 0.2 < of(loud, board.RERUN)["metric_lds"] < 0.8
    assert of(loud, "unrolled")["metric_lds"] < of(quiet, "unrolled")["metric_lds"]


def test_every_estimator_is_told_by_the_metric_and_by_the_measurement():
    row = of(board.leaderboard(world(), resamples=99), "unrolled")
    assert row["metric_lds"] == pytest.approx(1) == -row["measurement_lds"]
    assert row["measurement_lds_at_random/n"] == row["metric_lds_at_random/n"] == 48


def test_the_line_of_a_score_in_units_of_the_metric_has_slope_one():
    """`unrolled` is the true effect; the measurement is minus the metric; sizes have one line."""
    row = of(board.leaderboard(tables := world(), resamples=99), "unrolled")
    assert [row[f"metric_fit/{part}"] for part in ("slope", "r2", "sign")] == pytest.approx([1] * 3)
    assert row["metric_fit/intercept"] == pytest.approx(0, abs=1e-9)
    line = [row[f"measurement_fit/{part}"] for part in ("slope", "r2", "sign")]
    assert line == pytest.approx([-1, 1, 0])
    for one in tables.rows["subsets"]:
        one["removed/unrolled"] *= 4
        one["metric"] += 3 * (one["seed"] + 1)
    row = of(board.leaderboard(tables, resamples=99), "unrolled")
    assert row["metric_fit/slope"] == pytest.approx(0.25)
    assert row["metric_fit/intercept"] == pytest.approx(4.5)  # mean over the two runs


@pytest.mark.parametrize("reruns", [1, 3])
def test_the_ceiling_is_the_correlation_that_the_expected_outcome_reaches(reruns):
    """Known truth and noise: the correlation with it is what reruns alone say."""
    rng, n = np.random.default_rng(reruns), 200_000
    true = rng.normal(size=n)
    first, again = true + rng.normal(size=n), true + rng.normal(size=(reruns, n)).mean(0)
    rerun = np.corrcoef(first, again)[0, 1]
    assert ceiling(rerun, reruns) == pytest.approx(np.corrcoef(first, true)[0, 1], abs=0.005)
    assert ceiling(np.array(-0.1)) == 0


def test_a_share_of_the_ceiling_stands_beside_every_lds():
    rows = board.leaderboard(world(10.0, sets=160, seeds=range(8)), resamples=9)
    top, one = of(rows, board.RERUN), of(rows, "unrolled")
    for key in ("metric_lds", "measurement_lds", "metric_lds_at_random", "metric_lds/0.05"):
        assert one[f"{key}/of_ceiling"] == pytest.approx(one[key] / top[key])
    assert one["metric_lds"] < 0.85
    assert one["metric_lds/of_ceiling"] == pytest.approx(1, abs=0.1)  # it is the true effect


def test_a_page_without_reruns_says_that_no_ceiling_is_known(tmp_path):
    tables = world(seeds=(0,))
    for row in tables.rows["subsets"]:
        row |= {"rerun_metric": None, "rerun_measurement": None, "reruns": 0}
    (row,) = [x for x in page_of(tmp_path, tables).splitlines() if x.startswith("| *ceiling, by")]
    assert row.count("not known: 0 of 24 sets rerun") == 4  # by two outcomes, random and all
    assert row.count("not known: 0 of 12 sets rerun") == 4  # by share
    assert of(board.leaderboard(tables, resamples=99), "unrolled")["metric_lds"] == pytest.approx(1)


def test_effects_are_differences_to_the_control_and_other_weights_are_kept_apart():
    tables = world()
    lost = -np.mean([10 - row["metric"] for row in tables.rows["edits"]
                     if (row["estimator"], row["edit"]) == ("unrolled", "remove")
                     and row["to_seed"] == row["seed"]])  # fmt: skip
    row = of(board.leaderboard(tables, resamples=99), "unrolled")
    assert row["remove/0.1"] == pytest.approx(lost) and row["remove/0.1/n"] == 2
    assert row["augment/0.1"] == pytest.approx(-lost)
    assert row["transfer/0.1"] == pytest.approx(lost / 2)


def test_comparisons_say_yes_no_or_open():
    said = {(r["other"], r["what"]): r for r in comparisons(world(seeds=(0, 1, 2)), resamples=500)}
    assert said["ekfac", "lds"]["better"] == "yes"
    assert said["repetition", "remove/0.1"]["better"] == "yes"
    assert said["repetition", "remove/0.1"]["n"] == 3
    assert said["repetition", "transfer/0.1"]["better"] == "yes"
    two = {(r["other"], r["what"]): r for r in comparisons(world(), resamples=99)}
    assert two["ekfac", "remove/0.1"]["better"] == "open", "two runs give no interval"
    swapped = world()
    for row in swapped.rows["subsets"]:
        row["removed/unrolled"], row["removed/ekfac"] = (
            row["removed/ekfac"],
            row["removed/unrolled"],
        )
    lost = {(r["other"], r["what"]): r for r in comparisons(swapped, resamples=500)}
    assert lost["ekfac", "lds"]["better"] == "no"


def test_the_interval_over_seeds_is_student_s_and_a_seed_counts_once():
    """Two other runs that the same samples were taken from are no two choices of samples."""
    tables, lost = world(seeds=(0, 1, 2, 3)), {0: 1.0, 1: 3.0, 2: 2.5, 3: 0.5}
    again = []
    for row in tables.rows["edits"]:
        row["metric"] = 10 - lost[row["seed"]] * (row["estimator"] == "unrolled")
        if row["to_seed"] != row["seed"]:
            more = 0.5 if row["estimator"] == "unrolled" else 0.0
            again.append(row | {"to_seed": row["to_seed"] + 1, "metric": row["metric"] - more})
    tables.rows["edits"] += again
    said = {(r["other"], r["what"]): r for r in comparisons(tables, resamples=99)}
    for what, more in (("remove/0.1", 0), ("transfer/0.1", 0.25)):
        found, values = said["ekfac", what], -np.array(list(lost.values())) - more
        wanted = stats.ttest_1samp(values, 0).confidence_interval()
        assert found["n"] == 4 and found["difference"] == pytest.approx(values.mean())
        assert (found["low"], found["high"]) == pytest.approx(tuple(wanted))
    assert said["ekfac", "remove/0.1"]["better"] == "open"


def test_estimators_are_compared_in_the_runs_that_have_both():
    tables = world(seeds=(0, 1, 2))
    for row in tables.rows["subsets"]:
        for name, seed in (("removed/unrolled", 0), ("removed/ekfac", 1)):
            if row["seed"] == seed:
                row.pop(name, None)
    (said,) = [r for r in comparisons(tables, resamples=99)
               if (r["other"], r["what"]) == ("ekfac", "lds")]  # fmt: skip
    rows = [row for row in tables.rows["subsets"] if row["seed"] == 2]
    one, two = (groups_of(rows, UNIT, name, [0.05, 0.3]) for name in ("unrolled", "ekfac"))
    wanted = np.mean([spearman(*one[key][:2]) - spearman(*two[key][:2]) for key in one])
    assert said["n"] == 24 and said["difference"] == pytest.approx(wanted)


def test_doubling_is_better_where_the_unit_is_left_stronger():
    said = {(r["other"], r["what"]): r for r in comparisons(world(seeds=(0, 1, 2)), resamples=500)}
    assert said["ekfac", "augment/0.1"]["better"] == "yes"
    weaker = world(seeds=(0, 1, 2))
    for row in weaker.rows["edits"]:
        row["metric"] -= 100 * ((row["estimator"], row["edit"]) == ("unrolled", "augment"))
    said = {(r["other"], r["what"]): r for r in comparisons(weaker, resamples=500)}
    assert said["ekfac", "augment/0.1"]["better"] == "no"


def test_unrolled_is_compared_with_every_choice_of_settings():
    tables, averaged = world(), "unrolled n_perturbed=4"
    for about in tables.about:
        about["estimators"].append(averaged)
    for row in tables.rows["subsets"]:
        row[f"removed/{averaged}"] = row["removed/random"]
    said = {(r["one"], r["other"]): r for r in comparisons(tables, resamples=500)
            if r["what"] == "lds"}  # fmt: skip
    assert said["unrolled", "ekfac"]["better"] == "yes"
    assert said[averaged, "ekfac"]["better"] == "no"


def test_agreement_with_exact_curvature_is_the_mean_over_runs():
    tables = world()
    for seed, value in ((0, 0.5), (1, 0.9)):
        tables.rows["estimators"].append(
            {"seed": seed, "unit": UNIT, "estimator": "ekfac", "cost": 1.5, "spearman/exact": value}
        )
    rows = board.leaderboard(tables, resamples=99)
    assert of(rows, "ekfac")["with_exact"] == pytest.approx(0.7)
    assert of(rows, "random")["with_exact"] is None


def test_sets_drawn_at_random_are_compared_by_themselves():
    """Scores that had a part in drawing a set say more of it than they would of any other."""
    tables = world(sets=48)
    for i, row in enumerate(tables.rows["subsets"]):
        if row["subset"] % 4 > 1:
            row["draw"], row["removed/unrolled"] = f"ekfac {i}/48", 0.001 * row["subset"]
    said = {(r["other"], r["what"]): r for r in comparisons(tables, resamples=500)}
    assert said["ekfac", "lds_at_random"]["n"] == 48 < said["ekfac", "lds"]["n"]
    assert said["ekfac", "lds_at_random"]["better"] == "yes" != said["ekfac", "lds"]["better"]


def test_sets_of_one_band_are_known_by_how_they_were_drawn():
    rows = [row for row in world(seeds=(0,)).rows["subsets"] if row["fraction"] == 0.05]
    for i in (1, 4, 6):
        rows[i]["draw"] = "ekfac 3/3" if i < 6 else "ekfac 1/3"
    (one,) = groups_of(rows, UNIT, "ekfac", [0.05]).values()
    assert one.band[1] == one.band[4] and len(set(one.band)) == len(rows) - 1


def test_a_gain_is_over_the_same_sets():
    groups = [
        list(groups_of(world().rows["subsets"], UNIT, name, [0.05]).values())
        for name in ("unrolled", "ekfac")
    ]
    gain = rank_correlation_gain(*groups, resamples=200)
    parts = [rank_correlation(one, resamples=99).mean for one in groups]
    assert gain.mean == pytest.approx(parts[0] - parts[1])
    same = rank_correlation_gain(groups[0], groups[0], resamples=99)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_planted_causes_are_counted():
    scores = np.array([5.0, 1, 4, 4, 0, 3])
    cause = np.array([True, False, True, False, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[cause] for b in scores[~cause]]
    assert roc_area(scores, cause) == pytest.approx(np.mean(pairs))
    assert [recall_at(scores, cause, k) for k in (1, 3, 4)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert roc_area(scores, ~cause & cause) is None and recall_at(scores, ~cause & cause, 1) is None


def test_tables_that_were_written_and_read_make_the_same_board(tmp_path):
    runs = [world(noise=3.0, seeds=(seed,)) for seed in (0, 1)]
    for seed, tables in enumerate(runs):
        write_tables(tables, tmp_path / str(seed))
    read = read_tables([tmp_path / "0", tmp_path / "1"])
    assert read.rows["subsets"] == runs[0].rows["subsets"] + runs[1].rows["subsets"]
    assert board.leaderboard(read, resamples=99) == board.leaderboard(world(3.0), resamples=99)


def page_of(tmp_path, *runs):
    for i, tables in enumerate(runs):
        (tmp_path / f"seed{i}").mkdir(parents=True)
        write_tables(tables, tmp_path / f"seed{i}")
    return leaderboard_page(tmp_path, ReportConfig(resamples=99))


def test_a_seed_that_was_measured_twice_and_runs_of_two_corpora_are_refused(tmp_path):
    with pytest.raises(ValueError, match="truth=default: seed 1 has two folders"):
        page_of(tmp_path / "twice", world(seeds=(1,)), world(seeds=(1,)))
    one, two = world(seeds=(0,)), world(seeds=(1,))
    for tables in (one, two):
        tables.about[0]["fingerprints"] = tables.about[0]["fingerprints"] | {"origin": "same"}
    with pytest.raises(ValueError, match="two seeds are copies of each other"):
        page_of(tmp_path / "copies", one, two)
    other = world(seeds=(1,))
    other.about[0]["fingerprints"] = {"corpus": "another"}
    with pytest.raises(ValueError, match="runs of different corpora"):
        page_of(tmp_path / "corpora", world(seeds=(0,)), other)


def test_tables_of_an_earlier_time_are_gone(tmp_path):
    write_tables(world(seeds=(0,)), tmp_path)
    without = world(seeds=(0,))
    without.rows["edits"] = []
    write_tables(without, tmp_path)
    assert not read_tables([tmp_path]).rows["edits"] and read_tables([tmp_path]).rows["subsets"]


def test_the_two_outcomes_are_compared_apart(tmp_path):
    lines = page_of(tmp_path, world(seeds=(0,))).splitlines()
    (names,) = [line.split(" | ") for line in lines if line.startswith("| by the | ")]
    for outcome, said in (("metric", "2 [2, 2], 24 sets: **better**"),
                          ("measurement", "-2 [-2, -2], 24 sets: **worse**")):  # fmt: skip
        (line,) = [x for x in lines if x.startswith(f"| {outcome} | unrolled minus repetition")]
        cells = dict(zip(names, line.split(" | "), strict=True))
        assert cells["LDS, all sets"] == said.replace("-", "\N{MINUS SIGN}")
        assert cells["doubling 10 %"].endswith(", 1 seed: not tested")


def test_presets_are_never_mixed(tmp_path):
    """A planted stream is another corpus: its runs have a board of their own."""
    other = world(seeds=(1,), preset="planted")
    for row in other.rows["subsets"]:
        row["removed/unrolled"] *= -1
    ours, theirs = page_of(tmp_path, world(seeds=(0,)), other).split("## `truth=planted`")
    rows = [next(line for line in part.splitlines() if line.startswith("| unrolled |"))
            for part in (ours, theirs)]  # fmt: skip
    assert [row.split("|")[2].split()[0] for row in rows] == ["1.00", "\N{MINUS SIGN}1.00"]


def test_the_page_of_a_run_says_the_level_of_its_intervals(tmp_path):
    report_truth(world(seeds=(0,)), tmp_path, ReportConfig(confidence=0.9, resamples=99, dpi=30))
    text = (tmp_path / "leaderboard.md").read_text("utf-8")
    assert "a 90 % percentile bootstrap" in text and "95 %" not in text


def test_of_equal_scores_the_earlier_samples_are_recalled():
    """Of a thousand samples every third has the highest score; the causes are the first hundred."""
    scores = np.arange(1000) % 3 / 3
    highest = np.flatnonzero(scores == scores.max())
    first, last = (np.isin(np.arange(1000), part) for part in (highest[:100], highest[-100:]))
    assert recall_at(scores, first, 100) == 1 and recall_at(scores, last, 100) == 0
