"""A run told in words, from what its events really say: what trained, at which rates, and what came
of it. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitseg.events import BatchEnded, Event, RunEnded, RunStarted, StageEnded, StageStarted
from vitseg.runs.folder import Failure, RunFolder
from vitseg.runs.summary import number_or_na, score_name


@dataclass(slots=True)
class _Stage:
    """What is gathered of one stage."""

    started: StageStarted
    steps: int = 0
    skipped: int = 0
    lr: dict[str, list[float]] = field(default_factory=dict)
    """By parameter group: the first rate, the last, the lowest and the highest."""

    ended: StageEnded | None = None


def explain(folder: str | Path) -> str:
    """The run in a folder, a paragraph for each stage; also of one that goes on, was cut off, or
    failed.
    """
    run = RunFolder(folder)
    return explain_events(run.events(), run.failure())


def explain_events(events: Iterable[Event], failure: Failure | None = None) -> str:
    """What `explain` says of events, in their order."""
    header, stages, end = "", [], None
    for event in events:
        match event:
            case RunStarted():
                header = _header(event)
            case StageStarted():
                stages.append(_Stage(event))
            case BatchEnded():
                _count(stages[-1], event)
            case StageEnded():
                stages[-1].ended = event
            case RunEnded():
                end = event
    closing = (
        _end(end)
        if end
        else f"It ended with {failure.kind}: {failure.says}"
        if failure
        else "It has not ended."
    )
    return "\n\n".join([header, *map(_told, stages), closing])


def _header(event: RunStarted) -> str:
    images = f"{event.train_images:,} training and {event.validation_images:,} validation images"
    images += f", {event.test_images:,} for a test" if event.test_images else ""
    inherited = ""
    if event.parent:
        last, of = event.parent["stage"], event.parent["run"]
        inherited = (
            f" {'Stage 1 is' if last == 1 else f'Stages 1 to {last} are'} taken from run "
            f"{of}, not trained again."
        )
    score = score_name(event.mode, event.classes, event.recipe["data"]["score_background"])
    return (
        f"Run {event.recipe['name']}: {event.encoder.get('name', 'an encoder')} with "
        f"{event.blocks} blocks and the {event.recipe['model']['decoder']} decoder, {images}, "
        f"on {event.device}. IoU is {score}.{inherited}"
    )


def _count(stage: _Stage, event: BatchEnded) -> None:
    stage.steps += 1
    stage.skipped += not event.stepped
    for group, now in event.lr.items():
        first, _, low, high = stage.lr.get(group, (now, now, now, now))
        stage.lr[group] = [first, now, min(low, now), max(high, now)]


def _told(stage: _Stage) -> str:
    start = stage.started
    held = [p["name"] for p in start.parts if p["in_optimizer"]]
    count = sum(p["in_optimizer"] for p in start.parts)
    promised = [p["name"] for p in start.parts if p["trains"]]
    words = [
        f"Stage {start.stage}, {start.name!r}: the optimizer held {count:,} of {start.total:,} "
        f"parameters "
        f"({100 * count / start.total:.1f} %), those of {_listed(held)}."
    ]
    if held != promised:
        words.append(f"Promised to train: {_listed(promised)}.")
    words.append(_steps(stage))
    if stage.ended:
        words.append(_came_of_it(start, stage.ended))
    return " ".join(filter(None, words))


def _listed(parts: Sequence[str]) -> str:
    """ "the decoder, blocks 11 to 12 and the final norm" """
    blocks = sorted(int(p.removeprefix("block ")) for p in parts if p.startswith("block "))
    names = (
        [
            (
                f"block{'s' * (len(blocks) > 1)} "
                f"{' to '.join(map(str, dict.fromkeys((blocks[0], blocks[-1]))))}"
            )
        ]
        if blocks
        else []
    )
    names += [f"the {p}" for p in parts if not p.startswith("block ")]
    return (
        f"{', '.join(names[:-1])} and {names[-1]}"
        if len(names) > 1
        else names[0]
        if names
        else "nothing"
    )


def _steps(stage: _Stage) -> str:
    if not stage.steps:
        return "It took no step."
    names: dict[
        tuple[float, ...], str
    ] = {}  # groups that differ in weight decay alone are told once
    for group, found in stage.lr.items():
        names.setdefault(tuple(found), group.partition(",")[0])
    groups = [f"{name} {_rates(*found)}" for found, name in names.items()]
    moved = f", which moved {stage.ended.schedule_steps:,} times" if stage.ended else ""
    skipped = (
        f" {stage.skipped} of them were skipped, for an overflow of half precision."
        if stage.skipped
        else ""
    )
    return (
        f"{stage.steps:,} steps{f' in {stage.ended.epochs} epochs' if stage.ended else ''}, at "
        f"learning rates of "
        f"{', '.join(groups)}; schedule {stage.started.schedule}{moved}.{skipped}"
    )


def _rates(first: float, last: float, low: float, high: float) -> str:
    """ "2.00e-03 throughout", "2.00e-03 to 1.00e-03", and what lay outside these two on the way"""
    if low == high:
        return f"{first:.2e} throughout"
    lower = f", down to {low:.2e} on the way" if low < min(first, last) else ""
    higher = f", up to {high:.2e} on the way" if high > max(first, last) else ""
    return f"{first:.2e} to {last:.2e}{lower}{higher}"


def _came_of_it(start: StageStarted, end: StageEnded) -> str:
    before, after = start.validation["iou"], end.best["iou"]
    if before is None or after is None:
        result = "There is no IoU: the truth holds nothing that is scored."
    elif end.best_epoch == 0:
        result = (
            f"No epoch beat the weights that it began with (IoU {before:.3f}), so these are "
            f"handed on."
        )
    else:
        result = (
            f"Validation IoU {before:.3f} before, {after:.3f} after epoch {end.best_epoch}, "
            f"its best ({after - before:+.3f})."
        )
    early = (
        f" It stopped early, after {end.epochs} of {start.epochs} epochs."
        if end.stopped_early
        else ""
    )
    return " ".join(filter(None, (f"{result}{early}", end.audit, end.warning)))


def _end(end: RunEnded) -> str:
    test = (
        f" The test images, scored once at the end, gave {number_or_na(end.test['iou'])}."
        if end.test
        else ""
    )
    return (
        f"The best weights have a validation IoU of {number_or_na(end.best['iou'])}, and were "
        f"chosen by it.{test} "
        "Whether the later stages earned their part, or more epochs of the first would have done "
        "as well, one run cannot say: "
        "vitseg.ablate can."
    )
