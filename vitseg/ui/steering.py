"""Buttons, a progress bar and a line that says what is happening: the same on every screen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from copy import deepcopy
from html import escape
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from vitseg.errors import VitsegError
from vitseg.ui import theme
from vitseg.ui.panels import duration, html

Actions = dict[str, tuple[Callable[[], None], str]]
"""What a button does, and its tooltip, by its label."""


class Steering:
    """The row of buttons and the status line. `draw`, called after every press, puts both in order.

    `note` is what the last press came to; it is said until the next one.
    """

    def __init__(self, actions: Actions, draw: Callable[[], None]):
        self.lock, self.note, self._draw = threading.RLock(), "", draw
        self.buttons = {
            label: self.button(label, act, tip, "100px") for label, (act, tip) in actions.items()
        }
        self.buttons["Start"].button_style = "primary"
        self.bar, self.left, self.status = (
            w.FloatProgress(min=0, max=1, layout={"width": "220px"}),
            w.HTML(),
            w.HTML(),
        )
        row = w.HBox(
            [*self.buttons.values(), self.bar, self.left], layout={"align_items": "center"}
        )
        self.box = w.VBox([row, self.status])

    def button(
        self, label: str, act: Callable[[], None], tip: str = "", width: str = "130px"
    ) -> w.Button:
        made = w.Button(description=label, tooltip=tip, layout={"width": width})
        made.on_click(lambda _: self.attempt(act))
        return made

    def attempt(self, act: Callable[[], None]) -> None:
        """A press of a button: what goes wrong is a sentence in the status line, never a
        traceback.
        """
        with self.lock:
            self.note = ""
            try:
                act()
                self._draw()
            except Exception as error:
                self.note = str(error)
                if not isinstance(
                    error, VitsegError | OSError
                ):  # a fault of ours; a button that does nothing would be worse
                    self.note = (
                        f"{type(error).__name__}: {error}. That should not happen; please "
                        f"report it."
                    )
                self.say(self.note, "bad")
                with contextlib.suppress(Exception):
                    self._draw()

    def say(self, words: str, kind: str = "") -> None:
        self.status.value = html(f"<p role=status class='{kind}'>{escape(words)}</p>")

    def progress(self, done: float, left: float | None) -> None:
        """The share that is done, and the seconds left, if they are known."""
        self.bar.value = done
        about = f", about {duration(left)} left" if left else ""
        self.left.value = html(f"<p class=line>{100 * done:.0f} %{about}</p>")


def unpainted(error: Exception) -> str:
    return f"The screen could not be drawn ({type(error).__name__}: {error})."


class LiveFigure(go.FigureWidget):
    """A figure that a page which is loaded again gets as it stands; plotly's own would give it as
    it was first shown.
    """

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """All of it is asked for by a page that is loaded; `_widget_layout` is empty until the
        constructor is through.
        """
        if key is None and self._trait_values.get("_widget_layout"):
            now = {"_widget_data": self._data, "_widget_layout": self._layout}
            self._trait_values.update(
                deepcopy(now)
            )  # past the traits, which would send it to the pages that are open
        return super().get_state(key, drop_defaults)

    def _send_update_msg(
        self, restyle_data: dict, relayout_data: dict, trace_indexes: Any = None, **source: Any
    ) -> None:
        """Send what every trace now holds. Where a message changes x of a curve alone, plotly sends
        "_undefined_" as x of the heat map, which the page stores as its x; the next page would get
        a heat map without one.
        """
        traces = [self._data[i] for i in self._normalize_trace_indexes(trace_indexes)]
        values = {path: [_value_at(trace, path) for trace in traces] for path in restyle_data}
        super()._send_update_msg(values, relayout_data, trace_indexes, **source)


def _value_at(tree: Any, path: str) -> Any:
    """Of "error_x.array", or None where there is no such setting."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def redraw(shown: go.FigureWidget, figure: go.Figure) -> None:
    """Put another figure's curves in the place of those that are shown; both have as many."""
    with shown.batch_update():
        for old, new in zip(shown.data, figure.data, strict=True):
            old.update(new.to_plotly_json())


def live_figure(figure: go.Figure) -> go.FigureWidget:
    """A figure to be redrawn in place; put a `Fit` beside it."""
    widget = LiveFigure(figure)
    widget._config = theme.CONFIG | {"responsive": True}  # no public way to set it on a widget
    return widget
