"""Small tables that read well in a terminal and in a notebook."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from vitseg import plan
from vitseg.recipe import Recipe
from vitseg.runs.narrate import number_or_na

_WORD = re.compile(r"[^\W\d_]{4}")  # "+0.012 (+0.004 to +0.019)" and "85.7 M of 86.6 M" have none


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """Columns and rows of text; numbers are formatted by whoever makes the table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * w for w in widths)
        return "\n".join([*([self.caption] if self.caption else []), text[0], rule, *text[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Words wrap, numbers do not; a table that is still too wide scrolls, below its caption."""

        def cell(text: str, tag: str) -> str:
            wraps = "normal" if tag == "th" or _WORD.search(text) else "nowrap"
            return (
                f"<{tag} "
                f'style="text-align:left;white-space:{wraps}">{escape(text).replace(" %", "&nbsp;%")}</{tag}>'
            )

        def row(cells: Sequence[str], tag: str) -> str:
            return f"<tr>{''.join(cell(text, tag) for text in cells)}</tr>"

        caption = (
            f"<figcaption style='line-height:1.5'>{escape(self.caption)}</figcaption>"
            if self.caption
            else ""
        )
        rows = f"<thead>{row(self.columns, 'th')}</thead><tbody>{''.join(row(r, 'td') for r in self.rows)}</tbody>"
        # as wide as there is room, whatever the table would like
        scrolls = "overflow-x:auto;width:0;min-width:100%"
        return (
            f"<figure style='margin:0'>{caption}<div "
            f"style='{scrolls}'><table>{rows}</table></div></figure>"
        )


def stages(recipe: Recipe) -> Table:
    """What a recipe is going to do, a row for each stage."""
    columns = ("stage", "freeze depth", "schedule / clock", "LR", "encoder LR", "epochs")
    rows = tuple(
        (
            f"{number} {stage.name}",
            depth_words(stage.unfrozen_blocks),
            plan.describe(stage),
            f"{stage.lr:.2e}",
            f"{stage.lr * stage.encoder_lr_factor:.2e}" if stage.unfrozen_blocks else "frozen",
            str(stage.epochs),
        )
        for number, stage in enumerate(recipe.stages, start=1)
    )
    return Table(columns, rows)


def ahead(recipe: Recipe, forecasts: Sequence[Any]) -> Table:
    """What the stages of a recipe will take on this machine, and what kept features change about
    it.
    """
    columns = (
        "stage",
        "steps",
        "time",
        "memory",
        "feature cache",
        "a step with it",
        "most of which is",
    )
    rows = []
    for number, (stage, f) in enumerate(zip(recipe.stages, forecasts, strict=True), start=1):
        room = (
            f"{size(f.kept)} more on disk"
            if f.kept
            else "is there already"
            if recipe.cache
            else "off"
        )
        gain = f"{f.gain:.1f} x as fast" if recipe.cache else "no faster"
        time = "trained already" if f.inherited else duration(f.seconds)
        rows.append(
            (f"{number} {stage.name}", f"{f.steps:,}", time, size(f.memory), room, gain, f.bound)
        )
    return Table(columns, tuple(rows), "Forecast, from a few timed batches")


def memory_notes(forecasts: Sequence[Any], machine: Any) -> list[str]:
    """Whether a stage will need more memory than is free; processes on one CPU share it."""
    most, number = max(
        ((f.memory, n) for n, f in enumerate(forecasts, start=1) if not f.inherited), default=(0, 0)
    )
    need, free = (
        most * (machine.processes if machine.device.type == "cpu" else 1),
        machine.free_memory(),
    )
    if need <= free:
        return []
    return [
        f"Stage {number} will need about {size(need)} of memory, but only {size(free)} is free on "
        f"{machine}. Lower the batch "
        "size, unfreeze fewer blocks, or use a smaller data.size."
    ]


def results(summary: dict[str, Any]) -> Table:
    """The result table of a run, a row for each stage, and one for the test images if there are
    any.
    """
    columns = (
        "stage",
        "freeze depth",
        "schedule / clock",
        "LR first",
        "LR last",
        "trainable",
        "epochs",
        "best IoU",
        "best F1",
        "seconds",
    )
    rows = tuple(_stage_cells(number, row) for number, row in enumerate(summary["stages"], start=1))
    if test := summary.get("test"):
        rows += (
            (
                "test images, once",
                *[""] * 6,
                number_or_na(test["iou"]),
                number_or_na(test["f1"]),
                "",
            ),
        )
    data = ", on generated images" if summary["data"] == "generated" else ""
    return Table(
        columns, rows, f"IoU and F1 {summary['score']}, validation images at their own size{data}"
    )


def _stage_cells(number: int, row: dict[str, Any]) -> tuple[str, ...]:
    schedule, best = row["schedule"], row["best"]
    return (
        f"{number} {row['name']}",
        depth_words(row["unfrozen_blocks"]),
        f"{schedule['kind'].replace('_', ' ')} / {schedule['steps_per']}",
        f"{row['lr']['first']:.2e}",
        f"{row['lr']['last']:.2e}",
        (
            f"{row['trainable'] / 1e6:.2f} M of {row['total'] / 1e6:.1f} M "
            f"({100 * row['trainable'] / row['total']:.1f} %)"
        ),
        f"{row['epochs']}" + (" (stopped early)" if row["stopped_early"] else ""),
        number_or_na(best["iou"]),
        number_or_na(best["f1"]),
        "inherited" if row["seconds"] is None else f"{row['seconds']:.0f}",
    )


def depth_words(unfrozen_blocks: int | str) -> str:
    match unfrozen_blocks:
        case 0:
            return "encoder frozen"
        case "all":
            return "all blocks"
        case 1:
            return "last block"
        case _:
            return f"last {unfrozen_blocks} blocks"


def classes(summary: dict[str, Any]) -> Table:
    """IoU of each class, of the best weights."""
    best = summary["best"]
    rows = tuple(
        (name, number_or_na(iou))
        for name, iou in zip(summary["classes"], best["per_class_iou"], strict=True)
    )
    return Table(("class", "IoU"), rows)


def keys(reading: Any) -> Table:
    """What became of every key of an origin-style configuration."""
    rows = tuple((k.key, str(k.value), k.fate, k.meaning) for k in reading.keys)
    return Table(("key", "value", "fate", "what it means here"), rows)


def kept(groups: Sequence[Any], limit: int) -> Table:
    """The groups of a feature cache, and their sum."""
    rows = tuple(
        (
            g.of,
            str(g.about.get("level", "")),
            " x ".join(map(str, g.about.get("size", ()))),
            f"{g.rows:,}",
            f"{g.bytes / 1e9:.2f}",
            datetime.fromtimestamp(g.used, UTC).strftime("%Y-%m-%d %H:%M"),
        )
        for g in groups
    )
    caption = (
        f"{sum(g.bytes for g in groups) / 1e9:.2f} GB kept, of at most {limit / 1e9:g} GB "
        f"($VITSEG_CACHE_GB)"
    )
    return Table(("encoder", "level", "canvas", "views", "GB", "last used (UTC)"), rows, caption)


def duration(seconds: float) -> str:
    """ "40 s", "3 min 20 s", "2 h 05 min": with as many digits as an estimate deserves."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def size(count: int) -> str:
    """ "12 MB", "1.3 GB" """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
