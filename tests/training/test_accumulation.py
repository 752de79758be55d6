"""A batch in portions is the same batch: the same losses and the same weights, dropout and the last
step included.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vitseg.errors import RecipeError
from vitseg.events import BatchEnded
from vitseg.images import IGNORE
from vitseg.model.noise import key_noise
from vitseg.recipe import Recipe
from vitseg.training import loop

SGD = {"optimizer": {"kind": "sgd"}}
"""Where weights are compared most closely. Adam divides a gradient by its own size, and so makes a
difference of a last bit, where gradients cancel to nearly 0, into one of the size of the LR.
"""

NOISY = {"model.dropout": 0.3, "stages.1.drop_path": 0.3, "stages.1.unfrozen_blocks": 2}
PARTIAL = {10: 2, 11: 3}  # images to train on: images in the last step, where a step is four


@pytest.fixture
def recipe(small_recipe: Recipe) -> Recipe:
    """Stage 2 with dropout and drop-path; rotated views, so that portions differ in the number of
    pixels that count.
    """
    return small_recipe.replace(
        {**NOISY, "data.views": "fresh", "data.augment.rotate_degrees": 90.0, "stages.1.epochs": 3}
    )


def trained(
    begin, recipe: Recipe, portion: int, portions: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of stage 2, its steps taken as so many portions of so many images."""
    stage = begin(recipe.replace({"batch_size": portion, "accumulate": portions}), 2)
    return [e.loss for e in stage if isinstance(e, BatchEnded)], stage.trained_weights()


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages.1.lr": 3e-5},
        SGD,
        SGD | {"loss": {"class_weights": [0.2, 1.0, 3.0], "focal": 0.5, "label_smoothing": 0.1}},
        SGD | {"model.decoder": "unet"},
    ],
    ids=["AdamW", "SGD", "class weights and focal", "unet"],
)
@pytest.mark.parametrize("images", PARTIAL)
def test_two_portions_of_two_are_one_of_four(begin, recipe, changes, images):
    recipe = recipe.replace({"data.source.images": images + 2} | changes)
    losses, weights = trained(begin, recipe, 4, 1)
    losses_in_portions, weights_in_portions = trained(begin, recipe, 2, 2)
    assert len(losses) == 3 * 3  # of 4, 4 and 2 or 3 images
    assert losses_in_portions == pytest.approx(losses, rel=1e-6, abs=0.0)
    assert largest_difference(weights, weights_in_portions) <= 1e-6


@pytest.mark.parametrize(("portion", "portions"), [(1, 4), (3, 2), (10, 2)])
def test_other_ways_to_cut_a_batch(begin, recipe, portion, portions):
    """Portions that divide neither the step nor the epoch; `accumulate` may even exceed the
    epoch.
    """
    recipe = recipe.replace(SGD)
    losses, weights = trained(begin, recipe, portion * portions, 1)
    losses_in_portions, weights_in_portions = trained(begin, recipe, portion, portions)
    assert losses_in_portions == pytest.approx(losses, rel=1e-6, abs=0.0)
    assert largest_difference(weights, weights_in_portions) <= 1e-6


def test_the_learning_rate_moves_with_steps_and_not_with_portions(begin, recipe):
    def lrs(portion: int, portions: int) -> list[dict[str, float]]:
        changed = recipe.replace({"batch_size": portion, "accumulate": portions})
        return [e.lr for e in begin(changed) if isinstance(e, BatchEnded)]

    assert lrs(2, 2) == lrs(4, 1) == lrs(1, 4)


# ------------------------------------------------------------------ controls: the test above can
# fail


def test_portions_that_draw_the_same_dropout_are_noticed(begin, recipe, monkeypatch):
    whole, _ = trained(begin, recipe, 4, 1)
    monkeypatch.setattr(loop, "key_noise", lambda model, *key, first_sample: key_noise(model, *key))
    wrong, _ = trained(begin, recipe, 2, 2)
    assert wrong != pytest.approx(whole, rel=1e-4)


def test_a_mean_of_the_portions_means_is_noticed(begin, recipe, monkeypatch):
    """What most loops do: each portion divided by its own count, then averaged."""
    quiet = recipe.replace({"model.dropout": 0.0, "stages.1.drop_path": 0.0})
    whole, _ = trained(begin, quiet, 4, 1)

    def means_of_means(self, portions) -> float:
        self.optimizer.zero_grad()
        size = self.recipe.data.size
        losses = [
            self.job.loss(self.model.suffix(p.levels, size), p.masks) / len(portions)
            for p in portions
        ]
        sum(losses).backward()
        return sum(losses).item()

    monkeypatch.setattr(loop.StageTraining, "backward", means_of_means)
    assert trained(begin, quiet, 4, 1)[0] == pytest.approx(whole, rel=1e-6)
    assert trained(begin, quiet, 2, 2)[0] != pytest.approx(whole, rel=1e-4)


def test_portions_of_these_images_do_differ_in_the_number_of_pixels_that_count(begin, recipe):
    def counted() -> Iterator[int]:
        stage = begin(recipe.replace({"accumulate": 2}), 2)
        next(iter(stage))
        for portions in stage.portions():
            yield from (int((p.masks != IGNORE).sum()) for p in portions)

    assert len(set(counted())) > 1


def test_dice_over_the_batch_refuses_portions(recipe):
    with pytest.raises(
        RecipeError,
        match=r'dice_over="batch" needs the whole batch at once; set accumulate and processes',
    ):
        recipe.replace({"loss.dice_over": "batch", "accumulate": 2})


def test_the_linear_decoder_refuses_portions_or_trains_as_with_a_whole_batch(begin, recipe):
    linear = recipe.replace({"model.decoder": "linear"})
    whole, _ = trained(begin, linear, 4, 1)
    try:
        in_portions, _ = trained(begin, linear, 2, 2)
    except RecipeError:
        return
    assert in_portions == pytest.approx(whole, rel=1e-6)
