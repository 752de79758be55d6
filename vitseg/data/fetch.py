"""Public data sets by name, as folders that vitseg reads: fetched once, checked by their SHA-256,
converted and kept.
"""

import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from vitseg.data.folder import HALVES
from vitseg.data.masks import MaskCode, read_raw, refuse_unknown
from vitseg.errors import DataError
from vitseg.files import cache_folder, whole_file, write_json
from vitseg.images import IGNORE, UNREADABLE, opened, palette_image, to_rgb

PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007"
VOC_ROOT = "VOCdevkit/VOC2007"
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
BLOCKS = ("train", "train", "validation", "train", "train", "test") * 2
"""The split of each block of slices, from below."""


class PublicSet(NamedTuple):
    """What a set is made of: the SHA-256 that others have published of its `archives`, tar files,
    by address; in what these unpack to, the folders of `images` (.jpg) and `masks` (.png), and the
    list of names of each split. A set without archives is made from the package nilearn.

    `room_gb` is what archives and images take together while it is made.
    """

    source: str
    licence: str
    room_gb: float
    code: MaskCode
    archives: Mapping[str, str] = {}
    images: str = ""
    masks: str = ""
    lists: Mapping[str, str] = {}


SETS = {
    "oxford-pets": PublicSet(
        "Oxford-IIIT Pet (Parkhi et al. 2012)",
        "CC BY-SA 4.0; the photographs belong to their owners",
        room_gb=1.8,
        code=MaskCode(
            {1: 1, 2: 0, 3: IGNORE},
            ("background", "pet"),
            "1 pet, 2 background, 3 border, which is ignored",
        ),
        archives={
            f"{PETS}/images.tar.gz": (
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d"
            ),
            f"{PETS}/annotations.tar.gz": (
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91"
            ),
        },
        images="images",
        masks="annotations/trimaps",
        lists={"train": "annotations/trainval.txt", "test": "annotations/test.txt"},
    ),
    "voc2007": PublicSet(
        "PASCAL VOC 2007, segmentation (Everingham et al. 2010)",
        "photographs from Flickr, under its terms of use",
        room_gb=2.0,
        code=MaskCode(
            {i: i for i in range(21)} | {255: IGNORE},
            VOC_CLASSES,
            "the palette's index, 255 is ignored",
        ),
        archives={
            f"{VOC}/VOCtrainval_06-Nov-2007.tar": (
                "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508"
            ),
            f"{VOC}/VOCtest_06-Nov-2007.tar": (
                "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892"
            ),
        },
        images=f"{VOC_ROOT}/JPEGImages",
        masks=f"{VOC_ROOT}/SegmentationClass",
        lists={
            "train": f"{VOC_ROOT}/ImageSets/Segmentation/train.txt",
            "validation": f"{VOC_ROOT}/ImageSets/Segmentation/val.txt",
            "test": f"{VOC_ROOT}/ImageSets/Segmentation/test.txt",
        },
    ),
    "mni-brain": PublicSet(
        "MNI ICBM152 2009a (Fonov et al. 2011), as nilearn brings it",
        "copyright MNI, McGill University; nilearn names no licence of it",
        room_gb=0.1,
        code=MaskCode(
            {i: i for i in range(4)},
            ("background", "grey matter", "white matter", "rest of brain"),
            "the tissue whose probability is at least one half",
        ),
    ),
}
"""The SHA-256 are those that tensorflow-datasets publishes in its url_checksums; see
docs/decisions/0019.
"""


def fetch(name: str) -> Path:
    """The folder of a public data set, kept under `cache_folder()/data`. Made the first time; then
    no network is asked.

    What was cut off is started again; an archive that has come whole is not downloaded twice.
    `about.json` in the folder says where it is from, under which licence, and which images were
    left out, and why. Delete the folder to have it made anew. Raises ConfigError for an unknown
    name; DataError without a network, for an archive that is not the published one, or where there
    is no room for it; RunError where there is none for the folder.
    """
    refuse_unknown("name", [name], SETS)
    folder = cache_folder() / "data" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(SETS[name], folder)
    except OSError as error:
        hint = f"Make room for {SETS[name].room_gb} GB, or name another place in $VITSEG_CACHE."
        raise DataError(f"{folder}: cannot be made ({error.strerror or error}).", hint) from None
    return folder


def _make(wanted: PublicSet, folder: Path) -> None:
    """Download, unpack and convert beside the folder; the last step gives it its name."""
    unpacked = folder.with_name(f"{folder.name}.archives")
    for url, sha256 in wanted.archives.items():
        _unpack(url, sha256, unpacked)
    left_out: dict[str, str] = {}
    pairs = _published(wanted, unpacked, left_out) if wanted.archives else _slices()
    with whole_file(folder) as made:
        for split, name, image, ids in pairs:
            images, masks = halves = [made / split / half for half in HALVES]
            for half in halves:
                half.mkdir(parents=True, exist_ok=True)
            palette_image(ids).save(masks / f"{name}.png")
            if isinstance(image, Path):  # moved, which takes no room
                image.rename(images / image.name)
            else:
                image.save(images / f"{name}.png")
        declared = {"classes": wanted.code.classes, "encoding": "index", "ignore_value": IGNORE}
        write_json(made / "classes.json", declared)
        said = {
            "source": wanted.source,
            "licence": wanted.licence,
            "archives": wanted.archives or {"nilearn": version("nilearn")},
            "masks": wanted.code.description,
            "left_out": left_out,
        }
        write_json(made / "about.json", said)
    shutil.rmtree(unpacked, ignore_errors=True)


def _unpack(url: str, sha256: str, folder: Path) -> None:
    """Unpack an archive in a folder, downloaded into it unless it is there already."""
    import pooch  # with requests: needed once only
    from requests import RequestException

    try:
        name = Path(url).name
        archive = pooch.retrieve(url, f"sha256:{sha256}", name, folder, progressbar=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # no devices, and nothing outside the folder
    except (RequestException, ValueError, tarfile.TarError, EOFError, zlib.error) as error:
        hint = (
            f"Fetch again. The file can also be brought from elsewhere: put it into {folder} first."
        )
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{url}: cannot be fetched ({why}).", hint) from None


# ---------------------------------------------------------------------- image by image

Pair = tuple[str, str, Image.Image | Path, np.ndarray]
"""Split and name, the image, or the file that can stay as it is, and its class ids (h, w)."""


def _published(wanted: PublicSet, unpacked: Path, left_out: dict[str, str]) -> Iterator[Pair]:
    """Every pair of the archives that can be read; the others are `left_out`, with the reason."""
    for split, listed in wanted.lists.items():
        stems = np.loadtxt(unpacked / listed, str, usecols=0, ndmin=1).tolist()
        for stem in tqdm(stems, desc=split, unit="image"):
            path = unpacked / wanted.images / f"{stem}.jpg"
            try:
                with opened(path) as image:
                    is_plain = (image.format, image.mode) == ("JPEG", "RGB")
                    pixels = to_rgb(image)
                ids = wanted.code.decode(read_raw(unpacked / wanted.masks / f"{stem}.png"))
                height, width = ids.shape
                if pixels.size != (width, height):
                    raise ValueError(
                        f"image {pixels.width}x{pixels.height}, mask {width}x{height} pixels"
                    )
            except UNREADABLE as error:
                left_out[stem] = str(error).replace(f"{unpacked}/", "")
                continue
            # others are a PNG or GIF by the name of .jpg, or not in RGB
            yield split, stem, path if is_plain else pixels, ids


def _slices() -> Iterator[Pair]:
    """The MNI152 template, which the package nilearn brings with it: 96 axial slices of 1 mm, RGB,
    233 x 197 pixels, in blocks from below: eight in a row, then four that are left out.

    Slices next to each other are almost the same image. As whole blocks go into a split, with 5 mm
    from the last slice of one to the first of the next, no validation or test slice has a near
    neighbour in training. It is still one brain, the mean of 152 people: scores on it say nothing
    of other brains. Raises DataError without nilearn.
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
    # (x, y, z), a voxel a millimetre, turned as one looks at it from above: the forehead on top
    brain, grey, white, mask = (
        np.rot90(volume(resolution=1).get_fdata(dtype=np.float32)) for volume in load
    )
    brain = (brain * 255).clip(0, 255).round().astype(np.uint8)
    ids = np.select([mask == 0, grey >= 0.5, white >= 0.5], [0, 1, 2], 3)
    for number, split in enumerate(BLOCKS):
        start = 10 + 12 * number  # the first to show much of a brain is the 10th
        for z in range(start, start + 8):
            yield split, f"z{z:03}", Image.fromarray(brain[:, :, z]).convert("RGB"), ids[:, :, z]
