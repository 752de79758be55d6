"""The workbench: one cell in which a run is set up, seen beforehand, watched and interfered
with.
"""

from pathlib import Path
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go
from IPython import get_ipython

from vitseg.events import Event, StageStarted
from vitseg.model.freeze import model_parts
from vitseg.model.segmenter import Segmenter, load_segmenter
from vitseg.plan import batch_notes
from vitseg.presets import quick
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.training.job import Job
from vitseg.ui import charts, table
from vitseg.ui.console import progress, say
from vitseg.ui.live import current
from vitseg.ui.markup import STYLE, html, lines
from vitseg.ui.screen import Screen, live_figure
from vitseg.ui.session import Session
from vitseg.ui.tabs import Tabs
from vitseg.ui.widgets import Fit


class Workbench(Screen):
    """Set up, watch and steer a training from one cell.

    Takes a recipe, a folder of images and masks (for which `quick` makes the recipe), or a run
    folder. Training goes on in the background; `start`, `pause`, `resume`, `stop`, `fork` and
    `wait` do what the buttons do. Running the cell again while its run is alive attaches to that
    run. With `reuse`, stages that an earlier run has finished alike are not trained again. Raises
    VitsegError for data or settings that cannot work.
    """

    session: Session

    def __init__(self, recipe_or_folder: Recipe | str | Path | None = None, *, reuse: bool = True):
        s = _session_of(recipe_or_folder, reuse)
        super().__init__(s)
        tip = "Start the next run from the end of a finished stage of this one"
        self.add_button("Fork", self.fork, tip)
        self.controls = s.controls
        self.controls.changed = self._changed
        self.tabs = Tabs(self)
        self.heading, self.stage_table = w.HTML(), w.HTML()
        self.freeze_map, self.notes = w.HTML(), w.HTML()
        self._drawn = {}
        self.figure = live_figure(charts.curves_figure(s.curves, s.parent))
        self.box = w.VBox(
            [
                w.HTML(STYLE + _what_is_trained(s)),
                self.heading,
                self.stage_table,
                self.controls.box,
                self.notes,
                self.steering,
                self.freeze_map,
                self.figure,
                Fit(),
                self.tabs.box,
            ]
        )
        self.draw()
        self._paint_while_alive()
        self.time_batches()
        if shell := get_ipython():
            shell.events.register("post_run_cell", self._after_cell)

    # ---- what the buttons do, and what other cells may ask

    def fork(self) -> None:
        """Start from the end of the stage before the edited one: change the later stages, then
        press Start.
        """
        self.session.fork()
        self._changed()

    def _open(self) -> None:
        s = self.session
        if not s.phase:
            ahead = s.forecast()
            for words in (
                table.stages(s.recipe, (), ahead),
                *table.memory_notes(ahead, s.job.machine),
            ):
                say(str(words))
            self.start()

    _printed = staticmethod(progress)

    def show(self) -> go.Figure:
        """The curves as a static figure, for a report or a page without live widgets."""
        return charts.curves_figure(self.session.curves, self.session.parent, None)

    @property
    def events(self) -> list[Event]:
        return list(self.session.events)

    @property
    def recipe(self) -> Recipe:
        """What is being trained, or else what Start would train."""
        return self.session.trained if self.session.alive else self.controls.recipe

    @property
    def model(self) -> Segmenter:
        """A copy of the model as it is now, in eval mode, taken between two steps. Of a run of the
        past, its best weights.
        """
        s = self.session
        if s.phase or not s.path:
            return s.between(lambda: s.job.model.snapshot())
        return load_segmenter(s.path)

    @property
    def folder(self) -> Path | None:
        """The run folder, once there is one."""
        return self.session.path

    # ---- the screen

    def __str__(self) -> str:
        return (
            f"{table.stages(self.controls.recipe)}\n(A workbench: live in JupyterLab; "
            f"here, wb.start() and wb.wait().)"
        )

    def _changed(self) -> None:
        """A control was moved. A run that is under way goes on as it is."""
        with self.lock:
            self.session.preview = self.session.edited and not self.session.alive
            self._draw_plan()
            self.draw_news()

    def draw(self) -> None:
        with self.lock:
            self._draw_plan()
            self.tabs.draw()
            self.draw_news()

    def draw_news(self) -> None:
        self._draw_curves()
        self.draw_status()

    def _draw_plan(self) -> None:
        """What may be chosen, heading, stage table, freeze map, and what is worth knowing about a
        stage.
        """
        s, recipe, edited = self.session, self.session.recipe, self.controls.stage
        self.buttons["Fork"].disabled = not s.fork_point().stage
        self.heading.value = lines([("heading", f"{s.heading()} {s.path or ''}")])
        self.controls.offer(self.controls.start)
        job, ahead = s.plan_of(recipe), s.forecast() if s.cost else []
        rows = self._stage_parts(job)
        self.stage_table.value = html(table.stages(recipe, rows, ahead, edited))
        self.freeze_map.value = html(charts.freeze_map(rows))
        notes = [f"Stage {edited} is not part of this run."]
        if edited <= len(recipe.stages):
            notes = job.notes(edited)
        bad = job.data.warnings + batch_notes(recipe, job.images)
        if s.preview:
            bad += table.memory_notes(ahead, s.job.machine)
        said = dict.fromkeys(bad + notes)
        self.notes.value = lines(("bad" if n in bad else "quiet", n) for n in said)

    def _stage_parts(self, job: Job) -> list[tuple[str, list[dict[str, Any]]]]:
        """The rows of `charts.freeze_map`: stages that have started as the events found them, the
        others as planned; parts that broke the promise of what trains are marked.
        """
        s, started, broken = self.session, {}, ()
        if not s.preview:
            started = {e.stage: e.parts for e in s.events if isinstance(e, StageStarted)}
            if failure := s.failure():
                broken = failure.parts
        sizes = []
        for part in model_parts(job.model).values():
            count = sum(p.numel() for p in part.parameters)
            sizes.append({"name": part.name, "block": part.block, "parameters": count})
        rows = []
        for plan in job.stages:
            planned = [size | {"trains": size["name"] in plan.trained} for size in sizes]
            parts = started.get(plan.number) or planned
            if plan.number == len(s.ended) + 1:
                parts = [part | {"broken": part["name"] in broken} for part in parts]
            rows.append((f"{plan.number} {plan.stage.name}", parts))
        return rows

    def _draw_curves(self) -> None:
        """Of the curves that are on the screen already, only those that have grown or moved."""
        s, figure, drawn = self.session, self.figure, self._drawn
        curves, beneath = s.curves, s.parent
        if s.preview:
            curves, beneath = s.planned(self.controls.chosen()), s.curves
        with figure.batch_update():
            for trace in figure.data:
                points = charts.points_of(trace.name, curves, beneath)
                now = points, len(points)  # before they are read: another thread adds to them
                if drawn.get(trace.name) != now:
                    trace.update(points.trace(charts.POINTS))
                    drawn[trace.name] = now
            if drawn.get("bands") != curves.bands:  # assigned: `update` would never shorten a list
                layout = charts.curves_figure(curves).layout
                figure.layout.shapes, figure.layout.annotations = layout.shapes, layout.annotations
                drawn["bands"] = curves.bands

    # ---- the rest

    def _after_cell(self, result: Any) -> None:
        """An interrupt is meant for a cell; the run in the background goes on, and says so."""
        interrupted = isinstance(result.error_in_exec, KeyboardInterrupt)
        if interrupted and self.session.alive and self.session.screen is self:
            self.note = "The interrupt ended a cell, not the training; press Stop for that."
            self.draw_status()


def _session_of(asked: Recipe | str | Path | None, reuse: bool) -> Session:
    """The session of the live run that a cell means, by the recipe whose workbench started it or by
    its folder; else a new one.
    """
    shown, recipe = None, asked
    if not isinstance(asked, Recipe):
        run = RunFolder(asked or ".")
        if asked and (run.path / "recipe.json").exists():
            shown, recipe = run.path, run.recipe
        else:
            recipe = quick(asked)
    live = current()
    if isinstance(live, Session) and (shown or recipe) in (live.path, live.asked):
        return live
    session = Session(recipe)
    session.controls["Retrain"].value = not reuse
    if shown:
        session.show(shown)
    return session


def _what_is_trained(session: Session) -> str:
    """Data, encoder, decoder and device in one line."""
    recipe, job = session.controls.base, session.job
    encoder, splits = job.model.shape.source, job.data.splits
    words = (
        f"{recipe.name} · {recipe.data.source.kind}, {len(splits['train'])} / {len(splits['validation'])} images · "
        f"{encoder['name']} ({encoder['source']}) · {recipe.model.decoder} · {job.machine}"
    )
    return lines([("heading", words)])
