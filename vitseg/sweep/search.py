"""A search: Optuna proposes trials one after the other; every process that opens the folder trains
some. Extra `search`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from vitseg.draws import seed_for
from vitseg.errors import ConfigError, RunError, VitsegError
from vitseg.events import EpochEnded, Event, TrialEnded, TrialStarted
from vitseg.files import held, is_held, write_json
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.run import kept_events
from vitseg.sweep.grid import check_path, plain, value_words
from vitseg.sweep.local import train_or_resume

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
    from optuna.trial import FrozenTrial, Trial, TrialState
    from sqlalchemy.engine import make_url

    from vitseg.sweep.study import PRUNERS, SAMPLERS, asking, open_study, said
except ModuleNotFoundError as error:
    raise VitsegError(
        f"search: {error.name} is not installed.", "pip install 'vitseg[search]'"
    ) from None

Space = Mapping[str, Sequence[Any] | BaseDistribution]
"""A setting's path, and the values it may have: a list of them, or one of Optuna's distributions,
in which a range is written.

A list is always values, [1e-5, 1e-3] just two of them. A tuple of two numbers, which elsewhere
often is a range, is refused for a setting that is continuous.
"""

ATTEMPTS = 3
"""How often a trial is begun whose process is killed: what kills it may be the trial."""


class Search:
    """The folder of a search, and what has been tried: `for event in search.events()` tries until
    `trials` have ended.

    A trial is an ordinary run folder under `trials/`, with the recipe's own seed; what it ended
    with stands in the study, in `study.db` or at `storage`, any URL that SQLAlchemy opens. Trials
    that do worse than the median of the others at the same epoch are pruned. A trial whose process
    was killed, or which was left, goes on from its checkpoint, by whoever comes next. Without a
    `folder` it is one under `runs_root()` named after recipe, space, sampler and pruner: ask for
    more trials later, and the same study goes on. Raises ConfigError or RecipeError for a value
    that cannot be, RunError for another's folder.
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
        if not isinstance(recipe, Recipe):
            raise ConfigError(
                "recipe", recipe, "a Recipe", "Read one from a file with vitseg.load_recipe(path)."
            )
        if (
            not isinstance(space, Mapping)
            or not all(isinstance(path, str) for path in space)
            or not space
        ):
            raise ConfigError(
                "space",
                space,
                'paths of settings with their values: {"stages.1.unfrozen_blocks": [0, 2, 4]}',
            )
        if type(trials) is not int or trials < 1:
            raise ConfigError("trials", trials, "how many, at least 1")
        if storage is not None and not isinstance(storage, str):
            raise ConfigError(
                "storage", storage, "the URL of a database, as in postgresql://user@host/name"
            )
        _one_of("sampler", sampler, SAMPLERS)
        _one_of("pruner", pruner, PRUNERS)
        self.recipe, self.trials, self.sampler, self.pruner = recipe, trials, sampler, pruner
        self.choices = {path: _choices(path, v) for path, v in space.items() if not _is_range(v)}
        self.space = {
            p: CategoricalDistribution(list(self.choices[p])) if p in self.choices else space[p]
            for p in space
        }
        self.extremes()
        for path in self.choices:
            self._refuse_what_may_be_a_range(path, space[path])
        described = self._description() | {"sampler": sampler, "pruner": pruner}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
        self.path = (
            Path(folder).expanduser().absolute()
            if folder
            else runs_root() / f"search-{recipe.name}-{key}"
        )
        with said(self.path):
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            with asking(self.path):
                self._describe(
                    described | {"storage": storage and make_url(storage).render_as_string()}
                )
                self.study = open_study(storage, self.path, key, PRUNERS[pruner]())

    def events(self) -> Generator[Event]:
        """Try what is left. A trial that fails is told of, and the others go on.

        A disk or a study that cannot be written to ends it with a RunError; the next call goes on
        with the same trial.
        """
        while (claimed := self._claim()) is not None:
            trial, claim = claimed
            with claim:
                try:
                    yield TrialStarted(self.name_of(trial))
                    yield from self._try(trial)
                except (GeneratorExit, OSError, RunError):
                    with (
                        suppress(RunError, optuna.exceptions.UpdateFinishedTrialError),
                        said(self.path),
                    ):
                        trial.set_user_attr("left", True)  # which is no attempt
                    raise

    def results(self) -> list[FrozenTrial]:
        """All trials that have begun, but those which were cut off and begun again under another
        number.
        """
        with said(self.path):
            found = self.study.get_trials(deepcopy=False)
        again = {t.user_attrs.get("again") for t in found}
        return [t for t in found if t.number not in again and t.state != TrialState.WAITING]

    def left(self) -> int:
        """How many trials have not ended and are trained by nobody."""
        return max(
            0, self.trials - sum(t.state.is_finished() or self._is_held(t) for t in self.results())
        )

    def error_of(self, trial: FrozenTrial) -> str | None:
        """Why a trial has failed, if it has."""
        if trial.state != TrialState.FAIL:
            return None
        return trial.user_attrs.get("error", f"Its process was killed {ATTEMPTS} times.")

    def recipe_of(self, trial: Trial | FrozenTrial) -> Recipe:
        """The recipe of a trial; settings without effect beside the proposed ones are put back to
        their defaults.
        """
        return self._settle(trial)[0].replace({"name": self.name_of(trial)})

    def idle_in(self, trial: Trial | FrozenTrial) -> Set[str]:
        """The proposed settings that have no effect in a trial, such as the encoder's LR at depth
        0.
        """
        return self._settle(trial)[1].keys()

    def _settle(self, trial: Trial | FrozenTrial) -> tuple[Recipe, dict[str, Any]]:
        values = {
            path: self.choices[path][v] if path in self.choices else v
            for path, v in trial.params.items()
        }
        return self.recipe.settle(values)

    @property
    def best(self) -> Recipe:
        """The recipe of the trial with the highest IoU. Of many the best looks better than it is:
        `ablate` it, on new seeds.
        """
        done = [t for t in self.results() if t.state == TrialState.COMPLETE]
        if not done:
            raise RunError(
                f"{self.path}: no trial has ended yet.",
                "Try some: for event in search.events(): ...",
            )
        return self.recipe_of(max(done, key=lambda t: t.value)).replace({"name": self.recipe.name})

    @staticmethod
    def name_of(trial: Trial | FrozenTrial) -> str:
        return trial.user_attrs.get("folder", f"{trial.number:04d}")

    def run_of(self, trial: Trial | FrozenTrial) -> RunFolder:
        return self.run_named(self.name_of(trial))

    def run_named(self, name: str) -> RunFolder:
        return RunFolder(self.path / "trials" / name)

    # ---- one trial

    def _claim_of(self, number: int) -> Path:
        return self.path / "claims" / str(number)

    def _is_held(self, trial: FrozenTrial) -> bool:
        return is_held(self._claim_of(trial.number))

    def _claim(self) -> tuple[Trial, ExitStack] | None:
        """A trial that nobody else has, proposed, or begun and left; None once enough have
        begun.
        """
        with said(self.path), asking(self.path):
            self._take_up_again()
            if not self.left():
                return None
            self.study.sampler = SAMPLERS[self.sampler](
                seed_for(self.recipe.seed, "search", len(self.results())) % 2**32
            )
            trial, claim = self.study.ask(self.space), ExitStack()
            self._claim_of(trial.number).mkdir(parents=True, exist_ok=True)
            claim.enter_context(held(self._claim_of(trial.number)))
            return trial, claim

    def _take_up_again(self) -> None:
        """Put trials whose process is gone in line again. Their claims are locks, which the system
        lets go of.
        """
        trials = self.study.get_trials(deepcopy=False)
        again = {
            t.user_attrs.get("again") for t in trials
        }  # in line before the first is over: a kill in between loses nothing
        for trial in trials:
            if trial.state == TrialState.RUNNING and not self._is_held(trial):
                attempt = trial.user_attrs.get("attempt", 1) + (not trial.user_attrs.get("left"))
                if attempt <= ATTEMPTS and trial.number not in again:
                    more = {
                        "again": trial.number,
                        "folder": self.name_of(trial),
                        "attempt": attempt,
                    }
                    self.study.enqueue_trial(trial.params, user_attrs=more)
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _try(self, trial: Trial) -> Generator[Event]:
        error, pruned = None, False
        with closing(self._train(trial)) as events:
            while not pruned:
                try:
                    event = next(events, None)
                except (
                    OSError,
                    RunError,
                ):  # of the disk, or of another's folder: no fault of these settings
                    raise
                except (VitsegError, RuntimeError) as failure:
                    error, event = f"{type(failure).__name__}: {failure}", None
                if event is None:
                    break
                yield event
                pruned = self._should_prune(trial, event)
        with said(self.path):
            error = self._tell(trial, pruned, error)
        yield TrialEnded(self.name_of(trial), error)

    def _train(self, trial: Trial) -> Generator[Event]:
        """From its checkpoint, if it has one; what it told before is told again."""
        run = self.run_of(trial)
        if run.events_file.exists() and run.recipe != self.recipe_of(trial):
            raise RunError(
                f"{run.path}: is the run of other settings; the study was lost, or changed.",
                "Choose another folder.",
            )
        if run.summary_file.exists():  # killed between its end and the word of it
            return (_ for _ in ())
        if run.events_file.exists():
            for event in kept_events(run.path):
                self._should_prune(trial, event)
        return train_or_resume(run, self.recipe_of(trial), self.path.parent)

    def _should_prune(self, trial: Trial, event: Event) -> bool:
        if not isinstance(event, EpochEnded) or (iou := event.validation["iou"]) is None:
            return False
        with said(self.path):
            trial.report(iou, event.epoch)
            return trial.should_prune()

    def _tell(self, trial: Trial, pruned: bool, error: str | None) -> str | None:
        """Tell the study how a trial has ended; why it failed, if it did."""
        run, state = self.run_of(trial), TrialState.PRUNED if pruned else TrialState.FAIL
        iou = None
        if error is None and not pruned:
            best, state = run.summary["best"], TrialState.COMPLETE
            iou = best["iou"]
            if iou is None:
                error, state = (
                    "The validation images have no IoU: no class is in their masks.",
                    TrialState.FAIL,
                )
            trial.set_user_attr("f1", best["f1"])
            trial.set_user_attr("seconds", run.summary["seconds"])
        if error:
            trial.set_user_attr("error", error)
        else:
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # nothing is left to resume
        self.study.tell(trial, iou, state)
        return error

    # ---- the folder

    def extremes(self) -> list[Recipe]:
        """The recipe with each value that may be proposed, of a range its ends. Raises ConfigError
        or RecipeError.
        """
        recipes = []
        for path, allowed in self.space.items():
            check_path("space", path)
            ends = (
                self.choices[path].values() if path in self.choices else (allowed.low, allowed.high)
            )
            recipes += [self.recipe.settle({path: value})[0] for value in ends]
        return recipes

    def _refuse_what_may_be_a_range(self, path: str, values: Any) -> None:
        """Raises ConfigError for a tuple of two numbers where a number between them could be meant,
        too.
        """
        if not isinstance(values, tuple) or [
            isinstance(self._settled(path, v), float) for v in values
        ] != [True, True]:
            return
        low, high = sorted(map(float, values))
        scale = ", log=True" if low > 0 and high >= 10 * low else ""
        hint = (
            f"For the range write FloatDistribution({low!r}, {high!r}{scale}), for the two values "
            f"CategoricalDistribution({[low, high]!r}); both are in optuna.distributions."
        )
        raise ConfigError(
            f"space[{path!r}]",
            values,
            "a distribution or a list; a tuple of two numbers could be a range or two values",
            hint,
        )

    def _settled(self, path: str, value: Any) -> Any:
        """What the recipe makes of a value: a float, for instance, of every number at a continuous
        setting.
        """
        found: Any = self.recipe.settle({path: value})[0].model_dump()
        for name in path.split("."):
            found = found[int(name) if isinstance(found, tuple | list) else name]
        return found

    def _description(self) -> dict[str, Any]:
        space = {
            p: [plain(v) for v in self.choices[p].values()]
            if p in self.choices
            else distribution_to_json(d)
            for p, d in self.space.items()
        }
        return json.loads(
            json.dumps({"recipe": self.recipe.model_dump(mode="json"), "space": space})
        )

    def _describe(self, described: dict[str, Any]) -> None:
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
            mend = "Give the same recipe, space, sampler, pruner and storage, or another folder."
            raise RunError(
                f"{self.path}: holds another search; it differs in {', '.join(other)}.", mend
            )


def _one_of(field: str, value: str, known: Mapping[str, Any]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ConfigError(field, value, ", ".join(known))


def _is_range(values: Any) -> bool:
    """Whether it is a distribution with two ends; one of choices is a list of them."""
    return isinstance(values, BaseDistribution) and not isinstance(values, CategoricalDistribution)


def _choices(path: str, values: Any) -> dict[Any, Any]:
    """The values by what they are called in the study, which holds plain ones alone."""
    values = values.choices if isinstance(values, CategoricalDistribution) else values
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
        raise ConfigError(
            f"space[{path!r}]",
            values,
            "a list of at least one value, or a distribution of Optuna's",
        )
    called = [
        v if v is None or isinstance(v, bool | int | float | str) else value_words(v, values)
        for v in values
    ]
    choices = dict(zip(called, values, strict=True))
    if len(choices) < len(called):
        raise ConfigError(f"space[{path!r}]", values, "values that differ")
    return choices
