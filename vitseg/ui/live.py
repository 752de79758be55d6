"""Training on a background thread: the kernel stays usable, and Pause means pause. A `Task` is what a
screen shows: a run, an ablation, a search. No widgets.
"""

import atexit
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from vitseg.errors import RunError, TrainingError
from vitseg.events import BatchEnded, Event, Polled, ValidationBatch

launching = threading.RLock()
"""Held while a run is launched: buttons and cells may press Start from several threads at once."""

_current: "Task | None" = None


def current() -> "Task | None":
    """The task that is training in this kernel, paused or not; None if there is none."""
    return _current if _current and _current.alive else None


def why_busy() -> str:
    """Why nothing can be launched, if so: two runs would share the cores."""
    other = current()
    words = "is training in this kernel. Stop it first, or wait for its end."
    return f"{other.path.name} {words}" if other else ""


class Task:
    """What is trained in the background, and what a screen asks of it. A stream of events is drained
    on a thread; between two events the thread pauses, stops, or waits for what others do there.

    `phase` is running, pausing, paused or stopping, and in the end stopped, ended or failed, by
    `error`; "" for what was not started here. `events` are all but the transient ones of the run
    that is shown, `position` is the last event of any kind. `turns` counts what is worth drawing
    everything anew; `seconds` are those in which the stream worked. `incomplete` is why the screen
    does not show all of it, `cost` what a forecast rests on; None until batches have been timed. Of
    several screens only the newest, `screen`, is drawn meanwhile.

    Each kind of task defines `idle`, its state while `phase` is "", where "ended" means that
    nothing is left for Start; `_begin`, which launches what Start trains; `_note`, which takes note
    of an event for curves and progress; `share`, how much is done, 0..1; and `status`, what is
    happening, and all that is wrong.
    """

    path: Path | None
    """Its folder, once there is one."""

    elsewhere = False
    """Whether other processes train, which go on while nobody asks for events."""

    resumable = False
    """Whether what was cut off can be gone on with, by Resume."""

    takes: float | None = None
    """Seconds that all of it takes by forecast, if there is one."""

    def __init__(self) -> None:
        self._moved, self._thread = threading.Condition(), None
        self._turn, self._step = threading.RLock(), threading.RLock()
        self.cost = self.screen = None
        self._clear()

    def _clear(self) -> None:
        self.phase, self.error, self.incomplete = "", None, ""
        self.events: list[Event] = []
        self.position: Event | None = None
        self.turns, self.seconds = 0, 0.0
        self._began: tuple[float, float] | None = None

    def measure(self) -> None:
        """Time a few batches, once, where there is a forecast."""

    # ---- what it is doing

    @property
    def state(self) -> str:
        return self.phase or self.idle

    @property
    def alive(self) -> bool:
        return self.phase in {"running", "pausing", "paused", "stopping"}

    def doing(self) -> str:
        """What is happening while it is alive."""
        match self.phase, self.position:
            case "paused", _:
                return "Paused. Resume goes on."
            case "pausing" | "stopping" as phase, _:
                return f"{phase.capitalize()} after this batch."
            case _, None:
                return "Reading data and weights."
            case _, BatchEnded() | ValidationBatch() as p:
                what = "Training" if isinstance(p, BatchEnded) else "Scoring"
                return f"{what} stage {p.stage}: epoch {p.epoch}, batch {p.batch} of {p.batches}."
            case _, Polled(running):
                return f"Elsewhere, {running} trials train or wait for room."
        return "Training."

    def progress(self) -> tuple[float, float | None]:
        """The share that is done, 0..1, and the seconds left: at the pace of what was trained here,
        else by forecast; None as long as there is neither.
        """
        done = self.share()
        left = self.takes and self.takes * (1 - done)
        since, before = self._began or (done, 0.0)
        if done > since:
            left = (self.seconds - before) * (1 - done) / (done - since)
        return done, left

    def _count(self) -> None:
        """From here on, the first time, the pace is that of what is trained here."""
        self._began = self._began or (self.share(), self.seconds)

    def why_not_start(self) -> str:
        """Why Start is off; empty if it is not."""
        return why_busy()

    # ---- what can be done

    def start(self) -> None:
        """Train in the background. Nothing happens while it does already. Raises TrainingError if
        another run is alive.
        """
        with launching:
            if not self.alive:
                self._begin()

    def pause(self) -> None:
        """Stop asking for events after the batch that is under way."""
        self._move(running="pausing")

    def resume(self) -> None:
        self._move(pausing="running", paused="running")

    def stop(self) -> None:
        """End what trains in this kernel after the batch that is under way: also a run of another
        screen, whose own button may be gone. It can be continued from there.
        """
        if task := current():
            task._move(running="stopping", pausing="stopping", paused="stopping")

    def _move(self, **moves: str) -> None:
        """From one phase to another; in a phase not named nothing happens, so that a second click
        does no harm.
        """
        if not self.phase:
            raise RunError("Nothing has been started.", "Press Start.")
        with self._moved:
            self.phase = moves.get(self.phase, self.phase)
            self.turns += 1
            self._moved.notify_all()

    def wait(self, timeout: float | None = None) -> str:
        """Until nothing more comes, or `timeout` seconds have passed; returns the state."""
        if self._thread:
            self._thread.join(timeout)
        return self.state

    def follow(self) -> Iterator[Event]:
        """The events so far, and those to come, until the run is over."""
        seen, events = 0, self.events
        while True:
            over = not self.alive or events is not self.events
            while seen < len(events):
                yield events[seen]
                seen += 1
            if over:
                return
            self.wait(0.2)

    def between(self, job: Callable[[], Any]) -> Any:
        """The result of `job`, done while no step is under way: also while paused, and after the
        end.
        """
        with self._turn, self._step:
            return job()

    # ---- the thread

    def _launch(self, stream: Generator[Event]) -> None:
        global _current
        if reason := why_busy():
            raise TrainingError(reason)
        self._clear()
        self.phase, _current = "running", self
        self._thread = threading.Thread(
            target=self._drain, args=[stream], name=f"vitseg {self.path.name}", daemon=True
        )
        atexit.register(self._at_exit)
        self._thread.start()

    def _drain(self, stream: Generator[Event]) -> None:
        last = "stopped"
        try:
            with closing(stream):  # which saves, and may fail to
                while True:
                    with self._moved:
                        self._moved.wait_for(lambda: self.phase != "paused")
                        if self.phase == "stopping":
                            break
                    with self._turn:  # whoever waits for the end of a step comes first
                        pass
                    with self._step:
                        began = time.monotonic()
                        event = next(stream)
                        self.seconds += time.monotonic() - began
                        self.take(event)
                        if self.phase == "pausing":
                            self._save()
                            self._move(pausing="paused")
        except StopIteration:
            last = "ended"
        except BaseException as error:  # a SystemExit, too: nobody would see it on this thread
            self.error, last = error, "failed"
        atexit.unregister(self._at_exit)
        with self._moved:
            self.phase = last  # from here on another run may be launched

    def _save(self) -> None:
        """What is paused may never be resumed here."""

    def _at_exit(self) -> None:
        """A kernel that shuts down waits for the step under way, so that no file is left half
        written.
        """
        self.stop()
        self._thread.join(5.0)

    def take(self, event: Event) -> None:
        """What happens to an event: on the training thread, between two steps. No curve and no
        picture is a reason for a training to end.
        """
        try:
            self._note(event)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.incomplete = f"The curves or predictions are not complete ({reason})."
        if not event.transient:
            self.events.append(event)
            self.turns += not isinstance(event, BatchEnded)
        self.position = event
