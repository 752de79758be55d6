"""Which images are trained on and which are held out: by folder, by file, or drawn from names and a
seed.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from vitseg.data.pairs import SPLITS
from vitseg.draws import seed_for
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data
from vitseg.words import json_of

_ATTEMPTS, _NONE = 64, -1

Splits = dict[str, list[str]]
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
    names = list(placed)
    if cfg.split_file is not None:
        return _from_file(Path(cfg.split_file).expanduser(), names, dropped)
    given = {side: [name for name, place in placed.items() if place == side] for side in SPLITS}
    if not any(given.values()):
        return random_split(names, cfg, holds)
    if not given["train"]:
        raise DataError(
            f"{cfg.source.path}: train/ holds no images.", "Put images and masks into train/."
        )
    drawn = (
        "group",
        "group_file",
        "stratify",
        "validation_fraction",
        "test_fraction",
        "split_seed",
    )
    for side, fields in {"validation": drawn, "test": ("test_fraction",)}.items():
        changed = [f for f in fields if getattr(cfg, f) != Data.model_fields[f].default]
        if given[side] and changed:
            default = str(Data.model_fields[changed[0]].default)
            mend = f"The folder has a {side}/ of its own."
            raise ConfigError(f"data.{changed[0]}", getattr(cfg, changed[0]), default, mend)
    if given["validation"]:
        return given
    drawn_anew = random_split(given["train"], cfg, holds)
    return drawn_anew | {"test": given["test"] or drawn_anew["test"]}


def random_split(names: list[str], cfg: Data, holds: Holds) -> Splits:
    """Validation and test get their fractions of the groups; without groups every image is one of
    its own.

    Stratified, classes keep their shares on all sides as well as can be, groups staying whole.
    """
    groups = _groups(names, cfg)
    fractions = {"validation": cfg.validation_fraction, "test": cfg.test_fraction}
    sides = [side for side, fraction in fractions.items() if fraction]
    if len(groups) <= len(sides):
        count = "one group" if len(groups) == 1 else f"{len(groups)} groups"
        rules = {"group": cfg.group, "group_file": cfg.group_file}
        by = next(
            (
                f"data.{field}: {rule!r} makes {count} of"
                for field, rule in rules.items()
                if rule is not None
            ),
            "",
        )
        what = by or "data: there is nothing to split in"
        raise DataError(
            f"{what} {len(names)} image(s).", f"Give at least {len(sides) + 1} images, or groups."
        )
    held_out = _stratified(groups, cfg, holds) if cfg.stratify else _shuffled(groups, cfg, sides)
    side_of = {key: side for side, keys in held_out.items() for key in keys}
    return {
        side: sorted(n for k in groups if side_of.get(k, "train") == side for n in groups[k])
        for side in SPLITS
    }


def _shuffled(groups: Splits, cfg: Data, sides: list[str]) -> Splits:
    """The groups that each side holds out."""
    keys = sorted(groups)
    random.Random(seed_for(cfg.split_seed, "split")).shuffle(keys)
    held_out, free = {}, len(keys) - 1  # one is left to train on
    for n, side in enumerate(sides):
        fraction = cfg.test_fraction if side == "test" else cfg.validation_fraction
        most = free - (len(sides) - 1 - n)
        count = min(most, max(1, round(len(groups) * fraction)))
        held_out[side], keys, free = keys[:count], keys[count:], free - count
    return held_out


def _stratified(groups: Splits, cfg: Data, holds: Holds) -> Splits:
    """The best of some draws: none, or few, of the classes that have a group for every side are
    absent from one.

    Whether it can be done for all classes at once is not known beforehand: groups hold several.
    """
    shares = {
        "train": 1 - cfg.validation_fraction - cfg.test_fraction,
        "validation": cfg.validation_fraction,
    }
    shares |= {"test": cfg.test_fraction} if cfg.test_fraction else {}
    classes = {key: frozenset().union(*map(holds, names)) for key, names in groups.items()}
    drawn = (
        _dealt(classes, shares, seed_for(cfg.split_seed, "split", attempt))
        for attempt in range(_ATTEMPTS)
    )
    best, fewest = None, None
    for dealt in drawn:
        absent = _absent(dealt, classes)
        if fewest is None or absent < fewest:
            best, fewest = dealt, absent
        if not absent:
            break
    return best


def _dealt(classes: Mapping[str, Set[int]], shares: Mapping[str, float], seed: int) -> Splits:
    """Groups dealt to sides, the rarest class first, each to the side that lacks it most (Sechidis
    et al. 2011).

    A class of fewer groups than sides cannot be spread and does not count; groups without another
    are dealt last. No side stays empty.
    """
    keys = sorted(classes)
    random.Random(seed).shuffle(keys)
    counts = Counter(c for key in keys for c in classes[key])
    spread = {key: {c for c in classes[key] if counts[c] >= len(shares)} or {_NONE} for key in keys}
    left = {
        c: [key for key in keys if c in spread[key]] for c in frozenset().union(*spread.values())
    }
    wanted = {
        side: {c: share * len(members) for c, members in left.items()}
        for side, share in shares.items()
    }
    room = {side: share * len(keys) for side, share in shares.items()}
    dealt: Splits = {side: [] for side in shares}
    undealt = set(keys)
    while undealt:
        left = {
            c: rest for c, members in left.items() if (rest := [k for k in members if k in undealt])
        }
        rarest = min(left, key=lambda c: (c == _NONE, len(left[c]), c))
        for n, key in enumerate(left[rarest]):
            lacking = [s for s in shares if not any(rarest in spread[k] for k in dealt[s])]
            empty = [s for s in shares if not dealt[s]]
            must = lacking if len(left[rarest]) - n <= len(lacking) else list(shares)
            must = empty if len(undealt) <= len(empty) else must
            side = max(must, key=lambda s: (wanted[s][rarest], room[s]))
            dealt[side].append(key)
            undealt.remove(key)
            room[side] -= 1
            for c in spread[key]:
                wanted[side][c] -= 1
    return dealt


def _absent(dealt: Splits, classes: Mapping[str, Set[int]]) -> int:
    """How many classes that might be on every side are not."""
    found = [frozenset().union(*(classes[k] for k in keys)) for keys in dealt.values()]
    counts = Counter(c for held in classes.values() for c in held)
    return sum(c not in held for c, n in counts.items() if n >= len(dealt) for held in found)


def _groups(names: list[str], cfg: Data) -> Splits:
    """Names by group; without a rule every image is a group of its own."""
    listed = (
        _listed(Path(cfg.group_file).expanduser(), names) if cfg.group_file is not None else None
    )
    groups: Splits = {}
    for name in names:
        stem = name.rpartition("/")[2]
        groups.setdefault(listed[stem] if listed else _group(stem, cfg.group), []).append(name)
    return groups


def _group(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise ConfigError("data.group", pattern, "a regular expression", str(error)) from None
    part = found and (found.group(1) if found.re.groups else found.group())
    if part is None:
        raise DataError(
            f"data.group: {pattern!r} does not match the name {name!r}.",
            "Every image needs a group.",
        )
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
    if missing := [name for name in names if not groups.get(name.rpartition("/")[2])]:
        raise DataError(
            f"{path}: no group for {_some(missing)}.",
            "Every image needs a row with name and group.",
        )
    return groups


def _from_file(path: Path, names: list[str], dropped: Set[str]) -> Splits:
    """The split that a file names, as a run keeps it in `split.json`. All images must be in it,
    each once.
    """
    mend = "Give a run's split.json: train, validation and test, each a list of names."
    try:
        splits = json_of(path.read_text(encoding="utf-8"))
        if not isinstance(splits, dict) or not splits.keys() <= set(SPLITS):
            raise ValueError("it does not name train, validation and test")
        listed = [name for side in splits.values() for name in side]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            "data.split_file", str(path), "a JSON file with a split", f"{error}. {mend}"
        ) from None
    times, known = Counter(map(str, listed)), set(names)
    wrong = {
        "there is no image": sorted(times.keys() - known - dropped),
        "more than once:": sorted(name for name, n in times.items() if n > 1),
        "on no side:": sorted(known - times.keys()),
        "empty:": [side for side in ("train", "validation") if not splits.get(side)],
    }
    if problems := [f"{what} {_some(which)}" for what, which in wrong.items() if which]:
        raise DataError(
            f"{path}: {'; '.join(problems)}.", "Mend the file, or let the split be drawn."
        )
    return {side: [name for name in splits.get(side, ()) if name in known] for side in SPLITS}


def _some(names: list[str]) -> str:
    shown = ", ".join(json.dumps(n, ensure_ascii=False) for n in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
