"""Checkpoints: a training state as safetensors and JSON, one folder each, no pickle."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from vitseg.events import Event, Scores, StageEnded
from vitseg.runs.durable import flaw, whole_folder
from vitseg.runs.folder import RunFolder
from vitseg.training.loop import StageTraining
from vitseg.training.weights import Weights
from vitseg.words import Strict, explain


class Position(Strict):
    """The content of a checkpoint's `state.json`: where training stood, and all of its state that
    is no tensor.
    """

    stage: PositiveInt
    epoch: NonNegativeInt
    batch: NonNegativeInt
    step: NonNegativeInt
    skipped: NonNegativeInt
    epochs_before: NonNegativeInt
    steps_before: NonNegativeInt
    best_epoch: NonNegativeInt
    running_loss: float
    running: list[list[NonNegativeInt]]
    lr: dict[str, float]
    best: Scores
    hashes: dict[str, str | None]
    scaler: dict[str, Any]
    sequence: NonNegativeInt
    offset: NonNegativeInt


KEEP = 2
EVERY_SECONDS = 60.0
"""Between two checkpoints within an epoch."""


class Saver:
    """Checkpoints of a run: when one is due, and whether there is anything to save."""

    def __init__(self, run: RunFolder):
        self.run, self.saved, self.at = run, -1, time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.at > EVERY_SECONDS

    def save(self, event: Event, training: StageTraining | None) -> None:
        """Between two stages there is nothing to go on with but the end of the last epoch, which is
        saved.
        """
        if training is None or isinstance(event, StageEnded) or self.run.sequence == self.saved:
            return
        save_checkpoint(
            self.run.checkpoints, self.run.sequence, self.run.sync(), training.state_dict()
        )
        self.saved, self.at = self.run.sequence, time.monotonic()


def save_checkpoint(folder: Path, sequence: int, offset: int, state: dict[str, Any]) -> None:
    """Write `state` as checkpoint `sequence`: the number of events logged so far, `offset` bytes of
    them.

    The newest KEEP checkpoints stay. Frozen weights are not in it: the recipe names them.
    """
    state = dict(state)
    weights = {f"now/{k}": v for k, v in state.pop("weights").items()}
    weights |= {f"best/{k}": v for k, v in state.pop("best_weights").items()}
    tensors = {
        f"{i}/{k}": v.contiguous()
        for i, slots in state.pop("optimizer").items()
        for k, v in slots.items()
    }
    position = state | {"sequence": sequence, "offset": offset}
    need = sum(t.nbytes for t in [*weights.values(), *tensors.values()])
    with whole_folder(folder / f"{sequence:08d}", need) as aside:
        save_file(weights, aside / "weights.safetensors")
        save_file(tensors, aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps(position, allow_nan=False), encoding="utf-8")
    for old in sorted(p for p in folder.iterdir() if p.name.isdigit())[:-KEEP]:
        shutil.rmtree(old)


def newest_checkpoint(folder: Path, log: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The state of the newest checkpoint that is whole, with its `sequence` and `offset`, and why
    newer ones were skipped.

    One that knows of more bytes than the log has is no use either.
    """
    skipped, there = [], log.stat().st_size if log.exists() else 0
    for path in _newest_first(folder):
        reason = flaw(path)
        try:
            state = None if reason else _load(path)
        except (OSError, ValueError, SafetensorError) as error:
            reason = f"it holds no state of a training ({error})"
        if not reason and state["offset"] <= there:
            return state, skipped
        skipped.append(
            f"checkpoint {path.name} was skipped: {reason or f'{log.name} is shorter than it says'}"
        )
    return None, skipped


def drop_after(folder: Path, sequence: int) -> None:
    """Delete the checkpoints of what is about to happen again: they were skipped, and would crowd
    out new ones.
    """
    for path in _newest_first(folder):
        if int(path.name) > sequence:
            shutil.rmtree(path)


def steps_saved(folder: Path) -> int:
    """Optimizer steps of the run up to its newest checkpoint, as that says; 0 without one."""
    for path in _newest_first(folder):
        with contextlib.suppress(OSError, ValueError):
            position = Position.model_validate_json((path / "state.json").read_bytes())
            return position.steps_before + position.step
    return 0


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*") if p.name.isdigit()), reverse=True)


def _load(folder: Path) -> dict[str, Any]:
    """Raises ValueError or SafetensorError for what is no checkpoint, whatever its manifest
    says.
    """
    try:
        state = Position.model_validate_json((folder / "state.json").read_bytes()).model_dump()
    except ValidationError as error:
        raise ValueError(explain(error, Position).problem) from None
    if state["sequence"] != int(folder.name):
        raise ValueError(f"it is checkpoint {state['sequence']}")
    # bytes, not a file mapped into memory: Windows deletes no folder with a mapped file in it
    weights, tensors = (
        load((folder / f"{name}.safetensors").read_bytes()) for name in ("weights", "optimizer")
    )
    slots: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, slot = name.partition("/")
        slots.setdefault(int(index), {})[slot] = tensor
    return state | {
        "optimizer": slots,
        "weights": _under("now/", weights),
        "best_weights": _under("best/", weights),
    }


def _under(prefix: str, weights: Weights) -> Weights:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
