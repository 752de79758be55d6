"""What a recipe will cost here, from a few batches that are really timed: seconds, memory, disk,
and what bounds it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # torch.compile and torch.export use it

from vitseg.data.augment import view_name
from vitseg.model.encoder import Levels
from vitseg.model.freeze import model_parts, set_freeze_depth, trained_parts
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter
from vitseg.training.audit import part_hashes
from vitseg.training.cache import FeatureCache
from vitseg.training.features import Features
from vitseg.training.job import Job, StagePlan
from vitseg.training.losses import SegmentationLoss


class StepMemory(NamedTuple):
    """Bytes that a step over two images, and over four, saves for its backward pass: those of the
    decoder, of the first block that trains, and of each further one. It is a line through these
    for any number of images.
    """

    two: np.ndarray
    four: np.ndarray

    def at(self, unfrozen: int, images: int) -> int:
        """All of it at a freeze depth, when it is most."""
        parts = self.two + (self.four - self.two) * (images - 2) / 2
        return round(parts @ [1, unfrozen > 0, max(0, unfrozen - 1)])


class Cost(NamedTuple):
    """Seconds an image, measured, and what a training step keeps in memory.

    `loading` is what reading cached features takes, `level_bytes` the room of one level of one
    view, `known` the share of images of which a view is cached, by view; "validation" is that of
    the validation images.
    """

    read: float
    encoder: float
    decoder: float
    decoder_training: float
    block_training: float
    loading: float
    memory: StepMemory
    level_bytes: int
    known: dict[str, float]


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
    inherited: bool = False


# ---- measured


def measure(job: Job) -> Cost:
    """Time one batch of at most four images, piece by piece, on a copy of the model. Takes seconds.

    A block's training is the difference that unfrozen blocks make, their forward pass, which is
    always paid, apart.
    """
    recipe, data, machine = job.recipe, job.data, job.machine
    machine.settle()
    model = job.model.snapshot()
    model.encoder.recompute = recipe.recompute
    names = data.splits["train"][: min(4, recipe.batch_size)]
    view = "0" if recipe.data.views == 1 else "1"
    keys = [(name, view) for name in names]
    read, batch = _timed(lambda: next(data.batches(keys, len(keys))))
    pixels, masks = batch.images.to(machine.device), batch.masks.to(machine.device)
    size = tuple(pixels.shape[2:])

    def training(unfrozen: int) -> float:
        set_freeze_depth(model.train(), unfrozen)
        key_noise(model, "forecast")
        with machine.autocast():
            levels = model.prefix(pixels)
            return _timed(lambda: job.loss(model.suffix(levels, size), masks).backward())[0]

    decoder_training = training(0)
    encoder, levels = _timed(lambda: model.eval().prefix(pixels))
    with torch.no_grad():
        decoder, _ = _timed(lambda: model.suffix(levels, size))
    block, depth = 0.0, model.encoder.depth
    if model.shape.skip_depths[-1] == depth:
        some = max(1, depth // 3)  # several: the difference that one makes drowns in noise
        block = max(0.0, (training(some) - decoder_training) / some - encoder / depth)
    with FakeTensorMode(allow_non_fake_inputs=True):
        memory = step_memory(model, job.loss, machine.autocast())
    times = (read, encoder, decoder, decoder_training, block)
    numbers_a_level = next(iter(levels.values()))[0].numel()
    return Cost(
        *(seconds / len(names) for seconds in times),
        loading=_loading(levels),
        memory=memory,
        level_bytes=numbers_a_level * (2 if recipe.features == "half" else 4),
        known=_known(job.replace(model=model)),
    )


def _timed(act: Callable[[], object]) -> tuple[float, object]:
    """The shortest of several, and the last result."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = act()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def _loading(levels: Levels) -> float:
    """Seconds to read these levels of one view from a cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), reserve=0)
        for level, tokens in levels.items():
            cache.put("levels", str(level), {"tokens": tokens[0].cpu()})
        return _timed(lambda: [cache.get("levels", str(level)) for level in levels])[0]


def _known(job: Job) -> dict[str, float]:
    """What the cache holds already of a job's views."""
    if not job.recipe.cache:
        return {}
    set_freeze_depth(job.model, 0)
    features, splits = Features(job, part_hashes(job.model), training=True), job.data.splits
    views, found = job.recipe.data.views, {}
    keys = {"validation": [(name, "0") for name in splits["validation"]]}
    for view in map(str, range(0 if views == "fresh" else views)):
        keys[view] = [(name, view) for name in splits["train"]]
    for view, wanted in keys.items():
        found[view] = 1 - len(features.missing([wanted])[0]) / len(wanted)
    return found


def step_memory(model: Segmenter, loss: SegmentationLoss, autocast: torch.autocast) -> StepMemory:
    """What the steps of a model, whose freeze depth may be changed, save for their backward pass.

    In a FakeTensorMode it follows from shapes alone: exact, and nothing is computed.
    """
    encoder, again, found = model.encoder, model.encoder.recompute, []
    can_unfreeze = model.shape.skip_depths[-1] == encoder.depth
    for images in (2, 4):
        sizes = []
        # where blocks are run once more, one of them at a time has all of its own
        for blocks, recompute in ((0, False), (1, False), (1, again), (2, again)):
            encoder.recompute = recompute
            sizes.append(saved_by_a_step(model, loss, blocks * can_unfreeze, images, autocast))
        decoder, whole, one, two = sizes
        found.append(np.array([decoder, whole - decoder, two - one]))
    return StepMemory(*found)


def saved_by_a_step(
    model: Segmenter, loss: SegmentationLoss, unfrozen: int, images: int, autocast: torch.autocast
) -> int:
    """Bytes that autograd holds on to after a forward pass, each piece once; without parameters,
    which are there anyway.
    """
    set_freeze_depth(model.train(), unfrozen)
    key_noise(model, "memory")
    size, device = model.shape.size, model.device
    pixels = torch.zeros(images, 3, *size, dtype=torch.uint8, device=device)
    masks = torch.zeros(images, *size, dtype=torch.int64, device=device)
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
    found, skips = [], set(job.model.shape.skip_depths)
    cached_views = {view: (skips, share) for view, share in cost.known.items()}
    for plan in job.stages:
        block = cost.encoder / plan.depth
        parts = {
            "the decoder": cost.decoder_training,
            "the blocks that train": plan.unfrozen * (cost.block_training + block),
            "reading": cost.loading,
        }
        cached = sum(parts.values())
        whole = cached - cost.loading + cost.read + (plan.depth - plan.unfrozen) * block
        seconds, kept = 0.0, 0
        if plan.number > inherited:
            seconds, kept = _frozen_part(job, cost, plan, cached_views)
            look = validation * (cost.decoder + plan.unfrozen * block)
            seconds += plan.stage.epochs * (train * (cached - cost.loading) + look) + look
        trainable = sum(counts[name] for name in plan.trained)
        deepest = trained_parts(job.deepest(plan.number), plan.depth)
        changed = sum(counts[name] for name in deepest)
        numbers = sum(counts.values()) + 3 * trainable
        if job.machine.device.type == "cpu":
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
    `cached` has by view the levels that are in it, of which share of the images; it is updated.
    """
    recipe, splits, skips = job.recipe, job.data.splits, job.model.shape.skip_depths
    cut, epochs = plan.depth - plan.unfrozen, plan.stage.epochs
    block = cost.encoder / plan.depth
    whole = cost.read + cut * block
    wanted = {level for level in skips if level <= cut} | {cut}
    passes = Counter(view_name(recipe.data, plan.number, n) for n in range(1, epochs + 1))
    passes["validation"] = epochs + 1
    seconds, rows = 0.0, 0.0
    for view, times in passes.items():
        images, drawn = len(splits["validation"]), 1.0
        if view != "validation":  # what is drawn with replacement may not come up at all
            images, drawn = len(splits["train"]), 1 - (1 - job.data.distinct_share()) ** times
        if not recipe.cache or (recipe.data.views == "fresh" and view != "validation"):
            seconds += times * images * whole
            continue
        levels, share = cached.get(view, (set(), 0.0))
        base = max((level for level in levels if level <= cut), default=-1)
        if base < 0 or (recipe.features == "half" and base < cut):
            share = 0.0  # rounded rows are not climbed from
        new, again = drawn * (1 - share), drawn * share
        once = new * whole + again * (cut - base) * block
        seconds += images * (once + (times - new) * cost.loading)
        rows += images * (new * len(wanted) + again * len(wanted - levels))
        cached[view] = levels | wanted, share + new
    return seconds, round(rows * cost.level_bytes)
