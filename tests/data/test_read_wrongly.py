"""What would be read wrongly without a word: ranges, signs, orientations, palettes, alpha channels,
bands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from struct import calcsize, pack
from typing import Any

import numpy as np
import pytest
from builders import SIDE, stripes
from PIL import Image, ImageOps

import vitseg
from vitseg.data.check import Check
from vitseg.data.dataset import SegmentationData
from vitseg.data.folder import Finding, in_brief
from vitseg.data.masks import read_raw
from vitseg.errors import DataError
from vitseg.events import StageStarted
from vitseg.images import FILL, open_rgb, to_rgb
from vitseg.settings import Data, Folder

Save = Callable[[Path], object]
"""Writes a file; the suffix is its own."""
RNG = np.random.default_rng(0)
TWO = stripes(0, 1)


def noise(
    bands: int, least: int = 0, most: int = 255, dtype: str = "u1", side: int = SIDE
) -> np.ndarray:
    pixels = RNG.integers(least, most + 1, (side, side, bands)).astype(dtype)
    pixels[0, 0], pixels[-1, -1] = most, least
    return pixels


def tiff(pixels: np.ndarray, extra: int | None = None) -> bytes:
    """A plain TIFF of any number of bands (h, w, bands), in the byte order and the type of its
    pixels.

    `extra` is the tag ExtraSamples of what is beyond grey or RGB: 0 unspecified, 1 premultiplied
    alpha, 2 alpha.
    """
    height, width, bands = pixels.shape
    end = ">" if pixels.dtype.str[0] == ">" else "<"
    colors = 3 if bands > 2 else 1
    tags = {
        256: [width],
        257: [height],
        258: [8 * pixels.itemsize] * bands,
        259: [1],
        262: [2 if bands > 2 else 1],
        273: [0],
        277: [bands],
        278: [height],
        279: [pixels.nbytes],
        339: [2 if pixels.dtype.kind == "i" else 1] * bands,
    }
    if extra is not None and bands > colors:
        tags[338] = [extra] * (bands - colors)
    beyond, entries, start = b"", b"", 8 + calcsize(f"{end}H") + 12 * len(tags) + 4
    tags[273] = [start + sum(2 * len(v) for v in tags.values() if len(v) > 2)]
    for tag, values in sorted(tags.items()):
        stored = pack(f"{end}{len(values)}H", *values)
        if len(stored) > 4:
            stored, beyond = pack(f"{end}I", start + len(beyond)), beyond + stored
        entries += pack(f"{end}HHI", tag, 3, len(values)) + stored.ljust(4, b"\0")
    head = (b"II*\0" if end == "<" else b"MM\0*") + pack(f"{end}IH", 8, len(tags))
    return head + entries + bytes(4) + beyond + pixels.tobytes()


def as_tiff(pixels: np.ndarray, extra: int | None = None) -> Save:
    return lambda path: path.with_suffix(".tif").write_bytes(tiff(pixels, extra))


def as_png(pixels: np.ndarray | Image.Image, **options: Any) -> Save:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: image.save(path.with_suffix(".png"), **options)


def folder_of(
    place: Path, images: list[Save] | None = None, masks: list[Save] | None = None, **declared: Any
) -> Path:
    """A data set; what is not given is good: noise of 8-bit RGB, and masks of two classes."""
    count = len(images or masks or [])
    for kind in ("images", "masks"):
        (place / kind).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (images[n] if images else as_png(noise(3)))(place / "images" / f"{n}")
        (masks[n] if masks else as_png(TWO))(place / "masks" / f"{n}")
    (place / "classes.json").write_text(json.dumps({"classes": ["ground", "wound"]} | declared))
    return place


def found(folder: Path) -> list[Finding]:
    """Problems and warnings."""
    check = Check(Data(source=Folder(path=str(folder))))
    return [*check.problems, *check.warnings]


def kinds(folder: Path) -> list[str]:
    return [p.kind for p in found(folder)]


def refused(folder: Path) -> str:
    """What a training says that does not begin."""
    with pytest.raises(DataError) as error:
        data_of(folder)
    return str(error.value)


def data_of(folder: Path) -> SegmentationData:
    return SegmentationData(Data(source=Folder(path=str(folder)), size=(28, 28)))


# ---------------------------------------------------------------------- ranges


DIM = {
    "12 bits": (
        as_png(noise(1, 0, 4095, "u2")[..., 0]),
        "16-bit image uses 12 bits: its values, about 0..4095 of 65535",
        16,
        16,
    ),
    "12 bits, big-endian TIFF": (
        as_tiff(noise(1, 0, 4095, ">u2")),
        "16-bit image uses 12 bits: its values, about 0..4095",
        16,
        16,
    ),
    "8 bits in 32": (
        as_tiff(noise(1, 0, 255, "i4")),
        "16-bit image uses 8 bits: its values, about 0..255",
        1,
        256,
    ),
    "CT from 0 on": (
        as_tiff(noise(1, 0, 4095, "i2")),
        "16-bit image uses 12 bits: its values, about 0..4095",
        16,
        16,
    ),
    "14 bits": (
        as_png(noise(1, 0, 16383, "u2")[..., 0]),
        "16-bit image uses 14 bits: its values, about 0..16383",
        64,
        4,
    ),
    "reflectances": (
        as_tiff(noise(3, 0, 3000, "u2")),
        "16-bit image uses 12 bits: its values, about 0..2827",
        11,
        16,
    ),
    "reflectances, big-endian": (
        as_tiff(noise(3, 0, 3000, ">u2")),
        "16-bit image uses 12 bits: its values, about 0..2827",
        11,
        16,
    ),
    "reflectances, infrared": (
        as_tiff(noise(4, 0, 3000, "u2"), 0),
        "16-bit image uses 12 bits: its values, about 0..2827",
        11,
        16,
    ),
}


@pytest.mark.parametrize(("save", "says", "read", "factor"), DIM.values(), ids=DIM)
def test_images_that_hardly_use_their_16_bits_are_named_with_what_becomes_of_them(
    save, says, read, factor, tmp_path: Path
):
    folder = folder_of(tmp_path, [save, save, as_png(noise(3))])
    (warning,) = [p for p in found(folder) if p.kind == "range barely used"]
    assert warning.says.startswith(f"{warning.path}: even the brightest {says}")
    assert (
        f"are read as 0..{read} of 255. Multiply the values of all by {factor}, or save 8-bit "
        f"images."
    ) in warning.says
    assert np.asarray(open_rgb(warning.path)).max() == read


@pytest.mark.parametrize(("bits", "most"), [(12, 4095), (8, 255), (14, 16383)])
def test_the_factor_that_is_named_does_help(bits: int, most: int, tmp_path: Path):
    images = [noise(1, 0, most, "u2")[..., 0] for _ in range(3)]
    assert "range barely used" in kinds(folder_of(tmp_path / "dim", [as_png(i) for i in images]))
    assert (
        kinds(folder_of(tmp_path / "stretched", [as_png(i * 2 ** (16 - bits)) for i in images]))
        == []
    )


GOOD_RANGES = {
    "all of 16 bits": [as_png(noise(1, 0, 65535, "u2")[..., 0])] * 2,
    "a dim image among bright ones": [
        as_png(noise(1, 0, 4095, "u2")[..., 0]),
        as_tiff(noise(1, 0, 60000, "u2")),
    ],
    "15 bits": [as_tiff(noise(1, 0, 32767, "i2"))],
    "16-bit colours": [as_tiff(noise(3, 0, 65535, "u2"))],
    "a dark image of 8 bits": [as_png(noise(3, 0, 15))],
    "16 bits, all black": [as_png(np.zeros((SIDE, SIDE), np.uint16))],
}


@pytest.mark.parametrize("images", GOOD_RANGES.values(), ids=GOOD_RANGES)
def test_images_that_use_their_range_raise_no_alarm(images: list[Save], tmp_path: Path):
    images = [*images, *(as_png(noise(3)) for _ in range(2))]
    assert [
        kind for kind in kinds(folder_of(tmp_path, images)) if not kind.startswith("same image")
    ] == []


SIGNED = {
    "CT": (noise(1, -1024, 3071, "i2"), "-1024 to 3071"),
    "CT, big-endian": (noise(1, -1024, 3071, ">i2"), "-1024 to 3071"),
    "32 bits": (noise(1, -5, 300, "i4"), "-5 to 300"),
    "more than 16 bits": (noise(1, 0, 70000, "i4"), "0 to 70000"),
    "more than 16 bits, unsigned": (noise(1, 0, 70000, "u4"), "0 to 70000"),
    "more than 31 bits": (noise(1, 0, 2**32 - 1, "u4"), "-"),
    "8 bits": (noise(1, -100, 100, "i1"), "-100 to 100"),
}


@pytest.mark.parametrize(("pixels", "says"), SIGNED.values(), ids=SIGNED)
def test_values_below_zero_or_above_16_bits_are_refused_and_never_clipped(
    pixels: np.ndarray, says: str, tmp_path: Path
):
    folder = folder_of(tmp_path, [as_tiff(pixels), as_png(noise(3)), as_png(noise(3))])
    (problem,) = found(folder)
    assert (problem.kind, problem.path) == ("unreadable image", folder / "images" / "0.tif")
    assert (
        f"values from {says}" in problem.says
        and "of which only 0 to 65535 can be read; map all images alike" in problem.says
    )
    assert "only 0 to 65535 can be read" in refused(folder)
    with (
        pytest.raises(ValueError, match="only 0 to 65535 can be read"),
        Image.open(problem.path) as image,
    ):
        to_rgb(image)  # as Segmenter.predict does


def test_signed_files_without_a_value_below_zero_are_read(tmp_path: Path):
    for n, dtype in enumerate(("i1", "i2", ">i2", "i4")):
        path = tmp_path / f"{n}.tif"
        path.write_bytes(tiff(noise(1, 0, 100, dtype)))
        assert np.asarray(open_rgb(path)).max() == (100 if dtype == "i1" else 0)


# ---------------------------------------------------------------------- orientations


def turned(
    orientation: int, height: int = SIDE, width: int = SIDE, suffix: str = ".png", seed: int = 0
) -> Save:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return lambda path: Image.fromarray(pixels).save(path.with_suffix(suffix), exif=exif)


def flat(height: int, width: int, **options: Any) -> Save:
    return as_png(np.resize(TWO, (height, width)), **options)


SQUARE, WIDE = (SIDE, SIDE), (20, 30)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize(
    ("orientation", "size"),
    [(2, WIDE), (3, WIDE), (4, WIDE), (3, SQUARE), *((o, SQUARE) for o in (5, 6, 7, 8))],
)
def test_a_mask_that_may_have_been_drawn_on_the_stored_pixels_is_a_warning(
    orientation, size, suffix: str, tmp_path: Path
):
    images = [turned(orientation, *size, suffix), turned(1, *size, suffix, seed=1)]
    folder = folder_of(tmp_path, images, [flat(*size)] * 2)
    (warning,) = found(folder)
    assert (warning.kind, warning.path) == ("orientation differs", folder / "images" / f"0{suffix}")
    assert (
        f": the image has EXIF orientation {orientation}, its mask 1 (1 is none); " in warning.says
    )
    with (
        Image.open(warning.path) as image,
        Image.open(folder / "masks" / "0.png") as mask,
    ):  # the hint
        mask.save(folder / "masks" / "0.png", exif=image.getexif())
    assert found(folder) == []
    with Image.open(folder / "masks" / "0.png") as mask:
        assert np.array_equal(
            data_of(folder).load("0")[1], np.asarray(ImageOps.exif_transpose(mask))
        )


def test_the_tag_may_be_the_masks(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 3
    folder = folder_of(
        tmp_path, [as_png(noise(3)), as_png(noise(3))], [as_png(TWO, exif=exif), as_png(TWO)]
    )
    (warning,) = found(folder)
    assert "the image has EXIF orientation 1, its mask 3 (1 is none); " in warning.says


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_that_is_evidently_right_raises_no_alarm(orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = WIDE[::-1] if orientation >= 5 else WIDE
    images = [turned(orientation, *WIDE), turned(orientation, *WIDE, seed=1)]
    assert kinds(folder_of(tmp_path / "tagged", images, [flat(*WIDE, exif=exif)] * 2)) == []
    expected = ["orientation differs"] * 2 if orientation in {2, 3, 4} else []
    assert kinds(folder_of(tmp_path / "painted", images, [flat(*upright)] * 2)) == expected


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_sizes_that_would_agree_as_stored_are_explained(suffix: str, tmp_path: Path):
    images = [turned(8, *WIDE, suffix), turned(1, *WIDE, suffix), turned(1, *WIDE, suffix, seed=1)]
    folder = folder_of(tmp_path, images, [flat(*WIDE)] * 3)
    (problem,) = found(folder)
    assert problem.kind == "sizes differ"
    assert (
        "once upright: the image has EXIF orientation 8, its mask 1 (1 is none)). If the "
        "mask was drawn"
    ) in problem.says


# ---------------------------------------------------------------------- palettes


def with_palette(
    ids: np.ndarray, *colors: tuple[int, ...], suffix: str = ".png", **options: Any
) -> Save:
    image = Image.fromarray(ids)
    image.putpalette(
        [channel for color in colors for channel in color], "RGBA" if len(colors[0]) == 4 else "RGB"
    )
    return lambda path: image.save(path.with_suffix(suffix), **options)


BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)
USUAL = with_palette(TWO, BLACK, RED)
STRANGE = {
    "the other way round": with_palette(1 - TWO, RED, BLACK),
    "the other way round, in a TIFF": with_palette(1 - TWO, RED, BLACK, suffix=".tif"),
    "the other way round, in a BMP": with_palette(1 - TWO, RED, BLACK, suffix=".bmp"),
    "transparent entries": with_palette(1 - TWO, (*RED, 255), (*BLACK, 0)),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_a_palette_unlike_the_others_is_a_problem_that_names_its_file(
    strange: Save, tmp_path: Path
):
    folder = folder_of(tmp_path, masks=[USUAL, USUAL, strange, USUAL])
    (problem,) = found(folder)
    assert (problem.kind, problem.path.stem) == ("palette differs", "2")
    says = "palette differs: index 0 is (255, 0, 0) here, elsewhere (0, 0, 0)."
    assert problem.says.startswith(f"{problem.path}: {says}") and says in refused(folder)
    skipped = SegmentationData(
        Data(source=Folder(path=str(folder), on_problem="skip"), size=(28, 28))
    )
    assert sorted(skipped.images) == ["0", "1", "3"]
    Image.fromarray(np.asarray(Image.open(problem.path))).save(problem.path)  # the hint
    assert found(folder) == [] and np.array_equal(data_of(folder).load("2")[1], 1 - TWO)


GOOD_PALETTES = {
    "the same": [USUAL] * 3,
    "unused entries": [
        USUAL,
        with_palette(TWO, BLACK, RED, GREEN),
        with_palette(TWO, BLACK, RED, BLACK, GREEN),
    ],
    "transparent entries": [USUAL, with_palette(TWO, (*BLACK, 0), (*RED, 255))],
    "an index that does not occur": [with_palette(TWO * 0, BLACK, GREEN), USUAL, USUAL, USUAL],
    "another format": [
        USUAL,
        with_palette(TWO, BLACK, RED, suffix=".tif"),
        with_palette(TWO, BLACK, RED, suffix=".bmp"),
    ],
    "grey among them": [USUAL, as_png(TWO)],
}


@pytest.mark.parametrize("masks", GOOD_PALETTES.values(), ids=GOOD_PALETTES)
def test_palettes_that_give_what_occurs_the_same_colours_raise_no_alarm(
    masks: list[Save], tmp_path: Path
):
    folder = folder_of(tmp_path, masks=masks * 2)
    assert [kind for kind in kinds(folder) if kind != "class absent"] == []


# ---------------------------------------------------------------------- alpha channels of masks


def with_alpha(grey: int | np.ndarray, alpha: int | np.ndarray, mode: str) -> Image.Image:
    bands = [Image.fromarray(np.broadcast_to(np.uint8(b), TWO.shape).copy()) for b in (grey, alpha)]
    return Image.merge(mode, [bands[0]] * (len(mode) - 1) + bands[1:])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("grey", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_in_the_alpha_channel_is_a_problem_whose_hint_helps(
    mode: str, grey: int, suffix: str, tmp_path: Path
):
    cut_out = with_alpha(grey, TWO * 255, mode)
    declared = {"colors": [BLACK, (255,) * 3]} if mode == "RGBA" else {"encoding": "binary_255"}
    folder = folder_of(
        tmp_path, masks=[lambda path: cut_out.save(path.with_suffix(suffix))] * 2, **declared
    )
    problems = [p for p in found(folder) if p.kind == "unreadable mask"]
    assert [p.path.stem for p in problems] == ["0", "1"]
    for problem in problems:
        assert problem.says.startswith(
            f"{problem.path}: cannot be read (a mask of one colour; only its alpha channel varies, "
            f"which is not read; save that channel as a grey mask"
        )
        with pytest.raises(ValueError, match="only its alpha channel varies"):
            read_raw(problem.path)
    assert "save that channel as a grey mask" in refused(folder)
    (folder / "classes.json").unlink()
    for path in (folder / "masks").iterdir():
        Image.open(path).getchannel("A").save(path)  # the hint
    assert found(folder) == [] and np.array_equal(data_of(folder).load("0")[1], TWO)


def test_a_palette_with_an_alpha_channel_is_refused_as_a_mask(tmp_path: Path):
    image = Image.merge("LA", [Image.fromarray(TWO)] * 2).convert("PA")
    folder = folder_of(tmp_path, masks=[lambda path: image.save(path.with_suffix(".tif"))] * 2)
    assert kinds(folder)[:2] == ["unreadable mask"] * 2 and "a mask in mode PA" in refused(folder)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_that_says_more_than_the_colours_of_a_mask_is_a_warning(mode: str, tmp_path: Path):
    declared = {"colors": [BLACK, (1, 1, 1)]} if mode == "RGBA" else {}
    masks = [as_png(with_alpha(TWO, np.rot90(TWO) * 255, mode)), as_png(with_alpha(TWO, 255, mode))]
    (warning,) = found(folder_of(tmp_path, masks=masks, **declared))
    assert (warning.kind, warning.path.name) == ("alpha not read", "0.png")
    assert ": its alpha channel differs where its colour does not, and is not read." in warning.says


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize(
    "alpha", [255, 0, 128, TWO * 255], ids=["opaque", "transparent", "half", "follows the colours"]
)
def test_alpha_that_says_nothing_more_raises_no_alarm(
    alpha: int | np.ndarray, mode: str, tmp_path: Path
):
    declared = {"colors": [BLACK, (1, 1, 1)]} if mode == "RGBA" else {}
    folder = folder_of(tmp_path, masks=[as_png(with_alpha(TWO, alpha, mode))] * 2, **declared)
    assert kinds(folder) == [] and np.array_equal(data_of(folder).load("0")[1], TWO)


# ---------------------------------------------------------------------- bands


BANDS = {
    "2, unspecified": (as_tiff(noise(2), 0), "bands dropped", "bands read: the first 1 of 2."),
    "RGB and infrared": (as_tiff(noise(4), 0), "bands dropped", "bands read: the first 3 of 4."),
    "RGB and infrared, 16 bits": (
        as_tiff(noise(4, 0, 65535, "u2"), 0),
        "bands dropped",
        "bands read: the first 3 of 4.",
    ),
    "5": (as_tiff(noise(5), 0), "bands dropped", "bands read: the first 3 of 5."),
    "6": (as_tiff(noise(6), 0), "bands dropped", "bands read: the first 3 of 6."),
    "infrared marked alpha": (
        as_tiff(noise(4), 2),
        "alpha that is no transparency",
        "(infrared?) or is empty; it is not read.",
    ),
    "16-bit infrared": (
        as_tiff(noise(4, 0, 65535, "u2"), 2),
        "alpha that is no transparency",
        "it is not read.",
    ),
    "infrared without a mark": (
        as_tiff(noise(4)),
        "alpha that is no transparency",
        "it is not read.",
    ),
    "grey and infrared": (as_tiff(noise(2), 2), "alpha that is no transparency", "it is not read."),
}


@pytest.mark.parametrize(("save", "kind", "says"), BANDS.values(), ids=BANDS)
def test_bands_that_are_not_read_are_named_and_change_no_colour(
    save: Save, kind: str, says: str, tmp_path: Path
):
    folder = folder_of(tmp_path, [save, as_png(noise(3))])
    (warning,) = found(folder)
    assert (warning.kind, warning.path.name) == (kind, "0.tif") and says in warning.says
    with Image.open(warning.path) as image:
        assert np.array_equal(
            np.asarray(open_rgb(warning.path))[..., 0], np.asarray(image.getchannel(0))
        )
    open_rgb(warning.path).save(folder / "images" / "0.png")  # the hint
    warning.path.unlink()
    assert found(folder) == []


def test_infrared_over_an_empty_edge_is_no_transparency_either(tmp_path: Path):
    pixels = noise(4)
    pixels[:, : SIDE * 3 // 4] = 0
    folder = folder_of(
        tmp_path,
        [as_tiff(pixels, 2), as_tiff(np.dstack([noise(3), np.zeros((SIDE, SIDE), np.uint8)]), 2)],
    )
    assert kinds(folder) == ["alpha that is no transparency"] * 2
    assert np.array_equal(np.asarray(open_rgb(folder / "images" / "0.tif")), pixels[..., :3])


def test_colours_premultiplied_by_infrared_are_refused(tmp_path: Path):
    folder = folder_of(tmp_path, [as_tiff(noise(4), 1), as_png(noise(3)), as_png(noise(3))])
    (problem,) = found(folder)
    assert (
        problem.kind == "unreadable image"
        and "premultiplied by an alpha channel that varies like an image" in problem.says
    )


def test_infrared_in_the_alpha_channel_of_a_png_is_blended_as_the_format_says_with_a_warning(
    tmp_path: Path,
):
    (warning,) = found(folder_of(tmp_path, [as_png(noise(4)), as_png(noise(3))]))
    assert (
        warning.kind == "alpha that is no transparency"
        and "it is blended as transparency." in warning.says
    )


@pytest.mark.parametrize("mark", [1, 2, None])
def test_real_transparency_is_blended_without_alarm(mark: int | None, tmp_path: Path):
    pixels = np.dstack([noise(3), np.full((SIDE, SIDE), 255, np.uint8)])
    pixels[:5, :, 3], pixels[5, :, 3] = 0, 128
    folder = folder_of(tmp_path, [as_tiff(pixels, mark), as_png(noise(3))])
    assert kinds(folder) == []
    read = np.asarray(open_rgb(folder / "images" / "0.tif"))
    assert (read[:5] == FILL).all() and np.array_equal(read[6:], pixels[6:, :, :3])


def test_bands_of_a_mask_are_named_too(tmp_path: Path):
    masks = [as_tiff(np.dstack([TWO, 1 - TWO]), 0), as_png(TWO)]
    (warning,) = found(folder_of(tmp_path, masks=masks))
    assert (warning.kind, warning.path.name) == ("bands dropped", "0.tif")


# ---------------------------------------------------------------------- in brief


def test_a_training_can_say_all_warnings_in_a_sentence_a_kind(tmp_path: Path):
    folder = folder_of(tmp_path, [*(as_tiff(noise(5), 0) for _ in range(3)), turned(3)])
    warnings = Check(Data(source=Folder(path=str(folder)))).warnings
    bands, orientation = in_brief(warnings)
    assert bands.startswith(
        f"{folder / 'images' / '0.tif'}: bands read: the first 3 of 5."
    ) and bands.endswith(" And 2 more: bands dropped.")
    assert orientation == warnings[-1].says and "more:" not in orientation


def test_a_warning_is_among_the_notes_of_stage_1_and_of_no_other(tiny_recipe, tmp_path: Path):
    folder = folder_of(
        tmp_path / "data", [as_png(noise(1, 0, 4095, "u2")[..., 0]) for _ in range(6)]
    )
    stages = [stage.model_dump(mode="json") | {"epochs": 1} for stage in tiny_recipe.stages[:2]]
    recipe = tiny_recipe.replace(
        {"data": Data(source=Folder(path=str(folder)), size=(28, 28), views=2), "stages": stages}
    )
    notes = [
        event.notes
        for event in vitseg.train(recipe, tmp_path / "run")
        if isinstance(event, StageStarted)
    ]
    assert (
        "uses 12 bits: its values, about 0..4095 of 65535, are read as 0..16 of 255" in notes[0][0]
    )
    assert not any("12 bits" in note for note in notes[1])
