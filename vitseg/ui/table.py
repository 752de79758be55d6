"""Small tables that read well in a terminal and in a notebook."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from jinja2.filters import do_filesizeformat as size
from markupsafe import Markup

from vitseg import plan
from vitseg.recipe import Recipe
from vitseg.runs.narrate import number_or_na
from vitseg.ui import markup

_WRAPS = re.compile(r"[^\W\d_]{4}|^[^ -]*$")
"""Text with a word in it, unlike "+0.012 (+0.004 to +0.019)", or without a place to break a line."""


class Cell(str):
    """Text on a coloured ground. `words` is the tooltip, which is read out, too."""

    def __new__(cls, text: str, words: str, color: str) -> Self:
        cell = super().__new__(cls, text)
        cell.attributes = {"title": words, "aria-label": words, "style": f"background:{color}"}
        return cell


class Table(NamedTuple):
    """Columns and rows of text; numbers are formatted by whoever makes the table."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], caption: str = "") -> Self:
        """From cells by column. The first row has all columns; what another lacks is empty."""
        cells = [tuple(str(row.get(name, "")) for name in rows[0]) for row in rows]
        return cls(tuple(rows[0]), cells, caption)

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.caption, *text]).lstrip("\n")

    __repr__ = __str__

    def __html__(self) -> Markup:
        """Words wrap, numbers do not; a table that is still too wide scrolls, below its caption."""
        return markup.render("table", table=self, wraps=_WRAPS.search)

    def _repr_html_(self) -> str:
        return markup.STYLE + markup.html(self)


def stages(
    recipe: Recipe,
    freezing: Sequence[tuple[str, Any]] = (),
    forecasts: Sequence[Any] = (),
    edited: int = 0,
) -> Table:
    """What a recipe is going to do, a row for each stage; with the rows of a freeze map also what
    trains, with forecasts what that will take and what cached features change about it. The stage
    that is `edited`, counted from 1, is marked.
    """
    rows = []
    for number, stage in enumerate(recipe.stages):
        encoder = stage.lr * stage.encoder_lr_factor
        mark = "▸ " * (number + 1 == edited)
        row = {
            "stage": f"{mark}{number + 1} {stage.name}",
            "freeze depth": _depth(stage.unfrozen_blocks),
            "schedule / clock": plan.describe(stage),
            "LR": f"{stage.lr:.2e}",
            "encoder LR": f"{encoder:.2e}" if stage.unfrozen_blocks else "frozen",
            "epochs": stage.epochs,
        }
        if freezing:
            _, parts = freezing[number]
            trains = sum(part["parameters"] for part in parts if part["trains"])
            row["trains"] = _share(trains, sum(part["parameters"] for part in parts))
        if forecasts:
            f = forecasts[number]
            row |= {
                "steps": f"{f.steps:,}",
                "time": str(timedelta(seconds=round(f.seconds)))
                if f.seconds
                else "trained already",
                "memory": size(f.memory),
                "checkpoint": size(f.checkpoint),
                "cached features": f"+{size(f.kept)}, {f.gain:.1f}x as fast",
                "bound by": f.bound,
            }
        rows.append(row)
    caption = "Forecast, from a few timed batches" if forecasts else ""
    return Table.of(rows, caption)


def results(summary: dict[str, Any]) -> Table:
    """The result table of a run, a row for each stage, and one for the test images if there are
    any.
    """
    rows = []
    for number, stage in enumerate(summary["stages"], start=1):
        schedule = stage["schedule"]
        row = {
            "stage": f"{number} {stage['name']}",
            "freeze depth": _depth(stage["unfrozen_blocks"]),
            "schedule / clock": f"{schedule['kind'].replace('_', ' ')} / {schedule['steps_per']}",
            "LR": "{first:.2e} to {last:.2e}".format(**stage["lr"]),
            "trains": _share(stage["trainable"], stage["total"]),
            "epochs": f"{stage['epochs']}{' (stopped early)' * stage['stopped_early']}",
            "seconds": "inherited" if stage["seconds"] is None else f"{stage['seconds']:.0f}",
        }
        rows.append(row | _best(stage["best"]))
    if test := summary.get("test"):
        rows.append({"stage": "test images, once"} | _best(test))
    caption = f"IoU and F1 {summary['score']}, validation images at their own size"
    if summary["data"] == "generated":
        caption += ", on generated images: they compare settings, and say nothing about real ones"
    return Table.of(rows, caption)


def _best(scores: Mapping[str, Any]) -> dict[str, str]:
    return {"best IoU": number_or_na(scores["iou"]), "best F1": number_or_na(scores["f1"])}


def memory_notes(forecasts: Sequence[Any], machine: Any) -> Iterator[str]:
    """Whether a stage will need more memory than is free; processes on one CPU share it."""
    needed = [(f.memory, n) for n, f in enumerate(forecasts, start=1) if f.seconds]
    most, number = max(needed, default=(0, 0))
    if machine.device == "cpu":
        most *= machine.processes
    free = machine.free_memory()
    if most > free:
        yield (
            f"Stage {number} will need about {size(most)} of memory, but only {size(free)} is free "
            f"on {machine}. Lower the batch size, unfreeze fewer blocks, or use a smaller data.size."
        )


def _share(trained: int, total: int) -> str:
    return f"{trained / 1e6:.1f} of {total / 1e6:.1f} M ({100 * trained / total:.0f} %)"


def _depth(unfrozen_blocks: int | str) -> str:
    names = {0: "encoder frozen", 1: "last block", "all": "all blocks"}
    return names.get(unfrozen_blocks, f"last {unfrozen_blocks} blocks")


def classes(summary: dict[str, Any]) -> Table:
    """IoU of each class, of the best weights."""
    ious = map(number_or_na, summary["best"]["per_class_iou"])
    return Table(("class", "IoU"), list(zip(summary["classes"], ious, strict=True)))


def keys(reading: Any) -> Table:
    """What became of every key of an origin-style configuration."""
    return Table.of([key._asdict() for key in reading.keys])


def kept(cache: Any) -> Table:
    """What a feature cache holds, group by group, the last used first."""
    import pandas as pd  # slow, and for this table alone

    files = []
    for path, stat in cache.files(cache.root):
        group = path.parent.relative_to(cache.root).as_posix()
        files.append((group, stat.st_size / 1e9, datetime.fromtimestamp(int(stat.st_mtime))))
    groups = pd.DataFrame(files, columns=["group", "GB", "used"]).groupby("group")
    found = groups.agg(views=("GB", "size"), GB=("GB", "sum"), last_used=("used", "max"))
    found = found.sort_values("last_used", ascending=False).reset_index()
    rows = found.round({"GB": 2}).astype(str).values.tolist()
    total, most = f"{found['GB'].sum():.2f} GB", f"{cache.limit / 1e9:g} GB"
    return Table(list(found), rows, f"{total} cached, of at most {most} ($VITSEG_CACHE_GB)")
