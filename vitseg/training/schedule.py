"""Learning-rate schedules. Each owns its clock: the loop tells all of them the same, and each knows
when to move.

PyTorch's own schedulers do the moving. `vitseg.plan` promises by closed form;
`vitseg.training.audit.LRContract` compares.
"""

from __future__ import annotations

import math

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
        self.inner, self.seen, self.steps = inner, 0, 0

    def after_batch(self) -> None:
        """Told after every optimizer step."""

    def after_epoch(self) -> None:
        """Told after every epoch, training and validation done."""

    def step(self) -> None:
        self.steps += 1
        self.inner.step()

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
        self.burn_in = cfg.burn_in_batches
        self.fraction = batches_per_epoch if cfg.unit == "epoch" else None

    def after_batch(self) -> None:
        self.seen += 1
        if self.seen > self.burn_in:
            self.step()

    def step(self) -> None:
        self.steps += 1
        self.inner.step(self.steps / self.fraction if self.fraction else None)


class _Restarts(CosineAnnealingWarmRestarts):
    """PyTorch's, with `eta_min` scaled by each group's LR factor; PyTorch has one for all
    groups.
    """

    def get_lr(self) -> list[float]:
        fall = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        floors = [
            self.eta_min * group.get("lr_factor", 1.0) for group in self.optimizer.param_groups
        ]
        return [
            floor + (lr - floor) * fall for lr, floor in zip(self.base_lrs, floors, strict=True)
        ]


def build_schedule(stage: Stage, optimizer: Optimizer, batches_per_epoch: int) -> Schedule:
    """The schedule of a stage, at its start."""
    match stage.schedule:
        case CosineRestarts():
            return CosineRestartsSchedule(optimizer, stage.schedule, batches_per_epoch)
        case Exponential():
            return PerEpoch(ExponentialLR(optimizer, stage.schedule.gamma))
        case WarmupPoly():
            return PerBatch(
                LambdaLR(optimizer, _warmup_poly(stage.schedule, stage.epochs * batches_per_epoch))
            )
        case Constant():
            return Schedule(LambdaLR(optimizer, lambda _: 1.0))


def _warmup_poly(cfg: WarmupPoly, batches: int):
    """The factor after `done` steps: linear to 1, then (1 - progress) ** power."""

    def factor(done: int) -> float:
        if done < cfg.warmup_batches:
            return (done + 1) / cfg.warmup_batches
        return (
            max(0.0, 1 - (done - cfg.warmup_batches) / max(1, batches - cfg.warmup_batches))
            ** cfg.power
        )

    return factor
