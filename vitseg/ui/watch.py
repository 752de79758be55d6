"""A training, or the replay of one, as a figure that is drawn again and again: where live widgets
do not reach. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from IPython.display import clear_output, display

from vitseg.events import BatchEnded, Event
from vitseg.ui import charts
from vitseg.ui.curves import Curves


def watch(events: Iterable[Event], every: int = 10) -> Iterator[Event]:
    """Pass events on, and redraw one static figure every `every` steps, and whenever something else
    happened.
    """
    curves = Curves()
    for event in events:
        curves.add(event)
        if not event.transient and (not isinstance(event, BatchEnded) or event.step % every == 0):
            clear_output(wait=True)
            display(charts.curves_figure(curves, most=charts.POINTS))
        yield event
