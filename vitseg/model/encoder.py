"""One adapter for all ViT families: embeddings, blocks, final norm, and the patch grid."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from vitseg.model.families import FAMILIES, find_blocks
from vitseg.model.noise import KeyedDropPath

Levels = dict[int, Tensor]
"""Hidden states (B, N, D) by level: 0 is after the embeddings, l after block l; before the final
norm.
"""


class Encoder(nn.Module):
    """A ViT taken apart, so that a pass can stop after any block and go on from there.

    What is frozen stays in eval mode, whoever calls `train()`. `unfrozen_blocks` and `frozen` are
    written by `vitseg.model.freeze` alone. With `recompute`, blocks that train keep their input
    alone for the backward pass.
    """

    def __init__(self, vit: PreTrainedModel):
        super().__init__()
        self.vit = vit
        config, family = vit.config, FAMILIES[vit.config.model_type]
        self.depth, self.width, self.patch = (
            config.num_hidden_layers,
            config.hidden_size,
            config.patch_size,
        )
        self.prefix_tokens = 1 + (config.to_dict().get("num_register_tokens") or 0)
        self._family = family
        self.drop_paths = nn.ModuleList(
            KeyedDropPath(0.0, f"block {i + 1}") for i in range(self.depth)
        )
        self.unfrozen_blocks, self.frozen = 0, list[nn.Module]()
        self.recompute = False

    @property
    def blocks(self) -> nn.ModuleList:
        return find_blocks(self.vit)

    @property
    def norm(self) -> nn.Module:
        return self.vit.get_submodule(self._family.norm)

    @property
    def cut(self) -> int:
        """The level up to which everything is frozen."""
        return self.depth - self.unfrozen_blocks

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W), H and W multiples of the patch, to tokens (B, N, D)."""
        if (
            self.vit.config.model_type == "vit"
        ):  # the one family that asks before it interpolates positions
            return self.vit.embeddings(images, interpolate_pos_encoding=True)
        return self.vit.embeddings(images)

    def run(
        self, tokens: Tensor, first: int, last: int, keep: set[int], size: tuple[int, int]
    ) -> Levels:
        """Blocks first + 1 .. last on the tokens of level `first`; the levels in `keep`, and
        `last`.
        """
        context = self._context(tokens, size)
        levels = {first: tokens} if first in keep or first == last else {}
        for level in range(first + 1, last + 1):
            if self.recompute and level > self.cut and torch.is_grad_enabled():
                # drop-path is keyed, so that the second pass draws what the first one drew
                tokens = checkpoint(
                    self._block,
                    tokens,
                    level,
                    context,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                tokens = self._block(tokens, level, context)
            if level in keep or level == last:
                levels[level] = tokens
        return levels

    def _block(self, tokens: Tensor, level: int, context: dict[str, Any]) -> Tensor:
        return self.drop_paths[level - 1](tokens, self.blocks[level - 1](tokens, **context))

    def attention(self, tokens: Tensor, block: int, size: tuple[int, int]) -> Tensor:
        """The attention (B, heads, N, N) of block 1 .. L on the tokens below it; a row is who
        looks, and adds up to 1.

        The fast attention computes no such table. So the block is copied, and the copy told to; the
        live one is left alone.
        """
        alone = copy.deepcopy(self.blocks[block - 1]).eval()
        alone.attention.config._attn_implementation = "eager"  # the copy has a config of its own
        tables: list[Tensor] = []
        alone.attention.register_forward_hook(
            lambda module, inputs, outputs: tables.append(outputs[1])
        )
        with torch.no_grad():
            alone(tokens, **self._context(tokens, size))
        return tables[0]

    def _context(self, tokens: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """What blocks need besides tokens: the rotary embedding, a function of the image size
        alone.
        """
        if self._family.rotary is None:
            return {}
        like = torch.empty(1, 3, *size, device=tokens.device, dtype=tokens.dtype)
        return {"position_embeddings": self.vit.get_submodule(self._family.rotary)(like)}

    def to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, N, D), normed, class and register tokens removed, on the patch grid (B, D, h,
        w).
        """
        patches = self.norm(tokens)[:, self.prefix_tokens :]
        height, width = size[0] // self.patch, size[1] // self.patch
        # channels last, as tokens lie anyway: which decoders are faster on (docs/decisions/0017)
        return (
            patches.transpose(1, 2)
            .unflatten(2, (height, width))
            .contiguous(memory_format=torch.channels_last)
        )

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self
