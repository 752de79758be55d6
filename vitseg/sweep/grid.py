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

_SHARED = tuple(
    f"data.{field}"
    for field in (
        "source",
        "mode",
        "classes",
        "validation_fraction",
        "test_fraction",
        "group",
        "group_file",
        "stratify",
        "split_file",
        "score_background",
        "split_seed",
    )
)
_REFUSED = dict.fromkeys(
    _SHARED, "all trials are scored on the same images, by the same measure"
) | {"seed": "give seeds=(...) instead", "name": "trials are named by the sweep"}


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

    def words(self, setting: int) -> tuple[str, ...]:
        """The values of a combination as text, one for each axis."""
        return tuple(
            value_words(v, values)
            for v, values in zip(self.settings[setting], self.axes.values(), strict=True)
        )


def make_grid(
    recipe: Recipe, axes: Mapping[str, Sequence[Any]], seeds: int | Sequence[int], facts: Facts
) -> Grid:
    """Every combination of the axes' values. Raises ConfigError or RecipeError naming an axis or
    value that cannot be.

    Settings that a combination leaves without effect are put back to their defaults; of
    combinations that come to the same training only the first is kept. `seeds` is their number,
    counted from the recipe's own, or the seeds.
    """
    seeds = _seeds(recipe, seeds)
    axes = {path: _values(path, values) for path, values in axes.items()}
    if not axes:
        raise ConfigError(
            "axes",
            {},
            'paths of settings with their values, as in {"stages.1.unfrozen_blocks": [0, 2, 4]}',
        )
    settings, recipes, ignored, known = [], [], [], dict[str, int]()
    places, notes = {}, []
    for levels in product(*(range(len(values)) for values in axes.values())):
        setting = tuple(values[i] for values, i in zip(axes.values(), levels, strict=True))
        changed, idle = _settle(recipe, axes, setting)
        number = places[levels] = known.setdefault(training_of(changed, facts), len(settings))
        if number == len(settings):
            settings.append(setting)
            recipes.append(changed)
            ignored.append(idle)
        else:
            notes.append(
                _same(axes, setting, settings[number], idle.keys() | ignored[number].keys())
            )
    notes += _warnings(recipes, facts)
    trials, shared = _in_order([t for seed in seeds for t in _trials(recipes, seed, facts)], facts)
    return Grid(recipe, axes, seeds, tuple(settings), places, tuple(trials), shared, tuple(notes))


def _warnings(recipes: Sequence[Recipe], facts: Facts) -> list[str]:
    """What about the schedules of the combinations is hardly meant, each once."""
    found = [
        f"Stage {number}: {warning}"
        for recipe in recipes
        for number, stage in enumerate(recipe.stages, start=1)
        for warning in plan.warnings(stage, _batches(recipe, facts))
    ]
    return list(dict.fromkeys(found))


def _batches(recipe: Recipe, facts: Facts) -> int:
    return -(-facts.train_images // (recipe.batch_size * recipe.accumulate))


def _seeds(recipe: Recipe, seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = (
        tuple(range(recipe.seed, recipe.seed + seeds)) if isinstance(seeds, int) else tuple(seeds)
    )
    if (
        not found
        or len(set(found)) < len(found)
        or not all(type(s) is int and s >= 0 for s in found)
    ):
        raise ConfigError(
            "seeds", seeds, "how many (at least 1), or different whole numbers from 0"
        )
    return found


def check_path(field: str, path: str) -> None:
    """Raises ConfigError where trials that differ in this setting could not be compared."""
    refused = (
        why
        for name, why in _REFUSED.items()
        if f"{path}.".startswith(f"{name}.") or name.startswith(f"{path}.")
    )
    if reason := next(refused, ""):
        allowed = "settings of stages, model, loss, optimizer, views and batches"
        raise ConfigError(field, path, allowed, f"{reason}.".capitalize())


def _values(path: str, values: Sequence[Any]) -> tuple[Any, ...]:
    check_path("axes", path)
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"axes[{path!r}]", values, "a list of at least one value")
    return tuple(values)


def _settle(
    recipe: Recipe, axes: Mapping[str, Any], values: Sequence[Any]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a combination, and the settings without effect in it."""
    for path, value in zip(axes, values, strict=True):
        try:
            recipe.settle({path: value})
        except RecipeError as error:
            shown = value_words(value, ())
            raise RecipeError(
                f"axes[{path!r}]: the value {shown} cannot be. {error.problem}", error.mend
            ) from None
    return recipe.settle(dict(zip(axes, values, strict=True)))


def _same(
    axes: Mapping[str, Sequence[Any]], values: Sequence[Any], first: Sequence[Any], idle: Set[str]
) -> str:
    """Why a combination is left out: it comes to the `first`, perhaps since settings are `idle` in
    it.
    """

    def words(combination: Sequence[Any]) -> str:
        pairs = zip(axes.items(), combination, strict=True)
        return ", ".join(
            f"{short_path(path)} {value_words(v, known)}" for (path, known), v in pairs
        )

    ignored = [
        short_path(p) for p, a, b in zip(axes, values, first, strict=True) if a != b and p in idle
    ]
    why = f": {', '.join(ignored)} has no effect there" if ignored else ""
    return f"Left out: {words(values)} is the same training as {words(first)}{why}."


def training_of(recipe: Recipe, facts: Facts, stages: int | None = None) -> str:
    """A digest of what decides the numbers of the first `stages`, all by default."""
    machine = [recipe.device, recipe.precision, recipe.threads, recipe.processes]
    blocks = (
        facts.blocks if facts.encoder in (None, recipe.model.encoder) else None
    )  # of another encoder: not known here
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
            control = controls.setdefault(
                training_of(alone, facts), Trial(new, seed, _named(alone, new, seed), None)
            ).name
        trials.append(Trial(name, seed, _named(recipe, name, seed), number, control))
    return [*trials, *controls.values()]


def _wholly_in_stage_1(recipe: Recipe) -> Recipe:
    """The first stage alone, for as many epochs as all stages have."""
    first = recipe.stages[0].model_dump(mode="json") | {
        "epochs": sum(s.epochs for s in recipe.stages)
    }
    return recipe.replace({"stages": [first]})


def _named(recipe: Recipe, name: str, seed: int) -> Recipe:
    return recipe.replace({"name": name, "seed": seed})


def _in_order(trials: Sequence[Trial], facts: Facts) -> tuple[list[Trial], dict[str, int]]:
    """Those that share their first stages stand together, otherwise as they came; and how many each
    shares with one before.
    """
    beginnings = {
        t.name: [training_of(t.recipe, facts, n) for n in range(1, len(t.recipe.stages) + 1)]
        for t in trials
    }
    seen: dict[str, int] = {}
    for digest in (digest for t in trials for digest in beginnings[t.name]):
        seen.setdefault(digest, len(seen))
    ordered = sorted(trials, key=lambda t: [seen[digest] for digest in beginnings[t.name]])
    trained, shared = set[str](), {}
    for trial in ordered:
        shared[trial.name] = sum(digest in trained for digest in beginnings[trial.name])
        trained.update(beginnings[trial.name])
    return ordered, shared


def value_words(value: Any, among: Sequence[Any]) -> str:
    """A value in a table: of a schedule or another group of settings its kind, and what sets it
    apart from its like.
    """
    if (
        isinstance(value, tuple | list)
        and value
        and all(isinstance(v, BaseModel | Mapping) for v in value)
    ):
        others = [v for other in among if isinstance(other, tuple | list) for v in other]
        return ", then ".join(value_words(v, others) for v in value)
    if not isinstance(value, BaseModel | Mapping):
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    tree, others = _tree(value), [_tree(v) for v in among]
    alike = [o for o in others if o.get("kind") == tree.get("kind") and o != tree]
    apart = (
        [k for k in tree if k != "kind" and any(o.get(k) != tree[k] for o in alike)]
        if "kind" in tree
        else list(tree)
    )
    kind = str(tree.get("kind", "")).replace("_", " ")
    return " ".join(filter(None, (kind, ", ".join(f"{k} {tree[k]}" for k in apart))))


def plain(value: Any) -> Any:
    """A value of an axis as it stands in JSON."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _tree(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return dict(value) if isinstance(value, Mapping) else {}


def short_path(path: str) -> str:
    """ "stages.1.unfrozen_blocks" as "stage 2 unfrozen_blocks"."""
    parts = path.split(".")
    if parts[0] == "stages" and len(parts) > 2 and parts[1].isdecimal():
        return f"stage {int(parts[1]) + 1} {'.'.join(parts[2:])}"
    return path
