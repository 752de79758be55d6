"""One look for every figure: readable on a light and on a dark page, and by colour-blind readers;
no way out to the network.
"""

from html import escape

import plotly.graph_objects as go
import plotly.io as pio

STAGES = ("#2584C6", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""One colour a stage (Okabe & Ito, the blue lighter for dark pages)."""

TRAIN, VALID, SECOND, PLAN = "#2584C6", "#D55E00", "#009E73", "#8a8a8a"
TEXT = "#7a7a7a"
"""TEXT has a contrast above 4 on white and on JupyterLab's dark page; backgrounds are transparent.
"""

FROZEN, TRAINED, BROKEN = "#8883", "#E69F00aa", "#B2182Baa"
"""Of cells, through which the page is seen, so that its own text colour can be read on them."""

HANDLE = {"handle_color": TRAIN}
"""Of a slider: JupyterLab's own is white on white at the end of the scale."""

_AXIS = {"gridcolor": "rgba(128,128,128,0.22)", "zeroline": False, "exponentformat": "power"}
TEMPLATE = go.layout.Template(
    data={"heatmap": [{"colorscale": "Cividis", "showscale": False}]},
    layout={
        "font": {"color": TEXT, "size": 13, "family": "system-ui, sans-serif"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "autotypenumbers": "strict",  # "2" is a name
        "margin": {"l": 64, "r": 16, "t": 48, "b": 48},
        "hoverlabel": {"namelength": -1},
        "colorway": STAGES,
        "modebar": {"remove": ["sendChartToCloud", "select2d", "lasso2d"]},
    },
)

CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""How plotly.js draws: its mode bar offers neither to upload a chart nor to visit its maker."""

for _renderer in map(pio.renderers.__getitem__, pio.renderers):
    if "config" in vars(_renderer):  # all but those that make pictures
        _renderer.config = (_renderer.config or {}) | CONFIG


def literal(text: str) -> str:
    """A name for a chart, which would take a "<" in it for the beginning of a tag."""
    return escape(text, quote=False)


def stage_color(stage: int) -> str:
    """Stages count from 1."""
    return STAGES[(stage - 1) % len(STAGES)]
