"""From mask files to the classes that are trained: which stored value is which class, declared or
detected from all masks together, and what the recipe makes of the classes.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vitseg.errors import ConfigError, DataError, RecipeError
from vitseg.images import IGNORE, opened
from vitseg.settings import Classes, Folder
from vitseg.words import json_of, nearest

MOST_CLASSES = 254
COLOR = {"RGB", "RGBA"}
"""Modes in which a mask's values are colours."""

_BINARY = {"binary_255": 255, "binary_1": 1}


class MaskCode(NamedTuple):
    """From stored values to class ids, and the class names. `description` says who decided:
    declared or detected.
    """

    values: dict[int, int]
    classes: tuple[str, ...]
    description: str
    is_color: bool = False

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Stored values (h, w), or packed colours, as class ids (h, w) uint8. Raises ValueError for
        values that are no class.
        """
        stored, inverse = np.unique(raw, return_inverse=True)
        try:
            ids = [self.values[value] for value in stored.tolist()]
        except KeyError as error:
            raise ValueError(f"the mask holds {error}, which stands for no class") from None
        return np.array(ids, dtype=np.uint8)[inverse]

    def show(self, value: int) -> str:
        """A stored value for the reader: a number, or a colour."""
        return str(tuple(value.to_bytes(3)) if self.is_color else value)


def read_raw(path: Path) -> np.ndarray:
    """What `stored_values` gives of a file. Raises one of UNREADABLE."""
    with opened(path) as image:
        return stored_values(image)


def stored_values(image: Image.Image) -> np.ndarray:
    """A mask's stored values (h, w) int64; colours are packed as red * 65536 + green * 256 + blue.

    Palette images give their indices: converting them to grey would turn labels 0, 1, 2 into 0, 76,
    150. Raises ValueError where the file cannot hold labels, or holds them in its alpha channel.
    """
    if image.format in {"JPEG", "MPO"}:
        raise ValueError("a JPEG mask; compression invents labels; save masks as PNG")
    if image.mode not in {*COLOR, "1", "L", "LA", "P", "I", "I;16"}:
        raise ValueError(
            f"a mask in mode {image.mode}; save masks as 8- or 16-bit PNG, one value a class"
        )
    if image.mode in {"LA", "RGBA"}:
        *visible, (least, most) = image.getextrema()
        if least < most and all(low == high for low, high in visible):
            raise ValueError(
                "a mask of one colour; only its alpha channel varies, which is not read; save that "
                'channel as a grey mask: Image.open(path).getchannel("A").save(path)'
            )
    raw = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
    if image.mode in COLOR:
        return raw[..., :3] @ (65536, 256, 1)
    return raw[..., 0] if image.mode == "LA" else raw


def counted(values: np.ndarray) -> dict[int, int]:
    """Pixels by stored value, or by class id."""
    found = np.unique(values, return_counts=True)
    return dict(zip(*map(np.ndarray.tolist, found), strict=True))


def recounted(counts: Mapping[int, int], new: Mapping[int, int] | np.ndarray) -> dict[int, int]:
    """Pixels by new id, ignored ones left out, of pixels by stored value or old id."""
    found = Counter()
    for old, pixels in counts.items():
        found[int(new[old])] += pixels
    del found[IGNORE]
    return dict(found)


# ---------------------------------------------------------------------- declared or detected


def with_classes_file(cfg: Folder) -> Folder:
    """The folder's settings, completed from its `classes.json`; what the recipe declares wins."""
    path = Path(cfg.path).expanduser() / "classes.json"
    if not path.is_file():
        return cfg
    try:
        declared = json_of(path.read_text("utf-8"))
        return Folder.read(json.dumps({**declared, **cfg.model_dump(exclude_defaults=True)}))
    except (OSError, ValueError, TypeError, RecipeError) as error:
        hint = "It is a JSON object of classes, encoding, ignore_value, grey_factor and colors."
        raise DataError(f"{path}: cannot be used ({error}).", hint) from None


def find_code(cfg: Folder, stored: set[int], is_color: bool, stems: list[str]) -> MaskCode:
    """The code of a folder's masks, given every value that occurs in them. Raises ValueError when
    it is ambiguous.
    """
    by, also = "declared", ""
    if not is_color:
        stored = stored - {cfg.ignore_value}
        is_clear = cfg.grey_factor or max(stored, default=0) < len(cfg.classes or ())
        if cfg.encoding == "auto" and not is_clear:
            settings, by = _detected(cfg, stored, stems)
            cfg = cfg.model_copy(update=settings)
    values, text = _values(cfg, stored, is_color)
    names = ["background", *(f"class {i}" for i in range(1, len(values)))]
    if cfg.encoding in _BINARY:
        names[1] = "foreground"
    classes = tuple(cfg.classes or names)
    if len(classes) != len(values):
        raise ValueError(
            f"{len(classes)} class names for {len(values)} classes. Name each class once."
        )
    ids, ignored = {value: i for i, value in enumerate(values)}, cfg.ignore_value
    if ignored is not None:
        if is_color:
            ignored *= 0x010101
        else:
            also = f", {ignored} is ignored"
        if ignored in ids:
            raise ValueError(
                f"ignore_value={cfg.ignore_value} is how class {classes[ids[ignored]]!r} is "
                "stored; it would be lost. Leave ignore_value out, or store what is to be ignored "
                "as a value of its own."
            )
        ids[ignored] = IGNORE
    return MaskCode(ids, classes, f"{text} ({by}){also}", is_color)


def _values(cfg: Folder, stored: set[int], is_color: bool) -> tuple[Sequence[int], str]:
    """The value, or the packed colour, of each class, and this in words."""
    if is_color:
        if cfg.colors is None:
            found = ", ".join(str(tuple(value.to_bytes(3))) for value in sorted(stored)[:12])
            raise ValueError(
                f"the masks are RGB and no colour map is declared; colours found: {found}. List "
                'the colours in the order of the classes: "colors": [[r, g, b], ...] in '
                "classes.json."
            )
        if (cfg.ignore_value or 0) > 255:
            raise ValueError(
                f"ignore_value={cfg.ignore_value} is no colour. With colours it is a grey: "
                "(v, v, v), v in 0..255."
            )
        return [int.from_bytes(color) for color in cfg.colors], f"{len(cfg.colors)} colours"
    if top := _BINARY.get(cfg.encoding):
        return (0, top), f"0 and {top}"
    factor = cfg.grey_factor or 1
    count = len(cfg.classes or range(max(stored, default=0) // factor + 1))
    if count > MOST_CLASSES:
        raise ValueError(
            f"masks with values up to {max(stored)} would make {count} classes (at most "
            f"{MOST_CLASSES}). Declare the encoding in classes.json, or give masks rather than "
            "photographs."
        )
    times = f" x {factor}" if factor > 1 else ""
    return range(0, count * factor, factor), f"value = class{times}, {count} classes"


def _detected(cfg: Folder, stored: set[int], stems: list[str]) -> tuple[dict[str, Any], str]:
    """The settings that the values speak for, and who says so: the first of the known sets that
    has these values and names, and settles nothing that is declared; else a factor.
    """
    declared = cfg.model_dump(exclude_defaults=True).keys()
    for known in json.loads((files("vitseg.data") / "known_sets.json").read_text("utf-8")):
        fits = stored <= set(known["values"]) and declared.isdisjoint(known["settings"])
        if fits and all(re.fullmatch(known["stems"], stem) for stem in stems):
            return known["settings"], known["by"]
    factor = math.gcd(*stored)
    if 255 in stored:
        question = (
            "is 255 a class, or to be ignored? Say so in classes.json: "
            '{"ignore_value": 255} or {"encoding": "index", "classes": [...]}.'
        )
    elif 1 < factor < 5:
        question = (
            f"classes as they are, or class x {factor}? Say so in classes.json: "
            f'{{"encoding": "index"}} or {{"encoding": "grey", "grey_factor": {factor}}}.'
        )
    else:
        return {"grey_factor": factor}, "detected"
    raise ValueError(f"mask values {sorted(stored)[:8]}, {len(stored)} in all: {question}")


# ---------------------------------------------------------------------- merged, ignored, left out


class ClassMap(NamedTuple):
    """From the class ids of the masks to those that are trained.

    `classes` are the new names, `table` (256,) uint8 the new id of every old one, IGNORE where its
    pixels count nowhere. Images that hold one of `dropping`, old ids, are left out. `foreground`
    are the new ids that binary mode looks for, `binary_classes` the names of its two classes.
    `description` says how masks store the classes, and what becomes of these.
    """

    classes: tuple[str, ...]
    table: np.ndarray
    dropping: frozenset[int]
    foreground: tuple[int, ...]
    binary_classes: tuple[str, ...]
    description: str


def class_map(code: MaskCode, cfg: Classes) -> ClassMap:
    """What `cfg` makes of the classes of a code. Raises ConfigError for a name that is not among
    them.
    """
    names = code.classes
    merged = {name: merge.into for merge in cfg.merge for name in merge.classes}
    gone = cfg.ignore + cfg.drop_images_with
    refuse_unknown("data.classes", (*merged, *gone), names)
    new_of = {name: merged.get(name, name) for name in names if name not in gone}
    classes = tuple(dict.fromkeys(new_of.values()))
    table = np.full(256, IGNORE, dtype=np.uint8)
    for name, new in new_of.items():
        table[names.index(name)] = classes.index(new)
    foreground = cfg.foreground or classes[1:]
    refuse_unknown("data.classes.foreground", foreground, classes)
    background = [name for name in classes if name not in foreground]
    if not background:
        allowed = "what leaves some of the classes, and not all of them as foreground"
        raise ConfigError("data.classes", cfg, f"{allowed}: nothing would be background")
    binary = (
        background[0] if len(background) == 1 else "background",
        foreground[0] if len(foreground) == 1 else "foreground",
    )
    dropping = frozenset(map(names.index, cfg.drop_images_with))
    looked_for = tuple(sorted(map(classes.index, foreground)))
    words = "; ".join(filter(None, (code.description, *_in_words(cfg))))
    return ClassMap(classes, table, dropping, looked_for, binary, words)


def refuse_unknown(field: str, given: Collection[str], known: Collection[str]) -> None:
    """Raises ConfigError, with the nearest name, for a name that is not known."""
    for name in given:
        if name not in known:
            close = nearest(name, known)
            hint = f"Did you mean {close!r}?" if close else ""
            raise ConfigError(field, name, ", ".join(known), hint)


def _in_words(cfg: Classes) -> Iterator[str]:
    """What was done, for people."""
    for merge in cfg.merge:
        yield f"{' + '.join(merge.classes)} = {merge.into}"
    if cfg.ignore:
        yield f"{' and '.join(cfg.ignore)} ignored"
    if cfg.drop_images_with:
        yield f"images with {' or '.join(cfg.drop_images_with)} left out"
    if cfg.foreground:
        yield f"foreground: {', '.join(cfg.foreground)}"
