"""The weights that training may change: copied out, and written back in."""

from __future__ import annotations

import torch
from torch import Tensor

from vitseg.model.freeze import model_parts, trained_parts
from vitseg.model.segmenter import Segmenter

Weights = dict[str, Tensor]


def trained_weights(model: Segmenter, unfrozen: int) -> Weights:
    """A copy, on the CPU, of every weight that may have changed with so many blocks unfrozen."""
    parts = model_parts(model)
    wanted = set[int]()
    for name in trained_parts(unfrozen, model.encoder.depth):
        wanted |= {id(parameter) for parameter in parts[name].parameters}
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
