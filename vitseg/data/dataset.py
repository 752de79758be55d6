"""The data set as training sees it: splits, samples in their views, and batches."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitseg.data.augment import CLEAN, crop, libraries, make_view
from vitseg.data.folder import NO_ALPHA, Pair, in_brief, read_folder
from vitseg.data.masks import class_map, read_raw, recounted
from vitseg.data.scan_cache import FileScan, stamp_of
from vitseg.data.splits import drawn_by, rarity, splits_of
from vitseg.data.synthetic import class_names, generate
from vitseg.draws import NUMERICS, seed_for
from vitseg.errors import ConfigError, DataError, VitsegError
from vitseg.files import sha256_of
from vitseg.images import UNREADABLE, Size, fit_image, fit_mask, fitted_size, open_rgb
from vitseg.settings import Data, Folder, Generated

Key = tuple[str, str]
"""(image name, view name)"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One view of one image, on the network's canvas. Masks hold class ids, IGNORE where nothing
    counts.
    """

    name: str
    image: Tensor  # (3, H, W) uint8 RGB
    binary_mask: Tensor  # (H, W) int64: 1 is any foreground
    multiclass_mask: Tensor  # (H, W) int64
    original: Tensor  # (h, w) uint8: the multiclass mask at the image's own size


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples stacked: images (B, 3, H, W) uint8, masks (B, H, W) int64 of the mode that is
    trained.
    """

    names: list[str]
    images: Tensor
    masks: Tensor
    originals: list[Tensor]


class GeneratedSource:
    """The built-in images, drawn when first asked for."""

    masks = "generated"

    def __init__(self, cfg: Generated):
        self.cfg, self.classes = cfg, class_names(cfg)
        self.splits = dict.fromkeys(f"generated-{i:04d}" for i in range(cfg.images))
        self.pairs, self.warnings = {}, []
        self._drawn: dict[str, tuple[Image.Image, np.ndarray]] = {}

    def size(self, name: str) -> Size:
        return self.cfg.side, self.cfg.side

    def counts(self, name: str) -> dict[int, int]:
        ids, counts = np.unique(self.load(name)[1], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def load(self, name: str) -> tuple[Image.Image, np.ndarray]:
        if name not in self._drawn:
            self._drawn[name] = generate(self.cfg, int(name.rpartition("-")[2]))
        return self._drawn[name]

    def content(self, name: str) -> tuple[list[str], list[str]]:
        drawn_from = [name, self.cfg.model_dump_json(exclude={"images"})]
        return drawn_from, drawn_from


class FolderSource:
    """The pairs of a folder. Raises DataError when anything is wrong with the files."""

    def __init__(self, cfg: Folder):
        found = read_folder(cfg)
        self.code, self.classes = found.code, found.code.classes
        self.masks = found.code.description
        self._looks = {look.pair.name: look for look in found.looks}
        self.pairs = {pair.name: pair for pair in found.pairs}
        self.splits = {pair.name: pair.split for pair in found.pairs}
        self.warnings = in_brief(warning for look in found.looks for warning in look.findings)

    def size(self, name: str) -> Size:
        return self._looks[name].image.size

    def counts(self, name: str) -> dict[int, int]:
        return recounted(self._looks[name].mask.counts, self.code.values)

    def load(self, name: str) -> tuple[Image.Image, np.ndarray]:
        pair = self.pairs[name]
        try:
            image, ids = open_rgb(pair.image), self.code.decode(read_raw(pair.mask))
            if ids.shape != (image.height, image.width):
                raise ValueError("sizes differ")
        except (*UNREADABLE, KeyError) as error:
            raise _changed(pair, error) from None
        return image, ids

    def content(self, name: str) -> tuple[list[str], list[str]]:
        pair, look = self.pairs[name], self._looks[name]
        try:
            image = [_digest_of(pair.image, look.image)]
            mask = [_digest_of(pair.mask, look.mask), str(self.code.values)]
        except OSError as error:
            raise _changed(pair, error) from None
        kinds = {found.kind for found in look.findings}
        if NO_ALPHA in kinds and pair.image.suffix.lower() in {".tif", ".tiff"}:
            image.append("alpha not blended")  # as it once was
        return image, mask


Source = GeneratedSource | FolderSource
"""Where images come from. `classes` are those of the masks, `masks` says how these are stored,
`splits` where each image lies, if in any. By an image's name: its `size`, `counts` of pixels by
class id, `load` (the image, and class ids (h, w) uint8), and the `content` that the pixels of the
image, and those of its mask, follow from.
"""


def _digest_of(path: Path, scan: FileScan) -> str:
    """SHA-256 of a file, computed again when it has changed since the scan."""
    return scan.sha256 if stamp_of(path) == scan.stamp else sha256_of(path)


class SegmentationData(Dataset[Sample]):
    """All images of a recipe, split. `classes` and `splits` (names by split) are what was found.

    `data[name, view]` is a Sample. Raises DataError when anything is wrong with the files.
    """

    def __init__(self, cfg: Data):
        self.cfg = cfg
        kind = GeneratedSource if isinstance(cfg.source, Generated) else FolderSource
        self.source: Source = kind(cfg.source)
        self.pairs, self.warnings = self.source.pairs, self.source.warnings
        self.map = class_map(self.source.classes, cfg.classes)
        self.all_classes = self.map.classes
        self.masks = "; ".join(filter(None, (self.source.masks, self.map.description)))
        kept, dropped = self._kept()
        self.splits = splits_of(kept, cfg, lambda name: self.counts(name).keys(), dropped)
        self._rarity = rarity(self.pixels("train")) if cfg.sampler == "rarity" else {}
        if cfg.mode == "binary" and len(self.all_classes) < 2:
            raise ConfigError("data.mode", cfg.mode, "multiclass", "The masks hold one class only.")
        if self.mode == "binary" and not cfg.score_background:
            hint = "Binary scores are the foreground's anyway."
            raise ConfigError("data.score_background", False, "True", hint)

    def _kept(self) -> tuple[dict[str, str | None], set[str]]:
        """Where the images lie that hold no class of `drop_images_with`, and the names of the
        others.
        """
        kept, dropped = dict(self.source.splits), set()
        if self.map.dropping:
            dropped = {n for n in kept if not self.map.dropping.isdisjoint(self.source.counts(n))}
        for name in dropped:
            del kept[name]
        if not kept:
            held = " or ".join(self.cfg.classes.drop_images_with)
            says = f"data.classes.drop_images_with: every image holds one of {held}."
            raise DataError(says, "Leave one out.")
        return kept, dropped

    @property
    def mode(self) -> str:
        """Which mask is trained. "auto" is binary when there are two classes."""
        if self.cfg.mode != "auto":
            return self.cfg.mode
        return "binary" if len(self.all_classes) == 2 else "multiclass"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are trained."""
        return self.all_classes if self.mode == "multiclass" else self.map.binary_classes()

    def counts(self, name: str) -> dict[int, int]:
        """Pixels of an image by class id, ignored ones left out, at its own size."""
        return recounted(self.source.counts(name), self.map.table)

    def pixels(self, split: str) -> dict[str, dict[int, float]]:
        """Pixels that each trained class takes on the canvas, by image; of the clean view, by its
        share of the image.
        """
        found = {}
        for name in self.splits[split]:
            counts, size = self.counts(name), self.source.size(name)
            fitted = fitted_size(size, self.cfg.size)
            scale = fitted[0] * fitted[1] / (size[0] * size[1])
            if self.mode == "binary":
                counts = recounted(counts, self.map.binary_ids())
            found[name] = {i: scale * n for i, n in counts.items()}
        return found

    def load(self, name: str) -> tuple[Image.Image, np.ndarray]:
        """The image as it is, and its class ids (h, w) uint8."""
        image, ids = self.source.load(name)
        return image, self.map.table[ids]

    def __getitem__(self, key: Key) -> Sample:
        name, view = key
        image, ids = self.load(name)
        seen, seen_ids = crop((image, ids), self.foreground(ids), self.cfg, name, view)
        canvas, mask = fit_image(seen, self.cfg.size), fit_mask(seen_ids, self.cfg.size)
        canvas, mask = make_view(canvas, mask, self.cfg, name, view)
        multiclass = torch.from_numpy(np.array(mask)).long()
        return Sample(
            name,
            torch.from_numpy(np.array(canvas)).permute(2, 0, 1),
            self.to_binary(multiclass),
            multiclass,
            torch.from_numpy(np.array(ids)),
        )

    def to_binary(self, mask: Tensor) -> Tensor:
        """1 for the foreground's classes, 0 for the others; ignored pixels stay ignored."""
        return torch.from_numpy(self.map.binary_ids())[mask.long()].to(mask.dtype)

    def foreground(self, ids: np.ndarray) -> np.ndarray:
        """Where (h, w) bool the classes are that binary mode looks for, of class ids as `load`
        gives them.
        """
        return self.map.binary_ids()[ids] == 1

    def trained(self, ids: np.ndarray) -> np.ndarray:
        """Class ids (h, w) uint8, as `load` gives them, in the classes that are trained."""
        return self.map.binary_ids()[ids].astype(np.uint8) if self.mode == "binary" else ids

    def batches(self, keys: list[Key], size: int, workers: int = 0) -> Iterator[Batch]:
        """Batches of `size` in the order of `keys`; the last may be smaller. The same for any
        number of workers.
        """
        return self.loaded(chunked(keys, size), workers)

    def loaded(self, chunks: list[list[Key]], workers: int = 0) -> Iterator[Batch]:
        """A batch for each chunk of keys."""
        loader = DataLoader(
            _Guarded(self),
            batch_sampler=chunks,
            num_workers=workers,
            collate_fn=self._collate,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global one
            worker_init_fn=_deaf_to_interrupts,
        )
        try:
            for batch in loader:
                if isinstance(batch, VitsegError):
                    raise batch
                yield batch
        except RuntimeError as error:  # so torch says that a worker was killed; ours are values
            if "DataLoader worker" not in str(error):
                raise
            says = f"workers: one of {workers} that load the images was ended from outside."
            hint = "Often there was too little memory for so many: set workers to 0, or fewer."
            raise DataError(says, hint) from None

    def _collate(self, samples: list[Sample | VitsegError]) -> Batch | VitsegError:
        names, images, masks, originals = [], [], [], []
        for sample in samples:
            if isinstance(sample, VitsegError):
                return sample
            mask, original = sample.multiclass_mask, sample.original
            if self.mode == "binary":
                mask, original = sample.binary_mask, self.to_binary(original)
            names.append(sample.name)
            images.append(sample.image)
            masks.append(mask)
            originals.append(original)
        return Batch(names, torch.stack(images), torch.stack(masks), originals)

    def fingerprint(self, name: str, view: str) -> tuple[str, str]:
        """Digests of all that a view's pixels, and its mask, follow from: content of the files,
        canvas, augmentation.
        """
        cfg = self.cfg
        place: list[object] = [NUMERICS, PIL.__version__, cfg.size]
        if view != CLEAN:
            place += [cfg.augment, cfg.effects, cfg.crop, libraries(cfg.effects)]
            place += [cfg.view_seed, name, view]
        image, mask = self.source.content(name)
        mask = [self.map.table.tobytes().hex(), self.map.foreground, *mask]
        if cfg.crop and view != CLEAN:
            image = [*image, *mask]  # where to crop is for the mask to say
        return _digest(*place, *image), _digest(*place, self.mode, *mask)

    def digest(self) -> str:
        """A digest of all that training and validation read: names, split, and the content of every
        image and mask.
        """
        words: list[object] = []
        for part in ("train", "validation"):
            names = self.splits[part]
            words += [(part, name, *self.fingerprint(name, CLEAN)) for name in names]
        return _digest(*words)

    def distinct_share(self) -> float:
        """How much of the training images an epoch shows at all, as expected: 1 unless they are
        drawn with replacement.
        """
        if not self._rarity:
            return 1.0
        total, n = sum(self._rarity.values()), len(self._rarity)
        return fmean(1 - (1 - weight / total) ** n for weight in self._rarity.values())

    def order(self, seed: int, stage: int, epoch: int) -> list[str]:
        """The training images of an epoch, shuffled, or drawn with replacement, as (seed, stage,
        epoch) says.
        """
        if self._rarity:
            return drawn_by(self._rarity, seed_for(seed, "order", stage, epoch))
        names = list(self.splits["train"])
        random.Random(seed_for(seed, "order", stage, epoch)).shuffle(names)
        return names


def chunked(keys: list[Key], size: int) -> list[list[Key]]:
    """The same in lists of `size`, the last maybe smaller."""
    return [keys[i : i + size] for i in range(0, len(keys), size)]


def _deaf_to_interrupts(worker: int) -> None:
    """A notebook's interrupt reaches every process of the kernel; it is meant for a cell, not for a
    run in the background.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the trainer's process may be holding it back


class _Guarded(Dataset["Sample | VitsegError"]):
    """Hands errors over as values: raised in a loader's worker, they would come back inside torch's
    own traceback.
    """

    def __init__(self, data: SegmentationData):
        self.data = data

    def __getitem__(self, key: Key) -> Sample | VitsegError:
        try:
            return self.data[key]
        except VitsegError as error:
            return error


def _changed(pair: Pair, error: Exception) -> DataError:
    why = f"changed or vanished since it was first looked at ({type(error).__name__}: {error})."
    return DataError(f"{pair.image} or its mask {pair.mask}: {why}")


def _digest(*words: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, words)).encode()).hexdigest()[:32]
