"""Files that are whole or not there: written aside, synced, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from vitseg.errors import RunError
from vitseg.images import sha256_of

MANIFEST = "manifest.json"
LOCK = ".lock"


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Turns whatever keeps `path` from being written into a RunError that says why, and how much room its disk has."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        mend = "Make room on that disk, or let it be written, then go on: what was saved before is whole."
        raise RunError(f"{path}: cannot be written ({reason}; {_room(path.parent)}).", mend) from None


def _room(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there"
    except OSError:
        return "its folder is gone"


def write_text(path: Path, text: str) -> None:
    """A text file that is either the old or the new, never half of it. Raises RunError if it cannot be written."""
    aside = path.with_name(f".{path.name}.new")
    try:
        with written(path):
            with aside.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """JSON, written like `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, that becomes `path`, with a manifest of its files, when the block ends well.

    Raises RunError if it cannot be written; nothing half written is left.
    """
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # left by a kill
    try:
        with written(path):
            aside.mkdir(parents=True)
            yield aside
            files = sorted(p for p in aside.rglob("*") if p.is_file())
            for file in files:
                with file.open("r+b") as opened:  # Windows syncs only what may be written
                    os.fsync(opened.fileno())
            write_json(aside / MANIFEST, {p.relative_to(aside).as_posix(): sha256_of(p) for p in files})
            if path.exists():
                shutil.rmtree(path)
            aside.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_whole(path: Path) -> bool:
    """Whether every file of the folder's manifest is there, with the content it was written with."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return all(sha256_of(path / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """A folder that nobody else, in this process or another, writes into meanwhile. Raises RunError while it is held."""
    lock = FileLock(folder / LOCK, timeout=0.2, thread_local=False)  # `is_held` may have it for a moment
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{folder}: is being trained elsewhere.", "Wait for its end, or stop it there.") from None
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether somebody holds the folder, in this process or another. Makes no file; False where it cannot be known."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may be read only
        return False


def sync_folder(path: Path) -> None:
    """Make a rename last. Windows cannot open folders, and needs no such call."""
    if os.name == "posix":
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
