"""Rows of tensors on disk, each under the digest of all that it follows from. Any row may vanish at
any time.
"""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vitseg.errors import ConfigError
from vitseg.files import cache_folder


def default_cache() -> FeatureCache:
    """The cache of this user: `features/` in $VITSEG_CACHE, of at most $VITSEG_CACHE_GB
    gigabytes.
    """
    text = os.environ.get("VITSEG_CACHE_GB", "20")
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return FeatureCache(cache_folder() / "features", float(text) * 1e9)
    raise ConfigError("$VITSEG_CACHE_GB", text, "a number of gigabytes, 0 or more")


class FeatureCache:
    """Rows in `root`/<group>/<row>, at most `limit` bytes in all; `reserve` bytes of the disk stay
    free.

    A row is written aside and renamed, and its content never changes: readers and writers need no
    lock, and a row cut short by a power cut is found by its checksum, and is not there. When there
    is no room, `why_not` says so and nothing more is written; no error is raised.
    """

    def __init__(self, root: Path, limit: float = 20e9, reserve: float = 2e9):
        self.root, self.limit, self.reserve = root, limit, reserve
        self.why_not, self._size = "", None
        self._ours = set[Path]()  # read or written here: checked, stamped as used, not dropped

    def has(self, group: str, row: str) -> bool:
        """Whether the row is there; `get` may still find it gone, or not whole."""
        return (self.root / group / row).exists()

    def get(self, group: str, row: str) -> dict[str, Tensor] | None:
        """The tensors of a row; None if it is not there, or not whole."""
        path = self.root / group / row
        try:
            content = path.read_bytes()
            if path not in self._ours:
                _check(content)
                os.utime(path)
                self._ours.add(path)
            return load(content[4:])
        except (OSError, ValueError, SafetensorError):
            with suppress(OSError):
                path.unlink()  # what is there would not be written again
            return None

    def put(self, group: str, row: str, tensors: dict[str, Tensor]) -> None:
        """Cache a row, if there is room."""
        if self.why_not or self.has(group, row):
            return
        payload = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        path = self.root / group / row
        aside = path.with_name(f".{row}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._room_for(len(payload)):
                aside.write_bytes(zlib.crc32(payload).to_bytes(4, "big") + payload)
                aside.replace(path)
                self._size += len(payload)
                self._ours.add(path)
        except FileNotFoundError:
            pass  # somebody clears the cache this instant; the next row comes later
        except OSError as error:
            self.why_not = f"{self.root} cannot be written ({error.strerror})"
            with suppress(OSError):
                aside.unlink()

    def _room_for(self, size: int) -> bool:
        """Make room by dropping the least recently used rows, of others; False, with the reason,
        where that is not enough.
        """
        if self._size is None:
            self._size = self._size_of(self.root)
        if self._size + size > self.limit:
            others = [file for file in self.files(self.root) if file[0] not in self._ours]
            for path, stat in sorted(others, key=lambda file: file[1].st_mtime):
                if self._size + size <= 0.9 * self.limit:
                    break
                with suppress(OSError):
                    path.unlink()
                    self._size -= stat.st_size
        free = shutil.disk_usage(self.root).free
        if self._size + size > self.limit or free - size < self.reserve:
            self.why_not = (
                f"there is no room in {self.root}: it may take {self.limit / 1e9:g} GB "
                f"($VITSEG_CACHE_GB), and its disk has {free / 1e9:.1f} GB left, of which "
                f"{self.reserve / 1e9:g} GB stay free"
            )
        return not self.why_not

    def files(self, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """All rows in a folder, group by group, and what a kill has left of others."""
        for place, _, names in os.walk(folder):
            for name in names:
                path = Path(place, name)
                with suppress(OSError):  # another process may drop it between the two calls
                    yield path, path.stat()

    # ---- for people

    def verify(self) -> list[Path]:
        """Read all rows. Those that are not whole are dropped, and returned."""
        bad = []
        for path, _ in self.files(self.root):
            if path.name.startswith("."):  # somebody may be writing it
                continue
            try:
                _check(path.read_bytes())
            except (OSError, ValueError):
                path.unlink(missing_ok=True)
                bad.append(path)
        return bad

    def clear(self, of: str | None = None) -> int:
        """Drop all rows, or those of one encoder (or "masks"), and say how many bytes that were.

        A training that goes on meanwhile computes what it misses. Raises ConfigError where nothing
        is cached of `of`.
        """
        folder = self.root
        if of is not None:
            folder /= encoder_folder(of)
            names = sorted(path.name for path in self.root.glob("*"))
            if folder.name not in names:
                allowed = ", ".join(names) or "nothing, for nothing is cached"
                raise ConfigError("cache", of, allowed)
        before = self._size_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
        self.why_not, self._size = "", None
        return before - self._size_of(folder)

    def _size_of(self, folder: Path) -> int:
        return sum(stat.st_size for _, stat in self.files(folder))


def encoder_folder(encoder: str) -> str:
    """Where the groups of an encoder lie, by the name that a recipe gives it: its last part."""
    return Path(encoder).resolve().name


def _check(content: bytes) -> None:
    """Raises ValueError unless a row's content is what was written."""
    if content[:4] != zlib.crc32(content[4:]).to_bytes(4, "big"):
        raise ValueError("the checksum differs")
