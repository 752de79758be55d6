"""The trials of an ablation or a search: a task that trains them, and its screen with a plan, a table
that fills and a figure.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress

import ipywidgets as w

from vitseg.errors import ConfigError, RunError
from vitseg.events import EpochEnded, Event, Polled, TrialEnded, TrialStarted
from vitseg.runs.forecast import forecast, measure
from vitseg.runs.run import kept_events
from vitseg.sweep.grid import total_epochs
from vitseg.sweep.local import Sweep
from vitseg.sweep.search import Search
from vitseg.training.job import Job
from vitseg.ui import markup
from vitseg.ui.console import say
from vitseg.ui.live import Task, current
from vitseg.ui.screen import Screen, live_figure, redraw
from vitseg.ui.table import number_or_na
from vitseg.ui.widgets import Fit


class Trials(Task):
    """The trials of a search, or of a sweep, whose recipe is that of `job`. `trial` is the one that
    is being trained, `curves` hold the valid IoU by epoch of those that were trained here.
    """

    def __init__(self, source: Sweep | Search, job: Job | None = None):
        self.source, self.job, self.trial = source, job, ""
        self.path, self.elsewhere = source.path, source.elsewhere
        self.curves = defaultdict[str, dict[int, float | None]](dict)
        self._shares: dict[str, float] = {}  # of the trials that have not ended
        super().__init__()

    def attached(self) -> "Trials":
        """These trials, or the live ones of the same kind and folder."""
        live = current()
        alike = isinstance(live, Trials) and type(live.source) is type(self.source)
        return live if alike and live.path == self.path else self

    @property
    def idle(self) -> str:
        return "ready" if self.source.left() else "ended"

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

    def _note(self, event: Event) -> None:
        match event:
            case TrialStarted(trial):
                self.trial = trial
                if not self.elsewhere:  # elsewhere all will be told
                    for earlier in kept_events(self.source.run_of(trial)):
                        self._note(earlier)
                self._count()
            case EpochEnded():
                epochs = total_epochs(self.source.run_of(self.trial).recipe)
                self.curves[self.trial][event.epoch] = event.validation["iou"]
                self._shares[self.trial] = event.epoch / epochs
            case TrialEnded():
                self._shares.pop(event.trial, None)
            case Polled():  # of all
                self.trial = ""

    def share(self) -> float:
        """A trial counts as one, and each of its epochs as a part of it."""
        ended, total, _ = self.source.tally()
        return min(1.0, (ended + sum(self._shares.values())) / total)

    def measure(self) -> None:
        if self.job:
            cost, seconds = measure(self.job), 0.0
            for trial in self.source.grid.trials:
                with suppress(ConfigError):  # not known, such as of one with a deeper encoder
                    stages = forecast(self.job.replace(trial.recipe), cost, trial.shared)
                    seconds += sum(stage.seconds for stage in stages)
            self.cost = self.takes = seconds

    def status(self) -> tuple[str, list[str]]:
        ended, total, failed = self.source.tally()
        words = f"{ended} of {total} trials have ended."
        if self.alive:
            words = f"{self.trial}: {self.doing()} {words}".removeprefix(": ")
        elif left := self.source.left():
            words += f" Start trains the remaining {left}."
        wrong = [f"{name} failed: {why}" for name, why in list(failed.items())[:3]]
        if self.error:
            wrong.append(f"Stopped by an error: {self.error}")
        return words, wrong


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
                run, ending = self.session.source.run_of(event.trial), event.error or "pruned"
                if not event.error and run.summary_file.exists():
                    ending = f"IoU {number_or_na(run.summary['best']['iou'])}"
                say(f"{event.trial}: {ending}")
            yield event
