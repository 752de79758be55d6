"""A sweep as a figure and as tables: pure functions of the grid and what its trials ended with. No
torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import product
from statistics import fmean
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg.sweep.findings import Findings, Result
from vitseg.sweep.grid import Grid, Trial, short_path, total_epochs
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na

Curve = Sequence[tuple[int, float | None]]
_TITLES = ("valid IoU over epochs", "IoU, mean over seeds", "gain in IoU, 95 % interval")


def plan_table(grid: Grid) -> Table:
    """What a sweep is going to train."""
    rows = list(zip(map(short_path, grid.axes), map(", ".join, grid.labels), strict=True))
    trials, settings, seeds = len(grid.trials), len(grid.settings), len(grid.seeds)
    controls, shared = trials - settings * seeds, sum(grid.shared.values())
    stages = sum(len(trial.recipe.stages) for trial in grid.trials)
    rows += (
        ("seeds", ", ".join(map(str, grid.seeds))),
        ("trials", f"{trials} (settings x seeds: {settings} x {seeds}, controls: {controls})"),
        ("stages", f"{stages - shared} to train; {shared} are taken from an earlier trial"),
    )
    return Table(("axis", "values"), tuple(rows))


def result_table(
    grid: Grid, results: Mapping[str, Result], failures: Mapping[str, str], now: str | None = None
) -> Table:
    """A row a setting, a column a seed; it fills while the sweep goes on. `now` is the trial that
    is being trained.
    """
    known = Findings(grid, results)
    cells = {now: "..."} | dict.fromkeys(failures, "failed")
    cells |= {name: number_or_na(result.iou) for name, result in results.items()}
    alike: dict[str, list[Trial]] = {}  # a trial for each seed
    for trial in sorted(grid.trials, key=lambda trial: (trial.setting is None, trial.setting)):
        alike.setdefault(trial.name.partition("-")[0], []).append(trial)
    rows = []
    for trials in alike.values():
        setting = trials[0].setting
        if setting is None:
            words, over = _control_words(grid, trials[0]), ""
        else:
            words, over = grid.words(setting), str(known.gain(setting) or "")
        ious = [known.iou[trial.name] for trial in trials]
        ious = [iou for iou in ious if not math.isnan(iou)]
        mean = number_or_na(fmean(ious) if ious else None)
        rows.append((*words, *(cells.get(trial.name, "") for trial in trials), mean, over))
    seeds = [f"seed {seed}" for seed in grid.seeds]
    heads = *map(short_path, grid.axes), *seeds, "mean over seeds", "gain over control (95 %)"
    caption = (
        "IoU of the best weights of the whole run; a trial whose later stages were no better ends "
        "on those that it inherited"
    )
    return Table(heads, tuple(rows), caption)


def _control_words(grid: Grid, control: Trial) -> list[str]:
    """What it is, and the values of the other axes on which all settings agree that are compared
    with it; "" where they differ.
    """
    compared = [grid.words(trial.setting) for trial in grid.trials if trial.control == control.name]
    words = [values[0] if len(set(values)) == 1 else "" for values in zip(*compared, strict=True)]
    return [f"control: {total_epochs(control.recipe)} epochs in stage 1", *words[1:]]


def frame(grid: Grid, results: Mapping[str, Result], failures: Mapping[str, str]) -> pd.DataFrame:
    """A row a trial: the value of each axis, seed, whether it is a control, IoU, F1, seconds, and
    why it failed.
    """
    rows = []
    for trial in grid.trials:
        row = {"trial": trial.name, "seed": trial.seed, "control": trial.setting is None}
        row |= {"epochs": total_epochs(trial.recipe), "error": failures.get(trial.name)}
        if trial.setting is not None:
            row |= zip(grid.axes, grid.words(trial.setting), strict=True)
        if found := results.get(trial.name):
            row |= {"iou": found.iou, "f1": found.f1, "seconds": found.seconds}
        rows.append(row)
    columns = ["seed", "control", "epochs", "iou", "f1", "seconds", "error"]
    return pd.DataFrame(rows, columns=["trial", *grid.axes, *columns])


def figure(grid: Grid, results: Mapping[str, Result], curves: Mapping[str, Curve]) -> go.Figure:
    """Curves laid over each other, the mean IoU of every combination, and what each value gains."""
    findings = Findings(grid, results)
    found = make_subplots(rows=1, cols=3, horizontal_spacing=0.08, subplot_titles=_TITLES)
    for trial in grid.trials:
        found.add_trace(_curve(grid, trial, curves.get(trial.name, ())), row=1, col=1)
    gains = _gains(findings)
    found.add_trace(_heat(grid, findings), row=1, col=2)
    found.add_trace(gains, row=1, col=3)
    found.update_yaxes(autorangeoptions={"clipmin": 0, "clipmax": 1}, col=1)
    found.update_xaxes(type="category", col=2)
    found.update_yaxes(type="category", autorange="reversed", automargin=True, col=2)
    found.update_xaxes(zeroline=True, zerolinecolor=theme.TEXT, tickformat="+.2f", col=3)
    rows = len(gains.y)
    words = {"ticklabelposition": "inside top", "ticklabelshift": -8, "dtick": 1}
    words |= {"tickfont_color": theme.TEXT, "showgrid": False}  # else dark, and struck through
    found.update_yaxes(range=[-0.4, rows - 0.1], **words, col=3)
    return found.update_layout(
        template=theme.TEMPLATE,
        uirevision="stay",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        height=max(340, 116 + 50 * rows),
    )


def _curve(grid: Grid, trial: Trial, curve: Curve) -> go.Scatter:
    """A name and a colour for each setting; its first seed stands in the legend."""
    if trial.setting is None:
        name, line = "control", {"color": theme.PLAN, "dash": "dot"}
    else:
        name = " · ".join(grid.words(trial.setting))
        line = {"color": theme.stage_color(trial.setting + 1), "width": 1.4}
    ious = dict(curve)
    return go.Scatter(
        name=theme.literal(name),
        legendgroup=name,
        showlegend=trial.seed == grid.seeds[0],
        x=list(ious),
        y=list(ious.values()),
        mode="lines",
        line=line,
        hovertemplate=f"seed {trial.seed}, epoch %{{x}}: %{{y:.3f}}",
    )


def _heat(grid: Grid, findings: Findings) -> go.Heatmap:
    """The first axis downwards, all others across. What was left out of the grid is empty: it is no
    result of its own.
    """
    down, *others = grid.labels
    across = [" · ".join(words) or "all seeds" for words in product(*others)]
    means = {}
    for setting in range(len(grid.settings)):
        first, *rest = grid.words(setting)
        if ious := findings.scores(setting):
            means[first, " · ".join(rest) or "all seeds"] = fmean(ious.values())
    return go.Heatmap(
        name=_TITLES[1],
        z=[[means.get((row, column)) for column in across] for row in down],
        x=across,
        y=down,
        texttemplate="%{z:.3f}",
        zmin=min(means.values(), default=0) - 0.05,  # else a hundredth would be a whole rainbow
        zmax=max(means.values(), default=0) + 0.05,
    )


def _gains(findings: Findings) -> go.Scatter:
    """A dot with its interval for each value of each axis against the axis's first, from below; on
    top unfreezing against the controls.
    """
    effects = reversed(findings.main_effects())
    rows = [(effect.name, effect.gain) for effect in effects]
    rows.append(("unfreezing, against the same epochs in stage 1", findings.unfreezing()))
    return go.Scatter(
        x=[known and known.mean for _, known in rows],
        y=["<br>".join(map(escape, wrap(name, 32))) for name, _ in rows],
        mode="markers",
        marker={"color": theme.TRAIN, "size": 9},
        error_x={"array": [known and known.half for _, known in rows], "thickness": 1.6},
        hovertemplate="%{x:+.4f}<extra></extra>",
        showlegend=False,
    )
