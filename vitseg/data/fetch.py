"""Public data sets by name, as folders that vitseg reads: fetched once, checked by their SHA-256,
converted and kept.
"""

from __future__ import annotations

import difflib
import errno
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from vitseg.data.masks import MaskCode, read_raw
from vitseg.errors import ConfigError, DataError
from vitseg.files import cache_folder
from vitseg.images import IGNORE, UNREADABLE, open_rgb, palette_image

PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007"
TRIMAP = MaskCode(
    {1: 1, 2: 0, 3: IGNORE},
    ("background", "pet"),
    "1 pet, 2 background, 3 border, which is ignored",
)
VOC_CODE = MaskCode(
    {i: i for i in range(21)} | {255: IGNORE},
    (
        "background",
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
        *("train", "tvmonitor"),
    ),
    "the palette's index, 255 is ignored",
)
BRAIN_CLASSES = ("background", "grey matter", "white matter", "rest of brain")
FIRST, BLOCK, GAP = 10, 12, 4
"""Slices of 1 mm: the first that shows much of a brain, those of a block, and those of each block
that are left out.
"""

BLOCKS = ("train", "train", "validation", "train", "train", "test") * 2
"""The split of each block, from below."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar file, plain or compressed, and the SHA-256 that others have published for it."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class PublicSet:
    """What a set is made of. `convert(unpacked, folder)` writes the folder, and gives what
    `about.json` should say of it.

    `room_gb` is what archives and images take together while it is made.
    """

    source: str
    licence: str
    room_gb: float
    convert: Callable[[Path, Path], dict[str, Any]]
    archives: tuple[Archive, ...] = ()


def fetch(name: str) -> Path:
    """The folder of a public data set, kept under `cache_folder()/data`. Made the first time; then
    no network is asked.

    What was cut off is begun again; an archive that has come whole is not downloaded twice.
    `about.json` in the folder says where it is from, under which licence, and which images were
    left out, and why. Delete the folder to have it made anew. Raises ConfigError for an unknown
    name; DataError without a network, for an archive that is not the published one, or where there
    is no room.
    """
    if name not in SETS:
        close = difflib.get_close_matches(name, SETS, n=1, cutoff=0.4)
        hint = f"Did you mean {close[0]!r}?" if close else ""
        raise ConfigError("name", name, ", ".join(SETS), hint)
    folder = cache_folder() / "data" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(SETS[name], folder)
    except OSError as error:
        says, hint = f"cannot be made ({error.strerror or error}).", "Mend that"
        if error.errno == errno.ENOSPC:
            says, hint = "the disk is full.", f"Make room for {SETS[name].room_gb} GB"
        elsewhere = "or name another place in $VITSEG_CACHE."
        raise DataError(f"{folder}: {says}", f"{hint}, {elsewhere}") from None
    return folder


def about(folder: Path) -> dict[str, Any]:
    """What a fetched folder says of itself."""
    return json.loads((folder / "about.json").read_text(encoding="utf-8"))


def _make(wanted: PublicSet, folder: Path) -> None:
    """Download, unpack and convert beside the folder; the last step gives it its name."""
    archives = folder.with_name(f"{folder.name}.archives")
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # was cut off
    unpacked, ready = partial / "unpacked", partial / "ready"
    ready.mkdir(parents=True)
    for archive in wanted.archives:
        _unpack(_download(archive, archives), unpacked)
    said = {
        "source": wanted.source,
        "licence": wanted.licence,
        "archives": {archive.url: archive.sha256 for archive in wanted.archives},
        **wanted.convert(unpacked, ready),
    }
    _write_json(ready / "about.json", said)
    ready.rename(folder)
    for leftover in (partial, archives):
        shutil.rmtree(leftover, ignore_errors=True)


def _download(archive: Archive, folder: Path) -> Path:
    import pooch  # with requests: needed once only
    from requests import RequestException

    known = f"sha256:{archive.sha256}"
    try:
        path = pooch.retrieve(archive.url, known, archive.name, folder, progressbar=True)
    except RequestException as error:
        why = type(error).__name__
        if error.response is not None:
            why = f"the server answered {error.response.status_code}"
        hint = (
            f"Is there a network? The file can also be brought from elsewhere: put it into "
            f"{folder} and fetch again."
        )
        raise DataError(f"{archive.url}: cannot be downloaded ({why}).", hint) from None
    except ValueError:  # this is how pooch says that the hash is another one
        hint = (
            "Fetch again; if it stays so, something on the way, or the publisher, has changed "
            "the file."
        )
        says = f"its SHA-256 is not the published {archive.sha256[:12]}...."
        raise DataError(f"{archive.url}: {says}", hint) from None
    return Path(path)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # no devices, and nothing outside the folder
    except (tarfile.TarError, EOFError, zlib.error) as error:
        says = f"{archive}: cannot be unpacked ({error})."
        raise DataError(says, "Nothing of it is used.") from None


# ---------------------------------------------------------------------- into the folder layout


def write_pets(unpacked: Path, folder: Path) -> dict[str, Any]:
    """Oxford-IIIT Pet: train/ holds the published trainval list, of which validation is drawn, and
    test/ the test list.
    """
    annotations = unpacked / "annotations"
    pairs = {}
    for split, listed in (("train", "trainval"), ("test", "test")):
        stems = [line.split()[0] for line in _lines(annotations / f"{listed}.txt")]
        pairs[split] = _paired(unpacked / "images", annotations / "trimaps", stems)
    return _write_splits(folder, pairs, TRIMAP)


def write_voc(unpacked: Path, folder: Path) -> dict[str, Any]:
    """PASCAL VOC 2007: the images with class masks, in the published train, val and test lists."""
    root = unpacked / "VOCdevkit" / "VOC2007"
    pairs = {}
    for split, listed in (("train", "train"), ("validation", "val"), ("test", "test")):
        stems = _lines(root / "ImageSets" / "Segmentation" / f"{listed}.txt")
        pairs[split] = _paired(root / "JPEGImages", root / "SegmentationClass", stems)
    return _write_splits(folder, pairs, VOC_CODE)


def write_slices(unpacked: Path, folder: Path) -> dict[str, Any]:
    """The MNI152 template, which the package nilearn brings with it: 96 axial slices of 1 mm, RGB,
    233 x 197 pixels, in blocks from below: eight in a row, then four that are left out.

    Slices next to each other are almost the same image. As whole blocks go into a split, with 5 mm
    from the last slice of one to the first of the next, no validation or test slice has a near
    neighbour in training. It is still one brain, the mean of 152 people: scores on it say nothing
    of other brains. Raises DataError without nilearn.
    """
    brain, ids = _volumes()
    for number, split in enumerate(BLOCKS):
        images, masks = _places(folder / split)
        start = FIRST + number * BLOCK
        for z in range(start, start + BLOCK - GAP):
            Image.fromarray(_upright(brain, z)).convert("RGB").save(images / f"z{z:03}.png")
            palette_image(_upright(ids, z)).save(masks / f"z{z:03}.png")
    _write_classes(folder, BRAIN_CLASSES)
    tissue = "the tissue whose probability is at least one half"
    return {"nilearn": version("nilearn"), "masks": tissue, "left_out": {}}


SETS = {
    "oxford-pets": PublicSet(
        "Oxford-IIIT Pet (Parkhi et al. 2012)",
        "CC BY-SA 4.0; the photographs belong to their owners",
        room_gb=1.8,
        convert=write_pets,
        archives=(
            Archive(
                f"{PETS}/images.tar.gz",
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            ),
            Archive(
                f"{PETS}/annotations.tar.gz",
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            ),
        ),
    ),
    "voc2007": PublicSet(
        "PASCAL VOC 2007, segmentation (Everingham et al. 2010)",
        "photographs from Flickr, under its terms of use",
        room_gb=2.0,
        convert=write_voc,
        archives=(
            Archive(
                f"{VOC}/VOCtrainval_06-Nov-2007.tar",
                "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
            ),
            Archive(
                f"{VOC}/VOCtest_06-Nov-2007.tar",
                "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
            ),
        ),
    ),
    "mni-brain": PublicSet(
        "MNI ICBM152 2009a (Fonov et al. 2011), as nilearn brings it",
        "copyright MNI, McGill University; nilearn names no licence of it",
        room_gb=0.1,
        convert=write_slices,
    ),
}
"""The SHA-256 are those that tensorflow-datasets publishes in its url_checksums; see
docs/decisions/0019.
"""


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_classes(folder: Path, classes: tuple[str, ...]) -> None:
    """Masks hold class ids, and 255 where nothing counts."""
    declared = {"classes": list(classes), "encoding": "index", "ignore_value": IGNORE}
    _write_json(folder / "classes.json", declared)


def _places(folder: Path) -> list[Path]:
    """images/ and masks/ in a folder, made where they are not there."""
    places = [folder / "images", folder / "masks"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    return places


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and line[0] != "#"]


def _paired(images: Path, masks: Path, stems: list[str]) -> list[tuple[Path, Path]]:
    return [(images / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems]


def _write_splits(
    folder: Path, pairs: dict[str, list[tuple[Path, Path]]], code: MaskCode
) -> dict[str, Any]:
    """Every pair that can be read; the others are left out, and named. The images are moved, which
    takes no room.
    """
    left_out: dict[str, str] = {}
    for split, of_split in pairs.items():
        images, masks = _places(folder / split)
        for image, mask in tqdm(of_split, desc=split, unit="image"):
            try:
                pixels, is_plain, ids = open_rgb(image), _is_plain(image), _ids(mask, code)
                sizes = f"image {pixels.width}x{pixels.height}, mask {ids.shape[1]}x{ids.shape[0]}"
                if ids.shape != (pixels.height, pixels.width):
                    raise ValueError(f"{sizes} pixels")
            except (*UNREADABLE, DataError) as error:
                left_out[image.stem] = str(error).replace(f"{image.parents[1]}/", "")
                continue
            palette_image(ids).save(masks / f"{image.stem}.png")
            if is_plain:
                image.rename(images / image.name)
            else:  # a PNG or GIF by the name of .jpg, or not in RGB
                pixels.save(images / f"{image.stem}.png")
    _write_classes(folder, code.classes)
    return {"masks": code.description, "left_out": left_out}


def _is_plain(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "JPEG" and image.mode == "RGB"


def _ids(path: Path, code: MaskCode) -> np.ndarray:
    raw = read_raw(path)
    if strange := code.unknown(set(np.unique(raw).tolist())):
        raise ValueError(f"the mask holds {strange[:6]}, which stand for no class")
    return code.decode(raw)


def _volumes() -> tuple[np.ndarray, np.ndarray]:
    """The T1 template as grey values and its class ids, both (x, y, z) uint8, a voxel a
    millimetre.
    """
    try:
        from nilearn import datasets  # 2 s
    except ImportError:
        says = "mni-brain: the package nilearn is not installed."
        raise DataError(says, "Install it: pip install nilearn.") from None
    load = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    brain, grey, white, mask = (
        np.asarray(volume(resolution=1).dataobj, dtype=np.float32) for volume in load
    )
    ids = np.select([mask == 0, grey >= 0.5, white >= 0.5], [0, 1, 2], default=3)
    return (brain * 255).clip(0, 255).round().astype(np.uint8), ids.astype(np.uint8)


def _upright(volume: np.ndarray, z: int) -> np.ndarray:
    """A slice as one looks at it from above (y, x), the forehead on top."""
    return np.ascontiguousarray(np.rot90(volume[:, :, z]))
