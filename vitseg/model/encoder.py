"""One adapter for all ViT families: embeddings, blocks, final norm, and the patch grid."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from vitseg.model.noise import KeyedNoise

FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")

Levels = dict[int, Tensor]
"""Hidden states (B, N, D) by level: 0 is after the embeddings, l after block l; before the final
norm.
"""


class Encoder(KeyedNoise):
    """A ViT taken apart, so that a pass can stop after any block and go on from there.

    What is frozen stays in eval mode, whoever calls `train()`. `unfrozen_blocks` and `frozen` are
    written by `vitseg.model.freeze` alone. Its noise is drop-path (stochastic depth, Huang et al.
    2016): what a block that trains adds is dropped for a share `rate` of the samples. With
    `recompute`, blocks that train keep their input alone for the backward pass.
    """

    def __init__(self, vit: PreTrainedModel):
        super().__init__()
        config = vit.config
        self.vit, self.patch = vit, config.patch_size
        self.depth, self.width = config.num_hidden_layers, config.hidden_size
        self.prefix_tokens = 1 + (config.to_dict().get("num_register_tokens") or 0)
        self.unfrozen_blocks, self.frozen, self.recompute = 0, list[nn.Module](), False

    @property
    def blocks(self) -> nn.ModuleList:
        return find_blocks(self.vit)

    @property
    def norm(self) -> nn.Module:
        return find_norm(self.vit)

    @property
    def cut(self) -> int:
        """The level up to which everything is frozen."""
        return self.depth - self.unfrozen_blocks

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W), H and W multiples of the patch, to tokens (B, N, D)."""
        # the positions of `vit` have one size, unless it is asked to interpolate them
        more = {"interpolate_pos_encoding": True} if self.vit.config.model_type == "vit" else {}
        return self.vit.embeddings(images, **more)

    def run(
        self, tokens: Tensor, first: int, last: int, keep: set[int], size: tuple[int, int]
    ) -> Levels:
        """Blocks first + 1 .. last on the tokens of level `first`; the levels in `keep`, and
        `last`.
        """
        context, keep = self._context(tokens, size), keep | {last}
        # drop-path is keyed, so that the second pass draws what the first one drew
        twice = partial(checkpoint, self._block, use_reentrant=False, preserve_rng_state=False)
        levels = {first: tokens} if first in keep else {}
        for level in range(first + 1, last + 1):
            again = self.recompute and level > self.cut and torch.is_grad_enabled()
            tokens = (twice if again else self._block)(tokens, level, context)
            if level in keep:
                levels[level] = tokens
        return levels

    def _block(self, tokens: Tensor, level: int, context: dict[str, Any]) -> Tensor:
        block = self.blocks[level - 1]
        after = block(tokens, **context)
        if not block.training or self.rate == 0:
            return after
        return tokens + self.drop(after - tokens, 1, f"block {level}")

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
        rotary = dict(self.vit.named_children()).get("rope_embeddings")
        if rotary is None:
            return {}
        return {"position_embeddings": rotary(tokens.new_empty(1, 3, *size))}

    def to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, N, D), normed, class and register tokens removed, on the patch grid (B, D, h,
        w).
        """
        patches = self.norm(tokens)[:, self.prefix_tokens :].transpose(1, 2)
        grid = patches.unflatten(2, (size[0] // self.patch, -1))
        # channels last, as tokens lie anyway: which decoders are faster on (docs/decisions/0017)
        return grid.contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def find_blocks(vit: PreTrainedModel) -> nn.ModuleList | None:
    """The transformer blocks: the only list of like modules as long as `config.num_hidden_layers`.

    None if there is none, or if its modules are lists of blocks themselves: the stages of a
    hierarchical model.
    """
    depth = getattr(vit.config, "num_hidden_layers", None)
    for found in vit.modules():
        if not isinstance(found, nn.ModuleList) or len(found) != depth:
            continue
        if len(set(map(type, found))) == 1:
            stages = any(isinstance(module, nn.ModuleList) for module in found[0].modules())
            return None if stages else found
    return None


def find_norm(vit: PreTrainedModel) -> nn.LayerNorm | None:
    """The final norm: the only one among the children of a ViT itself."""
    norms = (child for child in vit.children() if isinstance(child, nn.LayerNorm))
    return next(norms, None)
