"""A run in sentences and in numbers: `explain`, `summary.json`, the console and the model card take
what they say from here. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from textwrap import indent
from typing import Any

from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    FeaturesUsed,
    Parent,
    Part,
    RunEnded,
    RunResumed,
    RunStarted,
    Scores,
    StageEnded,
    StageStarted,
)
from vitseg.runs.folder import Failure, RunFolder


def explain(folder: str | Path) -> str:
    """The run in a folder, a paragraph for each stage; also of one that goes on, was cut off, or
    failed.
    """
    run = RunFolder(folder)
    return Narrator(run.events()).explanation(run.failure())


@dataclass(slots=True)
class StageRecord:
    """A stage as far as its events go."""

    start: StageStarted
    before: float
    """Seconds of work on the run until it started."""

    end: StageEnded | None = None
    seconds: float = 0.0
    steps: int = 0
    skipped: int = 0
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Learning rates by parameter group: the first, the last, the lowest and the highest."""

    def add(self, event: BatchEnded) -> None:
        self.steps += 1
        self.skipped += not event.stepped
        for group, now in event.lr.items():
            first, _, low, high = self.rates.get(group, (now,) * 4)
            self.rates[group] = first, now, min(low, now), max(high, now)


class Narrator:
    """A run read from its events, then said. `seconds` are the times of the events, since the start
    of the run; it is enough to give them for `summary`.
    """

    def __init__(self, events: Iterable[Event], seconds: Iterable[float] = repeat(0.0)):
        self.start: RunStarted | None = None
        self.stages: list[StageRecord] = []
        self.end: RunEnded | None = None
        self.seconds = 0.0
        for event, now in zip(events, seconds, strict=False):
            match event:
                case RunStarted():
                    self.start = event
                case StageStarted():
                    self.stages.append(StageRecord(event, self.seconds))
                case BatchEnded():
                    self.stages[-1].add(event)
                case StageEnded():
                    stage = self.stages[-1]
                    stage.end, stage.seconds = event, now - stage.before
                case RunEnded():
                    self.end = event
            self.seconds = now

    def explanation(self, failure: Failure | None = None) -> str:
        """What `explain` says. `failure` is what ended the run, if something did."""
        paragraphs = [_opening(self.start)] if self.start else []
        paragraphs += map(_paragraph, self.stages)
        if self.end:
            paragraphs.append(_closing(self.end))
        elif failure:
            paragraphs.append(f"It ended with {failure.kind}: {failure.says}")
        else:
            paragraphs.append("It has not ended.")
        return "\n\n".join(paragraphs)

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`, as far as the run has come."""
        run, end = self.start, self.end
        if not run:
            return {"stages": []}
        rows = [_row(run, stage) for stage in self.stages]
        summary = {
            "name": run.recipe["name"],
            "data": run.recipe["data"]["source"]["kind"],
            "classes": run.classes,
            "mode": run.mode,
            "score": score_name(run),
            "images": {
                "train": run.train_images,
                "validation": run.validation_images,
                "test": run.test_images,
            },
            "masks": run.masks,
            "encoder": run.encoder,
            "stages": rows,
        }
        if end:
            rows[-1]["test"] = end.test and _shown(end.test)
            summary |= {"best": end.best, "test": end.test, "seconds": round(self.seconds, 1)}
        return summary


def _row(run: RunStarted, stage: StageRecord) -> dict[str, Any]:
    start, end = stage.start, stage.end
    kind = run.recipe["stages"][start.stage - 1]["schedule"]["kind"]
    clock = start.schedule.partition(" / ")[2]
    row = {
        "name": start.name,
        "unfrozen_blocks": start.unfrozen_blocks,
        "trainable": start.trainable,
        "total": start.total,
        "schedule": {"kind": kind, "steps_per": clock, "steps_taken": 0},
    }
    if stage.steps:
        first, last, *_ = stage.rates["decoder"]
        row["lr"] = {"first": first, "last": last}
    if end:
        inherited = run.parent and start.stage <= run.parent["stage"]
        row["schedule"]["steps_taken"] = end.schedule_steps
        row |= {
            "epochs": end.epochs,
            "seconds": None if inherited else round(stage.seconds, 1),
            "best": _shown(end.best),
            "best_epoch": end.best_epoch,
            "stopped_early": end.stopped_early,
            "audit": end.audit,
            "warning": end.warning,
            "test": None,
        }
    return row


def _shown(scores: Scores) -> dict[str, Any]:
    return {name: scores[name] for name in ("iou", "f1", "accuracy", "per_class_iou")}


def _opening(run: RunStarted) -> str:
    test = f", {run.test_images:,} for a test" if run.test_images else ""
    text = (
        f"Run {run.recipe['name']}: {run.encoder.get('name', 'an encoder')} with {run.blocks} "
        f"blocks and the {run.recipe['model']['decoder']} decoder, {run.train_images:,} training "
        f"and {run.validation_images:,} validation images{test}, on {run.device}. "
        f"IoU is {score_name(run)}."
    )
    if run.parent:
        last = run.parent["stage"]
        which = "Stage 1 is" if last == 1 else f"Stages 1 to {last} are"
        text += f" {which} taken from run {run.parent['run']}, not trained again."
    return text


def _paragraph(stage: StageRecord) -> str:
    start, end = stage.start, stage.end
    count = sum(part["in_optimizer"] for part in start.parts)
    held, promised = _listed(start.parts, "in_optimizer"), _listed(start.parts, "trains")
    sentences = [
        f"Stage {start.stage}, {start.name!r}: the optimizer held {count:,} of {start.total:,} "
        f"parameters ({100 * count / start.total:.1f} %), those of {held}."
    ]
    if held != promised:
        sentences.append(f"Promised to train: {promised}.")
    sentences.append(_steps(stage))
    if end:
        sentences.append(_result(start.validation["iou"], end))
        if end.stopped_early:
            sentences.append(f"It stopped early, after {end.epochs} of {start.epochs} epochs.")
        sentences += [end.audit, end.warning]
    return " ".join(filter(None, sentences))


def _listed(parts: Sequence[Part], which: str) -> str:
    """Those of which `which` holds: "blocks 11 to 12, the final norm and the decoder". Parts come
    in order of computation: embeddings, block 1 .. L, final norm, decoder.
    """
    names: list[str] = []
    first = 0  # of the blocks in a row
    for number, part in enumerate(parts):
        if not part[which]:
            first = 0
        elif not 0 < number < len(parts) - 2:
            names.append(f"the {part['name']}")
        elif first:
            names[-1] = f"blocks {first} to {number}"
        else:
            first = number
            names.append(f"block {number}")
    *most, last = names or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def _steps(stage: StageRecord) -> str:
    if not stage.steps:
        return "It took no step."
    groups: dict[tuple[float, ...], str] = {}
    for group, rates in stage.rates.items():  # those that differ in weight decay alone, once
        groups.setdefault(rates, f"{group.partition(',')[0]} {_course(*rates)}")
    epochs, moved = "", ""
    if stage.end:
        epochs = f" in {stage.end.epochs} epochs"
        moved = f", which moved {stage.end.schedule_steps:,} times"
    text = (
        f"{stage.steps:,} steps{epochs}, at learning rates of {', '.join(groups.values())}; "
        f"schedule {stage.start.schedule}{moved}."
    )
    if stage.skipped:
        text += f" {stage.skipped} of them were skipped, for an overflow of half precision."
    return text


def _course(first: float, last: float, low: float, high: float) -> str:
    """ "2.00e-03 throughout", "2.00e-03 to 1.00e-03", and what lay outside these two on the way"""
    if low == high:
        return f"{first:.2e} throughout"
    lower = f", down to {low:.2e} on the way" if low < min(first, last) else ""
    higher = f", up to {high:.2e} on the way" if high > max(first, last) else ""
    return f"{first:.2e} to {last:.2e}{lower}{higher}"


def _result(before: float | None, end: StageEnded) -> str:
    after = end.best["iou"]
    if before is None or after is None:
        return "There is no IoU: the truth holds nothing that is scored."
    if end.best_epoch == 0:
        return (
            f"No epoch beat the weights that it began with (IoU {before:.3f}), so these are "
            "handed on."
        )
    return (
        f"Validation IoU {before:.3f} before, {after:.3f} after epoch {end.best_epoch}, "
        f"its best ({after - before:+.3f})."
    )


def _closing(end: RunEnded) -> str:
    test = ""
    if end.test:
        test = f" The test images, scored once at the end, gave {number_or_na(end.test['iou'])}."
    return (
        f"The best weights have a validation IoU of {number_or_na(end.best['iou'])}, and were "
        f"chosen by it.{test} Whether the later stages earned their part, or more epochs of the "
        "first would have done as well, one run cannot say: vitseg.ablate can."
    )


def line(event: Event) -> str:
    """What there is to say of an event while the run goes on, if anything; it may be more lines."""
    match event:
        case RunStarted():
            return _announcement(event)
        case RunResumed():
            return "\n".join([*event.skipped, f"Going on after step {event.step}."])
        case StageStarted():
            notes = indent("\n".join([event.audit, *event.notes]), "  ")
            return (
                f"\nStage {event.stage}: {event.name} · {event.schedule} · {event.epochs} "
                f"epoch{'s' * (event.epochs != 1)}\n{notes}\n"
                f"  start weights: valid IoU {number_or_na(event.validation['iou'])}"
            )
        case FeaturesUsed() if event.note:
            return f"  {event.note} The numbers stay the same."
        case EpochEnded():
            valid = event.validation
            return (
                f"  epoch {event.epoch:3d}  last LR {event.lr['decoder']:.2e}  loss "
                f"{event.train['loss']:.3f}, valid {valid['loss']:.3f}  IoU "
                f"{number_or_na(valid['iou'])}  F1 {number_or_na(valid['f1'])}"
                f"{'  best so far' * event.best}"
            )
        case StageEnded():
            best = "the start weights, which no epoch has beaten"
            if event.best_epoch:
                best = f"the stage's epoch {event.best_epoch} of {event.epochs}"
            warning = f"\n  Warning: {event.warning}" if event.warning else ""
            return (
                f"  {event.audit}\n  best: {best}{', stopped early' * event.stopped_early}, "
                f"valid IoU {number_or_na(event.best['iou'])}"
                f"{warning}"
            )
    return ""


def _announcement(run: RunStarted) -> str:
    encoder = run.encoder
    processes = f" in each of {run.processes} processes" if run.processes > 1 else ""
    inherited = f"\n{inherited_words(run.parent)}" if run.parent else ""
    return (
        f"{run.recipe['name']}: {run.train_images} train, {run.validation_images} validation, "
        f"{run.test_images} test images · {len(run.classes)} classes, {run.mode}; "
        f"masks: {run.masks}\n"
        f"encoder {encoder['name']} ({encoder['source']}, sha256 {encoder['sha256'][:12]})\n"
        f"{run.device}, {run.precision}, {run.threads} thread{'s' * (run.threads != 1)}"
        f"{processes}{inherited}"
    )


def inherited_words(parent: Parent) -> str:
    """Which stages of a run are another's: `RunStarted.parent` in a sentence."""
    last = parent["stage"]
    which = "Stage 1 is that" if last == 1 else f"Stages 1 to {last} are those"
    return (
        f"{which} of run {parent['run']}: the same settings, data and weights, so not trained "
        "again."
    )


def score_name(run: RunStarted) -> str:
    """What IoU and F1 are over, for headers and hovers."""
    if run.mode == "binary":
        return f"of {run.classes[1]!r}"
    if run.recipe["data"]["score_background"]:
        return f"mean over the classes present in the truth, of {len(run.classes)}"
    return f"mean over classes present but {run.classes[0]!r}"


def number_or_na(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
