"""A data set looked at as a careful researcher would: everything that is wrong, and what is worth
knowing, in one go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitseg.data.folder import Finding, Look, Scan, Watch, of_rank, scan, unwatched
from vitseg.data.masks import ClassMap, class_map, read_raw
from vitseg.data.splits import Splits, splits_of
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data, Folder
from vitseg.words import shown

TINY = 28
"""Pixels on the shorter side, below which an image is hardly two patches of a ViT."""

Counts = Mapping[str, Mapping[int, int]]
"""Pixels of each class, by image."""


class ClassCount(NamedTuple):
    """A class in the whole masks: in how many images it occurs, and how many pixels hold it, by
    split.
    """

    name: str
    images: Counter[str]
    pixels: Counter[str]


@dataclass(frozen=True, slots=True)
class Check:
    """What a scan found, and what follows from it. `findings` are problems, which stop a training
    or leave pairs out, then warnings, which spoil what it says, and notes, which are worth knowing.

    `whole` are the pairs without a problem, by name, and `splits` the images of each split among
    them; `masks` says how their classes are stored. `together[i][j]` is in how many images classes
    i and j both occur. `kinds` is None where no code fits the masks.
    """

    scan: Scan
    kinds: ClassMap | None
    whole: dict[str, Look]
    masks: str
    splits: dict[str, int]
    findings: list[Finding]
    classes: list[ClassCount]
    together: list[list[int]]

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
        return self.kinds.table[self.scan.code.decode(read_raw(self.whole[name].pair.mask))]

    def to_dict(self) -> dict[str, Any]:
        """Strings and numbers, for JSON."""
        said: dict[str, list[dict[str, str]]] = {"problems": [], "warnings": [], "notes": []}
        for found in self.findings:
            words = {"kind": found.kind, "path": shown(found.path), "says": found.says}
            said[f"{found.rank}s"].append(words)
        return {
            "folder": shown(self.scan.root),
            "pairs": len(self.scan.looks),
            "whole": len(self.whole),
            "masks": self.masks,
            "splits": self.splits,
            **said,
            "classes": [row._asdict() for row in self.classes],
            "together": self.together,
        }


def check_data(cfg: Data, watch: Watch = unwatched) -> Check:
    """Look at every image and mask of a folder, split as `cfg` says. Raises DataError where there
    is no data set to look at.
    """
    if not isinstance(cfg.source, Folder):
        raise ConfigError("data.source", cfg.source, "a folder", "Generated images need no check.")
    found = scan(cfg.source, watch)
    findings, kinds, masks, dropped = found.findings, None, "no code fits them", set()
    whole = {look.pair.name: look for look in found.whole}
    counts: dict[str, dict[int, int]] = {name: {} for name in whole}
    if found.code:
        kinds = class_map(found.code.classes, cfg.classes)
        masks = "; ".join(filter(None, (found.code.description, kinds.description)))
        for look in found.whole:
            name, stored = look.pair.name, found.code.counts(look.mask.counts)
            counts[name] = kinds.counts(stored)
            if not kinds.dropping.isdisjoint(stored):
                dropped.add(name)
                del whole[name]
    placed = {name: look.pair.split for name, look in whole.items()}
    try:
        splits = splits_of(placed, cfg, lambda name: counts[name].keys(), dropped)
    except DataError as error:
        splits = {"all": list(whole)}
        findings.append(Finding("cannot be split", found.root, str(error)))
    sizes = {split: len(names) for split, names in splits.items() if names}
    classes, together = [], []
    findings += _twice(whole, splits)
    if kinds:
        classes, together = _classes(counts, splits, kinds.classes)
        findings += _absent(classes, found.root)
        findings += _without_foreground(whole, counts)
    findings += _tiny(whole)
    return Check(found, kinds, whole, masks, sizes, findings, classes, together)


def _classes(
    counts: Counts, splits: Splits, names: tuple[str, ...]
) -> tuple[list[ClassCount], list[list[int]]]:
    classes = [ClassCount(name, Counter(), Counter()) for name in names]
    together = np.zeros((len(names), len(names)), int)
    for split, of_split in splits.items():
        for name in of_split:
            held = list(counts[name])
            together[np.ix_(held, held)] += 1
            for i, pixels in counts[name].items():
                classes[i].images[split] += 1
                classes[i].pixels[split] += pixels
    return classes, together.tolist()


def _twice(looks: Mapping[str, Look], splits: Splits) -> Iterator[Finding]:
    """Images whose pixels are the same: across splits the scores are no scores."""
    split_of = {name: split for split, names in splits.items() for name in names}
    alike: dict[str, list[str]] = {}
    for name, look in looks.items():
        alike.setdefault(look.image.pixels, []).append(name)
    for first, *others in alike.values():
        if others:
            kind, end = "same image twice", "on one side"
            if {split_of[name] for name in others} != {split_of[first]}:
                kind = "same image in two splits"
                end = "on both sides: what is scored was trained on"
            listed = [f"{shown(looks[name].pair.image)} ({split_of[name]})" for name in others]
            says = f"({split_of[first]}) has the same pixels as {' and '.join(listed)}, {end}."
            yield Finding(kind, looks[first].pair.image, says, "warning")


def _absent(classes: list[ClassCount], root: Path) -> Iterator[Finding]:
    """Classes that a split lacks: not trained, or not scored."""
    splits = sorted({split for row in classes for split in row.images})
    for row in classes:
        lacking = [split for split in splits if split not in row.images]
        if lacking:
            says = f"class {row.name!r} occurs in no mask of {' and '.join(lacking)}."
            yield Finding("class absent", root, says, "warning")


def _without_foreground(looks: Mapping[str, Look], counts: Counts) -> Iterator[Finding]:
    for name, look in looks.items():
        if not counts[name]:
            yield Finding("all ignored", look.pair.mask, "every pixel is ignored.", "note")
        elif counts[name].keys() == {0}:
            yield Finding("no foreground", look.pair.mask, "background alone.", "note")


def _tiny(looks: Mapping[str, Look]) -> Iterator[Finding]:
    for look in looks.values():
        height, width = look.image.size
        if min(height, width) < TINY:
            says = f"{width}x{height} pixels, hardly more than a patch."
            yield Finding("tiny", look.pair.image, says, "note")
