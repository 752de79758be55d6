"""Files that are whole or not there: written aside, synced, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from vitseg.errors import RunError
from vitseg.images import sha256_of
from vitseg.words import json_of

MANIFEST = "manifest.json"
LOCK, HOLDER = ".lock", ".holder"


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


def write_text(path: Path, text: str) -> None:
    """A text file that is either the old or the new, never half of it. Raises RunError if it cannot
    be written.
    """
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
def whole_folder(path: Path, need: int = 0) -> Iterator[Path]:
    """A folder to write into, that becomes `path`, with a manifest of its files, when the block
    ends well.

    Raises RunError if it cannot be written, with the bytes that it needs, if they are given;
    nothing half written is left.
    """
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # left by a kill
    try:
        with written(path, need):
            aside.mkdir(parents=True)
            yield aside
            files = sorted(p for p in aside.rglob("*") if p.is_file())
            for file in files:
                with file.open("r+b") as opened:  # Windows syncs only what may be written
                    os.fsync(opened.fileno())
            write_json(
                aside / MANIFEST, {p.relative_to(aside).as_posix(): sha256_of(p) for p in files}
            )
            if path.exists():
                shutil.rmtree(path)
            aside.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def flaw(path: Path) -> str:
    """What keeps a folder from being what was written; "" if every file of its manifest is there,
    with its content.
    """
    try:
        manifest = json_of((path / MANIFEST).read_text(encoding="utf-8"))
        changed = [name for name, digest in manifest.items() if sha256_of(path / name) != digest]
        there = {
            p.relative_to(path).as_posix() for p in path.rglob("[!.]*") if p.is_file()
        }  # systems leave hidden files
        unknown = sorted(there - manifest.keys() - {MANIFEST})
        words = [f"{name} is not what was written" for name in changed] + [
            f"{name} was put there" for name in unknown
        ]
        return words[0] if words else ""
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"
    except (ValueError, AttributeError):
        return f"{MANIFEST} is torn"


def sweep(folder: Path) -> None:
    """Delete what a kill has left half written in a folder that nobody writes into."""
    for left in folder.glob(".*.new"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


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


def sync_folder(path: Path) -> None:
    """Make a rename last. Windows cannot open folders, and needs no such call."""
    if os.name == "posix":
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
