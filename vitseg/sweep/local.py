"""A sweep on this machine: trial after trial, first stages trained once, everything found again in
its folder.
"""

import hashlib
import json
import shutil
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from vitseg.errors import RunError, VitsegError
from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted
from vitseg.files import held, write_json, written
from vitseg.recipe import Recipe, plain
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.run import TrainingRun, resume, train
from vitseg.sweep.findings import Result
from vitseg.sweep.grid import Grid, Trial
from vitseg.training.job import Job, unfrozen_in

FAILURES = (VitsegError, OSError, RuntimeError)
"""What a trial may fail with, so that the others go on."""


def check_depths(recipes: Iterable[Recipe], job: Job) -> None:
    """Raises ConfigError where one of those that train the job's model unfreezes more blocks than
    it has.
    """
    for recipe in recipes:
        if recipe.model == job.recipe.model:
            for number in range(1, len(recipe.stages) + 1):
                unfrozen_in(recipe, number, job.model)


def train_or_resume(run: RunFolder, recipe: Recipe, beside: Path) -> TrainingRun:
    """Resume a trial that has started, or start it. First stages that any run in the folder
    `beside` has finished, on its own or in a sweep, are not trained again.
    """
    if run.events_file.exists():
        return resume(run.path)
    shutil.rmtree(run.path, ignore_errors=True)  # left by a kill before its first event
    return train(recipe, run.path, reuse=beside)


def place_of(kind: str, described: dict[str, Any], folder: str | Path | None) -> tuple[Path, str]:
    """The folder of a sweep or a search, and its key: a digest of its content, which names the
    folder if none is given, so that the same call finds it again.
    """
    content = json.dumps(described, sort_keys=True).encode()
    key = hashlib.sha256(content).hexdigest()[:8]
    own = runs_root() / f"{kind}-{described['recipe']['name']}-{key}"
    return Path(folder or own).expanduser().absolute(), key


def refuse_another(file: Path, described: dict[str, Any]) -> None:
    """Raises RunError where the file describes another sweep or search than this one."""
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name in described if found.get(name) != described[name]]
    except (OSError, ValueError, AttributeError):
        other = ["all of it"]
    if other:
        problem = f"{file.parent}: holds another {file.stem}; it differs in {', '.join(other)}."
        raise RunError(problem, f"Give the same {', '.join(described)}, or another folder.")


class Sweep:
    """The folder of a grid, and what has been trained of it: `for event in sweep.events()` trains
    the rest.

    Its trials are ordinary run folders under `trials/`. Without a `folder` it is one under
    `runs_root()` that the grid's own content names, so that the same call finds it again. Raises
    RunError if the folder holds another sweep.
    """

    elsewhere = False

    def __init__(self, grid: Grid, folder: str | Path | None = None):
        axes = [[path, plain(values)] for path, values in grid.axes.items()]
        recipe = grid.recipe.model_dump(mode="json")
        self._described = {"recipe": recipe, "axes": axes, "seeds": list(grid.seeds)}
        self.grid = grid
        self.path, _ = place_of("sweep", self._described, folder)
        self.file = self.path / "sweep.json"
        refuse_another(self.file, self._described)
        self.failures: dict[str, str] = {}
        self._results: dict[str, Result] = {}

    def run_of(self, trial: str) -> RunFolder:
        return RunFolder(self.path / "trials" / trial)

    def results(self) -> dict[str, Result]:
        """The scores of every trial that has ended, by its name."""
        for trial in self.grid.trials:
            run = self.run_of(trial.name)
            if trial.name not in self._results and run.summary_file.exists():
                best, seconds = run.summary["best"], run.summary["seconds"]
                epochs = [e for e in run.events() if isinstance(e, EpochEnded)]
                curve = {e.epoch: e.validation["iou"] for e in epochs}
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
                run = train_or_resume(self.run_of(trial.name), trial.recipe, self.path.parent)
                with closing(run) as events:  # where a save that fails is no failure of the trial
                    try:
                        for event in events:  # noqa: UP028  it would close them in here
                            yield event
                    except FAILURES as failure:
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
                turn = self.path / "recipes" / ("2" if trial.shared else "1")
                turn.mkdir(parents=True, exist_ok=True)
                trial.recipe.save(turn / f"{trial.name}.json")
            write_json(self.file, self._described)
