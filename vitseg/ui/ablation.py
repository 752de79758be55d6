"""A quick ablation in one cell: the plan before it runs, a table that fills, and the sentence at the end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w
import pandas as pd
import plotly.graph_objects as go

from vitseg.errors import VitsegError
from vitseg.events import BatchEnded, EpochEnded, Event, StageStarted, TrialEnded, TrialStarted
from vitseg.recipe import Recipe
from vitseg.runs.forecast import Cost, forecast, measure
from vitseg.runs.run import kept_events, prepare
from vitseg.sweep.findings import sentence
from vitseg.sweep.grid import Trial, make_grid
from vitseg.sweep.local import Sweep, check_depths, facts_of
from vitseg.ui import panels, sweep_charts
from vitseg.ui.console import say
from vitseg.ui.fit import Fit
from vitseg.ui.live import OVER, LiveRun, current
from vitseg.ui.report import page
from vitseg.ui.table import Table

REDRAW_SECONDS = 0.5


def ablate(
    recipe: Recipe, axes: Mapping[str, Sequence[Any]], seeds: int | Sequence[int] = 3, folder: str | Path | None = None
) -> Ablation:
    """Train every combination of the axes' values with every seed, and ask what unfreezing bought.

    `ablate(recipe, {"stages.1.unfrozen_blocks": [0, 2, 4]}, seeds=3)` shows the plan; Start, or `start()`, trains it in the
    background. First stages that trials share are trained once. Beside the trials run controls, which spend the same epochs
    wholly in stage 1. The same call in a later kernel finds the folder and goes on. Raises VitsegError for an axis, a value
    or a folder that cannot be.
    """
    new = Ablation(recipe, axes, seeds, folder)
    live = current()
    known = live.owner if live and isinstance(live.owner, Ablation) else None
    return known if known and known.sweep.path == new.sweep.path else new


class Ablation:
    """A sweep on the screen; see `ablate`. `start`, `pause`, `resume`, `stop` and `wait` do what the buttons do."""

    def __init__(
        self, recipe: Recipe, axes: Mapping[str, Sequence[Any]], seeds: int | Sequence[int], folder: str | Path | None
    ):
        self.work = prepare(recipe)
        self.grid = make_grid(recipe, axes, seeds, facts_of(self.work))
        check_depths(self.grid, self.work)
        self.sweep = Sweep(self.grid, folder)
        self.live: LiveRun | None = None
        self.cost: Cost | None = None
        self.position: Event | None = None
        self.trial: str | None = None
        self.curves = {name: list(found.curve) for name, found in self.sweep.results().items()}
        self._recipes, self._ahead = {t.name: t.recipe for t in self.grid.trials}, dict[str, list[float]]()
        self._inherits = {name: n for name, (n, _) in self.grid.inherits().items()}
        self._note, self._steps, self._seconds, self._done, self._version, self._last = "", 0, 0.0, 0.0, 0, 0.0
        self._lock = threading.RLock()
        self._build()
        self._draw_all()

    # ---- what the buttons do

    def start(self) -> None:
        """Train the trials that have not ended, in the background. Nothing happens while they are being trained."""
        if self.alive or not self.sweep.todo():
            return
        self._note, self._last = "", time.monotonic()
        self.live = LiveRun(self.sweep.events(), self.sweep.path.name, self._take, owner=self)
        threading.Thread(target=self._paint, name="vitseg painter", daemon=True).start()

    def pause(self) -> None:
        """After the batch that is under way."""
        if self.live:
            self.live.pause()

    def resume(self) -> None:
        if self.alive:
            self.live.resume()

    def stop(self) -> None:
        """After the batch that is under way. Start goes on with that trial from its last whole epoch."""
        if self.live:
            self.live.stop()

    def wait(self, timeout: float | None = None) -> str:
        """Until all trials are over, or `timeout` seconds; returns the state. The kernel is busy meanwhile."""
        if self.live:
            self.live.wait(timeout)
        self._draw_all()
        return self.state

    def finish(self) -> Path:
        """Start, print a line for each trial, and give the sweep's folder at the end. Raises what stopped the sweep."""
        self.start()
        for event in self._follow():
            if isinstance(event, TrialEnded):
                say(f"{event.trial}: {event.error or f'IoU {self.sweep.results()[event.trial].iou:.3f}'}")
        if self.live and self.live.error is not None:
            raise self.live.error
        return self.sweep.path

    @property
    def state(self) -> str:
        """ready, running, pausing, paused, stopping, stopped, ended, failed."""
        return self.live.state if self.live else "ready" if self.sweep.todo() else "ended"

    @property
    def alive(self) -> bool:
        return self.live is not None and self.live.state not in OVER

    # ---- what was found

    @property
    def table(self) -> Table:
        """A row a setting, a column a seed."""
        now = self.trial if self.alive else None
        return sweep_charts.result_table(self.grid, self.sweep.results(), self.sweep.failures, now)

    @property
    def sentence(self) -> str:
        """What unfreezing bought, with its interval."""
        return sentence(self.grid, self.sweep.results())

    def show(self) -> go.Figure:
        """Curves, heat map and effects as a static figure."""
        return sweep_charts.figure(self.grid, self.sweep.results(), self.curves)

    def frame(self) -> pd.DataFrame:
        """A row a trial."""
        return sweep_charts.frame(self.grid, self.sweep.results(), self.sweep.failures)

    def csv(self) -> Path:
        """Write `frame` into the sweep's folder."""
        path = self.sweep.path / "trials.csv"
        self.frame().to_csv(path, index=False)
        return path

    def report(self) -> Path:
        """Write `report.html` into the sweep's folder: it opens without a network."""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.grid.notes)
        body = [
            f"<h1>{escape(self.sweep.path.name)}</h1><p>{escape(self.sentence)}</p>",
            f"<div class=wide>{self.table._repr_html_()}</div>{notes}",
            self.show().to_html(full_html=False, include_plotlyjs=True),
            f"<h2>Plan</h2>{sweep_charts.plan_table(self.grid)._repr_html_()}",
            f"<h2>Recipe</h2><pre>{escape(self.grid.recipe.model_dump_json(indent=2))}</pre>",
        ]
        path = self.sweep.path / "report.html"
        path.write_text(page(self.sweep.path.name, body), encoding="utf-8")
        return path

    # ---- while it runs

    def _take(self, event: Event) -> None:
        """On the training thread, between two steps. The screen is no reason for a training to end."""
        try:
            self._count(event)
        except Exception as error:
            self._note = f"The screen is not complete ({type(error).__name__}: {error}). Training goes on."

    def _count(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case TrialStarted():
                self._turn_to(event)
            case BatchEnded() if event.stage > self._inherits[self.trial]:
                self._steps += 1
                self._seconds += min(now - self._last, 60.0)
                self._done += self._weight_of(self.trial) / self._own_steps(self.trial)
            case EpochEnded():
                self.curves[self.trial].append((event.epoch, event.validation["iou"]))
        self._last, self.position, self._version = now, event, self._version + 1

    def _turn_to(self, event: TrialStarted) -> None:
        """Of a trial that goes on, what it has already is taken from its folder."""
        self.trial, self._inherits[event.trial] = event.trial, event.inherits
        run = self.sweep.run_of(event.trial)
        before = kept_events(run.path) if run.events_file.exists() else []
        self._steps = sum(isinstance(e, BatchEnded) and e.stage > event.inherits for e in before)
        self.curves[event.trial] = [(e.epoch, e.validation["iou"]) for e in before if isinstance(e, EpochEnded)]

    def _own_steps(self, trial: str) -> int:
        recipe = self._recipes[trial]
        batches = -(-len(self.work.data.splits["train"]) // (recipe.batch_size * recipe.accumulate))
        return batches * sum(stage.epochs for stage in recipe.stages[self._inherits[trial] :])

    def _weight_of(self, trial: str) -> float:
        """Seconds that a trial's own stages will take by forecast; before that, its steps."""
        if self.cost is None:
            return float(self._own_steps(trial))
        if trial not in self._ahead:
            self._ahead[trial] = [f.seconds for f in forecast(self._recipes[trial], self.cost, self.work)]
        return sum(self._ahead[trial][self._inherits[trial] :])

    def predicted_seconds(self) -> float:
        """What the trials that have not ended will take here. The first call times a few batches."""
        if self.cost is None:
            self.cost = measure(self.grid.recipe, self.work)
        return sum(self._weight_of(t.name) for t in self.sweep.todo())

    def _progress(self) -> tuple[float, float | None]:
        """Share of the work that is done, and seconds left once that can be said."""
        todo: list[Trial] = self.sweep.todo()
        ahead = sum(self._weight_of(t.name) for t in todo)
        if self.trial in {t.name for t in todo}:
            ahead -= self._weight_of(self.trial) * min(1.0, self._steps / self._own_steps(self.trial))
        total = sum(self._weight_of(t.name) for t in self.grid.trials)
        return 1 - ahead / total, ahead * self._seconds / self._done if self._done and self.alive else None

    def _follow(self) -> Iterator[Event]:
        seen = 0
        while self.live:
            over = self.live.state in OVER
            while seen < len(self.live.events):
                yield self.live.events[seen]
                seen += 1
            if over:
                self._draw_all()
                return
            self.live.wait(0.2)

    # ---- the screen

    def _build(self) -> None:
        self._buttons = {}
        for label, act, tip in (
            ("Start", self.start, "Train the trials that have not ended"),
            ("Pause", self._pause_or_resume, "Pause after this batch; Resume goes on"),
            ("Stop", self.stop, "End after this batch; Start goes on later"),
        ):
            button = w.Button(description=label, tooltip=tip, layout={"width": "100px"})
            button.on_click(lambda _, act=act: self._try(act))
            self._buttons[label] = button
        self._buttons["Start"].button_style = "primary"
        self._bar, self._left, self._status = w.FloatProgress(min=0, max=1, layout={"width": "220px"}), w.HTML(), w.HTML()
        self._plan, self._table, self._said = w.HTML(), w.HTML(), w.HTML()
        self._figure = go.FigureWidget(self.show())
        self._figure._config = {"responsive": True, "displaylogo": False}
        buttons = w.HBox([*self._buttons.values(), self._bar, self._left], layout={"align_items": "center"})
        style = w.HTML(panels.STYLE)
        self.box = w.VBox([style, self._plan, buttons, self._status, self._table, self._figure, Fit(), self._said])

    def _repr_mimebundle_(self, **more: Any) -> Any:
        if self.cost is None and not self.alive:
            threading.Thread(target=self._time_batches).start()
        bundle = self.box._repr_mimebundle_(**more)
        text = f"{sweep_charts.plan_table(self.grid)}\n(An ablation: live in JupyterLab; here, ablation.finish().)"
        return bundle | {"text/plain": text} if isinstance(bundle, dict) else bundle

    def _time_batches(self) -> None:
        with contextlib.suppress(Exception):  # no forecast; everything else is there
            self.predicted_seconds()
            self._draw_all()

    def _try(self, act: Any) -> None:
        """A press of a button: what goes wrong is a sentence in the status line."""
        self._note = ""
        try:
            act()
        except Exception as error:
            self._note = str(error) if isinstance(error, VitsegError | OSError) else f"{type(error).__name__}: {error}"
        self._draw()

    def _pause_or_resume(self) -> None:
        (self.pause if self.state == "running" else self.resume)()

    def _paint(self) -> None:
        """Redraw a few times a second while there is something new, and once at the end. Never stops the training."""
        drawn, trial = -1, None
        while True:
            over = not self.alive
            with contextlib.suppress(Exception):
                if over or trial != self.trial or isinstance(self.position, EpochEnded | StageStarted | TrialEnded):
                    self._draw_all()
                elif drawn != self._version:
                    self._draw()
            drawn, trial = self._version, self.trial
            if over:
                return
            self.live.wait(REDRAW_SECONDS)

    def _draw_all(self) -> None:
        with self._lock:
            quiet = "".join(f"<p class=quiet>{escape(note)}</p>" for note in self.grid.notes)
            predicted = f"about {panels.duration(self.predicted_seconds())}" if self.cost and self.sweep.todo() else ""
            where = f"<p class=quiet>{escape(' · '.join(filter(None, (predicted, str(self.sweep.path)))))}</p>"
            self._plan.value = panels.html(sweep_charts.plan_table(self.grid)._repr_html_() + quiet + where)
            self._table.value = panels.html(f"<div class=scroll>{self.table._repr_html_()}</div>")
            self._said.value = panels.html(f"<p><b>{escape(self.sentence)}</b></p>")
            with self._figure.batch_update():
                for shown, new in zip(self._figure.data, self.show().data, strict=True):
                    shown.update(new.to_plotly_json())
            self._draw()

    def _draw(self) -> None:
        state, live = self.state, current()
        self._buttons["Start"].disabled = live is not None or not self.sweep.todo()
        self._buttons["Pause"].description = "Resume" if state in {"paused", "pausing"} else "Pause"
        self._buttons["Pause"].disabled = not self.alive or state == "stopping"
        self._buttons["Stop"].disabled = not self.alive or state == "stopping"
        done, left = self._progress()
        self._bar.value = done
        about = f", about {panels.duration(left)} left" if left else ""
        self._left.value = panels.html(f"<p class=line>{100 * done:.0f} %{about}</p>")
        words, kind = self._sentence()
        self._status.value = panels.html(f"<p role=status class='{kind}'>{escape(words)}</p>")

    def _sentence(self) -> tuple[str, str]:
        """What is happening, or what is wrong."""
        ended, count = len(self.grid.trials) - len(self.sweep.todo()), len(self.grid.trials)
        failed = [f"{name} failed: {text}" for name, text in self.sweep.failures.items()]
        if self._note:
            return self._note, "bad"
        if self.live and self.live.error is not None:
            return f"Stopped by an error: {self.live.error}", "bad"
        if self.alive and self.state == "running":
            p = self.position
            at = f": stage {p.stage}, epoch {p.epoch}" if isinstance(p, BatchEnded | EpochEnded | StageStarted) else ""
            return " ".join([f"Training {self.trial}{at}. {ended} of {count} trials have ended.", *failed]), ""
        if self.alive:
            return f"{self.state.capitalize()}. {ended} of {count} trials have ended.", ""
        if other := current():
            return f"Start is off: {other.name} is training in this kernel; stop it first, or wait for its end.", "bad"
        if failed:
            return " ".join([f"{ended} of {count} trials have ended.", *failed, "Start tries again."]), "bad"
        if ended == count:
            return f"All {count} trials have ended. Folder: {self.sweep.path}", ""
        return f"{ended} of {count} trials have ended. Start trains {'the rest' if ended else 'them'}.", ""
