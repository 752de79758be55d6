"""A data set looked at as a careful researcher would: everything that is wrong, and what is worth
knowing, in one go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitseg.data.folder import (
    OF_A_PAIR,
    Finding,
    Look,
    Pair,
    Scan,
    Watch,
    finding,
    of_rank,
    scan,
    unwatched,
)
from vitseg.data.masks import ClassMap, MaskCode, class_map, read_raw
from vitseg.data.splits import Splits, splits_of
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data, Folder
from vitseg.words import shown

TINY = 28
"""Pixels on the shorter side, below which an image is hardly two patches of a ViT."""

Counts = Mapping[str, Mapping[int, int]]
"""Pixels of each class, by image."""


@dataclass(frozen=True, slots=True)
class ClassCount:
    """A class in the whole masks: in how many images it occurs, and how many pixels hold it, by
    split.
    """

    name: str
    images: dict[str, int] = field(default_factory=Counter)
    pixels: dict[str, int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Check:
    """`findings` are problems, which stop a training or leave pairs out, then warnings, which spoil
    what it says, and notes, which are worth knowing.

    `whole` are the pairs without a problem, by name, and `splits` the images of each split among
    them. `together[i][j]` is in how many images classes i and j both occur. `image_of` is the image
    of each mask.
    """

    root: Path
    found: int
    whole: dict[str, Pair]
    masks: str
    splits: dict[str, int]
    findings: list[Finding]
    classes: list[ClassCount]
    together: list[list[int]]
    code: MaskCode | None
    kinds: ClassMap | None
    image_of: dict[Path, Path]

    @property
    def problems(self) -> list[Finding]:
        return of_rank("problem", self.findings)

    @property
    def warnings(self) -> list[Finding]:
        return of_rank("warning", self.findings)

    @property
    def notes(self) -> list[Finding]:
        return of_rank("note", self.findings)

    def ids(self, name: str) -> np.ndarray | None:
        """Class ids (h, w) uint8 of a whole pair, as training would see them; None where no code
        fits the masks.
        """
        if self.kinds is None:
            return None
        return self.kinds.ids(self.code.decode(read_raw(self.whole[name].mask)))

    def to_dict(self) -> dict[str, Any]:
        """Strings and numbers, for JSON."""
        said = {}
        for rank in ("problem", "warning", "note"):
            said[f"{rank}s"] = [
                {"kind": found.kind, "path": shown(found.path), "says": found.says}
                for found in of_rank(rank, self.findings)
            ]
        classes = [{"name": c.name, "images": c.images, "pixels": c.pixels} for c in self.classes]
        return {
            "folder": shown(self.root),
            "pairs": self.found,
            "whole": len(self.whole),
            "masks": self.masks,
            "splits": self.splits,
            **said,
            "classes": classes,
            "together": self.together,
        }


def check_data(cfg: Data, watch: Watch = unwatched) -> Check:
    """Look at every image and mask of a folder, split as `cfg` says. Raises DataError where there
    is no data set to look at.
    """
    if not isinstance(cfg.source, Folder):
        raise ConfigError("data.source", cfg.source, "a folder", "Generated images need no check.")
    found = scan(cfg.source, watch)
    kinds = class_map(found.code.classes, cfg.classes) if found.code else None
    looks, counts, dropped = _counted(found, kinds)
    findings = [*found.findings]
    placed = {name: look.pair.split for name, look in looks.items()}
    try:
        splits = splits_of(placed, cfg, lambda name: counts[name].keys(), dropped)
    except DataError as error:
        splits = {"all": list(looks)}
        findings.append(Finding("cannot be split", found.root, str(error)))
    masks, classes, together = "no code fits them", [], []
    if kinds:
        masks = "; ".join(filter(None, (found.code.description, kinds.description)))
        classes, together = _classes(counts, splits, kinds.classes)
    findings += _twice(looks, splits)
    findings += _absent(classes, found.root)
    if kinds:
        findings += _without_foreground(counts, looks)
    findings += _tiny(looks)
    return Check(
        found.root,
        len(found.looks),
        {name: look.pair for name, look in looks.items()},
        masks,
        {split: len(names) for split, names in splits.items() if names},
        findings,
        classes,
        together,
        found.code,
        kinds,
        {pair.mask: pair.image for pair in found.pairs},
    )


def _counted(
    found: Scan, kinds: ClassMap | None
) -> tuple[dict[str, Look], dict[str, dict[int, int]], set[str]]:
    """The looks at whole pairs by name, the pixels of their classes, and the names of those that
    hold a class of `drop_images_with`.
    """
    looks, counts, dropped = {}, {}, set()
    for look in found.without(OF_A_PAIR).looks:
        name = look.pair.name
        held: dict[int, int] = {}
        if kinds:
            stored = found.code.counts(look.mask.counts)
            if not kinds.keeps(stored):
                dropped.add(name)
                continue
            held = kinds.counts(stored)
        looks[name], counts[name] = look, held
    return looks, counts, dropped


def _classes(
    counts: Counts, splits: Splits, names: tuple[str, ...]
) -> tuple[list[ClassCount], list[list[int]]]:
    classes = [ClassCount(name) for name in names]
    together = [[0] * len(names) for _ in names]
    for split, of_split in splits.items():
        for name in of_split:
            for i, pixels in counts[name].items():
                classes[i].images[split] += 1
                classes[i].pixels[split] += pixels
                for j in counts[name]:
                    together[i][j] += 1
    return classes, together


def _twice(looks: Mapping[str, Look], splits: Splits) -> Iterator[Finding]:
    """Images whose pixels are the same: across splits the scores are no scores."""
    split_of = {name: split for split, names in splits.items() for name in names}
    alike: dict[str, list[str]] = {}
    for name, look in looks.items():
        alike.setdefault(look.image.pixels, []).append(name)
    for names in alike.values():
        if len(names) > 1:
            kind, end = "same image twice", "on one side"
            if len({split_of[name] for name in names}) > 1:
                kind = "same image in two splits"
                end = "on both sides: what is scored was trained on"
            paths = [looks[name].pair.image for name in names]
            where = [f"{shown(p)} ({split_of[n]})" for p, n in zip(paths, names, strict=True)]
            says = f"{' and '.join(where)}: the same pixels, {end}."
            yield Finding(kind, paths[0], says, "warning")


def _absent(classes: list[ClassCount], root: Path) -> Iterator[Finding]:
    """Classes that a split lacks: not trained, or not scored."""
    splits = sorted({split for c in classes for split in c.images})
    for c in classes:
        lacking = [split for split in splits if split not in c.images]
        if lacking:
            says = f"class {c.name!r} occurs in no mask of {' and '.join(lacking)}."
            yield finding("class absent", root, says, "warning")


def _without_foreground(counts: Counts, looks: Mapping[str, Look]) -> Iterator[Finding]:
    for name, ids in counts.items():
        mask = looks[name].pair.mask
        if not ids:
            yield finding("all ignored", mask, "every pixel is ignored.", "note")
        elif ids.keys() == {0}:
            yield finding("no foreground", mask, "background alone.", "note")


def _tiny(looks: Mapping[str, Look]) -> Iterator[Finding]:
    for look in looks.values():
        height, width = look.image.size
        if min(height, width) < TINY:
            says = f"{width}x{height} pixels, hardly more than a patch."
            yield finding("tiny", look.pair.image, says, "note")
