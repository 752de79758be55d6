"""The data set as training sees it: splits, samples in their views, and batches."""

from __future__ import annotations

import hashlib
import math
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitseg.data.augment import CLEAN, crop_box, libraries, make_view
from vitseg.data.folder import NO_ALPHA, Look, Pair, in_brief, read_folder
from vitseg.data.masks import MaskCode, class_map, read_raw, recounted
from vitseg.data.scan_cache import FileScan, stamp_of
from vitseg.data.splits import Splits, drawn_by, rarity, splits_of
from vitseg.data.synthetic import class_names, generate
from vitseg.draws import NUMERICS, seed_for
from vitseg.errors import ConfigError, DataError, VitsegError
from vitseg.files import sha256_of
from vitseg.images import UNREADABLE, fit_image, fit_mask, fitted_size, open_rgb
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
    made_by: str  # what was done to make the view, in a few words


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples stacked: images (B, 3, H, W) uint8, masks (B, H, W) int64 of the mode that is
    trained.
    """

    names: list[str]
    images: Tensor
    masks: Tensor
    originals: list[Tensor]


class GeneratedImage:
    """A built-in image, drawn when first asked for."""

    split = None

    def __init__(self, cfg: Generated, number: int):
        self.cfg, self.number, self.name = cfg, number, f"generated-{number:04d}"
        self.size = cfg.side, cfg.side

    @cached_property
    def drawn(self) -> tuple[Image.Image, np.ndarray]:
        return generate(self.cfg, self.number)

    def counts(self) -> dict[int, int]:
        found = np.unique(self.drawn[1], return_counts=True)
        return dict(zip(*map(np.ndarray.tolist, found), strict=True))

    def load(self) -> tuple[Image.Image, np.ndarray]:
        return self.drawn

    def content(self) -> tuple[list[str], list[str]]:
        drawn_from = [self.name, self.cfg.model_dump_json(exclude={"images"})]
        return drawn_from, drawn_from


class FolderImage:
    """An image of a folder. Raises DataError where a file was changed since it was looked at."""

    def __init__(self, look: Look, code: MaskCode):
        self.look, self.code, self.pair = look, code, look.pair
        self.split, self.size = look.pair.split, look.image.size

    def counts(self) -> dict[int, int]:
        return recounted(self.look.mask.counts, self.code.values)

    def load(self) -> tuple[Image.Image, np.ndarray]:
        with _unchanged(self.pair):
            image, ids = open_rgb(self.pair.image), self.code.decode(read_raw(self.pair.mask))
            if ids.shape != (image.height, image.width):
                raise ValueError("sizes differ")
        return image, ids

    def content(self) -> tuple[list[str], list[str]]:
        pair, look = self.pair, self.look
        with _unchanged(pair):
            image = [_digest_of(pair.image, look.image)]
            mask = [_digest_of(pair.mask, look.mask), str(self.code.values)]
        kinds = {found.kind for found in look.findings}
        if NO_ALPHA in kinds and pair.image.suffix.lower() in {".tif", ".tiff"}:
            image.append("alpha not blended")  # as it once was
        return image, mask


SourceImage = GeneratedImage | FolderImage
"""An image where it comes from: the `split` that it lies in, if in any, its `size`, `counts` of
pixels by class id, `load` (the image, and class ids (h, w) uint8), and the `content` that the
pixels of the image, and those of its mask, follow from.
"""


def _digest_of(path: Path, scan: FileScan) -> str:
    """SHA-256 of a file, computed again when it has changed since the scan."""
    return scan.sha256 if stamp_of(path) == scan.stamp else sha256_of(path)


class SegmentationData(Dataset[Sample]):
    """All images of a recipe, split. `classes` and `splits` (names by split) are what was found,
    `images` are by name, `masks` says how these are stored.

    `data[name, view]` is a Sample. Raises DataError when anything is wrong with the files.
    """

    def __init__(self, cfg: Data):
        self.cfg, source = cfg, cfg.source
        self.images: dict[str, SourceImage] = {}
        if isinstance(source, Generated):
            classes, masks, self.warnings = class_names(source), "generated", []
            for number in range(source.images):
                image = GeneratedImage(source, number)
                self.images[image.name] = image
        else:
            found = read_folder(source)
            classes, masks = found.code.classes, found.code.description
            looks = found.looks.values()
            self.warnings = in_brief(chain.from_iterable(look.findings for look in looks))
            for look in looks:
                self.images[look.pair.name] = FolderImage(look, found.code)
        self.map = class_map(classes, cfg.classes)
        self.all_classes, self._binary = self.map.classes, self.map.binary_ids()
        self.masks = "; ".join(filter(None, (masks, self.map.description)))
        self.mode, self.classes = cfg.mode, self.all_classes
        if cfg.mode == "auto":
            self.mode = "binary" if len(self.all_classes) == 2 else "multiclass"
        if self.mode == "binary":
            self.classes = self.map.binary_classes()
        if len(self.all_classes) < 2 and cfg.mode == "binary":
            raise ConfigError("data.mode", cfg.mode, "multiclass", "The masks hold one class only.")
        if self.mode == "binary" and not cfg.score_background:
            hint = "Binary scores are the foreground's anyway."
            raise ConfigError("data.score_background", False, "True", hint)
        self.splits = self._split()
        self._rarity = rarity(self.pixels("train")) if cfg.sampler == "rarity" else {}

    def _split(self) -> Splits:
        """Of the images that hold no class of `drop_images_with`."""
        placed, dropped, dropping = {}, set(), self.map.dropping
        for name, image in self.images.items():
            if dropping and dropping & image.counts().keys():
                dropped.add(name)
            else:
                placed[name] = image.split
        if not placed:
            held = " or ".join(self.cfg.classes.drop_images_with)
            says = f"data.classes.drop_images_with: every image holds one of {held}."
            raise DataError(says, "Leave one out.")
        return splits_of(placed, self.cfg, lambda name: self.counts(name).keys(), dropped)

    def counts(self, name: str) -> dict[int, int]:
        """Pixels of an image by class id, ignored ones left out, at its own size."""
        return recounted(self.images[name].counts(), self.map.table)

    def pixels(self, split: str) -> dict[str, dict[int, float]]:
        """Pixels that each trained class takes on the canvas, by image; of the clean view, by its
        share of the image.
        """
        found = {}
        for name in self.splits[split]:
            counts, size = self.counts(name), self.images[name].size
            scale = math.prod(fitted_size(size, self.cfg.size)) / math.prod(size)
            if self.mode == "binary":
                counts = recounted(counts, self._binary)
            found[name] = {i: scale * n for i, n in counts.items()}
        return found

    def load(self, name: str) -> tuple[Image.Image, np.ndarray]:
        """The image as it is, and its class ids (h, w) uint8."""
        image, ids = self.images[name].load()
        return image, self.map.table[ids]

    def __getitem__(self, key: Key) -> Sample:
        name, view = key
        image, ids = self.load(name)
        original = torch.from_numpy(ids)
        box, words = crop_box(self.foreground(ids), self.cfg, name, view), []
        if box:
            words = ["cropped"]
            left, top, right, bottom = box
            image, ids = image.crop(box), ids[top:bottom, left:right]
        fitted = fit_image(image, self.cfg.size), fit_mask(ids, self.cfg.size)
        *pair, done = make_view(*fitted, self.cfg, name, view)
        canvas, mask = map(np.array, pair)
        pixels, multiclass = torch.from_numpy(canvas), torch.from_numpy(mask).long()
        binary, made_by = self.to_binary(multiclass), ", ".join(words + done) or "unchanged"
        return Sample(name, pixels.permute(2, 0, 1), binary, multiclass, original, made_by)

    def to_binary(self, mask: Tensor) -> Tensor:
        """1 for the foreground's classes, 0 for the others; ignored pixels stay ignored."""
        return torch.from_numpy(self._binary)[mask.long()].to(mask.dtype)

    def trained(self, mask: Tensor) -> Tensor:
        """Class ids, as `load` gives them, in the classes that are trained."""
        return self.to_binary(mask) if self.mode == "binary" else mask

    def foreground(self, ids: np.ndarray) -> np.ndarray:
        """Where (h, w) bool the classes are that binary mode looks for, of class ids as `load`
        gives them.
        """
        return self._binary[ids] == 1

    def batches(self, keys: list[Key], size: int, workers: int = 0) -> Iterator[Batch]:
        """Batches of `size` in the order of `keys`; the last may be smaller. The same for any
        number of workers.
        """
        return self.loaded(chunked(keys, size), workers)

    def loaded(self, chunks: list[list[Key]], workers: int = 0) -> Iterator[Batch]:
        """A batch for each chunk of keys."""
        loader = DataLoader(
            self,
            batch_sampler=chunks,
            collate_fn=self._stacked,
            num_workers=workers,
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

    def __getitems__(self, keys: list[Key]) -> list[Sample] | VitsegError:
        """The samples of a batch, as torch asks for them. An error is a value: raised in a loader's
        worker it would come back inside torch's own traceback.
        """
        try:
            return [self[key] for key in keys]
        except VitsegError as error:
            return error

    def _stacked(self, samples: list[Sample] | VitsegError) -> Batch | VitsegError:
        if isinstance(samples, VitsegError):
            return samples
        return Batch(
            [sample.name for sample in samples],
            torch.stack([sample.image for sample in samples]),
            torch.stack([self.trained(sample.multiclass_mask) for sample in samples]),
            [self.trained(sample.original) for sample in samples],
        )

    def fingerprint(self, name: str, view: str) -> tuple[str, str]:
        """Digests of all that a view's pixels, and its mask, follow from: content of the files,
        canvas, augmentation.
        """
        cfg = self.cfg
        place: list[object] = [NUMERICS, PIL.__version__, cfg.size]
        if view != CLEAN:
            place += [cfg.augment, cfg.effects, cfg.crop, libraries(cfg.effects)]
            place += [cfg.view_seed, name, view]
        image, mask = self.images[name].content()
        mask = [self.map.table.tobytes().hex(), self.map.foreground, *mask]
        if cfg.crop and view != CLEAN:
            image = [*image, *mask]  # where to crop is for the mask to say
        return _digest(*place, *image), _digest(*place, self.mode, *mask)

    def digest(self) -> str:
        """A digest of all that training and validation read: names, split, and the content of every
        image and mask.
        """
        return _digest(
            *(
                (part, name, *self.fingerprint(name, CLEAN))
                for part in ("train", "validation")
                for name in self.splits[part]
            )
        )

    def distinct_share(self) -> float:
        """How much of the training images an epoch shows at all, as expected: 1 unless they are
        drawn with replacement.
        """
        if not self._rarity:
            return 1.0
        shares = np.array(list(self._rarity.values())) / sum(self._rarity.values())
        return float(np.mean(1 - (1 - shares) ** len(shares)))

    def order(self, seed: int, stage: int, epoch: int) -> list[str]:
        """The training images of an epoch, shuffled, or drawn with replacement, as (seed, stage,
        epoch) says.
        """
        seed = seed_for(seed, "order", stage, epoch)
        if self._rarity:
            return drawn_by(self._rarity, seed)
        names = list(self.splits["train"])
        random.Random(seed).shuffle(names)
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


@contextmanager
def _unchanged(pair: Pair) -> Iterator[None]:
    """Raises DataError where its files cannot be read as they were when first looked at."""
    try:
        yield
    except (*UNREADABLE, KeyError) as error:
        why = f"changed or vanished since it was first looked at ({type(error).__name__}: {error})."
        raise DataError(f"{pair.image} or its mask {pair.mask}: {why}") from None


def _digest(*words: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, words)).encode()).hexdigest()[:32]
