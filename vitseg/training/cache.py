"""Rows of tensors on disk, each under the digest of all that it follows from. Any row may vanish at
any time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vitseg.errors import ConfigError
from vitseg.files import cache_folder

DEFAULT_GB, RESERVE = 20.0, 2_000_000_000
_ABOUT = "about.json"


def default_cache() -> FeatureCache:
    """The cache of this user: `features/` in $VITSEG_CACHE, of at most $VITSEG_CACHE_GB
    gigabytes.
    """
    text = os.environ.get("VITSEG_CACHE_GB", str(DEFAULT_GB))
    with suppress(ValueError):
        limit = float(text)
        if 0 <= limit < math.inf:
            return FeatureCache(cache_folder() / "features", int(limit * 1e9))
    raise ConfigError("$VITSEG_CACHE_GB", text, "a number of gigabytes, 0 or more")


class FeatureCache:
    """Rows in `root`/<group>/<row>, at most `limit` bytes in all; `reserve` bytes of the disk stay
    free.

    A row is written aside and renamed, and its content never changes: readers and writers need no
    lock, and a row cut short by a power cut is found by its checksum, and is not there. When there
    is no room, `why_not` says so and nothing more is written; no error is raised.
    """

    def __init__(self, root: Path, limit: int = int(DEFAULT_GB * 1e9), reserve: int = RESERVE):
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

    def put(
        self, group: str, row: str, tensors: dict[str, Tensor], about: dict[str, Any] | None = None
    ) -> None:
        """Keep a row, if there is room; `about` tells a reader what its group holds."""
        if self.why_not or self.has(group, row):
            return
        payload = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        folder = self.root / group
        path, aside = folder / row, folder / f".{row}.{os.getpid()}.new"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._room_for(len(payload)):
                return
            if about and not (folder / _ABOUT).exists():
                (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
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
            self._size = sum(stat.st_size for _, stat in self._files())
        if self._size + size > self.limit:
            others = [(path, stat) for path, stat in self._files() if path not in self._ours]
            for path, stat in sorted(others, key=lambda file: file[1].st_mtime):
                if self._size + size <= 0.9 * self.limit:
                    break
                with suppress(OSError):
                    path.unlink()
                    self._size -= stat.st_size
        free = shutil.disk_usage(self.root).free
        if self._size + size > self.limit:
            limit = f"{self.limit / 1e9:g}"
            self.why_not = f"its limit of {limit} GB is reached; $VITSEG_CACHE_GB sets another"
        elif free - size < self.reserve:
            left, stay = f"{free / 1e9:.1f}", f"{self.reserve / 1e9:g}"
            self.why_not = f"the disk of {self.root} has {left} GB left, and {stay} GB stay free"
        return not self.why_not

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """All rows, group by group, and what a kill has left of others."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):  # another process may drop it between the two calls
                    if name != _ABOUT:
                        yield path, path.stat()

    # ---- for people

    def groups(self) -> list[Group]:
        """What is cached, most recently used first."""
        found = []
        for folder, files in groupby(self._files(), key=lambda file: file[0].parent):
            about, stats = {"encoder": "masks"}, [stat for _, stat in files]
            with suppress(OSError, ValueError):
                about = json.loads((folder / _ABOUT).read_bytes())
            size, used = sum(s.st_size for s in stats), max(s.st_mtime for s in stats)
            found.append(Group(folder, about, len(stats), size, used))
        return sorted(found, key=lambda group: -group.used)

    def verify(self) -> tuple[int, list[Path]]:
        """The number of rows that are whole, and those that were not, which are dropped."""
        whole, bad = 0, []
        for path, _ in self._files():
            if path.name.startswith("."):  # somebody may be writing it
                continue
            try:
                _check(path.read_bytes())
                whole += 1
            except (OSError, ValueError):
                path.unlink(missing_ok=True)
                bad.append(path)
        return whole, bad

    def clear(self, of: str | None = None) -> int:
        """Drop all rows, or those of one encoder (or "masks"), and say how many bytes that were.

        A training that goes on meanwhile computes what it misses. Raises ConfigError where nothing
        is cached of `of`.
        """
        freed, groups = 0, self.groups()
        names = {group.of for group in groups}
        if of is not None and of not in names:
            allowed = ", ".join(sorted(names)) or "nothing, for nothing is cached"
            raise ConfigError("cache", of, allowed)
        for group in groups:
            if of in (None, group.of):
                shutil.rmtree(group.folder, ignore_errors=True)
                freed += 0 if group.folder.exists() else group.bytes
        self.why_not, self._size = "", None
        return freed


class Group(NamedTuple):
    """Rows of one kind: one level of one encoder at one size, or masks. `used` is seconds since the
    epoch of Unix.
    """

    folder: Path
    about: dict[str, Any]
    rows: int
    bytes: int
    used: float

    @property
    def of(self) -> str:
        """The encoder's name, or "masks"."""
        return self.about["encoder"]


def _check(content: bytes) -> None:
    """Raises ValueError unless a row's content is what was written."""
    if content[:4] != zlib.crc32(content[4:]).to_bytes(4, "big"):
        raise ValueError("the checksum differs")
