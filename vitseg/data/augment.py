"""Augmented views of an image, each a function of (view seed, image name, view).

Image and mask go through one affine warp with the same parameters, then through the effects of the
recipe, each with a random generator of its own. PIL does the work in 8-bit integers on one thread,
so a view is the same bits whatever the number of threads or loader workers. The three distortions
are one resampling by PIL through a mesh, image and mask through the same; see decision 18.
"""

import math
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version

import numpy as np
import torch
from numpy.random import Generator, default_rng
from PIL import Image, ImageEnhance, ImageFilter

from vitseg.draws import seed_for
from vitseg.effects import Effect
from vitseg.images import FILL, IGNORE, fit_image, fit_mask
from vitseg.settings import Data

CLEAN = "0"
Both = tuple[Image.Image, Image.Image]
"""Image (RGB) and mask (class ids, mode L) of one size."""

_COLOURS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def view_name(data: Data, stage: int, epoch: int) -> str:
    """Which view epoch `epoch` (from 1) of a stage shows; "0" is the clean one."""
    return f"fresh {stage} {epoch}" if data.views == "fresh" else str((epoch - 1) % data.views)


def crop_box(foreground: np.ndarray, data: Data, name: str, view: str) -> list[int] | None:
    """[left, top, right, bottom] around the foreground (h, w) bool in pixels of the original image;
    None where it stays whole.
    """
    if data.crop is None or view == CLEAN:
        return None
    rng = default_rng(seed_for(data.view_seed, "crop", name, view))
    box = Image.fromarray(foreground).getbbox()
    if box is None or rng.random() >= data.crop.p:
        return None
    left, top, right, bottom = box
    margin = round(data.crop.margin * max(right - left, bottom - top))
    grown = np.add(box, (-margin, -margin, margin, margin))
    return grown.clip(0, foreground.shape[::-1] * 2).tolist()


def make_view(
    image: Image.Image, mask: Image.Image, data: Data, name: str, view: str
) -> tuple[Image.Image, Image.Image, list[str]]:
    """The view of a fitted image (RGB) and its mask (class ids, mode L), and what was done to make
    it, in words and in order.
    """
    if view == CLEAN:
        return image, mask, ["clean"]
    # The order of the draws is kept: another one would change every view.
    cfg = data.augment
    rng = default_rng(seed_for(data.view_seed, "view", name, view))
    mirrored = cfg.flip_horizontal and rng.random() < 0.5
    upside_down = cfg.flip_vertical and rng.random() < 0.5
    degrees = rng.uniform(-cfg.rotate_degrees, cfg.rotate_degrees)
    zoom = math.exp(rng.uniform(-1, 1) * math.log1p(cfg.zoom))
    image, mask = _warp((image, mask), 1 - 2 * np.array([mirrored, upside_down]), degrees, zoom)
    is_visible = {
        "mirrored": mirrored,
        "upside down": upside_down,
        f"turned {degrees:+.0f}°": abs(degrees) >= 0.5,
        f"zoom {zoom:.2f}": abs(zoom - 1) >= 0.005,
    }
    for colour, enhancer in _COLOURS.items():
        most = getattr(cfg, colour)
        change = rng.uniform(-most, most)
        image = enhancer(image).enhance(1 + change)
        is_visible[f"{colour} {change:+.0%}"] = abs(change) >= 0.005
    words = [word for word, visible in is_visible.items() if visible]
    for effect, rng in occurring(data, name, view):
        image, mask = apply_effect((image, mask), effect, rng)
        words.append(effect.kind.replace("_", " "))
    return image, mask, words


def _warp(pair: Both, flips: np.ndarray, degrees: float, zoom: float) -> Both:
    """Flip, rotate and zoom about the centre in one resampling."""
    angle, centre = math.radians(degrees), np.array(pair[0].size) / 2
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    turn = flips[:, None] * [[cos, sin], [-sin, cos]]
    shift = centre - turn[:, 0] * centre[0] - turn[:, 1] * centre[1]
    # PIL maps output pixels to input pixels, (x, y) -> (ax + by + c, dx + ey + f)
    return _resampled(pair, Image.Transform.AFFINE, np.column_stack([turn, shift]).ravel().tolist())


def _resampled(pair: Both, method: Image.Transform, data: list) -> Both:
    image, mask = pair
    return (
        image.transform(image.size, method, data, Image.Resampling.BILINEAR, fillcolor=FILL),
        mask.transform(mask.size, method, data, Image.Resampling.NEAREST, fillcolor=IGNORE),
    )


# ---------------------------------------------------------------------- effects


def occurring(data: Data, name: str, view: str) -> Iterator[tuple[Effect, Generator]]:
    """The effects that chance gives a view, in order, each with the generator that its numbers come
    from.

    A generator is a function of the effect's place too, so that no effect changes what another one
    draws.
    """
    for place, effect in enumerate(data.effects):
        rng = default_rng(seed_for(data.view_seed, "effect", name, view, place, effect.kind))
        if rng.random() < effect.p:
            yield effect, rng


def apply_effect(pair: Both, effect: Effect, rng: Generator) -> Both:
    """The pair after an effect. What is brought in is FILL in the image, IGNORE in the mask."""
    image, mask = pair
    size = np.array(image.size)
    match effect.kind:
        case "right_angle":
            turn = Image.Transpose.ROTATE_90 + rng.integers(3)  # or 180, or 270
            canvas = image.size[::-1]
            mask = fit_mask(np.asarray(mask.transpose(turn)), canvas)
            image = fit_image(image.transpose(turn), canvas)
        case "hue":
            degrees = rng.uniform(-effect.degrees, effect.degrees)
            pixels = np.array(image.convert("HSV"))
            pixels[..., 0] += np.uint8(round(degrees / 360 * 256) % 256)
            image = Image.fromarray(pixels, "HSV").convert("RGB")
        case "blur":
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, effect.sigma_pixels)))
        case "elastic":
            nodes = _lattice(size, effect.cells)
            moved = rng.uniform(-effect.strength, effect.strength, nodes.shape)
            return _through_mesh(pair, nodes + moved * (size / effect.cells))
        case "grid_distortion":
            steps = 1 + rng.uniform(-effect.strength, effect.strength, (2, effect.cells))
            x, y = (np.pad(np.cumsum(s / s.sum()), (1, 0)) for s in steps)
            return _through_mesh(pair, np.stack(np.meshgrid(x, y), -1) * size)
        case "optical_distortion":
            middle, k = size / 2, rng.uniform(-effect.strength, effect.strength)
            # 12 cells meet the curve of the strongest lens within a hundredth of the canvas
            away = _lattice(size, 12) - middle
            r2 = (away**2).sum(-1, keepdims=True) / (middle**2).sum()
            return _through_mesh(pair, middle + away * (1 + k * r2))
        case "coarse_dropout":
            image = image.copy()
            for _ in range(rng.integers(1, effect.holes + 1)):
                hole = (rng.uniform(0, effect.side, 2) * size).round().clip(1).astype(int)
                corner = rng.integers(size - hole + 1)
                image.paste(FILL, (*corner, *(corner + hole)))
        case "clahe":
            from kornia.enhance import equalize_clahe  # a quarter of a second

            pixels, tiles = np.array(image.convert("YCbCr")), (effect.cells, effect.cells)
            values = torch.from_numpy(pixels[..., 0]).double()[None] / 255
            equal = equalize_clahe(values, rng.uniform(1, effect.clip_limit), tiles)[0] * 255
            # Counts are whole numbers, so sums are exact in any order. What is left to the threads
            # is the last bit of a mixture of four of them, a multiple of 1 / (4 x pixels of a
            # tile): far from a half, or on it, which is always rounded up.
            pixels[..., 0] = (equal + (0.5 + 1e-9)).floor().clamp(0, 255)
            image = Image.fromarray(pixels, "YCbCr").convert("RGB")
    return image, mask


@cache
def libraries(effects: tuple[Effect, ...]) -> dict[str, str]:
    """Versions of what else the pixels of these effects depend on."""
    used = {effect.kind for effect in effects}
    return {"kornia": version("kornia")} if "clahe" in used else {}


def _lattice(size: Iterable[int], cells: int) -> np.ndarray:
    """Nodes (cells + 1, cells + 1, 2) of an even lattice over `size` (width, height): (x, y) in
    whole pixels, as float64.
    """
    x, y = np.linspace(0, size, cells + 1).round().T
    return np.stack(np.meshgrid(x, y), -1)


def _through_mesh(pair: Both, nodes: np.ndarray) -> Both:
    """Image and mask resampled at once: what is to lie on each node of the even lattice is taken
    from `nodes` (x, y) there.

    Between the nodes places are mixed bilinearly, so that neighbouring cells meet.
    """
    even = _lattice(pair[0].size, len(nodes) - 1).astype(int)
    boxes = np.concatenate([even[:-1, :-1], even[1:, 1:]], -1).reshape(-1, 4)
    corners = nodes[:-1, :-1], nodes[1:, :-1], nodes[1:, 1:], nodes[:-1, 1:]  # NW SW SE NE
    quads = np.concatenate(corners, -1).reshape(-1, 8)
    mesh = list(zip(boxes.tolist(), quads.tolist(), strict=True))
    return _resampled(pair, Image.Transform.MESH, mesh)
