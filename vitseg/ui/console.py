"""A run in a cell or a terminal without widgets: as text under a progress bar, or as one figure that
is drawn again and again.
"""

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from vitseg.events import BatchEnded, Event, FeaturesUsed, StageEnded, StageStarted
from vitseg.runs.narrate import line
from vitseg.ui import charts
from vitseg.ui.curves import Curves


def progress(events: Iterable[Event]) -> Iterator[Event]:
    """Pass events on and show them on standard output: what each stage is about to train, a line an
    epoch, a bar.
    """
    bar, epochs, said = tqdm(disable=True), 0, ""
    for event in events:
        match event:
            case StageStarted():
                epochs = event.epochs
            case BatchEnded():
                if bar.disable:  # of a stage that was resumed, no total is known
                    bar = tqdm(
                        total=epochs * event.batches or None,
                        desc=f"stage {event.stage}",
                        file=sys.stdout,
                        leave=False,
                    )
                words = f"loss {event.loss:.3f}, LR {event.lr['decoder']:.2e}"
                bar.set_postfix_str(words, refresh=False)
                bar.update()
            case StageEnded():
                bar.close()
        text = line(event)
        if text and text != said:
            say(text)
        if isinstance(event, FeaturesUsed):
            said = text or said
        yield event


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
            display(charts.curves_figure(curves))
        yield event
