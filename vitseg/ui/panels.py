"""What the workbench says in words and small tables: HTML that follows JupyterLab's theme. No
widgets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitseg.errors import RunError
from vitseg.events import Event, FeaturesUsed, RunStarted, StageEnded, StageStarted
from vitseg.model.freeze import trained_parts
from vitseg.recipe import Recipe
from vitseg.runs.folder import Failure, RunFolder, runs_root
from vitseg.runs.forecast import StageForecast
from vitseg.runs.narrate import inherited_words
from vitseg.ui.markup import STYLE, html, render
from vitseg.ui.table import Table, duration, number_or_na, size

__all__ = [
    "STYLE",
    "checks",
    "duration",
    "html",
    "kept_words",
    "lines",
    "runs_table",
    "stage_parts",
]

Line = tuple[str, str, str]
"""A CSS class, what is said in it first, and the text; without the former, all is in the class."""


def lines(said: Iterable[Line]) -> str:
    """A paragraph for each."""
    return html(render("lines", lines=said))


def stage_parts(
    recipe: Recipe,
    counts: Mapping[str, int],
    depth: int,
    events: Iterable[Event] = (),
    broken: Mapping[int, Sequence[str]] | None = None,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of `charts.freeze_map` from a recipe: `counts` is how many parameters each part of
    the model has.

    Of the stages begun, `events` say what the optimizer really holds; `broken`, by stage, names the
    parts that a detector found otherwise than promised.
    """
    held = {}
    for event in events:
        if isinstance(event, StageStarted):
            held[event.stage] = {part["name"]: part["in_optimizer"] for part in event.parts}
    stages = []
    for number, stage in enumerate(recipe.stages, start=1):
        unfrozen = depth if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
        promised, wrong, parts = trained_parts(unfrozen, depth), broken or {}, []
        for place, (name, count) in enumerate(counts.items()):  # embeddings, block 1 ..
            part = {"name": name, "parameters": count, "trains": name in promised}
            part["block"] = place if 0 < place <= depth else None
            part["broken"] = name in wrong.get(number, ())
            if number in held:
                part["in_optimizer"] = held[number].get(name, 0)
            parts.append(part)
        stages.append((f"{number} {stage.name}", parts))
    return stages


def kept_words(ahead: StageForecast) -> str:
    """What the feature cache takes and gives in a stage, or what makes it needless."""
    if ahead.inherited:
        return (
            "An earlier run has trained this stage alike: Start takes it from there, the same bits."
        )
    room = f"{size(ahead.kept)} more on disk" if ahead.kept else "all of it is there"
    return (
        f"What the frozen blocks compute is kept ({room}). Then a step of this stage is "
        f"{ahead.gain:.1f} times as fast; what is left is mostly {ahead.bound}."
    )


def checks(
    events: Sequence[Event],
    steps: int,
    failure: Failure | None = None,
    used: FeaturesUsed | None = None,
) -> str:
    """What the detectors found, stage by stage: green, or red with the sentence that explains what
    ended the run.
    """
    said: list[Line] = []
    for event in events:
        if isinstance(event, RunStarted) and event.parent:
            said.append(("quiet", "", inherited_words(event.parent)))
        elif isinstance(event, StageStarted):
            said.append(("good", f"✓ Stage {event.stage}, before its first step.", event.audit))
        elif isinstance(event, StageEnded):
            said.append(("good", f"✓ Stage {event.stage}, after its last step.", event.audit))
            if event.warning:
                said.append(("bad", "", f"✗ {event.warning}"))
    if steps:
        words = (
            "✓ LR contract: every step so far was taken at the promised learning rate, in every "
            "parameter group"
        )
        said.append(("good", words, f"({steps:,} steps)."))
    if used is not None:
        counts = f"epoch {used.epoch} read {used.read:,} views and computed {used.computed:,}"
        said.append(("quiet", "", f"Kept features: {counts}. {used.note}"))
    if failure is not None:
        kinds = {"FreezeBreach": "Freeze audit", "LRBreach": "LR contract"}
        kind = kinds.get(failure.kind, "Stopped by an error")
        said.append(("bad", f"✗ {kind}:", failure.says))
    waiting = "Once a stage begins: what trains, what the optimizer holds, which weights moved."
    return lines(said or [("quiet", "", waiting)])


def runs_table(runs: Iterable[tuple[RunFolder, str]]) -> str:
    rows = []
    for run, state in runs:
        iou = ""
        with contextlib.suppress(RunError):  # it has not ended, or somebody wrote into it
            iou = number_or_na(run.summary["best"]["iou"])
        ended = ", ".join(map(str, run.ended_stages())) or "none ended"
        rows.append((run.path.name, state, ended, iou))
    if not rows:
        return lines([("quiet", "", "No run has been recorded yet.")])
    return html(Table(("run", "state", "stages", "best IoU"), tuple(rows), f"In {runs_root()}"))
