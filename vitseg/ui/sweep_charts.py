"""A sweep as a figure and as tables: pure functions of the grid and what its trials ended with. No
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg.sweep.findings import (
    Result,
    comparisons,
    estimate,
    gain,
    main_effects,
    scores,
    unfreezing,
)
from vitseg.sweep.grid import Grid, Trial, short_path, value_words
from vitseg.ui import theme
from vitseg.ui.table import Table, number_or_na

Curve = Sequence[tuple[int, float | None]]
_TITLES = ("valid IoU over epochs", "IoU, mean over seeds", "gain in IoU, 95 % interval")
_BOUGHT = ("unfreezing", "")


def plan_table(grid: Grid) -> Table:
    """What a sweep is going to train."""
    stages = sum(len(t.recipe.stages) for t in grid.trials)
    shared = sum(grid.shared.values())
    controls = sum(t.setting is None for t in grid.trials)
    rows = [
        *(
            (short_path(path), ", ".join(w))
            for path, w in zip(grid.axes, _axis_words(grid), strict=True)
        ),
        ("seeds", ", ".join(map(str, grid.seeds))),
        (
            "trials",
            f"{len(grid.trials)}: {_count(len(grid.settings), 'setting')} x "
            f"{_count(len(grid.seeds), 'seed')}, and "
            f"{_count(controls, 'control')}",
        ),
        ("stages", f"{stages - shared} to train; {shared} are taken from an earlier trial"),
    ]
    return Table(("axis", "values"), tuple(rows))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _axis_words(grid: Grid) -> list[list[str]]:
    return [[value_words(v, values) for v in values] for values in grid.axes.values()]


def result_table(
    grid: Grid, results: Mapping[str, Result], failures: Mapping[str, str], now: str | None = None
) -> Table:
    """A row a setting, a column a seed; it fills while the sweep goes on. `now` is the trial that
    is being trained.
    """
    cells = {t.name: _cell(t, results, failures, now) for t in grid.trials}
    rows = []
    for number in range(len(grid.settings)):
        trials = [t for t in grid.trials if t.setting == number]
        over = gain(grid, results, number)
        mean = estimate(list(scores(grid, results, number).values()))
        last = (number_or_na(mean.mean if mean else None), str(over) if over else "")
        rows.append((*grid.words(number), *(cells[t.name] for t in trials), *last))
    for control in dict.fromkeys(
        t.name.partition("-")[0] for t in grid.trials if t.setting is None
    ):
        trials = [t for t in grid.trials if t.name.partition("-")[0] == control]
        known = [
            results[t.name].iou
            for t in trials
            if t.name in results and results[t.name].iou is not None
        ]
        words = f"control: {trials[0].recipe.stages[0].epochs} epochs in stage 1"
        others = _values_of_control(grid, trials[0].name)[1:]
        rows.append(
            (
                words,
                *others,
                *(cells[t.name] for t in trials),
                number_or_na(fmean(known) if known else None),
                "",
            )
        )
    heads = (
        *map(short_path, grid.axes),
        *(f"seed {s}" for s in grid.seeds),
        "mean over seeds",
        "gain over control (95 %)",
    )
    return Table(
        heads,
        tuple(rows),
        (
            "IoU of the best weights of the whole run; a trial whose later stages were no better "
            "ends "
            "on those that it inherited"
        ),
    )


def _values_of_control(grid: Grid, control: str) -> list[str]:
    """The values of each axis on which all settings agree that are compared with a control; ""
    where they differ.
    """
    words = [grid.words(t.setting) for t in grid.trials if t.control == control]
    return [column[0] if len(set(column)) == 1 else "" for column in zip(*words, strict=True)]


def _cell(
    trial: Trial, results: Mapping[str, Result], failures: Mapping[str, str], now: str | None
) -> str:
    if trial.name in results:
        return number_or_na(results[trial.name].iou)
    return "failed" if trial.name in failures else "..." if trial.name == now else ""


def frame(grid: Grid, results: Mapping[str, Result], failures: Mapping[str, str]) -> pd.DataFrame:
    """A row a trial: the value of each axis, seed, whether it is a control, IoU, F1, seconds, and
    why it failed.
    """
    rows: list[dict[str, Any]] = []
    for trial in grid.trials:
        words = grid.words(trial.setting) if trial.setting is not None else [None] * len(grid.axes)
        found = results.get(trial.name)
        rows.append(
            {"trial": trial.name}
            | dict(zip(grid.axes, words, strict=True))
            | {
                "seed": trial.seed,
                "control": trial.setting is None,
                "epochs": sum(s.epochs for s in trial.recipe.stages),
            }
            | {
                "iou": found and found.iou,
                "f1": found and found.f1,
                "seconds": found and found.seconds,
            }
            | {"error": failures.get(trial.name)}
        )
    return pd.DataFrame(rows)


def figure(grid: Grid, results: Mapping[str, Result], curves: Mapping[str, Curve]) -> go.Figure:
    """Curves laid over each other, the mean IoU of every combination, and what each value gains."""
    found = make_subplots(rows=1, cols=3, horizontal_spacing=0.08)
    for trial in grid.trials:
        found.add_trace(_curve(grid, trial, curves.get(trial.name, ())), row=1, col=1)
    found.add_trace(_heat(grid, results), row=1, col=2)
    found.add_trace(_gains(grid, results), row=1, col=3)
    found.update_layout(annotations=[*_titles(grid), *_names_of_gains(grid)])
    found.update_xaxes(title={"text": "epoch", "font": {"size": 12}}, row=1, col=1)
    found.update_yaxes(autorangeoptions={"clipmin": 0, "clipmax": 1}, row=1, col=1)
    found.update_xaxes(type="category", showgrid=False, ticks="", row=1, col=2)
    found.update_yaxes(
        type="category",
        autorange="reversed",
        showgrid=False,
        ticks="",
        automargin=True,
        row=1,
        col=2,
    )
    found.update_xaxes(zeroline=True, zerolinecolor=theme.TEXT, tickformat="+.2f", row=1, col=3)
    found.update_yaxes(
        showticklabels=False,
        showgrid=False,
        ticks="",
        range=[-0.4, len(_gained(grid)) - 0.1],
        row=1,
        col=3,
    )
    look = {
        "margin": {"l": 52, "r": 16, "t": 64, "b": 52},
        "height": max(340, 116 + 50 * len(_gained(grid))),
    }
    return found.update_layout(template=theme.TEMPLATE, showlegend=False, uirevision="stay", **look)


def _titles(grid: Grid) -> list[dict[str, Any]]:
    """Of each chart; over the curves, in place of a legend, what their colours mean, where there is
    room to say it.
    """
    colors = [
        (" · ".join(grid.words(n)), theme.stage_color(n + 1)) for n in range(len(grid.settings))
    ]
    words = " ".join(
        f'<span style="color:{color}">■ {escape(w)}</span>'
        for w, color in [*colors, ("control", theme.PLAN)]
    )
    legend = words if sum(len(w) for w, _ in colors) < 30 else "grey: controls"
    look = {"x": 0, "xanchor": "left", "align": "left", "showarrow": False, "font": {"size": 12}}
    where = [
        {"xref": f"x{n} domain", "yref": "paper", "y": 1.02, "yanchor": "bottom"}
        for n in ("", "2", "3")
    ]
    texts = [
        f"<b>{title}</b><br>{below}" for title, below in zip(_TITLES, (legend, "", ""), strict=True)
    ]
    return [{"text": text} | look | at for text, at in zip(texts, where, strict=True)]


def _gained(grid: Grid) -> dict[tuple[str, str], str]:
    """The rows of the chart of gains, from below: axis and value, and on top unfreezing; each with
    what it is called.
    """
    rows = [
        (
            (c.axis, c.value),
            "\n".join(filter(None, [f"{c.axis}:", f"{c.value}, against {c.first}", c.where])),
        )
        for c in comparisons(grid)
    ]
    return dict(reversed(rows)) | {_BOUGHT: "unfreezing, against\nthe same epochs in stage 1"}


def _names_of_gains(grid: Grid) -> list[dict[str, Any]]:
    look = {
        "xref": "x3 domain",
        "x": 0,
        "xanchor": "left",
        "align": "left",
        "yanchor": "bottom",
        "showarrow": False,
    }
    text = [escape(name).replace("\n", "<br>") for name in _gained(grid).values()]
    return [
        {"text": t, "yref": "y3", "y": row, "yshift": 6, "font": {"size": 11}} | look
        for row, t in enumerate(text)
    ]


def _curve(grid: Grid, trial: Trial, curve: Curve) -> go.Scatter:
    control = trial.setting is None
    words = (
        f"control, seed {trial.seed}"
        if control
        else f"{' · '.join(grid.words(trial.setting))}, seed {trial.seed}"
    )
    line = {
        "color": theme.PLAN if control else theme.stage_color(trial.setting + 1),
        "width": 2 if control else 1.4,
    }
    line |= {"dash": "dot"} if control else {}
    x, y = [e for e, _ in curve], [iou for _, iou in curve]
    return go.Scatter(
        name=words, x=x, y=y, mode="lines", line=line, hovertemplate="epoch %{x}: %{y:.3f}"
    )


def _heat(grid: Grid, results: Mapping[str, Result]) -> go.Heatmap:
    """The first axis downwards, all others across. What was left out of the grid is empty: it is no
    result of its own.
    """
    words = _axis_words(grid)
    across = list(dict.fromkeys(levels[1:] for levels in grid.places))
    means = [estimate(list(scores(grid, results, n).values())) for n in range(len(grid.settings))]
    trained = {
        setting: levels for levels, setting in reversed(grid.places.items())
    }  # the first that comes to it
    by_levels = {levels: _mean(means[setting]) for setting, levels in trained.items()}
    z = [[by_levels.get((row, *rest)) for rest in across] for row in range(len(words[0]))]
    text = [[number_or_na(v) if v is not None else "" for v in row] for row in z]
    x = [
        " · ".join(words[i + 1][level] for i, level in enumerate(rest)) or "all seeds"
        for rest in across
    ]
    y = [f"{short_path(next(iter(grid.axes)))} {w}" if len(words[0]) < 2 else w for w in words[0]]
    look = {
        "name": _TITLES[1],
        "showscale": False,
        "colorscale": "Cividis",
        "xgap": 3,
        "ygap": 3,
        "texttemplate": "%{text}",
    }
    known = [value for row in z for value in row if value is not None] or [0.5]
    middle, half = (min(known) + max(known)) / 2, max(0.05, (max(known) - min(known)) / 2)
    look |= {
        "zmin": middle - half,
        "zmax": middle + half,
    }  # a tenth at least: else a hundredth would be a whole rainbow
    return go.Heatmap(
        z=z, x=x, y=y, text=text, hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>", **look
    )


def _mean(found: Any) -> float | None:
    return found.mean if found else None


def _gains(grid: Grid, results: Mapping[str, Result]) -> go.Scatter:
    """A dot with its interval for each value of each axis against the axis's first; on top
    unfreezing against the controls.
    """
    found = {(e.axis, e.value): e.gain for e in main_effects(grid, results)} | {
        _BOUGHT: unfreezing(grid, results)
    }
    rows = [
        (row, found[key]) for row, key in enumerate(_gained(grid)) if found.get(key) is not None
    ]
    return go.Scatter(
        x=[gain.mean for _, gain in rows],
        y=[row for row, _ in rows],
        mode="markers",
        marker={"color": theme.TRAIN, "size": 9},
        error_x={
            "array": [gain.half or 0.0 for _, gain in rows],
            "color": theme.TRAIN,
            "thickness": 1.6,
        },
        hovertemplate="%{x:+.4f}<extra></extra>",
        cliponaxis=False,
    )
