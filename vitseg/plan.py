"""The promised learning rate, by closed form: arithmetic on the recipe, never asked of a schedule
object.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

from vitseg.errors import ConfigError
from vitseg.recipe import Recipe
from vitseg.settings import CosineRestarts, Exponential, Stage, WarmupPoly


class Planned(NamedTuple):
    """One batch that will be: its stage, step and fractional epoch over the whole run, and its base
    LR.
    """

    stage: int
    step: int
    epoch: float
    lr: float


def batches_per_epoch(recipe: Recipe, images: int) -> int:
    """Optimizer steps in an epoch over so many images; the last may be over fewer."""
    return math.ceil(images / (recipe.batch_size * recipe.accumulate))


def planned_lr(stage: Stage, batch: int, batches_per_epoch: int, skipped: int = 0) -> float:
    """Base LR of batch number `batch` of a stage, counted from 1.

    `skipped` optimizer steps, lost to overflow in mixed precision, hold back a clock that counts
    batches.
    """
    schedule, lr = stage.schedule, stage.lr
    match schedule:
        case Exponential(gamma=gamma):
            return lr * gamma ** ((batch - 1) // batches_per_epoch)
        case CosineRestarts(T_0=period, eta_min=lowest):  # t and period are SGDR's T_cur and T_i
            t: float = max(0, batch - skipped - 1 - schedule.burn_in_batches)
            if schedule.unit == "epoch":
                t /= batches_per_epoch
            if schedule.T_mult == 1:
                t %= period
            while t >= period:
                t, period = t - period, period * schedule.T_mult
            return lowest + (lr - lowest) * (1 + math.cos(math.pi * t / period)) / 2
        case WarmupPoly(warmup_batches=warmup):
            batch, falling = batch - skipped, stage.epochs * batches_per_epoch - warmup
            if batch <= warmup:
                return lr * batch / warmup
            return lr * (1 - min(1.0, (batch - 1 - warmup) / max(1, falling))) ** schedule.power
    return lr


def rates(stage: Stage, batches_per_epoch: int) -> list[float]:
    """The base LR of every batch of a stage, none skipped."""
    batches = stage.epochs * batches_per_epoch
    return [planned_lr(stage, n, batches_per_epoch) for n in range(1, batches + 1)]


def preview(recipe: Recipe, batches_per_epoch: int) -> list[Planned]:
    """The LR of every step of every stage, without training anything. Early stopping may end a
    stage sooner.
    """
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            "recipe", recipe, "a Recipe", "Put stages into one: vitseg.Recipe(stages=(stage,))."
        )
    planned, epochs_before = [], 0
    for number, stage in enumerate(recipe.stages, start=1):
        for batch, lr in enumerate(rates(stage, batches_per_epoch), start=1):
            epoch = epochs_done(epochs_before, batch, batches_per_epoch)
            planned.append(Planned(number, len(planned) + 1, epoch, lr))
        epochs_before += stage.epochs
    return planned


_LEFT_OUT = {"name", "workers", "cache", "recompute", "device", "precision", "threads", "processes"}


def decisive(recipe: Recipe, stages: int) -> dict[str, Any]:
    """The settings of stages 1 .. `stages`, but for the run's name, the machine, and what changes
    no number.
    """
    tree = recipe.model_dump(mode="json", exclude=_LEFT_OUT)
    return tree | {"stages": tree["stages"][:stages]}


def effective(
    recipe: Recipe, stages: int, batches_per_epoch: int, blocks: int | None
) -> dict[str, Any]:
    """The decisive settings in the form that decides: a schedule is the learning rates it comes to,
    "all" the number of blocks.
    """
    tree = decisive(recipe, stages)
    for stage, settings in zip(recipe.stages, tree["stages"], strict=False):
        settings["name"] = settings["lr"] = None
        settings["schedule"] = rates(stage, batches_per_epoch)
        if stage.unfrozen_blocks == "all" and blocks is not None:
            settings["unfrozen_blocks"] = blocks
    return tree


def epochs_done(before: int, batch: int, batches_per_epoch: int) -> float:
    """Fractional epochs of the run after batch number `batch`, from 1, of a stage that began after
    `before` epochs.
    """
    whole, rest = divmod(batch - 1, batches_per_epoch)
    # in this order: the same float as from the log
    return before + whole + (rest + 1) / batches_per_epoch


def describe(stage: Stage) -> str:
    """The schedule and its clock in words, for tables: "cosine restarts / batch"."""
    kind = stage.schedule.kind
    clock = {"exponential": "epoch", "constant": "never"}.get(kind, "batch")
    return f"{kind.replace('_', ' ')} / {clock}"


def batch_notes(recipe: Recipe, images: int) -> list[str]:
    """Whether a step is larger than the training set."""
    step = recipe.batch_size * recipe.accumulate
    if step <= images:
        return []
    return [
        f"A batch of {step:,} is larger than the {images:,} training images: each epoch is one "
        "step over all of them."
    ]


def notes(stage: Stage, batches_per_epoch: int) -> list[str]:
    """What a reader should know about the stage's schedule before it runs: that it is hardly meant,
    or how the LR moves.
    """
    schedule, said = stage.schedule, warnings(stage, batches_per_epoch)
    lrs = rates(stage, batches_per_epoch)
    if isinstance(schedule, CosineRestarts) and not said:
        n = sum(after > before for before, after in pairwise(lrs))
        course = f"{n} warm restart{'s' * (n != 1)}"
        if n == 0:
            course = "One cosine, which does not come to a restart,"
        unit = "batches" if schedule.unit == "batch" else "epochs"
        cycle = f"T_0 = {schedule.T_0} {unit}, after a burn-in of {schedule.burn_in_batches}"
        said.append(f"{course} in {len(lrs)} batches ({cycle}).")
    elif isinstance(schedule, Exponential):
        note = f"The LR is {lrs[0]:.3g} throughout: it would fall after the stage's only epoch."
        if stage.epochs > 1:
            course = f"from {lrs[0]:.3g} in the first epoch to {lrs[-1]:.3g} in the last"
            note = f"The LR falls {course} (gamma = {schedule.gamma:g})."
        said.append(note)
    return said


def warnings(stage: Stage, batches_per_epoch: int) -> list[str]:
    """What about a schedule is hardly meant: it does not come to its own within the stage."""
    schedule, batches = stage.schedule, stage.epochs * batches_per_epoch
    if isinstance(schedule, WarmupPoly) and schedule.warmup_batches >= batches:
        return [
            f"The warm-up of {schedule.warmup_batches} batches does not end within the stage's "
            f"{batches}."
        ]
    if not isinstance(schedule, CosineRestarts) or len(set(rates(stage, batches_per_epoch))) > 1:
        return []
    why = (
        f"the burn-in is {schedule.burn_in_batches} batches, the one after it still has the full "
        f"rate, and the stage has {batches}. "
        f"Train more epochs or shorten schedule.burn_in_batches."
    )
    if batches > schedule.burn_in_batches + 1:
        why = f"a cycle of T_0 = {schedule.T_0} is over before it falls. Lengthen schedule.T_0."
    return [f"The cosine never moves: {why}"]
