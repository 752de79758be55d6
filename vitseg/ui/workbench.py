"""The workbench: one cell in which a run is set up, seen beforehand, watched and interfered
with.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import ipywidgets as w
import plotly.graph_objects as go
from IPython import get_ipython

from vitseg.events import Event
from vitseg.model.freeze import model_parts
from vitseg.model.segmenter import Segmenter
from vitseg.plan import batch_notes
from vitseg.presets import quick
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.ui import charts, panels, table
from vitseg.ui.console import progress, say
from vitseg.ui.controls import Controls
from vitseg.ui.curves import Band, Curves, Points
from vitseg.ui.live import current
from vitseg.ui.screen import Screen, live_figure
from vitseg.ui.session import Session
from vitseg.ui.tabs import Tabs
from vitseg.ui.widgets import Fit

FORK = "Start the next run from the end of a finished stage of this one"

_views: WeakKeyDictionary[Session, threading.Event] = WeakKeyDictionary()
"""What ends the drawing of the newest view of a session, once there is a newer one."""


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
        asked, shown = _recipe_of(recipe_or_folder)
        session = _attachable(asked, shown)
        if session is None:
            session = Session(asked)
            session.desk.retrain = not reuse
            if shown is not None:
                session.show(shown)
        super().__init__(
            session,
            start="Train what the controls say, in a new run folder",
            stop="End after this batch; Resume goes on from there",
        )
        self.add_button("Fork", self.fork, FORK)
        if session in _views:
            _views[session].set()
        _views[session] = self.closed
        self._build()
        self.draw()
        if session.alive:
            self._paint_while_alive()
        self._time_batches()
        if shell := get_ipython():
            shell.events.register("post_run_cell", self._after_cell)

    # ---- what the buttons do, and what other cells may ask

    def fork(self) -> None:
        """Start from the end of the stage before the edited one: change the later stages, then
        press Start.
        """
        self.session.fork()
        self.controls.fill()
        self._changed()

    def _open(self) -> None:
        if self.session.live is None:
            ahead = self.session.forecast()
            notes = table.memory_notes(ahead, self.session.job.machine)
            say("\n".join([str(table.ahead(self.recipe, ahead)), *notes]))
            self.start()

    def _printed(self, events: Iterable[Event]) -> Iterator[Event]:
        return progress(events)

    def show(self) -> go.Figure:
        """The curves as a static figure, for a report or a page without live widgets."""
        return charts.curves_figure(self.session.curves, self.session.parent)

    @property
    def events(self) -> list[Event]:
        return list(self.session.events)

    @property
    def recipe(self) -> Recipe:
        """What is being trained, or else what Start would train."""
        return self.session.trained if self.session.alive else self.session.desk.recipe

    @property
    def model(self) -> Segmenter:
        """A copy of the model as it is now, in eval mode, taken between two steps."""
        return self.session.model

    @property
    def folder(self) -> Path | None:
        """The run folder, once there is one."""
        return self.session.path

    # ---- the screen

    def _build(self) -> None:
        s = self.session
        self.controls = Controls(s.desk, self._changed)
        self._counts = {}
        for name, part in model_parts(s.job.model).items():
            self._counts[name] = sum(p.numel() for p in part.parameters)
        self.heading, self.stage_table = w.HTML(), w.HTML()
        self.freeze_map, self.notes = w.HTML(), w.HTML()
        self._nothing = Curves()
        self._drawn: dict[str, tuple[Points, int]] = {}
        self._bands: list[Band] = []
        self._known = ""
        self.figure = live_figure(charts.curves_figure(s.curves, self._nothing, charts.POINTS))
        self.tabs = Tabs(s, self, self._turned_to_another)
        self.box = w.VBox(
            [
                w.HTML(panels.STYLE + _what_is_trained(s)),
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

    def __str__(self) -> str:
        return (
            f"{table.stages(self.session.desk.recipe)}\n(A workbench: live in JupyterLab; "
            f"here, wb.start() and wb.wait().)"
        )

    def _changed(self) -> None:
        """A control was moved. A run that is under way goes on as it began."""
        with self.lock:
            self.session.changed()
            self._draw_stages()
            if not self.session.alive:
                self._draw_curves()
                self.controls.offer_starts(self.session.starts())
            self.draw_status()

    def draw(self) -> None:
        with self.lock:
            self._draw_stages()
            if not self._drawn or not self.session.alive:
                self.controls.offer_starts(self.session.starts())
            self.tabs.draw()
            self._known = ""
            self.draw_news()

    def draw_news(self) -> None:
        with self.lock:
            if self._known != self.state:
                self._known = self.state
                self.tabs.draw_runs()
            self._draw_curves()
            self.draw_status()

    def _draw_stages(self) -> None:
        """Stage table, freeze map, and what is worth knowing about the schedule."""
        s = self.session
        new, edited = s.preview or s.trained is None, s.desk.stage
        recipe = s.desk.recipe if new else s.trained
        ahead = ()
        if s.cost:
            ahead = s.forecast() if new else s.forecast(recipe)
        events, broken = ((), {}) if s.preview else (s.events, s.broken())
        rows = panels.stage_parts(recipe, self._counts, s.desk.depth, events, broken)
        self.stage_table.value = panels.html(table.stages(recipe, rows, ahead, edited))
        self.freeze_map.value = panels.html(charts.freeze_map(rows, edited))
        if edited > len(recipe.stages):
            notes = [f"Stage {edited} is not part of this run."]
        else:
            notes = s.plan_of(recipe).notes(edited)
            if ahead and (recipe.cache or ahead[edited - 1].inherited):
                notes.append(panels.kept_words(ahead[edited - 1]))
        data = s.job.data
        bad = data.warnings + batch_notes(recipe, len(data.splits["train"]))
        if new:
            bad += table.memory_notes(ahead, s.job.machine)
        said = [("bad", "", note) for note in bad]
        said += [("quiet", "", note) for note in notes if note not in bad]
        self.notes.value = panels.lines(said)

    def _draw_curves(self) -> None:
        """Of the curves that are on the screen already, only those that have grown or moved."""
        s, figure, drawn = self.session, self.figure, self._drawn
        curves = s.planned() if s.preview else s.curves
        beneath = s.curves if s.preview and s.events else s.parent or self._nothing
        with figure.batch_update():
            for trace in figure.data:
                points = charts.points_of(trace.name, curves, beneath)
                count = len(points)  # before they are read: another thread adds to them
                before, had = drawn.get(trace.name, (None, 0))
                if before is not points or had != count:
                    trace.update(points.trace(charts.POINTS))
                    drawn[trace.name] = points, count
            if curves.bands != self._bands:  # assigned: `update` would never shorten a list
                layout = charts.curves_figure(curves, most=charts.POINTS).layout
                figure.layout.shapes, figure.layout.annotations = layout.shapes, layout.annotations
                self._bands = curves.bands

    def draw_status(self) -> None:
        with self.lock:
            s, fork = self.session, self.buttons["Fork"]
            last = len(s.desk.base.stages)
            fork.disabled = not any(end.stage < last for end in s.stage_ends())
            why = ": there is no finished stage that another could follow"
            fork.tooltip = FORK + why * fork.disabled
            words, folder = s.heading()
            place = f" <span class=quiet>{escape(folder)}</span>" if folder else ""
            self.heading.value = panels.html(f"<p><b>{escape(words)}</b>{place}</p>")
            super().draw_status()

    # ---- the rest

    def _turned_to_another(self) -> None:
        self.controls.fill()
        self.draw()
        self._time_batches()

    def _after_cell(self, result: Any) -> None:
        """An interrupt is meant for a cell; the run in the background goes on, and says so."""
        interrupted = isinstance(result.error_in_exec, KeyboardInterrupt)
        if interrupted and self.session.alive and not self.closed.is_set():
            self.note = "The interrupt ended a cell, not the training; press Stop for that."
            self.draw_status()


def _attachable(asked: Recipe, shown: Path | None) -> Session | None:
    """The session of the live run that a cell means: it asks for the recipe whose workbench started
    it, or for its folder.
    """
    live = current()
    if live is None or not isinstance(live.owner, Session):
        return None
    session = live.owner
    meant = session.asked == asked if shown is None else session.path == shown
    return session if meant else None


def _what_is_trained(session: Session) -> str:
    """Data, encoder, decoder and device in one line."""
    recipe, job = session.desk.base, session.job
    source, splits = job.model.shape.source, job.data.splits
    name = recipe.data.source.kind if recipe.data.source.kind == "generated" else recipe.name
    encoder = f"{source['name']} ({source['source']})"
    return panels.html(
        f"<p><b>{escape(name)}</b> ({len(splits['train'])} / {len(splits['validation'])}) · "
        f"{escape(encoder)} · {recipe.model.decoder} · {job.machine}</p>"
    )


def _recipe_of(asked: Recipe | str | Path | None) -> tuple[Recipe, Path | None]:
    """The recipe, and the run folder to show if one was named."""
    if isinstance(asked, Recipe):
        return asked, None
    if asked is None:
        return quick(), None
    path = Path(asked).expanduser().absolute()
    if (path / "recipe.json").exists():
        return RunFolder(path).recipe, path
    return quick(path), None
