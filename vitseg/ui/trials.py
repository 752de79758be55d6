"""The trials of an ablation or a search: a task that trains them, and its screen with a plan, a table
that fills and a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ipywidgets as w

from vitseg.errors import RunError
from vitseg.events import Event, Polled, StageEvent, TrialEnded
from vitseg.ui import markup
from vitseg.ui.console import say
from vitseg.ui.live import Said, Task, current
from vitseg.ui.screen import Screen, live_figure, redraw
from vitseg.ui.widgets import Fit


class Trials(Task):
    """The trials of a source: a `Sweep` or a `Search`. `trial` is the one that is being
    trained.

    Each kind defines `score_of(trial)`, the IoU of one that has ended.
    """

    def __init__(self, source: Any):
        self.source, self.trial = source, ""
        self.path, self.elsewhere = source.path, source.elsewhere
        super().__init__()

    def attached(self) -> Trials:
        """These trials, or the live ones of the same kind and folder."""
        live = current()
        same = isinstance(live, type(self)) and live.path == self.path
        return live if same else self

    @property
    def idle(self) -> str:
        return "ready" if self.source.left() else "ended"

    @property
    def startable(self) -> bool:
        return super().startable and self.idle == "ready"

    def _begin(self) -> None:
        if self.idle == "ready":
            self._launch(self.source.events())

    def pause(self) -> None:
        if self.elsewhere:
            raise RunError(
                "Trials on other machines cannot be paused.",
                "Stop them; Start goes on with each where it was.",
            )
        super().pause()

    def sentence(self, note: str = "") -> Said:
        ended, total, failed = self.source.tally()
        words, wrong = [f"{ended} of {total} trials have ended."], [note, self.incomplete]
        wrong += [f"{name} failed: {why}" for name, why in list(failed.items())[:3]]
        if self.alive:
            words.insert(0, self._doing())
        elif self.error is not None:
            wrong.append(f"Stopped by an error: {self.error}")
        elif reason := self.why_not_start():
            wrong.append(f"Start is off: {reason}")
        elif left := self.source.left():
            words.append(f"Start trains the remaining {left}.")
        return " ".join(filter(None, words + wrong)), "bad" if any(wrong) else ""

    def _doing(self) -> str:
        if self.state != "running":
            return f"{self.state.capitalize()}."
        match self.position:
            case None:
                return "Starting."
            case Polled(running=running):
                return f"Elsewhere, {running} trials train or wait for room."
            case StageEvent() as p:
                return f"Training {self.trial}: stage {p.stage}, epoch {p.epoch}."
        return f"Training {self.trial}."


class TrialsScreen(Screen):
    """Plan, buttons, table and figure of trials. `start`, `pause`, `resume`, `stop` and `wait` do
    what the buttons do.

    Each kind defines `planned`, a table of what is going to be trained; `table`, what has been
    found, which fills while trials end; and `show`, the same as a static figure.
    """

    session: Trials

    def __init__(self, session: Trials):
        super().__init__(session)
        self.plan, self.results = w.HTML(), w.HTML()
        self.figure, style = live_figure(self.show()), w.HTML(markup.STYLE)
        self.box = w.VBox([style, self.plan, self.steering, self.results, self.figure, Fit()])
        self.draw()
        if session.alive:
            self._paint_while_alive()

    def notes(self) -> list[markup.Line]:
        """What is worth knowing beside plan and table."""
        return [("quiet", str(self.session.path))]

    def draw(self) -> None:
        with self.lock:
            self.plan.value = markup.html(self.planned()) + markup.lines(self.notes())
            self.results.value = markup.html(self.table)
            redraw(self.figure, self.show())
            self.draw_status()

    def __str__(self) -> str:
        return f"{self.planned()}\n(Live in JupyterLab; in a terminal, call finish().)"

    def _printed(self, events: Iterable[Event]) -> Iterator[Event]:
        """A line for each trial."""
        for event in events:
            if isinstance(event, TrialEnded):
                score = event.error or f"IoU {self.session.score_of(event.trial)}"
                say(f"{event.trial}: {score}")
            yield event
