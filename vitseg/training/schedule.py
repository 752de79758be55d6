"""Learning-rate schedules. Each owns its clock: the loop tells all of them the same, and each knows when to move.

PyTorch's own schedulers do the moving. `vitseg.plan` promises by closed form; `vitseg.training.audit.LRContract` compares.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR, LambdaLR

from vitseg.recipe import Constant, CosineRestarts, Exponential, Stage, WarmupPoly


class Schedule(Protocol):
    """What the loop knows of a schedule. `steps` counts how often the LR was moved."""

    steps: int

    def after_batch(self) -> None: ...

    def after_epoch(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Restarts(CosineAnnealingWarmRestarts):
    """PyTorch's, with `eta_min` scaled by each group's LR factor; PyTorch has one for all groups."""

    def get_lr(self) -> list[float]:
        fall = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        floors = [self.eta_min * group.get("lr_factor", 1.0) for group in self.optimizer.param_groups]
        return [floor + (lr - floor) * fall for lr, floor in zip(self.base_lrs, floors, strict=True)]


class CosineRestartsSchedule:
    """Warm restarts, stepped after every batch once `burn_in_batches` have passed."""

    def __init__(self, optimizer: Optimizer, cfg: CosineRestarts, batches_per_epoch: int):
        self.burn_in, self.seen, self.steps = cfg.burn_in_batches, 0, 0
        self.fraction = batches_per_epoch if cfg.unit == "epoch" else None
        self.inner = _Restarts(optimizer, cfg.T_0, cfg.T_mult, cfg.eta_min)

    def after_batch(self) -> None:
        self.seen += 1
        if self.seen > self.burn_in:
            self.steps += 1
            self.inner.step(self.steps / self.fraction if self.fraction else None)

    def after_epoch(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "steps": self.steps, "inner": _plain(self.inner.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.steps = state["seen"], state["steps"]
        self.inner.load_state_dict(state["inner"])


class ExponentialSchedule:
    """Times gamma once per epoch, after training; validation never sees a schedule."""

    def __init__(self, optimizer: Optimizer, cfg: Exponential):
        self.steps = 0
        self.inner = ExponentialLR(optimizer, cfg.gamma)

    def after_batch(self) -> None:
        pass

    def after_epoch(self) -> None:
        self.steps += 1
        self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "inner": _plain(self.inner.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.inner.load_state_dict(state["inner"])


class WarmupPolySchedule:
    """Linear warm-up, then polynomial decay, stepped after every batch."""

    def __init__(self, optimizer: Optimizer, cfg: WarmupPoly, batches: int):
        self.steps = 0

        def factor(done: int) -> float:
            if done < cfg.warmup_batches:
                return (done + 1) / cfg.warmup_batches
            return max(0.0, 1 - (done - cfg.warmup_batches) / max(1, batches - cfg.warmup_batches)) ** cfg.power

        self.inner = LambdaLR(optimizer, factor)

    def after_batch(self) -> None:
        self.steps += 1
        self.inner.step()

    def after_epoch(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "inner": _plain(self.inner.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.inner.load_state_dict(state["inner"])


class ConstantSchedule:
    """Never moves."""

    steps = 0

    def after_batch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def build_schedule(stage: Stage, optimizer: Optimizer, batches_per_epoch: int) -> Schedule:
    """The schedule of a stage, at its start."""
    match stage.schedule:
        case CosineRestarts():
            return CosineRestartsSchedule(optimizer, stage.schedule, batches_per_epoch)
        case Exponential():
            return ExponentialSchedule(optimizer, stage.schedule)
        case WarmupPoly():
            return WarmupPolySchedule(optimizer, stage.schedule, stage.epochs * batches_per_epoch)
        case Constant():
            return ConstantSchedule()


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without functions: what JSON can hold."""
    return {k: v for k, v in state.items() if k != "lr_lambdas" and not callable(v)} | (
        {"lr_lambdas": [None] * len(state["lr_lambdas"])} if "lr_lambdas" in state else {}
    )
