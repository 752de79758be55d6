"""What the workbench says in words: HTML that follows JupyterLab's theme. No widgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vitseg.events import BatchEnded, Event, FeaturesUsed, RunStarted, StageEnded, StageStarted
from vitseg.model.freeze import model_parts
from vitseg.runs.folder import Failure
from vitseg.runs.narrate import inherited_words
from vitseg.training.job import Job
from vitseg.ui.markup import Line, lines


def stage_parts(
    job: Job, events: Iterable[Event] = (), failure: Failure | None = None
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of `charts.freeze_map`: stages that have started as `events` found them, the others
    as planned. `failure` names the parts that broke the promise of what trains.
    """
    started, ended = {}, 0
    for event in events:
        if isinstance(event, StageStarted):
            started[event.stage] = event.parts
        elif isinstance(event, StageEnded):
            ended = event.stage
    sizes = []
    for part in model_parts(job.model).values():
        count = sum(p.numel() for p in part.parameters)
        sizes.append({"name": part.name, "block": part.block, "parameters": count})
    rows = []
    for plan in job.stages:
        planned = [size | {"trains": size["name"] in plan.trained} for size in sizes]
        parts = started.get(plan.number) or planned
        if failure and plan.number == ended + 1:
            parts = [part | {"broken": part["name"] in failure.parts} for part in parts]
        rows.append((f"{plan.number} {plan.stage.name}", parts))
    return rows


def checks(
    events: Sequence[Event], failure: Failure | None = None, used: FeaturesUsed | None = None
) -> str:
    """What the detectors found, stage by stage: green, or red with the sentence that explains what
    ended the run.
    """
    said: list[Line] = []
    steps = 0
    for event in events:
        match event:
            case RunStarted() if event.parent:
                said.append(("quiet", "", inherited_words(event.parent)))
            case StageStarted():
                said.append(("good", f"✓ Stage {event.stage}, before its first step.", event.audit))
            case BatchEnded():
                steps += 1
            case StageEnded():
                said.append(("good", f"✓ Stage {event.stage}, after its last step.", event.audit))
                if event.warning:
                    said.append(("bad", "", f"✗ {event.warning}"))
    if steps:
        words = f"all {steps:,} steps so far were taken at the promised learning rates."
        said.append(("good", "✓ LR contract:", words))
    if used:
        counts = f"epoch {used.epoch} read {used.read:,} views and computed {used.computed:,}"
        said.append(("quiet", "", f"Cached features: {counts}. {used.note}"))
    if failure:
        said.append(("bad", f"✗ Stopped by {failure.kind}:", failure.says))
    waiting = "Once a stage begins: what trains, what the optimizer holds, which weights moved."
    return lines(said or [("quiet", "", waiting)])
