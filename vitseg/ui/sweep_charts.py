"""A sweep as a figure and as tables: pure functions of the grid and what its trials ended with. No
torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg.sweep.findings import Effect, Findings, Result
from vitseg.sweep.grid import Grid, Trial, short_path, total_epochs
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na

Curve = Sequence[tuple[int, float | None]]
_MEAN = "IoU, mean over seeds"
_LEFT = {"x": 0, "xanchor": "left", "align": "left", "yanchor": "bottom", "showarrow": False}


def plan_table(grid: Grid) -> Table:
    """What a sweep is going to train."""
    rows = list(zip(map(short_path, grid.axes), map(", ".join, grid.labels), strict=True))
    rows.append(("seeds", ", ".join(map(str, grid.seeds))))
    settings, seeds = _count(len(grid.settings), "setting"), _count(len(grid.seeds), "seed")
    controls = _count(sum(map(len, _controls(grid).values())), "control")
    rows.append(("trials", f"{len(grid.trials)}: {settings} x {seeds}, and {controls}"))
    shared = sum(grid.shared.values())
    new = sum(len(trial.recipe.stages) for trial in grid.trials) - shared
    rows.append(("stages", f"{new} to train; {shared} are taken from an earlier trial"))
    return Table(("axis", "values"), tuple(rows))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _controls(grid: Grid) -> dict[str, list[Trial]]:
    """The trials of each control, a seed each."""
    found: dict[str, list[Trial]] = {}
    for trial in grid.trials:
        if trial.setting is None:
            found.setdefault(trial.name.partition("-")[0], []).append(trial)
    return found


def result_table(
    grid: Grid, results: Mapping[str, Result], failures: Mapping[str, str], now: str | None = None
) -> Table:
    """A row a setting, a column a seed; it fills while the sweep goes on. `now` is the trial that
    is being trained.
    """
    known = Findings(grid, results)
    cells = {now: "..."} | dict.fromkeys(failures, "failed")
    cells |= {name: number_or_na(result.iou) for name, result in results.items()}

    def row(words: Sequence[str], trials: Sequence[Trial], over: str) -> tuple[str, ...]:
        ious = [known.iou[trial.name] for trial in trials]
        ious = [iou for iou in ious if not math.isnan(iou)]
        mean = number_or_na(fmean(ious) if ious else None)
        return (*words, *[cells.get(trial.name, "") for trial in trials], mean, over)

    rows = []
    for number in range(len(grid.settings)):
        trials = [t for t in grid.trials if t.setting == number]
        rows.append(row(grid.words(number), trials, str(known.gain(number) or "")))
    for trials in _controls(grid).values():
        first = f"control: {total_epochs(trials[0].recipe)} epochs in stage 1"
        rows.append(row([first, *_common_words(grid, trials[0].name)[1:]], trials, ""))
    seeds = [f"seed {seed}" for seed in grid.seeds]
    heads = *map(short_path, grid.axes), *seeds, "mean over seeds", "gain over control (95 %)"
    caption = (
        "IoU of the best weights of the whole run; a trial whose later stages were no better ends "
        "on those that it inherited"
    )
    return Table(heads, tuple(rows), caption)


def _common_words(grid: Grid, control: str) -> list[str]:
    """The values of each axis on which all settings agree that are compared with a control; ""
    where they differ.
    """
    compared = [grid.words(trial.setting) for trial in grid.trials if trial.control == control]
    found = []
    for first, *others in zip(*compared, strict=True):
        found.append(first if set(others) <= {first} else "")
    return found


def frame(grid: Grid, results: Mapping[str, Result], failures: Mapping[str, str]) -> pd.DataFrame:
    """A row a trial: the value of each axis, seed, whether it is a control, IoU, F1, seconds, and
    why it failed.
    """
    rows = []
    for trial in grid.trials:
        row: dict[str, Any] = {"trial": trial.name} | dict.fromkeys(grid.axes)
        if trial.setting is not None:
            row |= zip(grid.axes, grid.words(trial.setting), strict=True)
        row |= {"seed": trial.seed, "control": trial.setting is None}
        row |= {"epochs": total_epochs(trial.recipe), "iou": None, "f1": None, "seconds": None}
        if trial.name in results:
            found = results[trial.name]
            row |= {"iou": found.iou, "f1": found.f1, "seconds": found.seconds}
        rows.append(row | {"error": failures.get(trial.name)})
    return pd.DataFrame(rows)


def figure(grid: Grid, results: Mapping[str, Result], curves: Mapping[str, Curve]) -> go.Figure:
    """Curves laid over each other, the mean IoU of every combination, and what each value gains."""
    findings = Findings(grid, results)
    gains, names = _gains(findings)
    found = make_subplots(rows=1, cols=3, horizontal_spacing=0.08)
    for trial in grid.trials:
        found.add_trace(_curve(grid, trial, curves.get(trial.name, ())), row=1, col=1)
    found.add_trace(_heat(grid, findings), row=1, col=2)
    found.add_trace(gains, row=1, col=3)

    found.update_xaxes(title={"text": "epoch", "font": {"size": 12}}, col=1)
    found.update_yaxes(autorangeoptions={"clipmin": 0, "clipmax": 1}, col=1)
    category = {"type": "category", "showgrid": False, "ticks": ""}
    found.update_xaxes(**category, col=2)
    found.update_yaxes(**category, autorange="reversed", automargin=True, col=2)
    found.update_xaxes(zeroline=True, zerolinecolor=theme.TEXT, tickformat="+.2f", col=3)
    rows = [-0.4, len(names) - 0.1]
    found.update_yaxes(showticklabels=False, showgrid=False, ticks="", range=rows, col=3)

    titles = {"x": "valid IoU over epochs", "x2": _MEAN, "x3": "gain in IoU, 95 % interval"}
    for axis, title in titles.items():
        text = f"<b>{title}</b><br>{_legend(grid) if axis == 'x' else ''}"
        place = {"xref": f"{axis} domain", "yref": "paper", "y": 1.02}
        found.add_annotation(text=text, font={"size": 12}, **place, **_LEFT)
    for row, name in enumerate(names):
        place = {"xref": "x3 domain", "yref": "y3", "y": row, "yshift": 6}
        found.add_annotation(text=name, font={"size": 11}, **place, **_LEFT)
    return found.update_layout(
        template=theme.TEMPLATE,
        showlegend=False,
        uirevision="stay",
        margin={"l": 52, "r": 16, "t": 64, "b": 52},
        height=max(340, 116 + 50 * len(names)),
    )


def _legend(grid: Grid) -> str:
    """What the curves' colours mean, where there is room to say it."""
    known = {}
    for number in range(len(grid.settings)):
        known[" · ".join(grid.words(number))] = theme.stage_color(number + 1)
    if sum(map(len, known)) >= 30:
        return "grey: controls"
    words = ""
    for text, color in (known | {"control": theme.PLAN}).items():
        words += f' <span style="color:{color}">■ {escape(text)}</span>'
    return words.strip()


def _curve(grid: Grid, trial: Trial, curve: Curve) -> go.Scatter:
    if trial.setting is None:
        words, line = "control", {"color": theme.PLAN, "width": 2, "dash": "dot"}
    else:
        words = " · ".join(grid.words(trial.setting))
        line = {"color": theme.stage_color(trial.setting + 1), "width": 1.4}
    ious = dict(curve)
    return go.Scatter(
        name=f"{words}, seed {trial.seed}",
        x=list(ious),
        y=list(ious.values()),
        mode="lines",
        line=line,
        hovertemplate="epoch %{x}: %{y:.3f}",
    )


def _heat(grid: Grid, findings: Findings) -> go.Heatmap:
    """The first axis downwards, all others across. What was left out of the grid is empty: it is no
    result of its own.
    """
    down, *others = grid.labels
    across = list(dict.fromkeys(levels[1:] for levels in grid.places))
    z: list[list[float | None]] = [[None] * len(across) for _ in down]
    text = [[""] * len(across) for _ in down]
    drawn, known = set(), []
    for levels, setting in grid.places.items():
        ious = findings.scores(setting).values()
        if ious and setting not in drawn:
            row, column = levels[0], across.index(levels[1:])
            z[row][column] = fmean(ious)
            text[row][column] = number_or_na(z[row][column])
            known.append(z[row][column])
        drawn.add(setting)
    low, high = min(known, default=0.5), max(known, default=0.5)
    half = max(0.05, (high - low) / 2)  # else a hundredth would be a whole rainbow
    x = []
    for levels in across:
        words = [other[level] for other, level in zip(others, levels, strict=True)]
        x.append(" · ".join(words) or "all seeds")
    return go.Heatmap(
        name=_MEAN,
        z=z,
        x=x,
        y=down if len(down) > 1 else [f"{short_path(next(iter(grid.axes)))} {down[0]}"],
        text=text,
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        colorscale="Cividis",
        showscale=False,
        zmin=(low + high) / 2 - half,
        zmax=(low + high) / 2 + half,
        xgap=3,
        ygap=3,
    )


def _gains(findings: Findings) -> tuple[go.Scatter, list[str]]:
    """A dot with its interval for each value of each axis against the axis's first, from below; on
    top unfreezing against the controls. Each row with its name.
    """
    rows = {_name(effect): effect.gain for effect in reversed(findings.main_effects())}
    rows["unfreezing, against<br>the same epochs in stage 1"] = findings.unfreezing()
    x, y, half = [], [], []
    for row, known in enumerate(rows.values()):
        if known:
            x.append(known.mean)
            y.append(row)
            half.append(known.half or 0.0)
    dots = go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"color": theme.TRAIN, "size": 9},
        error_x={"array": half, "color": theme.TRAIN, "thickness": 1.6},
        hovertemplate="%{x:+.4f}<extra></extra>",
        cliponaxis=False,
    )
    return dots, list(rows)


def _name(found: Effect) -> str:
    lines = [f"{found.axis}:", f"{found.value}, against {found.first}"]
    if found.where:
        lines.append(found.where)
    return "<br>".join(map(escape, lines))
