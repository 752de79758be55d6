"""What a step will keep is measured on one batch: compared with what autograd saves of others, and
with what is really alive.
"""

from __future__ import annotations

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitseg.model.freeze import set_freeze_depth
from vitseg.model.noise import key_noise
from vitseg.runs.forecast import forecast, measure, saved_by
from vitseg.training.job import Job

IMAGES, SIZE = 3, (70, 98)


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
def recipe(request, tiny_recipe):
    return tiny_recipe.replace({"model.decoder": request.param, "data.size": SIZE, "batch_size": 4})


def planned(recipe, unfrozen, images):
    """The activations in the forecast of stage 2, from a batch of four."""
    job = Job(recipe)
    changes = {"stages.1.unfrozen_blocks": unfrozen, "batch_size": images}
    _, forecast_of_two, _ = forecast(job.replace(recipe.settle(changes)[0]), measure(job))
    report = set_freeze_depth(job.model, unfrozen)
    return forecast_of_two.memory - 4 * (report.total + 3 * report.trainable)


def begun(job, unfrozen, images, recompute=False):
    """The forward pass of a step."""
    set_freeze_depth(job.model.train(), unfrozen)
    job.model.encoder.recompute = recompute
    key_noise(job.model, "test")
    masks = torch.zeros(images, *SIZE, dtype=torch.int64)
    levels = job.model.prefix(torch.zeros(images, 3, *SIZE, dtype=torch.uint8))
    return lambda: job.loss.sums(job.model.suffix(levels, SIZE), masks)


def really(job, *step):
    """What autograd saves of a step that is taken."""
    with job.machine.autocast():
        return saved_by(begun(job, *step))


@pytest.mark.parametrize("images", [1, 10])
@pytest.mark.parametrize("unfrozen", [0, 1, 4])
def test_from_a_batch_of_four_it_is_about_what_autograd_saves_of_any_number(
    recipe, unfrozen, images
):
    wanted = really(Job(recipe), unfrozen, images)
    assert planned(recipe, unfrozen, images) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("unfrozen", [0, 4])
def test_the_cast_weights_of_half_precision_make_it_more_rather_than_less(recipe, unfrozen):
    """They are saved once a step; in so small a model that is much."""
    half = recipe.replace({"precision": "bf16"})
    wanted = really(Job(half), unfrozen, 10)
    assert wanted <= planned(half, unfrozen, 10) < 1.3 * wanted


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_recomputation_one_block_is_whole_at_a_time(recipe, precision):
    recipe = recipe.replace({"precision": precision, "recompute": True})
    job = Job(recipe)
    one, four = (really(job, n, IMAGES, True) for n in (1, 4))
    decoder, whole = (really(job, n, IMAGES, False) for n in (0, 1))
    for blocks, wanted in ((0, decoder), (1, whole), (4, whole + four - one)):
        assert planned(recipe, blocks, IMAGES) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("unfrozen", [0, 1, 3])
def test_with_gradients_it_is_about_the_most_that_is_alive(recipe, recompute, unfrozen):
    recipe = recipe.replace({"recompute": recompute})
    saved, job = planned(recipe, unfrozen, IMAGES), Job(recipe)
    forward = begun(job, unfrozen, IMAGES, recompute)
    with Alive() as alive:
        forward().sum().backward()
    gradients = sum(p.grad.nbytes for p in job.model.parameters() if p.grad is not None)
    assert 0.9 * saved <= alive.most <= 1.1 * (saved + gradients)


def test_each_block_takes_less_with_recomputation(recipe):
    three, two = (planned(recipe, blocks, 4) for blocks in (3, 2))
    again = recipe.replace({"recompute": True})
    assert planned(again, 3, 4) - planned(again, 2, 4) < 0.25 * (three - two)
    assert planned(again, 0, 4) == planned(recipe, 0, 4)


def test_what_a_step_saves_follows_from_shapes_alone(recipe):
    job = Job(recipe)
    wanted = really(job, 2, IMAGES)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert really(job, 2, IMAGES) == wanted
