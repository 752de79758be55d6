"""What a recipe will cost here, from a few batches that are really timed: seconds, memory, disk,
and what bounds it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vitseg.data.augment import view_name
from vitseg.data.dataset import SegmentationData
from vitseg.model.encoder import Levels
from vitseg.model.freeze import model_parts, set_freeze_depth, trained_parts
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter
from vitseg.recipe import Recipe
from vitseg.runs.memory import StepMemory, kept_by_a_step, shapes_only
from vitseg.runs.work import Work
from vitseg.training.audit import part_hashes
from vitseg.training.cache import FeatureCache
from vitseg.training.features import Features
from vitseg.training.loop import batches_per_epoch
from vitseg.training.losses import loss_of

_TIMES = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds an image, measured, and what a training step keeps in memory.

    `loading` is what reading kept features takes, `level_bytes` the room of one level of one view,
    `known` the share of images of which a view is kept, by view; "validation" is that of the
    validation images.
    """

    read: float
    loading: float
    encoder: float
    decoder: float
    decoder_training: float
    block_training: float
    memory: StepMemory
    level_bytes: int
    known: dict[str, float]


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What a stage will take. `memory` is weights, gradients, optimizer and activations;
    `checkpoint` and `kept` are on disk.

    `kept` is what features will take there that are not kept yet. Once they are, a step is `gain`
    times as fast as without them, and most of what is left of it is `bound`. A stage that another
    run has finished takes no time: it is `inherited`.
    """

    steps: int
    seconds: float
    trainable: int
    memory: int
    checkpoint: int
    kept: int
    gain: float
    bound: str
    inherited: bool = False


def measure(recipe: Recipe, work: Work, images: int = 4) -> Cost:
    """Time one batch of at most `images`, piece by piece, on a copy of the model. Takes seconds.

    A block's training is the difference that unfrozen blocks make, their forward pass, which is
    always paid, apart.
    """
    work.machine.settle()
    model, names = (
        work.model.snapshot(),
        work.data.splits["train"][: min(images, recipe.batch_size)],
    )
    read, batch = _timed(
        lambda: next(
            work.data.batches(
                [(n, "1" if recipe.data.views != 1 else "0") for n in names], len(names)
            )
        )
    )
    model.encoder.recompute = recipe.recompute
    loss = loss_of(recipe, work.data, work.machine.device)
    pixels, masks = batch.images.to(work.machine.device), batch.masks.to(work.machine.device)
    size, n = tuple(pixels.shape[2:]), len(names)

    def training(unfrozen: int) -> float:
        set_freeze_depth(model.train(), unfrozen)
        key_noise(model, "forecast")
        with work.machine.autocast():
            levels = model.prefix(pixels)
            return _timed(lambda: loss(model.suffix(levels, size), masks).backward())[0]

    decoder_training = training(0)
    levels = model.eval().prefix(pixels)
    encoder, _ = _timed(lambda: model.prefix(pixels))
    with torch.no_grad():
        decoder, _ = _timed(lambda: model.suffix(levels, size))
    block, depth = 0.0, model.encoder.depth
    if can_unfreeze := model.shape.skip_depths[-1] == depth:
        some = max(1, depth // 3)  # several: the difference that one makes drowns in noise
        block = max(0.0, (training(some) - decoder_training) / some - encoder / depth)
    how = {
        "recompute": recipe.recompute,
        "autocast": work.machine.autocast(),
        "blocks": can_unfreeze,
    }
    with shapes_only():
        memory = StepMemory(*(kept_by_a_step(model, loss, images, **how) for images in (2, 4)))
    times = (t / n for t in (read, _loading(levels), encoder, decoder, decoder_training, block))
    level = next(iter(levels.values()))
    level_bytes = level[0].numel() * (2 if recipe.features == "half" else 4)
    return Cost(*times, memory, level_bytes, _known(recipe, model, work.data))


def _loading(levels: Levels) -> float:
    """Seconds to read these levels of as many views from a cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), reserve=0)
        for level, tokens in levels.items():
            for view, row in enumerate(tokens.cpu()):
                cache.put(f"level {level}", f"view {view}", {"tokens": row})
        views = range(len(next(iter(levels.values()))))
        read = lambda: [cache.get(f"level {level}", f"view {v}") for level in levels for v in views]  # noqa: E731
        return _timed(read)[0]


def _known(recipe: Recipe, model: Segmenter, data: SegmentationData) -> dict[str, float]:
    """What the cache holds already of a recipe's views."""
    if not recipe.cache:
        return {}
    set_freeze_depth(model, 0)
    features = Features(recipe, model, data, part_hashes(model))
    found = {"validation": features.known([(name, "0") for name in data.splits["validation"]])}
    for view in range(recipe.data.views) if recipe.data.views != "fresh" else ():
        found[str(view)] = features.known([(name, str(view)) for name in data.splits["train"]])
    return found


def forecast(recipe: Recipe, cost: Cost, work: Work, inherited: int = 0) -> list[StageForecast]:
    """Every stage of a recipe at that cost, the first ones `inherited`. Early stopping may end a
    stage sooner.

    Processes share the images; what they spend on exchanging gradients is not in it. `memory` is
    that of one of them.
    """
    train, validation = len(work.data.splits["train"]), len(work.data.splits["validation"])
    depth = work.model.encoder.depth
    counts = {
        name: sum(p.numel() for p in part.parameters)
        for name, part in model_parts(work.model).items()
    }
    step = min(recipe.batch_size * recipe.accumulate, train)
    portion = min(recipe.batch_size, math.ceil(step / recipe.processes))
    found, deepest, views = [], 0, _Views(recipe, cost, work)
    for number, stage in enumerate(recipe.stages, start=1):
        unfrozen = depth if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
        deepest = max(deepest, unfrozen)
        trainable, changed = (
            sum(counts[p] for p in trained_parts(k, depth)) for k in (unfrozen, deepest)
        )
        block = cost.encoder / depth
        tail = unfrozen * (cost.block_training + block)
        names = [view_name(recipe.data, number, epoch) for epoch in range(1, stage.epochs + 1)]
        own, look = number > inherited, cost.decoder + unfrozen * block
        frozen, kept_bytes = (
            views.stage(depth - unfrozen, names, train, validation) if own else (0.0, 0)
        )
        epoch = train * (cost.decoder_training + tail) + validation * look
        seconds = own * (frozen + stage.epochs * epoch + validation * look) / recipe.processes
        parts = {
            "the decoder": cost.decoder_training,
            "the blocks that train": tail,
            "reading": cost.loading,
        }
        whole = cost.read + (depth - unfrozen) * block + cost.decoder_training + tail
        copies = (
            2 * changed if work.machine.device.type == "cpu" else 0
        )  # of the weights, now and at their best: for the disk
        sent = trainable if recipe.processes > 1 else 0  # gradients, in one piece
        memory = 4 * (sum(counts.values()) + 3 * trainable + copies + sent) + cost.memory.at(
            unfrozen, portion
        )
        steps = stage.epochs * batches_per_epoch(recipe, work.data)
        checkpoint, gain = (
            4 * (2 * changed + 2 * trainable),
            whole / sum(parts.values()) if recipe.cache else 1.0,
        )
        bound = max(parts, key=parts.get)
        found.append(
            StageForecast(
                steps, seconds, trainable, memory, checkpoint, kept_bytes, gain, bound, not own
            )
        )
    return found


class _Views:
    """Which levels of which views are kept, as stage follows on stage."""

    def __init__(self, recipe: Recipe, cost: Cost, work: Work):
        self.recipe, self.cost, self.depth = recipe, cost, work.model.encoder.depth
        self.skips, self.distinct = set(work.model.shape.skip_depths), work.data.distinct_share()
        self.levels = {view: set(self.skips) for view, share in cost.known.items() if share}
        self.share = dict(cost.known)

    def stage(self, cut: int, views: list[str], train: int, validation: int) -> tuple[float, int]:
        """Seconds that the frozen blocks take in a stage, and bytes that are kept anew."""
        looks = [("validation", validation)] * (len(views) + 1)
        seconds, kept = zip(
            *(self._pass(cut, *p) for p in [*looks, *((v, train) for v in views)]), strict=True
        )
        return sum(seconds), sum(kept)

    def _pass(self, cut: int, view: str, images: int) -> tuple[float, int]:
        cost, block = self.cost, self.cost.encoder / self.depth
        whole = cost.read + cut * block
        if not self.recipe.cache or view.startswith("fresh"):
            return images * whole, 0
        wanted = {s for s in self.skips if s <= cut} | {cut}
        share, there = (
            self.share.get(view, 0.0),
            {level for level in self.levels.get(view, set()) if level <= cut},
        )
        climb = (cut - max(there)) * block if there else whole
        if self.recipe.features == "half" and cut not in there:  # rounded rows are not climbed from
            share = 0.0
        drawn = 1.0 if view == "validation" else self.distinct  # what an epoch shows again is read
        seconds = images * (
            drawn * (share * (cost.loading + climb) + (1 - share) * whole)
            + (1 - drawn) * cost.loading
        )
        new = (
            images
            * drawn
            * (share * len(wanted - there) + (1 - share) * len(wanted))
            * cost.level_bytes
        )
        self.share[view], self.levels[view] = (
            share + drawn * (1 - share),
            self.levels.get(view, set()) | wanted,
        )
        return seconds, round(new)


def _timed(act: Callable[[], object]) -> tuple[float, object]:
    """The shortest of several, and the last result."""
    best, result = math.inf, None
    for _ in range(_TIMES):
        start = time.perf_counter()
        result = act()
        best = min(best, time.perf_counter() - start)
    return best, result
