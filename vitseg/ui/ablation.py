"""A quick ablation in one cell: the plan before it runs, a table that fills, and the sentence at
the end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal

import ipywidgets as w
import pandas as pd
import plotly.graph_objects as go

from vitseg.errors import ConfigError
from vitseg.events import TrialEnded
from vitseg.recipe import Recipe
from vitseg.sweep.findings import sentence
from vitseg.sweep.local import Sweep
from vitseg.ui import panels, sweep_charts, theme
from vitseg.ui.console import say
from vitseg.ui.live import current
from vitseg.ui.report import page
from vitseg.ui.steering import live_figure, redraw
from vitseg.ui.sweep_session import SweepSession
from vitseg.ui.table import Table, duration, number_or_na
from vitseg.ui.trials import Source, TrialsScreen
from vitseg.ui.widgets import Fit


def ablate(
    recipe: Recipe,
    axes: Mapping[str, Sequence[Any]],
    seeds: int | Sequence[int] = 3,
    folder: str | Path | None = None,
    *,
    where: Literal["here", "ray"] = "here",
    address: str | None = None,
    gpus: float = 0,
) -> Ablation:
    """Train every combination of the axes' values with every seed, and ask what unfreezing bought.

    `ablate(recipe, {"stages.1.unfrozen_blocks": [0, 2, 4]}, seeds=3)` shows the plan; Start, or
    `start()`, trains it in the background. First stages that trials share are trained once. Beside
    the trials run controls, which spend the same epochs wholly in stage 1. The same call in a later
    kernel finds the folder and goes on. Raises VitsegError for an axis, a value or a folder that
    cannot be.

    `where="ray"` trains trials side by side on a Ray cluster; `address` and `gpus` are those of
    `vitseg.sweep.cluster.Spread`, and docs/cluster.md says how.
    """
    session = SweepSession(recipe, axes, seeds, folder, _spread(where, address, gpus))
    if (
        (live := current())
        and isinstance(live.owner, SweepSession)
        and live.owner.sweep.path == session.sweep.path
    ):
        session = live.owner
    return Ablation(session)


def _spread(where: str, address: str | None, gpus: float) -> Callable[[Sweep], Source] | None:
    if where not in ("here", "ray"):
        raise ConfigError("where", where, "here, ray")
    if where == "here":
        if address is not None or gpus:
            raise ConfigError("address, gpus", (address, gpus), "nothing, unless where='ray'")
        return None
    from vitseg.sweep.cluster import Spread  # needs an extra

    return partial(Spread, address=address, gpus=gpus)


class Ablation(TrialsScreen):
    """A sweep on the screen; see `ablate`. `start`, `pause`, `resume`, `stop` and `wait` do what
    the buttons do.
    """

    def __init__(self, session: SweepSession):
        super().__init__(session.trials)
        self.session, self.grid, self.sweep = session, session.grid, session.sweep
        self._build()
        self._draw_all()
        if session.trials.alive:
            self._paint_while_alive()

    def finish(self) -> Path:
        """Start, print a line for each trial, and give the sweep's folder at the end. Raises what
        stopped the sweep.
        """
        for name, found in self.sweep.results().items() if self.trials.live is None else ():
            say(f"{name}: IoU {number_or_na(found.iou)}, from before")
        for event in self._follow():
            if isinstance(event, TrialEnded):
                say(
                    f"{event.trial}: "
                    f"{event.error or f'IoU {number_or_na(self.sweep.results()[event.trial].iou)}'}"
                )
        return self.sweep.path

    # ---- what was found

    @property
    def table(self) -> Table:
        """A row a setting, a column a seed."""
        now = self.session.trial if self.trials.alive else None
        return sweep_charts.result_table(self.grid, self.sweep.results(), self.sweep.failures, now)

    @property
    def sentence(self) -> str:
        """What unfreezing bought, with its interval."""
        return sentence(self.grid, self.sweep.results())

    def show(self) -> go.Figure:
        """Curves, heat map and effects as a static figure."""
        return sweep_charts.figure(self.grid, self.sweep.results(), self.session.curves)

    def frame(self) -> pd.DataFrame:
        """A row a trial."""
        return sweep_charts.frame(self.grid, self.sweep.results(), self.sweep.failures)

    def csv(self) -> Path:
        """Write `frame` into the sweep's folder."""
        path = self.sweep.path / "trials.csv"
        self.frame().to_csv(path, index=False)
        return path

    def report(self) -> Path:
        """Write `report.html` into the sweep's folder: it opens without a network."""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.grid.notes)
        body = [
            f"<h1>{escape(self.sweep.path.name)}</h1><p>{escape(self.sentence)}</p>",
            f"{self.table._repr_html_()}{notes}",
            self.show().to_html(full_html=False, include_plotlyjs=True, config=theme.CONFIG),
            f"<h2>Plan</h2>{sweep_charts.plan_table(self.grid)._repr_html_()}",
            f"<h2>Recipe</h2><pre>{escape(self.grid.recipe.model_dump_json(indent=2))}</pre>",
        ]
        path = self.sweep.path / "report.html"
        path.write_text(page(self.sweep.path.name, body), encoding="utf-8")
        return path

    # ---- the screen

    def _build(self) -> None:
        self._plan, self._table, self._said = w.HTML(), w.HTML(), w.HTML()
        self._figure = live_figure(self.show())
        style = w.HTML(panels.STYLE)
        self.box = w.VBox(
            [style, self._plan, self._steering.box, self._table, self._figure, Fit(), self._said]
        )

    def __str__(self) -> str:
        return (
            f"{sweep_charts.plan_table(self.grid)}\n(An ablation: live in JupyterLab; here, "
            f"ablation.finish().)"
        )

    def _repr_mimebundle_(self, **more: Any) -> Any:
        if self.session.cost is None and not self.trials.alive:
            threading.Thread(target=self._time_batches).start()
        bundle = self.box._repr_mimebundle_(**more)
        return bundle | {"text/plain": str(self)} if isinstance(bundle, dict) else bundle

    def _time_batches(self) -> None:
        """The predicted time needs a few timed batches; they are timed once the plan stands."""
        try:
            self.session.predicted_seconds()
            self._draw_all()
        except Exception as error:
            self._steering.note = f"There is no forecast: {error}"
            with contextlib.suppress(Exception):
                self._draw()

    def _draw_all(self) -> None:
        with self._steering.lock:
            quiet = "".join(
                f"<p class=quiet>{escape(note)}</p>"
                for note in (*self.grid.notes, self._cost_and_place())
            )
            self._plan.value = panels.html(sweep_charts.plan_table(self.grid)._repr_html_() + quiet)
            self._table.value = panels.html(self.table._repr_html_())
            self._said.value = panels.html(f"<p><b>{escape(self.sentence)}</b></p>")
            redraw(self._figure, self.show())
            self._draw()

    def _cost_and_place(self) -> str:
        s = self.session
        known = (
            s.cost and self.sweep.todo() and not self.trials.alive
        )  # the bar knows better, once it moves
        timing = "A few batches are being timed. " if s.cost is None and self.sweep.todo() else ""
        to_go = f"About {duration(s.predicted_seconds())} to go, in " if known else ""
        return f"{timing}{to_go}{self.sweep.path}"

    def _draw(self) -> None:
        with self._steering.lock:
            self._draw_buttons(self.session.progress(), self.session.sentence())
