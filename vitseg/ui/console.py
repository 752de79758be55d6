"""A run in a cell or a terminal without widgets: as text under a progress bar, or as one figure that
is drawn again and again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from vitseg.events import BatchEnded, Event, FeaturesUsed, RunStarted, StageEnded, StageStarted
from vitseg.runs.narrate import line
from vitseg.ui import charts
from vitseg.ui.curves import Curves


def progress(events: Iterable[Event]) -> Iterator[Event]:
    """Pass events on and show them on standard output: what each stage is about to train, a line an
    epoch, a bar.
    """
    bar: tqdm | None = None
    batches, note = 0, ""
    for event in events:
        text = line(event)
        match event:
            case RunStarted():
                batches = event.batches_per_epoch
            case FeaturesUsed():
                if event.note == note:
                    text = ""
                note = event.note or note
            case StageEnded() if bar is not None:
                bar.close()
                bar = None
        if text:
            say(text)
        match event:
            case StageStarted():
                bar = _bar(event.stage, event.epochs * batches)
            case BatchEnded():
                batches = event.batches
                if bar is None:  # the stage was resumed
                    bar = _bar(event.stage)
                rate = event.lr["decoder"]
                bar.set_postfix_str(f"loss {event.loss:.3f}, LR {rate:.2e}", refresh=False)
                bar.update()
        yield event


def _bar(stage: int, batches: int | None = None) -> tqdm:
    return tqdm(
        total=batches,
        desc=f"stage {stage}",
        unit="batch",
        file=sys.stdout,
        leave=False,
        mininterval=0.5,
    )


def say(text: str) -> None:
    """A line that leaves the progress bar below it."""
    tqdm.write(text, file=sys.stdout)


def watch(events: Iterable[Event], every: int = 10) -> Iterator[Event]:
    """Pass events on, and redraw one static figure every `every` steps, and whenever something else
    happened: where live widgets do not reach.
    """
    from IPython.display import clear_output, display  # not needed in a terminal

    curves = Curves()
    for event in events:
        curves.add(event)
        if not event.transient and (not isinstance(event, BatchEnded) or event.step % every == 0):
            clear_output(wait=True)
            display(charts.curves_figure(curves, most=charts.POINTS))
        yield event
