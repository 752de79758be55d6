"""Optimizers and their parameter groups."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitseg.model.freeze import DECODER, NORM, model_parts
from vitseg.settings import SGD, AdamW, Stage
from vitseg.settings import Optimizer as OptimizerSettings


def build_optimizer(model: nn.Module, cfg: OptimizerSettings, stage: Stage) -> Optimizer:
    """An optimizer over exactly what trains, in named groups with an `lr_factor` each.

    Groups: the decoder, and the encoder as a whole or, with `layer_decay`, block by block; each in
    two, since norms, biases and layer scale take no weight decay.
    """
    groups = parameter_groups(model, stage, cfg.weight_decay)
    match cfg:
        case AdamW():
            fused = next(model.parameters()).device.type in {"cpu", "cuda"}
            return torch.optim.AdamW(groups, lr=stage.lr, betas=cfg.betas, fused=fused)
        case SGD():
            return torch.optim.SGD(groups, lr=stage.lr, momentum=cfg.momentum)


def parameter_groups(model: nn.Module, stage: Stage, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `build_optimizer`, LR included. Frozen parameters are in none of them."""
    parts = model_parts(model).values()
    depth = max(part.block or 0 for part in parts)
    groups: dict[str, dict[str, Any]] = {}
    for part in parts:
        name, factor = "encoder", stage.encoder_lr_factor
        block = depth if part.name == NORM else part.block  # the final norm goes with the last
        if part.name == DECODER:
            name, factor = "decoder", 1.0
        elif block and stage.layer_decay != 1.0:
            name, factor = f"block {block}", factor * stage.layer_decay ** (depth - block)
        for parameter in part.parameters:
            if not parameter.requires_grad:
                continue
            decays = parameter.ndim > 1
            own = name if decays else f"{name}, no decay"
            facts = {"name": own, "params": [], "lr": stage.lr * factor, "lr_factor": factor}
            facts["weight_decay"] = weight_decay if decays else 0.0
            groups.setdefault(own, facts)["params"].append(parameter)
    return list(groups.values())


def load_optimizer(optimizer: Optimizer, slots: dict[int, dict[str, Tensor]]) -> None:
    """What an optimizer remembers of each parameter; its settings are the recipe's, and its LR the
    schedule's. Raises ValueError for what does not fit.
    """
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})
    for parameter, own in optimizer.state.items():
        for slot, value in own.items():
            if value.shape not in ((), parameter.shape):
                here, there = tuple(parameter.shape), tuple(value.shape)
                raise ValueError(f"{slot} of a parameter {here} is {there}")


def used_lr(optimizer: Optimizer) -> dict[str, float]:
    """The LR of every group as it stands now."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
