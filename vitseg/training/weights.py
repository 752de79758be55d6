"""The weights that training may change: copied out, and written back in."""

import torch
from torch import Tensor

from vitseg.model.freeze import model_parts, trained_parts
from vitseg.model.segmenter import Segmenter

Weights = dict[str, Tensor]


def trained_weights(model: Segmenter, unfrozen: int) -> Weights:
    """A copy, on the CPU, of every weight that may have changed with so many blocks unfrozen."""
    parts = model_parts(model)
    trained = trained_parts(unfrozen, model.encoder.depth)
    wanted = {parameter for name in trained for parameter in parts[name].parameters}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor in wanted or name.startswith("decoder."):  # whose buffers change too
            found[name] = tensor.detach().cpu().clone()
    return found


@torch.no_grad()
def load_weights(model: Segmenter, weights: Weights) -> None:
    """Write weights into the model, in place. Raises ValueError, and writes nothing, where it does
    not have one like that.
    """
    own = model.state_dict()
    for name, tensor in weights.items():
        here = tuple(own[name].shape) if name in own else "missing"
        if tuple(tensor.shape) != here:
            raise ValueError(f"{name} {tuple(tensor.shape)} is {here} here")
    for name, tensor in weights.items():
        own[name].copy_(tensor)
