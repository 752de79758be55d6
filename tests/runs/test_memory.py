"""What a step will keep is worked out from shapes: held against what autograd really saves, and
what is really alive.
"""

from __future__ import annotations

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel

from vitseg.model.decoder import build_decoder
from vitseg.model.encoder import Encoder
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.runs.forecast import saved_by_a_step, step_memory
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


def planned(model, loss, *, recompute=False, dtype=None, mode=None):
    """From shapes alone."""
    model.encoder.recompute = recompute
    with mode or FakeTensorMode(allow_non_fake_inputs=True):
        return step_memory(model, loss, autocast(dtype))


def really(model, loss, unfrozen, images, *, recompute=False, dtype=None):
    """What autograd saves of a step that is taken."""
    model.encoder.recompute = recompute
    return saved_by_a_step(model, loss, unfrozen, images, autocast(dtype))


def autocast(dtype):
    return torch.autocast("cpu", dtype, enabled=dtype is not None)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("images", [1, 2, 3, 16])
@pytest.mark.parametrize("unfrozen", [0, 1, 4])
def test_from_shapes_of_two_and_four_images_it_is_what_autograd_saves_of_any_number(
    model, loss, unfrozen, images, dtype
):
    found = really(model, loss, unfrozen, images, dtype=dtype)
    wanted = planned(model, loss, dtype=dtype).at(unfrozen, images)
    assert wanted == pytest.approx(found, rel=0.005)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_with_recomputation_one_block_is_whole_at_a_time(model, loss, dtype):
    one, four = (really(model, loss, n, IMAGES, recompute=True, dtype=dtype) for n in (1, 4))
    decoder, whole = (really(model, loss, n, IMAGES, dtype=dtype) for n in (0, 1))
    memory = planned(model, loss, recompute=True, dtype=dtype)
    for blocks, wanted in ((0, decoder), (1, whole), (4, whole + four - one)):
        assert memory.at(blocks, IMAGES) == pytest.approx(wanted, rel=0.005)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("unfrozen", [0, 1, 3])
def test_with_gradients_it_is_about_the_most_that_is_alive(model, loss, recompute, unfrozen):
    saved = planned(model, loss, recompute=recompute).at(unfrozen, IMAGES)
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
    assert 0.9 * saved <= alive.most <= 1.1 * (saved + gradients)


def test_it_grows_with_the_images_and_less_with_recomputation(model, loss):
    whole, again = (planned(model, loss, recompute=recompute) for recompute in (False, True))
    assert whole.at(2, 4) - whole.at(2, 2) == pytest.approx(
        2 * (whole.at(2, 2) - whole.at(2, 1)), rel=0.01
    )
    block, less = (memory.at(3, 4) - memory.at(2, 4) for memory in (whole, again))
    assert again.at(0, 4) == whole.at(0, 4) and less < 0.2 * block


def test_a_model_of_shapes_alone_takes_no_memory(model, loss, tiny_recipe):
    real = planned(model, loss)
    with torch.device("meta"):
        vit = AutoModel.from_config(model.encoder.vit.config)
    with (mode := FakeTensorMode(allow_non_fake_inputs=True)):
        encoder = Encoder(vit.to_empty(device="cpu"))
    shapes = Segmenter(
        encoder,
        build_decoder(model.shape.decoder, encoder.width, 3, model.shape.dropout, 0),
        model.shape,
    )
    found = planned(shapes, loss, mode=mode)
    assert found.two.tolist() == real.two.tolist() and found.four.tolist() == real.four.tolist()
