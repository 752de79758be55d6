"""Optimizers and their parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
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
            fused = all(p.device.type in {"cpu", "cuda"} for g in groups for p in g["params"])
            return torch.optim.AdamW(groups, lr=stage.lr, betas=cfg.betas, fused=fused)
        case SGD():
            return torch.optim.SGD(groups, lr=stage.lr, momentum=cfg.momentum)


def parameter_groups(model: nn.Module, stage: Stage, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `build_optimizer`, LR included. Frozen parameters are in none of them."""
    parts = model_parts(model)
    depth = sum(name.startswith("block ") for name in parts)
    groups: dict[str, dict[str, Any]] = {}
    for part_name, part in parts.items():
        name, factor = _group_of(part_name, depth, stage)
        for parameter in part.parameters:
            if parameter.requires_grad:
                plain = parameter.ndim <= 1
                group = groups.setdefault(
                    f"{name}, no decay" if plain else name,
                    {
                        "params": [],
                        "lr": stage.lr * factor,
                        "lr_factor": factor,
                        "weight_decay": 0.0 if plain else weight_decay,
                    },
                )
                group["params"].append(parameter)
    return [{"name": name} | group for name, group in groups.items()]


def _group_of(part: str, depth: int, stage: Stage) -> tuple[str, float]:
    """Name and LR factor of the group that a part belongs to. The final norm goes with the last
    block.
    """
    if part == DECODER:
        return "decoder", 1.0
    if stage.layer_decay == 1.0 or not (part.startswith("block ") or part == NORM):
        return "encoder", stage.encoder_lr_factor
    below = 0 if part == NORM else depth - int(part.removeprefix("block "))
    name = f"block {depth}" if part == NORM else part
    return name, stage.encoder_lr_factor * stage.layer_decay**below


def used_lr(optimizer: Optimizer) -> dict[str, float]:
    """The LR of every group as it stands now."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
