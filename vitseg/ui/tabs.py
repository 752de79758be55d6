"""The lower half of the workbench: predictions through time, classes, checks, and the runs of the
past.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as w

from vitseg.errors import RunError
from vitseg.events import BatchEnded
from vitseg.runs.folder import RunFolder
from vitseg.ui import charts, panels, pictures, theme
from vitseg.ui.curves import write_csv
from vitseg.ui.live import current
from vitseg.ui.report import report
from vitseg.ui.session import Session, recent_runs
from vitseg.ui.steering import Steering
from vitseg.ui.widgets import FileLink

NONE_YET = ("none yet", -1)


class Tabs:
    """Draws what a session holds. `shown` is called once a run of the past has taken the place of
    the one on the screen.
    """

    def __init__(self, session: Session, steering: Steering, shown: Callable[[], None]):
        self.session, self._shown, self._filling = session, shown, False
        self.epoch = w.SelectionSlider(
            options=[NONE_YET],
            value=NONE_YET[1],
            description="Epoch",
            layout={"width": "420px"},
            disabled=True,
            style=theme.HANDLE,
        )
        self.epoch.observe(
            lambda _: self._filling or steering.attempt(self._draw_pictures), "value"
        )
        self.picture = w.Image(
            format="png", layout={"max_width": "100%", "align_self": "flex-start"}
        )
        self.picture_note, self.classes, self.checks, self.runs = (w.HTML() for _ in range(4))
        self.said, self._on_screen = FileLink(), None
        self.which = w.Dropdown(
            description="Run folder",
            layout={"width": "320px"},
            style={"description_width": "initial"},
        )
        acts = {
            "Show": self.show,
            "Export report": self.export_report,
            "Export CSV": self.export_csv,
        }
        buttons = [steering.button(label, act) for label, act in acts.items()]
        self.box = w.Tab(
            [
                w.VBox([self.epoch, self.picture_note, self.picture]),
                self.classes,
                self.checks,
                w.VBox([w.HBox([self.which, *buttons]), self.said, self.runs]),
            ]
        )
        for i, title in enumerate(("Predictions", "Classes", "Checks", "Runs")):
            self.box.set_title(i, title)

    @property
    def behind(self) -> bool:
        """Whether there are predictions that the slider does not offer yet."""
        return sorted(self.session.predictions) != [
            v for _, v in self.epoch.options if v != NONE_YET[1]
        ]

    def draw(self) -> None:
        """What changes once an epoch: classes, checks, pictures."""
        s = self.session
        self.classes.value = panels.html(charts.class_map(s.events, most=24))
        self.checks.value = panels.checks(
            s.events, sum(isinstance(e, BatchEnded) for e in s.events), s.failure(), s.features
        )
        if self.behind and s.predictions:
            self._offer_epochs(sorted(s.predictions))
            self._draw_pictures()
        elif not s.predictions:
            self._draw_pictures()

    def _offer_epochs(self, epochs: list[int]) -> None:
        """The slider follows the newest epoch, unless somebody has gone back in time."""
        newest = self.epoch.value == self.epoch.options[-1][1]
        value = epochs[-1] if newest or self.epoch.value not in epochs else self.epoch.value
        self._filling = True
        self.epoch.options = [(str(e), e) for e in epochs]
        self.epoch.value, self.epoch.disabled = value, False
        self._filling = False

    def _draw_pictures(self) -> None:
        s, epoch = self.session, self.epoch.value
        if epoch not in s.predictions:
            text = (
                "Validation images are predicted after every epoch of a run that is trained "
                "here; then look back in time."
            )
            self.picture_note.value = panels.html(
                f"<p class=quiet>{escape(s.no_pictures or text)}</p>"
            )
            self.picture.value, self.picture.layout.display = (
                b"",
                "none",
            )  # an empty image shows as a broken one
            return
        self.picture.layout.display = None
        self.picture.value = pictures.png(
            pictures.comparison(s.job.data, s.samples, s.predictions[epoch], side=150)
        )
        self.picture_note.value = panels.html(
            f"<p>After epoch {epoch}. White: prediction and truth disagree.</p>"
        )

    def draw_runs(self) -> None:
        runs, own = recent_runs(), self.session.run
        if own and own.events_file.exists() and own.path not in [run.path for run in runs]:
            runs.insert(0, own)
        self.runs.value = panels.runs_table([(run, _state_of(run)) for run in runs])
        shown = own.path if own else None
        chosen = (
            self.which.value if shown == self._on_screen else shown
        )  # it follows the screen, until somebody chooses
        paths = [run.path for run in runs]
        self.which.options = [(path.name, path) for path in paths]
        if runs:
            self.which.value = chosen if chosen in paths else paths[0]
        if shown in paths:  # a new run has no log at first
            self._on_screen = shown

    def show(self) -> None:
        """Put the chosen run on the screen."""
        self.session.show(self._chosen().path)
        self.epoch.options, self.epoch.disabled = [NONE_YET], True
        self._shown()

    def export_report(self) -> None:
        run = self._chosen()
        self.said.say(f"Writing the report of {run.path.name}...")
        try:
            self.said.say("Report written:", report(run.path))
        except Exception:
            self.said.say("")
            raise

    def export_csv(self) -> None:
        run = self._chosen()
        self.said.say("Curves written:", write_csv(run.path, list(run.events())))

    def _chosen(self) -> RunFolder:
        """The run in the list beside the buttons."""
        if self.which.value is None:
            raise RunError("No run has been recorded yet.", "Press Start.")
        run = RunFolder(self.which.value)
        if run.is_held():
            raise RunError(
                f"{run.path.name} is being trained.", "Wait for its end, or choose another run."
            )
        return run


def _state_of(run: RunFolder) -> str:
    alive = current()
    if alive and alive.name == run.path.name:
        return f"{alive.state} here"
    if run.summary_file.exists():
        return "ended"
    if run.is_held():
        return "training elsewhere"
    failed = run.failure()
    return (
        f"failed ({failed.kind})" if failed else "cut off or stopped"
    ) + "; Show, then Resume goes on with it"
