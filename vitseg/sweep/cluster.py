"""A sweep on a Ray cluster: each trial a task, its run folder on storage that all nodes share.
Extra `ray`.
"""

import os
import socket
from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

from vitseg.errors import ConfigError, VitsegError
from vitseg.events import Event, Polled, TrialStarted
from vitseg.files import held
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.sweep.grid import Grid, Trial
from vitseg.sweep.local import Sweep, epochs_of, train_or_resume

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


class Spread(Sweep):
    """A sweep whose trials are tasks of a cluster.

    `address` is a running cluster's ("auto" for the one that this machine belongs to); without it
    one is started here and ended again, unless this process has joined one already. A trial takes
    as many cores as its recipe has `threads`, which must be given, times `processes`: sums in
    another order have other bits. It takes `gpus`, which may be a fraction. A worker or node that
    is lost: the trial is resumed elsewhere from its last checkpoint, twice at most. Trials that
    share first stages wait for the first of them, and find its stages. Raises ConfigError for
    threads, gpus or an address that cannot be.
    """

    elsewhere = True

    def __init__(
        self,
        grid: Grid,
        folder: str | Path | None = None,
        address: str | None = None,
        gpus: float = 0,
    ):
        super().__init__(grid, folder)
        for trial in grid.trials:
            if trial.recipe.threads == "auto":
                hint = 'Nodes have different numbers of cores: recipe.replace({"threads": 2}).'
                raise ConfigError("threads", "auto", "a number, with where='ray'", hint)
        if type(gpus) not in (int, float) or not gpus >= 0:
            raise ConfigError("gpus", gpus, "0 or more a trial; 0.5 for two trials on one")
        self._address, self._gpus = address, gpus

    def events(self) -> Generator[Event]:
        """Train what has not ended; what comes after a TrialStarted are epochs of that trial. Those
        that are left save and stop within a batch.
        """
        with cluster(self._address):
            nodes = [Counter(node["Resources"]) for node in ray.nodes() if node["Alive"]]
            cores = max(t.recipe.threads * t.recipe.processes for t in self.grid.trials)
            # what fits on no node would wait without end
            if not any(node["CPU"] >= cores and node["GPU"] >= self._gpus for node in nodes):
                wanted = f"{cores} cores and {self._gpus:g} GPUs"
                has = ", ".join(f"{node['CPU']:g} and {node['GPU']:g}" for node in nodes)
                raise ConfigError("threads, processes, gpus", wanted, f"what a node has: {has}")
            self.lay_out()
            with held(self.path):
                yield from self._spread_out()

    def _spread_out(self) -> Generator[Event]:
        stop = self.path / f"stop-{uuid4().hex[:8]}"
        waiting, running, seen = self.todo(), dict[Any, Trial](), Counter[str]()
        try:
            while waiting or running:
                pending = [*waiting, *running.values()]
                for trial in self.grid.trials:  # those that share stages stand together
                    if not trial.shared:
                        first = trial
                    if trial in waiting and (trial is first or first not in pending):
                        waiting.remove(trial)
                        cores = trial.recipe.threads * trial.recipe.processes
                        task = _trained.options(
                            num_cpus=cores,
                            num_gpus=self._gpus,
                            max_retries=RETRIES,
                            scheduling_strategy="SPREAD",
                        )
                        run = self.run_of(trial.name)
                        running[task.remote(run, trial.recipe, stop)] = trial
                done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                for trial in running.values():  # one that has started again has no news for a while
                    news = epochs_of(self.run_of(trial.name))[seen[trial.name] :]
                    if news:
                        yield TrialStarted(trial.name)
                        yield from news
                    seen[trial.name] += len(news)
                for task in done:
                    yield self.over(running.pop(task).name, failure_of(task))
                yield Polled(len(running))
        finally:
            if running:
                stop.touch()
                _, late = ray.wait([*running], num_returns=len(running), timeout=LEAVE_SECONDS)
                if not late:  # else it stays, for tasks that still wait for room
                    stop.unlink()


@ray.remote
def _trained(run: RunFolder, recipe: Recipe, stop: Path) -> None:
    """Train a trial on the node where this runs, until it ends or `stop` is there."""
    if not run.summary_file.exists():  # else the node was lost before its answer arrived
        with closing(train_or_resume(run, recipe)) as events:
            while not stop.exists() and next(events, None) is not None:
                pass


def failure_of(task: Any) -> str | None:
    """Why a task has failed, if it has: an error of its own, or that its worker died each time."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {error} It was started {RETRIES + 1} times."


def cluster(address: str | None) -> AbstractContextManager:
    """The connection to a cluster: the one that this process has joined already, that of the
    address, or one of its own. It ends with the block, unless it was there before.
    """
    if ray.is_initialized():
        return nullcontext()
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # where nobody listens Ray asks for minutes, and ends the process
            socket.create_connection((host, int(port)), timeout=5).close()
        return ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (OSError, RuntimeError, ValueError) as error:
        problem = f"address={address!r}: no Ray cluster answers there ({error})."
        raise VitsegError(problem, "ray start --head") from None
