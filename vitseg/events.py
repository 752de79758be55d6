"""What happened: plain records of numbers and strings, the same for a live run, a log file and a
chart.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, dataclass_transform

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from vitseg.words import json_of


class Scores(TypedDict):
    """What an evaluation found (`vitseg.training.metrics.scores`); None where there is no truth to
    compare with.
    """

    loss: float | None
    iou: float | None
    f1: float | None
    f1_macro: float | None
    f1_micro: float | None
    f1_weighted: float | None
    accuracy: float | None
    per_class_iou: list[float | None]
    per_class_f1: list[float | None]


class Part(TypedDict):
    """A part of a model when a stage began: how many parameters, whether they train, how many the
    optimizer holds. `block` is its number, from 1, if it is a block.
    """

    name: str
    parameters: int
    trains: bool
    in_optimizer: int
    block: int | None


def _numbered(parts: Any) -> Any:
    """Of a log from before blocks had numbers: embeddings, block 1 .. L, final norm, decoder. Of
    what is no such list it raises what `from_json` expects.
    """
    for place, part in enumerate(parts):
        part.setdefault("block", place if 0 < place < len(parts) - 2 else None)
    return parts


def _with_decoder(rates: dict[str, float]) -> dict[str, float]:
    if "decoder" not in rates:
        raise ValueError("no LR of the decoder")
    return rates


Rates = Annotated[dict[str, float], AfterValidator(_with_decoder)]
"""The LR by parameter group, that of the decoder among them."""


class Parent(TypedDict):
    """The run whose stages 1 .. `stage` were inherited."""

    run: str
    stage: PositiveInt


_KINDS: dict[str, TypeAdapter[Event]] = {}
"""The kinds of events by name, as `from_json` reads them."""


@dataclass_transform(frozen_default=True)
def record(kind: type[Any]) -> type[Any]:
    """A kind of event: immutable fields, which are written to the log and read from it."""
    made = dataclass(frozen=True, slots=True)(kind)
    _KINDS[kind.__name__] = TypeAdapter(made)
    return made


@record
class Event:
    """Base of all records. A `transient` one is shown while it happens and not logged."""

    transient: ClassVar[bool] = False
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@record
class StageEvent(Event):
    """Something that happened in a stage. Its `epoch` is counted over the whole run."""

    stage: PositiveInt


@record
class RunStarted(Event):
    """The run as resolved: what "auto" became, how many images, which classes, which weights.

    `parent` is that of a fork, or of a run whose first stages were found.
    """

    recipe: dict[str, Any]
    classes: list[str]
    mode: str
    train_images: int
    validation_images: int
    test_images: int
    batches_per_epoch: PositiveInt
    blocks: int
    device: str
    precision: str
    threads: int
    encoder: dict[str, str]
    masks: str
    parent: Parent | None = None
    processes: PositiveInt = 1


@record
class StageStarted(StageEvent):
    """A stage before its first step: what trains, the audit's sentence, and the score of its start
    weights.
    """

    name: str
    epoch: NonNegativeInt
    step: NonNegativeInt
    epochs: NonNegativeInt
    unfrozen_blocks: int
    schedule: str
    total: int
    trainable: int
    parts: Annotated[list[Part], BeforeValidator(_numbered)]
    audit: str
    notes: list[str]
    validation: Scores


@record
class BatchEnded(StageEvent):
    """One optimizer step: the loss, and the LR that was used, by parameter group.

    `step` and `epoch` count over the whole run from 1; `batch` of `batches` is the place in the
    epoch. `stepped` is False where mixed precision overflowed and the optimizer skipped the step.
    """

    epoch: NonNegativeInt
    step: NonNegativeInt
    batch: PositiveInt
    batches: PositiveInt
    loss: float
    lr: Rates
    grad_norm: float | None
    stepped: bool = True


@record
class ValidationBatch(StageEvent):
    """Progress of an evaluation."""

    transient: ClassVar[bool] = True
    epoch: NonNegativeInt
    batch: PositiveInt
    batches: PositiveInt


@record
class FeaturesUsed(StageEvent):
    """Where the frozen features of an epoch's views came from; `note` says why they are not kept,
    if they are not.
    """

    transient: ClassVar[bool] = True
    epoch: NonNegativeInt
    read: int
    computed: int
    note: str


@record
class RunResumed(Event):
    """A run that goes on after optimizer step `step`, and what was found wrong on the way there."""

    transient: ClassVar[bool] = True
    step: NonNegativeInt
    skipped: list[str]


@record
class EpochEnded(StageEvent):
    """An epoch after its validation. `train` is measured on the way, in training mode, at network
    size.
    """

    epoch: NonNegativeInt
    step: NonNegativeInt
    lr: Rates
    train: Scores
    validation: Scores
    best: bool


@record
class StageEnded(StageEvent):
    """A stage after its last step. `best_epoch` counts in the stage; 0 means its start weights were
    not beaten.

    `warning` says what is wrong with the best weights, if something is, and what to do about it.
    """

    epoch: NonNegativeInt
    step: NonNegativeInt
    epochs: NonNegativeInt
    schedule_steps: int
    best_epoch: int
    best: Scores
    stopped_early: bool
    audit: str
    warning: str = ""


@record
class RunEnded(Event):
    """The end: the best weights' score on the validation images, and once on the test images if
    there are any.
    """

    best: Scores
    test: Scores | None


@record
class TrialStarted(Event):
    """A trial of a sweep before its first event."""

    trial: str


@record
class Polled(Event):
    """Trials on other machines were asked after; so many are under way, or wait for room."""

    transient: ClassVar[bool] = True
    running: int


@record
class TrialEnded(Event):
    """A trial of a sweep after its last event; `error` is why it failed, or None."""

    trial: str
    error: str | None


def to_json(event: Event, seq: int) -> str:
    """One line of `events.jsonl`."""
    record = {"seq": seq, "event": type(event).__name__} | dataclasses.asdict(event)
    return json.dumps(record, allow_nan=False, separators=(",", ":"))


def from_json(line: str, seq: int) -> Event:
    """The event of line `seq` of `events.jsonl`, from 1. Raises ValueError for a torn or foreign
    one.
    """
    record = json_of(line)
    try:
        if record.pop("seq") != seq:
            raise ValueError(
                f"line {seq} has another number; lines are missing, or have been added"
            )
        return _KINDS[record.pop("event")].validate_json(json.dumps(record))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"line {seq}: {where}: got {first['input']!r:.80}; {first['msg']}"
        ) from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"line {seq}: not an event of this version: {line[:80]}") from None
