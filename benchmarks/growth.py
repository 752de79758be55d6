"""How the cost of an epoch grows: with the images, with their size, with the blocks that train;
with and without kept features.

    python benchmarks/growth.py            (ten minutes; writes runs/growth.json)
    python benchmarks/growth.py --draw     docs/pictures/growth.png from that, with Chromium

CPU seconds of an epoch of training and validation, after the first, of DINOv2-small with the lean
decoder; both ways step by step in turn, in one process. What is not varied stands at 60 images, 224
x 224, no block unfrozen. Beside each measured ratio the bound that floating-point operations set.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import plotly.graph_objects as go
from bench import SMALL, Case, bounds, drawn, in_turn, own_cache
from contenders import ours
from plotly.subplots import make_subplots

import vitseg
from vitseg.ui import theme
from vitseg.ui.table import Table

CASE = Case(SMALL, epochs=2)
AXES = {"images": (20, 40, 80, 160), "side": (112, 168, 224, 280), "unfrozen": (0, 1, 2, 4, 8, 12)}
WORDS = {"images": "images", "side": "height and width, pixels", "unfrozen": "unfrozen blocks"}
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "growth.png"


def epoch(case: Case) -> dict[str, float]:
    """CPU seconds of the second epoch."""
    with own_cache():
        data = drawn(case.recipe())
        spent = in_turn(
            {way: ours(case.recipe(cache=way == "kept"), data) for way in ("computed", "kept")}
        )
    last = {
        way: {kind: times[-(len(times) // (2 + (kind == "valid"))) :] for kind, times in s.items()}
        for way, s in spent.items()
    }
    return {way: sum(map(sum, kinds.values())) for way, kinds in last.items()}


def table(found: dict[str, list[dict]]) -> Table:
    cells = [
        (
            WORDS[axis],
            str(row["value"]),
            f"{row['computed']:.2f} s",
            f"{row['kept']:.2f} s",
            f"{row['computed'] / row['kept']:.2f}",
            f"{row['bound']:.2f}",
        )
        for axis, rows in found.items()
        for row in rows
    ]
    return Table(
        ("varied", "", "computed in each step", "kept", "ratio", "bound"),
        tuple(cells),
        "CPU of an epoch",
    )


def figure(found: dict[str, list[dict]]) -> go.Figure:
    figure = make_subplots(1, len(found), shared_yaxes=True, horizontal_spacing=0.04)
    looks = {
        "computed": ("computed in each step", theme.VALID),
        "kept": ("read from where they are kept", theme.TRAIN),
    }
    for column, (axis, rows) in enumerate(found.items(), start=1):
        for way, (name, color) in looks.items():
            x, y = [row["value"] for row in rows], [row[way] for row in rows]
            line = go.Scatter(
                x=x,
                y=y,
                name=name,
                mode="lines+markers",
                line={"color": color},
                cliponaxis=False,
                showlegend=column == 1,
            )
            figure.add_trace(line, 1, column)
        figure.update_xaxes(title=WORDS[axis], rangemode="tozero", row=1, col=column)
    figure.update_yaxes(title="CPU seconds of an epoch", rangemode="tozero", row=1, col=1)
    legend = {
        "orientation": "h",
        "y": 1.02,
        "yanchor": "bottom",
        "title": "features of the frozen blocks: ",
    }
    return figure.update_layout(template=theme.TEMPLATE, width=1000, height=380, legend=legend)


def draw(found: dict[str, list[dict]]) -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        page_file = Path(folder) / "growth.html"
        page_file.write_text(
            figure(found).to_html(include_plotlyjs=True, full_html=True), encoding="utf-8"
        )
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(device_scale_factor=1.5, viewport={"width": 1020, "height": 420})
        page.goto(page_file.as_uri())
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
        page.locator(".js-plotly-plot").screenshot(path=str(PICTURE))
        browser.close()


def main(arguments: list[str]) -> int:
    file = vitseg.runs_root() / "growth.json"
    if arguments == ["--draw"]:
        draw(json.loads(file.read_text(encoding="utf-8")))
        return 0
    found: dict[str, list[dict]] = {axis: [] for axis in AXES}
    for axis, values in AXES.items():
        for value in values:
            case = CASE._replace(**{axis: value})
            found[axis].append({"value": value, "bound": bounds(case)["epoch"], **epoch(case)})
            sys.stdout.write(f"{axis} {value}: done\n")
            sys.stdout.flush()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"\n{table(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
