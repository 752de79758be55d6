"""The detectors: is what trains what was promised, and is the learning rate the promised one?

Plain functions of a model and an optimizer, for our loop and for anybody's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from vitseg.errors import FreezeBreach, LRBreach
from vitseg.model.freeze import (
    DECODER,
    NORM,
    Part,
    checked_depth,
    millions,
    model_parts,
    name_parts,
)
from vitseg.model.noise import KeyedDropPath


@dataclass(frozen=True, slots=True)
class PartAudit:
    """One part of the model: what was promised, and what is. Counts are of parameters (numbers).

    `training` is whether all of a part that should train, or any of one that should not, is in
    training mode.
    """

    name: str
    should_train: bool
    parameters: int
    requires_grad: int
    in_optimizer: int
    training: bool
    drop_path: float
    gradient: bool | None
    sha256: str | None
    moved: bool | None
    block: int | None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `audit` found. `breach` says which promises are broken, `broken` by which parts, `mend`
    what cures it.
    """

    parts: tuple[PartAudit, ...]
    optimizer_holds: int
    breach: str
    broken: tuple[str, ...]
    mend: str

    @property
    def ok(self) -> bool:
        return not self.breach

    @property
    def total(self) -> int:
        return sum(p.parameters for p in self.parts)

    @property
    def trainable(self) -> int:
        return sum(p.requires_grad for p in self.parts)

    @property
    def hashes(self) -> dict[str, str | None]:
        """SHA-256 of the weights by part, to give to a later audit as `since`."""
        return {p.name: p.sha256 for p in self.parts}

    def check(self, noticed: str = "") -> AuditReport:
        """Itself; raises FreezeBreach if a promise is broken. `noticed` says when that was seen:
        "before step 41".
        """
        if self.breach:
            raise FreezeBreach(
                f"{self.breach}{f' Noticed {noticed}.' if noticed else ''}", self.mend, self.broken
            )
        return self

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(p) for p in self.parts]

    def __str__(self) -> str:
        percent = 100 * self.trainable / self.total
        frozen = self.total - self.trainable
        trains = name_parts(p for p in self.parts if p.requires_grad) or "nothing"
        wanted = sum(p.parameters for p in self.parts if p.should_train)
        counts = [
            f"total {self.total:,}",
            f"trainable {self.trainable:,} ({percent:.1f} %)",
            f"frozen {frozen:,}",
        ]
        lines = [
            " · ".join(counts) + f" ({100 - percent:.1f} %)",
            f"trains: {trains} · optimizer holds {self.optimizer_holds:,} of {wanted:,}",
        ]
        return "\n".join([*lines, *([self.breach] if self.breach else [])])


def audit(
    model: nn.Module,
    optimizer: Optimizer,
    unfrozen_blocks: int | Literal["all"],
    *,
    weights: bool = True,
    since: dict[str, str | None] | None = None,
) -> AuditReport:
    """Compare a model and its optimizer with the promise that the last `unfrozen_blocks` blocks
    train.

    Any module that holds a transformers ViT will do; everything outside it is the decoder and
    should train. With `weights` each part is hashed; against the `hashes` of an earlier report,
    `since`, it is seen what moved: a frozen part must not have, a trained one must. Nothing is
    raised here; `.check()` raises FreezeBreach.
    """
    parts = model_parts(model)
    depth = max(part.block or 0 for part in parts.values())
    unfrozen = checked_depth(unfrozen_blocks, depth)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    drop_paths = [m for m in model.modules() if isinstance(m, KeyedDropPath)]
    found = []
    for part in parts.values():
        seen = _look(part, _promised(part, unfrozen, depth), held, drop_paths)
        if weights:
            seen = _hashed(seen, part, (since or {}).get(part.name))
        found.append(seen)
    strangers = _strangers(optimizer, parts.values())
    holds = sum(p.in_optimizer for p in found) + strangers
    return AuditReport(tuple(found), holds, *_breach(found, strangers, model.training))


def _strangers(optimizer: Optimizer, parts: Collection[Part]) -> int:
    """How many parameters the optimizer holds that are not the model's."""
    known = {id(p) for part in parts for p in part.parameters}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(p.numel() for p in held if id(p) not in known)


def _hashed(seen: PartAudit, part: Part, before: str | None) -> PartAudit:
    """With the digest of the part's weights, and whether it is another one than `before`."""
    digest = _sha256(part)
    return replace(seen, sha256=digest, moved=None if before is None else digest != before)


def _promised(part: Part, unfrozen: int, depth: int) -> bool:
    """Whether a part should train. Not asked of `freeze`: a detector must not share the mistakes of
    what it checks.
    """
    if part.block is not None:
        return part.block > depth - unfrozen
    return part.name == DECODER or (part.name == NORM and unfrozen > 0)


def _look(part: Part, should: bool, held: set[int], drop_paths: list[KeyedDropPath]) -> PartAudit:
    """A part as it is, its weights apart."""
    own = [d for d in drop_paths if d.layer == part.name]
    modes = [module.training for module in [*own, *_modules(part)]]
    gradients = [p.grad is not None for p in part.parameters]
    return PartAudit(
        name=part.name,
        should_train=should,
        parameters=sum(p.numel() for p in part.parameters),
        requires_grad=sum(p.numel() for p in part.parameters if p.requires_grad),
        in_optimizer=sum(p.numel() for p in part.parameters if id(p) in held),
        training=all(modes) if should else any(modes),
        drop_path=max((d.rate for d in own if d.training), default=0.0),
        gradient=all(gradients) if should else any(gradients),
        sha256=None,
        moved=None,
        block=part.block,
    )


def _modules(part: Part) -> Iterator[nn.Module]:
    """All that have a mode of their own; drop-paths are told by their layer."""
    for module in part.modules:
        for inside in module.modules():
            if not isinstance(inside, KeyedDropPath | nn.ModuleList):
                yield inside


_BUILD = "Build the optimizer of exactly what trains, after freezing."

_FROZEN = (
    (
        "can train (requires_grad is on)",
        "Switch requires_grad off in what should be frozen.",
        lambda part: part.requires_grad > 0,
    ),
    ("in the optimizer, but should be frozen", _BUILD, lambda part: part.in_optimizer > 0),
    (
        "in training mode, but should be frozen",
        "Call eval() on what is frozen after every train() of the model.",
        lambda part: part.training,
    ),
    ("changed, but should be frozen", "Find out what writes to them.", lambda part: part.moved),
)
"""How a part breaks the promise that it is frozen: what is found, the hint, and the test."""

_TRAINED = (
    (
        "frozen (requires_grad is off), but should train",
        "Switch requires_grad on in what should train; the final norm goes with the last block.",
        lambda part: part.requires_grad < part.parameters,
    ),
    (
        "not in the optimizer as a whole, but should train",
        _BUILD,
        lambda part: part.in_optimizer < part.parameters,
    ),
    (
        "unchanged, but should have trained",
        "Is its gradient None, or its learning rate 0?",
        lambda part: part.moved is False and part.parameters > 0,
    ),
)
"""The same of a part that should train."""

_IN_EVAL_MODE = (
    "in eval mode, but should train",
    "Call train() on what trains.",
    lambda part: not part.training and part.parameters > 0,
)
"""Only while the model is in training mode: an evaluation is no fault."""


def _breach(
    parts: Sequence[PartAudit], strangers: int, training: bool
) -> tuple[str, tuple[str, ...], str]:
    """Every broken promise in one sentence that names the parts; the parts; and what to do. Empty
    if there is none.
    """
    found, hints, wrong = [], [], set[str]()
    for what, hint, bad in _broken(parts, training):
        count = millions(sum(part.parameters for part in bad))
        found.append(f"{name_parts(bad)}: {what}, {count} parameters")
        hints.append(hint)
        wrong |= {part.name for part in bad}
    if strangers:
        found.append(f"the optimizer holds {strangers:,} parameters that are not the model's")
        hints.append(_BUILD)
    if not found:
        return "", (), ""
    trained = name_parts(part for part in parts if part.should_train)
    promise = f"Promised to train: only {trained}. Found: {'; '.join(found)}."
    names = tuple(part.name for part in parts if part.name in wrong)
    return promise, names, " ".join(dict.fromkeys(hints))


def _broken(
    parts: Sequence[PartAudit], training: bool
) -> Iterator[tuple[str, str, list[PartAudit]]]:
    """What is found, the hint, and the parts of which it is found."""
    trained = [p for p in parts if p.should_train]
    frozen = [p for p in parts if not p.should_train]
    kinds = [(kind, frozen) for kind in _FROZEN] + [(kind, trained) for kind in _TRAINED]
    if training:
        kinds.append((_IN_EVAL_MODE, trained))
    for (what, hint, broken), promised in kinds:
        bad = [part for part in promised if broken(part)]
        if bad:
            yield what, hint, bad


@torch.no_grad()
def _sha256(part: Part) -> str:
    digest = hashlib.sha256()
    for parameter in part.parameters:
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def part_hashes(model: nn.Module, names: Collection[str] | None = None) -> dict[str, str | None]:
    """SHA-256 of the weights by part, as an audit has them; of all parts by default."""
    return {
        name: _sha256(part)
        for name, part in model_parts(model).items()
        if names is None or name in names
    }


def what_moved(report: AuditReport) -> str:
    """The audit's last word on a stage, in a sentence."""
    frozen = name_parts(p for p in report.parts if not p.should_train)
    trained = name_parts(p for p in report.parts if p.should_train)
    return (
        f"Frozen and bit-equal to the start of the stage: {frozen}. Trained and moved: {trained}."
    )


class LRContract:
    """The promised learning rate of every step, to be held against what an optimizer would use.

    `planned[n]` is the base LR of step `first_step + n`. Each parameter group is held to `planned *
    lr_factor`, its own `lr_factor` if it has one, else 1.
    """

    def __init__(self, planned: Sequence[float], first_step: int = 1):
        self.planned, self.first_step = planned, first_step

    def check(self, step: int, optimizer: Optimizer) -> None:
        """Raises LRBreach unless every group stands at the LR promised for `step`."""
        place = step - self.first_step
        if not 0 <= place < len(self.planned):
            raise LRBreach(f"Step {step} is outside the plan of {len(self.planned)} steps.")
        for number, group in enumerate(optimizer.param_groups):
            promised = self.planned[place] * group.get("lr_factor", 1.0)
            used = float(group["lr"])
            if not math.isclose(promised, used, rel_tol=1e-9, abs_tol=1e-15):
                name = group.get("name", f"group {number}")
                raise LRBreach(
                    f"Step {step}: the LR of {name!r} is {used:.6g}, promised was {promised:.6g} "
                    f"({used / promised if promised else math.inf:.4g} times).",
                    (
                        "Something moved the LR out of turn: a scheduler stepped too often, in "
                        "validation, or not at all."
                    ),
                )
