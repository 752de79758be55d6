"""Pixels and sizes: files to RGB, images onto the network's canvas, predictions back to where they
came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import EXTRASAMPLES, SAMPLEFORMAT, TiffImageFile

IGNORE = 255
"""Class id of pixels that count nowhere: padding, void, what a rotation brings in."""

FILL = (124, 116, 104)
"""Colour of padding: the mean of ImageNet, close to zero once an encoder has normalised it."""

PALETTE = (
    (40, 40, 40),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
    (204, 121, 167),
    (0, 158, 115),
    (86, 180, 233),
    (230, 159, 0),
    (136, 34, 85),
    (153, 153, 51),
    (68, 170, 153),
    (51, 34, 136),
    (221, 204, 119),
    (170, 68, 153),
)
"""Class colours after Okabe & Ito and Tol: told apart by colour-blind readers. Repeats after the
last.
"""

Size = tuple[int, int]

WITH_ALPHA = {"RGBA", "LA", "PA"}
"""Modes whose last channel is alpha."""

FLOATS = "an image of floats, whose range is not known; save it with 8 or 16 bits"

PREMULTIPLIED = (
    "its colours are premultiplied by an alpha channel that varies like an image; "
    "export it again as RGB"
)

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What is raised for a file that is no image, is cut off, holds several pictures, or claims to be
enormous.
"""


class Header(NamedTuple):
    """What a file says of its picture before a pixel is decoded: its size once upright, and how the
    pixels are stored.

    `orientation` is 1 for a PNG whose EXIF chunk comes after the pixels.
    """

    size: Size
    mode: str
    format: str | None
    orientation: int = 1


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """The one picture of a file, no pixel decoded yet.

    Raises one of UNREADABLE, also where there are more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, of
    which Pillow only warns, and where the file holds pages or is animated: nothing says which
    picture is meant.
    """
    with (
        Path(path).open("rb") as file,
        Image.open(file) as image,
    ):  # by its path Pillow maps a TIFF, and scrambles a turned one
        most = Image.MAX_IMAGE_PIXELS or math.inf
        if image.width * image.height > most:
            raise ValueError(
                f"{image.width}x{image.height} pixels, more than {most:,} in all; scale it "
                f"down, "
                f"or cut it up"
            )
        if (
            image.format in {"TIFF", "PNG", "WEBP", "GIF"} and image.n_frames > 1
        ):  # a JPEG's others are previews
            raise ValueError(f"it holds {image.n_frames} pictures; save the one that is meant")
        yield image


def header_of(path: str | Path) -> Header:
    """The header of an image. Raises one of UNREADABLE where it can be told by the header that the
    file is none.
    """
    with opened(path) as image:
        orientation = (
            1 if image.format == "PNG" and "exif" not in image.info else orientation_of(image)
        )
        on_its_side = orientation >= 5 and image.format != "TIFF"  # whose size Pillow gives upright
        size = (image.width, image.height) if on_its_side else (image.height, image.width)
        return Header(size, image.mode, image.format, orientation)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none. Pillow decodes a PNG to find it, and drops
    it as it decodes a TIFF.
    """
    tag = image.getexif().get(ExifTags.Base.Orientation)
    return tag if tag in range(2, 9) else 1


def open_rgb(path: str | Path) -> Image.Image:
    """The image as 8-bit RGB, turned upright as its EXIF tag says. 16-bit greys are scaled, not
    clipped.

    Raises one of UNREADABLE for a file that cannot be decoded to its end, or holds floats or values
    outside 0..65535.
    """
    with opened(path) as image:
        image.load()
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, upright. Transparency is laid over the fill colour. Raises ValueError for values
    that cannot be read.
    """
    _refuse_values(image)
    is_blended = image.mode in WITH_ALPHA or "transparency" in image.info
    if isinstance(image, TiffImageFile) and image.mode in WITH_ALPHA and not is_transparency(image):
        if 1 in image.tag_v2.get(EXTRASAMPLES, ()):
            raise ValueError(PREMULTIPLIED)
        is_blended = False
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values * (255 / 65535)).round().astype(np.uint8))
    if is_blended:
        ground = Image.new("RGBA", image.size, (*FILL, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


def is_transparency(image: Image.Image) -> bool:
    """Whether an alpha channel looks like one: most of what it shows is opaque. Infrared takes all
    values.
    """
    counts = image.getchannel("A").histogram()
    return counts[255] > 4 * sum(counts[1:255])


def _refuse_values(image: Image.Image) -> None:
    """Raises ValueError for floats, and for values outside 0..65535."""
    if image.mode == "F":
        raise ValueError(FLOATS)
    values = np.asarray(image) if image.mode.startswith("I") else None
    if (
        isinstance(image, TiffImageFile)
        and image.mode == "L"
        and image.tag_v2.get(SAMPLEFORMAT) == (2,)
    ):
        values = np.asarray(image).view(np.int8)  # which Pillow takes for unsigned
    if values is not None and not 0 <= values.min() <= values.max() <= 65535:
        found = (
            f"values from {values.min()} to {values.max()}, of which only 0 to 65535 can be read"
        )
        raise ValueError(f"{found}; map all images alike to that range, or save them with 8 bits")


def size_of(path: str | Path) -> Size | None:
    """(height, width) of an image once upright, from its header alone; None for what is no
    image.
    """
    try:
        return header_of(path).size
    except UNREADABLE:
        return None


def fitted_size(original: Size, size: Size) -> Size:
    """(height, width) that an image of size `original` takes on a canvas of `size`, its aspect
    kept.
    """
    scale = min(size[0] / original[0], size[1] / original[1])
    return max(1, min(size[0], round(original[0] * scale))), max(
        1, min(size[1], round(original[1] * scale))
    )


def fit_image(image: Image.Image, size: Size) -> Image.Image:
    """The image scaled to a canvas of `size` (height, width), padded at the bottom and the
    right.
    """
    height, width = fitted_size((image.height, image.width), size)
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return padded_image(image, size)


def padded_image(image: Image.Image, size: Size) -> Image.Image:
    """The image as it is, padded at the bottom and the right where it is smaller than `size`
    (height, width).
    """
    canvas = Image.new("RGB", (max(size[1], image.width), max(size[0], image.height)), FILL)
    canvas.paste(image)
    return canvas


def fit_mask(mask: np.ndarray, size: Size) -> Image.Image:
    """Class ids (h, w) uint8 scaled like the image, by nearest neighbour, padded with IGNORE."""
    height, width = fitted_size(mask.shape, size)
    image = Image.fromarray(mask)
    if mask.shape != (height, width):
        image = image.resize((width, height), Image.Resampling.NEAREST)
    canvas = Image.new("L", (size[1], size[0]), IGNORE)
    canvas.paste(image)
    return canvas


def color_of(class_id: int) -> tuple[int, int, int]:
    return PALETTE[class_id % len(PALETTE)]


def palette_image(mask: np.ndarray) -> Image.Image:
    """Class ids (h, w) uint8 as a palette PNG: the indices are the classes, the colours are for the
    eye.
    """
    image = Image.fromarray(
        mask.astype(np.uint8)
    )  # putpalette turns grey into a palette, indices kept
    colors = [color_of(i) for i in range(255)] + [(255, 255, 255)]
    image.putpalette([channel for color in colors for channel in color])
    return image


def overlay(image: Image.Image, mask: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The image with every class but 0 tinted; ignored pixels stay as they are."""
    table = np.array([color_of(i) for i in range(256)], dtype=np.float64)
    rgb = np.asarray(image.convert("RGB"), dtype=np.float64)
    shown = ((mask != 0) & (mask != IGNORE))[..., None]
    mixed = np.where(shown, (1 - opacity) * rgb + opacity * table[mask], rgb)
    return Image.fromarray(mixed.round().astype(np.uint8))
