"""A quick ablation in one cell: the plan before it runs, a table that fills, and the sentence at
the end.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from vitseg.errors import ConfigError
from vitseg.recipe import Recipe
from vitseg.sweep.findings import Findings, estimate
from vitseg.sweep.grid import make_grid, total_epochs
from vitseg.sweep.local import Sweep, check_depths
from vitseg.training.job import Job
from vitseg.ui import markup, sweep_charts, theme
from vitseg.ui.table import Table, number_or_na
from vitseg.ui.trials import Trials, TrialsScreen


def ablate(
    recipe: Recipe,
    axes: Mapping[str, Sequence[Any]],
    seeds: int | Sequence[int] = 3,
    folder: str | Path | None = None,
    *,
    where: Literal["here", "ray"] = "here",
    address: str | None = None,
    gpus: float = 0,
) -> "Ablation":
    """Train every combination of the axes' values with every seed, and ask what unfreezing bought.

    `ablate(recipe, {"stages.1.unfrozen_blocks": [0, 2, 4]}, seeds=3)` shows the plan; Start, or
    `start()`, trains it in the background. First stages that trials share are trained once. Beside
    the trials run controls, which spend the same epochs wholly in stage 1. The same call in a later
    kernel finds the folder and goes on. Raises VitsegError for an axis, a value or a folder that
    cannot be.

    `where="ray"` trains trials side by side on a Ray cluster; `address` and `gpus` are those of
    `vitseg.sweep.cluster.Spread`, and docs/cluster.md says how.
    """
    if where not in ("here", "ray"):
        raise ConfigError("where", where, "here, ray")
    if where == "here" and (address is not None or gpus):
        raise ConfigError("address, gpus", (address, gpus), "nothing, unless where='ray'")
    job = Job(recipe)
    grid = make_grid(recipe, axes, seeds, job.images, job.model.encoder.depth)
    check_depths((trial.recipe for trial in grid.trials), job)
    if where == "here":
        sweep = Sweep(grid, folder)
    else:
        from vitseg.sweep.cluster import Spread  # needs an extra

        sweep = Spread(grid, folder, address, gpus)
    return Ablation(Trials(sweep, job).attached())


class Ablation(TrialsScreen):
    """A sweep on the screen; see `ablate`. `start`, `pause`, `resume`, `stop` and `wait` do what
    the buttons do.
    """

    def __init__(self, session: Trials):
        self.grid, self.sweep = session.source.grid, session.source
        super().__init__(session)

    def planned(self) -> Table:
        """What is going to be trained."""
        grid = self.grid
        trials, settings, seeds = map(len, (grid.trials, grid.settings, grid.seeds))
        controls, shared = trials - settings * seeds, sum(trial.shared for trial in grid.trials)
        stages = sum(len(trial.recipe.stages) for trial in grid.trials)
        rows = [(name, ", ".join(labels)) for name, labels in grid.labels.items()]
        rows += (
            ("seeds", ", ".join(map(str, grid.seeds))),
            ("trials", f"{trials} (settings x seeds: {settings} x {seeds}, controls: {controls})"),
            ("stages", f"{stages - shared} to train; {shared} are taken from an earlier trial"),
        )
        return Table(("axis", "values"), rows)

    @property
    def table(self) -> Table:
        """A row a setting, a column a seed."""
        grid, results = self.grid, self.sweep.results()
        known = Findings(grid, results)
        cells = {self.session.trial: "..."}
        cells |= dict.fromkeys(self.sweep.failures, "failed")
        cells |= {name: number_or_na(found.iou) for name, found in results.items()}
        rows, each = [], len(grid.trials) // len(grid.seeds)
        for number in range(each):
            first, *_ = trials = grid.trials[number::each]  # one for each seed
            over = first.control and known.gain(first.setting)
            found = [results[trial.name].iou for trial in trials if trial.name in results]
            mean = estimate([iou for iou in found if iou is not None])
            seeds = [cells.get(trial.name, "") for trial in trials]
            rows.append((*first.words, *seeds, number_or_na(mean and mean.mean), str(over or "")))
        heads = *grid.labels, *map("seed {}".format, grid.seeds), "mean over seeds"
        caption = (
            "IoU of the best weights of the whole run; a trial whose later stages were no better "
            "ends on those that it inherited"
        )
        return Table((*heads, "gain over control (95 %)"), rows, caption)

    @property
    def sentence(self) -> str:
        """What unfreezing bought, with its interval."""
        return Findings(self.grid, self.sweep.results()).sentence()

    def show(self) -> go.Figure:
        """Curves, heat map and effects as a static figure."""
        results = self.sweep.results()
        curves = self.session.curves | {name: found.curve for name, found in results.items()}
        return sweep_charts.figure(self.grid, results, curves)

    def frame(self) -> pd.DataFrame:
        """A row a trial: the value of each axis, seed, whether it is a control, IoU, F1, seconds,
        and why it failed.
        """
        rows, results = [], self.sweep.results()
        for trial in self.grid.trials:
            row = {"trial": trial.name, "seed": trial.seed, "control": trial.setting is None}
            row["epochs"] = total_epochs(trial.recipe)
            row["error"] = self.sweep.failures.get(trial.name)
            if trial.setting is not None:
                row |= zip(self.grid.axes, trial.words, strict=True)
            if found := results.get(trial.name):
                row |= found._asdict()
            rows.append(row)
        columns = ["seed", "control", "epochs", "iou", "f1", "seconds", "error"]
        return pd.DataFrame(rows, columns=["trial", *self.grid.axes, *columns])

    def csv(self) -> Path:
        """Write `frame` into the sweep's folder."""
        path = self.sweep.path / "trials.csv"
        self.frame().to_csv(path, index=False)
        return path

    def report(self) -> Path:
        """Write `report.html` into the sweep's folder: it opens without a network."""
        path, charts = self.sweep.path, self.show().to_html(full_html=False, config=theme.CONFIG)
        page = markup.page(
            (path.name, markup.lines(self.notes()), self.table, Markup(charts)),
            ("Plan", self.planned()),
            ("Recipe", markup.verbatim(self.grid.recipe.model_dump_json(indent=2))),
        )
        path /= "report.html"
        path.write_text(page, encoding="utf-8")
        return path

    def notes(self) -> list[markup.Line]:
        """What was found, what was left out, where it all is."""
        left_out = [("quiet", note) for note in self.grid.notes]
        return [("said", self.sentence), *left_out, *super().notes()]
