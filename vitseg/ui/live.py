"""One training on a background thread: the kernel stays usable, and Pause means pause. No
widgets.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Literal

from vitseg.errors import TrainingError
from vitseg.events import Event

State = Literal["running", "pausing", "paused", "stopping", "stopped", "ended", "failed"]
OVER = frozenset({"stopped", "ended", "failed"})
"""States from which nothing more comes."""

_one_trainer = threading.Lock()
_current: LiveRun | None = None


def current() -> LiveRun | None:
    """The run that is training in this kernel, paused or not; None if there is none."""
    return _current if _current and _current.state not in OVER else None


class LiveRun:
    """Drains a stream of events on a thread of its own. One at a time in a process: two would share
    the cores.

    Between two events the thread looks into its mailbox: it pauses, stops, or does what `between`
    hands it. `events` holds all but the transient ones, in order. Raises TrainingError if another
    run is alive.
    """

    def __init__(
        self,
        stream: Generator[Event],
        name: str,
        on_event: Callable[[Event], None] = lambda event: None,
        owner: object = None,
    ):
        global _current
        self.name, self.owner, self.events, self.error = name, owner, list[Event](), None
        self._stream, self._on_event = stream, on_event
        self._mail, self._jobs = threading.Condition(), list[tuple[Callable[[], Any], Future]]()
        self._state: State = "running"
        self._thread = threading.Thread(target=self._drain, name=f"vitseg {name}", daemon=True)
        with _one_trainer:
            if other := current():
                raise TrainingError(
                    f"{other.name} is training in this kernel.",
                    "Stop it first, or wait for its end.",
                )
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
                if not event.transient:
                    self.events.append(event)
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
