"""What the frozen blocks make of a view, computed once: afterwards it is read from the cache, the
same bits.

A row is one level of one view, kept under the digest of all that it follows from: the weights up to
that level, the image, the view, the machine. So training a block makes nothing stale below it, and
a changed image concerns its own rows alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor

from vitseg.data.dataset import Batch, Key
from vitseg.draws import NUMERICS
from vitseg.errors import FeatureBreach
from vitseg.model.encoder import Levels
from vitseg.model.freeze import EMBEDDINGS
from vitseg.training.cache import FeatureCache, default_cache
from vitseg.training.job import Job


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """What the suffix of a model starts from: levels (B, N, D), and masks (B, H, W) int64 of the
    mode that is trained.
    """

    names: list[str]
    levels: Levels
    masks: Tensor
    originals: list[Tensor]


@dataclass(slots=True)
class _Row:
    """One view: its levels (N, D), its mask (H, W) uint8, and the mask at the image's own size."""

    mask: Tensor
    original: Tensor
    levels: Levels = field(default_factory=dict)


class Features:
    """The frozen part of a job's model, as a stage sees it. `hashes` are those of its parts
    (`AuditReport.hashes`).

    With `recipe.cache`, rows are cached as they are computed and read from then on; without it, or
    without hashes, every pass computes. Both give the same bits on the CPU.
    """

    def __init__(
        self,
        job: Job,
        hashes: dict[str, str | None] | None = None,
        cache: FeatureCache | None = None,
    ):
        self.recipe, self.model, self.data = job.recipe, job.model, job.data
        self.machine = job.machine
        model, recipe = self.model, self.recipe
        self.cut, self.size = model.encoder.cut, recipe.data.size
        self.wanted = {d for d in model.shape.skip_depths if d <= self.cut} | {self.cut}
        self.cache = (cache or default_cache()) if hashes and recipe.cache else None
        self.groups = (
            {amp: self._groups(hashes, amp) for amp in {False, self.machine.amp is not None}}
            if self.cache
            else {}
        )
        self.read = self.computed = 0
        self.why_not = ""
        self._trusted, self._fresh = False, True

    def batches(self, chunks: list[list[Key]], *, training: bool = False) -> Iterator[FeatureBatch]:
        """A batch for each chunk of keys; for training under autocast, and counted.

        For training, and in the first call, a view that is read is computed as well. Raises
        FeatureBreach if they differ.
        """
        amp = training and self.machine.amp is not None
        if training and self.cache and self.machine.processes > 1:
            self.cache.look_again()  # in each epoch a process has other images
        bases = self._bases(chunks, amp)
        missing = self._missing(chunks, bases)
        pixels = self.data.loaded([m for m in missing if m], self.recipe.workers)
        check, self._fresh = training or self._fresh, False
        if training:
            self.read = self.computed = 0
        for chunk, unknown in zip(chunks, missing, strict=True):
            before = self.computed
            rows = self._from_pixels(unknown, next(pixels), amp) if unknown else {}
            rows |= self._kept(self._starts(chunk, bases, rows), amp)
            self.read += len(chunk) - (self.computed - before)
            known = [key for key in chunk if bases[key] is not None]
            if check and known:
                self._compare(known[0], rows[known[0]], amp)
                check = False
            yield self._stacked(rows, chunk)

    def _bases(self, chunks: list[list[Key]], amp: bool) -> dict[Key, int | None]:
        return {key: self._base(key, amp) for chunk in chunks for key in chunk}

    def _starts(
        self, chunk: list[Key], bases: dict[Key, int | None], rows: dict[Key, _Row]
    ) -> dict[Key, int]:
        """The level from which each view of a chunk goes on that is not among the `rows`. One
        without a base has come up earlier, and been computed up to the cut.
        """
        starts = {}
        for key in chunk:
            if key not in rows:
                base = bases[key]
                starts[key] = self.cut if base is None else base
        return starts

    def _missing(self, chunks: list[list[Key]], bases: dict[Key, int | None]) -> list[list[Key]]:
        """The views of each chunk that begin with pixels. One that occurs again is read then, if it
        is kept till then.
        """
        coming: set[Key] = set()
        missing = []
        for chunk in chunks:
            new = [key for key in dict.fromkeys(chunk) if bases[key] is None and key not in coming]
            coming |= {key for key in new if self.cache and not self._is_fresh(key)}
            missing.append(new)
        return missing

    def known(self, keys: list[Key]) -> float:
        """The share of training's views of which something is kept, 0..1."""
        return sum(self._base(key, self.machine.amp is not None) is not None for key in keys) / len(
            keys
        )

    def used(self) -> tuple[int, int, str]:
        """Views that the last epoch of training read and computed, and why none are kept; "" if
        they are, or were not to be.
        """
        reason = self.why_not or (self.cache.why_not if self.cache else "")
        return self.read, self.computed, f"Features are not kept: {reason}." if reason else ""

    def _stacked(self, found: dict[Key, _Row], keys: list[Key]) -> FeatureBatch:
        device, rows = self.machine.device, [found[key] for key in keys]
        levels = {
            level: torch.stack([row.levels[level].to(device) for row in rows])
            for level in self.wanted
        }
        masks = torch.stack([row.mask for row in rows]).long()
        return FeatureBatch(
            [name for name, _ in keys], levels, masks, [row.original for row in rows]
        )

    # ---- computing

    def _from_pixels(self, keys: list[Key], batch: Batch, amp: bool) -> dict[Key, _Row]:
        rows = self._computed(keys, batch, amp)
        self.computed += len(keys)
        if self.cache and not self._trusted:
            self._trust(keys, rows, amp)
        for key, row in rows.items():
            self._keep(key, row, self.wanted, amp)
        return rows

    def _computed(self, keys: list[Key], batch: Batch, amp: bool) -> dict[Key, _Row]:
        """From pixels to rows."""
        with self.machine.autocast(amp):
            levels = self.model.prefix(batch.images.to(self.machine.device))
        rows = [
            _Row(m.to(torch.uint8), o) for m, o in zip(batch.masks, batch.originals, strict=True)
        ]
        self._fill(rows, levels, self.wanted)
        return dict(zip(keys, rows, strict=True))

    def _kept(self, bases: dict[Key, int], amp: bool) -> dict[Key, _Row]:
        """Rows read from the cache; where only levels below the cut are there, the blocks in
        between are run.
        """
        rows: dict[Key, _Row] = {}
        for base in sorted(set(bases.values())):
            read = {key: self._read(key, base, amp) for key, b in bases.items() if b == base}
            found = {key: row for key, row in read.items() if row is not None}
            if found and base < self.cut:
                self._climb(list(found), list(found.values()), base, amp)
            rows |= found
        for key in bases.keys() - rows.keys():  # they were there when the epoch began
            rows |= self._from_pixels([key], next(self.data.loaded([[key]])), amp)
        return rows

    def _climb(self, keys: list[Key], rows: list[_Row], base: int, amp: bool) -> None:
        """From level `base` to the cut, which is kept in its turn."""
        encoder, padded = self.model.encoder, self.model.padded(self.size)
        tokens = torch.stack([row.levels[base].to(self.machine.device) for row in rows])
        with torch.no_grad(), self.machine.autocast(amp):
            levels = encoder.run(tokens, base, self.cut, self.wanted, padded)
        new = {level for level in self.wanted if level > base}
        self._fill(rows, levels, new)
        for key, row in zip(keys, rows, strict=True):
            self._keep(key, row, new, amp)

    def _fill(self, rows: list[_Row], levels: Levels, wanted: set[int]) -> None:
        """Hand each row its part of the levels, rounded where the recipe says so."""
        for level in wanted:
            for row, tokens in zip(rows, levels[level].float(), strict=True):
                half = tokens.half() if self.recipe.features == "half" else tokens
                row.levels[level] = half.float() if half.isfinite().all() else tokens

    # ---- keeping

    def _groups(self, hashes: dict[str, str | None], amp: bool) -> dict[int, str]:
        """Where each level up to the cut is kept: a digest of all that decides it, the view
        apart.
        """
        model, machine = self.model, self.machine
        digest = hashlib.sha256(
            json.dumps(
                [
                    NUMERICS,
                    torch.__version__,
                    transformers.__version__,
                    torch.backends.cpu.get_cpu_capability(),
                    str(machine.device),
                    machine.threads,
                    machine.precision if amp else "fp32",
                    self.recipe.features,
                    *model.make(),
                    self.size,
                ],
                default=str,
            ).encode()
        )
        groups = {}
        for level in range(self.cut + 1):
            digest.update((hashes[f"block {level}" if level else EMBEDDINGS] or "").encode())
            groups[level] = digest.hexdigest()[:32]
        return groups

    def _base(self, key: Key, amp: bool) -> int | None:
        """The highest level from which a view can go on, with all skips below it; None if it has to
        begin with pixels.

        From a rounded level only the cut itself: blocks run on it would not give what they give on
        the exact one.
        """
        if self.cache is None or self._is_fresh(key):
            return None
        view, mask = self.data.fingerprint(*key)
        if not self.cache.has("masks", mask):
            return None
        there = {level for level, group in self.groups[amp].items() if self.cache.has(group, view)}
        lowest = self.cut if self.recipe.features == "half" else 0
        return next(
            (
                b
                for b in range(self.cut, lowest - 1, -1)
                if {w for w in self.wanted if w <= b} | {b} <= there
            ),
            None,
        )

    def _read(self, key: Key, base: int, amp: bool) -> _Row | None:
        if self.cache is None:
            return None
        view, mask = self.data.fingerprint(*key)
        kept = self.cache.get("masks", mask)
        row = kept and _Row(kept["mask"], kept["original"])
        for level in sorted({w for w in self.wanted if w <= base} | {base}) if row else ():
            tokens = self.cache.get(self.groups[amp][level], view)
            if tokens is None:
                return None
            row.levels[level] = tokens["tokens"].float()
        return row

    def _keep(self, key: Key, row: _Row, levels: set[int], amp: bool) -> None:
        if (
            self.cache is None or self.cache.why_not or self._is_fresh(key)
        ):  # nobody will ask for it again
            return
        view, mask = self.data.fingerprint(*key)
        for level in levels:
            tokens = row.levels[level].cpu()
            half = tokens.half() if self.recipe.features == "half" else tokens
            self.cache.put(
                self.groups[amp][level], view, {"tokens": half if half.isfinite().all() else tokens}
            )
            self.cache.describe(self.groups[amp][level], self._about(level))
        self.cache.put("masks", mask, {"mask": row.mask, "original": row.original})

    def _is_fresh(self, key: Key) -> bool:
        """Whether a view is never seen again: all are with fresh views, but the clean one."""
        return self.recipe.data.views == "fresh" and key[1] != "0"

    def _about(self, level: int) -> dict[str, object]:
        return {
            "encoder": self.model.shape.source.get("name", ""),
            "level": level,
            "size": self.size,
        }

    # ---- trusting

    def _trust(self, keys: list[Key], rows: dict[Key, _Row], amp: bool) -> None:
        """Keep rows only where they do not depend on the batch that they were computed in.

        Measured: with fewer than 17 tokens, or an odd width, all of a batch's rows differ from
        those alone, or none.
        """
        self._trusted = True
        if not self._same(keys[0], rows[keys[0]], amp, times=1 if len(keys) > 1 else 2):
            self.cache, self.why_not = (
                None,
                "this encoder gives a view other features in another batch",
            )

    def _compare(self, key: Key, row: _Row, amp: bool) -> None:
        """Raises FeatureBreach if what was kept is not what would be computed."""
        if not self._same(key, row, amp):
            raise FeatureBreach(
                (
                    f"{key[0]}, view {key[1]}: the kept features are not those that the frozen "
                    f"blocks "
                    f"compute."
                ),
                (
                    "Either the weights of a frozen block have changed, or the cache is damaged: "
                    "clear it with vitseg cache clear."
                ),
            )

    def _same(self, key: Key, row: _Row, amp: bool, times: int = 1) -> bool:
        again = self._computed([key] * times, next(self.data.loaded([[key] * times])), amp)[key]
        pairs = [(again.levels[level].cpu(), row.levels[level].cpu()) for level in self.wanted]
        if self.machine.device.type == "cpu" and not amp:
            return all(torch.equal(a, b) for a, b in pairs)
        return all(float((a - b).norm()) <= 0.02 * float(b.norm()) for a, b in pairs)
