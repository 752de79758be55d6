"""Which image belongs to which mask: by their names, and what is wrong with these."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from vitseg.errors import DataError
from vitseg.words import shown

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
SPLITS = ("train", "validation", "test")
LAYOUT = (
    "A data set is a folder with images/ and masks/ (same names), or with train/, "
    "validation/, test/ that hold them."
)


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask; `name` is unique in the data set."""

    name: str
    split: str | None
    image: Path
    mask: Path


class Problem(NamedTuple):
    """What is wrong with a file or a folder, in a sentence that begins with its path."""

    kind: str
    path: Path
    says: str


def problem(kind: str, path: Path, says: str) -> Problem:
    return Problem(kind, path, f"{shown(path)}: {says}")


def in_brief(problems: Iterable[Problem]) -> list[str]:
    """A sentence for each kind, that of its first file, and how many more files there are."""
    of_kind: dict[str, list[str]] = {}
    for p in problems:
        of_kind.setdefault(p.kind, []).append(p.says)
    return [
        f"{says[0]}{f' And {len(says) - 1} more: {kind}.' if says[1:] else ''}"
        for kind, says in of_kind.items()
    ]


@dataclass(slots=True)
class Names:
    """What the names in a folder say. `warnings` stop nothing."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def find_pairs(root: Path) -> Names:
    """Pair images with masks. Raises DataError where there is no data set, or none that may be
    read.
    """
    try:
        if not root.is_dir():
            raise DataError(f"{shown(root)}: there is no such folder.", LAYOUT)
        names = _in_places(root)
    except OSError as error:
        raise DataError(
            f"{shown(error.filename or root)}: cannot be looked into ({error.strerror}).", LAYOUT
        ) from None
    if not names.pairs and not names.problems:
        raise DataError(f"{shown(root)}: no image found.", LAYOUT)
    return names


def _in_places(root: Path) -> Names:
    splits: list[str] = [s for s in SPLITS if (root / s).is_dir()]
    called = f"no split of that name; it is called one of {', '.join(SPLITS)}."
    names = Names(
        problems=[
            problem("split by another name", p, called) for p in _strange_splits(root) if splits
        ]
    )
    for split, place in [(s, root / s) for s in splits] or [(None, root)]:
        for kind in ("images", "masks"):
            if not (place / kind).is_dir():
                raise DataError(f"{shown(place)}: there is no {kind}/ in it.", LAYOUT)
        listed = [_by_stem(place / kind, root, names) for kind in ("images", "masks")]
        if None in listed:
            continue
        images, masks = listed
        for kind, here, other in (("mask", images, masks), ("image", masks, images)):
            names.problems += _alone(kind, here, other)
        for stem in sorted(images.keys() & masks.keys()):
            names.pairs.append(
                Pair(f"{split}/{stem}" if split else stem, split, images[stem], masks[stem])
            )
    return names


def _strange_splits(root: Path) -> list[Path]:
    """Folders beside train/ that look like a split, such as val/, or like a whole data set."""
    whole = [root / kind for kind in ("images", "masks") if (root / kind).is_dir()]
    return whole + sorted(
        p for p in root.iterdir() if p.name not in SPLITS and p.is_dir() and (p / "images").is_dir()
    )


def _alone(kind: str, here: dict[str, Path], other: dict[str, Path]) -> Iterator[Problem]:
    alike = {_alike(stem): path for stem, path in other.items() if stem not in here}
    for stem in sorted(here.keys() - other.keys()):
        near = alike.get(_alike(stem))
        hint = (
            f" {near.name} differs in capitals, or in how its letters are encoded." if near else ""
        )
        yield problem(f"no {kind}", here[stem], f"no {kind} of that name in {kind}s/.{hint}")


def _by_stem(folder: Path, root: Path, names: Names) -> dict[str, Path] | None:
    """Image files by name without suffix; None where the folder may not be read. Passes over hidden
    files and other kinds.
    """
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        names.problems.append(
            problem("unreadable folder", folder, f"cannot be looked into ({error.strerror}).")
        )
        return None
    paths = [p for p in entries if p.suffix.lower() in SUFFIXES]
    says = "its name is no text in UTF-8; give it another."
    unnamed = [p for p in paths if not _is_text(p.name)]
    names.problems += [problem("name that is no text", p, says) for p in unnamed]
    paths = [p for p in paths if p not in set(unnamed)]
    names.problems += _twice(folder, paths)
    names.warnings += _leading_out(root, [folder, *paths])
    within = [p for p in entries if p not in set(paths) and p.is_dir()]
    names.warnings += [
        problem("folder within", p, "is not looked into: images and masks lie side by side.")
        for p in within
    ]
    return {p.stem: p for p in paths}


def _twice(folder: Path, paths: list[Path]) -> Iterator[Problem]:
    """Files whose names are one without their suffix, or would be on a disk that makes no
    difference between capitals.
    """
    for _, alike in groupby(
        sorted(paths, key=lambda p: (_alike(p.stem), p)), key=lambda p: _alike(p.stem)
    ):
        files = list(alike)
        if len(files) > 1:
            listed = ", ".join(shown(p.name) for p in files)
            aside = ", capitals aside" if len({p.stem for p in files}) > 1 else ""
            says = (
                f"{shown(folder)}: more than one file is named "
                f"{shown(files[0].stem)}.*{aside}: {listed}."
            )
            yield Problem("one name twice", files[0], says)


def _leading_out(root: Path, paths: list[Path]) -> Iterator[Problem]:
    for path in (p for p in paths if p.is_symlink() and p.exists()):
        end = path.resolve()
        if not end.is_relative_to(root.resolve()):
            yield problem(
                "link that leads out",
                path,
                f"a link to {shown(end)}, outside the data set's folder.",
            )


def _alike(stem: str) -> str:
    """The same for names that some file systems take for one."""
    return unicodedata.normalize("NFC", stem).casefold()


def _is_text(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)  # what Python makes of other bytes
