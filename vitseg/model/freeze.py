"""Freezing: the only place where `requires_grad` is written.

What is to train is said absolutely, never as a change, so calling twice or out of order gives the
same model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import nn
from transformers import PreTrainedModel

from vitseg.errors import ConfigError
from vitseg.model.families import find_blocks

if TYPE_CHECKING:
    from vitseg.model.segmenter import Segmenter

DECODER, EMBEDDINGS, NORM = "decoder", "embeddings", "final norm"


@dataclass(frozen=True, slots=True)
class FreezeReport:
    """What trains after freezing: parameters in all and trainable, the names of the parts that
    train, and these for a sentence.
    """

    total: int
    trainable: int
    parts: tuple[str, ...]
    in_words: str

    def __str__(self) -> str:
        """ "trainable 0.6 M of 22.7 M (2.8 %), frozen 22.1 M (97.2 %): decoder" """
        percent = 100 * self.trainable / self.total
        frozen = f"frozen {millions(self.total - self.trainable)} ({100 - percent:.1f} %)"
        what = self.in_words or "nothing"
        return (
            f"trainable {millions(self.trainable)} of {millions(self.total)} ({percent:.1f} "
            f"%), {frozen}; trains: {what}"
        )


def set_freeze_depth(model: Segmenter, unfrozen_blocks: int | Literal["all"]) -> FreezeReport:
    """Train the decoder and the last `unfrozen_blocks` encoder blocks; freeze everything else.

    The final norm trains together with the last block; embeddings never train. Frozen modules are
    put in eval mode. Calling it twice changes nothing. Raises ConfigError unless 0 <=
    unfrozen_blocks <= number of blocks.
    """
    if not hasattr(model, "encoder"):
        mend = (
            "On a model of your own call requires_grad_(False) and eval() on what is frozen; "
            "vitseg.audit looks at any."
        )
        raise ConfigError("model", type(model).__name__, "a model that vitseg has built", mend)
    depth = model.encoder.depth
    count = checked_depth(unfrozen_blocks, depth)
    names = trained_parts(count, depth)
    parts = model_parts(model)
    for name, part in parts.items():
        for parameter in part.parameters:
            parameter.requires_grad_(name in names)
            parameter.grad = None
    model.encoder.unfrozen_blocks = count
    model.encoder.frozen = [
        m for name, part in parts.items() if name not in names for m in part.modules
    ]
    model.encoder.frozen += model.encoder.drop_paths[: depth - count]
    model.train(model.training)
    return freeze_report(model)


def checked_depth(
    unfrozen_blocks: int | Literal["all"], depth: int, field: str = "unfrozen_blocks"
) -> int:
    """The number of blocks meant. Raises ConfigError when the encoder has fewer."""
    count = depth if unfrozen_blocks == "all" else unfrozen_blocks
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= depth:
        mend = f"This encoder has {depth} blocks; 0 freezes them all."
        raise ConfigError(field, unfrozen_blocks, f'0..{depth} or "all"', mend)
    return count


def trained_parts(unfrozen_blocks: int, depth: int) -> set[str]:
    """The names of exactly the parts that train: blocks counted from the last, so not [-n:], which
    is all at n = 0.
    """
    blocks = {f"block {i}" for i in range(depth - unfrozen_blocks + 1, depth + 1)}
    return {DECODER} | blocks | ({NORM} if unfrozen_blocks else set())


@dataclass(frozen=True, slots=True)
class Part:
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

    Works on any module that holds a transformers ViT: what is outside it counts as decoder; what is
    in it, but neither block nor final norm, as embeddings.
    """
    vit, norms, blocks = _find_vit(model)
    parts = [Part(EMBEDDINGS, None, *_outside(vit, [blocks, *norms]))]
    for number, block in enumerate(blocks, start=1):
        parts.append(Part(f"block {number}", number, [block], list(block.parameters())))
    parts.append(Part(NORM, None, norms, [p for norm in norms for p in norm.parameters()]))
    parts.append(Part(DECODER, None, *_outside(model, [vit])))
    return {part.name: part for part in parts}


def _find_vit(model: nn.Module) -> tuple[PreTrainedModel, list[nn.Module], nn.ModuleList]:
    """The ViT itself, not a transformers model with a head around it: the one whose own child is
    the final norm.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            norms = [child for child in module.children() if isinstance(child, nn.LayerNorm)]
            if norms and (blocks := find_blocks(module)):
                return module, norms, blocks
    allowed = (
        "a module that holds a plain ViT of transformers: one list of like blocks, then a LayerNorm"
    )
    mend = (
        "DINOv2, DINOv3, ViT and DeiT are such; Swin (stages of blocks) and BEiT (no norm "
        "after its last block) are not."
    )
    raise ConfigError("model", type(model).__name__, allowed, mend)


def _outside(
    module: nn.Module, excluded: list[nn.Module]
) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """All of a module but the excluded submodules: the largest pieces that hold none of them, and
    the parameters.
    """
    if any(module is e for e in excluded):
        return [], []
    inside = list(module.modules())
    if not any(m is e for m in inside for e in excluded):
        return [module], list(module.parameters())
    modules, parameters = [], list(module.parameters(recurse=False))
    for child in module.children():
        more_modules, more_parameters = _outside(child, excluded)
        modules += more_modules
        parameters += more_parameters
    return modules, parameters


def freeze_report(model: nn.Module) -> FreezeReport:
    """What trains now, counted from `requires_grad` itself."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    parts = model_parts(model).values()
    trained = [part for part in parts if any(p.requires_grad for p in part.parameters)]
    names = tuple(part.name for part in trained)
    total = sum(p.numel() for p in parameters)
    return FreezeReport(total, trainable, names, name_parts(trained))


class Named(Protocol):
    """Anything that is a part of a model, by its name and, if it is a block, its number."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int | None: ...


def name_parts(parts: Iterable[Named]) -> str:
    """Parts for a sentence, runs of blocks drawn together: "blocks 11-12, final norm, decoder"."""
    parts = list(parts)
    runs: list[list[int]] = []
    for number in sorted(part.block for part in parts if part.block):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    blocks = [f"block {r[0]}" if len(r) == 1 else f"blocks {r[0]}-{r[-1]}" for r in runs]
    names = {part.name for part in parts}
    before = [EMBEDDINGS] if EMBEDDINGS in names else []
    behind = [name for name in (NORM, DECODER) if name in names]
    return ", ".join(before + blocks + behind)


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
