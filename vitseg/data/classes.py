"""What becomes of the classes that masks hold: merged, renamed, ignored, or their images left
out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vitseg.errors import ConfigError
from vitseg.images import IGNORE
from vitseg.settings import Classes


@dataclass(frozen=True, slots=True)
class ClassMap:
    """From the class ids of the masks to those that are trained.

    `classes` are the new names, `table` (256,) uint8 the new id of every old one, IGNORE where its
    pixels count nowhere. Images that hold one of `dropping`, old ids, are left out. `foreground`
    are the new ids that binary mode looks for.
    """

    classes: tuple[str, ...]
    table: np.ndarray
    dropping: frozenset[int]
    foreground: tuple[int, ...]
    description: str

    def ids(self, old: np.ndarray) -> np.ndarray:
        """New class ids of old ones (h, w) uint8."""
        return self.table[old]

    def counts(self, old: Mapping[int, int]) -> dict[int, int]:
        """Pixels by new class id, ignored ones left out, of pixels by old id."""
        new: dict[int, int] = {}
        for i, pixels in old.items():
            if (to := int(self.table[i])) != IGNORE:
                new[to] = new.get(to, 0) + pixels
        return new

    def binary_counts(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Pixels of background and foreground, of pixels by new class id."""
        both = [
            sum(n for i, n in counts.items() if (i in self.foreground) is side)
            for side in (False, True)
        ]
        return {i: n for i, n in enumerate(both) if n}

    def keeps(self, old: Iterable[int]) -> bool:
        """Whether an image with these old ids stays."""
        return self.dropping.isdisjoint(old)

    def binary_ids(self) -> np.ndarray:
        """(256,) int64: 1 for the new ids of the foreground, 0 for the others, IGNORE for
        IGNORE.
        """
        table = np.zeros(256, dtype=np.int64)
        table[list(self.foreground)], table[IGNORE] = 1, IGNORE
        return table

    def binary_classes(self) -> tuple[str, str]:
        """Names of the two classes of binary mode."""
        ground = [name for i, name in enumerate(self.classes) if i not in self.foreground]
        looked_for = [self.classes[i] for i in self.foreground]
        return ground[0] if len(ground) == 1 else "background", looked_for[0] if len(
            looked_for
        ) == 1 else "foreground"


def class_map(names: tuple[str, ...], cfg: Classes) -> ClassMap:
    """What `cfg` makes of the classes `names`. Raises ConfigError for a name that is not among
    them.
    """
    for n, merge in enumerate(cfg.merge):
        _known(f"data.classes.merge.{n}.classes", merge.classes, names)
    _known("data.classes.ignore", cfg.ignore, names)
    _known("data.classes.drop_images_with", cfg.drop_images_with, names)
    merged = {old: merge.into for merge in cfg.merge for old in merge.classes}
    gone = {*cfg.ignore, *cfg.drop_images_with}
    new_of = {name: merged.get(name, name) for name in names if name not in gone}
    classes = tuple(dict.fromkeys(new_of.values()))
    if len(classes) < 1 + (cfg.foreground is not None):
        raise ConfigError(
            "data.classes",
            cfg.model_dump(exclude_defaults=True),
            "settings that leave some of the classes",
        )
    if clash := [new for new in merged.values() if new_of.get(new) == new and new not in merged]:
        mend = "Merge that class as well, or choose another name."
        raise ConfigError("data.classes.merge", clash[0], "a name that no other class keeps", mend)
    table = np.full(256, IGNORE, dtype=np.uint8)
    for i, name in enumerate(names):
        if name in new_of:
            table[i] = classes.index(new_of[name])
    foreground = cfg.foreground if cfg.foreground is not None else classes[1:]
    _known("data.classes.foreground", foreground, classes)
    if len(foreground) == len(classes):
        raise ConfigError(
            "data.classes.foreground",
            foreground,
            "some of the classes, not all: nothing would be background",
        )
    dropping = frozenset(names.index(name) for name in cfg.drop_images_with)
    return ClassMap(
        classes, table, dropping, tuple(sorted(map(classes.index, foreground))), _in_words(cfg)
    )


def _known(field: str, given: tuple[str, ...], names: tuple[str, ...]) -> None:
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(
                field, name, ", ".join(names), f"Did you mean {close[0]!r}?" if close else ""
            )


def _in_words(cfg: Classes) -> str:
    """What was done, for people; "" where nothing was."""
    said = [f"{' + '.join(merge.classes)} = {merge.into}" for merge in cfg.merge]
    said += [f"{' and '.join(cfg.ignore)} ignored"] if cfg.ignore else []
    said += (
        [f"images with {' or '.join(cfg.drop_images_with)} left out"]
        if cfg.drop_images_with
        else []
    )
    said += [f"foreground: {', '.join(cfg.foreground)}"] if cfg.foreground else []
    return "; ".join(said)
