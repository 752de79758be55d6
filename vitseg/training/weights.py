"""The weights that training may change: copied out, and written back in."""

from __future__ import annotations

import torch
from torch import Tensor

from vitseg.model.freeze import checked_depth, model_parts, trained_parts
from vitseg.model.segmenter import Segmenter
from vitseg.recipe import Recipe

Weights = dict[str, Tensor]


def trained_weights(model: Segmenter, recipe: Recipe, stage: int) -> Weights:
    """A copy, on the CPU, of every weight that stages 1 .. `stage` may have changed."""
    depth = model.encoder.depth
    deepest = max(checked_depth(s.unfrozen_blocks, depth) for s in recipe.stages[:stage])
    wanted = {
        id(p) for name in trained_parts(deepest, depth) for p in model_parts(model)[name].parameters
    }
    named = {n: p for n, p in model.named_parameters() if id(p) in wanted}
    named |= {n: b for n, b in model.named_buffers() if n.startswith("decoder.")}
    return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}


@torch.no_grad()
def load_weights(model: Segmenter, weights: Weights) -> None:
    """Write weights into the model, in place. Raises ValueError, and writes nothing, where it does
    not have one like that.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            here = f"{tuple(own[name].shape)} here" if name in own else "not in this model"
            raise ValueError(f"{name} {tuple(tensor.shape)} is {here}")
    for name, tensor in weights.items():
        own[name].copy_(tensor)
