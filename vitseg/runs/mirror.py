"""A run's curves in TensorBoard as well. The run folder stays the truth; this is a picture of
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from vitseg.errors import VitsegError
from vitseg.events import BatchEnded, EpochEnded, Event, RunStarted, StageStarted
from vitseg.files import written

Point = tuple[str, float | None, int]
"""(tag, value, optimizer step over the whole run)"""


def mirror(events: Iterable[Event], folder: str | Path) -> Iterator[Event]:
    """Pass events on, live (`vitseg.train`) or of a run of the past (`vitseg.replay`), and write
    their curves into `folder`.

    Raises VitsegError where tensorboard is not installed, RunError where the folder cannot be
    written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        mend = "pip install 'vitseg[tensorboard]'"
        raise VitsegError(
            f"mirror: {error.name or 'tensorboard'} is not installed.", mend
        ) from None
    classes: list[str] = []
    with written(Path(folder)):
        writer = SummaryWriter(str(folder))
    with closing(writer):
        for event in events:
            classes = event.classes if isinstance(event, RunStarted) else classes
            for tag, value, step in points(event, classes):
                if value is not None:
                    writer.add_scalar(tag, value, step)
            yield event


def points(event: Event, classes: list[str]) -> list[Point]:
    """What an event adds to which curve."""
    match event:
        case BatchEnded():
            return [
                ("loss/train", event.loss, event.step),
                *((f"LR/{g}", lr, event.step) for g, lr in event.lr.items()),
            ]
        case StageStarted() | EpochEnded():
            scores, step = event.validation, event.step
            found = [
                (f"{name}/valid", scores[key], step)
                for name, key in (("loss", "loss"), ("IoU", "iou"), ("F1", "f1"))
            ]
            found += [
                (f"IoU by class/{c}", iou, step)
                for c, iou in zip(classes, scores["per_class_iou"], strict=True)
            ]
            return found + (
                [("IoU/train", event.train["iou"], step)] if isinstance(event, EpochEnded) else []
            )
    return []
