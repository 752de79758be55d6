"""What a look at a pair finds: by the headers of its files first, then by their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from vitseg.data.masks import COLOR, read_raw, refuse_lossy
from vitseg.data.pairs import Pair, Problem, problem
from vitseg.errors import DataError
from vitseg.images import FLOATS, UNREADABLE, Header, Size, header_of, open_rgb
from vitseg.words import shown


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of a pair: its image's size, whether its mask is in colour, how many pixels hold which stored value, and a
    digest of the image's pixels; or what is wrong with either."""

    size: Size = (0, 0)
    color: bool = False
    counts: dict[int, int] = field(default_factory=dict)
    digest: str = ""
    problems: tuple[Problem, ...] = ()


Watch = Callable[[Iterator[Look], str, int], Iterator[Look]]
"""Passes looks on, and shows how many of how many there have been, under a word for what is done."""


def unwatched(looks: Iterator[Look], doing: str, count: int) -> Iterator[Look]:
    return looks


def look_at(pairs: list[Pair], watch: Watch) -> list[Look]:
    """A look at each pair: first at all headers, then, on all cores, at the pixels of every file whose header is whole."""
    with ThreadPoolExecutor() as pool:
        looks = list(watch(pool.map(by_header, pairs), "headers", len(pairs)))
        return list(watch(pool.map(_by_pixels, pairs, looks), "pixels", len(pairs)))


def by_header(pair: Pair) -> Look:
    """What can be told before a pixel is decoded."""
    image, mask = _header(pair.image, "image"), _header(pair.mask, "mask")
    problems = [found for found in (image, mask) if isinstance(found, Problem)]
    if isinstance(image, Header) and image.mode == "F":
        problems.append(problem("unreadable image", pair.image, f"cannot be read as an image ({FLOATS})."))
    if isinstance(mask, Header):
        try:
            refuse_lossy(pair.mask, mask.format, mask.mode)
        except DataError as error:
            problems.append(Problem("unreadable mask", pair.mask, str(error)))
    if isinstance(image, Header) and isinstance(mask, Header):
        if image.size != mask.size and not _may_be_turned(image, mask):
            problems.append(_sizes(pair, image.size, mask.size))
        return Look(image.size, mask.mode in COLOR, problems=tuple(problems))
    return Look(problems=tuple(problems))


def _by_pixels(pair: Pair, look: Look) -> Look:
    """The look, completed by the pixels of what has no problem yet."""
    problems, named = list(look.problems), {p.path for p in look.problems}
    image = raw = None
    try:
        image = None if pair.image in named else open_rgb(pair.image)
    except UNREADABLE as error:
        problems.append(_unreadable(pair.image, "image", error))
    try:
        raw = None if pair.mask in named else read_raw(pair.mask)
    except UNREADABLE as error:
        problems.append(_unreadable(pair.mask, "mask", error))
    if image is None or raw is None:
        return replace(look, problems=tuple(problems))
    size: Size = (image.height, image.width)
    if raw.shape != size:
        return replace(look, problems=(_sizes(pair, size, raw.shape),))
    digest = hashlib.blake2b(repr(size).encode() + image.tobytes(), digest_size=16).hexdigest()
    return replace(look, size=size, counts=_counted(raw), digest=digest)


def _may_be_turned(image: Header, mask: Header) -> bool:
    """Whether sizes may agree once upright: a PNG may say behind its pixels which way is up."""
    return image.size == mask.size[::-1] and "PNG" in {image.format, mask.format}


def _header(path: Path, kind: str) -> Header | Problem:
    try:
        return header_of(path)
    except UNREADABLE as error:
        return _unreadable(path, kind, error)


def _unreadable(path: Path, kind: str, error: Exception) -> Problem:
    why: object = error
    if isinstance(error, UnidentifiedImageError):
        why = "no image of a known kind" if path.stat().st_size else "it is empty"
    elif isinstance(error, OSError) and error.strerror:
        why = f"a link that leads nowhere, to {shown(path.readlink())}" if path.is_symlink() else error.strerror
    return problem(f"unreadable {kind}", path, f"cannot be read as {'an' if kind == 'image' else 'a'} {kind} ({why}).")


def _sizes(pair: Pair, image: Size, mask: Size) -> Problem:
    sizes = f"image {image[1]}x{image[0]}, mask {mask[1]}x{mask[0]} pixels"
    return problem("sizes differ", pair.mask, f"size differs from its image ({sizes}).")


def _counted(raw: np.ndarray) -> dict[int, int]:
    """How many pixels hold which value."""
    if raw.min() >= 0 and raw.max() < 65536:  # all but colours; many times as fast as sorting them
        counts = np.bincount(raw.ravel())
        return {int(v): int(counts[v]) for v in counts.nonzero()[0]}
    values, counts = np.unique(raw, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
