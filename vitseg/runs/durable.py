"""Files that are whole or not there: written aside, synced, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_json(path: Path, value: Any) -> None:
    """JSON that is either the old or the new, never half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, that becomes `path`, with a manifest of its files, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield aside
        files = sorted(p for p in aside.rglob("*") if p.is_file())
        write_json(aside / MANIFEST, {p.relative_to(aside).as_posix(): _sha256(p) for p in files})
        for file in files:
            with file.open("r+b") as opened:  # Windows syncs only what may be written
                os.fsync(opened.fileno())
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
        return all(_sha256(path / name) == digest for name, digest in manifest.items())
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
