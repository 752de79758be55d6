"""The workbench: one cell in which a run is set up, seen beforehand, watched and interfered with."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go
from IPython import get_ipython
from IPython.display import clear_output, display

from vitseg.errors import RunError, VitsegError
from vitseg.events import BatchEnded, EpochEnded, Event, StageStarted, ValidationBatch
from vitseg.model.freeze import model_parts
from vitseg.model.segmenter import Segmenter
from vitseg.presets import quick
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.ui import charts, panels, pictures
from vitseg.ui.console import progress
from vitseg.ui.controls import Controls, recipe_line
from vitseg.ui.curves import NAMES, Curves
from vitseg.ui.fit import Fit
from vitseg.ui.live import LiveRun, current
from vitseg.ui.report import report
from vitseg.ui.session import Session, recent_runs
from vitseg.ui.table import number_or_na, stages

POINTS = 1000
"""Of a longer curve the extremes are drawn."""
REDRAW_SECONDS = 0.4
NONE_YET = ("none yet", -1)
_OURS = {kind.__name__ for kind in VitsegError.__subclasses__()}


class Workbench:
    """Set up, watch and steer a training from one cell.

    Takes a recipe, a folder of images and masks (for which `quick` makes the recipe), or a run folder. Training goes on
    in the background; `start`, `pause`, `resume`, `stop`, `fork` and `wait` do what the buttons do. Running the cell
    again while its run is alive attaches to that run. Raises VitsegError for data or settings that cannot work.
    """

    def __init__(self, recipe_or_folder: Recipe | str | Path | None = None):
        asked, shown = _recipe_of(recipe_or_folder)
        if live := _attachable(asked, shown):
            self.session = live.owner
        else:
            self.session = Session(asked)
            if shown is not None:
                self.session.show(shown)
        self._preview = self.session.state == "ready"
        self._lock, self._note, self._unpainted, self._drawn = threading.RLock(), "", "", -1
        self._closed = self.session.view_closed = _close(self.session)
        self._build()
        self._draw_everything()
        if self.session.alive:
            self._paint_while_alive()
        if self.session.cost is None:
            threading.Thread(target=self._time_batches).start()  # waited for at exit: torch does not like to be cut off
        if shell := get_ipython():
            shell.events.register("post_run_cell", self._after_cell)

    # ---- what the buttons do, and what other cells may ask

    def start(self) -> None:
        """Train what the controls say, in the background."""
        if self.session.alive:
            return
        self.session.start()
        self._preview, self._note = False, ""
        self._paint_while_alive()

    def pause(self) -> None:
        """After the batch that is under way."""
        self.session.pause()
        self._draw()

    def resume(self) -> None:
        """Go on after a pause, or from the last whole epoch of a run that was cut off."""
        was_alive = self.session.alive
        self.session.resume()
        if self.session.alive and not was_alive:
            self._preview, self._note = False, ""
            self._paint_while_alive()
        self._draw()

    def stop(self) -> None:
        self.session.stop()
        self._draw()

    def fork(self) -> None:
        """Start from the end of the stage before the edited one: change the later stages, then press Start."""
        self.session.fork()
        self._controls.fill()
        self._changed()
        self._note = f"The next run starts from {self.session.desk.start}. Change what comes after it, then press Start."
        self._draw()

    def wait(self, timeout: float | None = None) -> str:
        """Until the run is over, or `timeout` seconds; returns the state. The cell is busy meanwhile, and so is the kernel:
        the buttons answer again after an interrupt, which does not stop the run."""
        state = self.session.wait(timeout)
        if not self.session.alive:
            self._draw_everything()
        return state

    def follow(self) -> Iterator[Event]:
        """The events so far and those to come, until the run is over; `for _ in vitseg.progress(wb.follow()): pass`."""
        yield from self.session.follow()
        self._draw_everything()

    def finish(self) -> Path:
        """Start, if nobody has, print how it goes, and give the run folder at the end. Raises what training raised."""
        if self.session.live is None:
            self.start()
        for _ in progress(self.follow()):
            pass
        if self.session.live.error is not None:
            raise self.session.live.error
        return self.session.run.path

    def show(self) -> go.Figure:
        """The curves as a static figure, for a report or a page without live widgets."""
        return charts.curves_figure(self.session.curves, self.session.parent)

    @property
    def state(self) -> str:
        """ready, running, pausing, paused, stopping, stopped, ended, failed; "shown" for a run of the past."""
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
        counts = {name: sum(p.numel() for p in part.parameters) for name, part in model_parts(s.work.model).items()}
        self._counts = counts
        self._buttons = {}
        for label, act, tip in (
            ("Start", self.start, "Train what the controls say, in a new run folder"),
            ("Pause", self._pause_or_resume, "Pause after this batch; Resume goes on"),
            ("Stop", self.stop, "End after this batch; the run can be resumed from the end of its last epoch"),
            ("Fork", self.fork, "Start the next run from the end of a finished stage of this one"),
        ):
            button = w.Button(description=label, tooltip=tip, layout={"width": "100px"})
            button.on_click(lambda _, act=act: self._try(act))
            self._buttons[label] = button
        self._buttons["Start"].button_style = "primary"
        self._bar = w.FloatProgress(min=0, max=1, description="", layout={"width": "220px"})
        self._left, self._status = w.HTML(), w.HTML()
        self._table, self._map, self._notes = w.HTML(), w.HTML(), w.HTML()
        self._nothing = Curves()
        self._pair = (s.curves, self._nothing)
        self._figure = go.FigureWidget(charts.curves_figure(s.curves, self._nothing, POINTS))
        self._figure._config = {"responsive": True, "displaylogo": False}  # no public way to set it on a widget
        self._build_tabs()
        line = recipe_line(s.desk.base, {k: len(v) for k, v in s.work.data.splits.items()}, s.work.model.shape.source,
                           str(s.work.machine.device))  # fmt: skip
        buttons = w.HBox([*self._buttons.values(), self._bar, self._left], layout={"align_items": "center"})
        self.box = w.VBox([
            w.HTML(panels.STYLE + line), self._table, self._controls.box, self._notes, buttons, self._status, self._map,
            self._figure, Fit(), self._tabs,
        ])  # fmt: skip

    def _build_tabs(self) -> None:
        self._epoch = w.SelectionSlider(
            options=[NONE_YET], value=NONE_YET[1], description="Epoch", layout={"width": "420px"}, disabled=True
        )
        self._filling = False
        self._epoch.observe(lambda _: self._filling or self._try(self._draw_pictures), "value")
        self._picture = w.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
        self._picture_note = w.HTML()
        self._classes, self._checks, self._runs = w.HTML(), w.HTML(), w.HTML()
        self._which = w.Dropdown(description="Run folder", layout={"width": "320px"})
        self._which.style = {"description_width": "initial"}
        acts = (("Show", self._show_run), ("Export report", self._export_report), ("Export CSV", self._export_csv))
        buttons = [w.Button(description=label, layout={"width": "130px"}) for label, _ in acts]
        for button, (_, act) in zip(buttons, acts, strict=True):
            button.on_click(lambda _, act=act: self._try(act))
        self._said = w.HTML()
        self._tabs = w.Tab([
            w.VBox([self._epoch, self._picture_note, self._picture]), self._classes, self._checks,
            w.VBox([w.HBox([self._which, *buttons]), self._said, self._runs]),
        ])  # fmt: skip
        for i, title in enumerate(("Predictions", "Classes", "Checks", "Runs")):
            self._tabs.set_title(i, title)

    def _repr_mimebundle_(self, **more: Any) -> Any:
        bundle = self.box._repr_mimebundle_(**more)
        text = f"{stages(self.session.desk.recipe)}\n(A workbench: live in JupyterLab; here, wb.start() and wb.wait().)"
        return bundle | {"text/plain": text} if isinstance(bundle, dict) else bundle

    def _try(self, act: Any) -> None:
        """A press of a button: what goes wrong is a sentence in the status line, never a traceback."""
        with self._lock:
            self._note = ""
            try:
                act()
                self._draw()
            except Exception as error:
                self._note = str(error)
                if not isinstance(error, VitsegError | OSError):  # a fault of ours; a button that does nothing would be worse
                    self._note = f"{type(error).__name__}: {error}. That should not happen; please report it."
                self._status.value = panels.html(f"<p role=status class=bad>{escape(self._note)}</p>")
                with contextlib.suppress(Exception):
                    self._draw()

    def _pause_or_resume(self) -> None:
        (self.pause if self.session.state == "running" else self.resume)()

    def _changed(self) -> None:
        """A control was moved. A run that is under way goes on as it began."""
        with self._lock:
            self._preview = not self.session.alive
            self._draw_desk()
            if self._preview:
                self._draw_curves()
                self._controls.offer_starts(self.session.starts())
            self._draw()

    def _paint_while_alive(self) -> None:
        self._drawn = -1
        threading.Thread(target=self._paint, name="vitseg painter", daemon=True).start()

    def _paint(self) -> None:
        """Redraw a few times a second while there is something new, and once at the end. Never stops the training."""
        session = self.session
        while not self._closed.is_set():
            over = not session.alive
            try:
                with self._lock:
                    self._draw_everything() if over else self._draw_news()
                self._unpainted = ""
            except Exception as error:
                with contextlib.suppress(Exception):
                    self._unpainted = f"The screen could not be drawn ({type(error).__name__}: {error})."
                    self._draw()
            if over:
                return
            session.wait(REDRAW_SECONDS)

    def _draw_everything(self) -> None:
        with self._lock:
            self._draw_desk()
            self._draw_runs()
            self._draw_curves()
            self._draw_epoch()
            self._draw()

    def _draw_news(self) -> None:
        version = self.session.version
        if version != self._drawn:
            self._draw_curves()
            if isinstance(self.session.position, StageStarted | EpochEnded) or self._drawn == -1 or self._epoch_is_new():
                self._draw_epoch()
                self._draw_desk()
        self._drawn = version
        self._draw()

    def _epoch_is_new(self) -> bool:
        return sorted(self.session.predictions) != [v for _, v in self._epoch.options if v != NONE_YET[1]]

    def _draw_desk(self) -> None:
        """Stage table, freeze map, and what is worth knowing about the schedule."""
        s = self.session
        recipe = s.desk.recipe if self._preview or s.trained is None else s.trained
        trainable = panels.trainable_by_stage(recipe, self._counts, s.desk.depth)
        ahead = s.forecast(recipe) if s.cost else ()
        self._table.value = panels.stage_table(recipe, s.desk.stage, trainable, sum(self._counts.values()), ahead)
        held = {} if self._preview else panels.held_by_optimizer(s.events)
        self._map.value = panels.freeze_map(recipe, s.desk.stage, self._counts, s.desk.depth, held)
        self._notes.value = panels.html("".join(f"<p class=quiet>{escape(n)}</p>" for n in s.desk.notes(s.batches)))

    def _draw_curves(self) -> None:
        s = self.session
        curves = s.planned() if self._preview else s.curves
        beneath = s.curves if self._preview and s.events else s.parent or self._nothing
        figure, pair = self._figure, (curves, beneath)
        anew = self._preview or self._pair[0] is not curves or self._pair[1] is not beneath
        self._pair = pair
        with figure.batch_update():
            for name, trace in zip(NAMES, figure.data, strict=False):
                if len(curves.points[name].steps) != len(trace.x) or name == "LR (planned)" or anew:
                    trace.update(charts.trace_data(curves.points[name], POINTS))
            for trace in figure.data[len(NAMES) :]:
                points = beneath.points[trace.name.removesuffix(", parent")]
                if anew or len(points.x) != len(trace.x):
                    trace.update(charts.trace_data(points, POINTS) | {"visible": bool(points.x)})
            if curves.bands != getattr(self, "_bands", None):
                figure.layout.update(charts.stage_bands(curves, figure.layout.annotations[:3]))
                self._bands = curves.bands

    def _draw_epoch(self) -> None:
        """What changes once an epoch: classes, checks, pictures."""
        s = self.session
        self._classes.value = panels.class_table(s.events)
        self._draw_checks()
        if epochs := sorted(s.predictions):
            newest = self._epoch.value == self._epoch.options[-1][1]
            if [v for _, v in self._epoch.options] != epochs:
                value = epochs[-1] if newest or self._epoch.value not in epochs else self._epoch.value
                self._filling = True
                self._epoch.options = [(str(e), e) for e in epochs]
                self._epoch.value, self._epoch.disabled = value, False
                self._filling = False
                self._draw_pictures()
        else:
            self._draw_pictures()

    def _draw_checks(self) -> None:
        s = self.session
        steps = sum(isinstance(e, BatchEnded) for e in s.events)
        self._checks.value = panels.checks(s.events, steps, self._failure())

    def _failure(self) -> tuple[str, str] | None:
        """Kind and sentence of what ended the run that is shown: as it happened here, or as its folder remembers."""
        s = self.session
        if s.live is not None:
            return (type(s.live.error).__name__, str(s.live.error)) if s.state == "failed" else None
        found = s.run.failure() if s.run and not self._preview else None
        return (found["kind"], found["says"]) if found else None

    def _draw_pictures(self) -> None:
        s, epoch = self.session, self._epoch.value
        if epoch not in s.predictions:
            text = "Validation images are predicted after every epoch of a run that is trained here; then look back in time."
            self._picture_note.value = panels.html(f"<p class=quiet>{escape(s.no_pictures or text)}</p>")
            self._picture.value = b""
            return
        self._picture.value = pictures.png(pictures.comparison(s.work.data, s.samples, s.predictions[epoch], side=150))
        self._picture_note.value = panels.html(f"<p>After epoch {epoch}. White: prediction and truth disagree.</p>")

    def _draw_runs(self) -> None:
        runs = recent_runs()
        self._runs.value = panels.runs_table([(run, self._state_of(run.path)) for run in runs])
        chosen = self._which.value
        self._which.options = [(run.path.name, run.path) for run in runs]
        if runs:
            self._which.value = chosen if chosen in [run.path for run in runs] else runs[0].path
        self._controls.offer_starts(self.session.starts())

    def _state_of(self, path: Path) -> str:
        alive = current()
        if alive and alive.name == path.name:
            return f"{alive.state} here"
        run = RunFolder(path)
        if run.summary_file.exists():
            return "ended"
        if run.is_held():
            return "training elsewhere"
        failed = run.failure()
        return (f"failed ({failed['kind']})" if failed else "cut off or stopped") + "; Show, then Resume goes on with it"

    def _draw(self) -> None:
        """Buttons, progress and the status line: cheap, and always true."""
        s, state = self.session, self.session.state
        reason = s.why_not_start()
        resumable = s.resumable and current() is None
        running = state == "running"
        self._buttons["Start"].disabled = s.alive or bool(reason)
        self._buttons["Pause"].description = "Pause" if running or not (s.alive or resumable) else "Resume"
        self._buttons["Pause"].disabled = not (running or state in {"paused", "pausing"} or resumable)
        live = current()
        self._buttons["Stop"].disabled = live is None or live.state == "stopping"
        self._buttons["Fork"].disabled = not any(e.stage < len(s.desk.base.stages) for e in s.stage_ends())
        done, left = s.progress()
        self._bar.value = done
        self._left.value = panels.html(
            f"<p class=line>{100 * done:.0f} %{f', about {panels.duration(left)} left' if left else ''}</p>"
        )
        words, kind = self._sentence(reason)
        self._status.value = panels.html(f"<p role=status class='{kind}'>{escape(words)}</p>")

    def _sentence(self, reason: str) -> tuple[str, str]:
        """What is happening, or what is wrong and the mend."""
        s, state = self.session, self.session.state
        if s.moved and not self._note:
            return f"{_doing(state, s.position)} A control was moved: that takes effect at the next start.", ""
        if unpainted := self._unpainted or s.no_curves:
            return unpainted + (" Training goes on." if s.alive else ""), "bad"
        if self._note:
            return f"{_doing(state, s.position) + ' ' if s.alive else ''}{self._note}", "bad" if not s.alive else ""
        if failure := self._failure():
            kind, text = failure
            text = text if kind in _OURS else f"{kind}: {text}."
            return f"Stopped by an error: {text}{f' {s.goes_on_from()}.' if s.resumable else ''}", "bad"
        if reason:
            return f"Start is off: {reason}", "bad"
        if s.alive:
            return _doing(state, s.position), ""
        if self._preview:
            first, last = s.desk.first_stage(), len(s.desk.chosen().stages)
            where = f" from {s.desk.start}" if s.desk.start else ""
            return f"Ready. Start trains stage{'s' if last > first else ''} {_span(first, last)}{where}.", ""
        if not s.run.events_file.exists():
            return "Stopped before anything was recorded.", ""
        if s.resumable:
            return f"Stopped after {_at(s.events)}. {s.goes_on_from()}. Run folder: {s.run.path}", ""
        if not s.run.summary_file.exists():
            return f"{s.run.path.name} is being trained elsewhere.", ""
        best = s.run.summary["best"]
        return f"Ended. Best valid IoU {number_or_na(best['iou'])}, F1 {number_or_na(best['f1'])}. Run folder: {s.run.path}", ""

    # ---- the rest

    def _show_run(self) -> None:
        if self._which.value is None:
            raise RunError("No run has been recorded yet.", "Press Start.")
        self.session.show(self._which.value)
        self._preview = False
        self._epoch.options, self._epoch.disabled = [NONE_YET], True
        self._draw_everything()

    def _export_report(self) -> None:
        self._tell(f"Report written: {report(self._shown())}")

    def _export_csv(self) -> None:
        self._tell(f"Curves written: {panels.write_csv(self._shown(), self.session.events)}")

    def _shown(self) -> Path:
        if self.session.run is None or self.session.alive:
            raise RunError("There is no run that is over.", "Wait for its end, or choose one and press Show.")
        return self.session.run.path

    def _tell(self, words: str) -> None:
        self._said.value = panels.html(f"<p>{escape(words)}</p>")

    def _time_batches(self) -> None:
        """The forecast needs a few timed batches; they are timed once the screen stands."""
        try:
            self.session.forecast()
            with self._lock:
                self._draw_desk()
        except Exception as error:
            self._note = f"There is no forecast: {error}"
        with contextlib.suppress(Exception):
            self._draw()

    def _after_cell(self, result: Any) -> None:
        """An interrupt is meant for a cell; the run in the background goes on, and says so."""
        if isinstance(result.error_in_exec, KeyboardInterrupt) and self.session.alive and not self._closed.is_set():
            self._note = "The interrupt ended a cell, not the training; press Stop for that."
            self._draw()


def watch(events: Iterable[Event], every: int = 10) -> Iterator[Event]:
    """Pass events on, and redraw one static figure every `every` steps: for places that live widgets do not reach."""
    curves = Curves()
    for event in events:
        curves.add(event)
        if not event.transient and (not isinstance(event, BatchEnded) or event.step % every == 0):
            clear_output(wait=True)
            display(charts.curves_figure(curves, most=POINTS))
        yield event


def _attachable(asked: Recipe, shown: Path | None) -> LiveRun | None:
    """The live run that a cell means: it asks for the recipe whose workbench started it, or for its folder."""
    live = current()
    if live is None or not isinstance(live.owner, Session):
        return None
    session = live.owner
    return live if shown == session.run.path or (shown is None and asked == session.desk.base) else None


def _close(session: Session) -> threading.Event:
    """End the drawing of the view that the session had, and give an event that will end the next one's."""
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


def _doing(state: str, position: Event | None) -> str:
    """What is happening, in plain words."""
    if state != "running":
        words = {
            "pausing": "Pausing after this batch.",
            "paused": "Paused. Resume goes on.",
            "stopping": "Stopping after this batch.",
        }
        return words.get(state, "")
    match position:
        case None:
            return "Reading data and weights."
        case BatchEnded():
            return f"Training stage {position.stage}: epoch {position.epoch}, batch {position.batch} of {position.batches}."
        case ValidationBatch():
            when = f" after epoch {position.epoch}" if position.epoch else ", start weights"
            return f"Scoring validation images{when}: batch {position.batch} of {position.batches}."
        case _:
            return "Training."


def _at(events: list[Event]) -> str:
    last = next((e for e in reversed(events) if isinstance(e, BatchEnded)), None)
    return f"step {last.step}, in epoch {last.epoch}" if last else "no step at all"


def _span(first: int, last: int) -> str:
    return str(first) if first >= last else f"{first} to {last}"
