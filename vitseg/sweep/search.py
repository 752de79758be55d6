"""A search: Optuna proposes trials one after the other; every process that opens the folder trains some. Extra `search`."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vitseg.draws import seed_for
from vitseg.errors import ConfigError, RunError, VitsegError
from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted
from vitseg.recipe import Recipe
from vitseg.runs.durable import held, is_held, write_json
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.run import kept_events
from vitseg.sweep.grid import check_path, plain, value_words
from vitseg.sweep.local import train_or_resume

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as error:
    raise VitsegError(f"search: {error.name} is not installed.", "pip install 'vitseg[search]'") from None

Space = Mapping[str, Sequence[Any] | BaseDistribution]
"""A setting's path, and the values it may have: a list, or one of Optuna's distributions."""

SAMPLERS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    "none": lambda: optuna.pruners.NopPruner(),
}
ATTEMPTS = 3
"""How often a trial is begun whose process is killed: what kills it may be the trial."""

LOCKED_SECONDS = 30.0
"""How long the study's file is waited for while somebody else writes."""


class Search:
    """The folder of a search, and what has been tried: `for event in search.events()` tries until `trials` have ended.

    A trial is an ordinary run folder under `trials/`, with the recipe's own seed; what it ended with stands in the study, in
    `study.db` or at `storage`, any URL that SQLAlchemy opens. Trials that do worse than the median of the others at the same
    epoch are pruned. A trial whose process was killed, or which was left, goes on from its checkpoint, by whoever comes next.
    Without a `folder` it is one under `runs_root()` named after recipe, space, sampler and pruner: ask for more trials later,
    and the same study goes on. Raises ConfigError or RecipeError for a value that cannot be, RunError for another's folder.
    """

    elsewhere = False

    def __init__(
        self, recipe: Recipe, space: Space, trials: int = 30, folder: str | Path | None = None, *,
        sampler: str = "tpe", pruner: str = "median", storage: str | None = None,
    ):  # fmt: skip
        _one_of("sampler", sampler, SAMPLERS)
        _one_of("pruner", pruner, PRUNERS)
        if type(trials) is not int or trials < 1:
            raise ConfigError("trials", trials, "how many, at least 1")
        self.recipe, self.trials, self.sampler, self.pruner = recipe, trials, sampler, pruner
        self.choices = {path: _choices(path, v) for path, v in space.items() if not isinstance(v, BaseDistribution)}
        self.space = {p: CategoricalDistribution(list(self.choices[p])) if p in self.choices else space[p] for p in space}
        self.extremes()
        described = self._description() | {"sampler": sampler, "pruner": pruner}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
        self.path = Path(folder).expanduser().absolute() if folder else runs_root() / f"search-{recipe.name}-{key}"
        self._create(described)
        with _said(self.path):
            self.study = _open(storage or f"sqlite:///{self.path / 'study.db'}", key, PRUNERS[pruner]())

    def events(self) -> Generator[Event]:
        """Try what is left. A trial that fails is told of, and the others go on."""
        while (claimed := self._claim()) is not None:
            trial, claim = claimed
            with claim:
                yield TrialStarted(self.name_of(trial))
                yield from self._try(trial)

    def results(self) -> list[FrozenTrial]:
        """All trials that have begun, but those which were cut off and begun again under another number."""
        with _said(self.path):
            found = self.study.get_trials(deepcopy=False)
        again = {t.user_attrs.get("again") for t in found}
        return [t for t in found if t.number not in again and t.state != TrialState.WAITING]

    def left(self) -> int:
        """How many trials have not begun."""
        return max(0, self.trials - len(self.results()))

    def recipe_of(self, trial: Trial | FrozenTrial) -> Recipe:
        """The recipe of a trial; settings without effect beside the proposed ones are put back to their defaults."""
        values = {path: self.choices[path][v] if path in self.choices else v for path, v in trial.params.items()}
        return self.recipe.settle(values)[0].replace({"name": self.name_of(trial)})

    @property
    def best(self) -> Recipe:
        """The recipe of the trial with the highest IoU. Of many the best looks better than it is: `ablate` it, on new seeds."""
        done = [t for t in self.results() if t.state == TrialState.COMPLETE]
        if not done:
            raise RunError(f"{self.path}: no trial has ended yet.", "Try some: for event in search.events(): ...")
        return self.recipe_of(max(done, key=lambda t: t.value)).replace({"name": self.recipe.name})

    @staticmethod
    def name_of(trial: Trial | FrozenTrial) -> str:
        return trial.user_attrs.get("folder", f"{trial.number:04d}")

    def run_of(self, trial: Trial | FrozenTrial) -> RunFolder:
        return RunFolder(self.path / "trials" / self.name_of(trial))

    # ---- one trial

    def _claim(self) -> tuple[Trial, ExitStack] | None:
        """A trial that nobody else has, proposed, or begun and left; None once enough have begun."""
        with _said(self.path), FileLock(self.path / "asking.lock"):
            self._take_up_again()
            if not self.left():
                return None
            tried = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = SAMPLERS[self.sampler](seed_for(self.recipe.seed, "search", tried) % 2**32)
            trial, claim = self.study.ask(self.space), ExitStack()
            claim.enter_context(held(_folder(self.path / "claims" / str(trial.number))))
            return trial, claim

    def _take_up_again(self) -> None:
        """Put trials whose process is gone in line again. Their claims are locks, which the system lets go of."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not is_held(self.path / "claims" / str(trial.number)):
                attempt = trial.user_attrs.get("attempt", 1)
                self.study.tell(trial.number, state=TrialState.FAIL)
                if attempt < ATTEMPTS:
                    more = {"again": trial.number, "folder": self.name_of(trial), "attempt": attempt + 1}
                    self.study.enqueue_trial(trial.params, user_attrs=more)

    def _try(self, trial: Trial) -> Generator[Event]:
        error, pruned, leaving = None, False, False
        try:
            with closing(self._train(trial)) as events:
                for event in events:
                    leaving = True
                    yield event
                    leaving = False
                    if pruned := self._should_prune(trial, event):
                        break
        except (VitsegError, OSError, RuntimeError) as failure:
            if leaving:  # it failed to save when it was left: not the trial's failure, and nobody asks for more
                raise
            error = f"{type(failure).__name__}: {failure}"
        with _said(self.path):
            self._tell(trial, pruned, error)
        yield TrialEnded(self.name_of(trial), error)

    def _train(self, trial: Trial) -> Generator[Event]:
        """From its checkpoint, if it has one; what it told before is told again."""
        run = self.run_of(trial)
        if run.summary_file.exists():  # killed between its end and the word of it
            return (_ for _ in ())
        if run.events_file.exists():
            for event in kept_events(run.path):
                self._should_prune(trial, event)
        return train_or_resume(run, self.recipe_of(trial), self.path.parent)

    def _should_prune(self, trial: Trial, event: Event) -> bool:
        if not isinstance(event, EpochEnded) or (iou := event.validation["iou"]) is None:
            return False
        with _said(self.path):
            trial.report(iou, event.epoch)
            return trial.should_prune()

    def _tell(self, trial: Trial, pruned: bool, error: str | None) -> None:
        run, state = self.run_of(trial), TrialState.PRUNED if pruned else TrialState.FAIL
        iou = None
        if error is None and not pruned:
            best, state = run.summary["best"], TrialState.COMPLETE
            iou = best["iou"]
            if iou is None:
                error, state = "The validation images have no IoU: no class is in their masks.", TrialState.FAIL
            trial.set_user_attr("f1", best["f1"])
            trial.set_user_attr("seconds", run.summary["seconds"])
        if error:
            trial.set_user_attr("error", error)
        else:
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # nothing is left to resume
        self.study.tell(trial, iou, state)

    # ---- the folder

    def extremes(self) -> list[Recipe]:
        """The recipe with each value that may be proposed, of a range its ends. Raises ConfigError or RecipeError."""
        if not self.space:
            raise ConfigError("space", {}, 'paths of settings with their values, as in {"stages.1.unfrozen_blocks": [0, 2, 4]}')
        recipes = []
        for path, allowed in self.space.items():
            check_path("space", path)
            ends = self.choices[path].values() if path in self.choices else (allowed.low, allowed.high)
            recipes += [self.recipe.settle({path: value})[0] for value in ends]
        return recipes

    def _description(self) -> dict[str, Any]:
        space = {p: [plain(v) for v in self.choices[p].values()] if p in self.choices else distribution_to_json(d)
                 for p, d in self.space.items()}  # fmt: skip
        return json.loads(json.dumps({"recipe": self.recipe.model_dump(mode="json"), "space": space}))

    def _create(self, described: dict[str, Any]) -> None:
        file = self.path / "search.json"
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            if file.exists() and json.loads(file.read_text(encoding="utf-8")) != described:
                raise RunError(f"{self.path}: holds another search.", "Give the same recipe and space, or another folder.")
            write_json(file, described)
        except (OSError, ValueError) as error:
            raise RunError(f"{file}: cannot be read or written ({error}).", "Choose another folder.") from None


def _open(url: str, name: str, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """The study of that name, made if it is not there, without Optuna's log line about it."""
    waits = {"connect_args": {"timeout": LOCKED_SECONDS}} if url.startswith("sqlite") else {}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=waits)
        return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner)
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """A study that cannot be read or written is a sentence."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError, Timeout) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]  # the statement follows
        mend = "If another process holds it, wait for its end; on a network drive give a database server's URL as storage."
        raise RunError(f"{path}: the study cannot be read or written ({cause}).", mend) from None


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _one_of(field: str, value: str, known: Mapping[str, Any]) -> None:
    if value not in known:
        raise ConfigError(field, value, ", ".join(known))


def _choices(path: str, values: Sequence[Any]) -> dict[Any, Any]:
    """The values by what they are called in the study, which holds plain ones alone."""
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"space[{path!r}]", values, "a list of at least one value, or a distribution of Optuna's")
    called = [v if v is None or isinstance(v, bool | int | float | str) else value_words(v, values) for v in values]
    if len(set(map(repr, called))) < len(called):
        raise ConfigError(f"space[{path!r}]", values, "values that differ")
    return dict(zip(called, values, strict=True))
