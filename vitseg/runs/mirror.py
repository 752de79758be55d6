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


def mirror(events: Iterable[Event], folder: str | Path) -> Iterator[Event]:
    """Pass events on, live (`vitseg.train`) or of a run of the past (`vitseg.replay`), and write
    their curves into `folder`.

    Raises VitsegError where tensorboard is not installed, RunError where the folder cannot be
    written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        hint = "pip install 'vitseg[tensorboard]'"
        raise VitsegError("mirror: tensorboard is not installed.", hint) from None
    classes: list[str] = []
    with written(Path(folder)):
        writer = SummaryWriter(str(folder))
    with closing(writer):
        for event in events:
            if isinstance(event, RunStarted):
                classes = event.classes
            for tag, value in _points(event, classes).items():
                if value is not None:
                    writer.add_scalar(tag, value, event.step)
            yield event


def _points(event: Event, classes: list[str]) -> dict[str, float | None]:
    """What an event adds to which curve, by tag."""
    if isinstance(event, BatchEnded):
        return {"loss/train": event.loss} | {f"LR/{g}": lr for g, lr in event.lr.items()}
    if not isinstance(event, StageStarted | EpochEnded):
        return {}
    valid = event.validation
    found = {"loss/valid": valid["loss"], "IoU/valid": valid["iou"], "F1/valid": valid["f1"]}
    for name, iou in zip(classes, valid["per_class_iou"], strict=True):
        found[f"IoU by class/{name}"] = iou
    if isinstance(event, EpochEnded):
        found["IoU/train"] = event.train["iou"]
    return found
