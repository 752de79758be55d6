"""A folder of images and masks in one scan: names, pixels, and all that is wrong.

The check and training read the same scan, so what one refuses the other refuses.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLESPERPIXEL
from tqdm.contrib.concurrent import thread_map

from vitseg.data.masks import (
    COLOR,
    MaskCode,
    counted,
    find_code,
    read_raw,
    recounted,
    stored_values,
    with_classes_file,
)
from vitseg.data.scan_cache import FileScan, ScanCache
from vitseg.errors import DataError
from vitseg.images import UNREADABLE, Size, is_transparency, open_rgb, orientation_of, to_rgb
from vitseg.settings import Folder
from vitseg.words import shown

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
SPLITS = ("train", "validation", "test")
HALVES = ("images", "masks")
LAYOUT = (
    "A data set is a folder with images/ and masks/ (same names), or with train/, "
    "validation/, test/ that hold them."
)
NO_ALPHA = "alpha that is no transparency"
DIM = 14
"""Bits that a 16-bit image uses if it is read as the lowest quarter of 0..255."""

MOMENT = 0.5
"""Seconds that a scan may take without a bar."""

FOLDER_PROBLEMS = {"split by another name", "one name twice", "unclear masks"}
"""Kinds of problems that do not concern a pair alone, which could be left out."""

_SAME_TAG = (
    "If the mask was drawn on the stored pixels, save it with the image's: mask.save(path, "
    "exif=image.getexif())."
)
_PLAIN = (
    "If its indices are right, save it without one: "
    "Image.fromarray(np.asarray(Image.open(path))).save(path)."
)

Rank = Literal["problem", "warning", "note"]


class Finding(NamedTuple):
    """What was found of a file or a folder.

    A problem stops a training, a warning spoils what it says, a note is worth knowing.
    """

    kind: str
    path: Path
    says: str
    rank: Rank


def _ranked(rank: Rank) -> property:
    return property(lambda self: [found for found in self.findings if found.rank == rank])


class Findings:
    """What has been found: all of it in `findings`, and by rank."""

    findings: list[Finding]
    problems, warnings, notes = _ranked("problem"), _ranked("warning"), _ranked("note")

    def add(self, kind: str, path: Path, text: str, rank: Rank = "problem") -> None:
        self.findings.append(Finding(kind, path, f"{shown(path)}: {text}", rank))


def in_brief(findings: Iterable[Finding]) -> list[str]:
    """A sentence for each kind, that of its first file, and how many more files there are."""
    of_kind = defaultdict(list)
    for found in findings:
        of_kind[found.kind].append(found.says)
    return [
        first + f" And {len(more)} more: {kind}." * bool(more)
        for kind, (first, *more) in of_kind.items()
    ]


@dataclass
class Pair(Findings):
    """An image and its mask, by a name that is unique in the data set, and what was found of them:
    without a problem both files have been read whole, and `code` fits the mask.
    """

    name: str
    split: str
    image: Path
    mask: Path
    image_scan: FileScan | None = None
    mask_scan: FileScan | None = None
    code: MaskCode | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def size(self) -> Size:
        return self.image_scan.size

    def counts(self) -> dict[int, int]:
        return recounted(self.mask_scan.counts, self.code.values)

    def load(self) -> tuple[Image.Image, np.ndarray]:
        with _unchanged(self):
            image, ids = open_rgb(self.image), self.code.decode(read_raw(self.mask))
            if ids.shape != (image.height, image.width):
                raise ValueError("sizes differ")
        return image, ids

    def content(self) -> tuple[list[str], list[str]]:
        with _unchanged(self):
            image = [self.image_scan.digest(self.image)]
            mask = [self.mask_scan.digest(self.mask), str(self.code.values)]
        is_tiff = self.image.suffix.lower().startswith(".tif")
        if is_tiff and NO_ALPHA in dict(self.image_scan.warnings):
            image.append("alpha not blended")  # as it once was
        return image, mask


@contextmanager
def _unchanged(pair: Pair) -> Iterator[None]:
    """Raises DataError where its files cannot be read as they were when first looked at."""
    try:
        yield
    except (*UNREADABLE, KeyError) as error:
        why = f"changed or vanished since it was first looked at ({type(error).__name__}: {error})."
        raise DataError(f"{pair.image} or its mask {pair.mask}: {why}") from None


class Scan(Findings):
    """A folder whose every file has been looked at: its `pairs`, and the `findings` of the folder,
    then of each pair. `code` is None where no code fits the masks. Raises DataError where there is
    no data set at all.
    """

    def __init__(self, cfg: Folder):
        self.root, self.code = Path(cfg.path).expanduser(), None
        self.pairs, self.findings = [], []
        _find_pairs(self)
        cfg, cache = with_classes_file(cfg), ScanCache(self.root)
        bar = {"desc": "pixels", "delay": MOMENT, "leave": False, "disable": None}
        thread_map(partial(_look, cache), self.pairs, **bar)
        cache.save()
        _warn_of_ranges(self.good)
        is_color = _compare_modes(cfg, self.good)
        good = self.good
        _compare_palettes(good)
        stored = set().union(*(pair.mask_scan.counts for pair in good))
        try:
            self.code = find_code(cfg, stored, is_color, [pair.image.stem for pair in good])
        except ValueError as error:
            self.add("unclear masks", self.root, str(error))
        else:
            for pair in good:
                pair.code = self.code
                _compare_labels(pair)
        self.findings += chain(*(pair.findings for pair in self.pairs))

    @property
    def good(self) -> list[Pair]:
        """The pairs that have no problem."""
        return [pair for pair in self.pairs if not pair.problems]


def read_folder(cfg: Folder) -> Scan:
    """The scan of a folder in which nothing is wrong; with `cfg.on_problem="skip"` its good pairs
    alone.

    Raises DataError with everything that is wrong, not only the first: missing masks, unreadable
    files, sizes that differ, labels outside the classes.
    """
    found = Scan(cfg)
    found.pairs, problems = found.good, found.problems
    fatal = FOLDER_PROBLEMS & {problem.kind for problem in problems}
    if problems and (cfg.on_problem == "refuse" or fatal or not found.pairs):
        lines = [f"{shown(found.root)}: {len(problems)} problem{'s' * (len(problems) > 1)}."]
        lines += [problem.says for problem in problems[:20]]
        hint = "\nFix or remove these files, or declare in classes.json how masks hold the classes."
        raise DataError("\n  ".join(lines), hint)
    if problems:
        count = len({problem.path for problem in problems})
        words = f"{count} file{'s' * (count > 1)} with problems and what belongs to them left out"
        description = f"{found.code.description}; {words}"
        found.code = found.code._replace(description=description)
    return found


# ---------------------------------------------------------------------- names


def _find_pairs(found: Scan) -> None:
    """Images and masks paired by their names, and what is wrong with these. Raises DataError where
    there is no data set, or none that may be read.
    """
    root, says = found.root, f"no split of that name; it is called one of {', '.join(SPLITS)}."
    try:
        splits = [split for split in SPLITS if (root / split).is_dir()]
        for path in sorted(root.iterdir()):
            like_a_split = path.name in HALVES or (path / HALVES[0]).is_dir()
            if splits and path.name not in SPLITS and like_a_split:
                found.add("split by another name", path, says)
        for split in splits or [""]:
            _pair_up(found, split)
    except OSError as error:
        says = f"{shown(error.filename)}: cannot be looked into ({error.strerror})."
        raise DataError(says, LAYOUT) from None
    if not found.pairs and not found.problems:
        raise DataError(f"{shown(root)}: no image found.", LAYOUT)


def _pair_up(found: Scan, split: str) -> None:
    """Add the pairs of a split, or of a folder that has none."""
    by_stem, alike = defaultdict(dict), defaultdict(list)
    for half in HALVES:
        for path in _files(found, found.root / split / half):
            by_stem[path.stem][half] = path
            alike[half, _alike(path)].append(path)
    for first, *others in alike.values():
        if others:
            names = ", ".join(shown(path.name) for path in others)
            says = f"has the same name as {names} (ignoring suffix and capitals)."
            found.add("one name twice", first, says)
    for stem, halves in sorted(by_stem.items()):
        if len(halves) == 2:
            name = f"{split}/{stem}".lstrip("/")
            found.pairs.append(Pair(name, split, *halves.values()))
            continue
        [(half, path)] = halves.items()
        other = HALVES[half == HALVES[0]]
        kind = f"no {other[:-1]}"
        says = f"{kind} of that name in {other}/."
        for near in alike[other, _alike(path)]:
            says += f" {near.name} differs in capitals, or in how its letters are encoded."
        found.add(kind, path, says)


def _files(found: Scan, folder: Path) -> list[Path]:
    """The image files of a folder. Passes over hidden files and other kinds."""
    paths = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in SUFFIXES:
            if path.is_dir():
                says = "is not looked into: images and masks lie side by side."
                found.add("folder within", path, says, "warning")
        elif re.search("[\ud800-\udfff]", path.name):  # what Python makes of other bytes
            found.add("name that is no text", path, "its name is no text in UTF-8; rename it.")
        else:
            paths.append(path)
    for path in (folder, *paths):
        if path.is_symlink() and path.exists():
            end = path.resolve()
            if not end.is_relative_to(found.root.resolve()):
                says = f"a link to {shown(end)}, outside the data set's folder."
                found.add("link that leads out", path, says, "warning")
    return paths


def _alike(path: Path) -> str:
    """The same for names that some file systems take for one."""
    return unicodedata.normalize("NFC", path.stem).casefold()


# ---------------------------------------------------------------------- files


def _look(cache: ScanCache, pair: Pair) -> None:
    """Scan both files of a pair, and compare them."""
    files = ("image", pair.image, _scan_image), ("mask", pair.mask, _scan_mask)
    for kind, path, read in files:
        try:
            setattr(pair, f"{kind}_scan", cache.scan(path, read))
        except UNREADABLE as error:
            pair.add(f"unreadable {kind}", path, f"cannot be read ({_why(path, error)}).")
    if not pair.findings:
        _compare(pair)


def _why(path: Path, error: Exception) -> object:
    """What made a file unreadable, for the reader."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a known image format ({path.stat().st_size} bytes)"
    if isinstance(error, OSError) and error.strerror:
        if path.is_symlink():
            return f"a link that leads nowhere, to {shown(path.readlink())}"
        return error.strerror
    return error


def _scan_image(image: Image.Image) -> FileScan:
    """An image as training sees it."""
    is_deep = image.format != "BMP" and ";16" in str(image.tile)  # gone once it is decoded
    orientation, rgb, deep = orientation_of(image), to_rgb(image), 0
    if image.mode.startswith("I"):
        deep = int(np.asarray(image).max())
    elif is_deep:  # Pillow drops the low byte
        deep = 257 * max(map(max, rgb.getextrema()))
    size = (rgb.height, rgb.width)
    pixels = hashlib.blake2b(repr(size).encode() + rgb.tobytes(), digest_size=16).hexdigest()
    return FileScan(size, orientation, tuple(_unread(image, "image")), pixels, deep)


def _scan_mask(image: Image.Image) -> FileScan:
    orientation, raw = orientation_of(image), stored_values(image)
    counts, colors = counted(raw), image.getpalette() or []
    palette = {i: tuple(colors[3 * i : 3 * i + 3]) for i in counts if 3 * i < len(colors)}
    return FileScan(
        raw.shape,
        orientation,
        tuple(_unread(image, "mask")),
        is_color=image.mode in COLOR,
        counts=counts,
        palette=palette,
    )


def _unread(image: Image.Image, kind: str) -> Iterator[tuple[str, str]]:
    """What of an image or a mask is not read, or not as what it is: bands, and an alpha channel
    that is none (infrared, or empty), or that tells pixels of one colour in a mask apart.
    """
    read = len(image.getbands())
    stored = getattr(image, "tag_v2", {}).get(SAMPLESPERPIXEL, 1)
    if stored > read:
        says = f"bands read: the first {read} of {stored}. Save those to train on as grey or RGB."
        yield "bands dropped", says
    if not image.mode.endswith("A"):
        return
    if kind == "mask":
        found = image.getcolors(image.width * image.height)
        if len(found) > len({color[:-1] for _, color in found}):
            yield (
                "alpha not read",
                "its alpha channel differs where its colour does not, and is not read. "
                "Save it without alpha, or the alpha channel as the mask.",
            )
    elif not is_transparency(image):
        done = "not read" if image.format == "TIFF" else "blended as transparency"
        yield (
            NO_ALPHA,
            "its alpha channel varies like an image (infrared?) or is empty; "
            f"it is {done}. Save the image as grey or RGB.",
        )


def _compare(pair: Pair) -> None:
    """Image and mask, where both can be read."""
    image, mask = pair.image_scan, pair.mask_scan
    (height, width), a, b = image.size, image.orientation, mask.orientation
    tags = f"the image has EXIF orientation {a}, its mask {b} (1 is none)"
    if image.size != mask.size:
        sizes = f"image {width}x{height}, mask {mask.size[1]}x{mask.size[0]} pixels"
        says = f"size differs from its image ({sizes})."
        if a != b and image.size == mask.size[::-1]:
            says = f"size differs from its image ({sizes} once upright: {tags}). {_SAME_TAG}"
        pair.add("sizes differ", pair.mask, says)
        return
    for path, scan in ((pair.image, image), (pair.mask, mask)):
        for kind, says in scan.warnings:
            pair.add(kind, path, says, "warning")
    if a != b and (height == width or (a >= 5) == (b >= 5)):
        says = f"{tags}; whether they match once upright, sizes do not tell. {_SAME_TAG}"
        pair.add("orientation differs", pair.image, says, "warning")


# ---------------------------------------------------------------------- all files together


def _warn_of_ranges(pairs: list[Pair]) -> None:
    """Warn of the brightest 16-bit image, if even this one is dim."""
    deep = {pair.image_scan.deep: pair for pair in pairs}
    most = max(deep, default=0)
    if 0 < most < 1 << DIM:
        bits, pair = most.bit_length(), deep[most]
        says = (
            f"even the brightest 16-bit image uses {bits} bits: its values, about 0..{most} of "
            f"65535, are read as 0..{round(most / 257)} of 255. Multiply the values of all by "
            f"{1 << 16 - bits}, or save 8-bit images."
        )
        pair.add("range barely used", pair.image, says, "warning")


def _compare_modes(cfg: Folder, pairs: list[Pair]) -> bool:
    """Whether masks hold colours: as is declared, else as most do. The others are problems, since
    grey and colours cannot share a code.
    """
    is_color = cfg.encoding == "rgb" or cfg.colors is not None
    if cfg.encoding == "auto" and not is_color:
        is_color = 2 * sum(pair.mask_scan.is_color for pair in pairs) > len(pairs)
    for pair in pairs:
        if pair.mask_scan.is_color is not is_color:
            says = "grey or in colour, unlike what is declared, or unlike most masks."
            pair.add("masks of two kinds", pair.mask, says)
    return is_color


def _compare_palettes(pairs: list[Pair]) -> None:
    """Masks whose palette gives an index another colour than most palettes do are problems: the
    index may mean another class there.
    """
    entries = Counter(chain(*(pair.mask_scan.palette.items() for pair in pairs)))
    usual = dict(entry for entry, _ in reversed(entries.most_common()))
    for pair in pairs:
        strange = pair.mask_scan.palette.items() - usual.items()
        if strange:
            index, color = min(strange)
            says = f"palette differs: index {index} is {color} here, elsewhere {usual[index]}."
            pair.add("palette differs", pair.mask, f"{says} {_PLAIN}")


def _compare_labels(pair: Pair) -> None:
    counts, code = pair.mask_scan.counts, pair.code
    strange = sorted(counts.keys() - code.values.keys())
    if strange:
        found = ", ".join(f"{code.show(v)} in {counts[v]} pixels" for v in strange[:6])
        allowed = ", ".join(code.show(v) for v in sorted(code.values))
        says = f"labels outside the classes: {found}; allowed: {allowed} ({code.description})."
        pair.add("unknown label", pair.mask, says)
