"""The workbench: one cell in which a run is set up, seen beforehand, watched and interfered
with.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go
from IPython import get_ipython

from vitseg.errors import Interrupted
from vitseg.events import EpochEnded, Event, StageStarted
from vitseg.model.freeze import model_parts
from vitseg.model.segmenter import Segmenter
from vitseg.plan import batch_notes
from vitseg.presets import quick
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.ui import charts, panels, status, table
from vitseg.ui.console import progress, say
from vitseg.ui.controls import Controls, recipe_line
from vitseg.ui.curves import NAMES, Curves
from vitseg.ui.live import LiveRun, current
from vitseg.ui.session import Session
from vitseg.ui.steering import Steering, live_figure, unpainted
from vitseg.ui.tabs import Tabs
from vitseg.ui.widgets import Fit

REDRAW_SECONDS = 0.4
FORK = "Start the next run from the end of a finished stage of this one"


class Workbench:
    """Set up, watch and steer a training from one cell.

    Takes a recipe, a folder of images and masks (for which `quick` makes the recipe), or a run
    folder. Training goes on in the background; `start`, `pause`, `resume`, `stop`, `fork` and
    `wait` do what the buttons do. Running the cell again while its run is alive attaches to that
    run. With `reuse`, stages that an earlier run has finished alike are not trained again. Raises
    VitsegError for data or settings that cannot work.
    """

    def __init__(self, recipe_or_folder: Recipe | str | Path | None = None, *, reuse: bool = True):
        asked, shown = _recipe_of(recipe_or_folder)
        if live := _attachable(asked, shown):
            self.session = live.owner
        else:
            self.session = Session(asked)
            self.session.desk.retrain = not reuse
            if shown is not None:
                self.session.show(shown)
        self._preview = self.session.state == "ready"
        self._unpainted, self._drawn, self._known = "", -1, ()
        self._closed = self.session.view_closed = _close(self.session)
        self._build()
        self._draw_everything()
        if self.session.alive:
            self._paint_while_alive()
        if self.session.cost is None:
            threading.Thread(
                target=self._time_batches
            ).start()  # waited for at exit: torch does not like to be cut off
        if shell := get_ipython():
            shell.events.register("post_run_cell", self._after_cell)

    # ---- what the buttons do, and what other cells may ask

    def start(self) -> None:
        """Train what the controls say, in the background."""
        if self.session.alive:
            return
        self.session.start()
        self._preview, self._steering.note = False, ""
        self._paint_while_alive()

    def pause(self) -> None:
        """After the batch that is under way."""
        self.session.pause()
        self._draw()

    def resume(self) -> None:
        """Go on after a pause, or with a run that was cut off, from its last checkpoint."""
        was_alive = self.session.alive
        self.session.resume()
        if self.session.alive and not was_alive:
            self._preview, self._steering.note = False, ""
            self._paint_while_alive()
        self._draw()

    def stop(self) -> None:
        self.session.stop()
        self._draw()

    def fork(self) -> None:
        """Start from the end of the stage before the edited one: change the later stages, then
        press Start.
        """
        self.session.fork()
        self._controls.fill()
        self._changed()

    def wait(self, timeout: float | None = None) -> str:
        """Until the run is over, or `timeout` seconds; returns the state. The cell is busy
        meanwhile, and so is the kernel: the buttons answer again after an interrupt, which does not
        stop the run.
        """
        state = self.session.wait(timeout)
        if not self.session.alive:
            self._draw_everything()
        return state

    def follow(self) -> Iterator[Event]:
        """The events so far and those to come, until the run is over; `for _ in
        vitseg.progress(wb.follow()): pass`.
        """
        yield from self.session.follow()
        self._draw_everything()

    def finish(self) -> Path:
        """Start, if nobody has, print how it goes, and give the run folder at the end. Raises what
        training raised.
        """
        if self.session.live is None:
            ahead = self.session.forecast()
            say(
                "\n".join(
                    [
                        str(table.ahead(self.recipe, ahead)),
                        *table.memory_notes(ahead, self.session.job.machine),
                    ]
                )
            )
            self.start()
        try:
            for _ in progress(self.follow()):
                pass
        except KeyboardInterrupt:
            raise Interrupted(
                "This cell was interrupted; the training goes on. Run the cell again to wait "
                "for it."
            ) from None
        if self.session.live.error is not None:
            raise self.session.live.error
        return self.session.run.path

    def show(self) -> go.Figure:
        """The curves as a static figure, for a report or a page without live widgets."""
        return charts.curves_figure(self.session.curves, self.session.parent)

    @property
    def state(self) -> str:
        """ready, running, pausing, paused, stopping, stopped, ended, failed; "shown" for a run of
        the past.
        """
        return self.session.state

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
        return self.session.run.path if self.session.run else None

    # ---- the screen

    def _build(self) -> None:
        s = self.session
        self._controls = Controls(s.desk, self._changed)
        counts = {
            name: sum(p.numel() for p in part.parameters)
            for name, part in model_parts(s.job.model).items()
        }
        self._counts = counts
        self._steering = Steering(
            {
                "Start": (self.start, "Train what the controls say, in a new run folder"),
                "Pause": (self._pause_or_resume, "Pause after this batch; Resume goes on"),
                "Stop": (self.stop, "End after this batch; Resume goes on from there"),
                "Fork": (self.fork, FORK),
            },
            self._draw,
        )
        self._heading, self._table, self._map, self._notes = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self._nothing = Curves()
        self._pair, self._bands, self._planned = (s.curves, self._nothing), None, None
        self._figure = live_figure(charts.curves_figure(s.curves, self._nothing, charts.POINTS))
        self._tabs = Tabs(s, self._steering, self._turned_to_another)
        line = recipe_line(
            s.desk.base,
            {k: len(v) for k, v in s.job.data.splits.items()},
            s.job.model.shape.source,
            str(s.job.machine),
        )
        self.box = w.VBox(
            [
                w.HTML(panels.STYLE + line),
                self._heading,
                self._table,
                self._controls.box,
                self._notes,
                self._steering.box,
                self._map,
                self._figure,
                Fit(),
                self._tabs.box,
            ]
        )

    def __str__(self) -> str:
        return (
            f"{table.stages(self.session.desk.recipe)}\n(A workbench: live in JupyterLab; "
            f"here, wb.start() and wb.wait().)"
        )

    def _repr_mimebundle_(self, **more: Any) -> Any:
        bundle = self.box._repr_mimebundle_(**more)
        return bundle | {"text/plain": str(self)} if isinstance(bundle, dict) else bundle

    def _pause_or_resume(self) -> None:
        (self.pause if self.session.state == "running" else self.resume)()

    def _changed(self) -> None:
        """A control was moved. A run that is under way goes on as it began."""
        with self._steering.lock:
            self._preview = not self.session.alive and self.session.edited
            self._draw_desk()
            if not self.session.alive:
                self._draw_curves()
                self._controls.offer_starts(self.session.starts())
            self._draw()

    def _paint_while_alive(self) -> None:
        self._drawn = -1
        threading.Thread(target=self._paint, name="vitseg painter", daemon=True).start()

    def _paint(self) -> None:
        """Redraw a few times a second while there is something new, and once at the end. Never
        stops the training.
        """
        session = self.session
        while not self._closed.is_set():
            over = not session.alive
            try:
                with self._steering.lock:
                    self._draw_everything() if over else self._draw_news()
                self._unpainted = ""
            except Exception as error:
                with contextlib.suppress(Exception):
                    self._unpainted = unpainted(error)
                    self._draw()
            if over:
                return
            session.wait(REDRAW_SECONDS)

    def _draw_everything(self) -> None:
        with self._steering.lock:
            self._draw_desk()
            self._tabs.draw_runs()
            self._controls.offer_starts(self.session.starts())
            self._draw_curves()
            self._tabs.draw()
            self._draw()

    def _draw_news(self) -> None:
        version, known = (
            self.session.version,
            (len(self.session.stage_ends()), bool(self.session.events), self.session.state),
        )
        if self._drawn == -1 or known != self._known:
            self._known = known
            self._tabs.draw_runs()
        if version != self._drawn:
            self._draw_curves()
            if (
                isinstance(self.session.position, StageStarted | EpochEnded)
                or self._drawn == -1
                or self._tabs.behind
            ):
                self._tabs.draw()
                self._draw_desk()
        self._drawn = version
        self._draw()

    def _draw_desk(self) -> None:
        """Stage table, freeze map, and what is worth knowing about the schedule."""
        s = self.session
        new = self._preview or s.trained is None
        recipe = s.desk.recipe if new else s.trained
        ahead = s.forecast(None if new else recipe) if s.cost else ()
        events, broken = ((), {}) if self._preview else (s.events, s.broken())
        rows = panels.stage_parts(recipe, self._counts, s.desk.depth, events, broken)
        self._table.value = panels.html(table.desk(recipe, s.desk.stage, rows, ahead))
        self._map.value = panels.html(charts.freeze_map(rows, s.desk.stage))
        if s.desk.stage > len(recipe.stages):
            notes = [f"Stage {s.desk.stage} is not part of this run."]
        else:
            notes = s.plan_of(recipe).notes(s.desk.stage)
            if ahead and (recipe.cache or ahead[s.desk.stage - 1].inherited):
                notes.append(panels.kept_words(ahead[s.desk.stage - 1]))
        data = s.job.data
        bad = data.warnings + batch_notes(recipe, len(data.splits["train"]))
        if new:
            bad += table.memory_notes(ahead, s.job.machine)
        lines = [("bad", n) for n in bad] + [("quiet", n) for n in notes if n not in bad]
        self._notes.value = panels.html(
            "".join(f"<p class={kind}>{escape(n)}</p>" for kind, n in lines)
        )

    def _draw_curves(self) -> None:
        s = self.session
        curves = s.planned() if self._preview else s.curves
        beneath = s.curves if self._preview and s.events else s.parent or self._nothing
        figure, pair = self._figure, (curves, beneath)
        anew = self._preview or self._pair[0] is not curves or self._pair[1] is not beneath
        planned, self._planned, self._pair = self._planned, curves.points["LR (planned)"], pair
        with figure.batch_update():
            for name, trace in zip(NAMES, figure.data, strict=False):
                points = curves.points[name]
                if anew or (
                    points is not planned
                    if name == "LR (planned)"
                    else len(points.steps) != len(trace.x)
                ):
                    trace.update(charts.trace_data(points, charts.POINTS))
            for trace in figure.data[len(NAMES) :]:
                points = beneath.points[trace.name.removesuffix(", parent")]
                if anew or len(points.x) != len(trace.x):
                    trace.update(
                        charts.trace_data(points, charts.POINTS) | {"visible": bool(points.x)}
                    )
            if anew or curves.bands != self._bands:
                around = charts.around(
                    curves, beneath
                )  # assigned: `update` would never shorten a list
                figure.layout.shapes, figure.layout.annotations = (
                    around["shapes"],
                    around["annotations"],
                )
                self._bands = curves.bands

    def _draw(self) -> None:
        """Buttons, progress and the status line: cheap, and always true, from whichever thread it
        is called.
        """
        with self._steering.lock:
            s, state = self.session, self.session.state
            reason = s.why_not_start()
            resumable = s.resumable and current() is None
            running = state == "running"
            live, buttons = current(), self._steering.buttons
            buttons["Start"].disabled = s.alive or bool(reason)
            buttons["Pause"].description = (
                "Pause" if running or not (s.alive or resumable) else "Resume"
            )
            buttons["Pause"].disabled = not (running or state in {"paused", "pausing"} or resumable)
            buttons["Stop"].disabled = live is None or live.state == "stopping"
            buttons["Fork"].disabled = off = not any(
                e.stage < len(s.desk.base.stages) for e in s.stage_ends()
            )
            buttons[
                "Fork"
            ].tooltip = (
                f"{FORK}{': there is no finished stage that another could follow' if off else ''}"
            )
            words, folder = status.heading(s, self._preview)
            place = f" <span class=quiet>{escape(folder)}</span>" if folder else ""
            self._heading.value = panels.html(f"<p><b>{escape(words)}</b>{place}</p>")
            self._steering.progress(*((0.0, None) if self._preview else s.progress()))
            self._steering.say(
                *status.sentence(
                    s, self._preview, self._steering.note, self._unpainted or s.no_curves
                )
            )

    # ---- the rest

    def _turned_to_another(self) -> None:
        self._preview = False
        self._controls.fill()
        self._draw_everything()
        if self.session.cost is None:
            threading.Thread(target=self._time_batches).start()

    def _time_batches(self) -> None:
        """The forecast needs a few timed batches; they are timed once the screen stands."""
        try:
            self.session.forecast()
            with self._steering.lock:
                self._draw_desk()
        except Exception as error:
            self._steering.note = f"There is no forecast: {error}"
        with contextlib.suppress(Exception):
            self._draw()

    def _after_cell(self, result: Any) -> None:
        """An interrupt is meant for a cell; the run in the background goes on, and says so."""
        if (
            isinstance(result.error_in_exec, KeyboardInterrupt)
            and self.session.alive
            and not self._closed.is_set()
        ):
            self._steering.note = (
                "The interrupt ended a cell, not the training; press Stop for that."
            )
            self._draw()


def _attachable(asked: Recipe, shown: Path | None) -> LiveRun | None:
    """The live run that a cell means: it asks for the recipe whose workbench started it, or for its
    folder.
    """
    live = current()
    if live is None or not isinstance(live.owner, Session):
        return None
    session = live.owner
    return live if shown == session.run.path or (shown is None and asked == session.asked) else None


def _close(session: Session) -> threading.Event:
    """End the drawing of the view that the session had, and give an event that will end the next
    one's.
    """
    if session.view_closed is not None:
        session.view_closed.set()
    return threading.Event()


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
