"""What the frozen blocks make of a view, computed once: afterwards it is read from the cache, the
same bits.

A row of the cache is one level of one view, under the digest of all that it follows from: the
weights up to that level, the image, the view, the machine. So training a block makes nothing stale
below it, and a changed image concerns its own rows alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from vitseg.data.augment import CLEAN
from vitseg.data.dataset import Batch, Key
from vitseg.draws import NUMERICS, digest_of
from vitseg.errors import FeatureBreach
from vitseg.model.encoder import Levels
from vitseg.model.freeze import EMBEDDINGS
from vitseg.training.cache import encoder_folder
from vitseg.training.job import Job

View = dict[int, dict[str, Tensor]]
"""What is cached of a view, as the cache has it: "tokens" (N, D) by level; and at _MASK its "mask"
(H, W) uint8, and the "original" mask at the image's own size.
"""
Places = dict[int, tuple[str, str]]
"""The group and the row of each part of a view in the cache."""
_MASK = -1


class FeatureBatch(NamedTuple):
    """What the suffix of a model starts from, on its device: levels (B, N, D), and masks (B, H, W)
    int64 of the mode that is trained.
    """

    names: list[str]
    levels: Levels
    masks: Tensor
    originals: list[Tensor]


class Features:
    """The frozen part of a job's model, as a stage sees it: for `training` under autocast, to be
    scored in full precision. `hashes` are those of its parts (`AuditReport.hashes`).

    Where the job has a cache, views are cached as they are computed and read from then on; without
    it, or without hashes, every pass computes. Both give the same bits on the CPU. `seen` and
    `computed` count the views of the last pass.
    """

    def __init__(self, job: Job, hashes: dict[str, str] | None = None, *, training: bool = False):
        self.recipe, self.model, self.cache, self.data = job.recipe, job.model, job.cache, job.data
        self.machine = job.machine if training else job.machine._replace(precision="fp32")
        self.training, self.cut = training, self.model.encoder.cut
        skips = {depth for depth in self.model.shape.skip_depths if depth < self.cut}
        self.levels = skips | {self.cut}
        self.groups = self._groups(hashes) if hashes and self.cache else []
        self.seen = self.computed = 0
        self._trusted, self._check = False, True

    def batches(self, chunks: list[list[Key]]) -> Iterator[FeatureBatch]:
        """A batch for each chunk of keys.

        One view that is read is computed as well: in each pass of a training, else in the first.
        Raises FeatureBreach if they differ.
        """
        self.seen = self.computed = 0
        self._check = self._check or self.training
        missing = self.missing(chunks)
        pixels = self.data.loaded([keys for keys in missing if keys], self.recipe.workers)
        for chunk, keys in zip(chunks, missing, strict=True):
            self.machine.settle()  # another cell may have asked for other threads
            views = self._compute(keys, next(pixels)) if keys else {}
            views |= self._read([key for key in chunk if key not in views])
            self.seen += len(chunk)
            shown = [views[key] for key in chunk]
            masks = torch.stack([view[_MASK]["mask"] for view in shown])
            yield FeatureBatch(
                [name for name, _ in chunk],
                {level: self._stack(shown, level) for level in self.levels},
                masks.to(self.machine.device, torch.int64),
                [view[_MASK]["original"] for view in shown],
            )

    @property
    def note(self) -> str:
        """Why no views are cached, if they were to be."""
        reason = self.cache.why_not if self.cache else ""
        return f"Features are not kept: {reason}." if reason else ""

    def missing(self, chunks: list[list[Key]]) -> list[list[Key]]:
        """The views of each chunk that have to be computed from pixels. One that comes again is
        read then, if it is cached by then.
        """
        missing, coming = [], set[Key]()
        for chunk in chunks:
            new = [k for k in dict.fromkeys(chunk) if k not in coming and not self._start(k)]
            coming.update(filter(self._places, new))
            missing.append(new)
        return missing

    # ---- computing

    def _compute(self, keys: list[Key], batch: Batch) -> dict[Key, View]:
        """Views from pixels. They are cached only where a view does not depend on the batch that it
        was computed in.

        Measured: with fewer than 17 tokens, or an odd width, all of a batch's views differ from
        those alone, or none.
        """
        views = dict(zip(keys, self._prefix(batch), strict=True))
        self.computed += len(keys)
        if self.groups and not self._trusted:
            self._trusted = True
            if not self._same(keys[0], views[keys[0]], times=1 + (len(keys) == 1)):
                self.groups = []
                self.cache.why_not = "this encoder gives a view other features in another batch"
        self._write(views)
        return views

    def _prefix(self, batch: Batch) -> list[View]:
        views = []
        for mask, original in zip(batch.masks, batch.originals, strict=True):
            views.append({_MASK: {"mask": mask.to(torch.uint8), "original": original}})
        with self.machine.autocast():
            self._add(views, self.model.prefix(batch.images.to(self.machine.device)))
        return views

    def _stack(self, views: list[View], level: int) -> Tensor:
        device = self.machine.device
        return torch.stack([view[level]["tokens"].to(device, torch.float32) for view in views])

    def _add(self, views: list[View], levels: Levels) -> None:
        """Hand each view its part of the levels, rounded where the recipe says so."""
        for level, tokens in levels.items():
            for view, own in zip(views, tokens.float(), strict=True):
                if self.recipe.features == "half" and own.half().isfinite().all():
                    own = own.half()
                view[level] = {"tokens": own}

    def _same(self, key: Key, view: View, times: int = 1) -> bool:
        """Whether a view is what it is when it is computed alone, or beside itself."""
        *_, again = self._prefix(next(self.data.loaded([[key] * times])))
        exact = self.machine.device == "cpu" and self.machine.precision == "fp32"
        for level in self.levels:
            a, b = self._stack([again], level), self._stack([view], level)
            same = torch.equal(a, b) if exact else (a - b).norm() <= 0.02 * b.norm()
            if not same:
                return False
        return True

    # ---- in the cache

    def _groups(self, hashes: dict[str, str]) -> list[str]:
        """Where each level up to the cut is cached: under the encoder's name, and a digest of all
        that decides it, the view apart.
        """
        encoder, size = self.model.shape.source.get("name", ""), self.recipe.data.size
        folder, canvas = encoder_folder(encoder), "{}x{}".format(*size)
        digest = digest_of(
            NUMERICS,
            torch.__version__,
            transformers.__version__,
            torch.backends.cpu.get_cpu_capability(),
            self.machine.device,
            self.machine.threads,
            self.machine.precision,
            self.recipe.features,
            *self.model.make(),
            size,
        )
        groups = []
        for level in range(self.cut + 1):
            digest = digest_of(digest, hashes[f"block {level}" if level else EMBEDDINGS])
            groups.append(f"{folder}/level {level}, {canvas}, {digest[:32]}")
        return groups

    def _places(self, key: Key) -> Places:
        """Where the cache has each level of a view, and its mask, if it has. With fresh views none
        but the clean one is ever seen again: there are no places for it.
        """
        if not self.groups or (self.recipe.data.views == "fresh" and key[1] != CLEAN):
            return {}
        view, mask = self.data.fingerprint(*key)
        places = {level: (group, view) for level, group in enumerate(self.groups)}
        return places | {_MASK: ("masks", mask)}

    def _start(self, key: Key) -> Places:
        """Of the places of a view those of its mask, of the highest level from which it can go on,
        and of the skips below; none if it has to begin with pixels.

        From a rounded level only the cut itself: blocks run on it would not give what they give on
        the exact one.
        """
        places, lowest = self._places(key), self.cut if self.recipe.features == "half" else 0
        for level in range(self.cut, lowest - 1, -1):
            parts = {part for part in self.levels if part < level} | {_MASK, level}
            start = {part: place for part, place in places.items() if part in parts}
            if start and all(self.cache.has(*place) for place in start.values()):
                return start
        return {}

    def _read(self, keys: list[Key]) -> dict[Key, View]:
        """Views from the cache; where only levels below the cut are there, the blocks in between
        are run, and the cut is cached in its turn.
        """
        found: dict[Key, View] = {}
        for key in dict.fromkeys(keys):
            view = {part: self.cache.get(*place) for part, place in self._start(key).items()}
            if not view or None in view.values():  # it was there when the epoch began
                view = self._compute([key], next(self.data.loaded([[key]])))[key]
            found[key] = view
        encoder, size = self.model.encoder, self.model.padded(self.recipe.data.size)
        for first in {max(view) for view in found.values()} - {self.cut}:
            below = {key: view for key, view in found.items() if max(view) == first}
            views = list(below.values())
            with torch.no_grad(), self.machine.autocast():
                tokens = self._stack(views, first)
                self._add(views, encoder.run(tokens, first, self.cut, self.levels, size))
            self._write(below)
        if found and self._check:
            self._check = False
            key, view = next(iter(found.items()))
            if not self._same(key, view):
                name, number = key
                raise FeatureBreach(
                    f"{name}, view {number}: the kept features are not those that the frozen "
                    "blocks compute.",
                    "Either the weights of a frozen block have changed, or the cache is damaged: "
                    "clear it with vitseg cache clear.",
                )
        return found

    def _write(self, found: dict[Key, View]) -> None:
        for key, view in found.items():
            for part, place in self._places(key).items():
                if part in view:
                    self.cache.put(*place, view[part])
