"""Finding images and their masks in a folder, and looking at every one before anything is trained."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitseg.data.masks import MaskCode, find_code, is_color, read_raw, with_classes_file
from vitseg.errors import DataError
from vitseg.images import UNREADABLE, Size, open_rgb
from vitseg.settings import Folder

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
SPLITS = ("train", "validation", "test")
LAYOUT = "A data set is a folder with images/ and masks/ (same names), or with train/, validation/, test/ that hold them."


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask; `name` is unique in the data set."""

    name: str
    split: str | None
    image: Path
    mask: Path


class Problem(NamedTuple):
    """What is wrong with a file or a folder, in a sentence that begins with its path."""

    kind: str
    path: Path
    says: str


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a pair found: how many pixels hold which stored value, and the image's size and a digest of its pixels;
    or what is wrong."""

    counts: dict[int, int] = field(default_factory=dict)
    color: bool = False
    size: Size = (0, 0)
    digest: str = ""
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A folder that has been looked through: `looks` are those of the `pairs`; `code` is None where no code fits the masks,
    for the reason `unclear` if they might be read in several ways."""

    root: Path
    pairs: list[Pair]
    looks: list[Look]
    problems: list[Problem]
    code: MaskCode | None
    unclear: DataError | None = None

    def without(self, kinds: Collection[str]) -> Found:
        """The pairs that have no problem of these kinds, and the problems of other kinds."""
        bad = {problem.path for problem in self.problems if problem.kind in kinds}
        kept = [(p, look) for p, look in zip(self.pairs, self.looks, strict=True) if not {p.image, p.mask} & bad]
        left = [problem for problem in self.problems if problem.kind not in kinds]
        return replace(self, pairs=[p for p, _ in kept], looks=[look for _, look in kept], problems=left)


OF_A_PAIR = ("no mask", "no image", "unreadable image", "unreadable mask", "sizes differ", "unknown label")
"""Kinds of problems that concern a pair alone, which may be left out."""


def read_folder(cfg: Folder) -> tuple[list[Pair], MaskCode, list[Look]]:
    """All pairs of a folder, the code of their masks, and what was seen of each pair; with `cfg.on_problem="skip"` of those
    that are whole.

    Raises DataError with everything that is wrong, not only the first: missing masks, unreadable files, sizes that
    differ, labels outside the classes.
    """
    found = look_through(cfg)
    if found.unclear and len(found.problems) == 1:
        raise found.unclear
    if cfg.on_problem == "refuse":
        if found.problems:
            raise _report(found.root, [p.says for p in found.problems])
        return found.pairs, found.code, found.looks
    kept = found.without(OF_A_PAIR)
    if kept.problems or not kept.pairs:
        raise _report(found.root, [p.says for p in kept.problems or found.problems])
    left_out = len({p.path for p in found.problems})
    words = f"; {left_out} file{'s' * (left_out != 1)} with problems and what belongs to them left out" if left_out else ""
    return kept.pairs, replace(found.code, description=f"{found.code.description}{words}"), kept.looks


def look_through(cfg: Folder) -> Found:
    """Find every pair, look at it, and say all that is wrong. Raises DataError where there is no data set at all."""
    root = Path(cfg.path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder.", LAYOUT)
    cfg = with_classes_file(cfg)
    pairs, problems = _find_pairs(root)
    if not pairs and not problems:
        raise DataError(f"{root}: no image found.", LAYOUT)
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(_look, pairs))
    problems += [look.problem for look in looks if look.problem]
    good = [(pair, look) for pair, look in zip(pairs, looks, strict=True) if not look.problem]
    if mixed := _of_two_kinds(good):
        return Found(root, pairs, looks, problems + mixed, None)  # no code fits both
    problems += _in_grey(cfg, good)
    stored = {v for _, look in good for v in look.counts}
    code = unclear = None
    try:
        code = find_code(cfg, stored, any(look.color for _, look in good), [pair.image.stem for pair, _ in good])
    except DataError as error:
        unclear = error
        problems.append(Problem("unclear masks", root, str(error)))
    else:
        problems += [problem for pair, look in good if (problem := _unknown(pair, look, code))]
    return Found(root, pairs, looks, problems, code, unclear)


def _of_two_kinds(good: list[tuple[Pair, Look]]) -> list[Problem]:
    """Masks in colour and masks in grey cannot share a code: the rarer kind is named."""
    color, grey = ([p.mask for p, look in good if look.color is side] for side in (True, False))
    if not color or not grey:
        return []
    rare, kind, other = (grey, "grey", "in colour") if len(grey) <= len(color) else (color, "in colour", "grey")
    return [Problem("masks of two kinds", mask, f"{mask}: is {kind}, where other masks are {other}.") for mask in rare]


def _in_grey(cfg: Folder, good: list[tuple[Pair, Look]]) -> list[Problem]:
    if cfg.encoding != "rgb" and cfg.colors is None:
        return []
    grey = [pair.mask for pair, look in good if not look.color]
    return [Problem("masks of two kinds", mask, f"{mask}: is grey, where colours are declared.") for mask in grey]


def _find_pairs(root: Path) -> tuple[list[Pair], list[Problem]]:
    places: list[tuple[str | None, Path]] = [(s, root / s) for s in SPLITS if (root / s).is_dir()] or [(None, root)]
    pairs: list[Pair] = []
    called = f"no split of that name; it is called one of {', '.join(SPLITS)}."
    problems = [Problem("split by another name", p, f"{p}: {called}") for p in _strange_splits(root)]
    for split, place in places:
        for kind in ("images", "masks"):
            if not (place / kind).is_dir():
                raise DataError(f"{place}: there is no {kind}/ in it.", LAYOUT)
        images, masks = _by_stem(place / "images", problems), _by_stem(place / "masks", problems)
        for kind, here, other in (("mask", images, masks), ("image", masks, images)):
            alone = [here[stem] for stem in sorted(here.keys() - other.keys())]
            problems += [Problem(f"no {kind}", p, f"{p}: no {kind} of that name in {kind}s/.") for p in alone]
        for stem in sorted(images.keys() & masks.keys()):
            name = f"{split}/{stem}" if split else stem
            pairs.append(Pair(name, split, images[stem], masks[stem]))
    return pairs, problems


def _strange_splits(root: Path) -> list[Path]:
    """Folders beside train/ that look like a split, such as val/."""
    if not (root / "train").is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.name not in SPLITS and (p / "images").is_dir())


def _by_stem(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """Image files by name without suffix. Hidden files and other kinds are passed over."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    twice = [stem for stem, n in Counter(p.stem for p in paths).items() if n > 1]
    words = f"{folder}: more than one file is named"
    problems += [Problem("one name twice", folder / stem, f"{words} {stem}.*") for stem in sorted(twice)]
    return {p.stem: p for p in paths}


def _look(pair: Pair) -> Look:
    try:
        image = open_rgb(pair.image)
    except UNREADABLE as error:
        return _bad("unreadable image", pair.image, f"cannot be read as an image ({error}).")
    try:
        raw = read_raw(pair.mask)
    except DataError as error:
        return Look(problem=Problem("unreadable mask", pair.mask, str(error)))
    except UNREADABLE as error:
        return _bad("unreadable mask", pair.mask, f"cannot be read as a mask ({error}).")
    size: Size = (image.height, image.width)
    if raw.shape != size:
        sizes = f"image {size[1]}x{size[0]}, mask {raw.shape[1]}x{raw.shape[0]} pixels"
        return _bad("sizes differ", pair.mask, f"size differs from its image ({sizes}).")
    values, counts = np.unique(raw, return_counts=True)
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
    return Look(dict(zip(values.tolist(), counts.tolist(), strict=True)), is_color(pair.mask), size, digest)


def _bad(kind: str, path: Path, says: str) -> Look:
    return Look(problem=Problem(kind, path, f"{path}: {says}"))


def _unknown(pair: Pair, look: Look, code: MaskCode) -> Problem | None:
    strange = code.unknown(set(look.counts))
    if not strange:
        return None
    counts = ", ".join(f"{code.show(v)} in {look.counts[v]} pixels" for v in strange[:6])
    allowed = ", ".join(code.show(v) for v in sorted(code.values)[:16])
    says = f"{pair.mask}: labels outside the classes: {counts}; allowed: {allowed} ({code.description})."
    return Problem("unknown label", pair.mask, says)


def _report(root: Path, problems: Iterable[str]) -> DataError:
    problems = list(problems)
    head = f"{root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}."
    more = [f"... and {len(problems) - 20} more."] if len(problems) > 20 else []
    declare = ", or declare the classes in classes.json" if any("classes" in p for p in problems) else ""
    return DataError("\n  ".join([head, *problems[:20], *more]), f"\nMend or remove these files{declare}.")
