"""What a recipe will cost here, from a few batches that are really timed: seconds, memory, disk,
and what bounds it.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from timeit import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # torch.compile and torch.export use it

from vitseg.data.augment import CLEAN, view_name
from vitseg.model.freeze import model_parts, set_freeze_depth, trained_parts
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter
from vitseg.training.audit import part_hashes
from vitseg.training.cache import FeatureCache
from vitseg.training.features import Features
from vitseg.training.job import Job, StagePlan
from vitseg.training.losses import SegmentationLoss


class StepMemory(NamedTuple):
    """Bytes that a step over two images, and over four, saves for its backward pass: with no block
    that trains, with one, and, as blocks are run once more if they are, with one and with two. It
    is a line through these for any number of images.
    """

    two: np.ndarray
    four: np.ndarray

    def at(self, unfrozen: int, images: int) -> int:
        """All of it at a freeze depth, when it is most: of blocks that are run once more, one at a
        time has all of its own.
        """
        sizes = self.two + (self.four - self.two) * (images - 2) / 2
        return round(sizes @ ([0, 1, 1 - unfrozen, unfrozen - 1] if unfrozen else [1, 0, 0, 0]))


class Cost(NamedTuple):
    """Seconds an image, measured, and what a training step keeps in memory.

    `loading` is what reading cached features takes, `level_bytes` the room of one level of one
    view, `known` the share of all views that is cached already.
    """

    read: float
    encoder: float
    decoder: float
    decoder_training: float
    block_training: float
    loading: float
    memory: StepMemory
    level_bytes: int
    known: float


class StageForecast(NamedTuple):
    """What a stage will take. `memory` is weights, gradients, optimizer and activations;
    `checkpoint` and `kept` are on disk.

    `kept` is what features will take there that are not cached yet. Once they are, a step is `gain`
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
    inherited: bool


# ---- measured


def measure(job: Job) -> Cost:
    """Time one batch of at most four images, piece by piece, on a copy of the model. Takes seconds.

    A block's training is the difference that unfrozen blocks make, their forward pass, which is
    always paid, apart.
    """
    recipe, data, machine = job.recipe, job.data, job.machine
    machine.settle()
    model, size = job.model.snapshot(), recipe.data.size
    model.encoder.recompute = recipe.recompute
    names, view = data.splits["train"][: min(4, recipe.batch_size)], view_name(recipe.data, 1, 2)
    load = lambda: next(data.loaded([[(name, view) for name in names]]))  # noqa: E731
    batch = load()
    pixels, masks = batch.images.to(machine.device), batch.masks.to(machine.device)

    def training(unfrozen: int) -> float:
        set_freeze_depth(model.train(), unfrozen)
        key_noise(model, "forecast")
        with machine.autocast():
            levels = model.prefix(pixels)
            return _timed(lambda: job.loss(model.suffix(levels, size), masks).backward())

    depth = model.encoder.depth
    some = max(1, depth // 3)  # several: the difference that one makes drowns in noise
    with_blocks, decoder_training = training(some), training(0)
    encoder = _timed(lambda: model.eval().prefix(pixels))
    block = max(0.0, (with_blocks - decoder_training) / some - encoder / depth)
    levels = model.prefix(pixels)
    with torch.no_grad():
        decoder = _timed(lambda: model.suffix(levels, size))
    with tempfile.TemporaryDirectory() as folder:
        cache, row = FeatureCache(Path(folder), reserve=0), ("features", "of one view")
        cache.put(*row, {str(level): tokens[0].cpu() for level, tokens in levels.items()})
        loading = _timed(lambda: cache.get(*row))
    with FakeTensorMode(allow_non_fake_inputs=True):
        memory = step_memory(model, job.loss, machine.autocast())
    return Cost(
        *np.divide([_timed(load), encoder, decoder, decoder_training, block], len(names)),
        loading=loading,
        memory=memory,
        level_bytes=levels[depth][0].numel() * (2 if recipe.features == "half" else 4),
        known=_known(job.replace(model=model)),
    )


def _timed(act: Callable[[], object]) -> float:
    """Seconds, the fewest of several times."""
    return min(repeat(act, number=1, repeat=3))


def _known(job: Job) -> float:
    """The share of a job's views that the cache holds already."""
    features, splits = Features(job, part_hashes(job.model), training=True), job.data.splits
    views, keys = job.recipe.data.views, [(name, CLEAN) for name in splits["validation"]]
    for view in range(0 if views == "fresh" else views):
        keys += [(name, str(view)) for name in splits["train"]]
    return 1 - len(features.missing([keys])[0]) / len(keys)


def step_memory(model: Segmenter, loss: SegmentationLoss, autocast: torch.autocast) -> StepMemory:
    """What the steps of a model, whose freeze depth may be changed, save for their backward pass.

    In a FakeTensorMode it follows from shapes alone: exact, and nothing is computed.
    """
    encoder, again, found = model.encoder, model.encoder.recompute, []
    for images in (2, 4):
        sizes = []
        for blocks, recompute in ((0, again), (1, False), (1, again), (2, again)):
            encoder.recompute = recompute
            sizes.append(saved_by_a_step(model, loss, blocks, images, autocast))
        found.append(np.array(sizes))
    return StepMemory(*found)


def saved_by_a_step(
    model: Segmenter, loss: SegmentationLoss, unfrozen: int, images: int, autocast: torch.autocast
) -> int:
    """Bytes that autograd holds on to after a forward pass, each piece once; without parameters,
    which are there anyway.
    """
    set_freeze_depth(model.train(), unfrozen)
    key_noise(model, "memory")
    size = model.shape.size
    pixels = torch.zeros(images, 3, *size, dtype=torch.uint8, device=model.device)
    masks = pixels[:, 0].long()
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage
        return tensor

    with autocast:
        levels = model.prefix(pixels)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss.sums(model.suffix(levels, size), masks)
    return sum(storage.nbytes() for storage in saved.values())


# ---- worked out


def forecast(job: Job, cost: Cost, inherited: int = 0) -> list[StageForecast]:
    """Every stage of a job at that cost, the first ones `inherited`. Early stopping may end a stage
    sooner.

    Processes share the images; what they spend on exchanging gradients is not in it. `memory` is
    that of one of them.
    """
    recipe, splits = job.recipe, job.data.splits
    train, validation = len(splits["train"]), len(splits["validation"])
    counts = {}
    for name, part in model_parts(job.model).items():
        counts[name] = sum(p.numel() for p in part.parameters)
    step = min(recipe.batch_size * recipe.accumulate, train)
    portion = min(recipe.batch_size, math.ceil(step / recipe.processes))
    found, cached_views = [], {}
    for plan in job.stages:
        block = cost.encoder / plan.depth
        parts = {
            "the decoder": cost.decoder_training,
            "the blocks that train": plan.unfrozen * (cost.block_training + block),
            "reading": cost.loading,
        }
        cached = sum(parts.values())
        trained = cached - cost.loading
        whole = cost.read + (plan.depth - plan.unfrozen) * block + trained
        seconds, kept = 0.0, 0
        if plan.number > inherited:
            seconds, kept = _frozen_part(job, cost, plan, cached_views)
            look = validation * (cost.decoder + plan.unfrozen * block)
            seconds += plan.stage.epochs * (train * trained + look) + look
        trainable = sum(counts[name] for name in plan.trained)
        deepest = trained_parts(job.deepest(plan.number), plan.depth)
        changed = sum(counts[name] for name in deepest)
        numbers = sum(counts.values()) + 3 * trainable
        if job.machine.device == "cpu":
            numbers += 2 * changed  # copies, now and at their best, for the disk
        if recipe.processes > 1:
            numbers += trainable  # gradients, in one piece
        found.append(
            StageForecast(
                steps=plan.steps,
                seconds=seconds / recipe.processes,
                trainable=trainable,
                memory=4 * numbers + cost.memory.at(plan.unfrozen, portion),
                checkpoint=8 * (changed + trainable),
                kept=kept,
                gain=whole / cached if recipe.cache else 1.0,
                bound=max(parts, key=parts.get),
                inherited=plan.number <= inherited,
            )
        )
    return found


def _frozen_part(
    job: Job, cost: Cost, plan: StagePlan, cached: dict[str, tuple[set[int], float]]
) -> tuple[float, int]:
    """The seconds that the frozen blocks of a stage take and the bytes that it adds to the cache.
    `cached` has by view the levels that are in it, of which share of the images, where that is not
    what was known; it is updated.
    """
    recipe, data, skips = job.recipe, job.data, set(job.model.shape.skip_depths)
    cut, epochs = plan.depth - plan.unfrozen, plan.stage.epochs
    block = cost.encoder / plan.depth
    whole = cost.read + cut * block
    wanted = {level for level in skips if level < cut} | {cut}
    passes = Counter(view_name(recipe.data, plan.number, n) for n in range(1, epochs + 1))
    passes["validation"] = epochs + 1
    seconds, rows = 0.0, 0.0
    for view, times in passes.items():
        # what is drawn with replacement may not come up at all
        split, drawn = "train", 1 - (1 - data.distinct_share()) ** times
        if view == "validation":
            split, drawn = view, 1.0
        images = len(data.splits[split])
        if not recipe.cache or (recipe.data.views == "fresh" and split == "train"):
            seconds += times * images * whole
            continue
        levels, share = cached.get(view, (skips, cost.known))
        base = max((level for level in levels if level <= cut), default=-1)
        if base < 0 or (recipe.features == "half" and base < cut):
            share = 0.0  # rounded rows are not climbed from
        new, again = drawn * (1 - share), drawn * share
        once = new * whole + again * (cut - base) * block
        seconds += images * (once + (times - new) * cost.loading)
        rows += images * (new * len(wanted) + again * len(wanted - levels))
        cached[view] = levels | wanted, share + new
    return seconds, round(rows * cost.level_bytes)
