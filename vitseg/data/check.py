"""A data set looked at as a careful researcher would: everything that is wrong, and what is worth
knowing, in one go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitseg.data.classes import ClassMap, class_map
from vitseg.data.folder import OF_A_PAIR, look_through
from vitseg.data.look import Look, Watch, unwatched
from vitseg.data.masks import MaskCode, read_raw
from vitseg.data.pairs import Pair, Problem, problem
from vitseg.data.splits import splits_of
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data, Folder
from vitseg.words import shown

TINY = 28
"""Pixels on the shorter side, below which an image is hardly two patches of a ViT."""


@dataclass(frozen=True, slots=True)
class ClassCount:
    """A class in the whole masks: in how many images it occurs, and how many pixels hold it, by
    split.
    """

    name: str
    images: dict[str, int]
    pixels: dict[str, int]


@dataclass(frozen=True, slots=True)
class Check:
    """`problems` stop a training, or leave pairs out; `warnings` spoil what it says; `notes` are
    worth knowing.

    `whole` are the pairs without a problem, by name, and `splits` the images of each split among
    them. `together[i][j]` is in how many images classes i and j both occur. `image_of` is the image
    of each mask.
    """

    root: Path
    found: int
    whole: dict[str, Pair]
    masks: str
    splits: dict[str, int]
    problems: list[Problem]
    warnings: list[Problem]
    notes: list[Problem]
    classes: list[ClassCount]
    together: list[list[int]]
    code: MaskCode | None
    kinds: ClassMap | None
    image_of: dict[Path, Path]

    def ids(self, name: str) -> np.ndarray | None:
        """Class ids (h, w) uint8 of a whole pair, as training would see them; None where no code
        fits the masks.
        """
        return (
            self.kinds.ids(self.code.decode(read_raw(self.whole[name].mask)))
            if self.kinds
            else None
        )

    def to_dict(self) -> dict[str, Any]:
        """Strings and numbers, for JSON."""
        said = {
            kind: [
                {"kind": p.kind, "path": shown(p.path), "says": p.says} for p in getattr(self, kind)
            ]
            for kind in ("problems", "warnings", "notes")
        }
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
    found = look_through(cfg.source, watch)
    kept = found.without(OF_A_PAIR)
    looks = {
        p.name: look for p, look in zip(kept.pairs, kept.looks, strict=True) if not look.problems
    }
    kinds = class_map(found.code.classes, cfg.classes) if found.code else None
    stored = {name: found.code.counts(look.counts) if kinds else {} for name, look in looks.items()}
    dropped = {name for name in looks if kinds and not kinds.keeps(stored[name])}
    looks = {name: look for name, look in looks.items() if name not in dropped}
    counts = {name: kinds.counts(stored[name]) if kinds else {} for name in looks}
    pairs = {p.name: p for p in kept.pairs if p.name in looks}
    try:
        splits = splits_of(
            {name: pair.split for name, pair in pairs.items()},
            cfg,
            lambda n: counts[n].keys(),
            dropped,
        )
    except DataError as error:
        splits = {"all": list(pairs)}
        found.problems.append(Problem("cannot be split", found.root, str(error)))
    classes, together = _classes(counts, splits, kinds.classes) if kinds else ([], [])
    warnings = [*found.warnings, *_twice(looks, pairs, splits), *_absent(classes, found.root)]
    notes = [*(_without_foreground(counts, pairs) if kinds else ()), *_tiny(looks, pairs)]
    masks = (
        "; ".join(filter(None, (found.code.description, kinds.description)))
        if kinds
        else "no code fits them"
    )
    sizes = {split: len(names) for split, names in splits.items() if names}
    said = found.problems, warnings, notes
    image_of = {p.mask: p.image for p in found.pairs}
    return Check(
        found.root,
        len(found.pairs),
        pairs,
        masks,
        sizes,
        *said,
        classes,
        together,
        found.code,
        kinds,
        image_of,
    )


def _classes(
    counts: Mapping[str, Mapping[int, int]], splits: Mapping[str, list[str]], names: tuple[str, ...]
) -> tuple[list[ClassCount], list[list[int]]]:
    images, pixels = ([Counter[str]() for _ in names] for _ in range(2))
    together = [[0] * len(names) for _ in names]
    for split, of_split in splits.items():
        for ids in map(counts.__getitem__, of_split):
            for i, n in ids.items():
                images[i][split] += 1
                pixels[i][split] += n
                for j in ids:
                    together[i][j] += 1
    return [ClassCount(n, dict(images[i]), dict(pixels[i])) for i, n in enumerate(names)], together


def _twice(
    looks: Mapping[str, Look], pairs: Mapping[str, Pair], splits: Mapping[str, list[str]]
) -> Iterator[Problem]:
    """Images whose pixels are the same: across splits the scores are no scores."""
    split_of = {name: split for split, names in splits.items() for name in names}
    alike: dict[str, list[str]] = {}
    for name, look in looks.items():
        alike.setdefault(look.digest, []).append(name)
    for names in (n for n in alike.values() if len(n) > 1):
        where = [f"{shown(pairs[n].image)} ({split_of[n]})" for n in names]
        across = len({split_of[n] for n in names}) > 1
        end = "on both sides: what is scored was trained on" if across else "on one side"
        kind = "same image in two splits" if across else "same image twice"
        yield Problem(
            kind, pairs[names[0]].image, f"{' and '.join(where)}: the same pixels, {end}."
        )


def _absent(classes: list[ClassCount], root: Path) -> Iterator[Problem]:
    """Classes that a split lacks: not trained, or not scored."""
    splits = sorted({split for c in classes for split in c.images})
    for c in classes:
        if lacking := [split for split in splits if not c.images.get(split)]:
            yield problem(
                "class absent",
                root,
                f"class {c.name!r} occurs in no mask of {' and '.join(lacking)}.",
            )


def _without_foreground(
    counts: Mapping[str, Mapping[int, int]], pairs: Mapping[str, Pair]
) -> Iterator[Problem]:
    for name, ids in counts.items():
        if not ids:
            yield problem("all ignored", pairs[name].mask, "every pixel is ignored.")
        elif ids.keys() == {0}:
            yield problem("no foreground", pairs[name].mask, "background alone.")


def _tiny(looks: Mapping[str, Look], pairs: Mapping[str, Pair]) -> Iterator[Problem]:
    for name, look in looks.items():
        if min(look.size) < TINY:
            size = f"{look.size[1]}x{look.size[0]} pixels"
            yield problem("tiny", pairs[name].image, f"{size}, hardly more than a patch.")
