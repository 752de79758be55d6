"""Files that are whole or not there: written aside, synced, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitseg.images import sha256_of

MANIFEST = "manifest.json"


def write_text(path: Path, text: str) -> None:
    """A text file that is either the old or the new, never half of it."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """JSON, written like `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, that becomes `path`, with a manifest of its files, when the block ends well."""
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # left by a kill
    aside.mkdir(parents=True)
    try:
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


def sync_folder(path: Path) -> None:
    """Make a rename last. Windows cannot open folders, and needs no such call."""
    if os.name == "posix":
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
