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
from pathlib import Path
from typing import Any

from filelock import FileLock

from vitseg.data.brain import write_slices
from vitseg.data.public import write_pets, write_voc
from vitseg.errors import ConfigError, DataError
from vitseg.files import cache_folder

PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007"


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
        convert=lambda _, folder: write_slices(folder),
    ),
}
"""The SHA-256 are those that tensorflow-datasets publishes in its url_checksums; see
docs/decisions/0019.
"""


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
        raise ConfigError(
            "name", name, ", ".join(SETS), f"Did you mean {close[0]!r}?" if close else ""
        )
    folder = cache_folder() / "data" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(SETS[name], folder)
    except OSError as error:
        raise _unwritten(error, SETS[name], folder) from None
    return folder


def about(folder: Path) -> dict[str, Any]:
    """What a fetched folder says of itself."""
    return json.loads((folder / "about.json").read_text(encoding="utf-8"))


def _make(wanted: PublicSet, folder: Path) -> None:
    """Download, unpack and convert beside the folder; the last step gives it its name."""
    archives, partial = (
        folder.with_name(f"{folder.name}.{end}") for end in ("archives", "partial")
    )
    if partial.exists():
        shutil.rmtree(partial)  # was cut off
    unpacked, ready = partial / "unpacked", partial / "ready"
    ready.mkdir(parents=True)
    for archive in wanted.archives:
        _unpack(_download(archive, archives), unpacked)
    said = {
        "source": wanted.source,
        "licence": wanted.licence,
        "archives": {a.url: a.sha256 for a in wanted.archives},
    }
    said |= wanted.convert(unpacked, ready)
    (ready / "about.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    ready.rename(folder)
    for leftover in (partial, archives):
        shutil.rmtree(leftover, ignore_errors=True)


def _download(archive: Archive, folder: Path) -> Path:
    import pooch  # with requests: needed once only
    from requests import RequestException

    try:
        path = pooch.retrieve(
            archive.url,
            f"sha256:{archive.sha256}",
            fname=archive.name,
            path=folder,
            progressbar=True,
        )
    except RequestException as error:
        why = (
            type(error).__name__
            if error.response is None
            else f"the server answered {error.response.status_code}"
        )
        mend = (
            f"Is there a network? The file can also be brought from elsewhere: put it into "
            f"{folder} and fetch again."
        )
        raise DataError(f"{archive.url}: cannot be downloaded ({why}).", mend) from None
    except ValueError:  # this is how pooch says that the hash is another one
        mend = (
            "Fetch again; if it stays so, something on the way, or the publisher, has changed "
            "the file."
        )
        raise DataError(
            f"{archive.url}: its SHA-256 is not the published {archive.sha256[:12]}....", mend
        ) from None
    return Path(path)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(
                folder, filter="data"
            )  # nothing outside the folder, no devices, no links that lead out
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({error}).", "Nothing of it is used."
        ) from None


def _unwritten(error: OSError, wanted: PublicSet, folder: Path) -> DataError:
    elsewhere = "or name another place in $VITSEG_CACHE."
    if error.errno == errno.ENOSPC:
        return DataError(
            f"{folder}: the disk is full.", f"Make room for {wanted.room_gb} GB, {elsewhere}"
        )
    return DataError(
        f"{folder}: cannot be made ({error.strerror or error}).", f"Mend that, {elsewhere}"
    )
