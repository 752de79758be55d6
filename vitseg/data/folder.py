"""Finding images and their masks in a folder, and looking at every one before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a pair found: the mask's stored values, or what is wrong."""

    stored: frozenset[int] = frozenset()
    color: bool = False
    problem: str = ""


def read_folder(cfg: Folder) -> tuple[list[Pair], MaskCode]:
    """All pairs of a folder and the code of their masks.

    Raises DataError with everything that is wrong, not only the first: missing masks, unreadable files, sizes that
    differ, labels outside the classes.
    """
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
        raise _report(root, problems + mixed)  # no code fits both
    problems += _in_grey(cfg, good)
    try:
        code = find_code(
            cfg,
            {v for _, look in good for v in look.stored},
            any(look.color for _, look in good),
            [pair.image.stem for pair, _ in good],
        )
    except DataError as error:
        if not problems:
            raise
        problems.append(str(error))
    else:
        problems += [text for pair, look in good if (text := _unknown(pair, look, code))]
    if problems:
        raise _report(root, problems)
    return pairs, code


def _of_two_kinds(good: list[tuple[Pair, Look]]) -> list[str]:
    """Masks in colour and masks in grey cannot share a code: the rarer kind is named."""
    color, grey = ([p.mask for p, look in good if look.color is side] for side in (True, False))
    if not color or not grey:
        return []
    rare, kind, other = (grey, "grey", "in colour") if len(grey) <= len(color) else (color, "in colour", "grey")
    return [f"{mask}: is {kind}, where other masks are {other}." for mask in rare]


def _in_grey(cfg: Folder, good: list[tuple[Pair, Look]]) -> list[str]:
    if cfg.encoding != "rgb" and cfg.colors is None:
        return []
    return [f"{pair.mask}: is grey, where colours are declared." for pair, look in good if not look.color]


def _find_pairs(root: Path) -> tuple[list[Pair], list[str]]:
    places: list[tuple[str | None, Path]] = [(s, root / s) for s in SPLITS if (root / s).is_dir()] or [(None, root)]
    pairs: list[Pair] = []
    problems = [f"{p}: no split of that name; it is called one of {', '.join(SPLITS)}." for p in _strange_splits(root)]
    for split, place in places:
        for kind in ("images", "masks"):
            if not (place / kind).is_dir():
                raise DataError(f"{place}: there is no {kind}/ in it.", LAYOUT)
        images, masks = _by_stem(place / "images", problems), _by_stem(place / "masks", problems)
        problems += [f"{images[s]}: no mask of that name in masks/." for s in sorted(images.keys() - masks.keys())]
        problems += [f"{masks[s]}: no image of that name in images/." for s in sorted(masks.keys() - images.keys())]
        for stem in sorted(images.keys() & masks.keys()):
            name = f"{split}/{stem}" if split else stem
            pairs.append(Pair(name, split, images[stem], masks[stem]))
    return pairs, problems


def _strange_splits(root: Path) -> list[Path]:
    """Folders beside train/ that look like a split, such as val/."""
    if not (root / "train").is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.name not in SPLITS and (p / "images").is_dir())


def _by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Image files by name without suffix. Hidden files and other kinds are passed over."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    twice = [stem for stem, n in Counter(p.stem for p in paths).items() if n > 1]
    problems += [f"{folder}: more than one file is named {stem}.*" for stem in sorted(twice)]
    return {p.stem: p for p in paths}


def _look(pair: Pair) -> Look:
    try:
        image = open_rgb(pair.image)
        size: Size = (image.height, image.width)
    except UNREADABLE as error:
        return Look(problem=f"{pair.image}: cannot be read as an image ({error}).")
    try:
        raw = read_raw(pair.mask)
    except DataError as error:
        return Look(problem=str(error))
    except UNREADABLE as error:
        return Look(problem=f"{pair.mask}: cannot be read as a mask ({error}).")
    if raw.shape != size:
        sizes = f"image {size[1]}x{size[0]}, mask {raw.shape[1]}x{raw.shape[0]} pixels"
        return Look(problem=f"{pair.mask}: size differs from its image ({sizes}).")
    return Look(frozenset(np.unique(raw).tolist()), is_color(pair.mask))


def _unknown(pair: Pair, look: Look, code: MaskCode) -> str:
    strange = code.unknown(set(look.stored))
    if not strange:
        return ""
    raw = read_raw(pair.mask)
    counts = ", ".join(f"{code.show(v)} in {np.count_nonzero(raw == v)} pixels" for v in strange[:6])
    allowed = ", ".join(code.show(v) for v in sorted(code.values)[:16])
    return f"{pair.mask}: labels outside the classes: {counts}; allowed: {allowed} ({code.description})."


def _report(root: Path, problems: Iterable[str]) -> DataError:
    problems = list(problems)
    head = f"{root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}."
    more = [f"... and {len(problems) - 20} more."] if len(problems) > 20 else []
    declare = ", or declare the classes in classes.json" if any("classes" in p for p in problems) else ""
    return DataError("\n  ".join([head, *problems[:20], *more]), f"\nMend or remove these files{declare}.")
