"""What a recipe will cost here, from a few batches that are really timed: seconds, memory, disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vitseg.model.freeze import model_parts, set_freeze_depth, trained_parts
from vitseg.model.noise import key_noise
from vitseg.recipe import Recipe
from vitseg.runs.run import Work
from vitseg.training.loop import batches_per_epoch
from vitseg.training.losses import SegmentationLoss


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds an image, and bytes an image that a training step keeps for its backward pass. Measured."""

    read: float
    encoder: float
    decoder: float
    decoder_training: float
    block_training: float
    decoder_bytes: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What a stage will take. `memory` is weights, gradients, optimizer and activations; `checkpoint` is on disk."""

    steps: int
    seconds: float
    trainable: int
    memory: int
    checkpoint: int


def measure(recipe: Recipe, work: Work, images: int = 4) -> Cost:
    """Time one batch of at most `images`, piece by piece, on a copy of the model. Takes seconds.

    A block's training is the difference that one unfrozen block makes, its forward pass, which is always paid, apart.
    """
    work.machine.settle()
    model, names = work.model.snapshot(), work.data.splits["train"][: min(images, recipe.batch_size)]
    read, batch = _timed(
        lambda: next(work.data.batches([(n, "1" if recipe.data.views != 1 else "0") for n in names], len(names)))
    )
    loss = SegmentationLoss(recipe.loss, len(work.data.classes), work.machine.device)
    pixels, masks = batch.images.to(work.machine.device), batch.masks.to(work.machine.device)
    size, n = tuple(pixels.shape[2:]), len(names)

    def training(unfrozen: int) -> tuple[float, int]:
        set_freeze_depth(model.train(), unfrozen)
        key_noise(model, "forecast")
        levels = model.prefix(pixels)
        kept = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            seconds, _ = _timed(lambda: loss(model.suffix(levels, size), masks).backward())
        return seconds, kept.bytes // 2

    decoder_training, decoder_bytes = training(0)
    levels = model.eval().prefix(pixels)
    encoder, _ = _timed(lambda: model.prefix(pixels))
    with torch.no_grad():
        decoder, _ = _timed(lambda: model.suffix(levels, size))
    block, block_bytes = (
        training(1) if model.shape.skip_depths[-1] == model.encoder.depth else (decoder_training, decoder_bytes)
    )
    block = max(0.0, block - decoder_training - encoder / model.encoder.depth)
    times = (t / n for t in (read, encoder, decoder, decoder_training, block))
    return Cost(*times, decoder_bytes // n, max(0, block_bytes - decoder_bytes) // n)


def forecast(recipe: Recipe, cost: Cost, work: Work) -> list[StageForecast]:
    """Every stage of a recipe at that cost. Early stopping may end a stage sooner."""
    train, validation = len(work.data.splits["train"]), len(work.data.splits["validation"])
    depth = work.model.encoder.depth
    counts = {name: sum(p.numel() for p in part.parameters) for name, part in model_parts(work.model).items()}
    found, deepest = [], 0
    for stage in recipe.stages:
        unfrozen = depth if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
        deepest = max(deepest, unfrozen)
        trainable, changed = (sum(counts[p] for p in trained_parts(k, depth)) for k in (unfrozen, deepest))
        step = cost.read + cost.encoder + cost.decoder_training + unfrozen * cost.block_training
        look = cost.read + cost.encoder + cost.decoder
        seconds = stage.epochs * (train * step + validation * look) + validation * look
        kept = min(recipe.batch_size, train) * (cost.decoder_bytes + unfrozen * cost.block_bytes)
        memory = 4 * (sum(counts.values()) + 3 * trainable + 2 * changed) + kept
        steps = stage.epochs * batches_per_epoch(recipe, work.data)
        found.append(StageForecast(steps, seconds, trainable, memory, 4 * (2 * changed + 2 * trainable)))
    return found


def _timed(act: Callable[[], object], times: int = 2) -> tuple[float, object]:
    """The shortest of several, and the last result."""
    best, result = math.inf, None
    for _ in range(times):
        start = time.perf_counter()
        result = act()
        best = min(best, time.perf_counter() - start)
    return best, result


class _Kept:
    """Bytes that autograd saves, parameters apart: they are there anyway."""

    bytes = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            self.bytes += tensor.numel() * tensor.element_size()
        return tensor
