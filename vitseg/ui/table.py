"""Small tables that read well in a terminal and in a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from vitseg import plan
from vitseg.recipe import Recipe
from vitseg.runs.narrate import number_or_na
from vitseg.settings import Stage
from vitseg.ui import markup

_WRAPS = re.compile(r"[^\W\d_]{4}|^[^ -]*$")
"""Text with a word in it, unlike "+0.012 (+0.004 to +0.019)", or without a place to break a line."""


class Cell(str):
    """Text on a coloured ground. `kind` is a CSS class, `words` the tooltip, which is read out, too."""

    __slots__ = ("ground", "ink", "kind", "words")

    def __new__(cls, text: str, kind: str, words: str, ground: str, ink: str) -> Cell:
        cell = super().__new__(cls, text)
        cell.kind, cell.words, cell.ground, cell.ink = kind, words, ground, ink
        return cell


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """Columns and rows of text; numbers are formatted by whoever makes the table.

    `kind` is "cells" for a map of `Cell`s. `edited` is the row, counted from 1, that stands out.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    kind: str = ""
    edited: int = 0

    @classmethod
    def by_stage(cls, names: Iterable[str], cells: Iterable[dict[str, str]], **more: Any) -> Table:
        """A row for each stage, from its cells by column."""
        columns, rows = ("stage",), []
        for number, (name, row) in enumerate(zip(names, cells, strict=True), start=1):
            columns = ("stage", *row)
            rows.append((f"{number} {name}", *row.values()))
        return cls(columns, tuple(rows), **more)

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, tuple("-" * width for width in widths))
        text = [self.caption] if self.caption else []
        for line in lines:
            cells = map(str.ljust, line, widths)
            text.append("  ".join(cells).rstrip())
        return "\n".join(text)

    __repr__ = __str__

    def __html__(self) -> Markup:
        """Words wrap, numbers do not; a table that is still too wide scrolls, below its caption."""
        return markup.render("table", table=self, wraps=_WRAPS.search)

    def _repr_html_(self) -> str:
        return markup.STYLE + markup.html(self)


def stages(recipe: Recipe) -> Table:
    """What a recipe is going to do, a row for each stage."""
    return Table.by_stage(_names(recipe), map(_planned, recipe.stages))


def ahead(recipe: Recipe, forecasts: Sequence[Any]) -> Table:
    """What the stages of a recipe will take on this machine, and what kept features change about
    it.
    """
    rows = []
    for f in forecasts:
        room = "is there already"
        if f.kept:
            room = f"{size(f.kept)} more on disk"
        elif not recipe.cache:
            room = "off"
        gain = f"{f.gain:.1f} x as fast" if recipe.cache else "no faster"
        rows.append(
            _cost(f) | {"feature cache": room, "a step with it": gain, "most of which is": f.bound}
        )
    return Table.by_stage(_names(recipe), rows, caption="Forecast, from a few timed batches")


def desk(
    recipe: Recipe, edited: int, freezing: Sequence[tuple[str, Any]], forecasts: Sequence[Any]
) -> Table:
    """`stages`, with what trains according to the rows of a freeze map, and what each stage will
    take, once that is known.
    """
    rows = []
    for number, stage in enumerate(recipe.stages):
        _, parts = freezing[number]
        trains = sum(p["parameters"] for p in parts if p["trains"])
        share = trains / sum(p["parameters"] for p in parts)
        row = _planned(stage) | {"trains": f"{trains / 1e6:.1f} M ({100 * share:.0f} %)"}
        if forecasts:
            row |= _cost(forecasts[number])
            row["checkpoint"] = size(forecasts[number].checkpoint)
        else:
            row |= dict.fromkeys(("steps", "time", "memory", "checkpoint"), "...")
        rows.append(row)
    return Table.by_stage(_names(recipe), rows, edited=edited)


def results(summary: dict[str, Any]) -> Table:
    """The result table of a run, a row for each stage, and one for the test images if there are
    any.
    """
    stages = summary["stages"]
    data = ", on generated images" if summary["data"] == "generated" else ""
    caption = f"IoU and F1 {summary['score']}, validation images at their own size{data}"
    table = Table.by_stage((row["name"] for row in stages), map(_result, stages), caption=caption)
    if not (test := summary.get("test")):
        return table
    scores = (number_or_na(test["iou"]), number_or_na(test["f1"]), "")
    blank = [""] * (len(table.columns) - 1 - len(scores))
    last = ("test images, once", *blank, *scores)
    return Table(table.columns, (*table.rows, last), caption)


def _names(recipe: Recipe) -> list[str]:
    return [stage.name for stage in recipe.stages]


def _planned(stage: Stage) -> dict[str, str]:
    encoder = f"{stage.lr * stage.encoder_lr_factor:.2e}" if stage.unfrozen_blocks else "frozen"
    return {
        "freeze depth": depth_words(stage.unfrozen_blocks),
        "schedule / clock": plan.describe(stage),
        "LR": f"{stage.lr:.2e}",
        "encoder LR": encoder,
        "epochs": str(stage.epochs),
    }


def _cost(forecast: Any) -> dict[str, str]:
    return {
        "steps": f"{forecast.steps:,}",
        "time": "trained already" if forecast.inherited else duration(forecast.seconds),
        "memory": size(forecast.memory),
    }


def _result(row: dict[str, Any]) -> dict[str, str]:
    schedule, trained, total = row["schedule"], row["trainable"], row["total"]
    share = f"{trained / 1e6:.2f} M of {total / 1e6:.1f} M ({100 * trained / total:.1f} %)"
    return {
        "freeze depth": depth_words(row["unfrozen_blocks"]),
        "schedule / clock": f"{schedule['kind'].replace('_', ' ')} / {schedule['steps_per']}",
        "LR first": f"{row['lr']['first']:.2e}",
        "LR last": f"{row['lr']['last']:.2e}",
        "trainable": share,
        "epochs": f"{row['epochs']}{' (stopped early)' if row['stopped_early'] else ''}",
        "best IoU": number_or_na(row["best"]["iou"]),
        "best F1": number_or_na(row["best"]["f1"]),
        "seconds": "inherited" if row["seconds"] is None else f"{row['seconds']:.0f}",
    }


def memory_notes(forecasts: Sequence[Any], machine: Any) -> list[str]:
    """Whether a stage will need more memory than is free; processes on one CPU share it."""
    most, number = 0, 0
    for n, f in enumerate(forecasts, start=1):
        if not f.inherited:
            most, number = max((most, number), (f.memory, n))
    if machine.device.type == "cpu":
        most *= machine.processes
    free = machine.free_memory()
    if most <= free:
        return []
    return [
        f"Stage {number} will need about {size(most)} of memory, but only {size(free)} is free on "
        f"{machine}. Lower the batch size, unfreeze fewer blocks, or use a smaller data.size."
    ]


def depth_words(unfrozen_blocks: int | str) -> str:
    names = {0: "encoder frozen", 1: "last block", "all": "all blocks"}
    return names.get(unfrozen_blocks, f"last {unfrozen_blocks} blocks")


def classes(summary: dict[str, Any]) -> Table:
    """IoU of each class, of the best weights."""
    ious = map(number_or_na, summary["best"]["per_class_iou"])
    return Table(("class", "IoU"), tuple(zip(summary["classes"], ious, strict=True)))


def keys(reading: Any) -> Table:
    """What became of every key of an origin-style configuration."""
    rows = tuple((k.key, str(k.value), k.fate, k.meaning) for k in reading.keys)
    return Table(("key", "value", "fate", "what it means here"), rows)


def kept(groups: Sequence[Any], limit: int) -> Table:
    """The groups of a feature cache, and their sum."""
    rows, total = [], 0
    for g in groups:
        total += g.bytes
        level, canvas = str(g.about.get("level", "")), " x ".join(map(str, g.about.get("size", ())))
        used = datetime.fromtimestamp(g.used, UTC).strftime("%Y-%m-%d %H:%M")
        rows.append((g.of, level, canvas, f"{g.rows:,}", f"{g.bytes / 1e9:.2f}", used))
    caption = f"{total / 1e9:.2f} GB kept, of at most {limit / 1e9:g} GB ($VITSEG_CACHE_GB)"
    heads = ("encoder", "level", "canvas", "views", "GB", "last used (UTC)")
    return Table(heads, tuple(rows), caption)


def duration(seconds: float) -> str:
    """ "40 s", "3 min 20 s", "2 h 05 min": with as many digits as an estimate deserves."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """ "12 MB", "1.3 GB" """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
