"""A run's curves in TensorBoard as well. The run folder stays the truth; this is a picture of
it.
"""

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
        raise VitsegError(
            "mirror: tensorboard is not installed.", "pip install 'vitseg[tensorboard]'"
        ) from None
    classes: list[str] = []
    with written(Path(folder)):
        writer = SummaryWriter(str(folder))
    with closing(writer):
        for event in events:
            points: dict[str, float | None] = {}
            match event:
                case RunStarted():
                    classes = event.classes
                case BatchEnded():
                    points = {f"LR/{group}": lr for group, lr in event.lr.items()}
                    points["loss/train"] = event.loss
                case StageStarted(validation=valid) | EpochEnded(validation=valid):
                    points = {"loss/valid": valid["loss"], "IoU/valid": valid["iou"]}
                    points["F1/valid"] = valid["f1"]
                    for name, iou in zip(classes, valid["per_class_iou"], strict=True):
                        points[f"IoU by class/{name}"] = iou
            if isinstance(event, EpochEnded):
                points["IoU/train"] = event.train["iou"]
            for tag, value in points.items():
                if value is not None:
                    writer.add_scalar(tag, value, event.step)
            yield event
