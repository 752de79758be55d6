"""Learning-rate schedules. Each owns its clock: the loop tells all of them the same, and each knows
when to move.

PyTorch's own schedulers do the moving. `vitseg.plan` promises by closed form;
`vitseg.training.audit.LRContract` compares.
"""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
)

from vitseg.settings import Constant, CosineRestarts, Exponential, Stage, WarmupPoly


class Schedule:
    """A PyTorch scheduler and the clock that steps it. `steps` counts how often the LR was
    moved.
    """

    def __init__(self, inner: LRScheduler):
        self.inner, self.steps = inner, 0

    def after_batch(self) -> None:
        """Called after every optimizer step."""

    def after_epoch(self) -> None:
        """Called after every epoch, training and validation done."""

    def step(self, at: float | None = None) -> None:
        """Move the LR to its next step; of a scheduler that counts epochs, to a fraction of one."""
        self.steps += 1
        self.inner.step(at)

    def fast_forward(self, batches: int, epochs: int) -> None:
        """From the start to where so many batches and epochs have taken it: nothing else decides
        where it stands.
        """
        for _ in range(batches):
            self.after_batch()
        for _ in range(epochs):
            self.after_epoch()


class PerEpoch(Schedule):
    """Stepped once per epoch; validation never sees a schedule."""

    def after_epoch(self) -> None:
        self.step()


class PerBatch(Schedule):
    """Stepped after every batch."""

    def after_batch(self) -> None:
        self.step()


class CosineRestartsSchedule(Schedule):
    """Warm restarts, stepped after every batch once `burn_in_batches` have passed."""

    def __init__(self, optimizer: Optimizer, cfg: CosineRestarts, batches_per_epoch: int):
        super().__init__(_Restarts(optimizer, cfg.T_0, cfg.T_mult, cfg.eta_min))
        self.burn_in, self.seen = cfg.burn_in_batches, 0
        self.fraction = batches_per_epoch if cfg.unit == "epoch" else None

    def after_batch(self) -> None:
        self.seen += 1
        if self.seen > self.burn_in:
            self.step((self.steps + 1) / self.fraction if self.fraction else None)


class _Restarts(CosineAnnealingWarmRestarts):
    """PyTorch's, with `eta_min` scaled by each group's LR factor; PyTorch has one for all
    groups.
    """

    def get_lr(self) -> list[float]:
        fall, rates = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2, []
        for lr, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True):
            floor = self.eta_min * group.get("lr_factor", 1.0)
            rates.append(floor + (lr - floor) * fall)
        return rates


def build_schedule(stage: Stage, optimizer: Optimizer, batches_per_epoch: int) -> Schedule:
    """The schedule of a stage, at its start."""
    cfg = stage.schedule
    match cfg:
        case CosineRestarts():
            return CosineRestartsSchedule(optimizer, cfg, batches_per_epoch)
        case Exponential():
            return PerEpoch(ExponentialLR(optimizer, cfg.gamma))
        case WarmupPoly():
            factor = partial(_warmup_poly, cfg, stage.epochs * batches_per_epoch)
            return PerBatch(LambdaLR(optimizer, factor))
        case Constant():
            return Schedule(LambdaLR(optimizer, lambda _: 1.0))


def _warmup_poly(cfg: WarmupPoly, batches: int, done: int) -> float:
    """The factor after `done` of a stage's batches: linear to 1, then (1 - progress) ** power."""
    warmup = cfg.warmup_batches
    if done < warmup:
        return (done + 1) / warmup
    return max(0.0, 1 - (done - warmup) / max(1, batches - warmup)) ** cfg.power
