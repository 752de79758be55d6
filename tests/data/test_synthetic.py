"""The built-in data set: a function of (seed, index), with classes of unequal frequency."""

from __future__ import annotations

import numpy as np
import pytest

from vitseg.data.dataset import SegmentationData
from vitseg.data.synthetic import class_names, generate
from vitseg.errors import RecipeError
from vitseg.settings import Data, Generated

TEN = Generated(images=40, classes=10, side=64)


@pytest.fixture(scope="module")
def forty() -> np.ndarray:
    """The masks (40, 64, 64) of ten classes."""
    return np.stack([generate(TEN, i)[1] for i in range(40)])


def pixels(cfg: Generated, index: int) -> tuple[bytes, bytes]:
    image, mask = generate(cfg, index)
    return image.tobytes(), mask.tobytes()


def test_a_sample_is_a_function_of_seed_and_index_alone():
    first = pixels(TEN, 5)
    np.random.seed(3)
    pixels(TEN, 1)
    assert pixels(TEN, 5) == first
    assert pixels(TEN.model_copy(update={"images": 7}), 5) == first


def test_another_seed_or_index_is_another_sample():
    assert len({pixels(TEN, 0), pixels(TEN, 1), pixels(TEN.model_copy(update={"seed": 1}), 0)}) == 3


@pytest.mark.parametrize("classes", range(2, 11))
def test_masks_hold_the_classes_asked_for_and_each_has_a_name(classes: int):
    cfg = Generated(images=4, classes=classes, side=48)
    names = class_names(cfg)
    assert len(set(names)) == classes
    assert names[0] == "background"
    for i in range(4):
        image, mask = generate(cfg, i)
        assert (image.size, image.mode, mask.shape, mask.dtype) == (
            (48, 48),
            "RGB",
            (48, 48),
            np.uint8,
        )
        assert mask.max() < classes
    assert SegmentationData(Data(source=cfg, size=(28, 28))).classes == names


def test_every_class_occurs(forty: np.ndarray):
    assert np.unique(forty).tolist() == list(range(10))


def test_fewer_classes_leave_the_others_in_the_picture_as_distractions(forty: np.ndarray):
    for classes in (3, 6):
        cfg = TEN.model_copy(update={"classes": classes})
        for i in range(6):
            image, mask = generate(cfg, i)
            assert image.tobytes() == generate(TEN, i)[0].tobytes()
            assert np.array_equal(mask, np.where(forty[i] < classes, forty[i], 0))


def test_two_classes_are_a_wound_of_any_tissue_and_all_else(forty: np.ndarray):
    two = TEN.model_copy(update={"classes": 2})
    assert all(
        np.array_equal(generate(two, i)[1], (forty[i] > 0) & (forty[i] < 5)) for i in range(40)
    )
    assert any((forty[i] >= 5).any() for i in range(40))


def test_class_frequencies_are_unequal(forty: np.ndarray):
    shares = np.bincount(forty.ravel(), minlength=10) / forty.size
    wound, rare = shares[1:5], shares[5:]
    assert shares[0] > 0.6
    assert wound.min() > rare.max()
    assert shares[1:].max() > 10 * shares[1:].min()


def test_some_images_lack_some_classes(forty: np.ndarray):
    share_of_images = np.mean([np.bincount(m.ravel(), minlength=10) > 0 for m in forty], axis=0)
    assert (share_of_images > 0.1).all()
    assert (share_of_images[5:] < 0.6).all()


def test_the_picture_shows_what_the_mask_says():
    """Granulation is redder than the ground around it."""
    contrasts = []
    for i in range(12):
        image, mask = generate(TEN, i)
        red = np.asarray(image).astype(float) @ (1, -0.5, -0.5)
        contrasts.append(red[mask == 1].mean() - red[mask == 0].mean())
    assert min(contrasts) > 0
    assert np.mean(contrasts) > 30


def test_colour_alone_does_not_solve_it():
    """Some ground is as red as the median wound."""
    as_red = 0
    for i in range(12):
        image, mask = generate(TEN, i)
        red = np.asarray(image).astype(float) @ (1, -0.5, -0.5)
        as_red += (red[mask == 0] > np.median(red[mask == 1])).sum()
    assert as_red > 100


def test_an_outline_without_bounds_overflows_nothing():
    """The wobble of this one comes near -1. Warnings are errors here."""
    generate(Generated(side=70), 48)


@pytest.mark.parametrize(
    "wrong",
    [{"classes": 1}, {"classes": 11}, {"images": 3}, {"side": 31}, {"side": 2049}, {"seed": 1.0}],
)
def test_settings_out_of_range_are_refused(wrong: dict):
    with pytest.raises(RecipeError, match=f"{next(iter(wrong))}: got"):
        Generated(**wrong)
