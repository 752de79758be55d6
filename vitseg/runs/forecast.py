"""What a recipe will cost here, from a few steps that are really taken: seconds, memory, disk, and
what bounds it.
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

from vitseg.data.augment import view_name
from vitseg.model.freeze import model_parts, set_freeze_depth, trained_parts
from vitseg.model.noise import key_noise
from vitseg.training.audit import part_hashes
from vitseg.training.cache import FeatureCache
from vitseg.training.features import Features
from vitseg.training.job import Job, StagePlan


class Cost(NamedTuple):
    """What an image takes, as measured: seconds, and bytes that a step saves for its backward pass,
    `saved` with no block that trains, `saved_first` with one, and `saved_more` for each one more.

    `loading` is what reading cached features takes, `level_bytes` the room of one level of one
    view, `known` the share of the views of epoch 2 that is cached already.
    """

    read: float
    encoder: float
    decoder_training: float
    saved: float
    block_training: float
    saved_more: float
    saved_first: float
    loading: float
    level_bytes: int
    known: float


class StageForecast(NamedTuple):
    """What a stage will take. `memory` is weights, gradients, optimizer and activations;
    `checkpoint` and `kept` are on disk.

    `kept` is what features will take there that are not cached yet. Once they are, a step is `gain`
    times as fast as without them, and most of what is left of it is `bound`. A stage that another
    run has finished takes no time.
    """

    steps: int
    seconds: float
    memory: int
    checkpoint: int
    kept: int
    gain: float
    bound: str


# ---- measured


def measure(job: Job) -> Cost:
    """Take steps over one batch of at most four images, piece by piece, on a copy of the model.
    Takes seconds.

    What a block takes, forward and backward, is the difference that unfrozen blocks make.
    """
    recipe, data, machine = job.recipe, job.data, job.machine
    machine.settle()
    model, size = job.model.snapshot(), recipe.data.size
    view = view_name(recipe.data, 1, 2)
    keys = [(name, view) for name in data.splits["train"]]
    some_keys = keys[: min(4, recipe.batch_size)]
    load = lambda: next(data.loaded([some_keys]))  # noqa: E731
    batch = load()
    pixels, masks = batch.images.to(machine.device), batch.masks.to(machine.device)

    def step(unfrozen: int, recompute: bool = recipe.recompute) -> np.ndarray:
        """Seconds of a step from the cut on, and bytes that it saves for its backward pass."""
        set_freeze_depth(model.train(), unfrozen)
        model.encoder.recompute = recompute
        key_noise(model, "forecast")
        with machine.autocast():
            levels = model.prefix(pixels)
            forward = lambda: job.loss(model.suffix(levels, size), masks)  # noqa: E731
            return np.array([_timed(lambda: forward().backward()), saved_by(forward)])

    depth = model.encoder.depth
    some = max(1, depth // 3)  # several: the difference that one makes drowns in noise
    # of blocks that are run once more, one at a time has all of its own
    one, several, frozen = step(1, recompute=False), step(some), step(0)
    block = np.maximum(0, several - frozen) / some
    encoder = _timed(lambda: model.eval().prefix(pixels))
    levels = model.prefix(pixels)
    with tempfile.TemporaryDirectory() as folder:
        cache, row = FeatureCache(Path(folder), reserve=0), ("features", "of one view")
        cache.put(*row, {str(level): tokens[0].cpu() for level, tokens in levels.items()})
        loading = _timed(lambda: cache.get(*row))
    features = Features(job.replace(model=model), part_hashes(model), training=True)
    return Cost(
        *np.divide([_timed(load), encoder, *frozen, *block, one[1]], len(some_keys)),
        loading=loading,
        level_bytes=levels[depth][0].numel() * (2 if recipe.features == "half" else 4),
        known=1 - len(features.missing([keys])[0]) / len(keys),
    )


def _timed(act: Callable[[], object]) -> float:
    """Seconds, the fewest of several times."""
    return min(repeat(act, number=1, repeat=3))


def saved_by(forward: Callable[[], object]) -> int:
    """Bytes that autograd holds on to after a forward pass, each piece once; without parameters,
    which are there anyway.
    """
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


# ---- worked out


def forecast(job: Job, cost: Cost, inherited: int = 0) -> list[StageForecast]:
    """Every stage of a job at that cost, the first ones `inherited`. Early stopping may end a stage
    sooner.

    Processes share the images; the exchange of gradients is not in it. `memory` is that of one of
    them.
    """
    recipe, splits = job.recipe, job.data.splits
    train, validation = len(splits["train"]), len(splits["validation"])
    counts = {}
    for name, part in model_parts(job.model).items():
        counts[name] = sum(p.numel() for p in part.parameters)
    batch = min(recipe.batch_size * recipe.accumulate, train)
    portion = min(recipe.batch_size, math.ceil(batch / recipe.processes))
    found, cached = [], {}
    for plan in job.stages:
        parts = {
            "the decoder": cost.decoder_training,
            "the blocks that train": plan.unfrozen * cost.block_training,
            "reading": cost.loading,
        }
        block, step = cost.encoder / plan.depth, sum(parts.values())
        trained = step - cost.loading
        whole = cost.read + (plan.depth - plan.unfrozen) * block + trained
        seconds, kept = 0.0, 0
        if plan.number > inherited:
            seconds, kept = _frozen_part(job, cost, plan, cached)
            # a forward pass through the decoder is about a third of a step
            look = validation * (cost.decoder_training / 3 + plan.unfrozen * block)
            seconds += plan.stage.epochs * (train * trained + look) + look
        trainable = sum(counts[name] for name in plan.trained)
        deepest = trained_parts(job.deepest(plan.number), plan.depth)
        changed = sum(counts[name] for name in deepest)
        weights, saved = 4 * (sum(counts.values()) + 3 * trainable), cost.saved
        if plan.unfrozen:
            saved = cost.saved_first + (plan.unfrozen - 1) * cost.saved_more
        found.append(
            StageForecast(
                steps=plan.steps,
                seconds=seconds / recipe.processes,
                memory=round(weights + portion * saved),
                checkpoint=8 * (changed + trainable),
                kept=kept,
                gain=whole / step if recipe.cache else 1.0,
                bound=max(parts, key=parts.get),
            )
        )
    return found


def _frozen_part(
    job: Job, cost: Cost, plan: StagePlan, cached: dict[str, set[int]]
) -> tuple[float, int]:
    """The seconds that the frozen blocks of a stage take and the bytes that it adds to the cache.
    `cached` has the levels of each view that the stages before it have used; it is updated.
    """
    recipe, skips = job.recipe, set(job.model.shape.skip_depths)
    cut, epochs = plan.depth - plan.unfrozen, plan.stage.epochs
    block = cost.encoder / plan.depth
    whole = cost.read + cut * block
    wanted = {level for level in skips if level < cut} | {cut}
    passes = Counter(view_name(recipe.data, plan.number, n) for n in range(1, epochs + 1))
    passes["validation"] = epochs + 1
    seconds, rows = 0.0, 0.0
    for view, times in passes.items():
        split = "validation" if view == "validation" else "train"
        images = len(job.data.splits[split])
        if not recipe.cache or (recipe.data.views == "fresh" and split == "train"):
            seconds += images * times * whole
            continue
        # an image is new, or goes on from the deepest level that is cached
        new = 0.0 if view in cached else 1 - cost.known
        levels = cached.get(view, skips)
        base = max((level for level in levels if level <= cut), default=0)
        once = new * whole + (1 - new) * (cut - base) * block
        seconds += images * (once + (times - new) * cost.loading)
        rows += images * (new * len(wanted) + (1 - new) * len(wanted - levels))
        cached[view] = levels | wanted
    return seconds, round(rows * cost.level_bytes)
