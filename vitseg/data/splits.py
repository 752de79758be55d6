"""Which images are trained on and which are held out: by folder, by file, or drawn from names and a
seed; and how often rare ones are shown.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from vitseg.data.folder import SPLITS
from vitseg.draws import seed_for
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data
from vitseg.words import json_of

_ATTEMPTS = 64
_NONE, _ANY = 1000, 1001  # beside the ids of classes: groups without one, and all groups
_DRAWN = ("group", "group_file", "stratify", "validation_fraction", "test_fraction", "split_seed")

Splits = dict[str, list[str]]
Sides = dict[str, str]
"""The side of each group."""

Holds = Callable[[str], Set[int]]
"""The classes that an image holds, by its name."""


def splits_of(
    placed: Mapping[str, str | None], cfg: Data, holds: Holds, dropped: Set[str] = frozenset()
) -> Splits:
    """The images of train, validation and test by name; `placed` says in which folder each lies, if
    in any of these.

    `dropped` may stand in a split file, whose other images are taken. Raises DataError or
    ConfigError where they cannot be split as `cfg` says.
    """
    if cfg.split_file is not None:
        return _from_file(Path(cfg.split_file).expanduser(), placed.keys(), dropped)
    given: Splits = {side: [] for side in SPLITS}
    for name, side in placed.items():
        if side is not None:
            given[side].append(name)
    if not any(given.values()):
        return random_split(list(placed), cfg, holds)
    if not given["train"]:
        says = f"{cfg.source.path}: train/ holds no images."
        raise DataError(says, "Put images and masks into train/.")
    if given["validation"]:
        _refuse_changed(cfg, _DRAWN, "validation")
    if given["test"]:
        _refuse_changed(cfg, ("test_fraction",), "test")
    if given["validation"]:
        return given
    drawn = random_split(given["train"], cfg, holds)
    return drawn | {"test": given["test"] or drawn["test"]}


def _refuse_changed(cfg: Data, fields: tuple[str, ...], side: str) -> None:
    for field in fields:
        value, default = getattr(cfg, field), Data.model_fields[field].default
        if value != default:
            hint = f"The folder has a {side}/ of its own."
            raise ConfigError(f"data.{field}", value, str(default), hint)


def random_split(names: list[str], cfg: Data, holds: Holds) -> Splits:
    """Validation and test get their fractions of the groups; without groups every image is one of
    its own.

    Stratified, classes keep their shares on all sides as well as can be, groups staying whole.
    """
    groups = _groups(names, cfg)
    fractions = {"validation": cfg.validation_fraction}
    if cfg.test_fraction:
        fractions["test"] = cfg.test_fraction
    if len(groups) <= len(fractions):
        hint = f"Give at least {len(fractions) + 1} images, or groups."
        raise DataError(f"{_too_few(len(groups), cfg)} {len(names)} image(s).", hint)
    if cfg.stratify:
        sides = _stratified(groups, fractions, cfg.split_seed, holds)
    else:
        sides = _shuffled(groups, fractions, cfg.split_seed)
    splits: Splits = {side: [] for side in SPLITS}
    for key, members in groups.items():
        splits[sides.get(key, "train")] += members
    return {side: sorted(members) for side, members in splits.items()}


def _too_few(groups: int, cfg: Data) -> str:
    count = "one group" if groups == 1 else f"{groups} groups"
    for field in ("group", "group_file"):
        rule = getattr(cfg, field)
        if rule is not None:
            return f"data.{field}: {rule!r} makes {count} of"
    return "data: there is nothing to split in"


def _shuffled(groups: Splits, fractions: Mapping[str, float], seed: int) -> Sides:
    """The side of each group that is held out."""
    keys = sorted(groups)
    random.Random(seed_for(seed, "split")).shuffle(keys)
    sides: Sides = {}
    waiting = len(fractions)
    for side, fraction in fractions.items():
        waiting -= 1
        most = len(keys) - 1 - waiting  # one is left to train on, and one for each side to come
        count = min(most, max(1, round(len(groups) * fraction)))
        sides.update(dict.fromkeys(keys[:count], side))
        keys = keys[count:]
    return sides


def _stratified(groups: Splits, fractions: Mapping[str, float], seed: int, holds: Holds) -> Sides:
    """The best of some draws: none, or few, of the classes that have a group for every side are
    absent from one.

    Whether it can be done for all classes at once is not known beforehand: groups hold several.
    """
    classes = {key: frozenset().union(*map(holds, names)) for key, names in groups.items()}
    shares = {"train": 1 - fractions["validation"] - fractions.get("test", 0), **fractions}
    best: Sides = {}
    fewest = None
    for attempt in range(_ATTEMPTS):
        sides = _dealt(classes, shares, seed_for(seed, "split", attempt))
        absent = _absent(sides, classes, len(shares))
        if fewest is None or absent < fewest:
            best, fewest = sides, absent
        if not absent:
            break
    return best


def _dealt(classes: Mapping[str, Set[int]], shares: Mapping[str, float], seed: int) -> Sides:
    """Groups dealt to sides, the rarest class first, each to the side that lacks it most (Sechidis
    et al. 2011).

    A class of fewer groups than sides cannot be spread and does not count; groups without another
    are dealt last. No side stays empty.
    """
    keys = sorted(classes)
    random.Random(seed).shuffle(keys)
    counts = _groups_of(classes)
    spread, left = {}, {}
    for key in keys:
        common = {c for c in classes[key] if counts[c] >= len(shares)} or {_NONE}
        spread[key] = {*common, _ANY}
        for c in spread[key]:
            left.setdefault(c, []).append(key)
    wanted = {(side, c): share * len(left[c]) for side, share in shares.items() for c in left}
    there: Counter[tuple[str, int]] = Counter()
    sides: Sides = {}
    while left:
        rarest = min(left, key=lambda c: (c >= _NONE, len(left[c]), c))
        for n, key in enumerate(left[rarest]):
            allowed = list(shares)
            for c, to_come in ((rarest, len(left[rarest]) - n), (_ANY, len(keys) - len(sides))):
                lacking = [side for side in shares if not there[side, c]]
                if to_come <= len(lacking):
                    allowed = lacking
            side = max(allowed, key=lambda s: (wanted[s, rarest], wanted[s, _ANY]))
            sides[key] = side
            for c in spread[key]:
                there[side, c] += 1
                wanted[side, c] -= 1
        left = _undealt(left, sides)
    return sides


def _undealt(left: Mapping[int, list[str]], sides: Sides) -> dict[int, list[str]]:
    rest: dict[int, list[str]] = {}
    for c, members in left.items():
        for key in members:
            if key not in sides:
                rest.setdefault(c, []).append(key)
    return rest


def _absent(sides: Sides, classes: Mapping[str, Set[int]], count: int) -> int:
    """How many classes that might be on each of `count` sides are not, on all sides together."""
    there = {(side, c) for key, side in sides.items() for c in classes[key]}
    on_sides = Counter(c for _, c in there)
    groups = _groups_of(classes)
    return sum(count - on_sides[c] for c, n in groups.items() if n >= count)


def _groups_of(classes: Mapping[str, Set[int]]) -> Counter[int]:
    """In how many groups each class occurs."""
    return Counter(c for held in classes.values() for c in held)


def _groups(names: list[str], cfg: Data) -> Splits:
    """Names by group; without a rule every image is a group of its own."""
    groups: Splits = {}
    listed = None
    if cfg.group_file is not None:
        listed = _listed(Path(cfg.group_file).expanduser(), names)
    for name in names:
        stem = _stem(name)
        group = listed[stem] if listed else _group(stem, cfg.group)
        groups.setdefault(group, []).append(name)
    return groups


def _stem(name: str) -> str:
    return name.rpartition("/")[2]


def _group(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise ConfigError("data.group", pattern, "a regular expression", str(error)) from None
    part = found and found.group(min(1, found.re.groups))
    if part is None:
        says = f"data.group: {pattern!r} does not match the name {name!r}."
        raise DataError(says, "Every image needs a group.")
    return part


def _listed(path: Path, names: list[str]) -> dict[str, str]:
    """The group of each image by a CSV with the columns name and group; names are those of the
    files, without suffix.
    """
    allowed = "a CSV file with the columns name and group"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError("data.group_file", str(path), allowed, str(error)) from None
    if not rows or not {"name", "group"} <= rows[0].keys():
        has = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise ConfigError("data.group_file", str(path), allowed, f"It has {has}.")
    groups: dict[str, str] = {}
    for row in rows:
        if groups.setdefault(row["name"], row["group"]) != row["group"]:
            raise DataError(f"{path}: {row['name']!r} is in two groups.", "Name each image once.")
    missing = [name for name in names if not groups.get(_stem(name))]
    if missing:
        hint = "Every image needs a row with name and group."
        raise DataError(f"{path}: no group for {_some(missing)}.", hint)
    return groups


def _from_file(path: Path, names: Set[str], dropped: Set[str]) -> Splits:
    """The split that a file names, as a run keeps it in `split.json`. All images must be in it,
    each once.
    """
    splits = _read(path)
    times = Counter(str(name) for side in splits.values() for name in side)
    wrong = {
        "there is no image": sorted(times.keys() - names - dropped),
        "more than once:": sorted(name for name, n in times.items() if n > 1),
        "on no side:": sorted(names - times.keys()),
        "empty:": [side for side in SPLITS[:2] if not splits.get(side)],
    }
    problems = [f"{what} {_some(which)}" for what, which in wrong.items() if which]
    if problems:
        hint = "Mend the file, or let the split be drawn."
        raise DataError(f"{path}: {'; '.join(problems)}.", hint)
    return {side: [name for name in splits.get(side, ()) if name in names] for side in SPLITS}


def _read(path: Path) -> Splits:
    try:
        splits = json_of(path.read_text(encoding="utf-8"))
        if not isinstance(splits, dict) or not splits.keys() <= set(SPLITS):
            raise ValueError("it does not name train, validation and test")
        return {side: list(names) for side, names in splits.items()}
    except (OSError, ValueError, TypeError) as error:
        hint = "Give a run's split.json: train, validation and test, each a list of names."
        allowed = "a JSON file with a split"
        raise ConfigError("data.split_file", str(path), allowed, f"{error}. {hint}") from None


def _some(names: list[str]) -> str:
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ---------------------------------------------------------------------- rare images


def rarity(pixels: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """How rare each image is, of pixels by image and class: images in all, over images that hold
    the rarest of its classes.

    The image's repeat factor of Gupta et al. 2019, without its root and threshold. Raises
    ConfigError where all are alike.
    """
    holders = _groups_of({name: counts.keys() for name, counts in pixels.items()})
    weights = {}
    for name, counts in pixels.items():
        weights[name] = max((len(pixels) / holders[c] for c in counts), default=1.0)
    if len(set(weights.values())) == 1:
        allowed = "'shuffle': rarity has no effect on these images"
        hint = "Every training image holds classes as common as every other's."
        raise ConfigError("data.sampler", "rarity", allowed, hint)
    return weights


def drawn_by(weights: Mapping[str, float], seed: int) -> list[str]:
    """As many names as there are, drawn with replacement by their weights; their order in `weights`
    does not matter.
    """
    names = sorted(weights)
    return random.Random(seed).choices(names, [weights[name] for name in names], k=len(names))
