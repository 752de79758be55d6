"""What a sweep is going to train: every combination of the axes' values, for every seed, and a
control for each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from itertools import chain, product
from typing import Any, NamedTuple

from vitseg import plan
from vitseg.errors import ConfigError, RecipeError
from vitseg.recipe import Recipe, plain

_SHARED = (
    "data.source",
    "data.mode",
    "data.classes",
    "data.validation_fraction",
    "data.test_fraction",
    "data.group",
    "data.group_file",
    "data.stratify",
    "data.split_file",
    "data.score_background",
    "data.split_seed",
)
_REFUSED = dict.fromkeys(_SHARED, "All trials are scored on the same images, by the same measure.")
_REFUSED |= {"seed": "Give seeds=(...) instead.", "name": "Trials are named by the sweep."}
"""Settings that trials have in common, and the hint for who wants to vary one."""


class Facts(NamedTuple):
    """What a grid has to know: how many images train, and how many blocks there are in the encoder
    of that name, or any.
    """

    train_images: int
    blocks: int
    encoder: str | None = None


class Trial(NamedTuple):
    """One training. `setting` counts combinations from 0; a control, which has no combination, has
    None.

    `control` is the name of the trial that spends this one's epochs wholly in stage 1, with the
    same seed.
    """

    name: str
    seed: int
    recipe: Recipe
    setting: int | None
    control: str | None


class Grid(NamedTuple):
    """The trials in the order in which they are trained, those that share first stages side by
    side.

    `axes` holds a setting's path and its values, `settings` one value of each axis for every
    combination that is trained. `places` finds a combination, given by the place of each value in
    its axis, among `settings`; `shared` says how many first stages a trial has in common with one
    before it; `notes` say which combinations were left out, being the same training.
    """

    recipe: Recipe
    axes: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    settings: tuple[tuple[Any, ...], ...]
    places: dict[tuple[int, ...], int]
    trials: tuple[Trial, ...]
    shared: dict[str, int]
    notes: tuple[str, ...]

    @property
    def labels(self) -> list[list[str]]:
        """The values of each axis as text."""
        return [[value_words(value, values) for value in values] for values in self.axes.values()]

    def words(self, setting: int) -> tuple[str, ...]:
        """The values of a combination as text, one for each axis."""
        return tuple(map(value_words, self.settings[setting], self.axes.values()))


def make_grid(
    recipe: Recipe, axes: Mapping[str, Sequence[Any]], seeds: int | Sequence[int], facts: Facts
) -> Grid:
    """Every combination of the axes' values. Raises ConfigError or RecipeError naming an axis or
    value that cannot be.

    Settings that a combination leaves without effect are put back to their defaults; of
    combinations that come to the same training only the first is trained. `seeds` is their number,
    counted from the recipe's own, or the seeds.
    """
    if not axes:
        example = '{"stages.1.unfrozen_blocks": [0, 2, 4]}'
        raise ConfigError("axes", {}, f"paths of settings with their values, as in {example}")
    seeds = _seeds(recipe, seeds)
    for path, values in axes.items():
        variants("axes", recipe, path, values)
    axes = {path: tuple(values) for path, values in axes.items()}
    places, first, notes, trials = {}, dict[str, Any](), [], []
    for combination in product(*map(enumerate, axes.values())):
        levels, setting = zip(*combination, strict=True)
        changed, idle = recipe.settle(dict(zip(axes, setting, strict=True)))
        new = len(first), setting, changed, idle
        number, same, _, idle_there = first.setdefault(training_of(changed, facts), new)
        places[levels] = number
        if same is not setting:
            notes.append(_left_out(axes, setting, same, idle.keys() | idle_there.keys()))
    _, settings, recipes, _ = zip(*first.values(), strict=True)
    for changed in recipes:
        batches = plan.batches_per_epoch(changed, facts.train_images)
        for number, stage in enumerate(changed.stages, start=1):
            notes += [f"Stage {number}: {warning}" for warning in plan.warnings(stage, batches)]
    for seed in seeds:
        trials += _trials(recipes, seed, facts)
    trials, shared = _in_order(trials, facts)
    notes = tuple(dict.fromkeys(notes))  # a doubtful schedule once
    return Grid(recipe, axes, seeds, settings, places, tuple(trials), shared, notes)


def _seeds(recipe: Recipe, seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(recipe.seed, recipe.seed + seeds) if isinstance(seeds, int) else seeds)
    whole = all(type(seed) is int and seed >= 0 for seed in found)
    if not found or not whole or len({*found}) < len(found):
        allowed = "how many (at least 1), or different whole numbers from 0"
        raise ConfigError("seeds", seeds, allowed)
    return found


def variants(field: str, recipe: Recipe, path: str, values: Any) -> list[Recipe]:
    """The recipe with each of a setting's values. Raises ConfigError or RecipeError where trials
    that differ in this setting could not be compared, and for a value that cannot be.
    """
    for name, hint in _REFUSED.items():
        if f"{path}.".startswith(f"{name}.") or name.startswith(f"{path}."):
            allowed = "settings of stages, model, loss, optimizer, views and batches"
            raise ConfigError(field, path, allowed, hint)
    field = f"{field}[{path!r}]"
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
        allowed = "a list of at least one value (in a search also one of Optuna's distributions)"
        raise ConfigError(field, values, allowed)
    found = []
    for value in values:
        try:
            found.append(recipe.settle({path: value})[0])
        except RecipeError as error:
            problem = f"{field}: the value {value_words(value, ())} cannot be. {error.problem}"
            raise RecipeError(problem, error.mend) from None
    return found


def _left_out(
    axes: Mapping[str, Sequence[Any]], setting: Sequence[Any], first: Sequence[Any], idle: Set[str]
) -> str:
    """Why a combination is left out: it trains the same as `first`, perhaps because the settings
    `idle` have no effect in it.
    """
    these, those, ignored = [], [], []
    for path, value, other in zip(axes, setting, first, strict=True):
        name = short_path(path)
        these.append(f"{name} {value_words(value, axes[path])}")
        those.append(f"{name} {value_words(other, axes[path])}")
        if value != other and path in idle:
            ignored.append(name)
    why = f": {', '.join(ignored)} has no effect there" if ignored else ""
    return f"Left out: {', '.join(these)} is the same training as {', '.join(those)}{why}."


def training_of(recipe: Recipe, facts: Facts, stages: int | None = None) -> str:
    """A digest of what decides the numbers of the first `stages`, all by default."""
    machine = [recipe.device, recipe.precision, recipe.threads, recipe.processes]
    known = facts.encoder in (None, recipe.model.encoder)
    blocks = facts.blocks if known else None  # of another encoder: not known here
    batches = plan.batches_per_epoch(recipe, facts.train_images)
    settings = plan.effective(recipe, stages or len(recipe.stages), batches, blocks)
    return hashlib.sha256(json.dumps([machine, settings]).encode()).hexdigest()


def _trials(recipes: Sequence[Recipe], seed: int, facts: Facts) -> list[Trial]:
    """The combinations and their controls, of one seed. Combinations of equal length share a
    control.
    """

    def trial(name: str, recipe: Recipe, *more: Any) -> Trial:
        name = f"{name}-seed{seed}"
        return Trial(name, seed, recipe.replace({"name": name, "seed": seed}), *more)

    controls, trials = dict[str, Trial](), []
    for number, recipe in enumerate(recipes):
        control = None
        if len(recipe.stages) > 1:
            wholly = {"stages": recipe.stages[:1], "stages.0.epochs": total_epochs(recipe)}
            alone = recipe.replace(wholly)
            new = trial(f"control{len(controls) + 1}", alone, None, None)
            control = controls.setdefault(training_of(alone, facts), new).name
        trials.append(trial(f"{number + 1:02d}", recipe, number, control))
    return [*trials, *controls.values()]


def total_epochs(recipe: Recipe) -> int:
    """Of all stages."""
    return sum(stage.epochs for stage in recipe.stages)


def _in_order(trials: Sequence[Trial], facts: Facts) -> tuple[list[Trial], dict[str, int]]:
    """Those that share their first stages stand together, otherwise as they came; and how many each
    shares with one before.
    """
    beginnings = {}
    for trial in trials:
        stages = range(1, len(trial.recipe.stages) + 1)
        beginnings[trial.name] = [training_of(trial.recipe, facts, n) for n in stages]
    digests = dict.fromkeys(chain(*beginnings.values()))
    rank = {digest: number for number, digest in enumerate(digests)}
    ordered = sorted(trials, key=lambda t: [rank[digest] for digest in beginnings[t.name]])
    trained, shared = set[str](), {}
    for trial in ordered:
        shared[trial.name] = len(trained.intersection(beginnings[trial.name]))
        trained.update(beginnings[trial.name])
    return ordered, shared


def value_words(value: Any, among: Sequence[Any]) -> str:
    """A value in a table. Of a schedule or another group of settings: its kind, and what sets it
    apart from those of its kind `among` the values of the axis ("exponential gamma 0.5").
    """
    match plain(value):
        case {"kind": kind, **group}:
            alike = [v for v in map(plain, among) if isinstance(v, dict) and v.get("kind") == kind]
            apart = []
            for name, own in group.items():
                if any(other.get(name) != own for other in alike):
                    apart.append(f"{name} {own}")
            return f"{kind.replace('_', ' ')} {', '.join(apart)}".strip()
        case {**group}:
            return ", ".join(map("{} {}".format, group, group.values()))
        case [{}, *_]:
            others = [other for other in among if isinstance(other, tuple | list)]
            return ", then ".join([value_words(v, [*chain(*others)]) for v in value])
        case float():
            return f"{value:.3g}"
    return str(value)


def short_path(path: str) -> str:
    """ "stages.1.unfrozen_blocks" as "stage 2 unfrozen_blocks"."""
    match path.split("."):
        case ["stages", number, *names] if names and number.isdecimal():
            return f"stage {int(number) + 1} {'.'.join(names)}"
    return path
