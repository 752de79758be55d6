"""What a step will keep is worked out from shapes: held against what autograd really saves, and
what is really alive.
"""

from __future__ import annotations

import contextlib
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel

from vitseg.model.decoder import build_decoder
from vitseg.model.encoder import Encoder
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.runs.memory import StepMemory, kept_by_a_step, shapes_only
from vitseg.training.losses import SegmentationLoss

IMAGES = 3


class Alive(TorchDispatchMode):
    """Bytes of all tensors that are made in its context, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if (
                isinstance(tensor, torch.Tensor)
                and (key := (storage := tensor.untyped_storage())._cdata) not in self._known
            ):
                self._known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.fixture(params=["lean", "unet"])
def model(request, tiny_recipe):
    return build_segmenter(
        tiny_recipe.model.model_copy(update={"decoder": request.param}),
        ("a", "b", "c"),
        (70, 98),
        0,
    )


@pytest.fixture
def loss(tiny_recipe):
    return SegmentationLoss(tiny_recipe.loss, 3)


def kept(model, loss, context, *, recompute=False, dtype=None, images=IMAGES):
    autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
    with context:
        return kept_by_a_step(model, loss, images, recompute=recompute, autocast=autocast)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_from_shapes_it_is_what_autograd_saves(model, loss, recompute, dtype):
    planned = kept(model, loss, shapes_only(), recompute=recompute, dtype=dtype)
    really = kept(model, loss, contextlib.nullcontext(), recompute=recompute, dtype=dtype)
    for ours, theirs in (
        (planned.decoder, really.decoder),
        (planned.at(4), really.at(4)),
        (planned.again, really.again),
    ):
        assert ours == pytest.approx(theirs, rel=0.001)  # in mixed precision all but a few bytes


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("unfrozen", [0, 1, 3])
def test_with_gradients_it_is_about_the_most_that_is_alive(model, loss, recompute, unfrozen):
    planned = kept(model, loss, shapes_only(), recompute=recompute).at(unfrozen)
    images, masks = (
        torch.zeros(IMAGES, 3, 70, 98, dtype=torch.uint8),
        torch.zeros(IMAGES, 70, 98, dtype=torch.int64),
    )
    set_freeze_depth(model.train(), unfrozen)
    model.encoder.recompute = recompute
    levels = model.prefix(images)
    with Alive() as alive:
        loss(model.suffix(levels, (70, 98)), masks).backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert 0.9 * planned <= alive.most <= 1.1 * (planned + gradients)


def test_it_grows_with_the_images_and_less_with_recomputation(model, loss):
    one, two, four = (kept(model, loss, shapes_only(), images=n) for n in (1, 2, 4))
    assert four.at(2) - two.at(2) == pytest.approx(2 * (two.at(2) - one.at(2)), rel=0.01)
    again = kept(model, loss, shapes_only(), recompute=True, images=4)
    assert (
        again.decoder == four.decoder
        and again.block < 0.2 * four.block
        and again.again == four.block
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_two_and_four_images_tell_what_any_number_needs(model, loss, recompute):
    line = StepMemory(
        *(kept(model, loss, shapes_only(), recompute=recompute, images=n) for n in (2, 4))
    )
    for images in (1, 3, 16):
        there = kept(model, loss, shapes_only(), recompute=recompute, images=images)
        for unfrozen in (0, 1, 4):
            assert line.at(unfrozen, images) == pytest.approx(there.at(unfrozen), rel=0.001)


def test_a_model_of_shapes_alone_takes_no_memory(model, loss, tiny_recipe):
    real = kept(model, loss, shapes_only())
    with torch.device("meta"):
        vit = AutoModel.from_config(model.encoder.vit.config)
    with (mode := shapes_only()):
        encoder = Encoder(vit.to_empty(device="cpu"))
    shapes = Segmenter(
        encoder,
        build_decoder(model.shape.decoder, encoder.width, 3, model.shape.dropout, 0),
        model.shape,
    )
    assert kept(shapes, loss, mode) == real
