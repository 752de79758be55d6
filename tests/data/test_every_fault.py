"""One report names every file that is not as it should be, and no other."""

from __future__ import annotations

import json
import os
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import stripes, write_pairs
from PIL import Image

from vitseg.data.check import Check
from vitseg.errors import DataError
from vitseg.settings import Data, Folder

ROOT_MAY_ALL = os.geteuid() == 0
Named = list[tuple[str, Path]]
"""Kinds and paths."""


def labels(*values: int) -> np.ndarray:
    """A mask of 32 x 48 with these values in stripes."""
    return np.kron(stripes(*values)[:16], np.ones((2, 2), np.uint8))


def noise(seed: int, shape: tuple[int, int] = (32, 48)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8))


def write(place: Path, name: str, seed: int) -> None:
    for kind in ("images", "masks"):
        (place / kind).mkdir(parents=True, exist_ok=True)
    noise(seed).save(place / "images" / f"{name}.png", compress_level=1)
    Image.fromarray(labels(0, 1, 2)).save(place / "masks" / f"{name}.png", compress_level=1)


def named(folder: Path) -> Named:
    """All that a report says something of."""
    check = Check(Data(source=Folder(path=str(folder))))
    return sorted((p.kind, p.path) for p in [*check.problems, *check.warnings, *check.notes])


def header_alone(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims this size; no pixels follow."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    parts = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---------------------------------------------------------------------- what is done to a pair, and
# what must be said of it

Spoil = Callable[[Path, Path], Named]
"""Given image and mask, both good; their names are of this pair alone."""
FAULTS: dict[str, Spoil] = {}


def fault(spoil: Spoil) -> Spoil:
    FAULTS[spoil.__name__] = spoil
    return spoil


def bytes_for(kind: str, content: Callable[[bytes], bytes]) -> Spoil:
    def spoil(image: Path, mask: Path) -> Named:
        path = image if kind == "image" else mask
        path.write_bytes(content(path.read_bytes()))
        return [(f"unreadable {kind}", path)]

    return spoil


def mask_of(pixels: np.ndarray | Image.Image, kind: str, suffix: str = ".png", **options) -> Spoil:
    def spoil(image: Path, mask: Path) -> Named:
        mask.unlink()
        path = mask.with_suffix(suffix)
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(
            path, **options
        )
        return [(kind, path)]

    return spoil


def image_of(pixels: Image.Image, kind: str, suffix: str = ".png", **options) -> Spoil:
    def spoil(image: Path, mask: Path) -> Named:
        image.unlink()
        path = image.with_suffix(suffix)
        pixels.save(path, **options)
        return [(kind, mask if kind == "sizes differ" else path)]

    return spoil


def link(kind: str, to: str) -> Spoil:
    def spoil(image: Path, mask: Path) -> Named:
        path = image if kind == "image" else mask
        path.unlink()
        path.symlink_to(to.format(name=path.name))
        return [(f"unreadable {kind}", path)]

    return spoil


for kind in ("image", "mask"):
    FAULTS |= {
        f"{kind}, empty": bytes_for(kind, lambda b: b""),
        f"{kind}, cut off": bytes_for(kind, lambda b: b[: len(b) // 2]),
        f"{kind}, cut off at its end": bytes_for(kind, lambda b: b[:-30]),
        f"{kind}, text": bytes_for(kind, lambda b: b"hello"),
        f"{kind}, corrupt": bytes_for(
            kind, lambda b: b[: len(b) // 2] + bytes(20) + b[len(b) // 2 + 20 :]
        ),
        f"{kind}, enormous": bytes_for(kind, lambda b: header_alone(60000, 60000)),
        f"{kind}, so large that Pillow warns": bytes_for(
            kind, lambda b: header_alone(10000, 10000)
        ),
        f"{kind}, a link that leads nowhere": link(kind, "gone.png"),
        f"{kind}, a link to itself": link(kind, "{name}"),
    }

TURNED = Image.Exif()
TURNED[0x0112] = 6
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3
NO_ALPHA = "alpha that is no transparency"
RGB, TWO = Image.fromarray(labels(0, 1, 2)).convert("RGB"), labels(0, 1)
CUT_OUT = Image.merge("LA", [Image.new("L", (48, 32)), Image.fromarray(TWO)])
ONE_PIXEL = labels(0, 1, 2)
ONE_PIXEL[3, 4] = 3
FAULTS |= {
    "photograph, cut off": lambda i, m: (
        image_of(noise(1), "", ".jpg")(i, m) and FAULTS["image, cut off"](i.with_suffix(".jpg"), m)
    ),
    "image of floats": image_of(
        Image.fromarray(labels(0, 1).astype(np.float32)), "unreadable image", ".tif"
    ),
    "image, animated": image_of(
        noise(2), "unreadable image", save_all=True, append_images=[noise(3)]
    ),
    "image, animated WebP": image_of(
        noise(2), "unreadable image", ".webp", save_all=True, append_images=[noise(3)]
    ),
    "image of several pages": image_of(
        noise(2), "unreadable image", ".tif", save_all=True, append_images=[noise(3)]
    ),
    "image on its side by its tag": image_of(noise(4), "sizes differ", exif=TURNED),
    "photograph on its side by its tag": image_of(noise(5), "sizes differ", ".jpg", exif=TURNED),
    "image below zero": image_of(
        Image.fromarray(labels(0, 1).astype(np.int32) - 1), "unreadable image", ".tif"
    ),
    "image of 12 bits in 16": image_of(
        Image.fromarray(labels(0, 15).astype(np.uint16) * 273), "range barely used"
    ),
    "image upside down by its tag": image_of(noise(7), "orientation differs", exif=UPSIDE_DOWN),
    "image with infrared for alpha": image_of(
        Image.merge("RGBA", noise(8).split() + noise(9).split()[:1]), NO_ALPHA, ".tif"
    ),
    "tiny": lambda i, m: (
        mask_of(labels(0, 1, 2)[:20, :20], "")(i, m) and image_of(noise(6, (20, 20)), "tiny")(i, m)
    ),
    "mask, smaller": mask_of(labels(0, 1, 2)[:16], "sizes differ"),
    "mask, smaller by a pixel": mask_of(labels(0, 1, 2)[:, 1:], "sizes differ"),
    "mask on its side": mask_of(labels(0, 1, 2).T.copy(), "sizes differ"),
    "unknown label": mask_of(labels(0, 7), "unknown label"),
    "unknown label in a pixel": mask_of(ONE_PIXEL, "unknown label"),
    "255 for the foreground": mask_of(labels(0, 255), "unknown label"),
    "unknown label of 16 bits": mask_of(labels(0, 1).astype(np.uint16) * 300, "unknown label"),
    "mask, JPEG": mask_of(TWO, "unreadable mask", ".jpg"),
    "mask, JPEG by another name": mask_of(TWO, "unreadable mask", format="JPEG"),
    "mask of floats": mask_of(TWO.astype(np.float32), "unreadable mask", ".tif"),
    "mask, CMYK": mask_of(RGB.convert("CMYK"), "unreadable mask", ".tif"),
    "mask of several pages": mask_of(
        TWO, "unreadable mask", ".tif", save_all=True, append_images=[noise(3)]
    ),
    "mask in colour": mask_of(RGB, "masks of two kinds"),
    "mask in colour with alpha": mask_of(RGB.convert("RGBA"), "masks of two kinds"),
    "mask in the alpha channel": mask_of(CUT_OUT, "unreadable mask"),
    "mask of background": mask_of(labels(0), "no foreground"),
    "mask, all ignored": mask_of(labels(9), "all ignored"),
}


@fault
def missing_mask(image: Path, mask: Path) -> Named:
    mask.unlink()
    return [("no mask", image)]


@fault
def orphan_mask(image: Path, mask: Path) -> Named:
    image.unlink()
    return [("no image", mask)]


@fault
def name_in_other_capitals(image: Path, mask: Path) -> Named:
    other = mask.rename(mask.with_stem(mask.stem.upper()))
    return [("no mask", image), ("no image", other)]


@fault
def name_in_another_form_of_unicode(image: Path, mask: Path) -> Named:
    image = image.rename(image.with_stem(unicodedata.normalize("NFC", f"é{image.stem}")))
    mask = mask.rename(mask.with_stem(unicodedata.normalize("NFD", f"é{mask.stem}")))
    return [("no mask", image), ("no image", mask)]


@fault
def two_kinds_of_file(image: Path, mask: Path) -> Named:
    shutil.copy(image, image.with_suffix(".bmp"))
    return [("one name twice", image.with_suffix(".bmp"))]


@fault
def two_masks(image: Path, mask: Path) -> Named:
    shutil.copy(mask, mask.with_suffix(".tif"))
    return [("one name twice", mask)]


@fault
def twice_but_for_capitals(image: Path, mask: Path) -> Named:
    for path in (image, mask):
        shutil.copy(path, path.with_stem(path.stem.upper()))
    noise(7).save(image.with_stem(image.stem.upper()))
    return [("one name twice", path.with_stem(path.stem.upper())) for path in (image, mask)]


@fault
def twice_within(image: Path, mask: Path) -> Named:
    for path in (image, mask):
        Image.open(path).save(path.with_stem(f"{path.stem} copy"), compress_level=9)
    return [("same image twice", image)]


@fault
def also_in_validation(image: Path, mask: Path) -> Named:
    for path in (image, mask):
        Image.open(path).save(
            path.parents[2] / "validation" / path.parent.name / f"other {path.stem}.bmp"
        )
    return [("same image in two splits", image)]


@fault
def link_that_leads_out(image: Path, mask: Path) -> Named:
    outside = image.parents[3] / f"outside {image.name}"
    image.rename(outside)
    image.symlink_to(outside)
    return [("link that leads out", image)]


@fault
def folder_by_the_name_of_an_image(image: Path, mask: Path) -> Named:
    image.unlink()
    image.mkdir()
    return [("unreadable image", image)]


@fault
def folder_within(image: Path, mask: Path) -> Named:
    inner = image.parent / f"more {image.stem}"
    inner.mkdir()
    return [("folder within", inner)]


@fault
def name_that_is_no_text(image: Path, mask: Path) -> Named:
    paths = [
        path.rename(path.parent / os.fsdecode(b"\xff" + path.name.encode()))
        for path in (image, mask)
    ]
    return [("name that is no text", path) for path in paths]


@fault
def another_split(image: Path, mask: Path) -> Named:
    split = image.parents[2] / f"val {image.stem}"
    write(split, "a", 8)
    return [("split by another name", split)]


if not ROOT_MAY_ALL:

    @fault
    def forbidden_image(image: Path, mask: Path) -> Named:
        image.chmod(0)
        return [("unreadable image", image)]


# ---------------------------------------------------------------------- found, all of them


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set in which every fault has a pair of its own, most in train/, beside good ones in
    both splits.
    """
    place = tmp_path / "data"
    for split, count in (("train", len(FAULTS) + 10), ("validation", 30)):
        for n in range(count):
            write(place / split, f"pair{n:03}", 1000 + n + 500 * (split == "train"))
    declared = {"classes": ["ground", "wound", "scar"], "encoding": "index", "ignore_value": 9}
    (place / "classes.json").write_text(json.dumps(declared))
    return place


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_one_report_names_each_of_sixty_faults_by_path_and_kind_and_nothing_else(folder: Path):
    assert named(folder) == []
    wanted: Named = []
    for n, spoil in enumerate(FAULTS.values()):
        wanted += spoil(
            *(folder / "train" / kind / f"pair{n:03}.png" for kind in ("images", "masks"))
        )
    for n, name in enumerate(
        ("image, empty", "mask, text", "unknown label", "orphan_mask", "mask, smaller", "two_masks")
    ):
        wanted += FAULTS[name](
            *(folder / "validation" / kind / f"pair{n:03}.png" for kind in ("images", "masks"))
        )
    assert len(wanted) >= 60 and named(folder) == sorted(wanted)


AMBIGUOUS = {
    "255, a class or ignored": labels(0, 1, 255),
    "class, or class x 2": labels(0, 2, 4),
    "class x 85, or ignored": labels(0, 85, 170, 255),
    "colours without a map": RGB,
    "a photograph": noise(0),
}


@pytest.mark.parametrize("mask", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_masks_that_may_be_read_in_two_ways_are_named_by_folder_beside_the_other_faults(
    mask, tmp_path: Path
):
    write_pairs(tmp_path, {str(n): mask for n in range(4)})
    for n in range(4):
        noise(n).save(tmp_path / "images" / f"{n}.png")
    assert named(tmp_path) == [("unclear masks", tmp_path)]
    (tmp_path / "masks" / "0.png").unlink()
    assert named(tmp_path) == [
        ("no mask", tmp_path / "images" / "0.png"),
        ("unclear masks", tmp_path),
    ]


def test_a_class_that_a_split_lacks_and_a_set_that_cannot_be_split_are_named(
    folder: Path, tmp_path: Path
):
    for mask in (folder / "validation" / "masks").iterdir():
        Image.fromarray(TWO).save(mask)
    assert named(folder) == [("class absent", folder)]
    write(tmp_path / "one", "only", 0)
    assert named(tmp_path / "one") == [("cannot be split", tmp_path / "one")]


def test_what_lies_beside_the_splits_is_named(folder: Path):
    write(folder, "a", 0)
    assert named(folder) == [
        ("split by another name", folder / kind) for kind in ("images", "masks")
    ]


@pytest.mark.skipif(ROOT_MAY_ALL, reason="root may read everything")
def test_row_64_a_folder_that_may_not_be_read_is_named(folder: Path):
    masks = folder / "validation" / "masks"
    masks.chmod(0)
    try:
        with pytest.raises(DataError, match=rf"{masks}: cannot be looked into \(Permission denied"):
            named(folder)
    finally:
        masks.chmod(0o755)


# ---------------------------------------------------------------------- and no false alarm


def test_a_thousand_good_files_of_every_kind_raise_no_alarm(tmp_path: Path):
    """PNG, JPEG, TIFF, BMP, WebP; grey, palette, transparent, 16-bit and turned; half of the names
    unusual.
    """
    kinds = [
        ("RGB", ".png"),
        ("RGB", ".jpg"),
        ("RGB", ".tif"),
        ("RGB", ".bmp"),
        ("RGB", ".webp"),
        ("L", ".png"),
        ("P", ".png"),
        ("RGBA", ".png"),
        ("CMYK", ".tif"),
        ("LA", ".png"),
    ]
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for n in range(500):
        mode, suffix = kinds[n % len(kinds)]
        name = f"{'ünï 漢字 %s ' * (n % 2)}{n:03}"
        turned = n % 20 == 0
        stored = noise(n, (48, 32) if turned else (32, 48)).convert(mode)
        stored.save(tmp_path / "images" / f"{name}{suffix}", **({"exif": TURNED} if turned else {}))
        Image.fromarray(labels(0, 1, 2)).save(tmp_path / "masks" / f"{name}.png", compress_level=1)
    for stray in (".DS_Store", "._000.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "images" / stray).write_bytes(b"junk")
    assert named(tmp_path) == []
