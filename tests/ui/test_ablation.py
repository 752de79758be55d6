"""The ablation on the screen: the plan before it runs, a table that fills, and what is said at the
end.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from background import trial_that_fails, until
from plotly.utils import PlotlyJSONEncoder

import vitseg
from vitseg.errors import RunError, TrainingError
from vitseg.events import EpochEnded
from vitseg.sweep.findings import Result
from vitseg.sweep.grid import make_grid
from vitseg.ui import sweep_charts
from vitseg.ui.screen import live_figure, redraw
from vitseg.ui.table import Table
from vitseg.ui.workbench import Workbench

AXES = {"stages.1.unfrozen_blocks": [0, 2]}


@pytest.fixture
def recipe(tiny_recipe):
    return tiny_recipe.replace({"stages.0.epochs": 1, "stages.1.epochs": 1})


def test_the_plan_is_there_before_anything_is_trained(recipe):
    ablation = vitseg.ablate(recipe, AXES, seeds=2)
    plan = ablation.plan.value
    assert (
        "6 (settings x seeds: 2 x 2, controls: 2)" in plan
        and "12 to train; 2 are taken from an earlier trial" in plan
    )
    assert ablation.state == "ready" and not ablation.sweep.path.exists()
    assert "0 of 6 trials have ended. Start trains the remaining 6." in ablation.status.value
    ablation._repr_mimebundle_()  # as when the cell shows it
    until(lambda: "0 %, about" in ablation.bar.description)
    assert "not known yet" in ablation.sentence


def test_a_sweep_from_start_to_sentence(recipe):
    ablation = vitseg.ablate(recipe, AXES, seeds=2)
    ablation.buttons["Start"].click()
    assert ablation.wait() == "ended"
    until(lambda: "6 of 6 trials have ended." in ablation.status.value)
    assert ablation.bar.value == 1.0
    frame = ablation.frame()
    assert (
        list(frame["trial"]) == [t.name for t in ablation.grid.trials]
        and frame["iou"].notna().all()
    )
    assert frame["control"].sum() == 2 and frame["error"].isna().all()
    for name, iou in zip(frame["trial"], frame["iou"], strict=True):
        assert ablation.sweep.run_of(name).summary["best"]["iou"] == iou
    assert ablation.table.rows[0][1:3] == tuple(
        f"{v:.3f}" for v in frame[frame.trial.str.startswith("01")]["iou"]
    )
    assert "against the same 3 epochs spent wholly in stage 1" in ablation.sentence
    assert ablation.sentence in ablation.plan.value
    heat = next(t for t in ablation.show().data if t.type == "heatmap")
    means = frame[~frame.control].groupby("stages.1.unfrozen_blocks")["iou"].mean()
    np.testing.assert_allclose(np.array(heat.z, float).ravel(), means.to_numpy())
    assert [
        len(t.x) for t in ablation.figure.data if t.type == "scatter" and t.mode == "lines"
    ] == [3] * 6
    assert len(pd.read_csv(ablation.csv())) == 6
    page = ablation.report().read_text()
    assert ablation.sentence in page and not re.findall(r"<(?:script|img|link)[^>]*https?:", page)


def test_a_later_kernel_finds_the_folder_and_goes_on(recipe):
    first = vitseg.ablate(recipe, AXES, seeds=2)
    first.start()
    until(lambda: len(first.sweep.results()) == 2)
    first.stop()
    first.wait()
    again = vitseg.ablate(recipe, AXES, seeds=2)
    assert again is not first and again.sweep.path == first.sweep.path and again.state == "ready"
    assert "trials have ended. Start trains the remaining" in again.status.value
    kept = again.frame()["iou"].dropna()
    assert again.finish() == first.sweep.path
    assert len(again.sweep.results()) == 6 and list(again.frame()["iou"][: len(kept)]) == list(kept)


def test_the_cell_run_again_gives_the_live_one_and_no_second_trainer(recipe):
    ablation = vitseg.ablate(recipe, AXES, seeds=1)
    ablation.start()
    assert vitseg.ablate(recipe, AXES, seeds=1).session is ablation.session
    ablation.start()
    workbench = Workbench(recipe)
    with pytest.raises(TrainingError, match="is training in this kernel"):
        workbench.start()
    other = vitseg.ablate(recipe, {"stages.1.unfrozen_blocks": [0, 1]}, seeds=1)
    assert other.buttons["Start"].disabled and "is training in this kernel" in other.status.value
    ablation.stop()
    ablation.wait()


def test_pause_and_resume_change_no_number(recipe, tmp_path):
    ablation = vitseg.ablate(recipe, AXES, seeds=1)
    for verb in (ablation.pause, ablation.resume):
        with pytest.raises(RunError, match=r"Nothing has been started\. Press Start\."):
            verb()
    ablation.start()
    until(lambda: any(isinstance(e, EpochEnded) for e in ablation.session.events))
    ablation.pause()
    until(lambda: ablation.state == "paused")
    ablation.draw()
    assert ablation.buttons["Pause"].description == "Resume"
    ablation.buttons["Pause"].click()
    assert ablation.wait() == "ended"
    list(vitseg.train(ablation.grid.trials[0].recipe, tmp_path / "alone", reuse=False))
    path = ablation.sweep.run_of("01-seed0").path / "events.jsonl"
    assert path.read_bytes() == (tmp_path / "alone" / "events.jsonl").read_bytes()


def test_a_trial_that_fails_is_shown_and_the_others_go_on(recipe, monkeypatch):
    trial_that_fails(monkeypatch, "02-seed0", "The loss of step 9 is nan.")
    ablation = vitseg.ablate(recipe, AXES, seeds=1)
    ablation.start()
    ablation.wait()
    assert "02-seed0 failed: TrainingError: The loss of step 9 is nan." in ablation.status.value
    assert [row[1] for row in ablation.table.rows][1] == "failed"
    assert not ablation.buttons["Start"].disabled


# ---------------------------------------------------------------------- what a page is sent


class Page:
    """The model of a figure in a page, which stores whatever a message holds, "_undefined_" too; a
    null removes.
    """

    def __init__(self, figure: go.FigureWidget):
        self.traces = figure.get_state()["_widget_data"]
        figure.observe(lambda change: self.take(change["new"]), "_py2js_update")

    def take(self, message: dict | None) -> None:
        for path, values in (message or {}).get("style_data", {}).items():
            for number, value in zip(message["style_traces"], values, strict=True):
                *parents, last = path.split(".")
                place = self.traces[number]
                for name in parents if value is not None else ():
                    place = place.setdefault(name, {})
                if value is None:
                    place.pop(last, None)
                else:
                    place[last] = value


def sweep_figures(recipe):
    grid = make_grid(
        recipe, {"stages.1.unfrozen_blocks": [0, 2], "stages.1.lr": [3e-4, 1e-4]}, 2, 10, 4
    )
    for ended in range(
        len(grid.trials) + 1
    ):  # each message is of a curve, the heat map, the gains, or some of them
        results = {
            t.name: Result(0.5 + 0.01 * n, 0.5, {}, 1.0) for n, t in enumerate(grid.trials[:ended])
        }
        yield sweep_charts.figure(
            grid, results, {name: {1: 0.4, 2: r.iou} for name, r in results.items()}
        )


def curve_figures(recipe):
    """As the workbench and a search have them: one curve grows, while of another the heights change
    alone, or it is removed.
    """
    for x, other in (([1], [1]), ([1, 2], [2]), ([1, 2, 3], [3]), ([1, 2, 3, 4], None)):
        yield go.Figure(
            [go.Scatter(x=x, y=x), go.Scatter(x=other and [1], y=other, error_x={"array": other})]
        )


def as_json(traces) -> str:
    return json.dumps(traces, cls=PlotlyJSONEncoder, sort_keys=True)


@pytest.mark.parametrize("figures", [sweep_figures, curve_figures])
def test_a_page_that_is_open_has_what_the_kernel_has(figures, recipe):
    first, *later = figures(recipe)
    shown = live_figure(first)
    page = Page(shown)
    for figure in later:
        redraw(shown, figure)
        assert as_json(page.traces) == as_json(shown.data)


def test_plotly_s_own_figure_would_leave_the_page_without(recipe):
    first, *later = sweep_figures(recipe)
    shown = go.FigureWidget(first)
    page = Page(shown)
    for figure in later:
        redraw(shown, figure)
    with pytest.raises(TypeError):  # plotly's mark of what a message does not hold is no JSON
        as_json(page.traces)


def test_words_wrap_numbers_do_not_and_the_caption_stands_outside_of_what_scrolls():
    numbers = ("+0.012 (+0.004 to +0.019)", "85.67 M of 86.6 M", "1.00e-03", "2.0 x")
    words = ("cosine restarts / batch", "2 (stopped early)", "<b>bold</b>")
    page = Table(
        ("a head", "b"), tuple((cell, "") for cell in numbers + words), "What it <says>"
    )._repr_html_()
    for number in numbers:
        assert f"<td class=line>{number}</td>" in page
    for text in ("cosine restarts / batch", "2 (stopped early)", "&lt;b&gt;bold&lt;/b&gt;"):
        assert f"<td>{text}</td>" in page
    assert "<th>a head</th>" in page
    assert (
        page.index("What it &lt;says&gt;") < page.index("<div class=scroll>") < page.index("<table")
    )
