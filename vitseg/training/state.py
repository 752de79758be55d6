"""The state of a stage between two steps: out as numbers and tensors, and back in, where every one
of them must fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitseg.model.freeze import model_parts
from vitseg.training.optim import used_lr
from vitseg.training.weights import load_weights

if TYPE_CHECKING:
    from vitseg.training.loop import StageTraining

_POSITION = (
    "epoch",
    "batch",
    "step",
    "skipped",
    "lr",
    "epochs_before",
    "steps_before",
    "best",
    "best_epoch",
    "running_loss",
    "hashes",
)


def state_of(stage: StageTraining) -> dict[str, Any]:
    """What the recipe does not say already. Where the schedule stands follows from the position,
    and so does the LR.
    """
    return {name: getattr(stage, name) for name in _POSITION} | {
        "stage": stage.number,
        "running": stage.running.tolist(),
        "scaler": stage.scaler.state_dict(),
        "optimizer": stage.optimizer.state_dict()["state"],
        "weights": stage.trained_weights(),
        "best_weights": stage.best_weights,
    }


def load_state(stage: StageTraining, state: dict[str, Any]) -> None:
    """Into a stage that has not begun. Raises ValueError, or what torch raises, for what does not
    fit it.
    """
    for kind in ("weights", "best_weights"):
        if odd := sorted(state[kind].keys() ^ stage.trained_weights().keys()):
            raise ValueError(
                f"{kind}: {odd[0]} is {'more' if odd[0] in state[kind] else 'less'} than this "
                f"stage trains"
            )
    load_weights(stage.model, state["weights"])
    for name in _POSITION:
        setattr(stage, name, state[name])
    stage.running, stage.best_weights = torch.tensor(state["running"]), state["best_weights"]
    _refuse_impossible(stage)
    stage.optimizer._opt_called = (
        stage.step > 0
    )  # maybe in another process: else PyTorch warns of a schedule that comes first
    stage.schedule.fast_forward(stage.step - stage.skipped, stage.epoch)
    _load_optimizer(stage.optimizer, state["optimizer"])
    if state["scaler"]:
        stage.scaler.load_state_dict(state["scaler"])


def _refuse_impossible(stage: StageTraining) -> None:
    """Raises ValueError unless the numbers of a position go together."""
    names = used_lr(stage.optimizer).keys() if stage.batch else stage.lr.keys()
    classes, parts = len(stage.data.classes), model_parts(stage.model).keys()
    wrong = {
        "step": stage.step != stage.epoch * stage.batches + stage.batch
        or stage.skipped > stage.step,
        "epoch": stage.epoch > stage.stage.epochs or stage.best_epoch > stage.epoch,
        "batch": stage.batch > stage.batches,
        "lr": stage.lr.keys() != names,
        "running": stage.running.shape != (classes, classes),
        "hashes": stage.hashes.keys() != parts,
    }
    if found := [name for name, bad in wrong.items() if bad]:
        raise ValueError(f"{found[0]} cannot be {getattr(stage, found[0])!r:.80}")


def _load_optimizer(optimizer: torch.optim.Optimizer, slots: dict[int, dict[str, Tensor]]) -> None:
    """What it remembers of each parameter; its settings are the recipe's, and its LR the
    schedule's.
    """
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    for parameter, own in optimizer.state.items():
        if wrong := [
            slot for slot, value in own.items() if value.dim() and value.shape != parameter.shape
        ]:
            raise ValueError(
                f"{wrong[0]} of a parameter {tuple(parameter.shape)} is "
                f"{tuple(own[wrong[0]].shape)}"
            )
