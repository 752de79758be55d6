"""Training so small that a step takes milliseconds: two by two patches, five batches an epoch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitseg.data.dataset import SegmentationData
from vitseg.model.segmenter import build_segmenter
from vitseg.recipe import Recipe
from vitseg.training.job import Job
from vitseg.training.loop import StageTraining


@pytest.fixture
def small_recipe(tiny_recipe: Recipe) -> Recipe:
    """`tiny_recipe` at 28 x 28 pixels: 10 images to train on, 2 to validate, batches of 2, encoder
    of 4 blocks.
    """
    return tiny_recipe.replace({"data.size": [28, 28], "data.source.side": 32})


@pytest.fixture
def begin() -> Callable[..., StageTraining]:
    """A stage of a recipe on a model and data of its own, before its first step."""

    def _begin(recipe: Recipe, number: int = 1, **position: int) -> StageTraining:
        data = SegmentationData(recipe.data)
        model = build_segmenter(recipe.model, data.classes, recipe.data.size, recipe.seed)
        return StageTraining(Job(recipe, model=model, data=data), number, **position)

    return _begin
