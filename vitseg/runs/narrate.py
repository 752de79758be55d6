"""A run in sentences and in numbers: `explain`, `summary.json`, the console and the model card take
what they say from here. No torch.
"""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from textwrap import indent

from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    FeaturesUsed,
    Parent,
    RunEnded,
    RunResumed,
    RunStarted,
    StageEnded,
    StageStarted,
)
from vitseg.runs.folder import Failure, JsonDict, RunFolder


def explain(folder: str | Path) -> str:
    """The run in a folder, a paragraph for each stage; also of one that goes on, was cut off, or
    failed.
    """
    run = RunFolder(folder)
    return explanation(run.events(), run.failure())


def explanation(events: Iterable[Event], failure: Failure | None = None) -> str:
    """What `explain` says. `failure` is what ended the run, if something did."""
    paragraphs, ending = [], "It has not ended."
    if failure:
        ending = f"It ended with {failure.kind}: {failure.says}"
    for own in _by_stage(events):
        match own[0]:
            case RunStarted() as start:
                paragraphs.append(line(start))
            case StageStarted():
                paragraphs.append(_paragraph(own))
            case RunEnded(best=best, test=test):
                ending = (
                    f"The best weights have a validation IoU of {number_or_na(best['iou'])}, "
                    "and were chosen by it. "
                )
                if test:
                    ending += (
                        "The test images, scored once at the end, gave "
                        f"{number_or_na(test['iou'])}. "
                    )
                ending += (
                    "Whether the later stages earned their part, or more epochs of the first would "
                    "have done as well, one run cannot say: vitseg.ablate can."
                )
    return "\n\n".join([*paragraphs, ending])


def summarize(run: RunFolder) -> JsonDict:
    """The content of `summary.json`, of a run that has ended."""
    [start], *stages, [end] = _by_stage(run.events())
    seconds, number, rows = run.timings(), 1, []
    before = seconds.get(number, 0.0)
    for own in stages:
        number += len(own)
        now = seconds.get(number, before)
        rows.append(_row(start, own, now - before))
        before = now
    rows[-1]["test"] = end.test
    facts = asdict(start)
    recipe = facts.pop("recipe")
    return facts | {
        "name": recipe["name"],
        "data": recipe["data"]["source"]["kind"],
        "score": score_name(start),
        "images": {
            "train": start.train_images,
            "validation": start.validation_images,
            "test": start.test_images,
        },
        "stages": rows,
        "best": end.best,
        "test": end.test,
        "seconds": round(seconds.get(number + 1, before), 1),
    }


def _by_stage(events: Iterable[Event]) -> list[list[Event]]:
    """The events of each stage, and those before, between and after them."""
    return [list(own) for _, own in groupby(events, lambda event: getattr(event, "stage", 0))]


def _row(run: RunStarted, events: list[Event], seconds: float) -> JsonDict:
    start, end = events[0], events[-1]
    rates = [event.lr["decoder"] for event in events if isinstance(event, BatchEnded)]
    inherited = run.parent and end.stage <= run.parent["stage"]
    row = asdict(start) | asdict(end)
    del row["parts"]
    return row | {
        "schedule": {
            "kind": run.recipe["stages"][end.stage - 1]["schedule"]["kind"],
            "steps_per": start.schedule.partition(" / ")[2],
            "steps_taken": end.schedule_steps,
        },
        "lr": {"first": rates[0], "last": rates[-1]},
        "seconds": None if inherited else round(seconds, 1),
        "test": None,
    }


def _paragraph(events: list[Event]) -> str:
    """What was said of a stage when it started and ended, and its steps in between."""
    start, end = events[0], events[-1]
    batches = [event for event in events if isinstance(event, BatchEnded)]
    steps, said = "  It took no step", []
    if batches:
        courses = {}
        for group, first in batches[0].lr.items():
            last = batches[-1].lr.get(group, first)
            # groups that differ in weight decay alone, once
            courses[f"{group.partition(',')[0]} {first:.2e} to {last:.2e}"] = None
        steps = (
            f"  {len(batches):,} steps, at learning rates of {', '.join(courses)}; schedule "
            f"{start.schedule}"
        )
    if isinstance(end, StageEnded):
        steps += f", which moved {end.schedule_steps:,} times in {end.epochs} epochs"
        said = [line(end)]
    if skipped := sum(not batch.stepped for batch in batches):
        steps += f"; {skipped} steps were skipped, for an overflow of half precision"
    return "\n".join([line(start).strip(), f"{steps}.", *said])


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
