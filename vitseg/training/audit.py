"""The detectors: is what trains what was promised, and is the learning rate the promised one?

Plain functions of a model and an optimizer, for our loop and for anybody's.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Literal, NamedTuple

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


class PartAudit(NamedTuple):
    """One part of the model: what was promised, and what is. Counts are of parameters (numbers).

    `training` is whether all of a part that should train, or any of one that should not, is in
    training mode; None of one that should, while the model is evaluated. `gradient` is the same of
    its gradients.
    """

    name: str
    block: int | None
    should_train: bool
    parameters: int
    requires_grad: int
    in_optimizer: int
    training: bool | None
    gradient: bool
    sha256: str | None
    moved: bool | None


_REBUILD = "Build the optimizer of exactly what trains, after freezing."

_FROZEN = (
    (
        "can train (requires_grad is on)",
        "Switch requires_grad off in what should be frozen.",
        lambda part: part.requires_grad,
    ),
    ("in the optimizer, but should be frozen", _REBUILD, lambda part: part.in_optimizer),
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
        _REBUILD,
        lambda part: part.in_optimizer < part.parameters,
    ),
    (
        "unchanged, but should have trained",
        "Is its gradient None, or its learning rate 0?",
        lambda part: part.parameters and part.moved is False,
    ),
    (
        "in eval mode, but should train",
        "Call train() on what trains.",
        lambda part: part.training is False,
    ),
)
"""The same of a part that should train."""


class AuditReport(NamedTuple):
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
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the weights by part, to give to a later audit as `since`."""
        return {p.name: p.sha256 for p in self.parts if p.sha256}

    def check(self, noticed: str = "") -> AuditReport:
        """Itself; raises FreezeBreach if a promise is broken. `noticed` says when that was seen:
        "before step 41".
        """
        if self.breach:
            when = f" Noticed {noticed}." if noticed else ""
            raise FreezeBreach(self.breach + when, self.mend, parts=self.broken)
        return self

    def __str__(self) -> str:
        percent, frozen = 100 * self.trainable / self.total, self.total - self.trainable
        trains = name_parts(p for p in self.parts if p.requires_grad) or "nothing"
        wanted = sum(p.parameters for p in self.parts if p.should_train)
        text = (
            f"total {self.total:,} · trainable {self.trainable:,} ({percent:.1f} %) · "
            f"frozen {frozen:,} ({100 - percent:.1f} %)\n"
            f"trains: {trains} · optimizer holds {self.optimizer_holds:,} of {wanted:,}"
        )
        return f"{text}\n{self.breach}" if self.breach else text


def audit(
    model: nn.Module,
    optimizer: Optimizer,
    unfrozen_blocks: int | Literal["all"],
    *,
    weights: bool = True,
    since: dict[str, str] | None = None,
) -> AuditReport:
    """Compare a model and its optimizer with the promise that the last `unfrozen_blocks` blocks
    train.

    Any module that holds a transformers ViT will do; everything outside it is the decoder and
    should train. With `weights` each part is hashed; against the `hashes` of an earlier report,
    `since`, it is seen what moved: a frozen part must not have, a trained one must. Nothing is
    raised here; `.check()` raises FreezeBreach.
    """
    parts, hashes = model_parts(model), part_hashes(model) if weights else {}
    depth = sum(part.block is not None for part in parts.values())
    unfrozen = checked_depth(unfrozen_blocks, depth)
    held = set(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    modules, since, found = _modules(parts), since or {}, []
    for name, part in parts.items():
        should = _promised(part, unfrozen, depth)
        all_or_any = all if should else any
        training = all_or_any(module.training for module in modules[name])
        digests = hashes.get(name), since.get(name)
        found.append(
            PartAudit(
                name=name,
                block=part.block,
                should_train=should,
                parameters=_count(part.parameters),
                requires_grad=_count(p for p in part.parameters if p.requires_grad),
                in_optimizer=_count(held.intersection(part.parameters)),
                training=None if should and not model.training else training,
                gradient=all_or_any(p.grad is not None for p in part.parameters),
                sha256=digests[0],
                moved=None if None in digests else len(set(digests)) > 1,
            )
        )
    holds = _count(held)
    return AuditReport(tuple(found), holds, *_breach(found, holds))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _promised(part: Part, unfrozen: int, depth: int) -> bool:
    """Whether a part should train. Not asked of `freeze`: a detector must not share the mistakes of
    what it checks.
    """
    if part.block is not None:
        return part.block > depth - unfrozen
    return part.name == DECODER or (part.name == NORM and unfrozen > 0)


def _modules(parts: dict[str, Part]) -> dict[str, list[nn.Module]]:
    """By part. A drop-path belongs to the one that it names as its layer."""
    found = defaultdict(list)
    for name, part in parts.items():
        for module in chain.from_iterable(piece.modules() for piece in part.modules):
            found[module.layer if isinstance(module, KeyedDropPath) else name].append(module)
    return found


def _breach(parts: Sequence[PartAudit], holds: int) -> tuple[str, tuple[str, ...], str]:
    """Every broken promise in one sentence that names the parts; the parts; and what to do. Empty
    if there is none.
    """
    found, wrong, hints = [], [], []
    for should_train, faults in enumerate((_FROZEN, _TRAINED)):
        promised = [part for part in parts if part.should_train == should_train]
        for what, hint, broken in faults:
            bad = list(filter(broken, promised))
            if bad:
                count = millions(sum(part.parameters for part in bad))
                found.append(f"{name_parts(bad)}: {what}, {count} parameters")
                hints.append(hint)
                wrong += bad
    strangers = holds - sum(part.in_optimizer for part in parts)
    if strangers > 0:
        found.append(f"the optimizer holds {strangers:,} parameters that are not the model's")
        hints.append(_REBUILD)
    if not found:
        return "", (), ""
    problem = f"Promised to train: only {name_parts(promised)}. Found: {'; '.join(found)}."
    names = tuple(part.name for part in parts if part in wrong)
    return problem, names, " ".join(dict.fromkeys(hints))


@torch.no_grad()
def part_hashes(model: nn.Module, names: Collection[str] | None = None) -> dict[str, str]:
    """SHA-256 of the weights by part, as an audit has them; of all parts by default."""
    digests = {}
    for name, part in model_parts(model).items():
        if names and name not in names:
            continue
        digest = hashlib.sha256()
        for parameter in part.parameters:
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        digests[name] = digest.hexdigest()
    return digests


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
                    "Something moved the LR out of turn: a scheduler stepped too often, in "
                    "validation, or not at all.",
                )
