"""What a look at a pair finds: by the headers of its files first, then by their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLESPERPIXEL, TiffImageFile

from vitseg.data.masks import COLOR, refuse_lossy, stored_values
from vitseg.data.pairs import Pair, Problem, problem
from vitseg.errors import DataError
from vitseg.images import (
    FLOATS,
    UNREADABLE,
    WITH_ALPHA,
    Header,
    Size,
    header_of,
    is_transparency,
    opened,
    orientation_of,
    to_rgb,
)
from vitseg.words import shown

NO_ALPHA = "alpha that is no transparency"
DIM = 14
"""Bits that a 16-bit image uses if it is read as the lowest quarter of 0..255."""

SAME_TAG = (
    "If the mask was drawn on the stored pixels, save it with the image's: mask.save(path, "
    "exif=image.getexif())."
)


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of a pair: its image's size, whether its mask is in colour, how many pixels
    hold which stored value, and a digest of the image's pixels; or what is wrong with either.

    `palette` holds the colours of the indices that occur in the mask; `deep` says how an image of
    more than 8 bits is stored, and its largest value, of 65535.
    """

    size: Size = (0, 0)
    color: bool = False
    counts: dict[int, int] = field(default_factory=dict)
    digest: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    palette: dict[int, tuple[int, ...]] = field(default_factory=dict)
    deep: tuple[str, int] | None = None


Watch = Callable[[Iterator[Look], str, int], Iterator[Look]]
"""Passes looks on, and shows how many of how many there have been, under a word for what is done.
"""


def unwatched(looks: Iterator[Look], doing: str, count: int) -> Iterator[Look]:
    return looks


def look_at(pairs: list[Pair], watch: Watch) -> list[Look]:
    """A look at each pair: first at all headers, then, on all cores, at the pixels of every file
    whose header is whole.
    """
    with ThreadPoolExecutor() as pool:
        looks = list(watch(pool.map(by_header, pairs), "headers", len(pairs)))
        looks = list(watch(pool.map(_by_pixels, pairs, looks), "pixels", len(pairs)))
    _warn_of_ranges(pairs, looks)
    return looks


def by_header(pair: Pair) -> Look:
    """What can be told before a pixel is decoded."""
    image, mask = _header(pair.image, "image"), _header(pair.mask, "mask")
    problems = [found for found in (image, mask) if isinstance(found, Problem)]
    if isinstance(image, Header) and image.mode == "F":
        problems.append(
            problem("unreadable image", pair.image, f"cannot be read as an image ({FLOATS}).")
        )
    if isinstance(mask, Header):
        try:
            refuse_lossy(pair.mask, mask.format, mask.mode)
        except DataError as error:
            problems.append(Problem("unreadable mask", pair.mask, str(error)))
    if isinstance(image, Header) and isinstance(mask, Header):
        if image.size != mask.size and not _may_be_turned(image, mask):
            problems.append(
                _sizes(pair, image.size, mask.size, (image.orientation, mask.orientation))
            )
        return Look(image.size, mask.mode in COLOR, problems=tuple(problems))
    return Look(problems=tuple(problems))


def _by_pixels(pair: Pair, look: Look) -> Look:
    """The look, completed by the pixels of what has no problem yet."""
    problems, named = list(look.problems), {p.path for p in look.problems}
    image = mask = None
    try:
        image = None if pair.image in named else _image(pair.image)
    except UNREADABLE as error:
        problems.append(_unreadable(pair.image, "image", error))
    try:
        mask = None if pair.mask in named else _mask(pair.mask)
    except DataError as error:
        problems.append(Problem("unreadable mask", pair.mask, str(error)))
    except UNREADABLE as error:
        problems.append(_unreadable(pair.mask, "mask", error))
    if image is None or mask is None:
        return replace(look, problems=tuple(problems))
    (rgb, image_tag, doubts, deep), (raw, mask_tag, more, colors) = image, mask
    size: Size = (rgb.height, rgb.width)
    if raw.shape != size:
        return replace(look, problems=(_sizes(pair, size, raw.shape, (image_tag, mask_tag)),))
    digest = hashlib.blake2b(repr(size).encode() + rgb.tobytes(), digest_size=16).hexdigest()
    counts = _counted(raw)
    warnings = (*doubts, *more, *_turned(pair, size, (image_tag, mask_tag)))
    palette = {i: tuple(colors[3 * i : 3 * i + 3]) for i in counts if 3 * i < len(colors)}
    return replace(
        look, size=size, counts=counts, digest=digest, warnings=warnings, palette=palette, deep=deep
    )


def _image(path: Path) -> tuple[Image.Image, int, list[Problem], tuple[str, int] | None]:
    """An image as training sees it; its EXIF orientation, warnings, and, if it has more than 8
    bits, its storage and range.
    """
    with opened(path) as image:
        is_deep = image.mode.startswith("I") or (
            image.format in {"PNG", "TIFF"} and ";16" in str(image.tile)
        )
        orientation = orientation_of(image)
        rgb = to_rgb(image)
        return (
            rgb,
            orientation,
            [*_dropped(path, image), *_alpha(path, image)],
            _largest(image) if is_deep else None,
        )


def _mask(path: Path) -> tuple[np.ndarray, int, list[Problem], list[int]]:
    """A mask's stored values (h, w); its EXIF orientation, warnings, and the colours of its
    palette, one after another.
    """
    with opened(path) as image:
        refuse_lossy(path, image.format, image.mode)
        orientation = orientation_of(image)
        raw = stored_values(path, image)
        colors = image.getpalette() if image.mode == "P" else []
        return raw, orientation, [*_dropped(path, image), *_unread(path, image)], colors


def _dropped(path: Path, image: Image.Image) -> Iterator[Problem]:
    read, stored = (
        len(image.getbands()),
        image.tag_v2.get(SAMPLESPERPIXEL, 1) if isinstance(image, TiffImageFile) else 1,
    )
    if stored > read:
        first = f"the first {read} are" if read > 1 else "the first is"
        yield problem(
            "bands dropped",
            path,
            f"of its {stored} bands only {first} read. Save those to train on as grey or RGB.",
        )


def _alpha(path: Path, image: Image.Image) -> Iterator[Problem]:
    """An alpha channel that is none: infrared, or an empty band. A TIFF is read without it, of
    other files it is blended.
    """
    if image.mode in WITH_ALPHA and not is_transparency(image):
        done = "it is not read" if image.format == "TIFF" else "it is blended as transparency"
        why = "varies like an image (infrared?) or is empty"
        yield problem(
            NO_ALPHA, path, f"its alpha channel {why}; {done}. Save the image as grey or RGB."
        )


def _unread(path: Path, image: Image.Image) -> Iterator[Problem]:
    """An alpha channel that tells pixels of one colour apart, in a mask."""
    if image.mode not in {"LA", "RGBA"} or len(image.getchannel("A").getcolors()) == 1:
        return
    found = [color for _, color in image.getcolors(image.width * image.height)]
    if len(found) > len({color[:-1] for color in found}):
        says = "its alpha channel differs where its colour does not, and is not read."
        yield problem(
            "alpha not read",
            path,
            f"{says} Save it without alpha, or the alpha channel as the mask.",
        )


def _turned(pair: Pair, size: Size, tags: tuple[int, int]) -> Iterator[Problem]:
    """An image and a mask that are turned in different ways, where the sizes agree as stored as
    well as upright.
    """
    if tags[0] != tags[1] and (size[0] == size[1] or (tags[0] >= 5) == (tags[1] >= 5)):
        says = (
            f"{_orientations(tags)}; each is turned upright by its own, and the sizes do not "
            f"tell whether they match then."
        )
        yield problem("orientation differs", pair.image, f"{says} {SAME_TAG}")


def _orientations(tags: tuple[int, int]) -> str:
    image, mask = (f"EXIF orientation {tag}" if tag > 1 else "no EXIF orientation" for tag in tags)
    return f"the image has {image}, its mask {mask}"


def _largest(image: Image.Image) -> tuple[str, int]:
    """How an image of more than 8 bits is stored, and its largest value; of colours a bound: Pillow
    drops the low byte.
    """
    if image.mode.startswith("I"):
        return "grey", int(np.asarray(image).max())
    ranges = dict(zip(image.getbands(), image.getextrema(), strict=True))
    return "colour", max(most for band, (_, most) in ranges.items() if band != "A") << 8 | 255


def _warn_of_ranges(pairs: list[Pair], looks: list[Look]) -> None:
    """Add a warning to the look at the brightest 16-bit image, if even this one is dim."""
    for kind in ("grey", "colour"):
        deep = [
            (look.deep[1], n) for n, look in enumerate(looks) if look.deep and look.deep[0] == kind
        ]
        most, n = max(deep, default=(0, 0))
        if 0 < most.bit_length() <= DIM:
            looks[n] = replace(
                looks[n],
                warnings=(*looks[n].warnings, _range(pairs[n].image, kind, most, len(deep))),
            )


def _range(path: Path, kind: str, most: int, count: int) -> Problem:
    bits, read = most.bit_length(), round(most / 257) if kind == "grey" else most >> 8
    among = f"{count} image{'s' * (count != 1)} stored as 16-bit {kind}"
    says = (
        f"the brightest of {among} uses {bits} bits: its values 0..{most} of 65535 are read as "
        f"0..{read} of 255."
    )
    return problem(
        "range barely used",
        path,
        f"{says} Multiply the values of all by {1 << 16 - bits}, or save 8-bit images.",
    )


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
        why = (
            f"a link that leads nowhere, to {shown(path.readlink())}"
            if path.is_symlink()
            else error.strerror
        )
    return problem(
        f"unreadable {kind}",
        path,
        f"cannot be read as {'an' if kind == 'image' else 'a'} {kind} ({why}).",
    )


def _sizes(pair: Pair, image: Size, mask: Size, tags: tuple[int, int]) -> Problem:
    says = (
        f"size differs from its image (image {image[1]}x{image[0]}, mask {mask[1]}x{mask[0]} "
        f"pixels)."
    )
    if image == mask[::-1] and tags[0] != tags[1]:
        says = f"{says[:-2]} once upright: {_orientations(tags)}). {SAME_TAG}"
    return problem("sizes differ", pair.mask, says)


def _counted(raw: np.ndarray) -> dict[int, int]:
    """How many pixels hold which value."""
    if raw.min() >= 0 and raw.max() < 65536:  # all but colours; many times as fast as sorting them
        counts = np.bincount(raw.ravel())
        return {int(v): int(counts[v]) for v in counts.nonzero()[0]}
    values, counts = np.unique(raw, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
