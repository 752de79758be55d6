"""A sweep on this machine: trial after trial, first stages trained once, everything found again in
its folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from vitseg.errors import RunError, VitsegError
from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted
from vitseg.files import held, write_json
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.run import TrainingRun, resume, train
from vitseg.sweep.findings import Result
from vitseg.sweep.grid import Facts, Grid, Trial, plain
from vitseg.training.job import Job, unfrozen_in


def facts_of(job: Job) -> Facts:
    source = job.model.shape.source.get("name")
    return Facts(len(job.data.splits["train"]), job.model.encoder.depth, source)


def check_depths(recipes: Iterable[Recipe], job: Job) -> None:
    """Raises ConfigError where one of those that train the job's model unfreezes more blocks than
    it has.
    """
    for recipe in recipes:
        if recipe.model == job.recipe.model:
            for number in range(1, len(recipe.stages) + 1):
                unfrozen_in(recipe, number, job.model)


def train_or_resume(run: RunFolder, recipe: Recipe, beside: Path) -> TrainingRun:
    """Go on with a trial that has begun, or begin it. First stages that any run in the folder
    `beside` has finished, on its own or in a sweep, are not trained again.
    """
    if run.events_file.exists():
        return resume(run.path)
    shutil.rmtree(run.path, ignore_errors=True)  # left by a kill before its first event
    return train(recipe, run.path, reuse=beside)


class Sweep:
    """The folder of a grid, and what has been trained of it: `for event in sweep.events()` trains
    the rest.

    Its trials are ordinary run folders under `trials/`. Without a `folder` it is one under
    `runs_root()` that the grid's own content names, so that the same call finds it again. Raises
    RunError if the folder holds another sweep.
    """

    elsewhere = False

    def __init__(self, grid: Grid, folder: str | Path | None = None):
        self.grid, described = grid, _description(grid)
        self.path = (
            Path(folder).expanduser().absolute()
            if folder
            else runs_root() / f"sweep-{grid.recipe.name}-{_key(described)}"
        )
        self.file = self.path / "sweep.json"
        if self.file.exists():
            self._refuse_another(described)
        self.failures: dict[str, str] = {}
        self._results: dict[str, Result] = {}

    def run_of(self, trial: str) -> RunFolder:
        return RunFolder(self.path / "trials" / trial)

    def results(self) -> dict[str, Result]:
        """The scores of every trial that has ended, by its name."""
        for trial in self.grid.trials:
            if (
                trial.name not in self._results
                and (run := self.run_of(trial.name)).summary_file.exists()
            ):
                self._results[trial.name] = _result(run)
        return dict(self._results)

    def todo(self) -> list[Trial]:
        """The trials that have not ended."""
        return [t for t in self.grid.trials if not self.run_of(t.name).summary_file.exists()]

    def left(self) -> int:
        return len(self.todo())

    def events(self) -> Generator[Event]:
        """Train what has not ended yet, in order. A trial that fails is told of, and the others go
        on.
        """
        self.lay_out()
        with held(self.path):
            for trial in self.todo():
                yield TrialStarted(trial.name)
                error, leaving = None, False
                try:
                    with closing(
                        train_or_resume(self.run_of(trial.name), trial.recipe, self.path.parent)
                    ) as events:
                        for event in events:
                            leaving = True
                            yield event
                            leaving = False
                except (VitsegError, OSError, RuntimeError) as failure:
                    # it failed to save when it was left: not the trial's failure, and nobody asks
                    # for more
                    if leaving:
                        raise
                    error = f"{type(failure).__name__}: {failure}"
                yield self.over(trial.name, error)

    def over(self, trial: str, error: str | None) -> TrialEnded:
        """Take note of how a trial has ended."""
        if error:
            self.failures[trial] = error
        elif self.run_of(trial).summary_file.exists():
            self.failures.pop(trial, None)
        return TrialEnded(trial, error)

    def groups(self) -> list[list[Trial]]:
        """Trials that share first stages, the one that trains them in front."""
        groups: list[list[Trial]] = []
        for trial in self.grid.trials:  # in an order in which they stand together
            if self.grid.shared[trial.name]:
                groups[-1].append(trial)
            else:
                groups.append([trial])
        return groups

    def lay_out(self) -> None:
        """The folder, and a recipe for each trial: in `recipes/1/` of those that go first, in
        `recipes/2/` of the others.
        """
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            write_json(self.file, _description(self.grid))
            for trial in self.grid.trials:
                turn = self.path / "recipes" / ("2" if self.grid.shared[trial.name] else "1")
                turn.mkdir(parents=True, exist_ok=True)
                trial.recipe.save(turn / f"{trial.name}.json")
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}).", "Choose another folder."
            ) from None

    def _refuse_another(self, described: dict[str, Any]) -> None:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            other = [name for name in described if found.get(name) != described[name]]
        except (OSError, ValueError, AttributeError):
            other = ["all of it"]
        if other:
            mend = "Give the same recipe, axes and seeds, or another folder."
            raise RunError(
                f"{self.path}: holds another sweep; it differs in {', '.join(other)}.", mend
            )


def _description(grid: Grid) -> dict[str, Any]:
    """What makes a sweep this one: the content of `sweep.json`."""
    recipe = grid.recipe.model_dump(mode="json")
    axes = [[path, [plain(v) for v in values]] for path, values in grid.axes.items()]
    return json.loads(
        json.dumps({"recipe": recipe, "axes": axes, "seeds": grid.seeds})
    )  # as it is read back


def _key(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]


def _result(run: RunFolder) -> Result:
    summary = run.summary
    curve = tuple((e.epoch, e.validation["iou"]) for e in run.events() if isinstance(e, EpochEnded))
    return Result(summary["best"]["iou"], summary["best"]["f1"], curve, summary["seconds"])
