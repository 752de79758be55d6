"""Files: whole or not there, checked by SHA-256, held by one process, stored once.

A file is written aside, synced and renamed. A folder that was written whole has a manifest, the
digest of each of its files; a file that stands alone is sealed, with its digest inside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from vitseg.errors import RunError
from vitseg.words import json_of

MANIFEST = "manifest.json"
LOCK, HOLDER = ".lock", ".holder"
_HEAD = 4096
UNSEALED = "sha256:" + 64 * "0"
"""What a file has within its first 4096 bytes, to be sealed."""


def cache_folder() -> Path:
    """Where weights, features and fetched data are kept between runs: $VITSEG_CACHE, else
    ~/.cache/vitseg.
    """
    return Path(os.environ.get("VITSEG_CACHE", "~/.cache/vitseg")).expanduser()


# ---- written whole


@contextlib.contextmanager
def written(path: Path, need: int = 0) -> Iterator[None]:
    """Turns whatever keeps `path` from being written into a RunError that says why, and how much
    room its disk has; also how many bytes are needed, where that is known.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        mend = (
            "Make room on that disk, or let it be written, then go on: what was saved before "
            "is whole."
        )
        needed = f"it needs {_megabytes(need)}, " if need else ""
        raise RunError(
            f"{path}: cannot be written ({reason}; {needed}{_room(path.parent)}).", mend
        ) from None


def _room(folder: Path) -> str:
    try:
        return f"{_megabytes(shutil.disk_usage(folder).free)} are free there"
    except OSError:
        return "its folder is gone"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e7 else 1}f} MB"


@contextlib.contextmanager
def whole_file(path: Path, need: int = 0) -> Iterator[Path]:
    """A file to write, that becomes `path` when the block ends well.

    Raises RunError if it cannot be written, with the bytes that it needs, if they are given;
    nothing half written is left.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        with written(path, need):
            yield aside
            _sync(aside)
            aside.replace(path)
            sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file that is either the old or the new, never half of it. Raises RunError if it cannot
    be written.
    """
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """JSON, written like `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path, need: int = 0, store: Path | None = None) -> Iterator[Path]:
    """A folder to write into, that becomes `path`, with a manifest of its files, when the block
    ends well.

    Its .safetensors files are hard links to those of `store`, if that is given. Raises RunError as
    `whole_file` does.
    """
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # left by a kill
    try:
        with written(path, need):
            aside.mkdir(parents=True)
            yield aside
            digests = {}
            for file in sorted(p for p in aside.rglob("*") if p.is_file()):
                digest = digests[file.relative_to(aside).as_posix()] = sha256_of(file)
                _sync(file)
                if store and file.suffix == ".safetensors":
                    _store_once(file, store / digest)
            write_json(aside / MANIFEST, digests)
            if path.exists():
                shutil.rmtree(path)
            aside.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if store:
        _drop_unused(store)


def _store_once(file: Path, stored: Path) -> None:
    """Make `file` and `stored`, whose name is the digest of both, one file with two names. Where
    the file system has no such links, `file` stays a copy of its own.
    """
    link = file.with_name(f".{file.name}.new")
    with contextlib.suppress(OSError):
        if stored.exists() and sha256_of(stored) == stored.name:
            link.hardlink_to(stored)
            link.replace(file)
        else:
            stored.parent.mkdir(exist_ok=True)
            stored.unlink(missing_ok=True)
            stored.hardlink_to(file)


def _drop_unused(store: Path) -> None:
    """Delete what no folder has a link to any more."""
    with contextlib.suppress(OSError):
        for stored in store.iterdir():
            if stored.stat().st_nlink == 1:
                stored.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    with file.open("r+b") as opened:  # Windows syncs only what may be written
        os.fsync(opened.fileno())


def sync_folder(path: Path) -> None:
    """Make a rename last. Windows cannot open folders, and needs no such call."""
    if os.name == "posix":
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def sweep(folder: Path) -> None:
    """Delete what a kill has left half written in a folder that nobody writes into."""
    for left in folder.glob(".*.new"):
        remove(left)


# ---- checked


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(file: Path) -> None:
    """Put the digest of a file in the place of UNSEALED, within it."""
    digest = sha256_of(file)
    with file.open("r+b") as opened:
        opened.seek(opened.read(_HEAD).index(UNSEALED.encode()))
        opened.write(f"sha256:{digest}".encode())


def is_sealed(file: Path) -> bool:
    """Whether a file is, to the last bit, what was sealed."""
    content = memoryview(file.read_bytes())
    before, mark, after = bytes(content[:_HEAD]).partition(b"sha256:")
    digest = hashlib.sha256(before + UNSEALED.encode())
    digest.update(content[len(before) + len(UNSEALED) :])
    return bool(mark) and after[:64] == digest.hexdigest().encode()


def flaw(path: Path) -> str:
    """What keeps a sealed file, or a folder with a manifest, from being what was written; "" if
    nothing does.
    """
    try:
        if path.is_file():
            return "" if is_sealed(path) else "it is not what was written"
        manifest = _manifest(path)
        for name, digest in manifest.items():
            if sha256_of(path / name) != digest:
                return f"{name} is not what was written"
        for file in sorted(path.rglob("[!.]*")):  # systems leave hidden files
            name = file.relative_to(path).as_posix()
            if file.is_file() and name not in manifest and name != MANIFEST:
                return f"{name} was put there"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"
    except ValueError:
        return f"{MANIFEST} is torn"
    return ""


def _manifest(folder: Path) -> dict[str, str]:
    """The digests of a folder's files by name. Raises OSError or ValueError if it has none."""
    found = json_of((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
        raise ValueError(MANIFEST)
    return found


# ---- held


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """A folder that nobody else, in this process or another, writes into meanwhile. Raises RunError
    while it is held.
    """
    lock = FileLock(
        folder / LOCK, timeout=0.2, thread_local=False
    )  # `is_held` may have it for a moment
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{folder}: is being trained by {_holder(folder)}.",
            "Wait for its end, or stop it there.",
        ) from None
    try:
        with contextlib.suppress(OSError):  # who holds it is a courtesy
            (folder / HOLDER).write_text(
                f"process {os.getpid()} on {platform.node()}", encoding="utf-8"
            )
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8")
    except OSError:  # it has just begun, or ended
        return "another process"


def is_held(folder: Path) -> bool:
    """Whether somebody holds the folder, in this process or another. Makes no file; False where it
    cannot be known.
    """
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may be read only
        return False


# ---- signals

_ASKING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP


@contextlib.contextmanager
def held_back() -> Iterator[list[int]]:
    """Signals that ask for an end are noted in the list while the block runs, so that what is
    written is written, and take effect after it.

    A second interrupt takes effect at once. Outside the main thread, where Python handles no
    signals, nothing is held back.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {}
    for number in _ASKING:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a job in the background
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(
                number, signal.SIG_DFL if handler is None else handler
            )  # None: set by other than Python
        for number in dict.fromkeys(asked):
            signal.raise_signal(number)
