"""A sweep on a Ray cluster: each trial a task, its run folder on storage that all nodes share.
Extra `ray`.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from vitseg.errors import ConfigError, VitsegError
from vitseg.events import EpochEnded, Event, Polled, TrialStarted, TrialTold, from_json
from vitseg.files import held
from vitseg.recipe import Recipe, parse
from vitseg.runs.folder import RunFolder
from vitseg.sweep.grid import Trial
from vitseg.sweep.local import Sweep, train_or_resume

try:
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1"
    )  # a trial without a GPU sees none
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
except ModuleNotFoundError as error:
    raise VitsegError(
        f"where='ray': {error.name} is not installed.", "pip install 'vitseg[ray]'"
    ) from None

POLL_SECONDS, LEAVE_SECONDS = 1.0, 60.0
RETRIES = 2
LEFT = "left"
"""What a task gives back that was stopped."""


class Spread:
    """The trials of a sweep as tasks of a cluster: the same `path`, `left` and `events` as the
    sweep itself.

    `address` is a running cluster's ("auto" for the one that this machine belongs to); without it
    one is begun here and ended again, unless this process has joined one already. A trial takes as
    many cores as its recipe has `threads`, which must be given, times `processes`: sums in another
    order have other bits. It takes `gpus`, which may be a fraction. A worker or node that is lost:
    the trial goes on elsewhere from its last checkpoint, twice at most. Trials that share first
    stages wait for the first of them, and find its stages. Raises ConfigError for threads, gpus or
    an address that cannot be.
    """

    elsewhere = True

    def __init__(self, sweep: Sweep, address: str | None = None, gpus: float = 0):
        for trial in sweep.grid.trials:
            if trial.recipe.threads == "auto":
                mend = 'Nodes have different numbers of cores: recipe.replace({"threads": 2}).'
                raise ConfigError("threads", "auto", "a number, with where='ray'", mend)
        if isinstance(gpus, bool) or not isinstance(gpus, int | float) or not 0 <= gpus < math.inf:
            raise ConfigError(
                "gpus", gpus, "how many a trial takes, 0 or more; 0.5 for two trials on one"
            )
        if address is not None and not isinstance(address, str):
            raise ConfigError(
                "address", address, 'that of a cluster, as in "auto" or "10.0.0.1:6379"'
            )
        self.sweep, self.path, self._address, self._gpus = sweep, sweep.path, address, gpus

    def left(self) -> int:
        return self.sweep.left()

    def events(self) -> Generator[Event]:
        """Train what has not ended; `TrialTold` says how far each trial is. Whoever is left saves
        and stops within a batch.
        """
        with cluster(self._address):
            self._refuse_what_fits_nowhere()
            self.sweep.lay_out()
            with held(self.path):
                yield from self._spread_out()

    def _spread_out(self) -> Generator[Event]:
        stop = self.path / f"stop-{uuid4().hex[:8]}"
        waiting, running, told = self.sweep.todo(), dict[Any, Trial](), dict[str, int]()
        try:
            while waiting or running:
                for trial in self._ready(waiting, running.values()):
                    waiting.remove(trial)
                    running[self._submit(trial, stop)] = trial
                done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                yield from self._news(running.values(), told)
                for task in done:
                    yield self.sweep.over(running.pop(task).name, outcome(task))
                yield Polled(len(running))
        finally:
            if running:
                stop.touch()
                done, _ = ray.wait(list(running), num_returns=len(running), timeout=LEAVE_SECONDS)
                for task in done:
                    if (said := outcome(task)) != LEFT:
                        self.sweep.over(running[task].name, said)
                if len(done) == len(running):  # else it stays, for tasks that still wait for room
                    stop.unlink()

    def _refuse_what_fits_nowhere(self) -> None:
        """Raises ConfigError where no node has what a trial takes: it would be waited for without
        end.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for trial in self.sweep.grid.trials:
            cpus = _cores(trial.recipe)
            if not any(
                node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= self._gpus for node in nodes
            ):
                most = ", ".join(
                    f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs"
                    for node in nodes
                )
                wanted = f"{cpus} cores and {self._gpus:g} GPUs"
                raise ConfigError(
                    "threads, processes, gpus", wanted, f"what a node of the cluster has: {most}"
                )

    def _ready(self, waiting: list[Trial], running: Iterable[Trial]) -> list[Trial]:
        """Those that share no stage with a trial that has yet to train it."""
        yet = {t.name for t in (*waiting, *running)}
        first = {t.name: group[0].name for group in self.sweep.groups() for t in group}
        return [t for t in waiting if t.name == first[t.name] or first[t.name] not in yet]

    def _submit(self, trial: Trial, stop: Path) -> Any:
        folders = map(str, (self.sweep.run_of(trial.name).path, self.path.parent, stop))
        needs = {"num_cpus": _cores(trial.recipe), "num_gpus": self._gpus}
        task = _trained.options(**needs, max_retries=RETRIES, scheduling_strategy="SPREAD")
        return task.remote(trial.recipe.model_dump_json(), *folders)

    def _news(self, trials: Iterable[Trial], told: dict[str, int]) -> Iterator[Event]:
        """What the logs of the trials hold since they were last looked into. A trial begun anew has
        nothing new for a while.
        """
        for trial in trials:
            epochs = epochs_of(self.sweep.run_of(trial.name))
            if epochs and trial.name not in told:
                told[trial.name] = 0
                yield TrialStarted(trial.name)
            for epoch in epochs[told.get(trial.name, 0) :]:
                told[trial.name] += 1
                yield TrialTold(trial.name, epoch.epoch, epoch.validation["iou"])


def _cores(recipe: Recipe) -> int:
    return recipe.threads * recipe.processes


@ray.remote
def _trained(recipe: str, run: str, beside: str, stop: str) -> str | None:
    """Train a trial on the node where this runs; why it failed, if it did, or that it was left
    since `stop` is there.
    """
    folder = RunFolder(run)
    if folder.summary_file.exists():  # the node was lost between its end and the word of it
        return None
    if os.path.exists(stop):  # noqa: PTH110  one call a step, on a network drive
        return LEFT
    try:
        with closing(train_or_resume(folder, parse(recipe), Path(beside))) as events:
            for _ in events:
                if os.path.exists(stop):  # noqa: PTH110
                    return LEFT
    except (VitsegError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def outcome(task: Any) -> str | None:
    """Why a task has failed, or None, or `LEFT`. A worker that died as often as it was begun is a
    sentence, too.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        return (
            f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]} It was begun "
            f"{RETRIES + 1} times."
        )


def epochs_of(run: RunFolder) -> list[EpochEnded]:
    """The epochs in a log that somebody else is writing. One that cannot be read now has nothing
    new.
    """
    try:
        lines = enumerate(run.events_file.read_text(encoding="utf-8").split("\n")[:-1], start=1)
        return [from_json(line, number) for number, line in lines if '"event":"EpochEnded"' in line]
    except (OSError, ValueError):
        return []


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connected to a cluster: the one that this process has joined already, that of the address, or
    one of its own.
    """
    joined = ray.is_initialized()
    if not joined:
        _knock(address)
        local = {"include_dashboard": False} if address is None else {}
        try:
            ray.init(
                address=address or "local", log_to_driver=False, logging_level="ERROR", **local
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise VitsegError(
                f"address={address!r}: no Ray cluster answers there ({error}).", "ray start --head"
            ) from None
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises VitsegError where nobody listens: Ray itself asks for minutes, and then ends the
    process.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # none, or "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise VitsegError(
            f"address={address!r}: no Ray cluster answers there ({error}).", "ray start --head"
        ) from None
