"""The screen of whatever trains: buttons, a progress bar, a line that says what is happening, and a
painter; and figures that are redrawn in place.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from vitseg.errors import Interrupted, VitsegError
from vitseg.events import Event
from vitseg.ui import theme
from vitseg.ui.live import Task, current
from vitseg.ui.markup import html

REDRAW_SECONDS = 0.4


class Screen:
    """Buttons, progress and status of a task, by their widgets. `box` is all that is shown.

    `start`, `pause`, `resume`, `stop` and `wait` do what the buttons do. Whoever derives from it
    builds `box` around `steering`, and says what is drawn: `draw` everything, at turning points and
    after the end, `draw_news` what changes with every batch. Its `_printed` passes events on, and
    prints how it goes.
    """

    box: w.VBox

    def __init__(self, session: Task):
        self.session, self.note, session.screen = session, "", self
        self.lock = threading.RLock()
        self.buttons: dict[str, w.Button] = {}
        self.bar = w.FloatProgress(max=1, style={"description_width": "initial"})
        self.status = w.HTML()
        self._row = w.HBox(layout={"align_items": "center"})
        self.steering = w.VBox([self._row, self.status])
        self.add_button("Start", session.start, "Train what has not been trained yet")
        self.add_button("Pause", self._pause_or_resume, "Pause after this batch; Resume goes on")
        self.add_button("Stop", session.stop, "End after this batch; what is trained stays")
        self.buttons["Start"].button_style = "primary"

    def add_button(self, label: str, act: Callable[[], None], tip: str) -> None:
        """One more in the row before the progress bar."""
        self.buttons[label] = self.button(label, act, tip)
        self._row.children = [*self.buttons.values(), self.bar]

    def button(self, label: str, act: Callable[[], None], tip: str = "") -> w.Button:
        made = w.Button(description=label, tooltip=tip)
        made.on_click(lambda _: self.attempt(act))
        return made

    def attempt(self, act: Callable[[], None]) -> None:
        """A press of a button: what goes wrong is a sentence in the status line, never a
        traceback.
        """
        with self._complaining():
            self._do(act)

    @contextmanager
    def _complaining(self, what: str = "") -> Iterator[None]:
        """Say what goes wrong in the status line, even where nothing else can be drawn."""
        try:
            yield
        except Exception as error:
            words = str(error)
            # a fault of ours; a button that does nothing would be worse
            if not isinstance(error, VitsegError | OSError):
                kind = type(error).__name__
                words = f"{kind}: {words}. That should not happen; please report it."
            self.note = what + words
            self.say(self.note, "bad")
            with suppress(Exception):
                self.draw_status()

    # ---- what the buttons do, and what other cells may ask

    def start(self) -> None:
        """Train in the background. Nothing happens while it does already."""
        self._do(self.session.start)

    def pause(self) -> None:
        """After the batch that is under way."""
        self._do(self.session.pause)

    def resume(self) -> None:
        """Go on after a pause, or with a run that was cut off, from its last checkpoint."""
        self._do(self.session.resume)

    def stop(self) -> None:
        """After the batch that is under way. It can be gone on with from there."""
        self._do(self.session.stop)

    def _do(self, act: Callable[[], None]) -> None:
        with self.lock:
            self.note, was_alive = "", self.session.alive
            act()
            if not was_alive:
                self._paint_while_alive()
            self.draw_status()

    def _pause_or_resume(self) -> None:
        if self.state == "running":
            self.session.pause()
        else:
            self.session.resume()

    def wait(self, timeout: float | None = None) -> str:
        """Until it is over, or `timeout` seconds; returns the state. The cell is busy meanwhile, and
        so is the kernel: the buttons answer again after an interrupt, which does not stop the run.
        """
        state = self.session.wait(timeout)
        if not self.session.alive:
            self.draw()
        return state

    def follow(self) -> Iterator[Event]:
        """The events so far and those to come, until it is over; `for _ in
        vitseg.progress(wb.follow()): pass`.
        """
        yield from self.session.follow()
        self.draw()

    def finish(self) -> Path:
        """Start, print how it goes, and give the folder at the end. Raises what stopped it."""
        self._open()
        try:
            for _ in self._printed(self.follow()):
                pass
        except KeyboardInterrupt:
            raise Interrupted(
                "This cell was interrupted; the training goes on. Run the cell again to wait "
                "for it."
            ) from None
        if self.session.error is not None:
            raise self.session.error
        return self.session.path

    def _open(self) -> None:
        """What `finish` does first."""
        self.start()

    @property
    def state(self) -> str:
        """ready, running, pausing, paused, stopping, stopped, ended, failed; "shown" for a run of
        the past.
        """
        return self.session.state

    # ---- drawing

    def _repr_mimebundle_(self, **more: Any) -> Any:
        if not self.session.alive:
            self.time_batches()
        return self.box._repr_mimebundle_(**more) | {"text/plain": str(self)}

    def draw_news(self) -> None:
        self.draw_status()

    def draw_status(self) -> None:
        """Buttons, progress and the status line: cheap, and always true, from whichever thread it
        is called.
        """
        with self.lock:
            session, state, live = self.session, self.state, current()
            off, acts = session.why_not_start(), session.resumable and not live
            if live is session:
                acts = state != "stopping" and not session.elsewhere
            pause = self.buttons["Pause"]
            pause.disabled = not acts
            pause.description = "Resume" if acts and state != "running" else "Pause"
            self.buttons["Start"].disabled = bool(off) or session.idle == "ended"
            self.buttons["Stop"].disabled = not live or live.state == "stopping"
            done, left = session.progress()
            about = f", about {timedelta(seconds=round(left))} left" if left else ""
            self.bar.value = done
            self.bar.description = f"{100 * done:.0f} %{about}"
            words, wrong = session.status()
            wrong = [*wrong, session.incomplete, self.note]
            if off and not session.alive:
                wrong.append(f"Start is off: {off}")
            self.say(" ".join(filter(None, [words, *wrong])), "bad" * any(wrong))

    def say(self, words: str, kind: str = "") -> None:
        """In the status line, until it is drawn again."""
        self.status.value = html(f"<p role=status class='{kind}'>{escape(words)}</p>")

    def _paint_while_alive(self) -> None:
        if self.session.alive:
            threading.Thread(target=self._paint, name="vitseg painter", daemon=True).start()

    def _paint(self) -> None:
        """Redraw a few times a second, and once at the end. Never stops the training."""
        turned = None
        while self.session.screen is self:
            over, turn = not self.session.alive, self.session.turns
            with self._complaining("The screen could not be drawn. "), self.lock:
                if over or turn != turned:
                    self.draw()
                else:
                    self.draw_news()
                turned = turn
            if over:
                return
            self.session.wait(REDRAW_SECONDS)

    def time_batches(self) -> None:
        """A forecast needs a few timed batches; they are timed once the screen stands, and waited
        for at exit: torch does not like to be cut off.
        """
        if self.session.cost is None:
            threading.Thread(target=self._measure).start()

    def _measure(self) -> None:
        with self._complaining("There is no forecast. "):
            self.session.measure()
            self.draw()


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
            # past the traits, which would send it to the pages that are open
            self._trait_values |= deepcopy(now)
        return super().get_state(key, drop_defaults)

    def _send_update_msg(
        self, restyle_data: dict, relayout_data: dict, trace_indexes: Any = None, **source: Any
    ) -> None:
        """Send what every trace now holds. Where a message changes x of a curve alone, plotly sends
        "_undefined_" as x of the heat map, which the page stores as its x; the next page would get
        a heat map without one.
        """
        traces = [self.data[i] for i in self._normalize_trace_indexes(trace_indexes)]
        values = {}
        for path in restyle_data:
            values[path] = [trace[path] if path in trace else None for trace in traces]  # noqa: SIM401
        super()._send_update_msg(values, relayout_data, trace_indexes, **source)


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
