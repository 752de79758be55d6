"""A data set looked at as a careful researcher would: everything that is wrong, and what is worth
knowing, in one go.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vitseg.data.folder import Finding, Watch, ranked, scan
from vitseg.data.masks import class_map, recounted
from vitseg.data.splits import splits_of
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data, Folder
from vitseg.words import shown

TINY = 28
"""Pixels on the shorter side, below which an image is hardly two patches of a ViT."""


class ClassCount(NamedTuple):
    """A class in the whole masks: in how many images it occurs, and how many pixels hold it, by
    split.
    """

    name: str
    images: Counter[str]
    pixels: Counter[str]


class Check:
    """A folder's scan, split and counted as `cfg` says. Raises DataError where there is no data set
    to look at.

    `findings` are problems, which stop a training or leave pairs out, warnings, which spoil what it
    says, and notes, which are worth knowing. Of `found` pairs `whole` have no problem, by name;
    `splits` is the number of images in each split among them. `together[i][j]` is in how many
    images classes i and j both occur. `masks` says how they store classes; where no code fits them,
    `map` is None, and no class is counted. `image_of` is the image of each mask.
    """

    problems, warnings, notes = ranked("problem"), ranked("warning"), ranked("note")

    def __init__(self, cfg: Data, watch: Watch = iter):
        if not isinstance(cfg.source, Folder):
            raise ConfigError(
                "data.source", cfg.source, "a folder", "Generated images need no check."
            )
        found = scan(cfg.source, watch)
        self.root, self.found, self.findings = found.root, len(found.pairs), found.findings
        self.image_of = {pair.mask: pair.image for pair in found.pairs}
        self.whole = {pair.name: pair for pair in found.whole}
        self.map, self.masks, dropping = None, "no code fits them", set()
        self._counts = defaultdict(dict)
        if found.code:
            self.map = class_map(found.code, cfg.classes)
            self.masks, dropping = self.map.description, self.map.dropping
            for name, pair in self.whole.items():
                self._counts[name] = recounted(pair.counts(), self.map.table)
        try:
            splits = splits_of(self.whole, cfg, lambda name: self._counts[name], dropping)
        except DataError as error:
            splits = {"all": self.whole}
            self.findings.append(Finding("cannot be split", self.root, str(error)))
        side_of = {name: split for split, names in splits.items() for name in names}
        self.whole = {name: pair for name, pair in self.whole.items() if name in side_of}
        for name, pair in self.whole.items():
            pair.split = side_of[name]
        self.splits = Counter(side_of.values())
        self._count_classes()
        self.findings += [*self._twice(), *self._absent_and_notes()]

    def _count_classes(self) -> None:
        names = self.map.classes if self.map else ()
        self.classes = [ClassCount(name, Counter(), Counter()) for name in names]
        together = np.zeros((len(names), len(names)), int)
        for name, pair in self.whole.items():
            counts = self._counts[name]
            together[np.ix_(list(counts), list(counts))] += 1
            for i, pixels in counts.items():
                self.classes[i].images[pair.split] += 1
                self.classes[i].pixels[pair.split] += pixels
        self.together = together.tolist()

    def _twice(self) -> Iterator[Finding]:
        """Images whose pixels are the same: across splits the scores are no scores."""
        alike = defaultdict(list)
        for pair in self.whole.values():
            alike[pair.image_scan.pixels].append(pair)
        for first, *others in alike.values():
            if others:
                kind, end = "same image twice", "on one side"
                if {pair.split for pair in others} != {first.split}:
                    kind, end = "same image in two splits", "so that it is trained on and scored"
                listed = " and ".join(f"{shown(pair.image)} ({pair.split})" for pair in others)
                says = f"in {first.split}, with the same pixels as {listed}, {end}."
                yield Finding(kind, first.image, says, "warning")

    def _absent_and_notes(self) -> Iterator[Finding]:
        """Classes that a split lacks: not trained, or not scored. Then what is worth knowing of an
        image.
        """
        for row in self.classes:
            lacking = [split for split in self.splits if split not in row.images]
            if lacking:
                says = f"class {row.name!r} occurs in no mask of {' and '.join(lacking)}."
                yield Finding("class absent", self.root, says, "warning")
        for name, pair in self.whole.items():
            if self.map and not self._counts[name]:
                yield Finding("all ignored", pair.mask, "every pixel is ignored.", "note")
            elif self._counts[name].keys() == {0}:
                yield Finding("no foreground", pair.mask, "background alone.", "note")
            height, width = pair.size
            if min(height, width) < TINY:
                says = f"{width}x{height} pixels, hardly more than a patch."
                yield Finding("tiny", pair.image, says, "note")
