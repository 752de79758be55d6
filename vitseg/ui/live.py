"""Training on a background thread: the kernel stays usable, and Pause means pause. A `Task` is what a
screen shows: a run, an ablation, a search. No widgets.
"""

from __future__ import annotations

import atexit
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Protocol

from vitseg.errors import RunError, TrainingError
from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    Polled,
    RunStarted,
    StageEnded,
    StageStarted,
    TrialEnded,
    TrialStarted,
    TrialTold,
)

State = Literal["running", "pausing", "paused", "stopping", "stopped", "ended", "failed"]
OVER = frozenset({"stopped", "ended", "failed"})
"""States from which nothing more comes."""

LONGEST = 60.0
"""Seconds that a step may take; more was a machine asleep."""

Said = tuple[str, str]
"""The words of a status line, and "bad" where they are about something wrong."""

launching = threading.RLock()
"""Held while a run is begun: buttons and cells may press Start from several threads at once."""

_one_trainer = threading.Lock()
_current: LiveRun | None = None


def current() -> LiveRun | None:
    """The run that is training in this kernel, paused or not; None if there is none."""
    return _current if _current and _current.state not in OVER else None


def refuse_a_second() -> None:
    """Raises TrainingError if a run is alive: two would share the cores."""
    if other := current():
        raise TrainingError(
            f"{other.name} is training in this kernel.", "Stop it first, or wait for its end."
        )


class LiveRun:
    """Drains a stream of events on a thread of its own, and tells `on_event` of each. One at a time
    in a process; raises TrainingError if another is alive.

    Between two events the thread looks into its mailbox: it pauses, stops, or does what `between`
    hands it. `owner` is whose run it is, for a cell that is run again.
    """

    def __init__(
        self,
        stream: Generator[Event],
        name: str,
        on_event: Callable[[Event], None],
        owner: object = None,
    ):
        global _current
        self.name, self.owner, self.error = name, owner, None
        self._stream, self._on_event = stream, on_event
        self._mail, self._jobs = threading.Condition(), list[tuple[Callable[[], Any], Future]]()
        self._state: State = "running"
        self._thread = threading.Thread(target=self._drain, name=f"vitseg {name}", daemon=True)
        with _one_trainer:
            refuse_a_second()
            _current = self
        atexit.register(self._stop_within, 5.0)
        self._thread.start()

    @property
    def state(self) -> State:
        return self._state

    def pause(self) -> None:
        """Stop asking for events after the batch that is under way."""
        self._move({"running": "pausing"})

    def resume(self) -> None:
        self._move({"pausing": "running", "paused": "running"})

    def stop(self) -> None:
        """End after the batch that is under way. The run can be continued from there."""
        self._move(dict.fromkeys(("running", "pausing", "paused"), "stopping"))

    def wait(self, timeout: float | None = None) -> State:
        """Until nothing more comes, or `timeout` seconds have passed."""
        self._thread.join(timeout)
        return self._state

    def between(self, job: Callable[[], Any]) -> Any:
        """The result of `job`, done while no step is under way: also while paused, and after the
        end.
        """
        return job() if threading.current_thread() is self._thread else self.later(job).result()

    def later(self, job: Callable[[], Any]) -> Future:
        """The same, without waiting for it."""
        done: Future = Future()
        with self._mail:
            if not (over := self._state in OVER):
                self._jobs.append((job, done))
                self._mail.notify_all()
        if over:
            _do([(job, done)])
        return done

    def _move(self, moves: dict[str, State]) -> None:
        """From one state to another; from states not named nothing happens, so that a second click
        does no harm.
        """
        with self._mail:
            self._state = moves.get(self._state, self._state)
            self._mail.notify_all()

    def _drain(self) -> None:
        last: State = "failed"
        try:
            while self._may_go_on():
                event = next(self._stream, None)
                if event is None:
                    last = "ended"
                    break
                self._on_event(event)
            else:
                last = "stopped"
        except Exception as error:
            self.error = error
        finally:
            self._finish(last)

    def _may_go_on(self) -> bool:
        """Do the jobs, sit out a pause. False once it is to stop."""
        while True:
            with self._mail:
                if self._state == "stopping":
                    return False
                if self._state == "pausing":
                    self._state = "paused"
                if self._state == "paused" and not self._jobs:
                    self._mail.wait()
                jobs, self._jobs = self._jobs, []
                if not jobs and self._state == "running":
                    return True
            _do(jobs)

    def _finish(self, last: State) -> None:
        try:
            self._stream.close()
        except Exception as error:
            self.error = self.error or error
        with self._mail:
            self._state = "failed" if self.error else last
            jobs, self._jobs = self._jobs, []
        _do(jobs)
        atexit.unregister(self._stop_within)

    def _stop_within(self, seconds: float) -> None:
        """A kernel that shuts down waits for the step under way, so that no file is left half
        written.
        """
        self.stop()
        self._thread.join(seconds)


def _do(jobs: list[tuple[Callable[[], Any], Future]]) -> None:
    for job, done in jobs:
        try:
            done.set_result(job())
        except Exception as error:
            done.set_exception(error)


class Task(ABC):
    """What is trained in the background, one live run after another, and what a screen asks of it.

    `events` are all but the transient ones of the run that is shown, `position` is the last event of
    any kind. `version` counts what happened, and `turns` what is worth drawing everything anew.
    `cost` is what a forecast rests on; None until batches have been timed.
    """

    elsewhere = False
    """Whether other processes train, which go on while nobody asks for events."""

    resumable = False
    """Whether what was cut off can be gone on with, by Resume."""

    def __init__(self) -> None:
        self.live: LiveRun | None = None
        self.cost: Any = None
        self.pace = Pace()
        self._clear()

    def _clear(self) -> None:
        self.events: list[Event] = []
        self.position: Event | None = None
        self.version = self.turns = 0
        self.incomplete = ""

    # ---- what each kind says of itself

    @property
    @abstractmethod
    def idle(self) -> str:
        """The state of what was not begun here."""

    @property
    @abstractmethod
    def path(self) -> Path | None:
        """Its folder, once there is one."""

    @abstractmethod
    def _begin(self) -> None:
        """Launch what Start trains."""

    @abstractmethod
    def _note(self, event: Event) -> None:
        """Take note of an event, for curves and progress."""

    @abstractmethod
    def progress(self) -> tuple[float, float | None]:
        """The share that is done, 0..1, and the seconds left, once that can be said."""

    @abstractmethod
    def sentence(self, note: str = "", unpainted: str = "") -> Said:
        """What is happening, or what is wrong. `note` is what the last press came to, `unpainted`
        why the screen is not what it should be.
        """

    # ---- what all have in common

    @property
    def state(self) -> str:
        return self.live.state if self.live else self.idle

    @property
    def alive(self) -> bool:
        return self.live is not None and self.live.state not in OVER

    @property
    def startable(self) -> bool:
        return not self.alive and not self.why_not_start()

    @property
    def stoppable(self) -> LiveRun | None:
        """What Stop ends."""
        return self.live if self.alive else None

    def why_not_start(self) -> str:
        """Why Start is off; empty if it is not."""
        other = current()
        if other is None or other is self.live:
            return ""
        return f"{other.name} is training in this kernel; stop it first, or wait for its end."

    def start(self) -> None:
        """Train in the background. Nothing happens while it does already. Raises TrainingError if
        another run is alive.
        """
        with launching:
            if not self.alive:
                self._begin()

    def pause(self) -> None:
        """After the batch that is under way."""
        self._begun("pause").pause()

    def resume(self) -> None:
        self._begun("resume").resume()

    def _begun(self, verb: str) -> LiveRun:
        if self.live is None:
            raise RunError(f"Nothing has been started that one could {verb}.", "Press Start.")
        return self.live

    def stop(self) -> None:
        if live := self.stoppable:
            live.stop()

    def wait(self, timeout: float | None = None) -> str:
        """Until the live run is over, or `timeout` seconds; returns the state."""
        if self.live:
            self.live.wait(timeout)
        return self.state

    def follow(self) -> Iterator[Event]:
        """The events so far, and those to come, until the live run is over."""
        seen, events, live = 0, self.events, self.live
        while True:
            over = live is None or live.state in OVER
            while seen < len(events):
                yield events[seen]
                seen += 1
            if over:
                return
            live.wait(0.2)

    def take(self, event: Event) -> None:
        """What happens to an event: on the training thread, between two steps. No curve is a reason
        for a training to end.
        """
        try:
            self._note(event)
        except Exception as error:
            self.incomplete = f"The curves are not complete ({type(error).__name__}: {error})."
        if not event.transient:
            self.events.append(event)
        self.position = event
        self.turns += isinstance(event, _TURNS)
        self.version += 1

    def _launch(self, stream: Generator[Event], name: str) -> None:
        refuse_a_second()
        self._clear()
        self.live = LiveRun(stream, name, self.take, owner=self)


_TURNS = (RunStarted, StageStarted, EpochEnded, StageEnded, TrialStarted, TrialTold, TrialEnded)


class Pace:
    """How fast work goes: of events, each with the work that was done since the one before."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds = self._done = 0.0

    def begin(self) -> None:
        self._last = time.monotonic()

    def count(self, working: bool, work: float = 0.0, most: float = LONGEST) -> None:
        """`working` is whether it went on all the time: a pause is no work."""
        now = time.monotonic()
        if working and self._last is not None:
            self._seconds += min(now - self._last, most)
            self._done += work
        self._last = now

    def left(self, work: float) -> float | None:
        """Seconds that so much work will take, once that can be said."""
        return work * self._seconds / self._done if self._done else None


class Source(Protocol):
    """Where trials come from: `Sweep`, `Search` and `Spread` in `vitseg.sweep`."""

    path: Path
    elsewhere: bool

    def left(self) -> int:
        """How many have not ended, or not begun."""

    def events(self) -> Generator[Event]:
        """Trains them."""


class Trials(Task):
    """The trials of a source; `trial` is the one that is being trained."""

    def __init__(self, source: Source):
        self.source = source
        self.trial = ""
        super().__init__()

    @property
    def elsewhere(self) -> bool:
        return self.source.elsewhere

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def idle(self) -> str:
        return "ready" if self.source.left() else "ended"

    @property
    def startable(self) -> bool:
        return super().startable and self.source.left() > 0

    def _begin(self) -> None:
        if self.source.left():
            self._launch(self.source.events(), self.path.name)

    def pause(self) -> None:
        if self.elsewhere:
            raise RunError(
                "Trials on other machines cannot be paused.",
                "Stop them; Start goes on with each where it was.",
            )
        super().pause()

    def attached(self) -> Trials:
        """These trials, or the live ones of the same kind and folder."""
        live = current()
        if live and isinstance(live.owner, type(self)) and live.owner.path == self.path:
            return live.owner
        return self

    @abstractmethod
    def score_of(self, trial: str) -> str:
        """The IoU of a trial that has ended."""

    @abstractmethod
    def tally(self) -> list[str]:
        """How many have ended, and what failed."""

    @abstractmethod
    def conclusion(self) -> Said:
        """What is said while nothing is trained."""

    def sentence(self, note: str = "", unpainted: str = "") -> Said:
        if note or unpainted:
            return note or unpainted, "bad"
        if self.alive:
            return " ".join([self._doing(), *self.tally(), self.incomplete]).strip(), ""
        if self.live and self.live.error is not None:
            return f"Stopped by an error: {self.live.error}", "bad"
        if reason := self.why_not_start():
            return f"Start is off: {reason}", "bad"
        return self.conclusion()

    def _doing(self) -> str:
        if self.state != "running":
            return f"{self.state.capitalize()}."
        match self.position:
            case None:
                return "Starting."
            case Polled(running=running):
                return f"Elsewhere, {running} trials train or wait for room."
            case BatchEnded() | EpochEnded() | StageStarted() as p:
                return f"Training {self.trial}: stage {p.stage}, epoch {p.epoch}."
            case _:
                return f"Training {self.trial}."
