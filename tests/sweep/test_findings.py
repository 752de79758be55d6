"""Means, intervals, effects and the sentence, against numbers worked out by hand and against
scipy.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vitseg.settings import Constant, Exponential
from vitseg.sweep.findings import Findings, Result, estimate
from vitseg.sweep.grid import make_grid
from vitseg.ui import sweep_charts

FACTS = {"images": 10, "blocks": 4}


def filled(grid, iou):
    """Results by `iou(setting or None, seed)`."""
    return {t.name: Result(iou(t.setting, t.seed), 0.5, {}, 1.0) for t in grid.trials}


@pytest.fixture
def grid(tiny_recipe):
    return make_grid(
        tiny_recipe,
        {"stages.1.unfrozen_blocks": [0, 1, 2], "stages.1.lr": [3e-4, 1e-4]},
        3,
        **FACTS,
    )


def test_an_interval_is_student_s():
    values = [0.70, 0.72, 0.77]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    found = estimate(values)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(
        (low, high), abs=1e-12
    )
    assert estimate([0.7]).half is None and estimate([]) is None


def test_gains_are_paired_by_seed(grid):
    results = filled(grid, lambda setting, seed: 0.1 * seed + (0.6 if setting is None else 0.65))
    found = Findings(grid, results).gain(4)  # seeds differ by 0.2; the gain is the same in each
    assert found.mean == pytest.approx(0.05) and found.half == pytest.approx(0, abs=1e-12)


def test_main_effects_average_over_the_other_axis(grid):
    depth = {0: 0.0, 1: 0.02, 2: 0.05}
    results = filled(
        grid,
        lambda s, seed: 0.6 + 0.1 * seed + (depth[s // 2] + 0.01 * (s % 2) if s is not None else 0),
    )
    found = {name: gain.mean for name, gain in Findings(grid, results).main_effects()}
    assert found == pytest.approx(
        {
            "stage 2 unfrozen_blocks 1, against 0": 0.02,
            "stage 2 unfrozen_blocks 2, against 0": 0.05,
            "stage 2 lr 0.0001, against 0.0003": 0.01,
        }
    )


def test_a_seed_that_is_not_complete_does_not_count(grid):
    results = filled(grid, lambda s, seed: 0.6 + 0.01 * (s or 0))
    del results["06-seed2"]
    assert {gain.n for _, gain in Findings(grid, results).main_effects()} == {2, 3}
    assert Findings(grid, results).unfreezing().n == 2


def test_the_sentence_is_honest_when_the_interval_covers_0(grid):
    gains = {0: 0.02, 1: -0.03, 2: 0.02}
    text = Findings(
        grid, filled(grid, lambda s, seed: 0.6 + (0 if s is None else gains[seed]))
    ).sentence()
    assert "The interval covers 0" in text and "do not show that it helps" in text
    clear = Findings(
        grid, filled(grid, lambda s, seed: 0.6 + (0 if s is None else 0.02 + 0.001 * seed))
    ).sentence()
    assert clear.startswith(
        "Unfreezing changed the IoU by +0.021 (+0.019 to +0.023) against the same 5 epochs"
    )
    assert "The interval lies above 0" in clear
    harm = Findings(
        grid, filled(grid, lambda s, seed: 0.6 - (0 if s is None else 0.02 + 0.001 * seed))
    ).sentence()
    assert "The interval lies below 0" in harm


def test_one_seed_says_nothing_about_chance_and_none_says_nothing(tiny_recipe):
    grid = make_grid(tiny_recipe, {"stages.1.unfrozen_blocks": [0, 2]}, 1, **FACTS)
    assert (
        "nothing can be said about chance"
        in Findings(grid, filled(grid, lambda s, seed: 0.6)).sentence()
    )
    assert "not known yet" in Findings(grid, {}).sentence()


def test_depth_0_everywhere_is_no_unfreezing(tiny_recipe):
    recipe = tiny_recipe.settle({"stages.2.unfrozen_blocks": 0})[0]
    grid = make_grid(recipe, {"stages.1.unfrozen_blocks": [0, 1]}, 3, **FACTS)
    found = Findings(
        grid, filled(grid, lambda s, seed: {None: 0.6, 0: 0.9, 1: 0.7}[s])
    ).unfreezing()
    assert found.mean == pytest.approx(0.1)


# ---------------------------------------------------------------------- where an axis has no effect

FACTOR = "stages.1.encoder_lr_factor"


def ious_of_levels(grid, iou):
    """Results by `iou(levels of the axes, seed)`, of a control 0.5."""
    levels = {setting: levels for levels, setting in reversed([*np.ndenumerate(grid.places)])}
    return filled(grid, lambda s, seed: 0.5 if s is None else iou(levels[s], seed))


def test_a_setting_against_itself_is_no_difference(tiny_recipe):
    """Seed by seed and by hand: the factor's difference at depth 2 and at depth 4, and none at
    depth 0.
    """
    grid = make_grid(
        tiny_recipe, {"stages.1.unfrozen_blocks": [0, 2, 4], FACTOR: [0.1, 0.5]}, 3, **FACTS
    )
    assert len(grid.settings) == 5
    by_hand = {
        0: (-0.010, -0.050),
        1: (0.020, -0.004),
        2: (-0.030, -0.010),
    }  # seed: at depth 2, at depth 4
    results = ious_of_levels(
        grid, lambda at, seed: 0.6 + 0.1 * seed + (by_hand[seed][at[0] - 1] if at[1] else 0)
    )
    *_, (name, factor) = Findings(grid, results).main_effects()
    means = [-0.030, 0.008, -0.020]
    low, high = stats.t.interval(0.95, 2, loc=-0.014, scale=stats.sem(means))
    assert factor.mean == pytest.approx(-0.014)
    assert factor.half == pytest.approx((high - low) / 2)
    with_zeros = -0.014 * 2 / 3
    assert abs(factor.mean - with_zeros) > 0.004
    assert f"{name}: {factor}" == (
        "stage 2 encoder_lr_factor 0.5, against 0.1, at stage 2 unfrozen_blocks 2, 4: -0.014 "
        "(-0.063 to +0.035)"
    )


def test_the_depth_itself_is_taken_over_all_levels_and_says_nothing_of_them(tiny_recipe):
    grid = make_grid(
        tiny_recipe, {"stages.1.unfrozen_blocks": [0, 2], FACTOR: [0.1, 0.5]}, 2, **FACTS
    )
    results = ious_of_levels(grid, lambda at, seed: 0.6 + 0.02 * at[0] + 0.01 * at[0] * at[1])
    depth, factor = Findings(grid, results).main_effects()
    assert depth[1].mean == pytest.approx((0.02 + 0.03) / 2)
    assert factor[1].mean == pytest.approx(0.01)
    assert depth[0] == "stage 2 unfrozen_blocks 2, against 0"
    assert factor[0] == ("stage 2 encoder_lr_factor 0.5, against 0.1, at stage 2 unfrozen_blocks 2")


def test_an_axis_without_effect_anywhere_has_no_row(tiny_recipe):
    axes = {"stages.1.lr": [3e-4, 1e-4], "stages.1.schedule": [Constant(), Exponential(gamma=1.0)]}
    grid = make_grid(tiny_recipe, axes, 2, **FACTS)
    results = ious_of_levels(grid, lambda at, seed: 0.6 + 0.01 * at[0])
    ((name, gain),) = Findings(grid, results).main_effects()
    assert name.startswith("stage 2 lr ") and gain.mean == pytest.approx(0.01)


def test_a_seed_counts_once_the_pairs_that_count_have_ended(tiny_recipe):
    grid = make_grid(
        tiny_recipe, {"stages.1.unfrozen_blocks": [0, 2], FACTOR: [0.1, 0.5]}, 2, **FACTS
    )
    results = ious_of_levels(grid, lambda at, seed: 0.6)
    del results["01-seed0"]  # depth 0, of which the factor's effect says nothing
    depth, factor = Findings(grid, results).main_effects()
    assert depth[0].startswith("stage 2 unfrozen_blocks") and depth[1].n == 1
    assert factor[0].startswith("stage 2 encoder_lr_factor") and factor[1].n == 2


@pytest.mark.parametrize(
    ("axes", "where"),
    [
        (
            {"stages.1.unfrozen_blocks": [0, 2, 4], "stages.1.lr": [3e-4, 1e-4]},
            ", at stage 2 unfrozen_blocks 2, 4",
        ),
        (
            {"stages.1.unfrozen_blocks": [0, 2], "stages.1.schedule": [Constant(), Exponential()]},
            ", at stage 2 unfrozen_blocks 2",
        ),
        ({"stages.1.unfrozen_blocks": [2, 4]}, ""),
        ({"stages.1.unfrozen_blocks": [2, 4], "loss.dice": [0, 1]}, ""),
    ],
)
def test_a_row_names_the_axes_that_limit_it_and_no_others(axes, where, tiny_recipe):
    grid = make_grid(tiny_recipe, axes | {FACTOR: [0.1, 0.5]}, 1, **FACTS)
    *others, (factor, _) = Findings(grid, {}).main_effects()
    assert factor == f"stage 2 encoder_lr_factor 0.5, against 0.1{where}"
    assert not [name for name, _ in others if ", at " in name]


def test_pairs_that_no_list_of_levels_describes_are_named_one_by_one(tiny_recipe):
    places = np.array([[[0, 0], [1, 2]], [[3, 4], [5, 5]]])
    axes = {"stages.1.lr": [1e-3, 1e-4], "loss.dice": [0.0, 1.0], "batch_size": [2, 4]}
    grid = make_grid(tiny_recipe, axes, 1, **FACTS)._replace(places=places)
    results = filled(grid, lambda s, seed: 0.5 + 0.01 * (s or 0) ** 2)
    *_, (name, gain) = Findings(grid, results).main_effects()
    assert gain.mean == pytest.approx((0.04 - 0.01 + 0.16 - 0.09) / 2)
    assert name == "batch_size 4, against 2, at stage 2 lr · loss.dice 0.001 · 1, 0.0001 · 0"


def test_the_chart_says_what_the_effects_say_and_leaves_empty_what_was_not_trained(tiny_recipe):
    grid = make_grid(
        tiny_recipe, {"stages.1.unfrozen_blocks": [0, 2, 4], FACTOR: [0.1, 0.5]}, 2, **FACTS
    )
    results = ious_of_levels(grid, lambda at, seed: 0.6 + 0.1 * at[0] + 0.01 * at[1])
    figure = sweep_charts.figure(grid, results, {})
    heat = next(t for t in figure.data if t.type == "heatmap")
    assert [[v and round(v, 3) for v in row] for row in heat.z] == [
        [0.6, None],
        [0.7, 0.71],
        [0.8, 0.81],
    ]
    gains = figure.data[-1]
    rows = dict(zip((name.replace("<br>", " ") for name in gains.y), gains.x, strict=True))
    assert list(rows) == [
        "stage 2 encoder_lr_factor 0.5, against 0.1, at stage 2 unfrozen_blocks 2, 4",
        "stage 2 unfrozen_blocks 4, against 0",
        "stage 2 unfrozen_blocks 2, against 0",
        "unfreezing, against the same epochs in stage 1",
    ]
    assert min(gains.x) == rows[next(iter(rows))] == pytest.approx(0.01)


def test_a_row_of_the_chart_is_not_drawn_for_an_axis_without_effect(tiny_recipe):
    axes = {
        "stages.1.unfrozen_blocks": [2, 4],
        "stages.1.schedule": [Constant(), Exponential(gamma=1.0)],
    }
    grid = make_grid(tiny_recipe, axes, 1, **FACTS)
    figure = sweep_charts.figure(grid, ious_of_levels(grid, lambda at, seed: 0.6), {})
    names = figure.data[-1].y
    assert len(names) == 2 and not any("schedule" in name for name in names)
