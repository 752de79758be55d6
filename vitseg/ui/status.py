"""What a workbench says in its status line: what is happening, or what is wrong and the mend. No
widgets.
"""

from __future__ import annotations

from vitseg.errors import is_for_readers
from vitseg.events import BatchEnded, Event, RunStarted, StageEnded, ValidationBatch
from vitseg.runs.narrate import inherited_words, number_or_na
from vitseg.ui.session import Session

Said = tuple[str, str]
"""The words, and "bad" where they are about something wrong."""

_BY = {"FreezeBreach": "Stopped by the freeze audit", "LRBreach": "Stopped by the LR contract"}


def heading(session: Session, preview: bool) -> tuple[str, str]:
    """What the screen shows, a run or what Start would train, and the folder of the run."""
    if session.run is None:
        return "What Start would train.", ""
    name, folder = session.run.path.name, str(session.run.path)
    if session.alive:
        return f"Run {name}, in training.", folder
    if not preview:
        return (
            f"Run {name}. The controls hold its settings; Start would train them as a new run.",
            folder,
        )
    resume = f" Resume would go on with {name}, unchanged." if session.resumable else ""
    beneath = f" For comparison, grey and dotted: run {name}." if session.events else ""
    return f"What Start would train.{beneath}{resume}", folder


def sentence(session: Session, preview: bool, note: str, unpainted: str) -> Said:
    """`preview` is whether the screen shows what Start would do, `note` what the last press came
    to.
    """
    if session.alive:
        return _while_alive(session, note, unpainted)
    if unpainted or note:
        return unpainted or note, "bad"
    if not preview and (failure := session.failure()):
        goes_on = f" {session.goes_on_from()}." if session.resumable else ""
        text = failure.says if is_for_readers(failure.kind) else f"{failure.kind}: {failure.says}."
        return f"{_BY.get(failure.kind, 'Stopped by an error')}: {text}{goes_on}", "bad"
    if reason := session.why_not_start():
        return f"Start is off: {reason}", "bad"
    if preview:
        return _ready(session), ""
    warning = _warning(session.events)
    return f"{warning} {_after(session)}".lstrip(), "bad" if warning else ""


def _while_alive(session: Session, note: str, unpainted: str) -> Said:
    unsaved = session.unsaved if session.state == "paused" else ""
    doing = f"{_doing(session.state, session.position)}{unsaved}"
    moved = "A control was moved: that takes effect at the next start." if session.edited else ""
    wrong = f"{unpainted} Training goes on." if unpainted else _warning(session.events)
    return " ".join(filter(None, (doing, note or moved, wrong))), "bad" if wrong else ""


def _warning(events: list[Event]) -> str:
    """What is wrong with the best weights of the stage that ended last, if something is."""
    return next((e.warning for e in reversed(events) if isinstance(e, StageEnded)), "")


def _doing(state: str, position: Event | None) -> str:
    if state != "running":
        words = {
            "pausing": "Pausing after this batch.",
            "paused": "Paused. Resume goes on.",
            "stopping": "Stopping after this batch.",
        }
        return words.get(state, "")
    match position:
        case None:
            return "Reading data and weights."
        case BatchEnded():
            return (
                f"Training stage {position.stage}: epoch {position.epoch}, batch "
                f"{position.batch} of {position.batches}."
            )
        case ValidationBatch():
            when = f" after epoch {position.epoch}" if position.epoch else ", start weights"
            return f"Scoring validation images{when}: batch {position.batch} of {position.batches}."
        case _:
            return "Training."


def _ready(session: Session) -> str:
    first, last = session.desk.first_stage(), len(session.desk.chosen().stages)
    stages = f"stages {first} to {last}" if last > first else f"stage {first}"
    return (
        f"Ready. Start trains "
        f"{stages}{f' from {session.desk.start}' if session.desk.start else ''}."
    )


def _after(session: Session) -> str:
    run = session.run
    if not run.events_file.exists():
        return "Stopped before anything was recorded."
    if session.resumable:
        return (
            f"Stopped after {_at(session.events)}. {session.goes_on_from()}. Run folder: {run.path}"
        )
    if not run.summary_file.exists():
        return f"{run.path.name} is being trained elsewhere."
    best = run.summary["best"]
    started = next(e for e in session.events if isinstance(e, RunStarted))
    reused = (
        f" {inherited_words(started.parent)} Tick Retrain to do so."
        if started.parent and not session.desk.start
        else ""
    )
    return (
        f"Ended.{reused} Best valid IoU {number_or_na(best['iou'])}, F1 "
        f"{number_or_na(best['f1'])}. Run folder: {run.path}"
    )


def _at(events: list[Event]) -> str:
    last = next((e for e in reversed(events) if isinstance(e, BatchEnded)), None)
    return f"step {last.step}, in epoch {last.epoch}" if last else "no step at all"
