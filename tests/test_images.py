"""RGB is RGB, upright and whole: from the file, over the network's canvas, back to the image's own
size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_pairs
from PIL import Image

from vitseg.data.dataset import SegmentationData
from vitseg.data.masks import read_raw
from vitseg.errors import VitsegError
from vitseg.images import (
    FILL,
    IGNORE,
    color_of,
    fit_image,
    fit_mask,
    fitted_size,
    open_rgb,
    overlay,
    palette_image,
    to_rgb,
)
from vitseg.model.encoder import FAMILIES
from vitseg.model.segmenter import Segmenter, build_segmenter, likeliest, restored
from vitseg.settings import Data, Folder, Model

RED = (255, 0, 0)
UPRIGHT = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
SHAPE = np.add.outer(np.arange(30), 2 * np.arange(20)) // 20 % 3  # three classes, no symmetry
AS_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[:, ::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[::-1].swapaxes(0, 1),
}
"""EXIF 2.3, table 6: 6 says that the stored row 0 is the right-hand side as seen, the stored column
0 the top.
"""


def save_turned(pixels: np.ndarray, orientation: int, path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](pixels))).save(path, exif=exif)
    return path


# ---------------------------------------------------------------------- colour


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".png", 0), (".bmp", 0), (".tif", 0), (".jpg", 3), (".webp", 12)]
)
@pytest.mark.parametrize("channel", [0, 1, 2], ids=["red", "green", "blue"])
def test_a_patch_of_one_colour_arrives_in_its_own_channel(
    suffix: str, tolerance: int, channel: int, tmp_path: Path
):
    color = tuple(255 * (i == channel) for i in range(3))
    Image.new("RGB", (32, 32), color).save(tmp_path / f"patch{suffix}")
    means = np.asarray(open_rgb(tmp_path / f"patch{suffix}")).mean((0, 1))
    assert means == pytest.approx(color, abs=tolerance)


def test_the_encoder_gets_red_normalised_with_the_first_of_its_own_statistics(model: Segmenter):
    red = torch.zeros(1, 3, 14, 14, dtype=torch.uint8)
    red[:, 0] = 255
    expected = [
        (value - mean) / std
        for value, mean, std in zip((1, 0, 0), model.shape.mean, model.shape.std, strict=True)
    ]
    assert model.normalise(red).mean((0, 2, 3)).tolist() == pytest.approx(expected, rel=1e-5)
    assert len(set(model.shape.mean)) == 3  # else a swap of channels would pass


GREY_16 = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
MODES = {
    "1": (Image.fromarray(np.array([[False, True]])), [(0, 0, 0), (255, 255, 255)]),
    "L": (
        Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8)),
        [(0,) * 3, (7,) * 3, (255,) * 3],
    ),
    "I;16": (Image.fromarray(GREY_16), [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]),
    "I": (Image.fromarray(GREY_16.astype(np.int32)), [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]),
    "RGBA, solid": (Image.new("RGBA", (1, 1), (*RED, 255)), [RED]),
    "RGBA, clear": (Image.new("RGBA", (1, 1), (*RED, 0)), [FILL]),
    "RGBA, half": (
        Image.new("RGBA", (1, 1), (255, 255, 255, 51)),
        [tuple(round(0.8 * c + 0.2 * 255) for c in FILL)],
    ),
    "LA, solid": (Image.new("LA", (1, 1), (9, 255)), [(9, 9, 9)]),
    "LA, clear": (Image.new("LA", (1, 1), (9, 0)), [FILL]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [RED]),
    "YCbCr": (Image.new("RGB", (1, 1), (128, 128, 128)).convert("YCbCr"), [(128, 128, 128)]),
}


@pytest.mark.parametrize(("image", "expected"), MODES.values(), ids=MODES)
def test_every_mode_becomes_eight_bit_rgb(image: Image.Image, expected: list[tuple[int, int, int]]):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert np.asarray(rgb)[0].tolist() == [list(color) for color in expected]


def test_palette_images_give_their_colours_and_transparent_entries_the_fill(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "solid.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert np.asarray(open_rgb(tmp_path / "solid.png"))[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert np.asarray(open_rgb(tmp_path / "clear.png"))[0].tolist() == [[255, 0, 0], list(FILL)]


def test_sixteen_bit_greys_keep_their_range_in_the_file_too(tmp_path: Path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert len(np.unique(np.asarray(open_rgb(tmp_path / "deep.png")))) == 256
    with Image.open(tmp_path / "deep.png") as image:  # the negative control: what PIL makes of it
        assert len(np.unique(np.asarray(image.convert("RGB")))) < 10


def test_float_images_are_scaled_or_refused(tmp_path: Path):
    Image.fromarray(np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)).save(
        tmp_path / "float.tif"
    )
    try:
        rgb = np.asarray(open_rgb(tmp_path / "float.tif"))
    except (OSError, ValueError):
        return
    assert rgb.max() > 200


# ---------------------------------------------------------------------- which way is up


@pytest.mark.parametrize("orientation", AS_STORED)
def test_all_eight_orientations_give_the_upright_image(orientation: int, tmp_path: Path):
    path = save_turned(UPRIGHT, orientation, tmp_path / "photo.png")
    assert np.array_equal(np.asarray(open_rgb(path)), UPRIGHT)
    with Image.open(path) as image:  # the negative control
        assert np.array_equal(np.asarray(image), UPRIGHT) == (orientation == 1)


@pytest.mark.parametrize("orientation", AS_STORED)
def test_a_turned_photograph_and_its_mask_agree_pixel_for_pixel(orientation: int, tmp_path: Path):
    """The mask as painted on the upright image, and as saved with the photograph's own tag."""
    masks = {"painted": SHAPE.astype(np.uint8), "tagged": SHAPE.astype(np.uint8)}
    folder = write_pairs(tmp_path, masks)
    save_turned(SHAPE.astype(np.uint8), orientation, folder / "masks" / "tagged.png")
    for name in masks:
        save_turned(
            np.stack([SHAPE * 100] * 3, axis=-1).astype(np.uint8),
            orientation,
            folder / "images" / f"{name}.png",
        )
    data = SegmentationData(Data(source=Folder(path=str(folder)), size=(30, 20)))
    for name in masks:
        sample = data[name, "0"]
        assert torch.equal(sample.image[0] // 100, sample.multiclass_mask)


def test_jpeg_photographs_are_turned_too(tmp_path: Path):
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:16] = 255
    path = save_turned(halves, 6, tmp_path / "photo.jpg")
    seen = np.asarray(open_rgb(path))
    assert seen.shape == (32, 64, 3)
    assert (seen[:14].min(), seen[18:].max()) == (
        pytest.approx(255, abs=20),
        pytest.approx(0, abs=20),
    )


# ---------------------------------------------------------------------- the canvas, there and back


@pytest.mark.parametrize(
    ("original", "size", "fitted"),
    [
        ((30, 20), (60, 60), (60, 40)),
        ((20, 30), (60, 60), (40, 60)),
        ((480, 360), (168, 168), (168, 126)),
        ((100, 100), (70, 84), (70, 70)),
        ((1, 1000), (70, 70), (1, 70)),
        ((70, 70), (70, 70), (70, 70)),
    ],
)
def test_images_keep_their_aspect_on_the_canvas(original, size, fitted):
    assert fitted_size(original, size) == fitted
    canvas = np.asarray(fit_image(Image.new("RGB", original[::-1], RED), size))
    assert canvas.shape == (*size, 3)
    assert (canvas[: fitted[0], : fitted[1]] == RED).all()
    outside = np.ones(size, dtype=bool)
    outside[: fitted[0], : fitted[1]] = False
    assert (canvas[outside] == FILL).all()
    mask = np.asarray(fit_mask(np.ones(original, np.uint8), size))
    assert np.array_equal(mask == IGNORE, outside)


@pytest.mark.parametrize("original", [(37, 53), (53, 37), (200, 31), (70, 70), (101, 101)])
def test_what_goes_onto_the_canvas_comes_back_to_its_place(original: tuple[int, int]):
    y, x = np.mgrid[: original[0], : original[1]]
    mask = ((y > original[0] * 0.3) & (x > original[1] * 0.6)).astype(np.uint8) + (
        y > original[0] * 0.8
    )
    on_canvas = torch.from_numpy(np.array(fit_mask(mask.astype(np.uint8), (70, 70)))).long()
    logits = torch.nn.functional.one_hot(on_canvas.clamp(max=3), 4).permute(2, 0, 1).float()
    assert (likeliest(restored(logits, original)).numpy() == mask).mean() > 0.93


@pytest.fixture(scope="module")
def models(encoders: dict[str, str]) -> dict[str, Segmenter]:
    return {
        f: build_segmenter(Model(encoder=encoders[f]), ("a", "b", "c"), (70, 70), seed=0)
        for f in FAMILIES
    }


@pytest.fixture(scope="module")
def model(models: dict[str, Segmenter]) -> Segmenter:
    return models["dinov2"]


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (5, 3), (37, 53), (71, 140), (200, 31), (70, 70)]
)
def test_predict_returns_the_images_own_size_however_it_is_given(
    model: Segmenter, height: int, width: int, tmp_path: Path
):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    masks = [
        model.predict(given)
        for given in (
            pixels,
            Image.fromarray(pixels),
            tmp_path / "image.png",
            str(tmp_path / "image.png"),
        )
    ]
    assert (masks[0].shape, masks[0].dtype) == ((height, width), np.uint8)
    assert masks[0].max() < 3
    assert all(np.array_equal(m, masks[0]) for m in masks)


def test_predict_sees_a_turned_photograph_upright(model: Segmenter, tmp_path: Path):
    turned = save_turned(UPRIGHT, 6, tmp_path / "photo.png")
    assert np.array_equal(model.predict(turned), model.predict(UPRIGHT))
    with Image.open(turned) as image:
        assert np.array_equal(model.predict(image), model.predict(UPRIGHT))


@pytest.mark.parametrize(
    "given",
    [np.zeros((8, 8, 3)), np.zeros((3, 8, 9), np.uint8), "no/such.png"],
    ids=["float", "CHW", "path"],
)
def test_predict_says_in_plain_words_what_it_cannot_take(model: Segmenter, given: object):
    with pytest.raises(VitsegError):
        model.predict(given)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(37, 45), (13, 70), (71, 14), (29, 29)])
def test_every_pixel_matters_where_the_size_is_no_multiple_of_the_patch(
    models, family: str, size: tuple[int, int]
):
    model, (height, width) = models[family], size
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    logits = model(image)
    assert logits.shape == (1, 3, *size)
    for y, x in ((height - 1, width - 1), (height - 1, 0), (0, width - 1)):
        changed = image.clone()
        changed[..., y, x] = 1 - changed[..., y, x]
        assert not torch.equal(model(changed), logits), f"pixel {y}, {x}"


def test_transformers_alone_would_not_have_seen_them(model: Segmenter):
    """The negative control."""
    image = torch.rand(1, 3, 37, 45, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[..., 28:, :] = changed[..., :, 42:] = 0
    with torch.no_grad():
        assert torch.equal(model.encoder.vit(image)[0], model.encoder.vit(changed)[0])
    assert not torch.equal(model(image), model(changed))


# ---------------------------------------------------------------------- masks for the eye


def test_palette_images_keep_every_class_id_and_ignored_pixels(tmp_path: Path):
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette_image(ids).save(tmp_path / "mask.png")
    assert np.array_equal(read_raw(tmp_path / "mask.png"), ids)
    colors = np.asarray(open_rgb(tmp_path / "mask.png")).reshape(-1, 3)
    assert [tuple(c) for c in colors[:255].tolist()] == [color_of(i) for i in range(255)]
    assert colors[IGNORE].tolist() == [255, 255, 255]


def test_small_masks_with_few_classes_come_back_as_they_are(tmp_path: Path):
    palette_image(SHAPE.astype(np.uint8)).save(tmp_path / "mask.png")
    assert np.array_equal(read_raw(tmp_path / "mask.png"), SHAPE)


def test_overlay_tints_classes_and_leaves_background_and_ignored_pixels():
    mask = np.array([[0, 1, 2, IGNORE]], dtype=np.uint8)
    image = Image.new("RGB", (4, 1), (100, 100, 100))
    shown = np.asarray(overlay(image, mask, opacity=0.5))[0].astype(int)
    assert shown[0].tolist() == shown[3].tolist() == [100, 100, 100]
    for place, class_id in ((1, 1), (2, 2)):
        assert shown[place] == pytest.approx([(100 + c) / 2 for c in color_of(class_id)], abs=0.5)
