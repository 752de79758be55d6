"""A run as text: a progress bar, what each stage is about to train, a line an epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    FeaturesUsed,
    RunResumed,
    RunStarted,
    StageEnded,
    StageStarted,
)
from vitseg.ui.table import inherited_words, number_or_na


def progress(events: Iterable[Event]) -> Iterator[Event]:
    """Pass events on and show them on standard output."""
    bar: tqdm | None = None
    batches, told = 0, ""
    for event in events:
        match event:
            case RunStarted():
                batches = event.batches_per_epoch
                say(_run_line(event))
                if event.parent:
                    say(inherited_words(event.parent))
            case RunResumed():
                say("\n".join([*event.skipped, f"Going on after step {event.step}."]))
            case StageStarted():
                say(
                    f"\nStage {event.stage}: {event.name} · {event.schedule} · {event.epochs} "
                    f"epoch{'s' * (event.epochs != 1)}"
                )
                say("\n".join(f"  {line}" for line in [*event.audit.splitlines(), *event.notes]))
                say(f"  start weights: valid IoU {number_or_na(event.validation['iou'])}")
                bar = _bar(event.stage, event.epochs * batches)
            case BatchEnded():
                batches = event.batches
                bar = _bar(event.stage) if bar is None else bar  # a resumed stage has begun before
                bar.set_postfix_str(
                    f"loss {event.loss:.3f}, LR {event.lr['decoder']:.2e}", refresh=False
                )
                bar.update()
            case FeaturesUsed() if event.note not in ("", told):
                told = event.note
                say(f"  {told} The numbers stay the same.")
            case EpochEnded():
                say(_epoch_line(event))
            case StageEnded():
                if bar is not None:
                    bar.close()
                bar = None
                say(f"  {event.audit}")
                early = ", stopped early" if event.stopped_early else ""
                say(f"  best: {_best(event)}{early}, valid IoU {number_or_na(event.best['iou'])}")
                if event.warning:
                    say(f"  Warning: {event.warning}")
        yield event


def _best(event: StageEnded) -> str:
    if not event.best_epoch:
        return "the start weights, which no epoch has beaten"
    return f"the stage's epoch {event.best_epoch} of {event.epochs}"


def _bar(stage: int, batches: int | None = None) -> tqdm:
    return tqdm(
        total=batches,
        desc=f"stage {stage}",
        unit="batch",
        file=sys.stdout,
        leave=False,
        mininterval=0.5,
    )


def _run_line(event: RunStarted) -> str:
    images = (
        f"{event.train_images} train, {event.validation_images} validation, "
        f"{event.test_images} test"
    )
    encoder = (
        f"{event.encoder['name']} ({event.encoder['source']}, sha256 "
        f"{event.encoder['sha256'][:12]})"
    )
    return (
        f"{event.recipe['name']}: {images} images · {len(event.classes)} classes, {event.mode}; "
        f"masks: {event.masks}\n"
        f"encoder {encoder}\n{event.device}, {event.precision}, {event.threads} "
        f"thread{'s' * (event.threads != 1)}"
        f"{f' in each of {event.processes} processes' * (event.processes > 1)}"
    )


def _epoch_line(event: EpochEnded) -> str:
    v = event.validation
    return (
        f"  epoch {event.epoch:3d}  last LR {event.lr['decoder']:.2e}  loss "
        f"{event.train['loss']:.3f}, valid {v['loss']:.3f}  "
        f"IoU {number_or_na(v['iou'])}  F1 "
        f"{number_or_na(v['f1'])}{'  best so far' if event.best else ''}"
    )


def say(text: str) -> None:
    """A line that leaves the progress bar below it."""
    tqdm.write(text, file=sys.stdout)
