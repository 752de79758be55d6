"""Pixels and sizes: files to RGB, images onto the network's canvas, predictions back to where they
came from.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps
from PIL.TiffImagePlugin import EXTRASAMPLES, SAMPLEFORMAT

IGNORE = 255
"""Class id of pixels that count nowhere: padding, void, what a rotation brings in."""

FILL = (124, 116, 104)
"""Colour of padding: the mean of ImageNet, close to zero once an encoder has normalised it."""

PALETTE = [
    ImageColor.getrgb(color)
    for color in (
        "#282828",
        "#d55e00",
        "#f0e442",
        "#0072b2",
        "#cc79a7",
        "#009e73",
        "#56b4e9",
        "#e69f00",
        "#882255",
        "#999933",
        "#44aa99",
        "#332288",
        "#ddcc77",
        "#aa4499",
    )
]
"""Class colours after Okabe & Ito and Tol: told apart by colour-blind readers. Repeats after the
last.
"""

Size = tuple[int, int]

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


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """The one picture of a file, no pixel decoded yet.

    Raises one of UNREADABLE, also where there are more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, of
    which Pillow only warns, and where the file holds pages or is animated: nothing says which
    picture is meant.
    """
    # by its path Pillow maps a TIFF, and scrambles a turned one
    with Path(path).open("rb") as file, Image.open(file) as image:
        most = Image.MAX_IMAGE_PIXELS or math.inf
        if image.width * image.height > most:
            raise ValueError(
                f"{image.width}x{image.height} pixels, more than {most:,} in all; scale it down, "
                f"or cut it up"
            )
        # a JPEG's others are previews
        if image.format in {"TIFF", "PNG", "WEBP", "GIF"} and image.n_frames > 1:
            raise ValueError(f"it holds {image.n_frames} pictures; save the one that is meant")
        yield image


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
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, upright. Transparency is laid over the fill colour. Raises ValueError for values
    that cannot be read.
    """
    tags, is_deep = getattr(image, "tag_v2", {}), image.mode.startswith("I")  # of a TIFF
    is_signed = image.mode == "L" and tags.get(SAMPLEFORMAT) == (2,)
    if image.mode == "F":
        raise ValueError("an image of floats, whose range is not known; save it with 8 or 16 bits")
    if is_deep or is_signed:
        values = np.asarray(image)
        if is_signed:
            values = values.view(np.int8)  # Pillow takes it for unsigned
        if not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError(
                f"values from {values.min()} to {values.max()}, of which only 0 to 65535 can be "
                f"read; map all images alike to that range, or save them with 8 bits"
            )
    with_alpha = image.mode.endswith("A")
    is_blended = with_alpha or "transparency" in image.info
    if tags and with_alpha and not is_transparency(image):
        is_blended = False
        if 1 in tags.get(EXTRASAMPLES, ()):
            raise ValueError(
                "its colours are premultiplied by an alpha channel that varies like an image; "
                "export it again as RGB"
            )
    image = ImageOps.exif_transpose(image)
    if is_deep:
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
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


def size_of(path: str | Path) -> Size | None:
    """(height, width) of an image once upright, from its header alone; None for what is no image.
    Not turned where the EXIF chunk of a PNG comes after the pixels.
    """
    try:
        with opened(path) as image:
            # that of a TIFF is given upright, and its tags are not in `info`
            is_turned = "exif" in image.info and orientation_of(image) >= 5
            return image.size if is_turned else image.size[::-1]
    except UNREADABLE:
        return None


def fitted_size(original: Size, size: Size) -> Size:
    """(height, width) that an image of size `original` takes on a canvas of `size`, its aspect
    kept.
    """
    scale = min(np.divide(size, original))
    return tuple(np.multiply(original, scale).round().astype(int).clip(1, size).tolist())


def fit_image(image: Image.Image, size: Size) -> Image.Image:
    """An RGB image scaled to a canvas of `size` (height, width), padded at the bottom and the
    right.
    """
    return _fitted(image, size, Image.Resampling.BILINEAR, FILL)


def fit_mask(mask: np.ndarray, size: Size) -> Image.Image:
    """Class ids (h, w) uint8 scaled like the image, by nearest neighbour, padded with IGNORE."""
    return _fitted(Image.fromarray(mask), size, Image.Resampling.NEAREST, IGNORE)


def _fitted(image: Image.Image, size: Size, method: Image.Resampling, fill: object) -> Image.Image:
    scaled = image.resize(fitted_size(image.size[::-1], size)[::-1], method)
    return padded_image(scaled, size, fill)


def padded_image(image: Image.Image, size: Size, fill: object = FILL) -> Image.Image:
    """The image as it is, padded at the bottom and the right where it is smaller than `size`
    (height, width).
    """
    size = max(size[1], image.width), max(size[0], image.height)
    canvas = Image.new(image.mode, size, fill)
    canvas.paste(image)
    return canvas


def color_of(class_id: int) -> tuple[int, int, int]:
    return PALETTE[class_id % len(PALETTE)]


def palette_image(mask: np.ndarray) -> Image.Image:
    """Class ids (h, w) uint8 as a palette PNG: the indices are the classes, the colours are for the
    eye.
    """
    colors = np.resize(PALETTE, (256, 3))
    colors[IGNORE] = 255
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(colors.ravel().tolist())  # turns grey into a palette, indices kept
    return image


def overlay(image: Image.Image, mask: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The image with every class but 0 tinted; ignored pixels stay as they are."""
    image = image.convert("RGB")
    tinted = Image.blend(image, palette_image(mask).convert("RGB"), opacity)
    return Image.composite(tinted, image, Image.fromarray((mask != 0) & (mask != IGNORE)))
