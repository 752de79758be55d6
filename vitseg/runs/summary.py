"""A run in numbers, from its events alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vitseg.events import BatchEnded, Event, RunEnded, RunStarted, StageEnded, StageStarted

_SHOWN = ("iou", "f1", "accuracy", "per_class_iou")


def summarise(events: Iterable[Event], seconds: list[float]) -> dict[str, Any]:
    """The content of `summary.json`. `seconds` are the times of the events, since the start of the
    run.
    """
    summary: dict[str, Any] = {"stages": []}
    rows: list[dict[str, Any]] = summary["stages"]
    began, last = 0.0, 0.0
    for event, second in zip(events, seconds, strict=False):
        match event:
            case RunStarted():
                summary = _header(event) | summary
                recipe, inherited = event.recipe, event.parent["stage"] if event.parent else 0
            case StageStarted():
                began = last
                rows.append(_stage_row(event, recipe["stages"][event.stage - 1]["schedule"]))
            case BatchEnded():
                lr = event.lr["decoder"]
                rows[-1]["lr"] = {"first": rows[-1].get("lr", {}).get("first", lr), "last": lr}
            case StageEnded():
                rows[-1]["schedule"]["steps_taken"] = event.schedule_steps
                rows[-1] |= {
                    "epochs": event.epochs,
                    "seconds": None if event.stage <= inherited else round(second - began, 1),
                    "best": {k: event.best[k] for k in _SHOWN},
                    "best_epoch": event.best_epoch,
                    "stopped_early": event.stopped_early,
                    "audit": event.audit,
                    "warning": event.warning,
                    "test": None,
                }
            case RunEnded():
                rows[-1]["test"] = event.test and {k: event.test[k] for k in _SHOWN}
                summary |= {"best": event.best, "test": event.test, "seconds": round(second, 1)}
        last = second
    return summary


def _header(event: RunStarted) -> dict[str, Any]:
    return {
        "name": event.recipe["name"],
        "data": event.recipe["data"]["source"]["kind"],
        "classes": event.classes,
        "mode": event.mode,
        "score": score_name(event.mode, event.classes, event.recipe["data"]["score_background"]),
        "images": {
            "train": event.train_images,
            "validation": event.validation_images,
            "test": event.test_images,
        },
        "masks": event.masks,
        "encoder": event.encoder,
    }


def _stage_row(event: StageStarted, schedule: dict[str, Any]) -> dict[str, Any]:
    clock = event.schedule.partition(" / ")[2]
    return {
        "name": event.name,
        "unfrozen_blocks": event.unfrozen_blocks,
        "trainable": event.trainable,
        "total": event.total,
        "schedule": {"kind": schedule["kind"], "steps_per": clock, "steps_taken": 0},
    }


def score_name(mode: str, classes: list[str], background: bool) -> str:
    """What IoU and F1 are over, for headers and hovers."""
    if mode == "binary":
        return f"of {classes[1]!r}"
    return (
        f"mean over the classes present in the truth, of {len(classes)}"
        if background
        else f"mean over classes present but {classes[0]!r}"
    )


def number_or_na(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
