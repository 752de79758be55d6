"""Looking into a model: what attends to what, what a class rests on, what features have in common,
how far training has moved the weights. The model is left as it was.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from vitseg.errors import ConfigError
from vitseg.images import fitted_size
from vitseg.model.encoder import Levels
from vitseg.model.freeze import DECODER, model_parts
from vitseg.model.segmenter import (
    Segmenter,
    build_segmenter,
    in_eval_mode,
    likeliest,
    load_parts,
    restored,
)
from vitseg.runs.folder import RunFolder


def all_levels(model: Segmenter, image: Image.Image) -> Levels:
    """The tokens (1, N, D) of an image at every level, 0 .. L."""
    encoder, padded = model.encoder, model.padded(model.shape.size)
    with in_eval_mode(model):
        tokens = encoder.embed(model.normalise(model.canvas(image)))
        return encoder.run(tokens, 0, encoder.depth, set(range(encoder.depth + 1)), padded)


def attention(model: Segmenter, image: Image.Image, block: int) -> Tensor:
    """How much the class token looks at each patch of the image in block 1 .. L: (heads, h, w)."""
    encoder = model.encoder
    _check("block", block, 1, encoder.depth)
    below = all_levels(model, image)[block - 1]
    table = encoder.attention(below, block, model.padded(model.shape.size))  # (1, heads, N, N)
    return _on_patches(table[0, :, 0], model, image)


def grad_cam(model: Segmenter, image: Image.Image, class_id: int, level: int) -> Tensor:
    """Where the tokens of a level speak for a class: (h, w) on the patch grid, at least 0, the
    largest 1 unless all are 0.

    Grad-CAM for segmentation (Vinogradova et al. 2020): channels are weighed by the mean gradient
    of the class's logits, summed over the pixels predicted as that class, or over all if there are
    none.
    """
    shape = model.shape
    _check("level", level, 0, shape.skip_depths[-1])
    _check("class_id", class_id, 0, len(shape.classes) - 1)
    levels = all_levels(model, image)
    height, width = fitted_size(image.size[::-1], shape.size)

    def class_logits(tokens: Tensor) -> Tensor:
        logits = model.suffix(levels | {level: tokens}, shape.size, level)[:, :, :height, :width]
        predicted = likeliest(logits) == class_id
        return logits[:, class_id][predicted if predicted.any() else ...].sum()

    tokens = levels[level]
    with in_eval_mode(model):
        gradient = torch.func.grad(class_logits)(tokens)
    weights = gradient[0, model.encoder.prefix_tokens :].mean(0)  # (D,)
    cam = _on_patches((tokens[0] @ weights).relu(), model, image)
    return cam / cam.max().clamp(min=1e-12)


def feature_map(model: Segmenter, image: Image.Image, level: int) -> Tensor:
    """Features (D, h, w) of the patches of an image at level 0 .. L, normed as the decoder gets
    them.
    """
    _check("level", level, 0, model.encoder.depth)
    tokens = all_levels(model, image)[level]
    with torch.no_grad():
        return _on_patches(model.encoder.norm(tokens)[0].T, model, image)


def pca_colors(maps: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps (D, h, w) in colours (h, w, 3) in 0..1: their three main directions, common to
    all, as red, green and blue.

    So the same colour means the same features in every map. Of each direction the outer 2 % are cut
    off.
    """
    rows = torch.cat([m.flatten(1).T for m in maps]).double()
    _, directions = torch.linalg.eigh(rows.T.cov())  # rising; not pca_lowrank, which draws
    directions, colors = directions[:, -3:].flip(1), []
    low, high = (rows @ directions).quantile(rows.new_tensor([0.01, 0.99]), 0)
    for features in maps:
        found = features.movedim(0, -1).double() @ directions - low
        colors.append((found / (high - low).clamp(min=1e-12)).clamp(0, 1).float())
    return colors


def spread(grid: Tensor, model: Segmenter, image: Image.Image) -> Tensor:
    """A map (h, w) on the patch grid, as `attention` and `grad_cam` give it, at the image's own
    size and in 0..1.
    """
    height, width = model.shape.size
    patch, grid = model.encoder.patch, grid[None, None].float()
    canvas = F.interpolate(grid, scale_factor=patch, mode="bilinear")
    heat = restored(canvas[0, :, :height, :width], image.size[::-1])[0]
    heat = heat - heat.min()
    return heat / heat.max().clamp(min=1e-12)


@torch.no_grad()
def drift(folder: str | Path) -> dict[int, dict[str, float]]:
    """By stage that has ended, for each part of the encoder |w - w0| / |w0| over all its weights,
    w0 the pretrained ones.

    0 is exactly unmoved. Of the weights that the stage hands on as its best.
    """
    run = RunFolder(folder)
    cfg = run.recipe
    model = build_segmenter(cfg.model, run.summary["classes"], cfg.data.size, cfg.seed)
    parts = model_parts(model)
    del parts[DECODER]
    before = {name: parameters_to_vector(p.parameters).double() for name, p in parts.items()}
    found: dict[int, dict[str, float]] = {}
    for stage in run.ended_stages():
        model.load_state_dict(load_parts(run.stage(stage) / "best"), strict=False)
        found[stage] = {}
        for name, part in parts.items():
            moved = parameters_to_vector(part.parameters) - before[name]
            found[stage][name] = float(moved.norm() / before[name].norm())
    return found


def _on_patches(values: Tensor, model: Segmenter, image: Image.Image) -> Tensor:
    """Of values (..., N) of the canvas's tokens, those of the patches that the image reaches, as a
    map (..., h, w) on the CPU.
    """
    patch = model.encoder.patch
    height, width = model.padded(fitted_size(image.size[::-1], model.shape.size))
    columns = model.padded(model.shape.size)[1] // patch
    grid = values[..., model.encoder.prefix_tokens :].unflatten(-1, (-1, columns))
    return grid[..., : height // patch, : width // patch].cpu()


def _check(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(field, value, f"{least}..{most}")
