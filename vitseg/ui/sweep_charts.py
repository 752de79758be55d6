"""A sweep as a figure: a pure function of the grid and what its trials ended with. No torch."""

from collections.abc import Mapping
from itertools import product
from statistics import fmean
from textwrap import wrap

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg.sweep.findings import Findings, Result
from vitseg.sweep.grid import Grid, Trial
from vitseg.ui import theme

Curve = Mapping[int, float | None]
_TITLES = ("valid IoU over epochs", "IoU, mean over seeds", "gain in IoU, 95 % interval")


def figure(grid: Grid, results: Mapping[str, Result], curves: Mapping[str, Curve]) -> go.Figure:
    """Curves laid over each other, the mean IoU of every combination, and what each value gains."""
    findings = Findings(grid, results)
    traces = [_curve(grid, trial, curves.get(trial.name, {})) for trial in grid.trials]
    gains = _gains(findings)
    rows = len(gains.y)
    found = make_subplots(rows=1, cols=3, horizontal_spacing=0.08, subplot_titles=_TITLES)
    found.add_traces([*traces, _heat(grid, findings), gains])
    return found.update_layout(
        template=theme.TEMPLATE,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        height=240 + 50 * rows,
        yaxis_rangemode="nonnegative",
        yaxis2={"autorange": "reversed", "automargin": True},
        xaxis3={"zeroline": True, "zerolinecolor": theme.TEXT, "tickformat": "+.2f"},
        yaxis3={
            "range": [-0.4, rows - 0.1],
            "dtick": 1,
            "ticklabelposition": "inside top",
            "ticklabelshift": -14,  # clear of the interval
            "tickfont_color": theme.TEXT,  # else dark, and struck through
            "showgrid": False,
        },
    )


def _curve(grid: Grid, trial: Trial, curve: Curve) -> go.Scatter:
    """A name and a colour for each setting; its first seed stands in the legend."""
    name, color = "control", theme.PLAN
    if trial.setting is not None:
        name, color = " · ".join(trial.words), theme.stage_color(trial.setting + 1)
    curve = dict(curve)  # that of a trial under way grows meanwhile
    return go.Scatter(
        name=theme.literal(name),
        legendgroup=name,
        showlegend=trial.seed == grid.seeds[0],
        x=list(curve),
        y=list(curve.values()),
        mode="lines",
        line_color=color,
        hovertemplate=f"seed {trial.seed}, epoch %{{x}}: %{{y:.3f}}",
    )


def _heat(grid: Grid, findings: Findings) -> go.Heatmap:
    """The first axis downwards, all others across. What was left out of the grid is empty: it is no
    result of its own.
    """
    down, *others = grid.labels.values()
    _, firsts = np.unique(grid.places, return_index=True)
    means = np.full(grid.places.size, None)
    for setting, place in enumerate(firsts):
        if ious := findings.scores(setting):
            means[place] = fmean(ious.values())
    known = [mean for mean in means if mean is not None]
    return go.Heatmap(
        name=_TITLES[1],
        xaxis="x2",
        yaxis="y2",
        z=means.reshape(len(down), -1).tolist(),
        x=[" · ".join(words) or "all seeds" for words in product(*others)],
        y=down,
        texttemplate="%{z:.3f}",
        zmin=min(known, default=0) - 0.05,  # else a hundredth would be a whole rainbow
        zmax=max(known, default=0) + 0.05,
    )


def _gains(findings: Findings) -> go.Scatter:
    """A dot with its interval for each value of each axis against the axis's first, from below; on
    top unfreezing against the controls.
    """
    rows = findings.main_effects()[::-1]
    rows.append(("unfreezing, against the same epochs in stage 1", findings.unfreezing()))
    return go.Scatter(
        xaxis="x3",
        yaxis="y3",
        x=[known and known.mean for _, known in rows],
        y=["<br>".join(map(theme.literal, wrap(name, 32))) for name, _ in rows],
        mode="markers",
        marker_color=theme.TRAIN,
        error_x_array=[known and known.half for _, known in rows],
        hovertemplate="%{x:+.4f}<extra></extra>",
        showlegend=False,
    )
