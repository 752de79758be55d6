"""Rows of tensors on disk, each under the digest of all that it follows from. Any row may vanish at
any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):  # no number, nan, or infinite
        limit = -1
    if limit < 0:
        raise ConfigError("$VITSEG_CACHE_GB", text, "a number of gigabytes, 0 or more")
    return FeatureCache(cache_folder() / "features", limit)


class FeatureCache:
    """Rows in `root`/<group>/<row>, at most `limit` bytes in all; `reserve` bytes of the disk stay
    free.

    A row is written aside and renamed, and its content never changes: readers and writers need no
    lock, and a row cut short by a power cut is found by its checksum, and is not there. When there
    is no room, `why_not` says so and nothing more is written; no error is raised.
    """

    def __init__(self, root: Path, limit: int = int(DEFAULT_GB * 1e9), reserve: int = RESERVE):
        self.root, self.limit, self.reserve = root, limit, reserve
        self.why_not = ""
        self._names: dict[str, set[str]] = {}
        self._ours: set[Path] = (
            set()
        )  # read or written here: checked, stamped as used, not to be dropped
        self._size: int | None = None

    def has(self, group: str, row: str) -> bool:
        """Whether the row is there, as far as is known; `get` may still find it gone."""
        if group not in self._names:
            self._names[group] = {entry.name for entry in _entries(self.root / group)}
        return row in self._names[group]

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
            self._names.get(group, set()).discard(row)
            return None

    def put(self, group: str, row: str, tensors: dict[str, Tensor]) -> None:
        """Keep a row, if there is room."""
        if self.why_not or self.has(group, row):
            return
        payload = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        path = self.root / group / row
        aside = path.with_name(f".{row}.{os.getpid()}.new")
        try:
            if not self._room_for(len(payload)):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(zlib.crc32(payload).to_bytes(4, "big") + payload)
            aside.replace(path)
        except (
            FileNotFoundError
        ):  # somebody has cleared the cache this instant; the next row finds it empty
            return
        except OSError as error:
            self.why_not = f"{self.root} cannot be written ({error.strerror})"
            with contextlib.suppress(OSError):
                aside.unlink()
            return
        self._size += len(payload)
        self._names[group].add(row)
        self._ours.add(path)

    def look_again(self) -> None:
        """Others may have kept rows since."""
        self._names = {}

    def describe(self, group: str, about: dict[str, object]) -> None:
        """Say for the reader what a group holds, if it is kept at all."""
        path = self.root / group / _ABOUT
        with contextlib.suppress(OSError):
            if path.parent.is_dir() and not path.exists():
                path.write_text(json.dumps(about), encoding="utf-8")

    def _room_for(self, size: int) -> bool:
        """Make room by dropping the least recently used rows, of others; False, with the reason,
        where that is not enough.
        """
        if self._size is None:
            self._size = sum(stat.st_size for _, stat in self._files())
        if self._size + size > self.limit:
            self._drop(self._size + size - int(0.9 * self.limit))
        free = _free(self.root)
        if self._size + size > self.limit:
            self.why_not = (
                f"its limit of {self.limit / 1e9:g} GB is reached; $VITSEG_CACHE_GB sets another"
            )
        elif free - size < self.reserve:
            self.why_not = (
                f"the disk of {self.root} has {free / 1e9:.1f} GB left, and "
                f"{self.reserve / 1e9:g} GB stay free"
            )
        return not self.why_not

    def _drop(self, size: int) -> None:
        """Drop rows, those first that nobody has used for longest, until `size` bytes are freed or
        all are ours.
        """
        others = [(path, stat) for path, stat in self._files() if path not in self._ours]
        for path, stat in sorted(others, key=lambda pair: pair[1].st_mtime):
            if size <= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                size, self._size = size - stat.st_size, self._size - stat.st_size
                self._names.get(path.parent.name, set()).discard(path.name)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """All rows, and what a kill has left of others."""
        for group in _entries(self.root):
            for entry in _entries(group.path):
                with contextlib.suppress(
                    OSError
                ):  # another process may drop it between the two calls
                    if entry.name != _ABOUT:
                        yield Path(entry.path), entry.stat()

    # ---- for people

    def groups(self) -> list[Group]:
        """What is kept, most recently used first."""
        rows: dict[Path, list[os.stat_result]] = {}
        for path, stat in self._files():
            rows.setdefault(path.parent, []).append(stat)
        found = [
            Group(
                folder.name,
                _about(folder),
                len(stats),
                sum(s.st_size for s in stats),
                max(s.st_mtime for s in stats),
            )
            for folder, stats in rows.items()
        ]
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
        is kept of `of`.
        """
        groups = self.groups()
        if of is not None and of not in (kept := sorted({group.of for group in groups})):
            raise ConfigError("cache", of, ", ".join(kept) or "nothing, for nothing is kept")
        held = sum(stat.st_size for _, stat in self._files())
        for folder in (
            [self.root]
            if of is None
            else [self.root / group.name for group in groups if group.of == of]
        ):
            shutil.rmtree(folder, ignore_errors=True)
        self._names, self._ours, self._size, self.why_not = {}, set(), None, ""
        return held - sum(stat.st_size for _, stat in self._files())


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one kind: one level of one encoder at one size, or masks. `used` is seconds since the
    epoch of Unix.
    """

    name: str
    about: dict[str, object]
    rows: int
    bytes: int
    used: float

    @property
    def of(self) -> str:
        """The encoder's name, or "masks"."""
        return str(self.about.get("encoder", "masks"))


def _about(folder: Path) -> dict[str, object]:
    try:
        return json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _check(content: bytes) -> None:
    """Raises ValueError unless a row's content is what was written."""
    if len(content) < 4 or zlib.crc32(content[4:]) != int.from_bytes(content[:4], "big"):
        raise ValueError("the checksum differs")


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _free(folder: Path) -> int:
    """Free bytes of the disk that `folder` is, or will be, on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
