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
from vitseg.model.encoder import Levels
from vitseg.model.freeze import model_parts, set_freeze_depth, trained_parts
from vitseg.model.noise import key_noise
from vitseg.runs.memory import StepMemory, kept_by_a_step, shapes_only
from vitseg.training.audit import part_hashes
from vitseg.training.cache import FeatureCache
from vitseg.training.features import Features
from vitseg.training.job import Job, StagePlan

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


def measure(job: Job, images: int = 4) -> Cost:
    """Time one batch of at most `images`, piece by piece, on a copy of the model. Takes seconds.

    A block's training is the difference that unfrozen blocks make, their forward pass, which is
    always paid, apart.
    """
    recipe, data, machine = job.recipe, job.data, job.machine
    machine.settle()
    model = job.model.snapshot()
    names = data.splits["train"][: min(images, recipe.batch_size)]
    view = "0" if recipe.data.views == 1 else "1"
    keys = [(name, view) for name in names]
    read, batch = _timed(lambda: next(data.batches(keys, len(keys))))
    model.encoder.recompute = recipe.recompute
    pixels, masks = batch.images.to(machine.device), batch.masks.to(machine.device)
    size = tuple(pixels.shape[2:])

    def training(unfrozen: int) -> float:
        set_freeze_depth(model.train(), unfrozen)
        key_noise(model, "forecast")
        with machine.autocast():
            levels = model.prefix(pixels)
            return _timed(lambda: job.loss(model.suffix(levels, size), masks).backward())[0]

    decoder_training = training(0)
    levels = model.eval().prefix(pixels)
    encoder, _ = _timed(lambda: model.prefix(pixels))
    with torch.no_grad():
        decoder, _ = _timed(lambda: model.suffix(levels, size))
    block, depth = 0.0, model.encoder.depth
    can_unfreeze = model.shape.skip_depths[-1] == depth
    if can_unfreeze:
        some = max(1, depth // 3)  # several: the difference that one makes drowns in noise
        block = max(0.0, (training(some) - decoder_training) / some - encoder / depth)
    how = {"recompute": recipe.recompute, "autocast": machine.autocast(), "blocks": can_unfreeze}
    with shapes_only():
        two, four = (kept_by_a_step(model, job.loss, images, **how) for images in (2, 4))
    times = (read, _loading(levels), encoder, decoder, decoder_training, block)
    numbers_a_level = next(iter(levels.values()))[0].numel()
    return Cost(
        *(seconds / len(names) for seconds in times),
        memory=StepMemory(two, four),
        level_bytes=numbers_a_level * (2 if recipe.features == "half" else 4),
        known=_known(job.replace(model=model)),
    )


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


def _known(job: Job) -> dict[str, float]:
    """What the cache holds already of a job's views."""
    recipe, data = job.recipe, job.data
    if not recipe.cache:
        return {}
    set_freeze_depth(job.model, 0)
    features = Features(job, part_hashes(job.model), training=True)

    def share(split: str, view: str) -> float:
        keys = [(name, view) for name in data.splits[split]]
        return 1 - len(features.missing([keys])[0]) / len(keys)

    found = {"validation": share("validation", "0")}
    for view in range(0 if recipe.data.views == "fresh" else recipe.data.views):
        found[str(view)] = share("train", str(view))
    return found


def forecast(job: Job, cost: Cost, inherited: int = 0) -> list[StageForecast]:
    """Every stage of a job at that cost, the first ones `inherited`. Early stopping may end a stage
    sooner.

    Processes share the images; what they spend on exchanging gradients is not in it. `memory` is
    that of one of them.
    """
    recipe, data = job.recipe, job.data
    train, validation = len(data.splits["train"]), len(data.splits["validation"])
    counts = {}
    for name, part in model_parts(job.model).items():
        counts[name] = sum(p.numel() for p in part.parameters)
    step = min(recipe.batch_size * recipe.accumulate, train)
    portion = min(recipe.batch_size, math.ceil(step / recipe.processes))
    found, views = [], _Views(job, cost)
    for plan in job.stages:
        block = cost.encoder / plan.depth
        tail = plan.unfrozen * (cost.block_training + block)
        look = cost.decoder + plan.unfrozen * block
        own = plan.number > inherited
        frozen, kept = views.stage(plan, train, validation) if own else (0.0, 0)
        epoch = train * (cost.decoder_training + tail) + validation * look
        seconds = own * (frozen + plan.stage.epochs * epoch + validation * look) / recipe.processes
        parts = {
            "the decoder": cost.decoder_training,
            "the blocks that train": tail,
            "reading": cost.loading,
        }
        cut = plan.depth - plan.unfrozen
        whole = cost.read + cut * block + cost.decoder_training + tail
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
                seconds=seconds,
                trainable=trainable,
                memory=4 * numbers + cost.memory.at(plan.unfrozen, portion),
                checkpoint=4 * (2 * changed + 2 * trainable),
                kept=kept,
                gain=whole / sum(parts.values()) if recipe.cache else 1.0,
                bound=max(parts, key=parts.get),
                inherited=not own,
            )
        )
    return found


class _Views:
    """Which levels of which views are cached, as stage follows on stage."""

    def __init__(self, job: Job, cost: Cost):
        self.recipe, self.cost = job.recipe, cost
        self.skips, self.distinct = set(job.model.shape.skip_depths), job.data.distinct_share()
        self.levels = {view: set(self.skips) for view, share in cost.known.items() if share}
        self.share = dict(cost.known)

    def stage(self, plan: StagePlan, train: int, validation: int) -> tuple[float, int]:
        """Seconds that the frozen blocks take in a stage, and bytes that are newly cached."""
        passes = [("validation", validation)] * (plan.stage.epochs + 1)
        for epoch in range(1, plan.stage.epochs + 1):
            passes.append((view_name(self.recipe.data, plan.number, epoch), train))
        seconds, cached = 0.0, 0
        for view, images in passes:
            took, more = self._pass(plan, view, images)
            seconds, cached = seconds + took, cached + more
        return seconds, cached

    def _pass(self, plan: StagePlan, view: str, images: int) -> tuple[float, int]:
        cost, cut = self.cost, plan.depth - plan.unfrozen
        block = cost.encoder / plan.depth
        whole = cost.read + cut * block
        fresh = view != "validation" and self.recipe.data.views == "fresh"
        if fresh or not self.recipe.cache:
            return images * whole, 0
        wanted = {skip for skip in self.skips if skip <= cut} | {cut}
        known = self.levels.get(view, set())
        there = {level for level in known if level <= cut}
        share = self.share.get(view, 0.0)
        climb = (cut - max(there)) * block if there else whole
        if self.recipe.features == "half" and cut not in there:  # rounded rows are not climbed from
            share = 0.0
        drawn = 1.0 if view == "validation" else self.distinct  # what an epoch shows again is read
        once = share * (cost.loading + climb) + (1 - share) * whole
        seconds = images * (drawn * once + (1 - drawn) * cost.loading)
        rows = share * len(wanted - there) + (1 - share) * len(wanted)
        self.share[view] = share + drawn * (1 - share)
        self.levels[view] = known | wanted
        return seconds, round(images * drawn * rows * cost.level_bytes)


def _timed(act: Callable[[], object]) -> tuple[float, object]:
    """The shortest of several, and the last result."""
    best, result = math.inf, None
    for _ in range(_TIMES):
        start = time.perf_counter()
        result = act()
        best = min(best, time.perf_counter() - start)
    return best, result
