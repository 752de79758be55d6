"""Trials in the background and on the screen, whoever chooses them: what sweeps and searches have
in common.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Protocol

from vitseg.errors import RunError
from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    Polled,
    StageStarted,
    TrialEnded,
    TrialStarted,
    TrialTold,
)
from vitseg.ui.live import OVER, LiveRun, current
from vitseg.ui.session import launching
from vitseg.ui.steering import Steering, unpainted

REDRAW_SECONDS = 0.5


class Source(Protocol):
    """Where trials come from: `Sweep`, `Search` and `Spread` in `vitseg.sweep`."""

    path: Path
    elsewhere: bool
    """Whether other processes train them, which go on while nobody asks for events."""

    def left(self) -> int:
        """How many have not ended, or not begun."""

    def events(self) -> Generator[Event]:
        """Trains them."""


class Trials:
    """The trials of a sweep or a search, trained on a thread. `version` counts what happened,
    `turns` the epochs, stages and trials in it; `position` is the last of it.

    `on_event` is told of every event, between two steps; `owner` is who asked, for a cell that is
    run again.
    """

    def __init__(self, source: Source, owner: object, on_event: Callable[[Event], None]):
        self.source, self._owner, self._on_event = source, owner, on_event
        self.live: LiveRun | None = None
        self.position: Event | None = None
        self.incomplete, self.version, self.turns, self.told = "", 0, 0, 0.0

    @property
    def state(self) -> str:
        return self.live.state if self.live else "ready" if self.source.left() else "ended"

    @property
    def alive(self) -> bool:
        return self.live is not None and self.live.state not in OVER

    def start(self) -> None:
        """Train what has not ended. Raises TrainingError if another run is alive; while this one
        is, nothing happens.
        """
        with launching:
            if not self.alive and self.source.left():
                self.told, self.incomplete = time.monotonic(), ""
                self.live = LiveRun(
                    self.source.events(), self.source.path.name, self._take, owner=self._owner
                )

    def follow(self) -> Iterator[Event]:
        """The events so far, and those to come, until all is over."""
        seen, live = 0, self.live
        while live:
            over = live.state in OVER
            while seen < len(live.events):
                yield live.events[seen]
                seen += 1
            if over:
                return
            live.wait(0.2)

    def _take(self, event: Event) -> None:
        """On the training thread, between two steps. The screen is no reason for a training to
        end.
        """
        try:
            self._on_event(event)
        except Exception as error:
            self.incomplete = f"The curves are not complete ({type(error).__name__}: {error})."
        self.turns += isinstance(
            event, EpochEnded | StageStarted | TrialStarted | TrialTold | TrialEnded
        )
        self.told, self.position, self.version = time.monotonic(), event, self.version + 1

    def stopped_by(self) -> str:
        """Why nothing is trained now, if something is wrong."""
        if self.live and self.live.error is not None:
            return f"Stopped by an error: {self.live.error}"
        if (other := current()) and not self.alive:
            return (
                f"Start is off: {other.name} is training in this kernel; stop it first, or "
                f"wait for its end."
            )
        return ""

    def doing(self, trial: str | None) -> str:
        if self.state != "running":
            return f"{self.state.capitalize()}."
        match self.position:
            case None:
                return "Starting."
            case Polled(running=running):
                return f"Elsewhere, {running} trials train or wait for room."
            case BatchEnded() | EpochEnded() | StageStarted() as p:
                return f"Training {trial}: stage {p.stage}, epoch {p.epoch}."
            case _:
                return f"Training {trial}."


class TrialsScreen(ABC):
    """Buttons for trials, and a painter. A screen says how it is drawn: `_draw_all` at turning
    points, `_draw` in between.
    """

    def __init__(self, trials: Trials):
        self.trials, self._unpainted = trials, ""
        self._steering = Steering(
            {
                "Start": (self.start, "Train the trials that have not ended"),
                "Pause": (self._pause_or_resume, "Pause after this batch; Resume goes on"),
                "Stop": (self.stop, "End after this batch; Start goes on later"),
            },
            self._draw,
        )

    def start(self) -> None:
        """Train the trials that have not ended, in the background. Nothing happens while they are
        being trained.
        """
        if not self.trials.alive:
            self.trials.start()
            self._paint_while_alive()

    def pause(self) -> None:
        """After the batch that is under way."""
        if self.trials.source.elsewhere:
            raise RunError(
                "Trials on other machines cannot be paused.",
                "Stop them; Start goes on with each where it was.",
            )
        self._live("pause").pause()

    def resume(self) -> None:
        """Go on after a pause."""
        self._live("resume").resume()

    def _live(self, verb: str) -> LiveRun:
        if self.trials.live is None:
            raise RunError(f"Nothing has been started that one could {verb}.", "Press Start.")
        return self.trials.live

    def stop(self) -> None:
        """After the batch that is under way. Start goes on with that trial where it stopped."""
        if self.trials.live:
            self.trials.live.stop()

    def wait(self, timeout: float | None = None) -> str:
        """Until all trials are over, or `timeout` seconds; returns the state. The kernel is busy
        meanwhile.
        """
        if self.trials.live:
            self.trials.live.wait(timeout)
        self._draw_all()
        return self.state

    @property
    def state(self) -> str:
        """ready, running, pausing, paused, stopping, stopped, ended, failed."""
        return self.trials.state

    def _follow(self) -> Iterator[Event]:
        """Start, hand on what happens, and raise at the end what stopped it."""
        self.start()
        yield from self.trials.follow()
        self._draw_all()
        if self.trials.live and self.trials.live.error is not None:
            raise self.trials.live.error

    def _pause_or_resume(self) -> None:
        (self.pause if self.state == "running" else self.resume)()

    def _paint_while_alive(self) -> None:
        threading.Thread(target=self._paint, name="vitseg painter", daemon=True).start()

    def _paint(self) -> None:
        """Redraw a few times a second while there is something new, and once at the end. Never
        stops the training.
        """
        trials, drawn, turned = self.trials, -1, -1
        while True:
            over = not trials.alive
            try:
                if over or turned != trials.turns:
                    turned = trials.turns
                    self._draw_all()
                elif drawn != trials.version:
                    self._draw()
                self._unpainted = ""
            except Exception as error:
                with contextlib.suppress(Exception):
                    self._unpainted = unpainted(error)
                    self._draw()
            drawn = trials.version
            if over:
                return
            trials.live.wait(REDRAW_SECONDS)

    def _draw_buttons(
        self, progress: tuple[float, float | None], sentence: tuple[str, str]
    ) -> None:
        alive, state, buttons = self.trials.alive, self.state, self._steering.buttons
        buttons["Start"].disabled = current() is not None or not self.trials.source.left()
        buttons["Pause"].description = "Resume" if state in {"paused", "pausing"} else "Pause"
        buttons["Pause"].disabled = buttons["Stop"].disabled = not alive or state == "stopping"
        buttons["Pause"].disabled |= self.trials.source.elsewhere
        self._steering.progress(*progress)
        wrong = self._steering.note or self._unpainted
        self._steering.say(*((wrong, "bad") if wrong else sentence))

    @abstractmethod
    def _draw_all(self) -> None:
        """Everything, after an epoch, a stage or a trial."""

    @abstractmethod
    def _draw(self) -> None:
        """The buttons, the bar and the status line, which change with every batch."""
