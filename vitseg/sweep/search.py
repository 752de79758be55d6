"""A search: Optuna proposes trials one after the other; every process that opens the folder trains
some. Needs the extra `search`.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Generator, Iterator, Mapping, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from vitseg.draws import seed_for
from vitseg.errors import ConfigError, RecipeError, RunError, TrainingError, VitsegError
from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted
from vitseg.files import held, is_held, write_json
from vitseg.recipe import Recipe, plain
from vitseg.runs.run import kept_events
from vitseg.sweep.grid import check_paths, value_words, variants
from vitseg.sweep.local import TrialsFolder, train_or_resume

try:
    import optuna
    import sqlalchemy
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
        distribution_to_json,
    )
    from optuna.pruners import MedianPruner, NopPruner
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState
except ModuleNotFoundError:
    optuna = None  # `Search` says how to install it
else:
    SAMPLERS = {"tpe": partial(TPESampler, n_startup_trials=5), "random": RandomSampler}
    PRUNERS = {"median": MedianPruner(n_startup_trials=4), "none": NopPruner()}

Space = Mapping[str, Any]
"""A setting's path, and the values it may have: a list of them, or one of Optuna's distributions,
in which a range is written.

A list is always values, [1e-5, 1e-3] just two of them. A tuple of two numbers, which elsewhere
often is a range, is refused for a setting that is continuous.
"""

ATTEMPTS = 3
"""How often a trial is started whose process is killed: the trial itself may be what kills it."""

LOCKED_SECONDS = 30.0
"""How long the study's file is waited for while another process writes."""


class Search(TrialsFolder):
    """The folder of a search, and what has been tried: `for event in search.events()` tries until
    `trials` have ended.

    A trial is an ordinary run folder under `trials/`, with the recipe's own seed; its score stands
    in the study, in `study.db` or at `storage`, any URL that SQLAlchemy opens. Trials that do worse
    than the median of the others at the same epoch are pruned. A trial whose process was killed, or
    which was left, is resumed from its checkpoint by whichever process comes next. Without a
    `folder` it is one under `runs_root()` named after recipe, space, sampler and pruner: ask for
    more trials later, and the same study goes on. Raises ConfigError or RecipeError for a value
    that cannot be, RunError for a folder that holds another search, VitsegError without Optuna.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: Space,
        trials: int = 30,
        folder: str | Path | None = None,
        *,
        sampler: str = "tpe",
        pruner: str = "median",
        storage: str | None = None,
    ):
        if optuna is None:
            raise VitsegError("search: Optuna is not installed.", "pip install 'vitseg[search]'")
        check_paths("space", space)
        for field, value, fits, allowed in (
            ("recipe", recipe, isinstance(recipe, Recipe), "a Recipe, as load_recipe(path) gives"),
            ("trials", trials, type(trials) is int and trials > 0, "how many, at least 1"),
            ("sampler", sampler, sampler in [*SAMPLERS], ", ".join(SAMPLERS)),
            ("pruner", pruner, pruner in [*PRUNERS], ", ".join(PRUNERS)),
        ):
            if not fits:
                raise ConfigError(field, value, allowed)
        self.recipe, self.trials, self.sampler, self.pruner = recipe, trials, sampler, pruner
        self.space: dict[str, Any] = {}
        self.choices: dict[str, dict[Any, Any]] = {}
        self.extremes: list[Recipe] = []
        described = {
            "recipe": recipe.model_dump(mode="json"),
            "space": {path: self._read(path, values) for path, values in space.items()},
            "sampler": sampler,
            "pruner": pruner,
        }
        super().__init__("search", described, folder)
        # two processes must not choose the same trial
        self._choosing = FileLock(self.path / "asking.lock", timeout=LOCKED_SECONDS)
        with self._readable():
            url = storage and sqlalchemy.make_url(storage).render_as_string()  # no password
            with self._choosing:  # which makes the folder
                self.described["storage"] = url
                self.refuse_another()
                write_json(self.file, self.described)
                self.study = self._open_study(storage)

    def _read(self, path: str, values: Any) -> Any:
        """Take up what a setting may be; what `search.json` says of it."""
        choices = self.choices[path] = {}
        if isinstance(values, FloatDistribution | IntDistribution):
            self.extremes += variants("space", self.recipe, path, [values.low, values.high])
            self.space[path] = values
            return distribution_to_json(values)
        if isinstance(values, tuple):
            self._refuse_what_may_be_a_range(path, values)
        if isinstance(values, CategoricalDistribution):
            values = values.choices
        self.extremes += variants("space", self.recipe, path, values)
        for value in values:  # by its name in the study, which stores nothing but plain values
            stored = isinstance(value, int | float | str | None)
            choices[value if stored else value_words(value, values)] = value
        if len(choices) < len(values):
            raise ConfigError(f"space[{path!r}]", values, "values that differ")
        self.space[path] = CategoricalDistribution(list(choices))
        return plain(list(values))

    def _refuse_what_may_be_a_range(self, path: str, values: tuple) -> None:
        """Raises ConfigError for two numbers if those between them are values, too."""
        with suppress(TypeError, ValueError, RecipeError):
            low, high = sorted(map(float, values))
            self.recipe.settle({path: low + (high - low) / math.pi})
            allowed = (
                f"FloatDistribution({low!r}, {high!r}, log={0 < 10 * low <= high}) for the range, "
                f"CategoricalDistribution({[low, high]!r}) for the two values"
            )
            hint = "Both are in optuna.distributions; a list is always values."
            raise ConfigError(f"space[{path!r}]", values, allowed, hint)

    def _open_study(self, url: str | None) -> optuna.Study:
        """The folder's study, created if it is not there. Without a URL it is `study.db`.

        Raises RunError for a study that belongs to another folder: its trials' claims and runs
        would be there.
        """
        # a URL would read meanings into some characters of the folder's name
        here = partial(
            sqlite3.connect, self.path / "study.db", timeout=LOCKED_SECONDS, check_same_thread=False
        )
        how = {} if url else {"creator": here, "poolclass": sqlalchemy.NullPool}
        with quiet():
            study = optuna.create_study(
                storage=optuna.storages.RDBStorage(url or "sqlite://", engine_kwargs=how),
                study_name=self.key,
                direction="maximize",
                load_if_exists=True,
                pruner=PRUNERS[self.pruner],
            )
        folder = str(self.path)
        place = study.user_attrs.get("folder", folder)
        if url and place != folder:
            problem = f"{folder}: the study at this storage belongs to {place}."
            raise RunError(problem, "Give that folder; all machines must see it.")
        study.set_user_attr("folder", folder)
        return study

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """A study or a folder that cannot be read or written becomes one sentence."""
        try:
            yield
        except (ImportError, sqlalchemy.exc.ArgumentError) as error:
            allowed = "the URL of a database whose driver is installed"
            raise ConfigError("storage", str(error), allowed) from None
        except (
            OSError,  # also of a lock that is not released in time
            sqlalchemy.exc.SQLAlchemyError,
            optuna.exceptions.StorageInternalError,
        ) as error:
            cause = str(error.__cause__ or error).partition("\n")[0]  # the statement follows
            hint = (
                "If another process holds it, wait for its end; else choose another folder, or on "
                "a network drive give a database server's URL as storage."
            )
            problem = f"{self.path}: the study cannot be read or written ({cause})."
            raise RunError(problem, hint) from None

    def events(self) -> Generator[Event]:
        """Try what is left. The error of a trial that fails stands in its TrialEnded, and the
        others go on.

        A disk or a study that cannot be written to ends it with a RunError; the next call resumes
        the same trial.
        """
        while claimed := self.claim():
            trial, claim = claimed
            with claim:
                yield from self._train(trial)

    def results(self) -> list[FrozenTrial]:
        """All trials that have started. In older studies one that was cut off has failed, and goes
        on under another number.
        """
        with self._readable():
            found = self.study.get_trials(deepcopy=False)
        still = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED
        return [t for t in found if t.state in still or "error" in t.user_attrs]

    def left(self) -> int:
        """How many trials have not ended and are trained by no process."""
        return self._cut_off()[1]

    def tally(self) -> tuple[int, int, dict[str, str]]:
        """How many trials have ended, of how many, and why some have failed, by name."""
        ended, failed = 0, {}
        for trial in self.results():
            ended += trial.state.is_finished()
            if "error" in trial.user_attrs:
                failed[self.name_of(trial)] = trial.user_attrs["error"]
        return ended, self.trials, failed

    def recipe_of(self, trial: BaseTrial) -> Recipe:
        """The recipe of a trial; settings without effect beside the proposed ones are put back to
        their defaults. Raises RecipeError where the proposed values exclude each other.
        """
        return self._settle(trial)[0].replace({"name": self.name_of(trial)})

    def idle_in(self, trial: BaseTrial) -> Set[str]:
        """The proposed settings that have no effect in a trial, such as the encoder's LR at depth
        0.
        """
        try:
            return self._settle(trial)[1].keys()
        except RecipeError:  # the values exclude each other: the trial has failed
            return set()

    def _settle(self, trial: BaseTrial) -> tuple[Recipe, dict[str, Any]]:
        chosen = trial.params.items()
        values = {path: self.choices[path].get(value, value) for path, value in chosen}
        return self.recipe.settle(values)

    @property
    def best(self) -> Recipe:
        """The recipe of the trial with the highest IoU. Of many the best looks better than it is:
        `ablate` it, on new seeds.
        """
        try:
            with self._readable():
                return self._settle(self.study.best_trial)[0]
        except ValueError:
            hint = "Try some: for event in search.events(): ..."
            raise RunError(f"{self.path}: no trial has ended yet.", hint) from None

    @staticmethod
    def name_of(trial: BaseTrial) -> str:
        return trial.user_attrs.get("folder", f"{trial.number:04d}")  # of an older study

    # ---- who trains what

    def claim(self) -> tuple[Trial, ExitStack] | None:
        """A trial of this process's own, and its lock, to be closed at its end: one whose process
        is gone, or a new one. None once enough have started.
        """
        with self._readable(), self._choosing:
            cut_off, left = self._cut_off()
            if not left:
                return None
            if cut_off:
                trial = Trial(self.study, cut_off[0]._trial_id)
            else:
                seed = seed_for(self.recipe.seed, "search", len(self.results())) % 2**32
                self.study.sampler = SAMPLERS[self.sampler](seed=seed)
                trial = self.study.ask(self.space)
            trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 0) + 1)
            claim = ExitStack()
            claim.enter_context(held(self.path / f"claims/{trial.number}"))
            return trial, claim

    def _cut_off(self) -> tuple[list[FrozenTrial], int]:
        """The trials whose process is gone, and how many trials are left.

        Claims are locks, which the system releases. They are looked at before the study, else a
        trial that ends in between would look like one whose process is gone.
        """
        claims = (self.path / "claims").glob("*")
        trained = {int(claim.name) for claim in claims if is_held(claim)}
        found = self.results()
        gone = [t for t in found if not (t.state.is_finished() or t.number in trained)]
        return gone, max(0, self.trials - len(found) + len(gone))

    # ---- one trial

    def _train(self, trial: Trial) -> Generator[Event]:
        """From its checkpoint, if it has one; tells the study how it has ended."""
        name, error = self.name_of(trial), None
        run = self.run_of(name)
        try:
            yield TrialStarted(name)
            if trial.user_attrs["attempts"] > ATTEMPTS:
                raise TrainingError(f"Its process was killed {ATTEMPTS} times.")
            recipe = self.recipe_of(trial)
            if run.events_file.exists() and run.recipe != recipe:
                problem = "is the run of other settings; the study was lost, or changed"
                raise RunError(f"{run.path}: {problem}.", "Choose another folder.")
            if not run.summary_file.exists():  # else killed before the study was told
                for event in kept_events(run):
                    self._should_prune(trial, event)
                with closing(train_or_resume(run, recipe)) as events:
                    for event in events:
                        yield event
                        if self._should_prune(trial, event):
                            break
            if run.summary_file.exists():
                best, took = run.summary["best"], run.summary["seconds"]
                if best["iou"] is None:
                    raise TrainingError("The validation images have no IoU: their masks are void.")
                self._end(trial, TrialState.COMPLETE, best["iou"], f1=best["f1"], seconds=took)
            else:
                self._end(trial, TrialState.PRUNED)
                run.drop_checkpoints()
        # of the disk or the folder: no fault of these settings, and it does not kill its process
        except (GeneratorExit, OSError, RunError):
            with suppress(Exception):
                trial.set_user_attr("attempts", 0)
            raise
        except (VitsegError, RuntimeError) as failure:
            error = f"{type(failure).__name__}: {failure}"
            self._end(trial, TrialState.FAIL, error=error)
        yield TrialEnded(name, error)

    def _should_prune(self, trial: Trial, event: Event) -> bool:
        if not isinstance(event, EpochEnded) or event.validation["iou"] is None:
            return False
        with self._readable():
            known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if event.epoch not in known:
                trial.report(event.validation["iou"], event.epoch)
            return trial.should_prune()

    def _end(self, trial: Trial, state: TrialState, iou: float | None = None, **facts: Any) -> None:
        with self._readable():
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, iou, state)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log line about each study that is opened."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
