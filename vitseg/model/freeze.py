"""Freezing: the only place where `requires_grad` is written.

What is to train is said absolutely, never as a change, so calling twice or out of order gives the
same model.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from vitseg.errors import ConfigError
from vitseg.model.encoder import find_blocks, find_norm

DECODER, EMBEDDINGS, NORM = "decoder", "embeddings", "final norm"


class FreezeReport(NamedTuple):
    """What trains after freezing: parameters in all and trainable, the names of the parts that
    train, and these for a sentence.
    """

    total: int
    trainable: int
    parts: tuple[str, ...]
    in_words: str

    def __str__(self) -> str:
        percent, frozen = 100 * self.trainable / self.total, self.total - self.trainable
        return (
            f"total {self.total:,} · trainable {self.trainable:,} ({percent:.1f} %) · "
            f"frozen {frozen:,} ({100 - percent:.1f} %)\ntrains: {self.in_words or 'nothing'}"
        )


def set_freeze_depth(model: nn.Module, unfrozen_blocks: int | Literal["all"]) -> FreezeReport:
    """Train the decoder and the last `unfrozen_blocks` encoder blocks; freeze everything else.

    The final norm trains together with the last block; embeddings never train. Frozen modules are
    put in eval mode. Calling it twice changes nothing. Raises ConfigError unless 0 <=
    unfrozen_blocks <= number of blocks.
    """
    if not hasattr(model, "encoder"):
        hint = "On your own call requires_grad_(False) and eval(); vitseg.audit looks at any."
        raise ConfigError("model", type(model).__name__, "a model that vitseg has built", hint)
    encoder = model.encoder
    count = checked_depth(unfrozen_blocks, encoder.depth)
    names = trained_parts(count, encoder.depth)
    encoder.unfrozen_blocks = count
    encoder.frozen = []
    for name, part in model_parts(model).items():
        for parameter in part.parameters:
            parameter.requires_grad_(name in names)
            parameter.grad = None
        if name not in names:
            encoder.frozen += part.modules
    model.train(model.training)
    return freeze_report(model)


def checked_depth(
    unfrozen_blocks: int | Literal["all"], depth: int, field: str = "unfrozen_blocks"
) -> int:
    """The number of blocks meant. Raises ConfigError when the encoder has fewer."""
    count = depth if unfrozen_blocks == "all" else unfrozen_blocks
    if type(count) is not int or not 0 <= count <= depth:
        hint = f"This encoder has {depth} blocks; 0 freezes them all."
        raise ConfigError(field, unfrozen_blocks, f'0..{depth} or "all"', hint)
    return count


def trained_parts(unfrozen_blocks: int, depth: int) -> set[str]:
    """The names of exactly the parts that train: blocks counted from the last, so not [-n:], which
    is all at n = 0.
    """
    blocks = {f"block {i}" for i in range(depth - unfrozen_blocks + 1, depth + 1)}
    return {DECODER} | blocks | ({NORM} if unfrozen_blocks else set())


class Part(NamedTuple):
    """A piece of the model that is frozen or trained as a whole; `block` is its number, from 1, if
    it is a block.
    """

    name: str
    block: int | None
    modules: list[nn.Module]
    parameters: list[nn.Parameter]


def model_parts(model: nn.Module) -> dict[str, Part]:
    """The model in parts by name, in order of computation: embeddings, block 1 .. L, final norm,
    decoder.

    Works on any module that holds a transformers ViT: what is outside it counts as decoder; what
    is in it, but neither block nor final norm, as embeddings.
    """
    vit, blocks, norm = _find_vit(model)
    parts = [Part(EMBEDDINGS, None, *_outside(vit, nn.ModuleList([*blocks, norm])))]
    for number, block in enumerate(blocks, start=1):
        parts.append(Part(f"block {number}", number, [block], list(block.parameters())))
    parts.append(Part(NORM, None, [norm], list(norm.parameters())))
    parts.append(Part(DECODER, None, *_outside(model, vit)))
    return {part.name: part for part in parts}


def _find_vit(model: nn.Module) -> tuple[PreTrainedModel, nn.ModuleList, nn.LayerNorm]:
    """The ViT itself, not a transformers model with a head around it: the one whose own child is
    the final norm. With its blocks and that.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            blocks, norm = find_blocks(module), find_norm(module)
            if blocks and norm:
                return module, blocks, norm
    allowed = "a plain ViT of transformers: one list of like blocks, then a LayerNorm"
    hint = "DINOv2, DINOv3, ViT and DeiT are such; Swin (stages) and BEiT (no last norm) are not."
    raise ConfigError("model", type(model).__name__, allowed, hint)


def _outside(module: nn.Module, excluded: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """All of a module but what is excluded: the modules that hold nothing of that, and the
    parameters.
    """
    gone, lost = set(excluded.modules()), set(excluded.parameters())
    modules = [inner for inner in module.modules() if gone.isdisjoint(inner.modules())]
    return modules, [own for own in module.parameters() if own not in lost]


def freeze_report(model: nn.Module) -> FreezeReport:
    """What trains now, counted from `requires_grad` itself."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = model_parts(model).values()
    trained = [part for part in parts if any(p.requires_grad for p in part.parameters)]
    return FreezeReport(total, trainable, tuple(p.name for p in trained), name_parts(trained))


def name_parts(parts: Iterable[tuple[Any, ...]]) -> str:
    """Parts for a sentence, runs of blocks drawn together: "blocks 11-12, final norm, decoder".

    Each begins with its name and, if it is a block, its number; in the order of `model_parts`.
    """
    runs: list[tuple[int | None, int | None, str]] = []
    for name, number, *_ in parts:
        first = number
        if runs and number and runs[-1][1] == number - 1:
            first = runs.pop()[0]
        runs.append((first, number, name))
    names = [name if first == last else f"blocks {first}-{last}" for first, last, name in runs]
    return ", ".join(names)
