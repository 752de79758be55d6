"""Files: whole or not there, checked by SHA-256, held by one process, stored once.

A file is written aside, synced and renamed. A folder that was written whole has a manifest, the
digest of each of its files; a file that stands alone is sealed, with its digest inside it.
"""

import hashlib
import json
import os
import platform
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from safetensors import SafetensorError

from vitseg.errors import RunError

MANIFEST = "manifest.json"
_DIGESTS = TypeAdapter(dict[str, str])
_LOCK = ".lock"
_HEAD = 4096
UNSEALED = "sha256:" + 64 * "0"
"""What a file has within its first 4096 bytes, to be sealed."""


def cache_folder() -> Path:
    """Where weights, features and fetched data are cached between runs: $VITSEG_CACHE, else
    ~/.cache/vitseg.
    """
    return Path(os.environ.get("VITSEG_CACHE", "~/.cache/vitseg")).expanduser()


# ---- written whole


@contextmanager
def written(path: Path, need: int = 0) -> Iterator[None]:
    """Turns whatever keeps `path` from being written into a RunError that says why, and how much
    room its disk has; also how many bytes are needed, where that is known.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = f"{error}; it needs {need / 1e6:,.1f} MB" if need else f"{error}"
        with suppress(OSError):  # its folder may be gone
            free = shutil.disk_usage(path.parent).free
            reason += f"; {free / 1e6:,.1f} MB are free there"
        raise RunError(
            f"{path}: cannot be written ({reason}).",
            "Make room, allow writing, or choose another folder. What was saved before is whole.",
        ) from None


@contextmanager
def whole_file(path: Path, need: int = 0) -> Iterator[Path]:
    """A file to write, or a folder to make and fill, that becomes `path` when the block ends well.

    Raises RunError if it cannot be written, with the bytes that it needs, if they are given;
    nothing half written is left.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        with written(path, need):
            remove(aside)  # left by a kill
            yield aside
            _sync(aside)
            if path.is_dir():
                shutil.rmtree(path)
            aside.replace(path)
            _sync(path.parent)
    finally:
        with suppress(OSError):
            remove(aside)


def write_text(path: Path, text: str) -> None:
    """A text file that is either the old or the new, never half of it. Raises RunError if it cannot
    be written.
    """
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """JSON, written like `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def whole_folder(path: Path, store: Path) -> Iterator[Path]:
    """A folder to write into, that becomes `path`, with a manifest of its files, when the block
    ends well.

    Its .safetensors files are hard links to those of `store`. Raises RunError as `whole_file` does.
    """
    with whole_file(path) as aside:
        aside.mkdir(parents=True)
        yield aside
        digests = {}
        for name in sorted(_files_in(aside)):
            file = aside / name
            digests[name] = sha256_of(file)
            _sync(file)
            if file.suffix == ".safetensors":
                _store_once(file, store / digests[name])
        write_json(aside / MANIFEST, digests)
    with suppress(OSError):
        for stored in store.iterdir():
            if stored.stat().st_nlink == 1:  # no folder has a link to it any more
                stored.unlink()


def _store_once(file: Path, stored: Path) -> None:
    """Make `file` and `stored`, whose name is the digest of both, one file with two names. Where
    the file system has no such links, `file` stays a copy of its own.
    """
    link = file.with_name(f".{file.name}.new")
    with suppress(OSError):
        if stored.exists() and sha256_of(stored) == stored.name:
            link.hardlink_to(stored)
            link.replace(file)
        else:
            stored.parent.mkdir(exist_ok=True)
            stored.unlink(missing_ok=True)
            stored.hardlink_to(file)


def _sync(path: Path) -> None:
    """Make what was written, or renamed in a folder, last. Windows syncs only files, opened for
    writing.
    """
    if path.is_file() or os.name == "posix":
        opened = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a kill has left half written in a folder that nobody writes into."""
    for left in list(folder.rglob(".*.new")):
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


def flaw(path: Path) -> str:
    """What keeps a sealed file, or a folder with a manifest, from being what was written; "" if
    nothing does.
    """
    try:
        if path.is_file():
            return "" if _is_sealed(path) else "it is not what was written"
        manifest = _DIGESTS.validate_json((path / MANIFEST).read_bytes())
        for name in sorted(manifest.keys() | _files_in(path)):
            if name not in manifest:
                return f"{name} was put there"
            if sha256_of(path / name) != manifest[name]:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"
    except ValueError:
        return f"{MANIFEST} is torn"
    return ""


def _is_sealed(file: Path) -> bool:
    """Whether a file is, to the last bit, what was sealed."""
    content = memoryview(file.read_bytes())
    start = bytes(content[:_HEAD]).find(b"sha256:")
    end = start + len(UNSEALED)
    digest = hashlib.sha256(content[:start])
    digest.update(UNSEALED.encode())
    digest.update(content[end:])
    return content[start:end] == f"sha256:{digest.hexdigest()}".encode()


def _files_in(folder: Path) -> set[str]:
    """The files of a folder by their paths in it, but for its manifest, and hidden ones, which
    systems leave.
    """
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("[!.]*") if p.is_file()}
    return found - {MANIFEST}


# ---- held


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A folder that nobody else, in this process or another, writes into meanwhile. Raises RunError
    while it is held.
    """
    holder = folder / ".holder"
    try:  # `is_held` may have it for a moment
        lock = FileLock(folder / _LOCK, thread_local=False).acquire(timeout=0.2)
    except Timeout:
        who = "another process"
        with suppress(OSError):  # it has just started, or ended
            who = holder.read_text(encoding="utf-8")
        raise RunError(
            f"{folder}: is being trained by {who}.", "Wait for its end, or stop it there."
        ) from None
    with lock:
        with suppress(OSError):  # who holds it is a courtesy
            holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield


def is_held(folder: Path) -> bool:
    """Whether somebody holds the folder, in this process or another. Makes no file; False where it
    cannot be known.
    """
    if not (folder / _LOCK).exists():
        return False
    try:
        with FileLock(folder / _LOCK, timeout=0, thread_local=False):
            return False
    except OSError as error:  # a Timeout, or a folder that may be read only
        return isinstance(error, Timeout)


# ---- signals


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Signals that ask for an end are noted in the list while the block runs, so that what is
    written is written, and take effect after it.

    A second interrupt takes effect at once. Outside the main thread, where Python handles no
    signals, nothing is held back.
    """
    asked, before = list[int](), {}

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    with suppress(ValueError):  # which Python raises outside the main thread
        for number in signal.Signals:  # Windows has no SIGHUP
            asks = number.name in ("SIGINT", "SIGTERM", "SIGHUP")
            # ignored under nohup, or in a background job; None where another than Python handles it
            if asks and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in set(asked):
            signal.raise_signal(number)
