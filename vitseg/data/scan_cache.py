"""What reading a file found, cached on disk, so that a folder seen before opens at once.

The cache can be deleted at any time and changes no result. An entry holds as long as the file's
size and times stay; it is dropped with every change of the code, or of Pillow, that reads files.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image, ImageFile
from pydantic import TypeAdapter

from vitseg.files import cache_folder, sha256_of
from vitseg.images import Size, opened

MOST_VALUES = 1024
"""Values in a mask above which it is not cached: a photograph among the masks holds 100,000."""

READERS = ("images.py", "data/masks.py", "data/folder.py", "data/scan_cache.py")

Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change of the content, and of the file (permissions, say), in ns.
"""


def stamp_of(path: Path) -> Stamp:
    """Raises OSError where there is no such file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class FileScan(NamedTuple):
    """What was read of an image or a mask.

    `size` is (height, width) once upright, and `warnings` are kinds and sentences. Of an image:
    `pixels` is a digest of them; `deep` is the largest value of 65535, where more than 8 bits are
    stored. Of a mask: whether its values are colours, `counts` of pixels by stored value, and the
    colours of the indices that occur, by `palette`.
    """

    size: Size
    orientation: int
    warnings: tuple[tuple[str, str], ...]
    pixels: str = ""
    deep: int = 0
    is_color: bool = False
    counts: Mapping[int, int] = {}
    palette: Mapping[int, tuple[int, ...]] = {}
    stamp: Stamp = (0, 0, 0)
    sha256: str = ""

    def digest(self, path: Path) -> str:
        """SHA-256 of the file, computed again when it has changed since."""
        return self.sha256 if stamp_of(path) == self.stamp else sha256_of(path)


_JSON = TypeAdapter(dict[str, FileScan])


class ScanCache:
    """The cached scans of the files below a folder. An absent or damaged cache is an empty one."""

    def __init__(self, root: Path):
        self.root, self.before, self.scans = root, {}, {}
        name = hashlib.sha256(bytes(root.resolve())).hexdigest()[:32]
        self.path = cache_folder() / "scans" / f"{name}.json"
        with suppress(OSError, ValueError):
            seal, _, content = self.path.read_bytes().partition(b"\n")
            if seal == _seal(content):
                self.before = _JSON.validate_json(content)

    def scan(self, path: Path, read: Callable[[Image.Image], FileScan]) -> FileScan:
        """The scan of a file, which `read` makes where it was not cached, or has changed since.
        Raises one of UNREADABLE.
        """
        name, stamp = path.relative_to(self.root).as_posix(), stamp_of(path)
        scan = self.before.get(name)
        if not scan or scan.stamp != stamp:  # taken first: the file may be changed meanwhile
            with opened(path) as image:
                scan = read(image)._replace(stamp=stamp, sha256=sha256_of(path))
        if len(scan.counts) <= MOST_VALUES:
            self.scans[name] = scan
        return scan

    def save(self) -> None:
        """Replace the cache, whole or not at all, by what was scanned since; where it cannot be
        written, the next start reads the files again.
        """
        if self.scans == self.before:
            return
        content = _JSON.dump_json(dict(sorted(self.scans.items())))
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside = self.path.with_suffix(f".{os.getpid()}")
            aside.write_bytes(_seal(content) + b"\n" + content)
            aside.replace(self.path)


def _seal(content: bytes) -> bytes:
    """A digest of the content and of all that decides what a file is read as."""
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    digest = hashlib.sha256(f"{PIL.__version__} {limits}\n".encode() + content)
    for name in READERS:
        digest.update((files("vitseg") / name).read_bytes())
    return digest.hexdigest().encode()
