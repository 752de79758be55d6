"""The data set as training sees it: splits, samples in their views, and batches."""

import math
import signal
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from vitseg.data.augment import CLEAN, crop_box, libraries, make_view
from vitseg.data.folder import Pair, in_brief, read_folder
from vitseg.data.masks import MaskCode, class_map, counted, recounted
from vitseg.data.splits import drawn_by, rarity, shuffled, splits_of
from vitseg.data.synthetic import class_names, generate
from vitseg.draws import NUMERICS, digest_of, seed_for
from vitseg.errors import ConfigError, DataError, VitsegError
from vitseg.images import IGNORE, fit_image, fit_mask, fitted_size
from vitseg.settings import Data, Generated

Key = tuple[str, str]
"""(image name, view name)"""


class Sample(NamedTuple):
    """One view of one image, on the network's canvas. Masks hold class ids, IGNORE where nothing
    counts.
    """

    name: str
    image: Tensor  # (3, H, W) uint8 RGB
    binary_mask: Tensor  # (H, W) int64: 1 is any foreground
    multiclass_mask: Tensor  # (H, W) int64
    original: Tensor  # (h, w) uint8: the multiclass mask at the image's own size
    made_by: str  # what was done to make the view, in a few words


class Batch(NamedTuple):
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
        return counted(self.drawn[1])

    def load(self) -> tuple[Image.Image, np.ndarray]:
        return self.drawn

    def content(self) -> tuple[list[str], list[str]]:
        drawn_from = [self.name, self.cfg.model_dump_json(exclude={"images"})]
        return drawn_from, drawn_from


SourceImage = GeneratedImage | Pair
"""An image where it comes from: the `split` that it lies in, if in any, its `size`, `counts` of
pixels by class id, `load` (the image, and class ids (h, w) uint8), and the `content` that the
pixels of the image, and those of its mask, follow from.
"""


class SegmentationData:
    """All images of a recipe, split. `classes` and `splits` (names by split) are what was found,
    `images` are by name, `masks` says how these are stored.

    `data[name, view]` is a Sample. Raises DataError when anything is wrong with the files.
    """

    def __init__(self, cfg: Data):
        self.cfg, source = cfg, cfg.source
        if isinstance(source, Generated):
            code, self.warnings = MaskCode({}, class_names(source), "generated"), []
            images = [GeneratedImage(source, number) for number in range(source.images)]
        else:
            found = read_folder(source)
            code, images, self.warnings = found.code, found.pairs, in_brief(found.findings)
        self.images: dict[str, SourceImage] = {image.name: image for image in images}
        self.map = class_map(code, cfg.classes)
        self.masks = self.map.description
        self.all_classes = self.classes = self.map.classes
        self._binary = np.zeros(256, np.int64)
        self._binary[list(self.map.foreground)], self._binary[IGNORE] = 1, IGNORE
        self.mode = cfg.mode
        if cfg.mode == "auto":
            self.mode = "binary" if len(self.classes) == 2 else "multiclass"
        if self.mode == "binary":
            if len(self.classes) < 2:
                hint = "The masks hold one class only."
                raise ConfigError("data.mode", cfg.mode, "multiclass", hint)
            if not cfg.score_background:
                hint = "Binary scores are the foreground's anyway."
                raise ConfigError("data.score_background", False, "True", hint)
            self.classes = self.map.binary_classes
        self.splits = splits_of(self.images, cfg, self.counts, self.map.dropping)
        self._rarity = rarity(self.pixels("train")) if cfg.sampler == "rarity" else {}

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
            chunks,
            batch_size=None,
            collate_fn=self._batch,
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

    def _batch(self, keys: list[Key]) -> Batch | VitsegError:
        """The samples of a batch, stacked. An error is a value: raised in a loader's worker it
        would come back inside torch's own traceback.
        """
        try:
            names, images, _, masks, originals, _ = zip(*(self[k] for k in keys), strict=True)
        except VitsegError as error:
            return error
        masks = self.trained(torch.stack(masks))
        return Batch(list(names), torch.stack(images), masks, list(map(self.trained, originals)))

    def fingerprint(self, name: str, view: str) -> tuple[str, str]:
        """Digests of all that a view's pixels, and its mask, follow from: content of the files,
        canvas, augmentation.
        """
        cfg = self.cfg
        place: list[object] = [NUMERICS, PIL.__version__, cfg.size]
        image, mask = self.images[name].content()
        mask = [self.map.table.tobytes().hex(), self.map.foreground, *mask]
        if view != CLEAN:
            made = cfg.augment, cfg.effects, cfg.crop, libraries(cfg.effects)
            place += [*made, cfg.view_seed, name, view]
            if cfg.crop:
                image = [*image, *mask]  # where to crop is for the mask to say
        return digest_of(*place, *image)[:32], digest_of(*place, self.mode, *mask)[:32]

    def digest(self) -> str:
        """A digest of all that training and validation read: names, split, and the content of every
        image and mask.
        """
        views = (
            (part, name, *self.fingerprint(name, CLEAN))
            for part in ("train", "validation")
            for name in self.splits[part]
        )
        return digest_of(*views)[:32]

    def order(self, seed: int, stage: int, epoch: int) -> list[str]:
        """The training images of an epoch, shuffled, or drawn with replacement, as (seed, stage,
        epoch) says.
        """
        purpose = seed, "order", stage, epoch
        if self._rarity:
            return drawn_by(self._rarity, seed_for(*purpose))
        return shuffled(self.splits["train"], *purpose)


def chunked(keys: list[Key], size: int) -> list[list[Key]]:
    """The same in lists of `size`, the last maybe smaller."""
    return [keys[i : i + size] for i in range(0, len(keys), size)]


def _deaf_to_interrupts(worker: int) -> None:
    """A notebook's interrupt reaches every process of the kernel; it is meant for a cell, not for a
    run in the background.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the trainer's process may be holding it back
