"""A folder of images and masks in one scan: names, headers, pixels, and all that is wrong.

The check and training read the same scan, so what one refuses the other refuses.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLESPERPIXEL, TiffImageFile

from vitseg.data.masks import (
    COLOR,
    MaskCode,
    find_code,
    refuse_lossy,
    stored_values,
    with_classes_file,
)
from vitseg.data.scan_cache import FileScan, ScanCache, Stamp, stamp_of
from vitseg.errors import DataError
from vitseg.files import sha256_of
from vitseg.images import (
    FLOATS,
    UNREADABLE,
    WITH_ALPHA,
    Header,
    Size,
    header_of,
    is_transparency,
    opened,
    orientation_of,
    to_rgb,
)
from vitseg.settings import Folder
from vitseg.words import shown

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
SPLITS = ("train", "validation", "test")
LAYOUT = (
    "A data set is a folder with images/ and masks/ (same names), or with train/, "
    "validation/, test/ that hold them."
)
NO_ALPHA = "alpha that is no transparency"
DIM = 14
"""Bits that a 16-bit image uses if it is read as the lowest quarter of 0..255."""

OF_A_PAIR = (
    "no mask",
    "no image",
    "unreadable image",
    "unreadable mask",
    "sizes differ",
    "unknown label",
    "masks of two kinds",
    "name that is no text",
    "palette differs",
)
"""Kinds of problems that concern a pair alone, which may be left out."""

_SAME_TAG = (
    "If the mask was drawn on the stored pixels, save it with the image's: mask.save(path, "
    "exif=image.getexif())."
)
_PLAIN = (
    "If its indices are right, save it without one: "
    "Image.fromarray(np.asarray(Image.open(path))).save(path)."
)


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask; `name` is unique in the data set."""

    name: str
    split: str | None
    image: Path
    mask: Path


Rank = Literal["problem", "warning", "note"]


class Finding(NamedTuple):
    """What was found of a file or a folder, in a sentence that begins with its path.

    A problem stops a training, a warning spoils what it says, a note is worth knowing.
    """

    kind: str
    path: Path
    says: str
    rank: Rank = "problem"


def finding(kind: str, path: Path, says: str, rank: Rank = "problem") -> Finding:
    return Finding(kind, path, f"{shown(path)}: {says}", rank)


def of_rank(rank: Rank, findings: Iterable[Finding]) -> list[Finding]:
    return [found for found in findings if found.rank == rank]


def in_brief(findings: Iterable[Finding]) -> list[str]:
    """A sentence for each kind, that of its first file, and how many more files there are."""
    of_kind: dict[str, list[str]] = {}
    for found in findings:
        of_kind.setdefault(found.kind, []).append(found.says)
    sentences = []
    for kind, says in of_kind.items():
        more = f" And {len(says) - 1} more: {kind}." if len(says) > 1 else ""
        sentences.append(says[0] + more)
    return sentences


@dataclass(slots=True)
class Look:
    """What was seen of a pair; without a problem both files have been read whole."""

    pair: Pair
    findings: list[Finding] = field(default_factory=list)
    image: FileScan | None = None
    mask: FileScan | None = None

    @property
    def problems(self) -> list[Finding]:
        return of_rank("problem", self.findings)

    @property
    def color(self) -> bool:
        """Whether the mask's values are colours."""
        return self.mask.header.mode in COLOR


Watch = Callable[[Iterator[Look], str, int], Iterator[Look]]
"""Passes looks on, and shows how many of how many there have been, under a word for what is done.
"""


def unwatched(looks: Iterator[Look], doing: str, count: int) -> Iterator[Look]:
    return looks


@dataclass(slots=True)
class Scan:
    """A folder that has been scanned; `findings` has those of its looks too. `code` is None where
    no code fits the masks, for the reason `unclear`.
    """

    root: Path
    looks: list[Look]
    findings: list[Finding]
    code: MaskCode | None = None
    unclear: DataError | None = None

    @property
    def pairs(self) -> list[Pair]:
        return [look.pair for look in self.looks]

    @property
    def problems(self) -> list[Finding]:
        return of_rank("problem", self.findings)

    @property
    def warnings(self) -> list[Finding]:
        return of_rank("warning", self.findings)

    def without(self, kinds: Collection[str]) -> Scan:
        """The pairs that have no problem of these kinds, and the findings of other kinds."""
        bad, left = set(), []
        for found in self.findings:
            if found.rank == "problem" and found.kind in kinds:
                bad.add(found.path)
            else:
                left.append(found)
        looks = [look for look in self.looks if not {look.pair.image, look.pair.mask} & bad]
        return replace(self, looks=looks, findings=left)


def read_folder(cfg: Folder) -> Scan:
    """The pairs of a folder and the code of their masks; with `cfg.on_problem="skip"` of those that
    are whole.

    Raises DataError with everything that is wrong, not only the first: missing masks, unreadable
    files, sizes that differ, labels outside the classes.
    """
    found = scan(cfg)
    problems = found.problems
    if not problems:
        return found
    if found.unclear and len(problems) == 1:
        raise found.unclear
    if cfg.on_problem == "refuse":
        raise _report(found.root, problems)
    kept = found.without(OF_A_PAIR)
    if kept.problems or not kept.looks:
        raise _report(found.root, kept.problems or problems)
    count = len({problem.path for problem in problems})
    words = f"{count} file{'s' * (count != 1)} with problems and what belongs to them left out"
    code = replace(found.code, description=f"{found.code.description}; {words}")
    return replace(kept, code=code)


def scan(cfg: Folder, watch: Watch = unwatched) -> Scan:
    """Find every pair, look at its files, and say all that is wrong. Raises DataError where there
    is no data set at all.
    """
    root = Path(cfg.path).expanduser()
    pairs, findings = find_pairs(root)
    cfg = with_classes_file(cfg)
    looks = _look_at(root, pairs, watch)
    for look in looks:
        findings += look.findings
    found = Scan(root, looks, findings)
    good = _of_one_kind(cfg, [look for look in looks if not look.problems], findings)
    _compare_palettes(good, findings)
    stored: set[int] = set()
    stems, in_color = [], False
    for look in good:
        stored.update(look.mask.counts)
        stems.append(look.pair.image.stem)
        in_color |= look.color
    try:
        found.code = find_code(cfg, stored, in_color, stems)
    except DataError as error:
        found.unclear = error
        findings.append(Finding("unclear masks", root, str(error)))
        return found
    for look in good:
        findings += _unknown(look, found.code)
    return found


# ---------------------------------------------------------------------- names


def find_pairs(root: Path) -> tuple[list[Pair], list[Finding]]:
    """Images and masks paired by their names, and what is wrong with these. Raises DataError where
    there is no data set, or none that may be read.
    """
    findings: list[Finding] = []
    try:
        if not root.is_dir():
            raise DataError(f"{shown(root)}: there is no such folder.", LAYOUT)
        pairs = _pairs_below(root, findings)
    except OSError as error:
        place = shown(error.filename or root)
        raise DataError(f"{place}: cannot be looked into ({error.strerror}).", LAYOUT) from None
    if not pairs and not of_rank("problem", findings):
        raise DataError(f"{shown(root)}: no image found.", LAYOUT)
    return pairs, findings


def _pairs_below(root: Path, findings: list[Finding]) -> list[Pair]:
    pairs = []
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if splits:
        says = f"no split of that name; it is called one of {', '.join(SPLITS)}."
        findings += [finding("split by another name", p, says) for p in _strange_splits(root)]
    for split in splits or [None]:
        place = root / (split or "")
        for kind in ("images", "masks"):
            if not (place / kind).is_dir():
                raise DataError(f"{shown(place)}: there is no {kind}/ in it.", LAYOUT)
        images = _by_stem(place / "images", root, findings)
        masks = _by_stem(place / "masks", root, findings)
        if images is None or masks is None:
            continue
        findings += _alone("mask", images, masks)
        findings += _alone("image", masks, images)
        for stem in sorted(images.keys() & masks.keys()):
            name = f"{split}/{stem}" if split else stem
            pairs.append(Pair(name, split, images[stem], masks[stem]))
    return pairs


def _strange_splits(root: Path) -> list[Path]:
    """Folders beside train/ that look like a split, such as val/, or like a whole data set."""
    whole = [root / kind for kind in ("images", "masks") if (root / kind).is_dir()]
    others = [path for path in sorted(root.iterdir()) if path.name not in SPLITS]
    return whole + [path for path in others if path.is_dir() and (path / "images").is_dir()]


def _by_stem(folder: Path, root: Path, findings: list[Finding]) -> dict[str, Path] | None:
    """Image files by name without suffix; None where the folder may not be read. Passes over hidden
    files and other kinds.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        says = f"cannot be looked into ({error.strerror})."
        findings.append(finding("unreadable folder", folder, says))
        return None
    paths, others = [], []
    for path in entries:
        is_image = path.suffix.lower() in SUFFIXES
        if is_image and _is_text(path.name):
            paths.append(path)
            continue
        others.append(path)
        if is_image:
            says = "its name is no text in UTF-8; give it another."
            findings.append(finding("name that is no text", path, says))
    findings += _twice(folder, paths)
    findings += _leading_out(root, [folder, *paths])
    says = "is not looked into: images and masks lie side by side."
    for path in others:
        if path.is_dir():
            findings.append(finding("folder within", path, says, "warning"))
    return {path.stem: path for path in paths}


def _twice(folder: Path, paths: list[Path]) -> Iterator[Finding]:
    """Files whose names are one without their suffix, or would be on a disk that makes no
    difference between capitals.
    """
    alike: dict[str, list[Path]] = {}
    for path in paths:
        alike.setdefault(_alike(path.stem), []).append(path)
    for _, files in sorted(alike.items()):
        if len(files) > 1:
            aside = ", capitals aside" if len({path.stem for path in files}) > 1 else ""
            name = f"{shown(files[0].stem)}.*{aside}"
            listed = ", ".join(shown(path.name) for path in files)
            says = f"{shown(folder)}: more than one file is named {name}: {listed}."
            yield Finding("one name twice", files[0], says)


def _leading_out(root: Path, paths: list[Path]) -> Iterator[Finding]:
    for path in paths:
        if path.is_symlink() and path.exists():
            end = path.resolve()
            if not end.is_relative_to(root.resolve()):
                says = f"a link to {shown(end)}, outside the data set's folder."
                yield finding("link that leads out", path, says, "warning")


def _alone(kind: str, here: dict[str, Path], other: dict[str, Path]) -> Iterator[Finding]:
    alike = {_alike(stem): path for stem, path in other.items() if stem not in here}
    for stem in sorted(here.keys() - other.keys()):
        near, hint = alike.get(_alike(stem)), ""
        if near:
            hint = f" {near.name} differs in capitals, or in how its letters are encoded."
        yield finding(f"no {kind}", here[stem], f"no {kind} of that name in {kind}s/.{hint}")


def _alike(stem: str) -> str:
    """The same for names that some file systems take for one."""
    return unicodedata.normalize("NFC", stem).casefold()


def _is_text(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)  # what Python makes of other bytes


# ---------------------------------------------------------------------- files


def _look_at(root: Path, pairs: list[Pair], watch: Watch) -> list[Look]:
    """A look at each pair: first at all headers, then, on all cores, at the pixels of every file
    whose header is whole and that is not cached.
    """
    cache = ScanCache(root)
    with ThreadPoolExecutor() as pool:
        heads = pool.map(lambda pair: by_header(pair, cache), pairs)
        looks = list(watch(heads, "headers", len(pairs)))
        looks = list(watch(pool.map(_by_pixels, looks), "pixels", len(pairs)))
    scans: dict[Path, FileScan | None] = {}
    for look in looks:
        scans |= {look.pair.image: look.image, look.pair.mask: look.mask}
    cache.save(scans)
    _warn_of_ranges([look for look in looks if not look.problems])
    return looks


def by_header(pair: Pair, cache: ScanCache) -> Look:
    """What can be told before a pixel is decoded."""
    look = Look(pair, image=cache.get(pair.image), mask=cache.get(pair.mask))
    image = mask = None
    try:
        image = look.image.header if look.image else header_of(pair.image)
        if image.mode == "F":
            raise ValueError(FLOATS)
    except UNREADABLE as error:
        look.findings.append(_unreadable(pair.image, "image", error))
    try:
        mask = look.mask.header if look.mask else header_of(pair.mask)
        refuse_lossy(pair.mask, mask.format, mask.mode)
    except (*UNREADABLE, DataError) as error:
        look.findings.append(_unreadable(pair.mask, "mask", error))
    if image and mask and image.size != mask.size and not _may_be_turned(image, mask):
        tags = image.orientation, mask.orientation
        look.findings.append(_sizes(pair, image.size, mask.size, tags))
    return look


def _by_pixels(look: Look) -> Look:
    """The look, completed by the pixels of what has no problem yet."""
    pair = look.pair
    bad = {found.path for found in look.findings}
    try:
        if look.image is None and pair.image not in bad:
            look.image = _scan_image(pair.image)
    except UNREADABLE as error:
        look.findings.append(_unreadable(pair.image, "image", error))
    try:
        if look.mask is None and pair.mask not in bad:
            look.mask = _scan_mask(pair.mask)
    except (*UNREADABLE, DataError) as error:
        look.findings.append(_unreadable(pair.mask, "mask", error))
    if look.findings:
        return look
    image, mask = look.image, look.mask
    tags = image.orientation, mask.orientation
    if image.size != mask.size:
        look.findings.append(_sizes(pair, image.size, mask.size, tags))
        return look
    for path, read in ((pair.image, image), (pair.mask, mask)):
        for kind, says in read.warnings:
            look.findings.append(finding(kind, path, says, "warning"))
    square = image.size[0] == image.size[1]
    if tags[0] != tags[1] and (square or (tags[0] >= 5) == (tags[1] >= 5)):
        says = (
            f"{_orientations(tags)}; each is turned upright by its own, and the sizes do not "
            f"tell whether they match then. {_SAME_TAG}"
        )
        look.findings.append(finding("orientation differs", pair.image, says, "warning"))
    return look


def _scan_image(path: Path) -> FileScan:
    """An image as training sees it."""
    start = _start(path)
    with opened(path) as image:
        stored_deep = image.format in {"PNG", "TIFF"} and ";16" in str(image.tile)
        is_deep = stored_deep or image.mode.startswith("I")
        orientation = orientation_of(image)
        rgb = to_rgb(image)
        warnings = (*_dropped(image), *_alpha(image))
        deep = _largest(image) if is_deep else None
    size = (rgb.height, rgb.width)
    pixels = hashlib.blake2b(repr(size).encode() + rgb.tobytes(), digest_size=16).hexdigest()
    return FileScan(*start, size, orientation, warnings, pixels=pixels, deep=deep)


def _scan_mask(path: Path) -> FileScan:
    start = _start(path)
    with opened(path) as image:
        refuse_lossy(path, image.format, image.mode)
        orientation = orientation_of(image)
        raw = stored_values(path, image)
        colors = image.getpalette() if image.mode == "P" else []
        warnings = (*_dropped(image), *_unread(image))
    counts = _counted(raw)
    palette = {i: tuple(colors[3 * i : 3 * i + 3]) for i in counts if 3 * i < len(colors)}
    return FileScan(*start, raw.shape, orientation, warnings, counts=counts, palette=palette)


def _start(path: Path) -> tuple[Stamp, str, Header]:
    """Before the pixels: a file that is changed while it is read has another stamp then."""
    return stamp_of(path), sha256_of(path), header_of(path)


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
    if image.mode not in {"LA", "RGBA"} or len(image.getchannel("A").getcolors()) == 1:
        return
    found = [color for _, color in image.getcolors(image.width * image.height)]
    if len(found) > len({color[:-1] for color in found}):
        hint = "Save it without alpha, or the alpha channel as the mask."
        says = "its alpha channel differs where its colour does not, and is not read."
        yield "alpha not read", f"{says} {hint}"


def _largest(image: Image.Image) -> tuple[str, int]:
    """How an image of more than 8 bits is stored, and its largest value; of colours a bound: Pillow
    drops the low byte.
    """
    if image.mode.startswith("I"):
        return "grey", int(np.asarray(image).max())
    ranges = zip(image.getbands(), image.getextrema(), strict=True)
    return "colour", max(most for band, (_, most) in ranges if band != "A") << 8 | 255


def _counted(raw: np.ndarray) -> dict[int, int]:
    """How many pixels hold which value."""
    if raw.min() >= 0 and raw.max() < 65536:  # all but colours; many times as fast as sorting them
        counts = np.bincount(raw.ravel())
        values = counts.nonzero()[0]
        counts = counts[values]
    else:
        values, counts = np.unique(raw, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _may_be_turned(image: Header, mask: Header) -> bool:
    """Whether sizes may agree once upright: a PNG may say behind its pixels which way is up."""
    return image.size == mask.size[::-1] and "PNG" in {image.format, mask.format}


def _unreadable(path: Path, kind: str, error: Exception) -> Finding:
    if isinstance(error, DataError):
        return Finding(f"unreadable {kind}", path, str(error))
    why: object = error
    if isinstance(error, UnidentifiedImageError):
        why = "no image of a known kind" if path.stat().st_size else "it is empty"
    elif isinstance(error, OSError) and error.strerror:
        why = error.strerror
        if path.is_symlink():
            why = f"a link that leads nowhere, to {shown(path.readlink())}"
    what = {"image": "an image", "mask": "a mask"}[kind]
    return finding(f"unreadable {kind}", path, f"cannot be read as {what} ({why}).")


def _sizes(pair: Pair, image: Size, mask: Size, tags: tuple[int, int]) -> Finding:
    sizes = f"image {image[1]}x{image[0]}, mask {mask[1]}x{mask[0]} pixels"
    says = f"size differs from its image ({sizes})."
    if image == mask[::-1] and tags[0] != tags[1]:
        says = f"{says[:-2]} once upright: {_orientations(tags)}). {_SAME_TAG}"
    return finding("sizes differ", pair.mask, says)


def _orientations(tags: tuple[int, int]) -> str:
    words = ["no EXIF orientation" if tag == 1 else f"EXIF orientation {tag}" for tag in tags]
    return f"the image has {words[0]}, its mask {words[1]}"


# ---------------------------------------------------------------------- all files together


def _warn_of_ranges(looks: list[Look]) -> None:
    """Add a warning to the look at the brightest 16-bit image, if even this one is dim."""
    for kind in ("grey", "colour"):
        deep = [look for look in looks if look.image.deep and look.image.deep[0] == kind]
        brightest = max(reversed(deep), key=lambda look: look.image.deep[1], default=None)
        most = brightest.image.deep[1] if brightest else 0
        bits, read = most.bit_length(), most >> 8
        if kind == "grey":
            read = round(most / 257)
        if 0 < bits <= DIM:
            among = f"{len(deep)} image{'s' * (len(deep) != 1)} stored as 16-bit {kind}"
            says = (
                f"the brightest of {among} uses {bits} bits: its values 0..{most} of 65535 are "
                f"read as 0..{read} of 255. Multiply the values of all by {1 << 16 - bits}, or "
                f"save 8-bit images."
            )
            path = brightest.pair.image
            brightest.findings.append(finding("range barely used", path, says, "warning"))


def _of_one_kind(cfg: Folder, good: list[Look], findings: list[Finding]) -> list[Look]:
    """Masks in colour and masks in grey cannot share a code: those of the kind that was not
    declared, else of the rarer one, are problems.
    """
    words = ("grey", "in colour")
    if cfg.encoding == "rgb" or cfg.colors is not None:
        color, why = True, "colours are declared"
    elif cfg.encoding != "auto":
        color, why = False, f"encoding={cfg.encoding!r} is declared"
    else:
        color = 2 * sum(look.color for look in good) > len(good)
        why = f"other masks are {words[color]}"
    says = f"is {words[not color]}, where {why}."
    same = []
    for look in good:
        if look.color is color:
            same.append(look)
        else:
            findings.append(finding("masks of two kinds", look.pair.mask, says))
    return same


def _compare_palettes(good: list[Look], findings: list[Finding]) -> None:
    """Masks whose palette gives an index another colour than most palettes do are problems: the
    index may mean another class there.
    """
    colors: dict[int, Counter[tuple[int, ...]]] = {}
    for look in good:
        for index, color in look.mask.palette.items():
            colors.setdefault(index, Counter())[color] += 1
    usual = {index: counts.most_common(1)[0] for index, counts in colors.items()}
    for look in good:
        for index, here in sorted(look.mask.palette.items()):
            color, count = usual[index]
            if here != color:
                others = f"{color} in {count} other mask{'s' * (count != 1)}"
                says = f"palette differs: index {index} is {here} here and {others}. {_PLAIN}"
                findings.append(finding("palette differs", look.pair.mask, says))
                break


def _unknown(look: Look, code: MaskCode) -> Iterator[Finding]:
    counts = look.mask.counts
    strange = code.unknown(set(counts))
    if strange:
        found = ", ".join(f"{code.show(v)} in {counts[v]} pixels" for v in strange[:6])
        allowed = ", ".join(code.show(v) for v in sorted(code.values)[:16])
        says = f"labels outside the classes: {found}; allowed: {allowed} ({code.description})."
        yield finding("unknown label", look.pair.mask, says)


def _report(root: Path, problems: list[Finding]) -> DataError:
    lines = [f"{shown(root)}: {len(problems)} problem{'s' * (len(problems) > 1)}."]
    lines += [problem.says for problem in problems[:20]]
    if len(problems) > 20:
        lines.append(f"... and {len(problems) - 20} more.")
    declare = ""
    if any("classes" in problem.says for problem in problems):
        declare = ", or declare the classes in classes.json"
    return DataError("\n  ".join(lines), f"\nMend or remove these files{declare}.")
