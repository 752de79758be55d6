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
from contextlib import closing
from pathlib import Path
from typing import Any

from vitseg.errors import RunError, TrainingError
from vitseg.events import BatchEnded, Event

OVER = frozenset({"stopped", "ended", "failed"})
"""States from which nothing more comes."""

LONGEST = 60.0
"""Seconds that a step may take; more was a machine asleep."""

Said = tuple[str, str]
"""The words of a status line, and "bad" where they are about something wrong."""

launching = threading.RLock()
"""Held while a run is launched: buttons and cells may press Start from several threads at once."""

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
    """Drains a stream of events on a thread of its own; `owner` takes each of them.

    `state` is running, pausing, paused or stopping, and in the end one of `OVER`. Between two
    events the thread looks into its mailbox: it pauses, stops, or does what `between` hands it.
    """

    def __init__(self, stream: Generator[Event], name: str, owner: Task):
        self.name, self.owner, self.state = name, owner, "running"
        self.error: BaseException | None = None
        self._stream, self._mail = stream, threading.Condition()
        self._jobs: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._drain, name=f"vitseg {name}", daemon=True)
        atexit.register(self._at_exit)
        self._thread.start()

    def pause(self) -> None:
        """Stop asking for events after the batch that is under way."""
        self._move(running="pausing")

    def resume(self) -> None:
        self._move(pausing="running", paused="running")

    def stop(self) -> None:
        """End after the batch that is under way. The run can be continued from there."""
        self._move(running="stopping", pausing="stopping", paused="stopping")

    def wait(self, timeout: float | None = None) -> str:
        """Until nothing more comes, or `timeout` seconds have passed; returns the state."""
        self._thread.join(timeout)
        return self.state

    def between(self, job: Callable[[], Any]) -> Any:
        """The result of `job`, done while no step is under way: also while paused, and after the
        end.
        """
        return job() if threading.current_thread() is self._thread else self.later(job).result()

    def later(self, job: Callable[[], Any]) -> Future:
        """The same, without waiting for it."""
        done: Future = Future()

        def answer() -> None:
            try:
                done.set_result(job())
            except Exception as error:
                done.set_exception(error)

        with self._mail:
            over = self.state in OVER
            if not over:
                self._jobs.append(answer)
                self._mail.notify_all()
        if over:
            answer()
        return done

    def _move(self, **moves: str) -> None:
        """From one state to another; in a state not named nothing happens, so that a second click
        does no harm.
        """
        with self._mail:
            self.state = moves.get(self.state, self.state)
            self._mail.notify_all()

    def _drain(self) -> None:
        last = "stopped"
        try:
            with closing(self._stream):  # which saves, and may fail to
                while self._may_go_on():
                    self.owner.take(next(self._stream))
        except StopIteration:
            last = "ended"
        except BaseException as error:  # a SystemExit, too: nobody would see it on this thread
            self.error, last = error, "failed"
        with self._mail:
            self.state = last
        for job in self._jobs:
            job()
        atexit.unregister(self._at_exit)

    def _may_go_on(self) -> bool:
        """Do the jobs, sit out a pause. False once it is to stop."""
        while True:
            with self._mail:
                if self.state == "pausing":
                    self.state = "paused"
                self._mail.wait_for(lambda: self._jobs or self.state != "paused")
                if not self._jobs:
                    return self.state != "stopping"
                job = self._jobs.pop(0)
            job()

    def _at_exit(self) -> None:
        """A kernel that shuts down waits for the step under way, so that no file is left half
        written.
        """
        self.stop()
        self._thread.join(5.0)


class Task(ABC):
    """What is trained in the background, one live run after another, and what a screen asks of it.

    `events` are all but the transient ones of the run that is shown, `position` is the last event of
    any kind. `version` counts what happened, and `turns` what is worth drawing everything anew.
    `incomplete` is why the screen does not show all of it, `cost` what a forecast rests on; None
    until batches have been timed.
    """

    path: Path | None
    """Its folder, once there is one."""

    elsewhere = False
    """Whether other processes train, which go on while nobody asks for events."""

    resumable = False
    """Whether what was cut off can be gone on with, by Resume."""

    def __init__(self) -> None:
        self.live: LiveRun | None = None
        self.cost: Any = None
        self._clear()

    def _clear(self) -> None:
        self.events: list[Event] = []
        self.position: Event | None = None
        self.version = self.turns = 0
        self.incomplete, self.pace = "", Pace()

    # ---- what each kind says of itself

    @property
    @abstractmethod
    def idle(self) -> str:
        """The state of what was not started here."""

    @abstractmethod
    def _begin(self) -> None:
        """Launch what Start trains."""

    @abstractmethod
    def _note(self, event: Event) -> None:
        """Take note of an event, for curves and progress."""

    def measure(self) -> None:  # noqa: B027
        """Time a few batches, once, where there is a forecast."""

    @abstractmethod
    def progress(self) -> tuple[float, float | None]:
        """The share that is done, 0..1, and the seconds left, once that can be said."""

    @abstractmethod
    def sentence(self, note: str = "") -> Said:
        """What is happening, or what is wrong. `note` is what the last press came to."""

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
        try:
            refuse_a_second()
        except TrainingError as error:
            return str(error)
        return ""

    def start(self) -> None:
        """Train in the background. Nothing happens while it does already. Raises TrainingError if
        another run is alive.
        """
        with launching:
            if not self.alive:
                self._begin()

    def pause(self) -> None:
        """After the batch that is under way."""
        self._started().pause()

    def resume(self) -> None:
        self._started().resume()

    def _started(self) -> LiveRun:
        if self.live is None:
            raise RunError("Nothing has been started.", "Press Start.")
        return self.live

    def stop(self) -> None:
        if live := self.stoppable:
            live.stop()

    def wait(self, timeout: float | None = None) -> str:
        """Until the live run is over, or `timeout` seconds; returns the state."""
        return self.live.wait(timeout) if self.live else self.idle

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
            self.turns += not isinstance(event, BatchEnded)
        self.position = event
        self.version += 1

    def _launch(self, stream: Generator[Event], name: str) -> None:
        global _current
        refuse_a_second()
        self._clear()
        self.live = _current = LiveRun(stream, name, self)


class Pace:
    """How fast work goes: of events, each with the work that was done since the one before."""

    def __init__(self) -> None:
        self._last, self._seconds, self._done = time.monotonic(), 0.0, 0.0

    def count(self, working: bool, work: float = 0.0) -> None:
        """`working` is whether it went on all the time: a pause is no work."""
        now = time.monotonic()
        if working:
            self._seconds += min(now - self._last, LONGEST)
            self._done += work
        self._last = now

    def left(self, work: float) -> float | None:
        """Seconds that so much work will take, once that can be said."""
        return work * self._seconds / self._done if self._done else None
