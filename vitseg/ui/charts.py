"""Charts as pure functions of events: the same for a live run, a replayed one and one in a report.
No torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vitseg import plan
from vitseg.events import (
    BatchEnded,
    EpochEnded,
    Event,
    FeaturesUsed,
    RunStarted,
    StageEnded,
    StageStarted,
)
from vitseg.recipe import Recipe
from vitseg.runs.folder import Failure
from vitseg.runs.narrate import inherited_words
from vitseg.ui import theme
from vitseg.ui.curves import Band, Curves, Points
from vitseg.ui.markup import lines
from vitseg.ui.table import Cell, Table

POINTS = 1000
"""Of a longer curve, where it is drawn again and again, only the extremes are shown."""

_HOVER = "%{y:.4~g} (step %{customdata})"
_STYLE = {
    "valid loss, parent": (2, theme.PLAN, {"line_dash": "dot"}),
    "valid IoU, parent": (3, theme.PLAN, {"line_dash": "dot"}),
    "LR (planned)": (1, theme.PLAN, {"line_width": 5}),
    "LR": (1, theme.TRAIN, {}),
    "LR, encoder": (1, theme.SECOND, {}),
    "train loss": (2, theme.TRAIN, {}),
    "valid loss": (2, theme.VALID, {}),
    "train IoU": (3, theme.TRAIN, {"line_dash": "dot"}),
    "valid IoU": (3, theme.VALID, {}),
    "valid F1": (3, theme.SECOND, {}),
}
"""Chart, colour and line of each curve, the lower ones first."""


def curves(events: Iterable[Event], beneath: Iterable[Event] | None = None) -> go.Figure:
    """Learning rate, loss, IoU and F1 over epochs, a band for each stage; those of another run grey
    and dotted beneath.
    """
    return curves_figure(Curves(events), Curves(beneath or ()), None)


def curves_figure(
    curves: Curves, beneath: Curves | None = None, most: int | None = POINTS
) -> go.Figure:
    """Three charts side by side on one epoch axis. Of `beneath`, the curves of another run, the
    validation scores are drawn.

    `most` is the number of points of a curve above which it is thinned.
    """
    beneath = beneath or Curves()
    figure = make_subplots(rows=1, cols=3, shared_xaxes="all", horizontal_spacing=0.07)
    for name, (column, color, line) in _STYLE.items():
        figure.add_scatter(
            name=name,
            line_color=color,
            hovertemplate=_HOVER,
            row=1,
            col=column,
            **points_of(name, curves, beneath).trace(most),
            **line,
        )
    figure.update_traces(line_shape="vh", col=1)
    figure.update_xaxes(title_text="epoch")
    for band in curves.bands:
        _add_band(figure, band, f"<b>{band.stage}</b>")
    return figure.update_layout(
        template=theme.TEMPLATE,
        legend={"orientation": "h", "y": 1.1, "yanchor": "bottom"},
        yaxis={"title_text": "learning rate", "type": "log"},
        yaxis2={"title_text": "loss", "rangemode": "tozero"},
        yaxis3={"title_text": "IoU, F1", "range": [0, 1]},
        height=380,
        margin={"t": 104},
        hovermode="x",
    )


def points_of(name: str, curves: Curves, beneath: Curves) -> Points:
    """What a trace of `curves_figure` shows."""
    own = name.removesuffix(", parent")
    return (curves if name == own else beneath).points[own]


def _add_band(figure: go.Figure, band: Band, text: str) -> None:
    """Behind the curves of a stage, the text above it, and its name as the tooltip."""
    color = theme.stage_color(band.stage)
    figure.add_vrect(
        band.start,
        band.end,
        fillcolor=color,
        opacity=0.09,
        line_width=0,
        layer="below",
        annotation_text=text,
        annotation_hovertext=theme.literal(band.name),
        annotation_font_color=color,
        annotation_position="outside top",
    )


def planned_lr(recipe: Recipe, batches_per_epoch: int) -> go.Figure:
    """The promised LR of every step, before any training."""
    planned = Curves()
    planned.promise(recipe, batches_per_epoch)
    data = planned.points["LR (planned)"].trace()
    figure = go.Figure(go.Scatter(data, name="planned", line_shape="vh", hovertemplate=_HOVER))
    for stage, band in zip(recipe.stages, planned.bands, strict=True):
        text = f"{band.stage} {theme.literal(stage.name)}<br>{plan.describe(stage)}"
        _add_band(figure, band, text)
    return figure.update_layout(
        template=theme.TEMPLATE,
        height=380,
        xaxis_title="epoch",
        yaxis_title="learning rate",
        yaxis_type="log",
    )


def freeze_map(rows: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Table:
    """Which parts train: a row for each (label, parts), a cell for each part.

    A part has `name`, `block`, `trains` and `parameters`; once its stage runs, `in_optimizer`, how many of
    them the optimizer holds; and `broken` where a detector found it otherwise than promised.
    """
    names = [str(part.get("block") or part["name"]) for part in rows[0][1]]
    caption = (
        "Freeze map, blocks by number. · frozen, ○ trains, ● in the optimizer, counted when the "
        "stage began, ✗ otherwise than promised"
    )
    cells = [(label, *map(_part, parts)) for label, parts in rows]
    return Table(("", *names), cells, caption)


def _part(part: Mapping[str, Any]) -> Cell:
    kind, mark, color = "frozen", "·", theme.FROZEN
    if part["trains"]:
        kind, mark, color = "trains", "○", theme.TRAINED
    words = f"{part['name']}: {kind}, {part['parameters']:,} parameters"
    if "in_optimizer" in part:
        words += f", {part['in_optimizer']:,} in the optimizer"
        mark = "●" if part["in_optimizer"] else mark
    if part.get("broken"):
        mark, color, words = "✗", theme.BROKEN, f"{words}. Promised, but not so: see Checks"
    return Cell(mark, words, color)


def freeze_map_of(events: Iterable[Event]) -> Table:
    """The freeze map of a run, a row for each stage begun."""
    return freeze_map(
        [(f"{e.stage} {e.name}", e.parts) for e in events if isinstance(e, StageStarted)]
    )


def class_map(events: Sequence[Event], most: int = 1000) -> Table:
    """Validation IoU of every class over epochs. Of more than `most` epochs, evenly many are
    shown, the last among them.
    """
    ended = [event for event in events if isinstance(event, EpochEnded)]
    if not ended:
        return Table((), (), "After the first epoch: the IoU of every class, epoch by epoch.")
    rows, apart = [[name] for name in events[0].classes], -(-len(ended) // most)
    ended = ended[::-apart][::-1]
    for event in ended:
        for row, iou in zip(rows, event.validation["per_class_iou"], strict=True):
            cell = "n/a"
            if iou is not None:
                words = f"{row[0]}, epoch {event.epoch}: {iou:.3f}"
                color = f"color-mix(in srgb, {theme.TRAIN} {iou:.0%}, transparent)"
                cell = Cell(f"{100 * iou:.0f}", words, color)
            row.append(cell)
    caption = "Validation IoU in hundredths, images at their own size. n/a: absent from the truth."
    return Table(("epoch", *(str(event.epoch) for event in ended)), rows, caption)


def checks(
    events: Sequence[Event], failure: Failure | None = None, used: FeaturesUsed | None = None
) -> str:
    """What the detectors found, stage by stage: green, or red with the sentence that explains what
    ended the run.
    """
    said, steps = [], 0
    for event in events:
        match event:
            case RunStarted() if event.parent:
                said.append(("quiet", inherited_words(event.parent)))
            case StageStarted():
                said.append(
                    ("good", f"✓ Stage {event.stage}, before its first step. {event.audit}")
                )
            case BatchEnded():
                steps += 1
            case StageEnded():
                said.append(("good", f"✓ Stage {event.stage}, after its last step. {event.audit}"))
                if event.warning:
                    said.append(("bad", f"✗ {event.warning}"))
    if steps:
        words = "steps so far were taken at the promised learning rates."
        said.append(("good", f"✓ LR contract: all {steps:,} {words}"))
    if used:
        counts = f"read {used.read:,} views and computed {used.computed:,}"
        said.append(("quiet", f"Cached features: epoch {used.epoch} {counts}. {used.note}"))
    if failure:
        said.append(("bad", f"✗ Stopped by {failure.kind}: {failure.says}"))
    waiting = "Once a stage begins: what trains, what the optimizer holds, which weights moved."
    return lines(said or [("quiet", waiting)])
