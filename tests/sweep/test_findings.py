"""Means, intervals, effects and the sentence, against numbers worked out by hand and against scipy."""

from __future__ import annotations

import pytest
from scipy import stats

from vitseg.sweep.findings import Result, estimate, gain, main_effects, sentence, unfreezing
from vitseg.sweep.grid import Facts, make_grid

FACTS = Facts(train_images=10, blocks=4)


def filled(grid, iou):
    """Results by `iou(setting or None, seed)`."""
    return {t.name: Result(iou(t.setting, t.seed), 0.5, (), 1.0) for t in grid.trials}


@pytest.fixture
def grid(tiny_recipe):
    return make_grid(tiny_recipe, {"stages.1.unfrozen_blocks": [0, 1, 2], "stages.1.lr": [3e-4, 1e-4]}, 3, FACTS)


def test_an_interval_is_student_s():
    values = [0.70, 0.72, 0.77]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    found = estimate(values)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), abs=1e-12)
    assert estimate([0.7]).half is None and estimate([0.7]).covers_0 and estimate([]) is None


def test_gains_are_paired_by_seed(grid):
    results = filled(grid, lambda setting, seed: 0.1 * seed + (0.6 if setting is None else 0.65))
    found = gain(grid, results, 4)  # seeds differ by 0.2; the gain is the same in each
    assert found.mean == pytest.approx(0.05) and found.half == pytest.approx(0, abs=1e-12)


def test_main_effects_average_over_the_other_axis(grid):
    depth = {0: 0.0, 1: 0.02, 2: 0.05}
    results = filled(grid, lambda s, seed: 0.6 + 0.1 * seed + (depth[s // 2] + 0.01 * (s % 2) if s is not None else 0))
    found = {(e.axis, e.value): e.gain.mean for e in main_effects(grid, results)}
    assert found == pytest.approx(
        {("stage 2 unfrozen_blocks", "1"): 0.02, ("stage 2 unfrozen_blocks", "2"): 0.05, ("stage 2 lr", "0.0001"): 0.01}
    )


def test_a_seed_that_is_not_complete_does_not_count(grid):
    results = filled(grid, lambda s, seed: 0.6 + 0.01 * (s or 0))
    del results["06-seed2"]
    assert {e.gain.n for e in main_effects(grid, results)} == {2, 3}
    assert unfreezing(grid, results).n == 2


def test_the_sentence_is_honest_when_the_interval_covers_0(grid):
    gains = {0: 0.02, 1: -0.03, 2: 0.02}
    text = sentence(grid, filled(grid, lambda s, seed: 0.6 + (0 if s is None else gains[seed])))
    assert "The interval covers 0" in text and "do not show that it helps" in text
    clear = sentence(grid, filled(grid, lambda s, seed: 0.6 + (0 if s is None else 0.02 + 0.001 * seed)))
    assert clear.startswith("Unfreezing changed the IoU by +0.021 (+0.019 to +0.023) against the same 5 epochs")
    assert "The interval lies above 0" in clear
    harm = sentence(grid, filled(grid, lambda s, seed: 0.6 - (0 if s is None else 0.02 + 0.001 * seed)))
    assert "The interval lies below 0" in harm


def test_one_seed_says_nothing_about_chance_and_none_says_nothing(tiny_recipe):
    grid = make_grid(tiny_recipe, {"stages.1.unfrozen_blocks": [0, 2]}, 1, FACTS)
    assert "nothing can be said about chance" in sentence(grid, filled(grid, lambda s, seed: 0.6))
    assert "not known yet" in sentence(grid, {})


def test_depth_0_everywhere_is_no_unfreezing(tiny_recipe):
    recipe = tiny_recipe.settle({"stages.2.unfrozen_blocks": 0})[0]
    grid = make_grid(recipe, {"stages.1.unfrozen_blocks": [0, 1]}, 3, FACTS)
    found = unfreezing(grid, filled(grid, lambda s, seed: {None: 0.6, 0: 0.9, 1: 0.7}[s]))
    assert found.mean == pytest.approx(0.1)


def test_what_is_left_out_still_stands_in_the_main_effect(tiny_recipe):
    axes = {"stages.1.unfrozen_blocks": [0, 2], "stages.1.encoder_lr_factor": [0.5, 1.0]}
    grid = make_grid(tiny_recipe, axes, 2, FACTS)
    assert len(grid.settings) == 3
    results = filled(grid, lambda s, seed: {None: 0.6, 0: 0.6, 1: 0.7, 2: 0.74}[s])
    factor = next(e for e in main_effects(grid, results) if e.axis.endswith("factor"))
    assert factor.gain.mean == pytest.approx((0 + 0.04) / 2)
