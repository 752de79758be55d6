"""From mask files to the classes that are trained: how they are stored, declared or detected from
all masks together, and what the recipe makes of them.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pydantic import ValidationError

from vitseg.errors import ConfigError, DataError
from vitseg.images import IGNORE, opened
from vitseg.settings import Classes, Folder
from vitseg.words import explain, json_of, shown

MOST_CLASSES = 254
COLOR = {"RGB", "RGBA"}
"""Modes in which a mask's values are colours."""

_BINARY = {"binary_255": 255, "binary_1": 1}
_CLASSES_FILE = (
    "It is a JSON object with any of: classes, encoding, ignore_value, grey_factor, colors."
)


@dataclass(frozen=True, slots=True)
class MaskCode:
    """From stored values to class ids, and the class names. `description` says who decided:
    declared or detected.
    """

    values: dict[int, int]
    classes: tuple[str, ...]
    description: str
    is_color: bool = False

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Stored values (h, w), or packed colours, as class ids (h, w) uint8. Every value must be
        known.
        """
        stored, inverse = np.unique(raw, return_inverse=True)
        ids = np.array([self.values[value] for value in stored.tolist()], dtype=np.uint8)
        return ids[inverse].reshape(raw.shape)

    def counts(self, stored: Mapping[int, int]) -> dict[int, int]:
        """Pixels by class id, IGNORE among them, of pixels by stored value."""
        found: Counter[int] = Counter()
        for value, count in stored.items():
            found[self.values[value]] += count
        return dict(found)

    def unknown(self, stored: set[int]) -> list[int]:
        return sorted(stored - self.values.keys())

    def show(self, value: int) -> str:
        """A stored value for the reader: a number, or a colour."""
        return str(unpack(value)) if self.is_color else str(value)


def read_raw(path: Path) -> np.ndarray:
    """A mask's stored values (h, w) int64; colours are packed as red * 65536 + green * 256 + blue.

    Palette images give their indices: converting them to grey would turn labels 0, 1, 2 into 0, 76,
    150.
    """
    with opened(path) as image:
        refuse_lossy(path, image.format, image.mode)
        return stored_values(path, image)


def stored_values(path: Path, image: Image.Image) -> np.ndarray:
    """What `read_raw` gives of a file that is open. Raises DataError if the mask is in the alpha
    channel.
    """
    if image.mode in {"LA", "RGBA"}:
        *visible, alpha = image.getextrema()
        if alpha[0] < alpha[1] and all(least == most for least, most in visible):
            says = "a mask of one colour; only its alpha channel varies, which is not read."
            hint = "Save the alpha channel as a grey mask: "
            save = 'Image.open(path).getchannel("A").save(path).'
            raise DataError(f"{shown(path)}: {says}", hint + save)
    image = ImageOps.exif_transpose(image)
    if image.mode in COLOR:
        channels = np.asarray(image.convert("RGB")).astype(np.int64)
        return channels @ np.array([65536, 256, 1])
    if image.mode == "LA":
        image = image.getchannel("L")
    return np.asarray(image).astype(np.int64)


def refuse_lossy(path: Path, file_format: str | None, mode: str) -> None:
    """Raises DataError where a file so stored cannot hold labels."""
    if file_format in {"JPEG", "MPO"}:
        says = f"{shown(path)}: a JPEG mask; compression invents labels."
        raise DataError(says, "Save masks as PNG.")
    if mode not in {*COLOR, "1", "L", "LA", "P", "I", "I;16"}:
        hint = "Save masks as 8- or 16-bit PNG, one value a class."
        raise DataError(f"{shown(path)}: a mask in mode {mode}.", hint)


def unpack(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


# ---------------------------------------------------------------------- declared or detected


def with_classes_file(cfg: Folder) -> Folder:
    """The folder's settings, completed from its `classes.json`; what the recipe declares wins."""
    path = Path(cfg.path).expanduser() / "classes.json"
    if not path.is_file():
        return cfg
    try:
        declared = json_of(path.read_text(encoding="utf-8"))
        if not isinstance(declared, dict):
            raise ValueError(f"holds {type(declared).__name__}")
        settings = declared | cfg.model_dump(exclude_defaults=True) | {"path": cfg.path}
        return Folder.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        says = explain(error, Folder).problem
    except ValueError as error:
        says = error
    raise DataError(f"{path}: {says}", _CLASSES_FILE)


def find_code(cfg: Folder, stored: set[int], in_color: bool, stems: list[str]) -> MaskCode:
    """The code of a folder's masks, given every value that occurs in them. Raises DataError when it
    is ambiguous.
    """
    if cfg.encoding == "rgb" or (cfg.encoding == "auto" and (in_color or cfg.colors is not None)):
        return _color_code(cfg, stored)
    stored, by = stored - {cfg.ignore_value}, "declared"
    if cfg.encoding == "auto":
        cfg, by = _detect(cfg, stored, stems)
    if cfg.encoding in _BINARY:
        top = _BINARY[cfg.encoding]
        values, text, names = {0: 0, top: 1}, f"0 and {top}", ("background", "foreground")
    else:
        values, text = _grey_values(cfg, stored)
        names = _numbered(len(values))
    classes = cfg.classes or names
    if len(classes) != len(values):
        says = f"{cfg.path}: {len(classes)} class names for {len(values)} classes."
        raise DataError(says, "Name each class once.")
    ignored = ""
    if cfg.ignore_value is not None:
        _ignore(cfg, values, classes, cfg.ignore_value)
        ignored = f", {cfg.ignore_value} is ignored"
    return MaskCode(values, classes, f"{text} ({by}){ignored}")


def _grey_values(cfg: Folder, stored: set[int]) -> tuple[dict[int, int], str]:
    """Each class's id by its value, and this in words."""
    factor = cfg.grey_factor or 1
    count = len(cfg.classes) if cfg.classes else max(stored, default=0) // factor + 1
    if count > MOST_CLASSES:
        would = f"would make {count} classes (at most {MOST_CLASSES})."
        hint = "Declare the encoding in classes.json, or give masks rather than photographs."
        raise DataError(f"{cfg.path}: masks with values up to {max(stored)} {would}", hint)
    times = f" x {factor}" if factor > 1 else ""
    return {i * factor: i for i in range(count)}, f"value = class{times}, {count} classes"


def _color_code(cfg: Folder, stored: set[int]) -> MaskCode:
    if cfg.grey_factor is not None:
        says = f"grey_factor={cfg.grey_factor} has no effect: the masks are in colour."
        raise DataError(f"{cfg.path}: {says}", "Leave it out.")
    if cfg.colors is None:
        found = ", ".join(str(unpack(value)) for value in sorted(stored)[:12])
        says = f"the masks are RGB and no colour map is declared; colours found: {found}."
        hint = 'List the colours in the order of the classes: "colors": [[r, g, b], ...] in '
        raise DataError(f"{cfg.path}: {says}", hint + "classes.json.")
    count = len(cfg.colors)
    values = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in enumerate(cfg.colors)}
    classes = cfg.classes or _numbered(count)
    if len(classes) != count:
        says = f"{cfg.path}: {len(classes)} class names for {count} colours."
        raise DataError(says, "Give one each.")
    if cfg.ignore_value is not None:
        if cfg.ignore_value > 255:
            hint = "With colours it is a grey: (v, v, v), v in 0..255."
            raise DataError(f"{cfg.path}: ignore_value={cfg.ignore_value} is no colour.", hint)
        _ignore(cfg, values, classes, cfg.ignore_value * 0x010101)
    return MaskCode(values, classes, f"{count} colours (declared)", is_color=True)


def _numbered(count: int) -> tuple[str, ...]:
    return ("background", *(f"class {i}" for i in range(1, count)))


def _ignore(cfg: Folder, values: dict[int, int], classes: tuple[str, ...], stored: int) -> None:
    """Add the value of ignored pixels. Raises DataError where it would take a class's place."""
    if stored in values:
        name = classes[values[stored]]
        lost = f"is how class {name!r} is stored; it would be lost."
        hint = "Leave ignore_value out, or store what is to be ignored as a value of its own."
        raise DataError(f"{cfg.path}: ignore_value={cfg.ignore_value} {lost}", hint)
    values[stored] = IGNORE


def _detect(cfg: Folder, stored: set[int], stems: list[str]) -> tuple[Folder, str]:
    """The encoding that the values speak for, and by what."""
    largest = max(stored, default=0)
    if cfg.grey_factor:
        return _changed(cfg, encoding="grey"), "declared"
    if cfg.classes:
        if largest < len(cfg.classes):
            return _changed(cfg, encoding="index"), "declared"
    elif largest > 1 and cfg.classes is None and cfg.ignore_value is None:
        for known in json.loads((files("vitseg.data") / "known_sets.json").read_text("utf-8")):
            if largest <= known["largest_value"] and _all_named(stems, known["stems"]):
                found = {key: known[key] for key in ("encoding", "ignore_value")}
                classes = tuple(known["classes"])
                return _changed(cfg, classes=classes, **found), f"recognised: {known['name']}"
    if stored <= {0, 255} and stored & {255}:
        return _changed(cfg, encoding="binary_255"), "detected"
    if stored <= {0, 1}:
        return _changed(cfg, encoding="binary_1"), "detected"
    factor = math.gcd(*stored)
    _refuse_two_readings(cfg, stored, factor)
    if factor >= 5:
        return _changed(cfg, encoding="grey", grey_factor=factor), "detected"
    return _changed(cfg, encoding="index"), "detected"


def _all_named(stems: list[str], pattern: str) -> bool:
    return all(re.fullmatch(pattern, stem) for stem in stems)


def _refuse_two_readings(cfg: Folder, stored: set[int], factor: int) -> None:
    values = ", ".join(map(str, sorted(stored)[:8])) + (", ..." if len(stored) > 8 else "")
    if 255 in stored:
        hint = '{"ignore_value": 255} or {"encoding": "index", "classes": [...]}.'
        question = "is 255 a class, or to be ignored?"
    elif 1 < factor < 5:
        hint = f'{{"encoding": "index"}} or {{"encoding": "grey", "grey_factor": {factor}}}.'
        question = f"classes as they are, or class x {factor}?"
    else:
        return
    raise DataError(
        f"{cfg.path}: mask values {values}: {question}", f"Say so in classes.json: {hint}"
    )


def _changed(cfg: Folder, **settings: object) -> Folder:
    return Folder(**cfg.model_dump() | settings)


# ---------------------------------------------------------------------- merged, ignored, left out


@dataclass(frozen=True, slots=True)
class ClassMap:
    """From the class ids of the masks to those that are trained.

    `classes` are the new names, `table` (256,) uint8 the new id of every old one, IGNORE where its
    pixels count nowhere. Images that hold one of `dropping`, old ids, are left out. `foreground`
    are the new ids that binary mode looks for.
    """

    classes: tuple[str, ...]
    table: np.ndarray
    dropping: frozenset[int]
    foreground: tuple[int, ...]
    description: str

    def ids(self, old: np.ndarray) -> np.ndarray:
        """New class ids of old ones (h, w) uint8."""
        return self.table[old]

    def counts(self, old: Mapping[int, int]) -> dict[int, int]:
        """Pixels by new class id, ignored ones left out, of pixels by old id."""
        new: Counter[int] = Counter()
        for i, pixels in old.items():
            new[int(self.table[i])] += pixels
        new.pop(IGNORE, None)
        return dict(new)

    def binary_counts(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Pixels of background and foreground, of pixels by new class id."""
        both = [0, 0]
        for i, pixels in counts.items():
            both[i in self.foreground] += pixels
        return {i: pixels for i, pixels in enumerate(both) if pixels}

    def keeps(self, old: Iterable[int]) -> bool:
        """Whether an image with these old ids stays."""
        return self.dropping.isdisjoint(old)

    def binary_ids(self) -> np.ndarray:
        """(256,) int64: 1 for the new ids of the foreground, 0 for the others, IGNORE for
        IGNORE.
        """
        table = np.zeros(256, dtype=np.int64)
        table[list(self.foreground)], table[IGNORE] = 1, IGNORE
        return table

    def binary_classes(self) -> tuple[str, str]:
        """Names of the two classes of binary mode."""
        ground, looked_for = [], []
        for i, name in enumerate(self.classes):
            side = looked_for if i in self.foreground else ground
            side.append(name)
        return (
            ground[0] if len(ground) == 1 else "background",
            looked_for[0] if len(looked_for) == 1 else "foreground",
        )


def class_map(names: tuple[str, ...], cfg: Classes) -> ClassMap:
    """What `cfg` makes of the classes `names`. Raises ConfigError for a name that is not among
    them.
    """
    merged = {}
    for n, merge in enumerate(cfg.merge):
        _known(f"data.classes.merge.{n}.classes", merge.classes, names)
        merged.update(dict.fromkeys(merge.classes, merge.into))
    _known("data.classes.ignore", cfg.ignore, names)
    _known("data.classes.drop_images_with", cfg.drop_images_with, names)
    new_of = {name: merged.get(name, name) for name in names}
    for name in (*cfg.ignore, *cfg.drop_images_with):
        del new_of[name]
    classes = tuple(dict.fromkeys(new_of.values()))
    if len(classes) < 1 + (cfg.foreground is not None):
        given = cfg.model_dump(exclude_defaults=True)
        raise ConfigError("data.classes", given, "settings that leave some of the classes")
    for new in merged.values():
        if new not in merged and new_of.get(new) == new:
            hint = "Merge that class as well, or choose another name."
            raise ConfigError("data.classes.merge", new, "a name that no other class keeps", hint)
    table = np.full(256, IGNORE, dtype=np.uint8)
    for name, new in new_of.items():
        table[names.index(name)] = classes.index(new)
    foreground = cfg.foreground if cfg.foreground is not None else classes[1:]
    _known("data.classes.foreground", foreground, classes)
    if len(foreground) == len(classes):
        allowed = "some of the classes, not all: nothing would be background"
        raise ConfigError("data.classes.foreground", foreground, allowed)
    dropping = frozenset(map(names.index, cfg.drop_images_with))
    looked_for = tuple(sorted(map(classes.index, foreground)))
    return ClassMap(classes, table, dropping, looked_for, _in_words(cfg))


def _known(field: str, given: tuple[str, ...], names: tuple[str, ...]) -> None:
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(field, name, ", ".join(names), hint)


def _in_words(cfg: Classes) -> str:
    """What was done, for people; "" where nothing was."""
    said = [f"{' + '.join(merge.classes)} = {merge.into}" for merge in cfg.merge]
    if cfg.ignore:
        said.append(f"{' and '.join(cfg.ignore)} ignored")
    if cfg.drop_images_with:
        said.append(f"images with {' or '.join(cfg.drop_images_with)} left out")
    if cfg.foreground:
        said.append(f"foreground: {', '.join(cfg.foreground)}")
    return "; ".join(said)
