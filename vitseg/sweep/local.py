"""A sweep on this machine: trial after trial, first stages trained once, everything found again in
its folder.
"""

import json
import shutil
from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from vitseg.draws import digest_of
from vitseg.errors import RunError, VitsegError
from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted, from_json
from vitseg.files import held, write_json, written
from vitseg.recipe import Recipe, plain
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.run import TrainingRun, resume, train
from vitseg.sweep.findings import Result
from vitseg.sweep.grid import Grid, Trial
from vitseg.training.job import Job, unfrozen_in


def check_depths(recipes: Iterable[Recipe], job: Job) -> None:
    """Raises ConfigError where one of those that train the job's model unfreezes more blocks than
    it has.
    """
    for recipe in recipes:
        if recipe.model == job.recipe.model:
            for number in range(1, len(recipe.stages) + 1):
                unfrozen_in(recipe, number, job.model)


def train_or_resume(run: RunFolder, recipe: Recipe) -> TrainingRun:
    """Resume a trial that has started, or start it. First stages that any run beside the sweep has
    finished, on its own or in a sweep, are not trained again.
    """
    if run.events_file.exists():
        return resume(run.path)
    shutil.rmtree(run.path, ignore_errors=True)  # left by a kill before its first event
    return train(recipe, run.path, reuse=run.path.parents[2])


def epochs_of(run: RunFolder) -> list[EpochEnded]:
    """The epochs in a log that somebody else may be writing. One that cannot be read now has
    none.
    """
    try:
        lines = enumerate(run.events_file.read_text(encoding="utf-8").split("\n")[:-1], start=1)
        return [from_json(line, number) for number, line in lines if '"event":"EpochEnded"' in line]
    except (OSError, ValueError):
        return []


class TrialsFolder:
    """The folder of a sweep or a search, whose trials are ordinary run folders under `trials/`. A
    file in it says what they are trials of.

    Without a `folder` it is one under `runs_root()` that is named by what is `described`, so that
    the same call finds it again.
    """

    elsewhere = False

    def __init__(self, kind: str, described: dict[str, Any], folder: str | Path | None):
        self.key = digest_of(json.dumps(described, sort_keys=True))[:8]
        own = runs_root() / f"{kind}-{described['recipe']['name']}-{self.key}"
        self.path = Path(folder or own).expanduser().absolute()
        self.file, self.described = self.path / f"{kind}.json", described

    def run_of(self, trial: str) -> RunFolder:
        return RunFolder(self.path / f"trials/{trial}")

    def refuse_another(self) -> None:
        """Raises RunError where the folder is that of another sweep or search."""
        other = ["all of it"]
        with suppress(OSError, ValueError, AttributeError):
            found = json.loads(self.file.read_text(encoding="utf-8"))
            other = [name for name in self.described if found.get(name) != self.described[name]]
        if self.file.exists() and other:
            problem = f"holds another {self.file.stem}; it differs in {', '.join(other)}."
            hint = f"Give the same {', '.join(self.described)}, or another folder."
            raise RunError(f"{self.path}: {problem}", hint)


class Sweep(TrialsFolder):
    """The folder of a grid, and what has been trained of it: `for event in sweep.events()` trains
    the rest. Raises RunError if the folder holds another sweep.
    """

    def __init__(self, grid: Grid, folder: str | Path | None = None):
        axes = [[path, plain([*values])] for path, values in grid.axes.items()]
        recipe = grid.recipe.model_dump(mode="json")
        super().__init__(
            "sweep", {"recipe": recipe, "axes": axes, "seeds": list(grid.seeds)}, folder
        )
        self.refuse_another()
        self.grid = grid
        self.failures: dict[str, str] = {}
        self._results: dict[str, Result] = {}

    def results(self) -> dict[str, Result]:
        """The scores of every trial that has ended, by its name."""
        for trial in self.grid.trials:
            run = self.run_of(trial.name)
            if trial.name not in self._results and run.summary_file.exists():
                best, seconds = run.summary["best"], run.summary["seconds"]
                curve = {e.epoch: e.validation["iou"] for e in epochs_of(run)}
                self._results[trial.name] = Result(best["iou"], best["f1"], curve, seconds)
        return dict(self._results)

    def todo(self) -> list[Trial]:
        """The trials that have not ended."""
        ended = self.results()
        return [trial for trial in self.grid.trials if trial.name not in ended]

    def left(self) -> int:
        return len(self.todo())

    def tally(self) -> tuple[int, int, dict[str, str]]:
        """How many trials have ended, of how many, and why some have failed, by name."""
        total = len(self.grid.trials)
        return total - self.left(), total, self.failures

    def events(self) -> Generator[Event]:
        """Train what has not ended yet, in order. The error of a trial that fails stands in its
        TrialEnded, and the others go on.
        """
        self.lay_out()
        with held(self.path):
            for trial in self.todo():
                yield TrialStarted(trial.name)
                error = None
                run = train_or_resume(self.run_of(trial.name), trial.recipe)
                with closing(run) as events:  # where a save that fails is no failure of the trial
                    try:
                        for event in events:  # noqa: UP028  it would close them in here
                            yield event
                    except (VitsegError, OSError, RuntimeError) as failure:
                        error = f"{type(failure).__name__}: {failure}"
                yield self.over(trial.name, error)

    def over(self, trial: str, error: str | None) -> TrialEnded:
        """Take note of how a trial has ended."""
        self.failures.pop(trial, None)
        if error:
            self.failures[trial] = error
        return TrialEnded(trial, error)

    def lay_out(self) -> None:
        """The folder, and a recipe for each trial: in `recipes/1/` of those that go first, in
        `recipes/2/` of the others.
        """
        with written(self.path):
            for trial in self.grid.trials:
                turn = self.path / f"recipes/{2 if trial.shared else 1}"
                turn.mkdir(parents=True, exist_ok=True)
                trial.recipe.save(turn / f"{trial.name}.json")
            write_json(self.file, self.described)
