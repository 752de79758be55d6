"""The ViT families that transformers offers, and where each keeps its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Family:
    """A ViT family: its class, the path of its final norm and of its rotary embedding, if it has
    one.
    """

    model: str
    norm: str
    rotary: str | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    def load(self, folder: Path, config: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The pretrained model and transformers' own loading report."""
        return getattr(transformers, self.model).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **dict(self.arguments),
        )


FAMILIES = {
    "dinov2": Family("Dinov2Model", norm="layernorm"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", norm="layernorm"),
    "dinov3_vit": Family("DINOv3ViTModel", norm="norm", rotary="rope_embeddings"),
    "vit": Family("ViTModel", norm="layernorm", arguments=(("add_pooling_layer", False),)),
}


def find_blocks(vit: PreTrainedModel) -> nn.ModuleList | None:
    """The transformer blocks: the only list of like modules as long as `config.num_hidden_layers`.

    None if there is none, or if its modules are lists of blocks themselves: the stages of a
    hierarchical model.
    """
    depth = getattr(vit.config, "num_hidden_layers", None)
    for module in vit.modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == depth
            and len({type(m) for m in module}) == 1
        ):
            return (
                None if any(isinstance(m, nn.ModuleList) for m in module[0].modules()) else module
            )
    return None
