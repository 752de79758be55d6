"""Effects and crops: image and mask stay aligned, chance is obeyed, and no thread or worker changes
a bit.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import to_image, write_pairs
from PIL import Image

from vitseg.data.augment import (
    _lattice,
    _through_mesh,
    apply_effect,
    crop_box,
    libraries,
    make_view,
    occurring,
)
from vitseg.data.dataset import SegmentationData
from vitseg.effects import (
    Blur,
    Clahe,
    CoarseDropout,
    Crop,
    Effect,
    Elastic,
    GridDistortion,
    Hue,
    OpticalDistortion,
    RightAngle,
)
from vitseg.errors import RecipeError
from vitseg.images import FILL, IGNORE
from vitseg.settings import Augment, Classes, Data, Folder, Generated

STILL = Augment(
    flip_horizontal=False, rotate_degrees=0, zoom=0, brightness=0, contrast=0, saturation=0
)
MOVING = (
    RightAngle(p=1.0),
    Elastic(p=1.0, strength=0.4, cells=4),
    GridDistortion(p=1.0, strength=0.9),
    OpticalDistortion(p=1.0, strength=0.3),
)
COLOURING = (
    Hue(p=1.0, degrees=20.0),
    Blur(p=1.0, sigma_pixels=2.0),
    CoarseDropout(p=1.0, side=0.3),
    Clahe(p=1.0, cells=4),
)
ALL = (*MOVING, *COLOURING)
IDS = [effect.kind for effect in ALL]


def scene(side: int = 96, height: int | None = None) -> tuple[Image.Image, Image.Image]:
    """Red is 1 and blue is 2, on a sand-coloured 0; not symmetric."""
    image = np.full((height or side, side, 3), (210, 190, 150), np.uint8)
    mask = np.zeros(image.shape[:2], np.uint8)
    for place, colour, class_id in (
        ((slice(8, 40), slice(10, 34)), (220, 20, 20), 1),
        ((slice(36, 84), slice(44, 88)), (20, 20, 220), 2),
    ):
        image[place], mask[place] = colour, class_id
    return to_image(image), to_image(mask)


def grain(side: int) -> Image.Image:
    """Grey levels around a mean, so that there is a histogram to cut."""
    return to_image(np.random.default_rng(0).normal(120, 15, (side, side, 3)).astype(np.uint8))


def view(effect: Effect | tuple, number: int = 1, name: str = "photo", pair=None, **settings):
    effects = effect if isinstance(effect, tuple) else (effect,)
    cfg = Data(**{"augment": STILL, "effects": effects} | settings)
    *pair, _ = make_view(*(pair or scene()), cfg, name, str(number))
    return tuple(map(np.asarray, pair))


def agreement(image: np.ndarray, mask: np.ndarray) -> float:
    """The lower of two IoUs: what looks red with class 1, what looks blue with class 2; holes left
    out.
    """
    red, green, blue = (image[..., c].astype(int) for c in range(3))
    counts = ~((image == FILL).all(-1) & (mask != IGNORE))
    drawn = (red - np.maximum(green, blue) > 90, blue - np.maximum(red, green) > 60)
    pairs = [(d & counts, (mask == i + 1) & counts) for i, d in enumerate(drawn)]
    return min((d & m).sum() / max(1, (d | m).sum()) for d, m in pairs)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------- image and mask


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("effect", ALL, ids=IDS)
def test_a_colour_keeps_its_class(effect: Effect, number: int):
    assert agreement(*view(effect, number)) > 0.88


@pytest.mark.parametrize("effect", MOVING, ids=IDS[:4])
def test_the_mask_that_was_not_moved_would_not_fit(effect: Effect):
    """The negative control."""
    still = np.asarray(scene()[1])
    assert min(agreement(view(effect, number)[0], still) for number in range(1, 6)) < 0.8


@pytest.mark.parametrize("effect", COLOURING, ids=IDS[4:])
def test_what_changes_colours_leaves_the_mask_alone(effect: Effect):
    image, mask = view(effect)
    assert np.array_equal(mask, scene()[1])
    assert not np.array_equal(image, scene()[0])


@pytest.mark.parametrize("effect", MOVING, ids=IDS[:4])
def test_what_is_brought_in_is_fill_and_ignored(effect: Effect):
    for number in range(1, 9):
        image, mask = view(effect, number)
        assert np.array_equal((image == FILL).all(-1), mask == IGNORE)


@pytest.mark.parametrize("kind", [Elastic, OpticalDistortion])
def test_something_is_brought_in(kind: type):
    """The control of the test above."""
    assert sum((view(kind(p=1.0), number)[1] == IGNORE).sum() for number in range(1, 9)) > 50


@pytest.mark.parametrize("cells", [2, 5, 12])
def test_a_mesh_that_is_not_bent_changes_nothing(cells: int):
    pair = scene(97, height=101)
    assert same(_through_mesh(pair, _lattice(pair[0].size, cells)), pair)


def test_a_right_angle_on_a_square_canvas_is_exact():
    image, mask = (np.asarray(x) for x in scene())
    turns = [(np.rot90(image, k), np.rot90(mask, k)) for k in (1, 2, 3)]
    found = [
        [same(view(RightAngle(p=1.0), number), turn) for turn in turns] for number in range(1, 20)
    ]
    assert all(sum(f) == 1 for f in found)
    assert np.any(found, axis=0).all()


def test_a_right_angle_on_another_canvas_is_fitted_whole():
    pair = scene(96, height=144)
    for number in range(1, 9):
        image, mask = view(RightAngle(p=1.0), number, pair=pair)
        assert image.shape[:2] == mask.shape == (144, 96)
        assert agreement(image, mask) > 0.88
        lying = (mask == IGNORE).any()
        assert (
            abs((mask == 2).sum() / (np.asarray(pair[1]) == 2).sum() - (4 / 9 if lying else 1))
            < 0.05
        )


def test_dropout_fills_rectangles_within_their_limits():
    for number in range(1, 9):
        image, _ = view(CoarseDropout(p=1.0, holes=1, side=0.25), number)
        rows, columns = np.nonzero((image == FILL).all(-1))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        assert max(height, width) <= 24


def test_clahe_raises_the_contrast_of_a_flat_image_and_keeps_its_colours():
    grey = np.random.default_rng(0).integers(110, 130, (96, 96, 1), dtype=np.uint8)
    pair = to_image(np.repeat(grey, 3, -1)), scene()[1]
    image = view(Clahe(p=1.0, clip_limit=40.0), pair=pair)[0]
    assert image.std() > 2 * np.asarray(pair[0]).std()
    assert np.ptp(image.astype(int), axis=-1).max() <= 1


# ---------------------------------------------------------------------- chance and order


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_an_effect_occurs_as_often_as_its_p_says(p: float):
    cfg = Data(effects=(Hue(p=0.5), Blur(p=p)))
    times = sum(
        any(e.kind == "blur" for e, _ in occurring(cfg, f"image {i}", "1")) for i in range(2000)
    )
    assert abs(times / 2000 - p) < 0.035
    assert p < 1 or times == 2000


def test_effects_are_applied_in_their_order():
    hidden, blurred = CoarseDropout(p=1.0), Blur(p=1.0, sigma_pixels=5.0)
    image = scene()
    cfg = Data(augment=STILL, effects=(hidden, blurred))
    for effect, rng in occurring(cfg, "photo", "1"):
        image = apply_effect(image, effect, rng)
    assert same(view((hidden, blurred)), [np.asarray(x) for x in image])
    crisp = [
        (view(effects)[0] == FILL).all(-1).sum()
        for effects in ((blurred, hidden), (hidden, blurred))
    ]
    assert crisp[0] > 1.2 * crisp[1]  # a blur that comes later washes the rectangles' edges out


def test_no_effect_changes_what_another_or_the_augmentation_draws():
    elastic = Elastic(p=1.0)
    alone, after = view(elastic), view((elastic, Hue(p=1.0)))
    assert np.array_equal(alone[1], after[1])
    plain, hue = (view(effects, augment=Augment()) for effects in ((), Hue(p=1.0)))
    assert np.array_equal(plain[1], hue[1])


def test_the_clean_view_stays_clean():
    assert same(view(ALL, 0, crop=Crop(p=1.0)), [np.asarray(x) for x in scene()])


@pytest.mark.parametrize("effect", ALL, ids=IDS)
def test_an_effect_depends_on_view_seed_name_and_view_alone(effect: Effect):
    noise = grain(96), scene()[1]
    first = view(effect, pair=noise)
    np.random.seed(1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert same(view(effect, pair=noise), first)
    assert torch.equal(torch.get_rng_state(), state)
    seeds, numbers, names = (
        [{key: v} for v in values]
        for key, values in (("view_seed", range(1, 5)), ("number", range(2, 6)), ("name", "abcd"))
    )
    for others in (seeds, numbers, names):
        assert not all(same(view(effect, pair=noise, **other), first) for other in others)


# ---------------------------------------------------------------------- threads and workers


@pytest.mark.parametrize("side", [84, 97, 224])
def test_two_threads_give_the_bits_of_one(side: int):
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.append([view(ALL, n, pair=(grain(side), scene(side)[1])) for n in range(1, 5)])
    finally:
        torch.set_num_threads(before)
    assert all(same(*pair) for pair in zip(*seen, strict=True))


def test_workers_change_no_bit():
    source = Generated(images=6, classes=3, side=48)
    data = SegmentationData(Data(source=source, size=(56, 70), effects=ALL, crop=Crop(p=0.5)))
    keys = [(name, view) for name in data.splits["train"] for view in ("0", "1", "2")]
    seen = [list(data.batches(keys, 4, workers)) for workers in (0, 1, 2)]
    for one, other in pairwise(seen):
        for a, b in zip(one, other, strict=True):
            assert a.names == b.names
            assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)


# ---------------------------------------------------------------------- crop


def patch(height: int = 200, width: int = 300) -> np.ndarray:
    ids = np.zeros((height, width), np.uint8)
    ids[50:90, 100:120], ids[0, 0] = 3, IGNORE
    return ids


def there(ids: np.ndarray) -> np.ndarray:
    return (ids != 0) & (ids != IGNORE)


@pytest.mark.parametrize(
    ("margin", "box"),
    [(0.0, (100, 50, 120, 90)), (0.5, (80, 30, 140, 110)), (9.0, (0, 0, 300, 200))],
)
def test_a_crop_is_the_box_around_the_foreground_and_its_margin(
    margin: float, box: tuple[int, ...]
):
    cfg = Data(crop=Crop(p=1.0, margin=margin))
    assert tuple(crop_box(there(patch()), cfg, "photo", "1")) == box


@pytest.mark.parametrize("value", [0, IGNORE])
def test_without_foreground_and_in_the_clean_view_nothing_is_cropped(value: int):
    ids, cfg = patch(), Data(crop=Crop(p=1.0))
    assert crop_box(there(np.full_like(ids, value)), cfg, "photo", "1") is None
    assert crop_box(there(ids), cfg, "photo", "0") is None
    assert crop_box(there(ids), cfg, "photo", "1") is not None


def test_a_crop_occurs_as_often_as_its_p_says():
    seen, cfg = there(patch()), Data(crop=Crop(p=0.3))
    times = sum(crop_box(seen, cfg, f"image {i}", "1") is not None for i in range(1000))
    assert abs(times / 1000 - 0.3) < 0.05


def test_a_crop_is_taken_before_the_image_is_made_small(tmp_path: Path):
    """A pattern two pixels wide is grey on the canvas, and there again in the crop."""
    pattern = np.indices((224, 224)).sum(0) // 2 % 2 * 255
    pattern, ids = pattern.astype(np.uint8), np.zeros((224, 224), np.uint8)
    ids[80:136, 80:136] = 1
    write_pairs(tmp_path, dict.fromkeys("abcd", ids))
    for name in "abcd":
        to_image(pattern).convert("RGB").save(tmp_path / "images" / f"{name}.png")
    cfg = {"source": Folder(path=str(tmp_path)), "size": (56, 56), "augment": STILL}
    cropped, whole = (
        SegmentationData(Data(**cfg, crop=c)) for c in (Crop(p=1.0, margin=0.0), None)
    )
    assert np.array_equal(cropped["a", "1"].image[0], pattern[80:136, 80:136])
    assert (cropped["a", "1"].binary_mask == 1).all()
    assert whole["a", "1"].image.float().std() < 20
    assert torch.equal(cropped["a", "0"].image, whole["a", "0"].image)
    assert torch.equal(cropped["a", "1"].original, whole["a", "1"].original)


# ---------------------------------------------------------------------- fingerprints, words and
# settings


def test_the_fingerprint_of_all_but_the_clean_view_knows_effects_and_crop():
    source = Generated(images=4, classes=3, side=32)
    settings = [
        {},
        {"crop": Crop()},
        {"crop": Crop(p=0.6)},
        *({"effects": (e,)} for e in (Blur(), Blur(p=0.4), *ALL)),
    ]
    made = [SegmentationData(Data(source=source, size=(28, 28), **more)) for more in settings]
    assert len({data.fingerprint("generated-0001", "1") for data in made}) == len(made)
    assert len({data.fingerprint("generated-0001", "0") for data in made}) == 1
    assert libraries((Blur(),)) == {}
    assert libraries((Blur(), Clahe())).keys() == {"kornia"}


def test_a_crop_is_around_what_binary_mode_looks_for_and_of_nothing_else(tmp_path: Path):
    ids = np.zeros((60, 40), np.uint8)
    ids[10:50, 5:35], ids[20:26, 10:30] = 1, 2
    write_pairs(
        tmp_path,
        {"a": ids, "b": np.minimum(ids, 1)},
        classes=["ground", "skin", "wound"],
        encoding="index",
    )
    cfg = Data(
        source=Folder(path=str(tmp_path)),
        size=(28, 28),
        mode="binary",
        crop=Crop(p=1.0, margin=0.0),
        augment=STILL,
    )
    any_class, wound = (
        SegmentationData(cfg.model_copy(update={"classes": Classes(foreground=foreground)}))
        for foreground in (None, ("wound",))
    )
    assert any_class["a", "1"].multiclass_mask.unique().tolist() == [1, 2, IGNORE], (
        "the skin's box; a third of the canvas is padding"
    )
    seen = wound["a", "1"].binary_mask
    assert seen[:8].unique().tolist() == [1] and set(seen[9:].unique().tolist()) == {IGNORE}, (
        "20 x 6 pixels, and nothing around"
    )
    assert torch.equal(wound["b", "1"].image, wound["b", "0"].image), (
        "without a wound it stays whole"
    )
    assert any_class.fingerprint("a", "1")[0] != wound.fingerprint("a", "1")[0]


@pytest.mark.parametrize(
    ("cropped", "changed"), [(Crop(), [False, True]), (None, [False, False])], ids=["crop", "whole"]
)
def test_with_a_crop_a_view_follows_from_its_mask_and_classes_too(
    cropped: Crop | None, changed: list[bool], tmp_path: Path
):
    pixels = np.zeros((32, 32), np.uint8)
    write_pairs(
        tmp_path,
        {name: np.where(np.eye(32) > 0, 2, pixels).astype(np.uint8) for name in "ab"},
        classes=["x", "y", "z"],
    )
    cfg = Data(source=Folder(path=str(tmp_path)), size=(28, 28), crop=cropped)
    images = lambda data: [data.fingerprint("a", view)[0] for view in ("0", "1")]  # noqa: E731
    first = images(SegmentationData(cfg))
    other = images(SegmentationData(cfg.model_copy(update={"classes": Classes(ignore=("z",))})))
    Image.fromarray(pixels + 1).save(tmp_path / "masks" / "a.png")
    again = images(SegmentationData(cfg))
    for now in (other, again):
        assert [a != b for a, b in zip(first, now, strict=True)] == changed


def test_a_view_is_described_by_what_was_done():
    def words(view: str, **settings) -> str:
        source = Generated(images=4, classes=3, side=32)
        cfg = {"source": source, "size": (28, 28), "augment": STILL} | settings
        return SegmentationData(Data(**cfg))["generated-0001", view].made_by

    effects = (Clahe(p=1.0), GridDistortion(p=1.0))
    assert words("1") == "unchanged"
    assert words("0", effects=effects, crop=Crop(p=1.0)) == "clean"
    assert words("1", effects=effects, crop=Crop(p=1.0)) == "cropped, clahe, grid distortion"
    several = {words(str(n), augment=Augment()) for n in range(1, 9)}
    assert any("mirrored, turned " in w for w in several)
    assert any("mirrored" not in w for w in several)


def test_an_unknown_effect_is_refused_with_those_that_there_are():
    with pytest.raises(RecipeError, match=r"effects\.0: got .*'right_angle', 'hue', 'blur'"):
        Data(effects=({"kind": "fog"},))
