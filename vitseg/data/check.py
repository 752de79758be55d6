"""A data set looked at as a careful researcher would: everything that is wrong, and what is worth
knowing, in one go.
"""

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from vitseg.data.folder import Scan
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


class Check(Scan):
    """A folder's scan, split and counted as `cfg` says. Raises DataError where there is no data set
    to look at.

    `findings` are problems, which stop a training or leave pairs out, warnings, which spoil what it
    says, and notes, which are worth knowing. Of `found` pairs `whole` have no problem, by name;
    `splits` is the number of images in each split among them. `together[i][j]` is in how many
    images classes i and j both occur. `masks` says how they store classes; where no code fits them,
    `map` is None, and no class is counted. `image_of` is the image of each mask.
    """

    def __init__(self, cfg: Data):
        if not isinstance(cfg.source, Folder):
            hint = "Generated images need no check."
            raise ConfigError("data.source", cfg.source, "a folder", hint)
        super().__init__(cfg.source)
        self.found = len(self.pairs)
        self.image_of = {pair.mask: pair.image for pair in self.pairs}
        good = {pair.name: pair for pair in self.good}
        self.map, self.masks, dropping = None, "no code fits them", set()
        self._counts = defaultdict(dict)
        if self.code:
            self.map = class_map(self.code, cfg.classes)
            self.masks, dropping = self.map.description, self.map.dropping
            for name, pair in good.items():
                self._counts[name] = recounted(pair.counts(), self.map.table)
        try:
            splits = splits_of(good, cfg, self._counts.__getitem__, dropping)
        except DataError as error:
            splits = {"all": good}
            self.add("cannot be split", self.root, str(error))
        self.whole = {}
        for split, names in splits.items():
            for name in names:
                self.whole[name] = good[name]
                good[name].split = split
        self.splits = Counter(pair.split for pair in self.whole.values())
        self._count_classes()
        self._look_at_pixels()

    def _count_classes(self) -> None:
        """In images, in pixels, and together. A class that a split lacks is not trained, or not
        scored.
        """
        names = self.map.classes if self.map else ()
        self.classes = [ClassCount(name, Counter(), Counter()) for name in names]
        together = np.zeros((len(names), len(names)), int)
        for name, pair in self.whole.items():
            held = list(self._counts[name])
            together[np.ix_(held, held)] += 1
            for i in held:
                self.classes[i].images[pair.split] += 1
                self.classes[i].pixels[pair.split] += self._counts[name][i]
        self.together = together.tolist()
        for row in self.classes:
            lacking = " and ".join(sorted(self.splits.keys() - row.images))
            if lacking:
                says = f"class {row.name!r} occurs in no mask of {lacking}."
                self.add("class absent", self.root, says, "warning")

    def _look_at_pixels(self) -> None:
        """Images whose pixels are the same: across splits the scores are no scores. And what is
        worth knowing of an image.
        """
        alike = defaultdict(list)
        for name, pair in self.whole.items():
            alike[pair.image_scan.pixels].append(pair)
            if self.map and not self._counts[name]:
                self.add("all ignored", pair.mask, "every pixel is ignored.", "note")
            elif self._counts[name].keys() == {0}:
                self.add("no foreground", pair.mask, "background alone.", "note")
            height, width = pair.size
            if min(height, width) < TINY:
                says = f"{width}x{height} pixels, hardly more than a patch."
                self.add("tiny", pair.image, says, "note")
        for first, *others in alike.values():
            if others:
                kind = "same image twice"
                if {pair.split for pair in others} != {first.split}:
                    kind = "same image in two splits"
                listed = " and ".join(f"{shown(pair.image)} ({pair.split})" for pair in others)
                says = f"in {first.split}, with the same pixels as {listed}."
                self.add(kind, first.image, says, "warning")
