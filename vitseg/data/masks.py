"""How a mask file stores its classes: declared, or detected from all masks together and shown."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pydantic import ValidationError

from vitseg.errors import DataError
from vitseg.images import IGNORE, opened
from vitseg.settings import Folder
from vitseg.words import explain, json_of, shown

MOST_CLASSES = 254
COLOR = {"RGB", "RGBA"}
"""Modes in which a mask's values are colours."""

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
        return np.array([self.values[int(v)] for v in stored], dtype=np.uint8)[inverse].reshape(
            raw.shape
        )

    def counts(self, stored: dict[int, int]) -> dict[int, int]:
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
    *visible, alpha = image.getextrema() if image.mode in {"LA", "RGBA"} else ((0, 0),)
    if alpha[0] < alpha[1] and all(least == most for least, most in visible):
        hint = 'Save the alpha channel as a grey mask: Image.open(path).getchannel("A").save(path).'
        raise DataError(
            (
                f"{shown(path)}: a mask of one colour; only its alpha channel varies, which is not "
                f"read."
            ),
            hint,
        )
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
        raise DataError(
            f"{shown(path)}: a JPEG mask; compression invents labels.", "Save masks as PNG."
        )
    if mode not in {*COLOR, "1", "L", "LA", "P", "I", "I;16"}:
        raise DataError(
            f"{shown(path)}: a mask in mode {mode}.",
            "Save masks as 8- or 16-bit PNG, one value a class.",
        )


def unpack(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def with_classes_file(cfg: Folder) -> Folder:
    """The folder's settings, completed from its `classes.json`; what the recipe declares wins."""
    path = Path(cfg.path).expanduser() / "classes.json"
    if not path.is_file():
        return cfg
    try:
        declared = json_of(path.read_text(encoding="utf-8"))
        if not isinstance(declared, dict):
            raise ValueError(f"holds {type(declared).__name__}")
        fields = {
            k: v
            for k, v in cfg.model_dump().items()
            if v != type(cfg).model_fields[k].default or k == "path"
        }
        return Folder.model_validate_json(json.dumps(declared | fields))
    except ValidationError as error:
        raise DataError(f"{path}: {explain(error, Folder).problem}", _CLASSES_FILE) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}", _CLASSES_FILE) from None


def find_code(cfg: Folder, stored: set[int], in_color: bool, stems: list[str]) -> MaskCode:
    """The code of a folder's masks, given every value that occurs in them. Raises DataError when it
    is ambiguous.
    """
    if cfg.encoding == "rgb" or (cfg.encoding == "auto" and (in_color or cfg.colors is not None)):
        if cfg.grey_factor is not None:
            raise DataError(
                (
                    f"{cfg.path}: grey_factor={cfg.grey_factor} has no effect: the masks are in "
                    f"colour."
                ),
                "Leave it out.",
            )
        return _color_code(cfg, stored)
    stored = stored - {cfg.ignore_value}
    if cfg.encoding == "auto":
        cfg, by = _detect(cfg, stored, stems)
    else:
        by = "declared"
    if cfg.encoding == "binary_255":
        return _code({0: 0, 255: 1}, cfg, ("background", "foreground"), f"0 and 255 ({by})")
    if cfg.encoding == "binary_1":
        return _code({0: 0, 1: 1}, cfg, ("background", "foreground"), f"0 and 1 ({by})")
    factor = (cfg.grey_factor or 1) if cfg.encoding == "grey" else 1
    count = len(cfg.classes) if cfg.classes else max(stored, default=0) // factor + 1
    if count > MOST_CLASSES:
        raise DataError(
            (
                f"{cfg.path}: masks with values up to {max(stored)} would make {count} classes (at "
                f"most {MOST_CLASSES})."
            ),
            "Declare the encoding in classes.json, or give masks rather than photographs.",
        )
    names = tuple("background" if i == 0 else f"class {i}" for i in range(count))
    text = f"value = class{f' x {factor}' if factor > 1 else ''}, {count} classes ({by})"
    return _code({i * factor: i for i in range(count)}, cfg, names, text)


def _code(
    values: dict[int, int], cfg: Folder, names: tuple[str, ...], description: str
) -> MaskCode:
    classes = cfg.classes or names
    if len(classes) != len(set(values.values())):
        raise DataError(
            f"{cfg.path}: {len(classes)} class names for {len(values)} classes.",
            "Name each class once.",
        )
    if cfg.ignore_value is not None:
        values = _ignoring(cfg.ignore_value, values, classes, cfg)
        description += f", {cfg.ignore_value} is ignored"
    return MaskCode(values, classes, description)


def _ignoring(
    stored: int, values: dict[int, int], classes: tuple[str, ...], cfg: Folder
) -> dict[int, int]:
    """The values with that of ignored pixels among them. Raises DataError where it would take the
    place of a class.
    """
    if stored in values:
        lost = (
            f"ignore_value={cfg.ignore_value} is how class {classes[values[stored]]!r} is "
            f"stored; it would be lost."
        )
        raise DataError(
            f"{cfg.path}: {lost}",
            "Leave ignore_value out, or store what is to be ignored as a value of its own.",
        )
    return values | {stored: IGNORE}


def _color_code(cfg: Folder, stored: set[int]) -> MaskCode:
    if cfg.colors is None:
        found = ", ".join(str(unpack(v)) for v in sorted(stored)[:12])
        raise DataError(
            f"{cfg.path}: the masks are RGB and no colour map is declared; colours found: {found}.",
            (
                'List the colours in the order of the classes: "colors": [[r, g, b], ...] in '
                "classes.json."
            ),
        )
    values = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in enumerate(cfg.colors)}
    classes = cfg.classes or tuple(
        "background" if i == 0 else f"class {i}" for i in range(len(cfg.colors))
    )
    if len(classes) != len(cfg.colors):
        raise DataError(
            f"{cfg.path}: {len(classes)} class names for {len(cfg.colors)} colours.",
            "Give one each.",
        )
    if (v := cfg.ignore_value) is not None:
        if v > 255:
            raise DataError(
                f"{cfg.path}: ignore_value={v} is no colour.",
                "With colours it is a grey: (v, v, v), v in 0..255.",
            )
        values = _ignoring((v << 16) + (v << 8) + v, values, classes, cfg)
    return MaskCode(values, classes, f"{len(cfg.colors)} colours (declared)", is_color=True)


def _detect(cfg: Folder, stored: set[int], stems: list[str]) -> tuple[Folder, str]:
    """The encoding that the values speak for, and by what."""
    largest = max(stored, default=0)
    if cfg.grey_factor:
        return _changed(cfg, encoding="grey"), "declared"
    if cfg.classes and largest < len(cfg.classes):
        return _changed(cfg, encoding="index"), "declared"
    for known in json.loads((files("vitseg.data") / "known_sets.json").read_text(encoding="utf-8")):
        named = all(re.fullmatch(known["stems"], s) for s in stems)
        if (
            named
            and 1 < largest <= known["largest_value"]
            and cfg.ignore_value is None
            and cfg.classes is None
        ):
            found = {k: known[k] for k in ("encoding", "classes", "ignore_value")}
            return _changed(
                cfg, **found | {"classes": tuple(found["classes"])}
            ), f"recognised: {known['name']}"
    if stored <= {0, 255} and 255 in stored:
        return _changed(cfg, encoding="binary_255"), "detected"
    if stored <= {0, 1}:
        return _changed(cfg, encoding="binary_1"), "detected"
    factor = math.gcd(*stored)
    if 255 in stored:
        raise DataError(
            f"{cfg.path}: mask values {_some(stored)}: is 255 a class, or to be ignored?",
            (
                'Say so in classes.json: {"ignore_value": 255} or {"encoding": "index", "classes": '
                "[...]}."
            ),
        )
    if factor >= 5:
        return _changed(cfg, encoding="grey", grey_factor=factor), "detected"
    if factor > 1:
        raise DataError(
            f"{cfg.path}: mask values {_some(stored)}: classes as they are, or class x {factor}?",
            (
                f'Say so in classes.json: {{"encoding": "index"}} or {{"encoding": "grey", '
                f'"grey_factor": {factor}}}.'
            ),
        )
    return _changed(cfg, encoding="index"), "detected"


def _changed(cfg: Folder, **settings: object) -> Folder:
    return Folder(**cfg.model_dump() | settings)


def _some(values: set[int]) -> str:
    shown = ", ".join(map(str, sorted(values)[:8]))
    return shown + (", ..." if len(values) > 8 else "")
