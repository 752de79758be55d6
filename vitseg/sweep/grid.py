"""What a sweep is going to train: every combination of the axes' values, for every seed, and a
control for each.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np

from vitseg import plan
from vitseg.draws import digest_of
from vitseg.errors import ConfigError, RecipeError
from vitseg.recipe import Recipe, plain

_VIEWS = {"size", "sampler", "views", "view_seed", "augment", "effects", "crop"}
"""The settings of the data that trials may differ in; by all others the score is comparable."""


class Trial(NamedTuple):
    """One training. `setting` counts combinations from 0; a control, which has no combination, has
    None. `words` are its values as text, one for each axis; of a control those on which all
    combinations agree that are compared with it.

    `control` is the name of the trial that spends this one's epochs wholly in stage 1, with the
    same seed. `shared` says how many first stages it has in common with one before it.
    """

    name: str
    seed: int
    recipe: Recipe
    setting: int | None
    words: Sequence[str]
    control: str | None
    shared: int


class Grid(NamedTuple):
    """The trials in the order in which they are trained, those that share first stages side by
    side; the order is the same for every seed.

    `axes` holds a setting's path and its values, `labels` its name and the values as text,
    `settings` one text of each axis for every combination that is trained. `places`, with a
    dimension for each axis, finds a combination among `settings`; `notes` say which combinations
    were left out, being the same training.
    """

    recipe: Recipe
    axes: Mapping[str, Sequence[Any]]
    seeds: tuple[int, ...]
    labels: dict[str, list[str]]
    settings: list[tuple[str, ...]]
    places: np.ndarray
    trials: list[Trial]
    notes: list[str]


def make_grid(
    recipe: Recipe,
    axes: Mapping[str, Sequence[Any]],
    seeds: int | Sequence[int],
    images: int,
    blocks: int,
) -> Grid:
    """Every combination of the axes' values, for so many training images and blocks of the encoder.
    Raises ConfigError or RecipeError naming an axis or value that cannot be.

    Settings that a combination leaves without effect are put back to their defaults; of
    combinations that come to the same training only the first is trained. `seeds` is their number,
    counted from the recipe's own, or the seeds.
    """
    check_paths("axes", axes)
    drawn = tuple(range(recipe.seed, recipe.seed + seeds) if isinstance(seeds, int) else seeds)
    if {*map(type, drawn)} != {int} or min(drawn) < 0 or len({*drawn}) < len(drawn):
        raise ConfigError(
            "seeds", seeds, "how many (at least 1), or different whole numbers from 0"
        )
    labels = {}
    for path, values in axes.items():
        variants("axes", recipe, path, values)
        labels[short_path(path)] = [value_words(value, values) for value in values]

    def trainings(changed: Recipe) -> list[str]:
        """Digests of what decides the numbers of the first stage, the first two, and so on."""
        machine = [changed.device, changed.precision, changed.threads, changed.processes]
        known = blocks if changed.model.encoder == recipe.model.encoder else None
        batches = plan.batches_per_epoch(changed, images)
        return [
            digest_of(machine, plan.effective(changed, stages, batches, known))
            for stages in range(1, len(changed.stages) + 1)
        ]

    places, first, notes = [], dict[str, Any](), []
    for values, words in zip(product(*axes.values()), product(*labels.values()), strict=True):
        changed, idle = recipe.settle(dict(zip(axes, values, strict=True)))
        text = ", ".join(map("{} {}".format, labels, words))
        digests = trainings(changed)
        new = len(first), text, idle, words, changed, digests
        number, same, idle_there, *_ = first.setdefault(digests[-1], new)
        places.append(number)
        if same != text:
            ignored = ", ".join(map(short_path, sorted(axes.keys() & (idle | idle_there))))
            why = f": {ignored} has no effect there" if ignored else ""
            notes.append(f"Left out: {text} is the same training as {same}{why}.")
            continue
        batches = plan.batches_per_epoch(changed, images)
        for order, stage in enumerate(changed.stages, start=1):
            notes += [f"Stage {order}: {warning}" for warning in plan.warnings(stage, batches)]
    places = np.reshape(places, [*map(len, axes.values())])
    settings = [words for *_, words, _, _ in first.values()]
    trials = _trials(first.values(), drawn, trainings)
    notes = list(dict.fromkeys(notes))  # a doubtful schedule once
    return Grid(recipe, axes, drawn, labels, settings, places, trials, notes)


def check_paths(field: str, axes: Mapping[str, Any]) -> None:
    """Raises ConfigError for what are not settings by their paths."""
    if not isinstance(axes, Mapping) or {*map(type, axes)} != {str}:
        example = 'paths of settings with their values, as in {"stages.1.unfrozen_blocks": [0, 2]}'
        raise ConfigError(field, axes, example)


def variants(field: str, recipe: Recipe, path: str, values: Any) -> list[Recipe]:
    """The recipe with each of a setting's values. Raises ConfigError or RecipeError where trials
    that differ in this setting could not be compared, and for a value that cannot be.
    """
    place = f"{field}[{path!r}]"
    if not isinstance(values, list | tuple | range) or not values:
        allowed = "a list of at least one value (in a search also one of Optuna's distributions)"
        raise ConfigError(place, values, allowed)
    try:
        found = [recipe.settle({path: value})[0] for value in values]
    except RecipeError as error:
        raise RecipeError(f"{place}: {error.problem}", error.mend) from None
    top, *rest = path.split(".")
    if top in ("name", "seed") or (top == "data" and _VIEWS.isdisjoint(rest[:1])):
        allowed = "settings of stages, model, loss, optimizer, views and batches"
        hint = (
            "All trials are scored on the same images, by the same measure. "
            "Give seeds=(...) to an ablation for other seeds."
        )
        raise ConfigError(field, path, allowed, hint)
    return found


def _trials(
    settings: Iterable[tuple], seeds: Sequence[int], trainings: Callable[[Recipe], list[str]]
) -> list[Trial]:
    """The combinations and their controls, of every seed: those that share their first stages side
    by side, otherwise as they came. Combinations of equal length share a control.
    """
    rows, controls = [], dict[str, list[Any]]()
    for number, _, _, words, recipe, digests in settings:
        control = None
        if len(recipe.stages) > 1:
            wholly = {"stages": recipe.stages[:1], "stages.0.epochs": total_epochs(recipe)}
            alone = recipe.replace(wholly)
            (digest,) = trainings(alone)
            new = [f"control{len(controls) + 1}", alone, words]
            found = controls.setdefault(digest, new)
            both = zip(words, found[2], strict=True)
            found[2] = [one if one == other else "" for one, other in both]
            control = found[0]
        rows.append((digests, f"{number + 1:02d}", recipe, number, words, control))
    for digest, (name, alone, words) in controls.items():
        words[0] = f"control: {alone.stages[0].epochs} epochs in stage 1"
        rows.append(([digest], name, alone, None, words, None))
    rank = list(chain(*[row[0] for row in rows])).index
    rows.sort(key=lambda row: list(map(rank, row[0])))
    trials = []
    for seed in seeds:
        trained = set[str]()
        for digests, row, recipe, setting, words, control in rows:
            name, against = f"{row}-seed{seed}", control and f"{control}-seed{seed}"
            own = recipe.replace({"name": name, "seed": seed})
            shared = len(trained.intersection(digests))
            trials.append(Trial(name, seed, own, setting, words, against, shared))
            trained.update(digests)
    return trials


def total_epochs(recipe: Recipe) -> int:
    """Of all stages."""
    return sum(stage.epochs for stage in recipe.stages)


def value_words(value: Any, among: Sequence[Any] = ()) -> str:
    """A value in a table. Of a schedule or another group of settings: its kind, and what sets it
    apart from those of its kind `among` the values of the axis ("exponential gamma 0.5").
    """
    match plain(value):
        case {"kind": kind, **group}:
            alike = [v for v in map(plain, among) if isinstance(v, dict) and v.get("kind") == kind]
            apart = [
                f"{name} {own}"
                for name, own in group.items()
                if any(other.get(name) != own for other in alike)
            ]
            return f"{kind.replace('_', ' ')} {', '.join(apart)}".strip()
        case {**group}:
            return ", ".join(map("{} {}".format, group, group.values()))
        case [{}, *_]:
            return ", then ".join([value_words(v, [*chain(*among)]) for v in value])
        case float():
            return f"{value:.3g}"
    return str(value)


def short_path(path: str) -> str:
    """ "stages.1.unfrozen_blocks" as "stage 2 unfrozen_blocks"."""
    return re.sub(r"^stages\.(\d+)\.", lambda stage: f"stage {int(stage[1]) + 1} ", path)
