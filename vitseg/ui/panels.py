"""What the workbench says in words, cells and small tables: HTML that follows JupyterLab's theme.
No widgets.

Everything that comes from outside, such as names of stages, classes and runs, is escaped.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from vitseg import plan
from vitseg.errors import RunError
from vitseg.events import EpochEnded, Event, FeaturesUsed, RunStarted, StageEnded, StageStarted
from vitseg.model.freeze import trained_parts
from vitseg.recipe import Recipe
from vitseg.runs.folder import Failure, RunFolder, runs_root
from vitseg.runs.forecast import StageForecast
from vitseg.runs.narrate import inherited_words
from vitseg.ui import theme
from vitseg.ui.curves import Curves
from vitseg.ui.table import depth_words, duration, number_or_na, size

STYLE = f"""<style>
.vitseg table {{ border-collapse: collapse; font-size: 12px; width: 100%; margin: 0; }}
.vitseg th, .vitseg td {{ text-align: left !important; padding: 3px 8px 3px 0; line-height: 1.25; font-weight: normal; }}
.vitseg td {{ white-space: normal; }}
.vitseg th {{ color: {theme.TEXT}; }}
.vitseg .rows tr.edited td {{ background: rgba(37, 132, 198, 0.16); }}
.vitseg .cells {{ border-spacing: 3px; border-collapse: separate; width: auto; font-size: 11px; }}
.vitseg .cells td {{ min-width: 18px; height: 22px; padding: 0 3px; text-align: center !important; border-radius: 3px; }}
.vitseg .cells td.label {{ text-align: left !important; padding-right: 6px; }}
.vitseg tr.edited td.label {{ font-weight: 700; }}
.vitseg .frozen {{ background: {theme.FROZEN}; color: #333; }} .vitseg .trains {{ background: {theme.TRAINED}; color: #111; }}
.vitseg .broken {{ background: {theme.BROKEN}; color: #fff; font-weight: 700; }}
.vitseg .quiet {{ color: {theme.TEXT}; }} .vitseg .bad {{ color: {theme.VALID}; font-weight: 600; }}
.vitseg .good {{ color: {theme.SECOND}; font-weight: 600; }} .vitseg p {{ margin: 4px 0; line-height: 1.5; }}
.vitseg .line {{ white-space: nowrap; }}
.vitseg .scroll {{ overflow-x: auto; width: 0; min-width: 100%; }}
</style>"""


def html(body: str) -> str:
    return f"<div class='vitseg'>{body}</div>"


def stage_table(
    recipe: Recipe,
    edited: int,
    trainable: Sequence[int],
    total: int,
    ahead: Sequence[StageForecast],
) -> str:
    """A row a stage: depth, scheduler and its clock, LR, epochs, what trains, and what it will take
    on this machine.
    """
    heads = (
        "stage",
        "freeze depth",
        "scheduler / clock",
        "LR",
        "epochs",
        "trains",
        "steps",
        "time",
        "memory",
        "checkpoint",
    )
    rows = [_cells(heads, "th")]
    for number, stage in enumerate(recipe.stages, start=1):
        share = f"{trainable[number - 1] / 1e6:.1f} M ({100 * trainable[number - 1] / total:.0f} %)"
        cost = ("...",) * 4
        if ahead:
            f = ahead[number - 1]
            time = "trained already" if f.inherited else duration(f.seconds)
            cost = (f"{f.steps:,}", time, size(f.memory), size(f.checkpoint))
        words = (
            f"{number} {stage.name}",
            depth_words(stage.unfrozen_blocks),
            plan.describe(stage),
            f"{stage.lr:.3g}",
            str(stage.epochs),
            share,
            *cost,
        )
        rows.append(_cells(words, "td", "edited" if number == edited else ""))
    return html(f"<div class='scroll'><table class=rows>{''.join(rows)}</table></div>")


def freeze_map(
    recipe: Recipe,
    edited: int,
    counts: Mapping[str, int],
    depth: int,
    held: Mapping[int, Mapping[str, int]],
    broken: Mapping[int, Sequence[str]],
) -> str:
    """A cell for every part of the model in each stage: frozen, trainable, and once it runs, held
    by the optimizer.

    `held` is, for the stages begun, how many parameters of each part the optimizer really has;
    `broken`, by stage, the parts that a detector found otherwise than promised.
    """
    short = {"embeddings": "E", "final norm": "N", "decoder": "decoder"}
    rows = []
    for number, stage in enumerate(recipe.stages, start=1):
        unfrozen = depth if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
        promised = trained_parts(unfrozen, depth)
        cells = [f"<td class=label>{number} {escape(stage.name)}</td>"]
        for name, count in counts.items():
            kind, wrong = "trains" if name in promised else "frozen", name in broken.get(number, ())
            optimizer = held.get(number, {}).get(name, 0)
            words = f"{name}: {kind}, {count:,} parameters" + (
                f", {optimizer:,} in the optimizer" if number in held else ""
            )
            words = f"{words}. Promised, but not so: see Checks" if wrong else words
            sign = "✗" if wrong else "●" if optimizer else ""
            mark = f"{short.get(name, name.removeprefix('block '))}{sign}"
            cells.append(
                f"<td class={'broken' if wrong else kind} title='{words}' "
                f"aria-label='{words}'>{mark}</td>"
            )
        rows.append(f"<tr class='{'edited' if number == edited else ''}'>{''.join(cells)}</tr>")
    legend = (
        f"<p class=quiet>Freeze map: E embeddings, 1 to {depth} the blocks, N final norm. "
        "<span class=frozen>&nbsp;frozen&nbsp;</span> "
        "<span class=trains>&nbsp;trains&nbsp;</span> ● in the optimizer, counted when the stage "
        "began"
        f"{' <span class=broken>&nbsp;✗&nbsp;</span> promise broken' if any(broken.values()) else ''}</p>"
    )
    return html(f"<div class='scroll'><table class=cells>{''.join(rows)}</table></div>{legend}")


def held_by_optimizer(events: Iterable[Event]) -> dict[int, dict[str, int]]:
    started = (e for e in events if isinstance(e, StageStarted))
    return {e.stage: {p["name"]: p.get("in_optimizer", 0) for p in e.parts} for e in started}


def class_table(events: Sequence[Event], most: int = 24) -> str:
    """IoU of every class over epochs, as a heat map; of more than `most` epochs, evenly many are
    shown.
    """
    classes = next((e.classes for e in events if isinstance(e, RunStarted)), [])
    ended = [e for e in events if isinstance(e, EpochEnded)]
    if not ended:
        return html(
            "<p class=quiet>After the first epoch: the IoU of every class, epoch by epoch.</p>"
        )
    if len(ended) > most:
        ended = [ended[round(i * (len(ended) - 1) / (most - 1))] for i in range(most)]
    rows = [
        "<tr><td class=label>epoch</td>" + "".join(f"<td>{e.epoch}</td>" for e in ended) + "</tr>"
    ]
    for i, name in enumerate(classes):
        cells = "".join(_heat(name, e.epoch, e.validation["per_class_iou"][i]) for e in ended)
        rows.append(f"<tr><td class=label>{escape(name)}</td>{cells}</tr>")
    note = (
        "<p class=quiet>Validation IoU in hundredths, images at their own size. n/a: absent "
        "from the truth.</p>"
    )
    return html(f"<div class='scroll'><table class=cells>{''.join(rows)}</table></div>{note}")


def _heat(name: str, epoch: int, iou: float | None) -> str:
    if iou is None:
        return f"<td title='{escape(name)}, epoch {epoch}: absent'>n/a</td>"
    color, ink = theme.heat(iou)
    return (
        f"<td style='background:{color};color:{ink}' title='{escape(name)}, epoch {epoch}: "
        f"{iou:.3f}'>{100 * iou:.0f}</td>"
    )


def kept_words(ahead: StageForecast) -> str:
    """What the feature cache takes and gives in a stage, or what makes it needless."""
    if ahead.inherited:
        return (
            "An earlier run has trained this stage alike: Start takes it from there, the same bits."
        )
    room = f"{size(ahead.kept)} more on disk" if ahead.kept else "all of it is there"
    return (
        f"What the frozen blocks compute is kept ({room}). Then a step of this stage is "
        f"{ahead.gain:.1f} times as fast; "
        f"what is left is mostly {ahead.bound}."
    )


def checks(
    events: Sequence[Event], steps: int, failure: Failure | None, used: FeaturesUsed | None
) -> str:
    """What the detectors found, stage by stage: green, or red with the sentence that explains what
    ended the run.
    """
    lines = []
    for event in events:
        if isinstance(event, RunStarted) and event.parent:
            lines.append(f"<p class=quiet>{escape(inherited_words(event.parent))}</p>")
        if isinstance(event, StageStarted):
            said = escape(event.audit).replace("\n", "<br>")
            lines.append(
                f"<p><span class=good>✓ Stage {event.stage}, before its first step.</span> "
                f"{said}</p>"
            )
        elif isinstance(event, StageEnded):
            lines.append(
                f"<p><span class=good>✓ Stage {event.stage}, after its last step.</span> "
                f"{escape(event.audit)}</p>"
            )
            if event.warning:
                lines.append(f"<p class=bad>✗ {escape(event.warning)}</p>")
    if steps:
        words = (
            "LR contract: every step so far was taken at the promised learning rate, in every "
            "parameter group"
        )
        lines.append(f"<p><span class=good>✓ {words}</span> ({steps:,} steps).</p>")
    if used is not None:
        counts = (
            f"epoch {used.epoch} read {used.read:,} views and computed {used.computed:,}. "
            f"{escape(used.note)}"
        )
        lines.append(f"<p class=quiet>Kept features: {counts}</p>")
    if failure is not None:
        kind = {"FreezeBreach": "Freeze audit", "LRBreach": "LR contract"}.get(
            failure.kind, "Stopped by an error"
        )
        lines.append(f"<p><span class=bad>✗ {kind}:</span> {escape(failure.says)}</p>")
    waiting = (
        "<p class=quiet>Once a stage begins: what trains, what the optimizer holds, which "
        "weights moved.</p>"
    )
    return html("".join(lines) or waiting)


def runs_table(runs: Sequence[tuple[RunFolder, str]]) -> str:
    heads = ("run", "state", "stages", "best IoU")
    rows = [_cells(heads, "th")]
    for run, state in runs:
        summary = None
        with contextlib.suppress(RunError):  # it has not ended, or somebody wrote into it
            summary = run.summary
        ended = run.ended_stages()
        iou = number_or_na(summary["best"]["iou"]) if summary else ""
        rows.append(
            _cells((run.path.name, state, ", ".join(map(str, ended)) or "none ended", iou), "td")
        )
    table = (
        f"<div class=scroll><table>{''.join(rows)}</table></div><p class=quiet>In "
        f"{escape(str(runs_root()))}</p>"
    )
    return html(table if runs else "<p class=quiet>No run has been recorded yet.</p>")


def write_csv(folder: Path, events: Sequence[Event]) -> Path:
    """The run's curves as one table: a row for each point, `curve,epoch,step,value`."""
    path = folder / "curves.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("curve", "epoch", "step", "value"))
        for name, points in Curves.of(events).points.items():
            rows.writerows(
                (name, x, step, y)
                for x, y, step in zip(points.x, points.y, points.steps, strict=True)
                if y == y
            )
    return path


def _cells(words: Sequence[str], tag: str, kind: str = "") -> str:
    return f"<tr class='{kind}'>" + "".join(f"<{tag}>{escape(w)}</{tag}>" for w in words) + "</tr>"


def trainable_by_stage(recipe: Recipe, counts: Mapping[str, int], depth: int) -> list[int]:
    depths = [depth if s.unfrozen_blocks == "all" else s.unfrozen_blocks for s in recipe.stages]
    return [sum(counts[p] for p in trained_parts(d, depth)) for d in depths]
