"""What a sweep is going to train: every combination of the axes' values, for every seed, and a
control for each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import BaseModel

from vitseg import plan
from vitseg.errors import ConfigError, RecipeError
from vitseg.recipe import Recipe

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


@dataclass(frozen=True, slots=True)
class Facts:
    """What a grid has to know: how many images train, and how many blocks there are in the encoder
    of that name, or any.
    """

    train_images: int
    blocks: int
    encoder: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One training. `setting` counts combinations from 0; a control, which has no combination, has
    None.

    `control` is the name of the trial that spends this one's epochs wholly in stage 1, with the
    same seed.
    """

    name: str
    seed: int
    recipe: Recipe
    setting: int | None
    control: str | None = None


@dataclass(frozen=True, slots=True)
class Grid:
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
        pairs = zip(self.settings[setting], self.axes.values(), strict=True)
        return tuple(value_words(value, values) for value, values in pairs)


def make_grid(
    recipe: Recipe, axes: Mapping[str, Sequence[Any]], seeds: int | Sequence[int], facts: Facts
) -> Grid:
    """Every combination of the axes' values. Raises ConfigError or RecipeError naming an axis or
    value that cannot be.

    Settings that a combination leaves without effect are put back to their defaults; of
    combinations that come to the same training only the first is kept. `seeds` is their number,
    counted from the recipe's own, or the seeds.
    """
    if not axes:
        example = '{"stages.1.unfrozen_blocks": [0, 2, 4]}'
        raise ConfigError("axes", {}, f"paths of settings with their values, as in {example}")
    seeds = _seeds(recipe, seeds)
    axes = {path: _values(recipe, path, values) for path, values in axes.items()}
    settings, recipes, ignored, notes = [], [], [], []
    places, known = {}, dict[str, int]()
    for levels in product(*(range(len(values)) for values in axes.values())):
        setting = tuple(values[i] for values, i in zip(axes.values(), levels, strict=True))
        changed, idle = recipe.settle(dict(zip(axes, setting, strict=True)))
        number = places[levels] = known.setdefault(training_of(changed, facts), len(settings))
        if number == len(settings):
            settings.append(setting)
            recipes.append(changed)
            ignored.append(idle)
        else:
            either_idle = idle.keys() | ignored[number].keys()
            notes.append(_left_out(axes, setting, settings[number], either_idle))
    notes += _warnings(recipes, facts)
    trials = []
    for seed in seeds:
        trials += _trials(recipes, seed, facts)
    trials, shared = _in_order(trials, facts)
    return Grid(recipe, axes, seeds, tuple(settings), places, tuple(trials), shared, tuple(notes))


def _warnings(recipes: Sequence[Recipe], facts: Facts) -> list[str]:
    """Doubtful schedules of the combinations, each named once."""
    found = {}
    for recipe in recipes:
        for number, stage in enumerate(recipe.stages, start=1):
            for warning in plan.warnings(stage, _batches(recipe, facts)):
                found[f"Stage {number}: {warning}"] = True
    return list(found)


def _batches(recipe: Recipe, facts: Facts) -> int:
    return -(-facts.train_images // (recipe.batch_size * recipe.accumulate))


def _seeds(recipe: Recipe, seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(recipe.seed, recipe.seed + seeds) if isinstance(seeds, int) else seeds)
    whole = all(type(seed) is int and seed >= 0 for seed in found)
    if not found or not whole or len(set(found)) < len(found):
        allowed = "how many (at least 1), or different whole numbers from 0"
        raise ConfigError("seeds", seeds, allowed)
    return found


def check_path(field: str, path: str) -> None:
    """Raises ConfigError where trials that differ in this setting could not be compared."""
    for name, hint in _REFUSED.items():
        if f"{path}.".startswith(f"{name}.") or name.startswith(f"{path}."):
            allowed = "settings of stages, model, loss, optimizer, views and batches"
            raise ConfigError(field, path, allowed, hint)


def check_values(field: str, values: Any, allowed: str = "a list of at least one value") -> None:
    """Raises ConfigError unless `values` is a sequence of at least one value."""
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
        raise ConfigError(field, values, allowed)


def _values(recipe: Recipe, path: str, values: Sequence[Any]) -> tuple[Any, ...]:
    check_path("axes", path)
    check_values(f"axes[{path!r}]", values)
    for value in values:
        try:
            recipe.settle({path: value})
        except RecipeError as error:
            problem = f"axes[{path!r}]: the value {value_words(value, ())} cannot be."
            raise RecipeError(f"{problem} {error.problem}", error.mend) from None
    return tuple(values)


def _left_out(
    axes: Mapping[str, Sequence[Any]], values: Sequence[Any], first: Sequence[Any], idle: Set[str]
) -> str:
    """Why a combination is left out: it trains the same as `first`, perhaps because the settings
    `idle` have no effect in it.
    """
    these, those, ignored = [], [], []
    for (path, known), value, other in zip(axes.items(), values, first, strict=True):
        name = short_path(path)
        these.append(f"{name} {value_words(value, known)}")
        those.append(f"{name} {value_words(other, known)}")
        if value != other and path in idle:
            ignored.append(name)
    why = f": {', '.join(ignored)} has no effect there" if ignored else ""
    return f"Left out: {', '.join(these)} is the same training as {', '.join(those)}{why}."


def training_of(recipe: Recipe, facts: Facts, stages: int | None = None) -> str:
    """A digest of what decides the numbers of the first `stages`, all by default."""
    machine = [recipe.device, recipe.precision, recipe.threads, recipe.processes]
    known = facts.encoder in (None, recipe.model.encoder)
    blocks = facts.blocks if known else None  # of another encoder: not known here
    settings = plan.effective(recipe, stages or len(recipe.stages), _batches(recipe, facts), blocks)
    return hashlib.sha256(json.dumps([machine, settings]).encode()).hexdigest()


def _trials(recipes: Sequence[Recipe], seed: int, facts: Facts) -> list[Trial]:
    """The combinations and their controls, of one seed. Combinations of equal length share a
    control.
    """
    controls: dict[str, Trial] = {}
    trials = []
    for number, recipe in enumerate(recipes):
        name = f"{number + 1:02d}-seed{seed}"
        control = None
        if len(recipe.stages) > 1:
            alone = _wholly_in_stage_1(recipe)
            new = f"control{len(controls) + 1}-seed{seed}"
            trial = Trial(new, seed, _named(alone, new, seed), None)
            control = controls.setdefault(training_of(alone, facts), trial).name
        trials.append(Trial(name, seed, _named(recipe, name, seed), number, control))
    return [*trials, *controls.values()]


def _wholly_in_stage_1(recipe: Recipe) -> Recipe:
    """The first stage alone, for as many epochs as all stages have."""
    first = recipe.stages[0].model_dump(mode="json")
    first["epochs"] = total_epochs(recipe)
    return recipe.replace({"stages": [first]})


def total_epochs(recipe: Recipe) -> int:
    """Of all stages."""
    return sum(stage.epochs for stage in recipe.stages)


def _named(recipe: Recipe, name: str, seed: int) -> Recipe:
    return recipe.replace({"name": name, "seed": seed})


def _in_order(trials: Sequence[Trial], facts: Facts) -> tuple[list[Trial], dict[str, int]]:
    """Those that share their first stages stand together, otherwise as they came; and how many each
    shares with one before.
    """
    beginnings = {}
    seen: dict[str, int] = {}
    for trial in trials:
        stages = range(1, len(trial.recipe.stages) + 1)
        beginnings[trial.name] = [training_of(trial.recipe, facts, n) for n in stages]
        for digest in beginnings[trial.name]:
            seen.setdefault(digest, len(seen))
    ordered = sorted(trials, key=lambda t: [seen[digest] for digest in beginnings[t.name]])
    trained, shared = set[str](), {}
    for trial in ordered:
        shared[trial.name] = len(trained.intersection(beginnings[trial.name]))
        trained.update(beginnings[trial.name])
    return ordered, shared


def value_words(value: Any, among: Sequence[Any]) -> str:
    """A value in a table. Of a schedule or another group of settings: its kind, and what sets it
    apart from those of its kind `among` the values of the axis.
    """
    if _is_group(value):
        return _group_words(plain(value), [plain(v) for v in among if _is_group(v)])
    if isinstance(value, tuple | list) and value and all(map(_is_group, value)):
        others = []
        for other in among:
            if isinstance(other, tuple | list):
                others += other
        return ", then ".join(value_words(v, others) for v in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_group(value: Any) -> bool:
    return isinstance(value, BaseModel | Mapping)


def _group_words(group: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """As "exponential gamma 0.5"; of settings that have no kind all are named."""
    kind = group.get("kind")
    alike = [other for other in others if other.get("kind") == kind]
    apart = []
    for name, value in group.items():
        differs = any(other.get(name) != value for other in alike)
        if kind is None or (name != "kind" and differs):
            apart.append(f"{name} {value}")
    words = [kind.replace("_", " ")] if kind else []
    if apart:
        words.append(", ".join(apart))
    return " ".join(words)


def plain(value: Any) -> Any:
    """A value of an axis as it stands in JSON."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def short_path(path: str) -> str:
    """ "stages.1.unfrozen_blocks" as "stage 2 unfrozen_blocks"."""
    parts = path.split(".")
    if parts[0] == "stages" and len(parts) > 2 and parts[1].isdecimal():
        return f"stage {int(parts[1]) + 1} {'.'.join(parts[2:])}"
    return path
