"""Which images are trained on and which are held out: by folder, by file, or drawn from names and a
seed; and how often rare ones are shown.
"""

import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from itertools import chain, compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vitseg.data.folder import SPLITS
from vitseg.draws import seed_for
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data
from vitseg.words import json_of

_ATTEMPTS = 64
_DRAWN = {"group", "group_file", "stratify", "validation_fraction", "test_fraction", "split_seed"}

T = TypeVar("T")
Splits = dict[str, list[str]]

Holds = Callable[[str], Collection[int]]
"""The classes that an image holds, by its name."""


def splits_of(
    images: Mapping[str, Any], cfg: Data, holds: Holds, dropping: Set[int] = frozenset()
) -> Splits:
    """The names of train, validation and test, without the images that hold, as they are stored, a
    class of `dropping`; these may stand in a split file. The `split` of an image is the folder that
    it lies in, if it is one of these.

    Raises DataError or ConfigError where they cannot be split as `cfg` says.
    """
    every = images.keys()
    if dropping:  # generated images are drawn to be counted
        images = {name: i for name, i in images.items() if dropping.isdisjoint(i.counts())}
    if cfg.split_file is not None:
        return _from_file(Path(cfg.split_file).expanduser(), images.keys(), every)
    given = {side: [name for name, i in images.items() if i.split == side] for side in SPLITS}
    if not any(given.values()):
        return random_split(list(images), cfg, holds)
    if not given["train"]:
        raise DataError(
            f"{cfg.source.path}: train/ holds no images.", "Put images and masks into train/."
        )
    for side, fields in (("validation", _DRAWN), ("test", {"test_fraction"})):
        idle = cfg.model_dump(include=fields, exclude_defaults=True)
        if given[side] and idle:
            field, value = idle.popitem()
            raise ConfigError(
                f"data.{field}", value, "its default", f"The folder has a {side}/ of its own."
            )
    if given["validation"]:
        return given
    drawn = random_split(given["train"], cfg, holds)
    return drawn | {"test": given["test"] or drawn["test"]}


def random_split(names: list[str], cfg: Data, holds: Holds) -> Splits:
    """Validation and test get their fractions of the groups; without groups every image is one of
    its own.

    Stratified, classes keep their shares on all sides as well as can be, groups staying whole.
    """
    validation, test = cfg.validation_fraction, cfg.test_fraction
    shares = list(filter(None, (1 - validation - test, validation, test)))
    groups, seed = _groups(names, cfg, len(shares)), cfg.split_seed
    if cfg.stratify:
        sides = _stratified(groups, shares, seed, holds)
    else:
        order, start = shuffled(range(len(groups)), seed, "split"), 0
        sides = np.zeros(len(groups), int)
        for side, share in enumerate(shares[1:], start=1):
            left = len(groups) - len(shares) + side  # one at least for every side to come
            stop = min(start + max(1, round(len(groups) * share)), left)
            sides[order[start:stop]] = side
            start = stop
    return {
        side: sorted(chain(*compress(groups, sides == number)))
        for number, side in enumerate(SPLITS)
    }


def shuffled(items: Iterable[T], *purpose: object) -> list[T]:
    """In an order that depends on the purpose alone."""
    found = list(items)
    random.Random(seed_for(*purpose)).shuffle(found)
    return found


def _stratified(
    groups: list[list[str]], shares: list[float], seed: int, holds: Holds
) -> np.ndarray:
    """The best of some draws: none, or few, of the classes that have a group for every side are
    absent from one.

    Whether it can be done for all classes at once is not known beforehand: groups hold several.
    """
    held = np.zeros((len(groups), 256), bool)
    for row, members in zip(held, groups, strict=True):
        row[list(chain(*map(holds, members)))] = True
    held = held[:, held.sum(0) >= len(shares)]
    best, fewest = None, np.inf
    for attempt in range(_ATTEMPTS):
        order = np.array(shuffled(range(len(groups)), seed, "split", attempt))
        sides = _dealt(held, shares, order)
        absent = sum((~held[sides == side].any(0)).sum() for side in range(len(shares)))
        if absent < fewest:
            best, fewest = sides, absent
        if not absent:
            break
    return best


def _dealt(held: np.ndarray, shares: list[float], order: np.ndarray) -> np.ndarray:
    """The side of each group; `held` (groups, classes) bool says which classes it holds.

    The rarest class is dealt first, each of its groups, in their `order`, to the side that lacks it
    most (Sechidis et al. 2011), and groups without a class last. No side stays empty.
    """
    sides = np.full(len(held), -1)
    nothing, anything = -2, -1  # more columns
    held = np.column_stack([held, ~held.any(1), np.full(len(held), True)])
    asked = np.outer(shares, held.sum(0))
    wanted = asked.copy()
    while (sides < 0).any():
        left = held[sides < 0].sum(0)
        rarest = min(np.flatnonzero(left[:nothing]), key=left.item, default=nothing)
        due = held[:, rarest] & (sides < 0)
        for group in order[due[order]]:
            allowed = range(len(shares))
            for c in (rarest, anything):
                lacking = np.flatnonzero(wanted[:, c] == asked[:, c])
                if held[sides < 0, c].sum() <= len(lacking):
                    allowed = lacking
            sides[group] = max(allowed, key=lambda s: (wanted[s, rarest], wanted[s, anything]))
            wanted[sides[group]] -= held[group]
    return sides


def _groups(names: list[str], cfg: Data, at_least: int) -> list[list[str]]:
    """The names of each group; without a rule every image is a group of its own."""
    try:
        pattern = re.compile("(?s).+" if cfg.group is None else cfg.group)
    except re.error as error:
        raise ConfigError("data.group", cfg.group, "a regular expression", str(error)) from None
    listed = _listed(Path(cfg.group_file)) if cfg.group_file else {}
    groups = defaultdict(list)
    for name in names:
        stem = name.rpartition("/")[2]
        match = pattern.search(stem)
        group = match[min(1, pattern.groups)] if match else None
        if cfg.group_file:
            group = listed.get(stem) or None
        groups[group].append(name)
    rule = (
        f"data: group={cfg.group!r}, group_file={cfg.group_file!r}, "
        f"classes.drop_images_with={cfg.classes.drop_images_with}"
    )
    if None in groups:
        raise DataError(f"{rule}: no group for {_some(groups[None])}.", "Every image needs one.")
    if len(groups) < at_least:
        says = f"{rule}: {len(names)} image(s) in {len(groups)} group(s) cannot be split."
        raise DataError(says, f"Give at least {at_least} images, or groups.")
    return [members for _, members in sorted(groups.items())]


def _listed(path: Path) -> dict[str, str]:
    """The group of each image by a CSV with the columns name and group; names are those of the
    files, without suffix.
    """
    groups = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if groups.setdefault(row["name"], row["group"]) != row["group"]:
                    raise ValueError(f"{row['name']!r} in two groups")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        allowed = "a CSV file with the columns name and group, each name once"
        raise ConfigError("data.group_file", str(path), allowed, f"{error}.") from None
    return groups


def _from_file(path: Path, names: Set[str], known: Set[str]) -> Splits:
    """The split that a file names, as a run keeps it in `split.json`. All images must be in it,
    each once.
    """
    try:
        given = dict(json_of(path.read_text("utf-8")))
        splits = {side: list(map(str, given.get(side, ()))) for side in SPLITS}
    except (OSError, ValueError, TypeError) as error:
        allowed = "a run's split.json: train, validation and test, each a list of names"
        raise ConfigError("data.split_file", str(path), allowed, f"{error}.") from None
    times = Counter(chain.from_iterable(splits.values()))
    wrong = {
        "there is no split": given.keys() - splits.keys(),
        "there is no image": times.keys() - known,
        "more than once:": times - Counter(list(times)),
        "on no side:": names - times.keys(),
        "empty:": {side for side in SPLITS[:2] if not splits[side]},
    }
    problems = [f"{what} {_some(which)}" for what, which in wrong.items() if which]
    if problems:
        hint = "Correct the file, or let the split be drawn."
        raise DataError(f"{path}: {'; '.join(problems)}.", hint)
    return {side: [name for name in splits[side] if name in names] for side in SPLITS}


def _some(names: Collection[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


# ---------------------------------------------------------------------- rare images


def rarity(pixels: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """How rare each image is, of pixels by image and class: images in all, over images that hold
    the rarest of its classes.

    The image's repeat factor of Gupta et al. 2019, without its root and threshold. Raises
    ConfigError where all are alike.
    """
    holders = Counter(chain.from_iterable(pixels.values()))
    n = len(pixels)
    weights = {name: n / min(map(holders.get, held), default=n) for name, held in pixels.items()}
    if len(set(weights.values())) == 1:
        allowed = "'shuffle': rarity has no effect on these images"
        hint = "Every training image holds classes as common as every other's."
        raise ConfigError("data.sampler", "rarity", allowed, hint)
    return weights


def drawn_by(weights: Mapping[str, float], seed: int) -> list[str]:
    """As many names as there are, drawn with replacement by their weights; their order in `weights`
    does not matter.
    """
    names, shares = zip(*sorted(weights.items()), strict=True)
    return random.Random(seed).choices(names, shares, k=len(names))
