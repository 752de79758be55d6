"""The detectors: is what trains what was promised, and is the learning rate the promised one?

Plain functions of a model and an optimizer, for our loop and for anybody's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from vitseg.errors import FreezeBreach, LRBreach
from vitseg.model.freeze import NORM, FreezeReport, checked_depth, model_parts, name_parts


class PartAudit(NamedTuple):
    """One part of the model: what was promised, and of how many of its parameters (numbers) that
    is so; None is not known.

    A part is in `training` mode as a whole: where all of one that should train is, or any of one
    that should not. Of one that should it is not known while the model is evaluated.
    """

    name: str
    block: int | None
    should_train: bool
    parameters: int
    requires_grad: int
    in_optimizer: int
    training: int | None
    moved: int | None
    sha256: str | None

    @property
    def broken(self) -> list[str]:
        """What is not as promised, by its name in _FAULTS; what is not known is no fault."""
        found = self.requires_grad, self.in_optimizer, self.training, self.moved
        promised = None, self.parameters * self.should_train
        return [name for name, count in zip(_FAULTS, found, strict=True) if count not in promised]


_REBUILD = "Build the optimizer of exactly what trains, after freezing."

_FAULTS = {
    "requires_grad": (
        ("can train (requires_grad is on)", "Switch requires_grad off in what should be frozen."),
        (
            "frozen (requires_grad is off), but should train",
            "Switch requires_grad on in what should train; the final norm goes with the last "
            "block.",
        ),
    ),
    "optimizer": (
        ("in the optimizer, but should be frozen", _REBUILD),
        ("not in the optimizer as a whole, but should train", _REBUILD),
    ),
    "mode": (
        (
            "in training mode, but should be frozen",
            "Call eval() on what is frozen after every train() of the model.",
        ),
        ("in eval mode, but should train", "Call train() on what trains."),
    ),
    "weights": (
        ("changed, but should be frozen", "Find out what writes to them."),
        ("unchanged, but should have trained", "Is its gradient None, or its learning rate 0?"),
    ),
}
"""How a part breaks its promise: what is found of one that should be frozen, and the hint; the same
of one that should train.
"""


class AuditReport(NamedTuple):
    """What `audit` found."""

    parts: tuple[PartAudit, ...]
    optimizer_holds: int

    @property
    def ok(self) -> bool:
        return self.breach() is None

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
        """Itself; raises its `breach` if there is one."""
        breach = self.breach(noticed)
        if breach:
            raise breach
        return self

    def breach(self, noticed: str = "") -> FreezeBreach | None:
        """Every broken promise in one sentence that names the parts, and what to do; None if all
        are kept. `noticed` is a sentence to go with it: "Noticed before step 41."
        """
        found, hints = [], []
        for fault, sides in _FAULTS.items():
            for should, (what, hint) in enumerate(sides):
                bad = [p for p in self.parts if p.should_train == should and fault in p.broken]
                if bad:
                    count = sum(part.parameters for part in bad)
                    found.append(f"{name_parts(bad)}: {what}, {count:,} parameters")
                    hints.append(hint)
        strangers = self.optimizer_holds - sum(part.in_optimizer for part in self.parts)
        if strangers > 0:
            found.append(f"the optimizer holds {strangers:,} parameters that are not the model's")
            hints.append(_REBUILD)
        if not found:
            return None
        promised = name_parts(part for part in self.parts if part.should_train)
        problem = f"Promised to train: only {promised}. Found: {'; '.join(found)}. {noticed}"
        broken = tuple(part.name for part in self.parts if part.broken)
        return FreezeBreach(problem.strip(), " ".join(dict.fromkeys(hints)), parts=broken)

    def __str__(self) -> str:
        trains = name_parts(p for p in self.parts if p.requires_grad)
        wanted = sum(p.parameters for p in self.parts if p.should_train)
        freezing = FreezeReport(self.total, self.trainable, (), trains)
        text = f"{freezing} · optimizer holds {self.optimizer_holds:,} of {wanted:,}"
        breach = self.breach()
        return f"{text}\n{breach.problem}" if breach else text


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
    depth = len(parts) - 3  # embeddings, blocks, final norm, decoder
    unfrozen = checked_depth(unfrozen_blocks, depth)
    held = set(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    since, found = since or {}, []
    for place, (name, part) in enumerate(parts.items()):
        # the final norm goes with the last block. Not asked of `freeze`: a detector must not share
        # the mistakes of what it checks
        should = {NORM: depth}.get(name, place) > depth - unfrozen
        all_or_any, count = (any, all)[should], _count(part.parameters)
        modules = chain.from_iterable(module.modules() for module in part.modules)
        training = all_or_any(module.training for module in modules)
        now, before = hashes.get(name), since.get(name)
        found.append(
            PartAudit(
                name,
                part.block,
                should,
                count,
                requires_grad=_count(p for p in part.parameters if p.requires_grad),
                in_optimizer=_count(held.intersection(part.parameters)),
                training=None if should and not model.training else training * count,
                moved=(now != before) * count if now and before else None,
                sha256=now,
            )
        )
    return AuditReport(tuple(found), _count(held))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


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
