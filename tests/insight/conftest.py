"""A small trained model on generated images, its data and its run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitseg
from vitseg.data.dataset import SegmentationData
from vitseg.model.segmenter import Segmenter
from vitseg.recipe import Recipe


@pytest.fixture(scope="package")
def run(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three short stages, ended."""
    folder = tmp_path_factory.mktemp("insight") / "run"
    for _ in vitseg.train(tiny_recipe, folder):
        pass
    return folder


@pytest.fixture
def model(run: Path) -> Segmenter:
    return vitseg.load(run)


@pytest.fixture(scope="package")
def data(tiny_recipe: Recipe) -> SegmentationData:
    return SegmentationData(tiny_recipe.data)
