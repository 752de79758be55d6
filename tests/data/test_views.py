"""A view is a function of (view seed, name, view); image and mask move together; the first view is
clean.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
from PIL import Image

from vitseg.data.augment import make_view, view_name
from vitseg.images import FILL, IGNORE, fit_image, fit_mask
from vitseg.settings import Augment, Data

SIZE = (84, 70)
WILD = Augment(
    flip_vertical=True, rotate_degrees=60, zoom=0.4, brightness=0.5, contrast=0.5, saturation=0.5
)
STILL = Augment(
    flip_horizontal=False, rotate_degrees=0, zoom=0, brightness=0, contrast=0, saturation=0
)
COLORLESS = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def scene() -> tuple[Image.Image, Image.Image]:
    """A red square, and a blue one twice as large off to a side, on white; in the mask they are 1
    and 2.
    """
    image = np.full((*SIZE, 3), 255, np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    for place, color, class_id in (
        ((slice(30, 46), slice(12, 28)), (255, 0, 0), 1),
        ((slice(44, 76), slice(34, 66)), (0, 0, 255), 2),
    ):
        image[place], mask[place] = color, class_id
    return Image.fromarray(image), Image.fromarray(mask)


def view(number: object, name: str = "photo", **settings) -> tuple[np.ndarray, np.ndarray]:
    image, mask, _ = make_view(*scene(), Data(**{"augment": WILD} | settings), name, str(number))
    return np.asarray(image), np.asarray(mask)


def same(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def overlaps(image: np.ndarray, mask: np.ndarray) -> list[float]:
    """IoU of what is red in the image with class 1 of the mask, and of what is blue with class
    2.
    """
    red, green, blue = (image[..., c].astype(int) for c in range(3))
    drawn = ((red > 128) & (green < 128) & (blue < 128), (blue > 128) & (green < 128) & (red < 128))
    pairs = [(drawn[i], mask == i + 1) for i in (0, 1)]
    return [(d & m).sum() / (d | m).sum() for d, m in pairs if m.any()]


@pytest.mark.parametrize("number", range(1, 13))
def test_image_and_mask_move_together(number: int):
    found = overlaps(*view(number, augment=WILD.model_copy(update=COLORLESS)))
    assert found
    assert min(found) > 0.85


def test_the_mask_of_another_view_would_not_fit():
    """The negative control."""
    turned = WILD.model_copy(update=COLORLESS)
    image, mask = view(1, augment=turned)[0], view(2, augment=turned)[1]
    assert max(overlaps(image, mask)) < 0.6


def test_flips_alone_are_exact():
    flips = STILL.model_copy(update={"flip_horizontal": True, "flip_vertical": True})
    clean = [np.asarray(x) for x in scene()]
    possible = [tuple(x[::v, ::h] for x in clean) for v in (1, -1) for h in (1, -1)]
    found = [[same(view(n, augment=flips), p) for p in possible] for n in range(1, 30)]
    assert all(sum(f) == 1 for f in found)
    assert np.any(found, axis=0).all()


def test_the_first_view_is_clean_however_wild_the_others_are():
    assert same(view(0), tuple(np.asarray(x) for x in scene()))
    assert not same(view(1), view(0))


def test_views_are_the_bits_that_they_have_always_been():
    digest = hashlib.sha256()
    for number in range(1, 9):
        for augment in (WILD, Augment()):
            for pixels in view(number, augment=augment):
                digest.update(pixels.tobytes())
    assert digest.hexdigest() == "91fa9342073d97381ee8589516e0bf9c325f65e50720d1cc3f8eef6b5ecdc032"


def test_augmentation_that_is_switched_off_changes_nothing():
    assert same(view(1, augment=STILL), view(0))


def test_a_view_depends_on_view_seed_name_and_number_alone():
    first = view(3)
    for seed, draw in ((1, random.seed), (2, np.random.seed), (3, torch.manual_seed)):
        draw(seed)
        view(seed)
    assert same(view(3), first)
    assert same(view(3, split_seed=9, mode="binary", views=7), first)
    assert not same(view(3, view_seed=1), first)
    assert not same(view(3, name="another"), first)
    assert not same(view(4), first)


def test_colour_changes_leave_the_mask_as_it_is():
    (image, mask), (plain, same_mask) = view(3), view(3, augment=WILD.model_copy(update=COLORLESS))
    assert np.array_equal(mask, same_mask)
    assert not np.array_equal(image, plain)


def test_views_take_turns_over_the_epochs_of_a_stage():
    assert [view_name(Data(views=3), 2, epoch) for epoch in range(1, 8)] == [
        "0",
        "1",
        "2",
        "0",
        "1",
        "2",
        "0",
    ]
    assert {view_name(Data(views=1), 1, epoch) for epoch in range(1, 8)} == {"0"}


def test_fresh_views_never_repeat_and_none_is_the_clean_one():
    names = [
        view_name(Data(views="fresh"), stage, epoch)
        for stage in (1, 2, 3)
        for epoch in range(1, 200)
    ]
    assert len(set(names)) == len(names)
    assert "0" not in names
    pictures = {view(name)[0].tobytes() for name in names[:40]}
    assert len(pictures | {view(0)[0].tobytes()}) == 41


def test_views_of_a_cycle_do_repeat():
    """The negative control."""
    names = [view_name(Data(views=4), 1, epoch) for epoch in range(1, 13)]
    assert len({view(name)[0].tobytes() for name in names}) == 4


def test_what_a_warp_brings_in_is_fill_in_the_image_and_ignored_in_the_mask():
    brought_in = 0
    for number in range(1, 9):
        image, mask = view(number, augment=WILD.model_copy(update=COLORLESS))
        fill = (image == FILL).all(-1)
        assert np.array_equal(fill, mask == IGNORE)
        brought_in += fill.sum()
    assert brought_in > 1000


@pytest.mark.parametrize("number", range(4))
def test_padding_stays_ignored_in_every_view(number: int):
    """A wide image fills half of its canvas: white and class 0, so that anything else is
    padding.
    """
    image, mask = Image.new("RGB", (100, 40), (255, 255, 255)), np.zeros((40, 100), np.uint8)
    fitted = fit_image(image, (70, 70)), fit_mask(mask, (70, 70))
    data = Data(augment=WILD.model_copy(update=COLORLESS))
    *pair, _ = make_view(*fitted, data, "photo", str(number))
    seen, ids = map(np.asarray, pair)
    assert 0.3 < (ids == IGNORE).mean() < 0.9
    assert (seen[ids == IGNORE].max(1) < 255).mean() > 0.98  # but for blends along the edge
    assert (seen[ids == 0].max(1) == 255).mean() > 0.9
