"""Looking into a model: what attends to what, what a class rests on, what features have in common.
It is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitseg.errors import ConfigError
from vitseg.images import fitted_size
from vitseg.model.encoder import Levels
from vitseg.model.segmenter import Segmenter, in_eval_mode, likeliest


def all_levels(model: Segmenter, image: Image.Image) -> Levels:
    """The tokens (1, N, D) of an image at every level, 0 .. L."""
    encoder = model.encoder
    with in_eval_mode(model), torch.no_grad():
        pixels = model.normalise(model.canvas(image))
        return encoder.run(
            encoder.embed(pixels),
            0,
            encoder.depth,
            set(range(encoder.depth + 1)),
            tuple(pixels.shape[2:]),
        )


def attention(model: Segmenter, image: Image.Image, block: int) -> Tensor:
    """How much the class token looks at each patch of the image in block 1 .. L: (heads, h, w)."""
    encoder, padded = model.encoder, model.padded(model.shape.size)
    _check("block", block, 1, encoder.depth)
    table = encoder.attention(all_levels(model, image)[block - 1], block, padded)
    looks = table[0, :, 0, encoder.prefix_tokens :]
    return _of_the_image(looks.unflatten(1, _grid(model)), model, image)


def grad_cam(model: Segmenter, image: Image.Image, class_id: int, level: int) -> Tensor:
    """Where the tokens of a level speak for a class: (h, w) on the patch grid, at least 0, the
    largest 1 unless all are 0.

    Grad-CAM for segmentation (Vinogradova et al. 2020): channels are weighed by the mean gradient
    of the class's logits, summed over the pixels predicted as that class, or over all if there are
    none.
    """
    encoder = model.encoder
    _check("level", level, 0, model.shape.skip_depths[-1])
    _check("class_id", class_id, 0, len(model.shape.classes) - 1)
    levels, size = all_levels(model, image), model.shape.size
    height, width = fitted_size((image.height, image.width), size)

    def logits_from(tokens: Tensor) -> Tensor:
        padded, depths = model.padded(size), set(model.shape.skip_depths)
        known = levels | encoder.run(tokens, level, model.shape.skip_depths[-1], depths, padded)
        skips = [encoder.to_map(known[d], padded) for d in model.shape.skip_depths]
        return model.decoder(skips, padded)[0, :, :height, :width]

    with in_eval_mode(model):
        with torch.no_grad():
            logits = logits_from(levels[level])
        where = likeliest(logits[None])[0] == class_id
        where = where if where.any() else torch.ones_like(where)
        gradient = torch.func.grad(lambda tokens: logits_from(tokens)[class_id][where].sum())(
            levels[level]
        ).detach()
    patches, slopes = (t[0, encoder.prefix_tokens :] for t in (levels[level], gradient))
    cam = (patches @ slopes.mean(0)).relu().unflatten(0, _grid(model))
    cam = _of_the_image(cam, model, image)
    return cam / cam.max().clamp(min=1e-12)


def pca_colors(maps: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps (D, h, w) in colours (h, w, 3) in 0..1: their three main directions, common to
    all, as red, green and blue.

    So the same colour means the same features in every map. Of each direction the outer 2 % are cut
    off.
    """
    rows = torch.cat([m.flatten(1).T for m in maps]).double()
    rows = rows - rows.mean(0)
    _, directions = torch.linalg.eigh(rows.T @ rows)  # rising; not pca_lowrank, which draws
    directions = directions[:, -3:].flip(1)
    directions = (
        directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    )  # else the sign is free
    found = rows @ directions
    low, high = found.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    colors = ((found - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float()
    parts = colors.split([math.prod(m.shape[1:]) for m in maps])
    return [part.unflatten(0, tuple(m.shape[1:])) for part, m in zip(parts, maps, strict=True)]


def feature_map(model: Segmenter, image: Image.Image, level: int) -> Tensor:
    """Features (D, h, w) of the patches of an image at level 0 .. L, normed as the decoder gets
    them.
    """
    _check("level", level, 0, model.encoder.depth)
    with torch.no_grad():
        features = model.encoder.to_map(
            all_levels(model, image)[level], model.padded(model.shape.size)
        )[0]
    return _of_the_image(features, model, image)


def spread(grid: Tensor, model: Segmenter, image: Image.Image) -> Tensor:
    """A map (h, w) on the patch grid, as `attention` and `grad_cam` give it, at the image's own
    size and in 0..1.
    """
    canvas = F.interpolate(
        grid[None, None].float(),
        scale_factor=model.encoder.patch,
        mode="bilinear",
        align_corners=False,
    )
    original = (image.height, image.width)
    height, width = fitted_size(original, model.shape.size)
    heat = F.interpolate(
        canvas[..., :height, :width], size=original, mode="bilinear", align_corners=False
    )[0, 0]
    return (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)


def _grid(model: Segmenter) -> tuple[int, int]:
    height, width = model.padded(model.shape.size)
    return height // model.encoder.patch, width // model.encoder.patch


def _of_the_image(grid: Tensor, model: Segmenter, image: Image.Image) -> Tensor:
    """Of a map (..., h, w) on the canvas, the patches that the image reaches, on the CPU."""
    height, width = (
        math.ceil(s / model.encoder.patch)
        for s in fitted_size((image.height, image.width), model.shape.size)
    )
    return grid[..., :height, :width].cpu()


def _check(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(field, value, f"{least}..{most}")
