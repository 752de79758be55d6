"""What a training step keeps in memory for its backward pass, from shapes alone: exact, and nothing
is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
)  # what torch.compile and torch.export rest on

from vitseg.model.freeze import set_freeze_depth
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter
from vitseg.training.losses import SegmentationLoss


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that a step's backward pass needs: those of the decoder, of the first block that
    trains, and of each further one.

    `again` is what a block needs while it is run once more, where blocks are; else 0.
    """

    decoder: int
    first: int = 0
    block: int = 0
    again: int = 0

    def at(self, unfrozen: int) -> int:
        """All of it at a freeze depth, at the moment at which it is most."""
        return self.decoder + (
            (self.first + self.again + (unfrozen - 1) * self.block) if unfrozen else 0
        )


@dataclass(frozen=True, slots=True)
class StepMemory:
    """The same for any number of images: a line through what steps of two and of four need."""

    two: Kept
    four: Kept

    def at(self, unfrozen: int, images: int) -> int:
        two, four = self.two.at(unfrozen), self.four.at(unfrozen)
        return two + (four - two) * (images - 2) // 2


def shapes_only() -> FakeTensorMode:
    """In this context tensors have shapes and no content: a model that is made in it takes no
    memory.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def kept_by_a_step(
    model: Segmenter,
    loss: SegmentationLoss,
    images: int,
    *,
    recompute: bool,
    autocast: torch.autocast,
    blocks: bool = True,
) -> Kept:
    """What a step over so many images keeps; without `blocks`, of the decoder alone. Call it under
    `shapes_only`, with a model whose freeze depth may be changed.
    """

    def kept(unfrozen: int, recompute: bool) -> int:
        set_freeze_depth(model.train(), unfrozen)
        model.encoder.recompute = recompute
        key_noise(model, "memory")
        height, width = model.shape.size
        masks = torch.zeros(images, height, width, dtype=torch.int64, device=model.device)
        saved = _Saved()
        with autocast:
            levels = model.prefix(
                torch.zeros(images, 3, height, width, dtype=torch.uint8, device=model.device)
            )
            with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
                loss.sums(model.suffix(levels, model.shape.size), masks)
        return saved.bytes()

    decoder = kept(0, recompute)
    if not blocks:
        return Kept(decoder)
    one, two = kept(1, recompute), kept(2, recompute)
    again = kept(2, False) - kept(1, False) if recompute else 0
    return Kept(decoder, one - decoder, two - one, again)


class _Saved:
    """Memory that autograd holds on to, each piece once, parameters apart: they are there
    anyway.
    """

    def __init__(self) -> None:
        self._held = dict[int, torch.UntypedStorage]()

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self._held[storage._cdata] = storage
        return tensor

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._held.values())
