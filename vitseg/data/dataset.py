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

from vitseg.data.balance import drawn_by, rarity
from vitseg.data.classes import class_map
from vitseg.data.effects import libraries
from vitseg.data.folder import read_folder
from vitseg.data.generate import class_names, generate
from vitseg.data.look import NO_ALPHA
from vitseg.data.masks import read_raw
from vitseg.data.pairs import Pair, in_brief
from vitseg.data.splits import splits_of
from vitseg.data.views import CLEAN, crop, make_view
from vitseg.draws import NUMERICS, seed_for
from vitseg.errors import ConfigError, DataError, VitsegError
from vitseg.files import sha256_of
from vitseg.images import UNREADABLE, Size, fit_image, fit_mask, fitted_size, open_rgb
from vitseg.settings import Data, Generated

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


class SegmentationData(Dataset[Sample]):
    """All images of a recipe, split. `classes` and `splits` (names by split) are what was found.

    `data[name, view]` is a Sample. Raises DataError when anything is wrong with the files.
    """

    def __init__(self, cfg: Data):
        self.cfg = cfg
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}
        self._drawn: dict[str, tuple[Image.Image, np.ndarray]] = {}
        self.warnings: list[str] = []
        if isinstance(cfg.source, Generated):
            self.pairs: dict[str, Pair] = {}
            stored, self.masks = class_names(cfg.source), "generated"
            placed = dict.fromkeys(f"generated-{i:04d}" for i in range(cfg.source.images))
        else:
            pairs, self.code, looks = read_folder(cfg.source)
            self.pairs, self._looks = (
                {p.name: p for p in pairs},
                {p.name: look for p, look in zip(pairs, looks, strict=True)},
            )
            stored, self.masks = self.code.classes, self.code.description
            self.warnings = in_brief(warning for look in looks for warning in look.warnings)
            placed = {p.name: p.split for p in pairs}
        self.map = class_map(stored, cfg.classes)
        self.all_classes, self.masks = (
            self.map.classes,
            "; ".join(filter(None, (self.masks, self.map.description))),
        )
        dropped = (
            {n for n in placed if not self.map.keeps(self._stored(n))}
            if self.map.dropping
            else frozenset()
        )
        if len(dropped) == len(placed):
            held = " or ".join(cfg.classes.drop_images_with)
            raise DataError(
                f"data.classes.drop_images_with: every image holds one of {held}.", "Leave one out."
            )
        placed = {name: split for name, split in placed.items() if name not in dropped}
        self.splits = splits_of(placed, cfg, lambda name: self.counts(name).keys(), dropped)
        self._rarity = rarity(self.pixels("train")) if cfg.sampler == "rarity" else {}
        if cfg.mode == "binary" and len(self.all_classes) < 2:
            raise ConfigError("data.mode", cfg.mode, "multiclass", "The masks hold one class only.")
        if self.mode == "binary" and not cfg.score_background:
            raise ConfigError(
                "data.score_background", False, "True", "Binary scores are the foreground's anyway."
            )

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
        return self.map.counts(self._stored(name))

    def _stored(self, name: str) -> dict[int, int]:
        """Pixels by the class ids that the mask holds."""
        if isinstance(self.cfg.source, Generated):
            ids, counts = np.unique(self._draw(name)[1], return_counts=True)
            return dict(zip(ids.tolist(), counts.tolist(), strict=True))
        return self.code.counts(self._looks[name].counts)

    def pixels(self, split: str) -> dict[str, dict[int, float]]:
        """Pixels that each trained class takes on the canvas, by image; of the clean view, by its
        share of the image.
        """
        found = {}
        for name in self.splits[split]:
            counts, size = self.counts(name), self._size(name)
            fitted = fitted_size(size, self.cfg.size)
            scale = fitted[0] * fitted[1] / (size[0] * size[1])
            trained = self.map.binary_counts(counts) if self.mode == "binary" else counts
            found[name] = {i: scale * n for i, n in trained.items()}
        return found

    def _size(self, name: str) -> Size:
        source = self.cfg.source
        return (
            (source.side, source.side) if isinstance(source, Generated) else self._looks[name].size
        )

    def _draw(self, name: str) -> tuple[Image.Image, np.ndarray]:
        if name not in self._drawn:
            self._drawn[name] = generate(self.cfg.source, int(name.rpartition("-")[2]))
        return self._drawn[name]

    def load(self, name: str) -> tuple[Image.Image, np.ndarray]:
        """The image as it is, and its class ids (h, w) uint8."""
        if isinstance(self.cfg.source, Generated):
            image, ids = self._draw(name)
            return image, self.map.ids(ids)
        pair = self.pairs[name]
        try:
            image, ids = open_rgb(pair.image), self.code.decode(read_raw(pair.mask))
            if ids.shape != (image.height, image.width):
                raise ValueError("sizes differ")
            return image, self.map.ids(ids)
        except (*UNREADABLE, KeyError) as error:
            raise _changed(pair, error) from None

    def __getitem__(self, key: Key) -> Sample:
        name, view = key
        image, ids = self.load(name)
        seen, seen_ids = crop(image, ids, self.foreground(ids), self.cfg, name, view)
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
        except (
            RuntimeError
        ) as error:  # so says torch when the system has killed a worker; our own errors are values
            if "DataLoader worker" not in str(error):
                raise
            mend = "Often there was too little memory for so many: set workers to 0, or fewer."
            raise DataError(
                f"workers: one of {workers} that load the images was ended from outside.", mend
            ) from None

    def _collate(self, samples: list[Sample | VitsegError]) -> Batch | VitsegError:
        if error := next((s for s in samples if isinstance(s, VitsegError)), None):
            return error
        binary = self.mode == "binary"
        return Batch(
            [s.name for s in samples],
            torch.stack([s.image for s in samples]),
            torch.stack([s.binary_mask if binary else s.multiclass_mask for s in samples]),
            [self.to_binary(s.original) if binary else s.original for s in samples],
        )

    def fingerprint(self, name: str, view: str) -> tuple[str, str]:
        """Digests of all that a view's pixels, and its mask, follow from: content of the files,
        canvas, augmentation.
        """
        cfg, source = self.cfg, self.cfg.source
        place: list[object] = [NUMERICS, PIL.__version__, cfg.size]
        if view != CLEAN:
            place += [
                cfg.augment,
                cfg.effects,
                cfg.crop,
                libraries(cfg.effects),
                cfg.view_seed,
                name,
                view,
            ]
        if isinstance(source, Generated):
            image = mask = [name, source.model_dump_json(exclude={"images"})]
        else:
            pair = self.pairs[name]
            try:
                image, mask = (
                    [self._digest(pair.image)],
                    [self._digest(pair.mask), str(self.code.values)],
                )
                doubts = {warning.kind for warning in self._looks[name].warnings}
                if NO_ALPHA in doubts and pair.image.suffix.lower() in {".tif", ".tiff"}:
                    image += ["alpha not blended"]  # as it once was
            except OSError as error:
                raise _changed(pair, error) from None
        mask = [self.map.table.tobytes().hex(), self.map.foreground, *mask]
        seen = (
            [*image, *mask] if cfg.crop and view != CLEAN else image
        )  # where to crop is for the mask to say
        return _digest(*place, *seen), _digest(*place, self.mode, *mask)

    def digest(self) -> str:
        """A digest of all that training and validation read: names, split, and the content of every
        image and mask.
        """
        parts = ("train", "validation")
        return _digest(
            *(
                (part, name, *self.fingerprint(name, "0"))
                for part in parts
                for name in self.splits[part]
            )
        )

    def _digest(self, path: Path) -> str:
        """SHA-256 of a file, computed again when it has changed."""
        stat = path.stat()
        known = self._digests.get(path)
        if known is None or known[0] != (stat.st_mtime_ns, stat.st_size):
            known = self._digests[path] = ((stat.st_mtime_ns, stat.st_size), sha256_of(path))
        return known[1]

    def distinct_share(self) -> float:
        """How much of the training images an epoch shows at all, as expected: 1 unless they are
        drawn with replacement.
        """
        total, n = sum(self._rarity.values()), len(self._rarity)
        return (
            fmean(1 - (1 - w / total) ** n for w in self._rarity.values()) if self._rarity else 1.0
        )

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
    changed = "changed or vanished since it was first looked at"
    return DataError(
        f"{pair.image} or its mask {pair.mask}: {changed} ({type(error).__name__}: {error})."
    )


def _digest(*words: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, words)).encode()).hexdigest()[:32]
