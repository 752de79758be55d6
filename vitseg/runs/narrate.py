"""A run in sentences and in numbers: `explain`, `summary.json`, the console and the model card take
what they say from here. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    FeaturesUsed,
    Parent,
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
    batches: list[BatchEnded] = field(default_factory=list)
    end: StageEnded | None = None
    seconds: float = 0.0


class Narrator:
    """A run read from its events, then said. `seconds` are the times of the events by number, since
    the start of the run; it is enough to give them for `summary`.
    """

    def __init__(self, events: Iterable[Event], seconds: Mapping[int, float] | None = None):
        self.start: RunStarted | None = None
        self.stages: list[StageRecord] = []
        self.end: RunEnded | None = None
        self.seconds = before = 0.0
        for number, event in enumerate(events, start=1):
            match event:
                case RunStarted():
                    self.start = event
                case StageStarted():
                    self.stages.append(StageRecord(event))
                    before = self.seconds
                case BatchEnded():
                    self.stages[-1].batches.append(event)
                case RunEnded():
                    self.end = event
            self.seconds = (seconds or {}).get(number, self.seconds)
            if isinstance(event, StageEnded):
                self.stages[-1].end = event
                self.stages[-1].seconds = self.seconds - before

    def explanation(self, failure: Failure | None = None) -> str:
        """What `explain` says. `failure` is what ended the run, if something did."""
        ending = "It has not ended."
        if self.end:
            ending = _closing(self.end)
        elif failure:
            ending = f"It ended with {failure.kind}: {failure.says}"
        opening = [line(self.start)] if self.start else []
        return "\n\n".join([*opening, *map(_paragraph, self.stages), ending])

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
    if stage.batches:
        first, last = (stage.batches[at].lr["decoder"] for at in (0, -1))
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


def _paragraph(stage: StageRecord) -> str:
    """What was said of a stage when it started and ended, and its steps in between."""
    said = [line(stage.start).strip(), _steps(stage)]
    return "\n".join([*said, line(stage.end)] if stage.end else said)


def _steps(stage: StageRecord) -> str:
    if not stage.batches:
        return "  It took no step."
    courses = []
    for group in stage.batches[0].lr:
        rates = _course([batch.lr[group] for batch in stage.batches])
        course = f"{group.partition(',')[0]} {rates}"
        if course not in courses:  # groups that differ in weight decay alone, once
            courses.append(course)
    text = (
        f"  {len(stage.batches):,} steps, at learning rates of {', '.join(courses)}; schedule "
        f"{stage.start.schedule}"
    )
    if stage.end:
        text += f", which moved {stage.end.schedule_steps:,} times in {stage.end.epochs} epochs"
    if skipped := sum(not batch.stepped for batch in stage.batches):
        text += f"; {skipped} steps were skipped, for an overflow of half precision"
    return f"{text}."


def _course(rates: list[float]) -> str:
    """ "2.00e-03 to 1.00e-03", and what lay outside these two on the way"""
    low, high = min(rates), max(rates)
    ends = f"{rates[0]:.2e} to {rates[-1]:.2e}"
    if {low, high} <= {rates[0], rates[-1]}:
        return ends
    return f"{ends} ({low:.2e} to {high:.2e} on the way)"


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
        case RunStarted(encoder=encoder, recipe=recipe):
            text = (
                f"Run {recipe['name']}: {event.train_images:,} training, "
                f"{event.validation_images:,} validation and {event.test_images:,} test images; "
                f"{len(event.classes)} classes, {event.mode}; masks: {event.masks}. "
                f"Encoder {encoder.get('name')} ({encoder.get('source')}, sha256 "
                f"{encoder.get('sha256', '')[:12]}), {event.blocks} blocks; "
                f"{recipe['model']['decoder']} decoder. Device {event.device}, {event.precision}; "
                f"threads: {event.threads}, processes: {event.processes}. "
                f"IoU is {score_name(event)}."
            )
            return f"{text} {inherited_words(event.parent)}" if event.parent else text
        case RunResumed():
            return "\n".join([*event.skipped, f"Resuming after step {event.step}."])
        case StageStarted():
            title = f"Stage {event.stage}: {event.name} · {event.schedule}, epochs: {event.epochs}"
            before = f"start weights: valid IoU {number_or_na(event.validation['iou'])}"
            notes = indent("\n".join([event.audit, *event.notes, before]), "  ")
            return f"\n{title}\n{notes}"
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
                best = f"epoch {event.best_epoch} of {event.epochs}"
            early = ", stopped early" * event.stopped_early
            result = f"best: {best}{early}, valid IoU {number_or_na(event.best['iou'])}"
            warning = [f"Warning: {event.warning}"] if event.warning else []
            return indent("\n".join([event.audit, result, *warning]), "  ")
    return ""


def inherited_words(parent: Parent) -> str:
    """Which stages of a run are another's: `RunStarted.parent` in a sentence."""
    return (
        f"Everything up to the end of stage {parent['stage']} comes from run {parent['run']}: the "
        "same settings, data and weights, so it was not trained again."
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
