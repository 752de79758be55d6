"""A folder of images and masks in one scan: names, pixels, and all that is wrong.

The check and training read the same scan, so what one refuses the other refuses.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLESPERPIXEL, TiffImageFile

from vitseg.data.masks import COLOR, MaskCode, find_code, stored_values, with_classes_file
from vitseg.data.scan_cache import FileScan, ScanCache, stamp_of
from vitseg.errors import DataError
from vitseg.files import sha256_of
from vitseg.images import UNREADABLE, WITH_ALPHA, is_transparency, opened, orientation_of, to_rgb
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

FOLDER_PROBLEMS = {"unreadable folder", "split by another name", "one name twice", "unclear masks"}
"""Kinds of problems that do not concern a pair alone, which could be left out."""

_SAME_TAG = (
    "If the mask was drawn on the stored pixels, save it with the image's: mask.save(path, "
    "exif=image.getexif())."
)
_PLAIN = (
    "If its indices are right, save it without one: "
    "Image.fromarray(np.asarray(Image.open(path))).save(path)."
)


class Pair(NamedTuple):
    """An image and its mask; `name` is unique in the data set."""

    name: str
    split: str | None
    image: Path
    mask: Path


Rank = Literal["problem", "warning", "note"]


class Finding(NamedTuple):
    """What was found of a file or a folder.

    A problem stops a training, a warning spoils what it says, a note is worth knowing.
    """

    kind: str
    path: Path
    text: str
    rank: Rank = "problem"

    @property
    def says(self) -> str:
        return f"{shown(self.path)}: {self.text}"


def ranked(rank: Rank) -> property:
    """Those findings of an object that are of this rank."""
    return property(lambda self: [found for found in self.findings if found.rank == rank])


def in_brief(findings: Iterable[Finding]) -> list[str]:
    """A sentence for each kind, that of its first file, and how many more files there are."""
    of_kind = defaultdict(list)
    for found in findings:
        of_kind[found.kind].append(found.says)
    sentences = []
    for kind, (first, *more) in of_kind.items():
        sentences.append(f"{first} And {len(more)} more: {kind}." if more else first)
    return sentences


@dataclass(slots=True)
class Look:
    """What was seen of a pair; without a problem both files have been read whole."""

    pair: Pair
    findings: list[Finding] = field(default_factory=list)
    image: FileScan | None = None
    mask: FileScan | None = None
    problems = ranked("problem")


Watch = Callable[[list[Pair]], Iterator[Pair]]
"""Hands on the pairs as they are asked for: room for a progress bar."""


@dataclass(slots=True)
class Scan:
    """A folder that has been scanned: `looks` by the names of the pairs, and `folder_findings`,
    which belong to no pair. `code` is None where no code fits the masks.
    """

    root: Path
    looks: dict[str, Look]
    folder_findings: list[Finding]
    code: MaskCode | None = None
    problems = ranked("problem")

    @property
    def findings(self) -> list[Finding]:
        of_pairs = chain.from_iterable(look.findings for look in self.looks.values())
        return [*self.folder_findings, *of_pairs]

    @property
    def whole(self) -> dict[str, Look]:
        """The pairs that have no problem."""
        return {name: look for name, look in self.looks.items() if not look.problems}


def read_folder(cfg: Folder) -> Scan:
    """The pairs of a folder and the code of their masks; with `cfg.on_problem="skip"` of those that
    are whole.

    Raises DataError with everything that is wrong, not only the first: missing masks, unreadable
    files, sizes that differ, labels outside the classes.
    """
    found = scan(cfg)
    problems, whole = found.problems, found.whole
    if not problems:
        return found
    fatal = FOLDER_PROBLEMS & {problem.kind for problem in problems}
    if cfg.on_problem == "refuse" or fatal or not whole:
        lines = [f"{shown(found.root)}: {len(problems)} problem{'s' * (len(problems) > 1)}."]
        lines += [problem.says for problem in problems[:20]]
        if len(problems) > 20:
            lines.append(f"... and {len(problems) - 20} more.")
        hint = "\nFix or remove these files, or declare in classes.json how masks hold the classes."
        raise DataError("\n  ".join(lines), hint)
    count = len({problem.path for problem in problems})
    words = f"{count} file{'s' * (count != 1)} with problems and what belongs to them left out"
    code = found.code._replace(description=f"{found.code.description}; {words}")
    return Scan(found.root, whole, [], code)


def scan(cfg: Folder, watch: Watch = iter) -> Scan:
    """Find every pair, look at its files, and say all that is wrong. Raises DataError where there
    is no data set at all.
    """
    root = Path(cfg.path).expanduser()
    pairs, findings = find_pairs(root)
    cfg = with_classes_file(cfg)
    found = Scan(root, _look_at(root, pairs, watch), findings)
    good = found.whole.values()
    _warn_of_ranges(good)
    is_color = _compare_modes(cfg, good)
    good = found.whole.values()
    _compare_palettes(good)
    stored = set().union(*(look.mask.counts for look in good))
    try:
        found.code = find_code(cfg, stored, is_color, [look.pair.image.stem for look in good])
    except ValueError as error:
        findings.append(Finding("unclear masks", root, str(error)))
        return found
    for look in good:
        look.findings += _unknown(look, found.code)
    return found


# ---------------------------------------------------------------------- names


def find_pairs(root: Path) -> tuple[list[Pair], list[Finding]]:
    """Images and masks paired by their names, and what is wrong with these. Raises DataError where
    there is no data set, or none that may be read.
    """
    pairs, findings = [], []
    try:
        splits = [split for split in SPLITS if (root / split).is_dir()]
        for path in sorted(root.iterdir()):
            like_a_split = path.name in HALVES or (path / HALVES[0]).is_dir()
            if splits and path.name not in SPLITS and like_a_split:
                says = f"no split of that name; it is called one of {', '.join(SPLITS)}."
                findings.append(Finding("split by another name", path, says))
        for split in splits or [None]:
            pairs += _pairs_in(root, split, findings)
    except OSError as error:
        place = shown(error.filename or root)
        raise DataError(f"{place}: cannot be looked into ({error.strerror}).", LAYOUT) from None
    if not pairs and not any(found.rank == "problem" for found in findings):
        raise DataError(f"{shown(root)}: no image found.", LAYOUT)
    return pairs, findings


def _pairs_in(root: Path, split: str | None, findings: list[Finding]) -> Iterator[Pair]:
    place, found = root / (split or ""), []
    for half in HALVES:
        try:
            found.append(_by_stem(place / half, root, findings))
        except PermissionError as error:
            says = f"cannot be looked into ({error.strerror})."
            findings.append(Finding("unreadable folder", place / half, says))
            return
    images, masks = found
    for kind, here, other in (("mask", images, masks), ("image", masks, images)):
        alike = {_alike(stem): path.name for stem, path in other.items()}
        for stem in sorted(here.keys() - other.keys()):
            says, near = f"no {kind} of that name in {kind}s/.", alike.get(_alike(stem))
            if near:
                says += f" {near} differs in capitals, or in how its letters are encoded."
            findings.append(Finding(f"no {kind}", here[stem], says))
    for stem in sorted(images.keys() & masks.keys()):
        name = f"{split}/{stem}" if split else stem
        yield Pair(name, split, images[stem], masks[stem])


def _by_stem(folder: Path, root: Path, findings: list[Finding]) -> dict[str, Path]:
    """Image files by name without suffix. Passes over hidden files and other kinds."""
    paths, alike = {}, defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in SUFFIXES:
            if path.is_dir():
                says = "is not looked into: images and masks lie side by side."
                findings.append(Finding("folder within", path, says, "warning"))
        elif any("\ud800" <= c <= "\udfff" for c in path.name):  # what Python makes of other bytes
            says = "its name is no text in UTF-8; give it another."
            findings.append(Finding("name that is no text", path, says))
        else:
            paths[path.stem] = path
            alike[_alike(path.stem)].append(shown(path.name))
    for _, (first, *others) in sorted(alike.items()):
        if others:
            says = f"has the same name as {', '.join(others)} (ignoring suffix and capitals)."
            findings.append(Finding("one name twice", folder / first, says))
    for path in (folder, *paths.values()):
        if path.is_symlink() and path.exists():
            end = path.resolve()
            if not end.is_relative_to(root.resolve()):
                says = f"a link to {shown(end)}, outside the data set's folder."
                findings.append(Finding("link that leads out", path, says, "warning"))
    return paths


def _alike(stem: str) -> str:
    """The same for names that some file systems take for one."""
    return unicodedata.normalize("NFC", stem).casefold()


# ---------------------------------------------------------------------- files


def _look_at(root: Path, pairs: list[Pair], watch: Watch) -> dict[str, Look]:
    """A look at each pair, by its name: on all cores, and from the cache where it can."""
    cache, looks, scans = ScanCache(root), {}, {}
    with ThreadPoolExecutor() as pool:
        found = pool.map(partial(_look, cache), pairs)
        for pair, look in zip(watch(pairs), found, strict=True):
            looks[pair.name] = look
            scans |= {pair.image: look.image, pair.mask: look.mask}
    cache.save(scans)
    return looks


def _look(cache: ScanCache, pair: Pair) -> Look:
    look = Look(pair)
    for kind, path, read in (("image", pair.image, _scan_image), ("mask", pair.mask, _scan_mask)):
        try:
            setattr(look, kind, cache.get(path) or read(path))
        except UNREADABLE as error:
            says = f"cannot be read ({_why(path, error)})."
            look.findings.append(Finding(f"unreadable {kind}", path, says))
    if look.image and look.mask:
        look.findings += _compare(look)
    return look


def _why(path: Path, error: Exception) -> object:
    """What made a file unreadable, for the reader."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a known image format ({path.stat().st_size} bytes)"
    if isinstance(error, OSError) and error.strerror:
        if path.is_symlink():
            return f"a link that leads nowhere, to {shown(path.readlink())}"
        return error.strerror
    return error


def _scan_image(path: Path) -> FileScan:
    """An image as training sees it."""
    stamp, sha256 = stamp_of(path), sha256_of(path)  # first: a file may be changed meanwhile
    with opened(path) as image:
        stored_deep = image.format != "BMP" and ";16" in str(image.tile)
        orientation = orientation_of(image)
        rgb = to_rgb(image)
        warnings = (*_dropped(image), *_alpha(image))
        deep = {}
        if image.mode.startswith("I"):
            deep["grey"] = int(np.asarray(image).max())
        elif stored_deep:  # a bound: Pillow drops the low byte
            deep["colour"] = max(most for _, most in image.convert("RGB").getextrema()) << 8 | 255
    size = (rgb.height, rgb.width)
    pixels = hashlib.blake2b(repr(size).encode() + rgb.tobytes(), digest_size=16).hexdigest()
    return FileScan(stamp, size, sha256, orientation, warnings, pixels, deep)


def _scan_mask(path: Path) -> FileScan:
    stamp, sha256 = stamp_of(path), sha256_of(path)
    with opened(path) as image:
        orientation = orientation_of(image)
        raw = stored_values(image)
        is_color, colors = image.mode in COLOR, image.getpalette() or []
        warnings = (*_dropped(image), *_unread(image))
    values, pixels = np.unique(raw, return_counts=True)
    counts = dict(zip(values.tolist(), pixels.tolist(), strict=True))
    palette = {i: tuple(colors[3 * i : 3 * i + 3]) for i in counts if 3 * i < len(colors)}
    seen = {"is_color": is_color, "counts": counts, "palette": palette}
    return FileScan(stamp, raw.shape, sha256, orientation, warnings, **seen)


def _dropped(image: Image.Image) -> Iterator[tuple[str, str]]:
    read, stored = len(image.getbands()), 1
    if isinstance(image, TiffImageFile):
        stored = image.tag_v2.get(SAMPLESPERPIXEL, 1)
    if stored > read:
        first = f"the first {read} are" if read > 1 else "the first is"
        hint = "Save those to train on as grey or RGB."
        yield "bands dropped", f"of its {stored} bands only {first} read. {hint}"


def _alpha(image: Image.Image) -> Iterator[tuple[str, str]]:
    """An alpha channel that is none: infrared, or an empty band. A TIFF is read without it, of
    other files it is blended.
    """
    if image.mode in WITH_ALPHA and not is_transparency(image):
        done = "it is not read" if image.format == "TIFF" else "it is blended as transparency"
        why = "varies like an image (infrared?) or is empty"
        yield NO_ALPHA, f"its alpha channel {why}; {done}. Save the image as grey or RGB."


def _unread(image: Image.Image) -> Iterator[tuple[str, str]]:
    """An alpha channel that tells pixels of one colour apart, in a mask."""
    if image.mode in WITH_ALPHA:
        found = image.getcolors(image.width * image.height)
        if len(found) > len({color[:-1] for _, color in found}):
            hint = "Save it without alpha, or the alpha channel as the mask."
            says = "its alpha channel differs where its colour does not, and is not read."
            yield "alpha not read", f"{says} {hint}"


def _compare(look: Look) -> Iterator[Finding]:
    """What is found of a pair whose files can be read."""
    pair, image, mask = look.pair, look.image, look.mask
    a, b = image.orientation, mask.orientation
    words = ["no EXIF orientation" if tag == 1 else f"EXIF orientation {tag}" for tag in (a, b)]
    tags = f"the image has {words[0]}, its mask {words[1]}"
    (height, width), turned = image.size, mask.size[::-1]
    if image.size != mask.size:
        sizes = f"image {width}x{height}, mask {turned[0]}x{turned[1]} pixels"
        says = f"size differs from its image ({sizes})."
        if a != b and image.size == turned:
            says = f"size differs from its image ({sizes} once upright: {tags}). {_SAME_TAG}"
        yield Finding("sizes differ", pair.mask, says)
        return
    for path, read in ((pair.image, image), (pair.mask, mask)):
        for kind, says in read.warnings:
            yield Finding(kind, path, says, "warning")
    if a != b and (height == width or (a >= 5) == (b >= 5)):
        says = (
            f"{tags}; each is turned upright by its own, and the sizes do not "
            f"tell whether they match then. {_SAME_TAG}"
        )
        yield Finding("orientation differs", pair.image, says, "warning")


# ---------------------------------------------------------------------- all files together


def _warn_of_ranges(looks: Collection[Look]) -> None:
    """Add a warning to the look at the brightest 16-bit image, if even this one is dim."""
    for kind in ("grey", "colour"):
        deep = [look for look in looks if kind in look.image.deep]
        if not deep:
            continue
        brightest = max(reversed(deep), key=lambda look: look.image.deep[kind])
        most = brightest.image.deep[kind]
        bits, read = most.bit_length(), round(most / 257) if kind == "grey" else most >> 8
        if 0 < bits <= DIM:
            among = f"{len(deep)} image{'s' * (len(deep) != 1)} stored as 16-bit {kind}"
            says = (
                f"the brightest of {among} uses {bits} bits: its values 0..{most} of 65535 are "
                f"read as 0..{read} of 255. Multiply the values of all by {1 << 16 - bits}, or "
                f"save 8-bit images."
            )
            path = brightest.pair.image
            brightest.findings.append(Finding("range barely used", path, says, "warning"))


def _compare_modes(cfg: Folder, looks: Collection[Look]) -> bool:
    """Whether masks hold colours: as is declared, else as most do. The others are problems, since
    grey and colours cannot share a code.
    """
    is_color = cfg.encoding == "rgb" or cfg.colors is not None
    if cfg.encoding == "auto" and not is_color:
        is_color = 2 * sum(look.mask.is_color for look in looks) > len(looks)
    words = ("grey", "in colour")
    for look in looks:
        if look.mask.is_color is not is_color:
            here, others = words[not is_color], words[is_color]
            says = f"is {here}, where masks are declared, or mostly, {others}."
            look.findings.append(Finding("masks of two kinds", look.pair.mask, says))
    return is_color


def _compare_palettes(looks: Collection[Look]) -> None:
    """Masks whose palette gives an index another colour than most palettes do are problems: the
    index may mean another class there.
    """
    colors = defaultdict(Counter)
    for look in looks:
        for index, color in look.mask.palette.items():
            colors[index][color] += 1
    for look in looks:
        for index, here in look.mask.palette.items():
            [(usual, count)] = colors[index].most_common(1)
            if here != usual:
                others = f"{usual} in {count} other mask{'s' * (count != 1)}"
                says = f"palette differs: index {index} is {here} here and {others}. {_PLAIN}"
                look.findings.append(Finding("palette differs", look.pair.mask, says))
                break


def _unknown(look: Look, code: MaskCode) -> Iterator[Finding]:
    counts = look.mask.counts
    strange = sorted(counts.keys() - code.values.keys())
    if strange:
        found = ", ".join(f"{code.show(v)} in {counts[v]} pixels" for v in strange[:6])
        allowed = ", ".join(code.show(v) for v in sorted(code.values)[:16])
        says = f"labels outside the classes: {found}; allowed: {allowed} ({code.description})."
        yield Finding("unknown label", look.pair.mask, says)
