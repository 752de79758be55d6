"""What happened: plain records of numbers and strings, the same for a live run, a log file and a chart."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all records. A `transient` one is shown while it happens and not logged."""

    transient: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """The run as resolved: what "auto" became, how many images, which classes, which weights.

    `parent` is, for a fork, the run whose stages 1 .. `stage` were inherited.
    """

    recipe: dict[str, Any]
    classes: list[str]
    mode: str
    train_images: int
    validation_images: int
    test_images: int
    batches_per_epoch: int
    blocks: int
    device: str
    precision: str
    threads: int
    encoder: dict[str, str]
    masks: str
    parent: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A stage before its first step: what trains, the audit's sentence, and the score of its start weights."""

    stage: int
    name: str
    epoch: int
    step: int
    epochs: int
    unfrozen_blocks: int
    schedule: str
    total: int
    trainable: int
    parts: list[dict[str, Any]]
    audit: str
    notes: list[str]
    validation: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchEnded(Event):
    """One optimizer step: the loss, and the LR that was used, by parameter group.

    `step` and `epoch` count over the whole run from 1; `batch` of `batches` is the place in the epoch.
    `stepped` is False where mixed precision overflowed and the optimizer skipped the step.
    """

    stage: int
    epoch: int
    step: int
    batch: int
    batches: int
    loss: float
    lr: dict[str, float]
    grad_norm: float | None
    stepped: bool = True


@dataclass(frozen=True, slots=True)
class ValidationBatch(Event):
    """Progress of an evaluation."""

    transient: ClassVar[bool] = True
    stage: int
    epoch: int
    batch: int
    batches: int


@dataclass(frozen=True, slots=True)
class FeaturesUsed(Event):
    """Where the frozen features of an epoch's views came from; `note` says why they are not kept, if they are not."""

    transient: ClassVar[bool] = True
    stage: int
    epoch: int
    read: int
    computed: int
    note: str


@dataclass(frozen=True, slots=True)
class RunResumed(Event):
    """A run that goes on after optimizer step `step`, and what was found wrong on the way there."""

    transient: ClassVar[bool] = True
    step: int
    skipped: list[str]


@dataclass(frozen=True, slots=True)
class EpochEnded(Event):
    """An epoch after its validation. `train` is measured on the way, in training mode, at network size."""

    stage: int
    epoch: int
    step: int
    lr: dict[str, float]
    train: dict[str, Any]
    validation: dict[str, Any]
    best: bool


@dataclass(frozen=True, slots=True)
class StageEnded(Event):
    """A stage after its last step. `best_epoch` counts in the stage; 0 means its start weights were not beaten."""

    stage: int
    epoch: int
    step: int
    epochs: int
    schedule_steps: int
    best_epoch: int
    best: dict[str, Any]
    stopped_early: bool
    audit: str


@dataclass(frozen=True, slots=True)
class RunEnded(Event):
    """The end: the best weights' score on the validation images, and once on the test images if there are any."""

    best: dict[str, Any]
    test: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class TrialStarted(Event):
    """A trial of a sweep before its first event."""

    trial: str


@dataclass(frozen=True, slots=True)
class TrialEnded(Event):
    """A trial of a sweep after its last event; `error` is why it failed, or None."""

    trial: str
    error: str | None


_KINDS = {c.__name__: c for c in Event.__subclasses__()}


def to_json(event: Event, seq: int) -> str:
    """One line of `events.jsonl`."""
    record = {"seq": seq, "event": type(event).__name__} | dataclasses.asdict(event)
    return json.dumps(record, allow_nan=False, separators=(",", ":"))


def from_json(line: str) -> Event:
    """The event of a line of `events.jsonl`. Raises ValueError for a torn or foreign line."""
    record = json.loads(line)
    try:
        record.pop("seq")
        return _KINDS[record.pop("event")](**record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of this version: {line[:80]}") from error
