"""Charts as pure functions of events: the same for a live run, a replayed one and one in a report. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg import plan
from vitseg.events import BatchEnded, EpochEnded, Event, RunStarted, StageEnded, StageStarted
from vitseg.recipe import Recipe
from vitseg.ui import theme


def curves(events: Iterable[Event]) -> go.Figure:
    """Learning rate, loss, IoU and F1 over epochs, a band for each stage."""
    events = list(events)
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=[0.28, 0.34, 0.38])
    for row, traces in enumerate((lr_traces(events), loss_traces(events), score_traces(events)), start=1):
        for trace in traces:
            figure.add_trace(trace, row=row, col=1)
    for row, (title, kind) in enumerate((("learning rate", "log"), ("loss", "linear"), ("IoU, F1", "linear")), start=1):
        figure.update_yaxes(title_text=title, type=kind, row=row, col=1)
    figure.update_yaxes(exponentformat="power", dtick=1, row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=3, col=1)
    figure.update_xaxes(title_text="epoch", row=3, col=1)
    _bands(figure, events)
    tops = {"legend": 1.0, "legend2": 0.72, "legend3": 0.36}  # each beside its own row
    legends = {name: {"y": y, "yanchor": "top", "x": 1.01, "bgcolor": "rgba(0,0,0,0)"} for name, y in tops.items()}
    return figure.update_layout(template=theme.TEMPLATE, height=720, hovermode="x", **legends)


def lr_traces(events: Sequence[Event]) -> list[go.Scatter]:
    """The LR that was used, and the one that was promised; the encoder's too where it has its own."""
    batches = [e for e in events if isinstance(e, BatchEnded)]
    x, steps = [_epoch(e) for e in batches], [e.step for e in batches]
    hover = "step %{customdata}: %{y:.3g}"
    traces = []
    if planned := _planned(events):
        traces.append(
            _line(
                "LR (planned)", [p.epoch for p in planned], [p.lr for p in planned], theme.PLAN, "legend", width=5, opacity=0.45
            )
        )
    traces.append(
        _line("LR", x, [e.lr["decoder"] for e in batches], theme.TRAIN, "legend", customdata=steps, hovertemplate=hover)
    )
    encoder = [_encoder_lr(e) for e in batches]
    if any(lr is not None for lr in encoder):
        traces.append(_line("LR, encoder", x, encoder, theme.SECOND, "legend", customdata=steps, hovertemplate=hover))
    return traces


def loss_traces(events: Sequence[Event]) -> list[go.Scatter]:
    batches = [e for e in events if isinstance(e, BatchEnded)]
    x, y = _validations(events, "loss")
    steps = [e.step for e in batches]
    hover = "step %{customdata}: %{y:.3f}"
    return [
        _line("train loss", [_epoch(e) for e in batches], [e.loss for e in batches], theme.TRAIN, "legend2",
              width=1.2, customdata=steps, hovertemplate=hover),
        _line("valid loss", x, y, theme.VALID, "legend2", mode="lines+markers"),
    ]  # fmt: skip


def score_traces(events: Sequence[Event]) -> list[go.Scatter]:
    """IoU and F1 per epoch. At a stage's start its start weights are scored: the curve breaks there."""
    ended = [e for e in events if isinstance(e, EpochEnded)]
    iou, f1 = _validations(events, "iou"), _validations(events, "f1")
    train = [e.train["iou"] for e in ended]
    return [
        _line("train IoU", [e.epoch for e in ended], train, theme.TRAIN, "legend3", mode="lines+markers", dash="dot"),
        _line("valid IoU", *iou, theme.VALID, "legend3", mode="lines+markers"),
        _line("valid F1", *f1, theme.SECOND, "legend3", mode="lines+markers"),
    ]


def planned_lr(recipe: Recipe, batches_per_epoch: int) -> go.Figure:
    """The promised LR of every step, before any training."""
    planned = plan.preview(recipe, batches_per_epoch)
    figure = go.Figure()
    start = 0
    for number, stage in enumerate(recipe.stages, start=1):
        own = [p for p in planned if p.stage == number]
        figure.add_scatter(
            name=f"{number} {stage.name}: {plan.describe(stage)}",
            x=[p.epoch for p in own],
            y=[p.lr for p in own],
            mode="lines",
            line={"color": theme.stage_color(number), "shape": "vh"},
            customdata=[p.step for p in own],
            hovertemplate="step %{customdata}: %{y:.3g}",
        )
        _band(figure, number, stage.name, start, start + stage.epochs)
        start += stage.epochs
    figure.update_yaxes(title_text="learning rate", type="log", exponentformat="power", dtick=1)
    figure.update_xaxes(title_text="epoch")
    legend = {"orientation": "h", "y": -0.25}
    return figure.update_layout(template=theme.TEMPLATE, height=380, legend=legend)


def freeze_map(rows: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> go.Figure:
    """Which parts train: a row for each (label, parts), a cell for each part with its `name`, `trains`, `parameters`."""
    names = [p["name"] for p in rows[0][1]]
    short = [_SHORT.get(n, n.removeprefix("block ")) for n in names]
    z = [[int(p["trains"]) for p in parts] for _, parts in rows]
    text = [
        [f"{p['name']}: {p['parameters']:,} parameters, {'trains' if p['trains'] else 'frozen'}" for p in parts]
        for _, parts in rows
    ]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=list(range(len(names))),
            y=[label for label, _ in rows],
            text=text,
            hovertemplate="%{text}<extra></extra>",
            xgap=3,
            ygap=5,
            zmin=0,
            zmax=1,
            showscale=False,
            colorscale=[[0, theme.FROZEN], [1, theme.TRAINED]],
        )
    )
    for label, color in (("frozen", theme.FROZEN), ("trains", theme.TRAINED)):
        marker = {"color": color, "symbol": "square", "size": 12}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=label, marker=marker)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=short, side="top", showgrid=False, ticks="")
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", type="category", automargin=True)
    legend = {"orientation": "h", "y": -0.05, "yanchor": "top"}
    return figure.update_layout(template=theme.TEMPLATE, height=110 + 42 * len(rows), legend=legend)


def freeze_map_of(events: Iterable[Event]) -> go.Figure:
    """The freeze map of a run, a row for each stage begun."""
    started = [e for e in events if isinstance(e, StageStarted)]
    return freeze_map([(f"{e.stage} {e.name}", e.parts) for e in started])


def class_map(events: Iterable[Event]) -> go.Figure:
    """IoU of every class over epochs. Absent classes stay blank."""
    events = list(events)
    classes = next(e.classes for e in events if isinstance(e, RunStarted))
    ended = [e for e in events if isinstance(e, EpochEnded)]
    z = [[e.validation["per_class_iou"][i] for e in ended] for i in range(len(classes))]
    bar = {"title": "IoU", "thickness": 12}
    hover = "epoch %{x}, %{y}: %{z:.3f}<extra></extra>"
    x = [e.epoch for e in ended]
    figure = go.Figure(go.Heatmap(z=z, x=x, y=classes, zmin=0, zmax=1, colorscale="Cividis", colorbar=bar, hovertemplate=hover))
    figure.update_yaxes(autorange="reversed", type="category", automargin=True, showgrid=False)
    figure.update_xaxes(title_text="epoch", showgrid=False)
    return figure.update_layout(template=theme.TEMPLATE, height=140 + 26 * len(classes))


_SHORT = {"embeddings": "E", "final norm": "N", "decoder": "decoder"}


def _line(
    name: str,
    x: list,
    y: list,
    color: str,
    legend: str,
    *,
    width: float = 2,
    dash: str = "solid",
    mode: str = "lines",
    **more: Any,
) -> go.Scatter:
    line = {"color": color, "width": width, "dash": dash, "shape": "vh" if name.startswith("LR") else "linear"}
    return go.Scatter(name=name, x=x, y=y, mode=mode, line=line, marker={"size": 6}, legend=legend, **more)


def _epoch(event: BatchEnded) -> float:
    return event.epoch - 1 + event.batch / event.batches


def _encoder_lr(event: BatchEnded) -> float | None:
    """The LR of the encoder's last group, if it differs from the decoder's."""
    own = [lr for name, lr in event.lr.items() if not name.startswith("decoder")]
    return own[-1] if own and own[-1] != event.lr["decoder"] else None


def _planned(events: Sequence[Event]) -> list[plan.Planned]:
    """The plan of the stages begun so far, at the epochs where they really began."""
    run = next((e for e in events if isinstance(e, RunStarted)), None)
    if run is None:
        return []
    stages = Recipe.model_validate_json(json.dumps(run.recipe)).stages
    ends = {e.stage: e.epochs for e in events if isinstance(e, StageEnded)}
    found = []
    for begun in (e for e in events if isinstance(e, StageStarted)):
        stage, n = stages[begun.stage - 1], run.batches_per_epoch
        for batch in range(1, ends.get(begun.stage, begun.epochs) * n + 1):
            lr = plan.planned_lr(stage, batch, n)
            epoch = begun.epoch + plan.epochs_done(batch, n)
            found.append(plan.Planned(begun.stage, begun.step + batch, epoch, lr))
    return found


def _validations(events: Sequence[Event], score: str) -> tuple[list[float | None], list[float | None]]:
    """Epochs and values, the start weights of each stage among them, with a gap between two stages."""
    x: list[float | None] = []
    y: list[float | None] = []
    for event in events:
        if isinstance(event, StageStarted):
            x, y = [*x, event.epoch, event.epoch], [*y, None, event.validation[score]]
        elif isinstance(event, EpochEnded):
            x, y = [*x, event.epoch], [*y, event.validation[score]]
    return x[1:], y[1:]


def _bands(figure: go.Figure, events: Sequence[Event]) -> None:
    ended = [e.epoch for e in events if isinstance(e, EpochEnded)]
    ends = {e.stage: e.epoch for e in events if isinstance(e, StageEnded)}
    for e in events:
        if isinstance(e, StageStarted):
            _band(figure, e.stage, e.name, e.epoch, ends.get(e.stage, max(e.epoch + e.epochs, *ended, 0)))


def _band(figure: go.Figure, stage: int, name: str, start: float, end: float) -> None:
    figure.add_vrect(x0=start, x1=end, fillcolor=theme.stage_color(stage), opacity=0.09, line_width=0, layer="below")
    figure.add_annotation(
        x=(start + end) / 2, y=1.0, yref="paper", yanchor="bottom", text=f"{stage} {name}", showarrow=False,
        font={"color": theme.stage_color(stage)},
    )  # fmt: skip
