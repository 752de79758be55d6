"""Public data sets by name, as folders that vitseg reads: fetched once, checked by their SHA-256,
converted and kept.
"""

import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from pydantic import TypeAdapter
from tqdm import tqdm

from vitseg.data.folder import HALVES
from vitseg.data.masks import MaskCode, read_raw, refuse_unknown
from vitseg.errors import DataError
from vitseg.files import cache_folder, whole_file, write_json
from vitseg.images import IGNORE, UNREADABLE, opened, palette_image, to_rgb

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


SETS = TypeAdapter(dict[str, PublicSet]).validate_json(
    (files("vitseg.data") / "public_sets.json").read_bytes()
)
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
        about = {
            "source": wanted.source,
            "licence": wanted.licence,
            "archives": wanted.archives or {"nilearn": version("nilearn")},
            "masks": wanted.code.description,
            "left_out": left_out,
        }
        write_json(made / "about.json", about)
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
        hint = f"Fetch again, or bring the file from elsewhere and put it into {folder} first."
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
                if pixels.size != ids.shape[::-1]:
                    raise ValueError(f"image {pixels.size}, mask {ids.shape[::-1]} pixels")
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
    kinds = "template", "gm_template", "wm_template", "brain_mask"
    load = [getattr(datasets, f"load_mni152_{kind}") for kind in kinds]
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
