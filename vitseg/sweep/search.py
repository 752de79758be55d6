"""A search: Optuna proposes trials one after the other; every process that opens the folder trains
some. Needs the extra `search`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vitseg.draws import seed_for
from vitseg.errors import ConfigError, RecipeError, RunError, VitsegError
from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted
from vitseg.files import held, is_held, write_json
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.run import kept_events
from vitseg.sweep.grid import check_path, check_values, plain, value_words
from vitseg.sweep.local import train_or_resume

try:
    import optuna
    import sqlalchemy
    from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError:
    optuna = None  # `Search` says how to install it

Space = Mapping[str, Any]
"""A setting's path, and the values it may have: a list of them, or one of Optuna's distributions,
in which a range is written.

A list is always values, [1e-5, 1e-3] just two of them. A tuple of two numbers, which elsewhere
often is a range, is refused for a setting that is continuous.
"""

SAMPLERS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
    "none": lambda: optuna.pruners.NopPruner(),
}
ATTEMPTS = 3
"""How often a trial is started whose process is killed: the trial itself may be what kills it."""

LOCKED_SECONDS = 30.0
"""How long the study's file is waited for while another process writes."""


class Search:
    """The folder of a search, and what has been tried: `for event in search.events()` tries until
    `trials` have ended.

    A trial is an ordinary run folder under `trials/`, with the recipe's own seed; its score stands
    in the study, in `study.db` or at `storage`, any URL that SQLAlchemy opens. Trials that do worse
    than the median of the others at the same epoch are pruned. A trial whose process was killed, or
    which was left, goes on from its checkpoint, in whichever process comes next. Without a `folder`
    it is one under `runs_root()` named after recipe, space, sampler and pruner: ask for more trials
    later, and the same study goes on. Raises ConfigError or RecipeError for a value that cannot be,
    RunError for a folder that holds another search, VitsegError without Optuna.
    """

    elsewhere = False

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
        _check_arguments(recipe, space, trials, storage)
        _one_of("sampler", sampler, SAMPLERS)
        _one_of("pruner", pruner, PRUNERS)
        self.recipe, self.trials, self.sampler, self.pruner = recipe, trials, sampler, pruner
        self.space: dict[str, BaseDistribution] = {}
        self.choices: dict[str, dict[Any, Any]] = {}
        self.extremes: list[Recipe] = []
        read = {path: self._read(path, values) for path, values in space.items()}
        described = {"recipe": recipe.model_dump(mode="json"), "space": read}
        described |= {"sampler": sampler, "pruner": pruner}
        described = json.loads(json.dumps(described))  # as it is read back
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
        self.path = runs_root() / f"search-{recipe.name}-{key}"
        if folder:
            self.path = Path(folder).expanduser().absolute()
        with _readable_errors(self.path):
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            with self._asking():
                url = storage and sqlalchemy.make_url(storage).render_as_string()
                self._describe(described | {"storage": url})
                self.study = _open_study(storage, self.path, key, PRUNERS[pruner]())

    def _read(self, path: str, values: Any) -> Any:
        """Take up what a setting may be; what `search.json` says of it."""
        check_path("space", path)
        if _is_range(values):
            self.space[path] = values
            self.extremes += self._with_each(path, [values.low, values.high])
            return distribution_to_json(values)
        choices = self.choices[path] = _choices(path, values)
        self.space[path] = CategoricalDistribution(list(choices))
        recipes = self._with_each(path, choices.values())
        if isinstance(values, tuple) and len(values) == 2:
            _refuse_what_may_be_a_range(path, values, recipes)
        self.extremes += recipes
        return plain(list(choices.values()))

    def _with_each(self, path: str, values: Iterable[Any]) -> list[Recipe]:
        return [self.recipe.settle({path: value})[0] for value in values]

    def events(self) -> Generator[Event]:
        """Try what is left. The error of a trial that fails stands in its TrialEnded, and the
        others go on.

        A disk or a study that cannot be written to ends it with a RunError; the next call goes on
        with the same trial.
        """
        while (claimed := self.claim()) is not None:
            trial, claim = claimed
            with claim:
                try:
                    yield TrialStarted(self.name_of(trial))
                    error = yield from self._try(trial)
                except (GeneratorExit, OSError, RunError):
                    with suppress(RunError), _readable_errors(self.path):
                        trial.set_user_attr("left", True)  # which is no attempt
                    raise
                yield TrialEnded(self.name_of(trial), error)

    def results(self) -> list[FrozenTrial]:
        """All trials that have started, except those that were cut off and started again under
        another number.
        """
        with _readable_errors(self.path):
            found = self.study.get_trials(deepcopy=False)
        again = _started_again(found)
        return [t for t in found if t.number not in again and t.state != TrialState.WAITING]

    def left(self) -> int:
        """How many trials have not ended and are trained by no process."""
        taken = 0
        for trial in self.results():
            taken += trial.state.is_finished() or self._is_held(trial)
        return max(0, self.trials - taken)

    def error_of(self, trial: FrozenTrial) -> str | None:
        """Why a trial has failed, if it has."""
        if trial.state != TrialState.FAIL:
            return None
        return trial.user_attrs.get("error", f"Its process was killed {ATTEMPTS} times.")

    def recipe_of(self, trial: Trial | FrozenTrial) -> Recipe:
        """The recipe of a trial; settings without effect beside the proposed ones are put back to
        their defaults. Raises RecipeError where the proposed values exclude each other.
        """
        return self._settle(trial)[0].replace({"name": self.name_of(trial)})

    def idle_in(self, trial: Trial | FrozenTrial) -> Set[str]:
        """The proposed settings that have no effect in a trial, such as the encoder's LR at depth
        0.
        """
        try:
            return self._settle(trial)[1].keys()
        except RecipeError:  # the values exclude each other: the trial has failed
            return set()

    def _settle(self, trial: Trial | FrozenTrial) -> tuple[Recipe, dict[str, Any]]:
        values = dict(trial.params)
        for path in values.keys() & self.choices.keys():
            values[path] = self.choices[path][values[path]]
        return self.recipe.settle(values)

    @property
    def best(self) -> Recipe:
        """The recipe of the trial with the highest IoU. Of many the best looks better than it is:
        `ablate` it, on new seeds.
        """
        done = [t for t in self.results() if t.state == TrialState.COMPLETE]
        if not done:
            hint = "Try some: for event in search.events(): ..."
            raise RunError(f"{self.path}: no trial has ended yet.", hint)
        return self.recipe_of(max(done, key=lambda t: t.value)).replace({"name": self.recipe.name})

    @staticmethod
    def name_of(trial: Trial | FrozenTrial) -> str:
        return trial.user_attrs.get("folder", f"{trial.number:04d}")

    def run_of(self, trial: Trial | FrozenTrial) -> RunFolder:
        return self.run_named(self.name_of(trial))

    def run_named(self, name: str) -> RunFolder:
        return RunFolder(self.path / "trials" / name)

    # ---- who trains what

    def claim(self) -> tuple[Trial, ExitStack] | None:
        """A trial of this process's own, new or cut off before, and its lock, to be closed at its
        end. None once enough have started.
        """
        with _readable_errors(self.path), self._asking():
            self._take_over()
            if not self.left():
                return None
            seed = seed_for(self.recipe.seed, "search", len(self.results())) % 2**32
            self.study.sampler = SAMPLERS[self.sampler](seed)
            trial, claim = self.study.ask(self.space), ExitStack()
            self._claim_of(trial).mkdir(parents=True, exist_ok=True)
            claim.enter_context(held(self._claim_of(trial)))
            return trial, claim

    def _asking(self) -> FileLock:
        """Held while a trial is chosen, which takes a moment: two processes must not choose the
        same.
        """
        return FileLock(self.path / "asking.lock", timeout=LOCKED_SECONDS)

    def _claim_of(self, trial: Trial | FrozenTrial) -> Path:
        return self.path / "claims" / str(trial.number)

    def _is_held(self, trial: FrozenTrial) -> bool:
        return is_held(self._claim_of(trial))

    def _take_over(self) -> None:
        """Queue the trials again whose process is gone. Their claims are locks, which the system
        releases.
        """
        trials = self.study.get_trials(deepcopy=False)
        again = _started_again(trials)
        for trial in trials:
            if trial.state != TrialState.RUNNING or self._is_held(trial):
                continue
            attempt = trial.user_attrs.get("attempt", 1) + (not trial.user_attrs.get("left"))
            if attempt <= ATTEMPTS and trial.number not in again:
                more = {"again": trial.number, "folder": self.name_of(trial), "attempt": attempt}
                self.study.enqueue_trial(trial.params, user_attrs=more)
            # queued before it is over: a kill in between loses nothing
            self.study.tell(trial.number, state=TrialState.FAIL)

    # ---- one trial

    def _try(self, trial: Trial) -> Generator[Event, None, str | None]:
        """Train it, and tell the study how it has ended; returns why it failed, if it did."""
        state, error = TrialState.COMPLETE, None
        with closing(self._train(trial)) as events:
            try:
                for event in events:
                    yield event
                    if self._should_prune(trial, event):
                        state = TrialState.PRUNED
                        break
            except (OSError, RunError):  # of the disk or the folder: no fault of these settings
                raise
            except (VitsegError, RuntimeError) as failure:
                error = f"{type(failure).__name__}: {failure}"
        with _readable_errors(self.path):
            return self._tell(trial, state, error)

    def _train(self, trial: Trial) -> Generator[Event]:
        """From its checkpoint, if it has one; the study is told again of the epochs before it."""
        run, recipe = self.run_of(trial), self.recipe_of(trial)
        if run.events_file.exists():
            if run.recipe != recipe:
                problem = "is the run of other settings; the study was lost, or changed"
                raise RunError(f"{run.path}: {problem}.", "Choose another folder.")
            if run.summary_file.exists():  # killed between its end and the word of it
                return
            for event in kept_events(run.path):
                self._should_prune(trial, event)
        yield from train_or_resume(run, recipe, self.path.parent)

    def _should_prune(self, trial: Trial, event: Event) -> bool:
        if not isinstance(event, EpochEnded) or event.validation["iou"] is None:
            return False
        with _readable_errors(self.path):
            trial.report(event.validation["iou"], event.epoch)
            return trial.should_prune()

    def _tell(self, trial: Trial, state: TrialState, error: str | None) -> str | None:
        run, iou = self.run_of(trial), None
        if error is None and state == TrialState.COMPLETE:
            best = run.summary["best"]
            trial.set_user_attr("f1", best["f1"])
            trial.set_user_attr("seconds", run.summary["seconds"])
            iou = best["iou"]
            if iou is None:
                error = "The validation images have no IoU: no class is in their masks."
        if error is None:
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # nothing is left to resume
        else:
            state = TrialState.FAIL
            trial.set_user_attr("error", error)
        self.study.tell(trial, iou, state)
        return error

    def _describe(self, described: dict[str, Any]) -> None:
        """Write `search.json`, or raise RunError if it says something else."""
        file = self.path / "search.json"
        if not file.exists():
            write_json(file, described)
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            other = [name for name in described if found.get(name) != described[name]]
        except (ValueError, AttributeError):
            other = ["all of it"]
        if other:
            problem = f"holds another search; it differs in {', '.join(other)}"
            hint = "Give the same recipe, space, sampler, pruner and storage, or another folder."
            raise RunError(f"{self.path}: {problem}.", hint)


# ---- what is refused


def _check_arguments(recipe: Recipe, space: Space, trials: int, storage: str | None) -> None:
    if not isinstance(recipe, Recipe):
        hint = "Read one from a file with vitseg.load_recipe(path)."
        raise ConfigError("recipe", recipe, "a Recipe", hint)
    paths = isinstance(space, Mapping) and all(isinstance(path, str) for path in space)
    if not space or not paths:
        example = '{"stages.1.unfrozen_blocks": [0, 2, 4]}'
        raise ConfigError("space", space, f"paths of settings with their values: {example}")
    if type(trials) is not int or trials < 1:
        raise ConfigError("trials", trials, "how many, at least 1")
    if storage is not None and not isinstance(storage, str):
        allowed = "the URL of a database, as in postgresql://user@host/name"
        raise ConfigError("storage", storage, allowed)


def _one_of(field: str, value: str, known: Mapping[str, Any]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ConfigError(field, value, ", ".join(known))


def _is_range(values: Any) -> bool:
    """Whether it is a distribution with two ends; one of choices is a list of them."""
    choices = isinstance(values, CategoricalDistribution)
    return isinstance(values, BaseDistribution) and not choices


def _choices(path: str, values: Any) -> dict[Any, Any]:
    """The values by their names in the study, which stores nothing but plain ones."""
    if isinstance(values, CategoricalDistribution):
        values = values.choices
    check_values(
        f"space[{path!r}]", values, "a list of at least one value, or a distribution of Optuna's"
    )
    choices = {}
    for value in values:
        stored = value is None or isinstance(value, bool | int | float | str)
        choices[value if stored else value_words(value, values)] = value
    if len(choices) < len(values):
        raise ConfigError(f"space[{path!r}]", values, "values that differ")
    return choices


def _refuse_what_may_be_a_range(path: str, values: tuple, recipes: Iterable[Recipe]) -> None:
    """Raises ConfigError for two numbers if those between them are values of the setting, too: if
    both `recipes` have made a float of theirs.
    """
    for recipe in recipes:
        found: Any = recipe.model_dump()
        for name in path.split("."):
            found = found[int(name) if isinstance(found, tuple | list) else name]
        if not isinstance(found, float):
            return
    low, high = sorted(map(float, values))
    scale = ", log=True" if low > 0 and high >= 10 * low else ""
    allowed = "a distribution or a list; a tuple of two numbers could be a range or two values"
    hint = (
        f"For the range write FloatDistribution({low!r}, {high!r}{scale}), for the two values "
        f"CategoricalDistribution({[low, high]!r}); both are in optuna.distributions."
    )
    raise ConfigError(f"space[{path!r}]", values, allowed, hint)


# ---- the study


def _started_again(trials: Sequence[FrozenTrial]) -> set[int | None]:
    """The numbers of the trials that were cut off and have another number now."""
    return {trial.user_attrs.get("again") for trial in trials}


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log line about each study that is opened."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _open_study(
    url: str | None, folder: Path, name: str, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The folder's study, created if it is not there. Without a URL it is `study.db`.

    Raises RunError for a study that belongs to another folder: its trials' claims and runs would be
    there.
    """
    with quiet():
        if url is None:  # a URL would read meanings into some characters of the folder's name
            file = folder / "study.db"
            connect = partial(
                sqlite3.connect, file, timeout=LOCKED_SECONDS, check_same_thread=False
            )
            engine = {"creator": connect, "poolclass": sqlalchemy.NullPool}
            storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=engine)
        else:
            storage = optuna.storages.RDBStorage(url)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )
    place = study.user_attrs.get("folder", str(folder))
    if url is not None and place != str(folder):
        problem = f"{folder}: the study at this storage belongs to {place}."
        raise RunError(problem, "Give that folder; all machines must see it.")
    study.set_user_attr("folder", str(folder))
    return study


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """A study or a folder that cannot be read or written is told in one sentence."""
    try:
        yield
    except (
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        optuna.exceptions.StorageInternalError,
        Timeout,
    ) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]  # the statement follows
        hint = (
            "If another process holds it, wait for its end; on a network drive give a database "
            "server's URL as storage."
        )
        raise RunError(f"{path}: the study cannot be read or written ({cause}).", hint) from None
    except ImportError as error:
        raise ConfigError("storage", str(error), "a database whose driver is installed") from None
    except OSError as error:
        problem = f"{path}: cannot be written ({error.strerror})."
        raise RunError(problem, "Choose another folder.") from None
