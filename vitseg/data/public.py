"""Published data sets, once unpacked, into the folder layout: images/, masks/ and a
classes.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vitseg.data.masks import MaskCode, read_raw
from vitseg.errors import DataError
from vitseg.images import IGNORE, UNREADABLE, open_rgb, palette_image

TRIMAP = MaskCode(
    {1: 1, 2: 0, 3: IGNORE},
    ("background", "pet"),
    "1 pet, 2 background, 3 border, which is ignored",
)
VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOC_CODE = MaskCode(
    {i: i for i in range(21)} | {255: IGNORE}, VOC_CLASSES, "the palette's index, 255 is ignored"
)
LeftOut = dict[str, str]
"""Names of images, and what is wrong with each."""


def write_pets(unpacked: Path, folder: Path) -> dict[str, Any]:
    """Oxford-IIIT Pet: train/ holds the published trainval list, of which validation is drawn, and
    test/ the test list.
    """
    images, annotations = unpacked / "images", unpacked / "annotations"
    left_out: LeftOut = {}
    for split, listed in (("train", "trainval"), ("test", "test")):
        stems = [line.split()[0] for line in _lines(annotations / f"{listed}.txt")]
        pairs = [
            (images / f"{stem}.jpg", annotations / "trimaps" / f"{stem}.png") for stem in stems
        ]
        left_out |= _write_split(folder / split, pairs, TRIMAP)
    write_classes(folder, TRIMAP.classes)
    return {"masks": TRIMAP.description, "left_out": left_out}


def write_voc(unpacked: Path, folder: Path) -> dict[str, Any]:
    """PASCAL VOC 2007: the images with class masks, in the published train, val and test lists."""
    root = unpacked / "VOCdevkit" / "VOC2007"
    left_out: LeftOut = {}
    for split, listed in (("train", "train"), ("validation", "val"), ("test", "test")):
        stems = _lines(root / "ImageSets" / "Segmentation" / f"{listed}.txt")
        pairs = [
            (root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png")
            for stem in stems
        ]
        left_out |= _write_split(folder / split, pairs, VOC_CODE)
    write_classes(folder, VOC_CLASSES)
    return {"masks": VOC_CODE.description, "left_out": left_out}


def write_classes(folder: Path, classes: Iterable[str]) -> None:
    """Masks hold class ids, and 255 where nothing counts."""
    declared = {"classes": list(classes), "encoding": "index", "ignore_value": IGNORE}
    (folder / "classes.json").write_text(json.dumps(declared, indent=2) + "\n", encoding="utf-8")


def make_places(folder: Path) -> tuple[Path, Path]:
    """images/ and masks/ in a folder, made."""
    images, masks = folder / "images", folder / "masks"
    for place in (images, masks):
        place.mkdir(parents=True)
    return images, masks


def _lines(path: Path) -> list[str]:
    return [
        line.strip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip() and line[0] != "#"
    ]


def _write_split(folder: Path, pairs: list[tuple[Path, Path]], code: MaskCode) -> LeftOut:
    """Every pair that can be read; the others are left out, and named. The images are moved, which
    takes no room.
    """
    images, masks = make_places(folder)
    left_out: LeftOut = {}
    for image, mask in tqdm(pairs, desc=folder.name, unit="image"):
        try:
            pixels, is_plain, ids = open_rgb(image), _is_plain(image), _ids(mask, code)
            if ids.shape != (pixels.height, pixels.width):
                raise ValueError(
                    f"image {pixels.width}x{pixels.height}, mask {ids.shape[1]}x{ids.shape[0]} "
                    f"pixels"
                )
        except (*UNREADABLE, DataError) as error:
            left_out[image.stem] = str(error).replace(f"{image.parents[1]}/", "")
            continue
        palette_image(ids).save(masks / f"{image.stem}.png")
        if is_plain:
            image.rename(images / image.name)
        else:  # a PNG or GIF by the name of .jpg, or not in RGB
            pixels.save(images / f"{image.stem}.png")
    return left_out


def _is_plain(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "JPEG" and image.mode == "RGB"


def _ids(path: Path, code: MaskCode) -> np.ndarray:
    raw = read_raw(path)
    if strange := code.unknown(set(np.unique(raw).tolist())):
        raise ValueError(f"the mask holds {strange[:6]}, which stand for no class")
    return code.decode(raw)
