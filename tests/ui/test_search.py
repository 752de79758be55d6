"""A search on the screen: its plan, its table, its figures, its buttons."""

from __future__ import annotations

import pytest
from background import until

import vitseg
from vitseg.errors import ConfigError, RunError
from vitseg.events import EpochEnded
from vitseg.ui import theme

optuna = pytest.importorskip("optuna")
from optuna.distributions import FloatDistribution  # noqa: E402

SPACE = {"stages.1.unfrozen_blocks": [0, 1], "stages.1.lr": FloatDistribution(1e-5, 1e-2, log=True)}


@pytest.fixture
def recipe(tiny_recipe):
    return tiny_recipe.replace(
        {"stages": tiny_recipe.stages[:2], "stages.0.epochs": 1, "stages.1.epochs": 1}
    )


def test_a_search_from_start_to_figures(recipe, tmp_path, capsys):
    page = vitseg.search(recipe, SPACE, 3, tmp_path / "s", sampler="random", pruner="none")
    assert page.state == "ready" and "1e-05 to 0.01, evenly on a log scale" in str(page)
    assert page.finish() == tmp_path / "s" and page.state == "ended"
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert [len(page.table.rows), *page.frame()["state"]] == [3, "complete", "complete", "complete"]
    assert page.table.caption.startswith("The best 3 of 3.")
    ious = [float(row[-1]) for row in page.table.rows]
    assert ious == sorted(ious, reverse=True) and page.best.stages[1].lr in list(
        page.frame()["stages.1.lr"]
    )
    best = page.show().data[1].y
    assert list(best) == sorted(best) and best[-1] == page.frame()["iou"].max()
    for figure in (page.show(), page.parallel(), page.slices()):
        assert figure.layout.template == theme.TEMPLATE
    with pytest.raises(RunError, match="cannot be said of 3 trials"):
        page.importance()
    assert "3 of 3 trials have ended." in page.status.value
    again = vitseg.search(recipe, SPACE, 3, tmp_path / "s", sampler="random", pruner="none")
    assert again.state == "ended" and again.buttons["Start"].disabled


def page_of(recipe, space, folder, trials):
    """A search whose trials have ended, given as (the space's values, IoU)."""
    page = vitseg.search(recipe, space, len(trials), folder)
    for values, iou in trials:
        done = optuna.trial.create_trial(
            params=dict(zip(space, values, strict=True)), distributions=page.search.space, value=iou
        )
        page.search.study.add_trial(done)
    return page


def test_the_figures_are_the_trials(recipe, tmp_path):
    trials = [((n % 2, 1e-4 * (1 + n)), 1e-3 * (1 + n)) for n in range(24)]
    page = page_of(recipe, SPACE, tmp_path / "s", trials)
    (bars,) = page.importance().data
    assert bars.y[-1] == "stage 2 lr" and bars.x[-1] == max(bars.x)
    assert sum(bars.x) == pytest.approx(1)
    *lines, _ = page.parallel().data  # the last is the colour bar
    labels = [f"stage 2 {name}" for name in ("lr", "unfrozen_blocks")]
    assert list(page.parallel().layout.xaxis.ticktext) == ["valid IoU", *labels]
    drawn = {tuple(text for _, text in line.customdata) for line in lines}
    assert drawn == {(f"{iou:.3g}", f"{lr:.3g}", str(depth)) for (depth, lr), iou in trials}
    by_lr, by_depth = page.slices().data
    ious = [iou for _, iou in trials]
    assert list(by_lr.x) == [lr for (_, lr), _ in trials] and list(by_lr.y) == ious
    assert list(by_depth.x) == ["0"] * 12 + ["1"] * 12 and sorted(by_depth.y) == ious
    assert page.slices().layout.xaxis.type == "log"


def test_a_value_without_effect_is_no_result_of_that_value(recipe, tmp_path):
    space = {
        "stages.1.unfrozen_blocks": [0, 1],
        "stages.1.encoder_lr_factor": FloatDistribution(0.1, 1.0),
    }
    trials = [((0, 0.2), 0.9), ((1, 0.3), 0.5), ((0, 0.4), 0.8), ((1, 0.6), 0.6)]
    page = page_of(recipe, space, tmp_path / "s", trials)
    by_factor, by_depth = page.slices().data
    assert list(by_depth.x) == ["0", "0", "1", "1"] and list(by_depth.marker.color) == [0, 2, 1, 3]
    assert list(zip(by_factor.x, by_factor.y, by_factor.marker.color, strict=True)) == [
        (0.3, 0.5, 1),
        (0.6, 0.6, 3),
    ]
    *lines, _ = page.parallel().data
    drawn = {line.customdata[0][1]: line.customdata[1][1] for line in lines}
    assert drawn == {"0.9": "None", "0.5": "0.3", "0.8": "None", "0.6": "0.6"}
    rows = {row[0]: row[1:3] for row in page.table.rows}
    assert rows == {
        "0000": ("0", "no effect"),
        "0002": ("0", "no effect"),
        "0003": ("1", "0.6"),
        "0001": ("1", "0.3"),
    }


def test_the_cell_run_again_gives_the_live_one_and_stop_lets_another_kernel_go_on(recipe, tmp_path):
    page = vitseg.search(recipe, SPACE, 50, tmp_path / "s")
    page.start()
    assert vitseg.search(recipe, SPACE, 50, tmp_path / "s").session is page.session
    until(lambda: page.search.results())
    page.stop()
    assert page.wait() == "stopped"
    assert "Start trains the remaining" in page.status.value and not page.buttons["Start"].disabled


def test_stop_in_the_last_trial_and_start_goes_on_with_it(recipe, tmp_path):
    page = vitseg.search(
        recipe.replace({"stages.1.epochs": 20}), SPACE, 1, tmp_path / "s", pruner="none"
    )
    page.start()
    until(lambda: any(isinstance(e, EpochEnded) for e in page.session.events))
    page.stop()
    assert page.wait() == "stopped"
    assert "Start trains the remaining" in page.status.value and not page.buttons["Start"].disabled
    again = vitseg.search(
        recipe.replace({"stages.1.epochs": 20}), SPACE, 1, tmp_path / "s", pruner="none"
    )
    assert again.state == "ready"
    again.finish()
    assert list(again.frame()["state"]) == ["complete"] and again.state == "ended"


def test_more_blocks_than_there_are_is_said_before_a_trial_is_proposed(recipe, tmp_path):
    with pytest.raises(ConfigError, match="unfrozen_blocks"):
        vitseg.search(recipe, {"stages.1.unfrozen_blocks": [0, 99]}, 3, tmp_path / "s")
