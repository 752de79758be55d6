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
    """A stage as far as its events go; `before` are the seconds of work on the run until then."""

    start: StageStarted
    before: float
    batches: list[BatchEnded] = field(default_factory=list)
    end: StageEnded | None = None
    seconds: float = 0.0


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
                    self.stages[-1].batches.append(event)
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


def _opening(run: RunStarted) -> str:
    encoder = run.encoder
    text = (
        f"Run {run.recipe['name']}: {run.train_images:,} training, {run.validation_images:,} "
        f"validation and {run.test_images:,} test images; {len(run.classes)} classes, {run.mode}; "
        f"masks: {run.masks}. Encoder {encoder.get('name')} ({encoder.get('source')}, sha256 "
        f"{encoder.get('sha256', '')[:12]}), {run.blocks} blocks; {run.recipe['model']['decoder']} "
        f"decoder. Device {run.device}, {run.precision}; threads: {run.threads}, processes: "
        f"{run.processes}. IoU is {score_name(run)}."
    )
    return f"{text} {inherited_words(run.parent)}" if run.parent else text


def inherited_words(parent: Parent) -> str:
    """Which stages of a run are another's: `RunStarted.parent` in a sentence."""
    return (
        f"Up to the end of stage {parent['stage']} it is run {parent['run']}: the same settings, "
        "data and weights, so not trained again."
    )


def _paragraph(stage: StageRecord) -> str:
    start, end = stage.start, stage.end
    count = sum(part["in_optimizer"] for part in start.parts)
    held, promised = _listed(start.parts, "in_optimizer"), _listed(start.parts, "trains")
    sentences = [
        f"Stage {start.stage}, {start.name!r}: the optimizer held {count:,} of {start.total:,} "
        f"parameters ({100 * count / start.total:.1f} %): {held}."
    ]
    if held != promised:
        sentences.append(f"Promised to train: {promised}.")
    sentences.append(_steps(stage))
    if end:
        before = number_or_na(start.validation["iou"])
        sentences += [f"Validation IoU of the start weights: {before}.", *_ended(end)]
    return " ".join(sentences)


def _listed(parts: Sequence[Part], which: str) -> str:
    """Those of which `which` holds, in order of computation: "block 11 to 12, final norm,
    decoder".
    """
    names: list[str] = []
    last = None  # the block before, if it is one of them
    for part in parts:
        block = part["block"] if part[which] else None
        if block and last == block - 1:
            names[-1] = f"{names[-1].partition(' to ')[0]} to {block}"
        elif part[which]:
            names.append(part["name"])
        last = block
    return ", ".join(names) or "nothing"


def _steps(stage: StageRecord) -> str:
    if not stage.batches:
        return "It took no step."
    courses = []
    for group in stage.batches[0].lr:
        rates = _course([batch.lr[group] for batch in stage.batches])
        course = f"{group.partition(',')[0]} {rates}"
        if course not in courses:  # groups that differ in weight decay alone, once
            courses.append(course)
    text = (
        f"{len(stage.batches):,} steps, at learning rates of {', '.join(courses)}; schedule "
        f"{stage.start.schedule}"
    )
    if stage.end:
        text += f", which moved {stage.end.schedule_steps:,} times in {stage.end.epochs} epochs"
    if skipped := sum(not batch.stepped for batch in stage.batches):
        text += f"; {skipped} steps were skipped, for an overflow of half precision"
    return f"{text}."


def _course(rates: list[float]) -> str:
    """ "2.00e-03 throughout", or "2.00e-03 to 1.00e-03 (1.00e-07 to 2.00e-03 on the way)"."""
    low, high = min(rates), max(rates)
    if low == high:
        return f"{low:.2e} throughout"
    return f"{rates[0]:.2e} to {rates[-1]:.2e} ({low:.2e} to {high:.2e} on the way)"


def _ended(end: StageEnded) -> list[str]:
    best = f"epoch {end.best_epoch} of {end.epochs}"
    if end.best_epoch == 0:
        best = "the start weights, which no epoch has beaten"
    early = ", stopped early" * end.stopped_early
    result = f"Best: {best}{early}, validation IoU {number_or_na(end.best['iou'])}."
    return list(filter(None, (end.audit, result, end.warning and f"Warning: {end.warning}")))


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
            return _opening(event)
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
            return indent("\n".join(_ended(event)), "  ")
    return ""


def score_name(run: RunStarted) -> str:
    """What IoU and F1 are over, for headers and hovers."""
    if run.mode == "binary":
        return f"of {run.classes[1]!r}"
    if run.recipe["data"]["score_background"]:
        return f"mean over the classes present in the truth, of {len(run.classes)}"
    return f"mean over classes present but {run.classes[0]!r}"


def number_or_na(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
