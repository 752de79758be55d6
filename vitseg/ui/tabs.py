"""The lower half of the workbench: predictions through time, classes, checks, and the runs of the
past.
"""

from contextlib import suppress

import ipywidgets as w
import pandas as pd
from markupsafe import Markup

from vitseg.errors import RunError
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.narrate import number_or_na
from vitseg.ui import charts, pictures, theme
from vitseg.ui.controls import recent_runs
from vitseg.ui.curves import Curves
from vitseg.ui.live import current
from vitseg.ui.markup import html, lines
from vitseg.ui.report import report
from vitseg.ui.screen import Screen
from vitseg.ui.table import Table
from vitseg.ui.widgets import FileLink


class Tabs:
    """Draws what the session of a screen holds."""

    def __init__(self, screen: Screen):
        self.screen, self.session, self._filling = screen, screen.session, False
        self.epoch = w.IntSlider(max=0, description="Epoch", style=theme.HANDLE)
        self.epoch.observe(lambda _: self._filling or screen.attempt(self._draw_pictures), "value")
        self.picture, self.classes = w.HTML(), w.HTML()
        self.checks, self.runs, self.said = w.HTML(), w.HTML(), FileLink()
        self.which = w.Dropdown(description="Run folder")
        choice = w.HBox(
            [
                self.which,
                screen.button("Show", self.show),
                screen.button("Export report", self.export_report),
                screen.button("Export CSV", self.export_csv),
            ]
        )
        self.box = w.Tab(
            [
                w.VBox([self.epoch, self.picture]),
                self.classes,
                self.checks,
                w.VBox([choice, self.said, self.runs]),
            ],
            titles=("Predictions", "Classes", "Checks", "Runs"),
        )

    def draw(self) -> None:
        """What changes once an epoch."""
        s = self.session
        self.classes.value = html(charts.class_map(s.events, most=24))
        self.checks.value = charts.checks(s.events, s.failure(), s.features)
        slider, self._filling = self.epoch, True
        follows = slider.value == slider.max  # unless somebody has gone back in time
        slider.max = max(s.predictions, default=0)
        if follows:
            slider.value = slider.max
        self._filling = False
        self._draw_pictures()
        self.draw_runs()

    def _draw_pictures(self) -> None:
        s, epoch = self.session, self.epoch.value
        words, image = "Of a run that is trained here: predictions after every epoch.", ""
        if epoch in s.predictions:
            words = f"After epoch {epoch}. White: prediction and truth disagree."
            sheet = pictures.comparison(s.job.data, s.samples, s.predictions[epoch], side=150)
            image = f"<img alt=predictions style='max-width:100%' src='{pictures.data_uri(sheet)}'>"
        self.picture.value = lines([("quiet", words)]) + Markup(image)

    def draw_runs(self) -> None:
        """The run that is shown stands first, so that the list, where it is new, chooses it."""
        rows = {}
        for run in (self.session.run, *recent_runs()):
            if run and run.events_file.exists():
                iou, ended = "", ", ".join(map(str, run.ended_stages()))
                with suppress(RunError):  # it has not ended, or somebody wrote into it
                    iou = number_or_na(run.summary["best"]["iou"])
                rows[run.path] = run.path.name, _state_of(run), ended, iou
        caption = f"In {runs_root()}" if rows else "No run has been recorded yet."
        heads = ("run", "state", "finished stages", "best IoU")
        self.runs.value = html(Table(heads, list(rows.values()), caption))
        self.which.options = [(path.name, path) for path in rows]
        if rows and self.which.index is None:
            self.which.index = 0

    def show(self) -> None:
        """Put the chosen run on the screen."""
        self.session.show(self._chosen().path)
        self.screen.draw()
        self.screen.time_batches()

    def export_report(self) -> None:
        run = self._chosen()
        self.screen.say(f"Writing the report of {run.path.name}...")
        self.said.words, self.said.path = "Report written:", str(report(run.path))

    def export_csv(self) -> None:
        """The curves as one table: a row for each point, `curve,epoch,step,value`."""
        run, rows = self._chosen(), []
        for name, points in Curves(run.events()).points.items():
            epochs, values, steps = points.trace().values()
            columns = {"curve": name, "epoch": epochs, "step": steps.astype(int), "value": values}
            rows.append(pd.DataFrame(columns))
        path = run.path / "curves.csv"
        pd.concat(rows).dropna().to_csv(path, index=False)
        self.said.words, self.said.path = "Curves written:", str(path)

    def _chosen(self) -> RunFolder:
        """The run in the list beside the buttons."""
        if self.which.value is None:
            raise RunError("No run has been recorded yet.", "Press Start.")
        run = RunFolder(self.which.value)
        if run.is_held():
            words = f"{run.path.name} is being trained."
            raise RunError(words, "Wait for its end, or choose another run.")
        return run


def _state_of(run: RunFolder) -> str:
    live = current()
    if live and live.path == run.path:
        return f"{live.state} here"
    if not run.is_cut_off():
        return "ended" if run.summary_file.exists() else "training elsewhere"
    failure = run.failure()
    ended = f"failed ({failure.kind})" if failure else "cut off or stopped"
    return f"{ended}; Show, then Resume goes on with it"
