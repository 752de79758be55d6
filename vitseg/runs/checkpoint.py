"""Checkpoints: a training state in one sealed safetensors file each, no pickle."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from vitseg.events import Event, Scores, StageEnded
from vitseg.files import UNSEALED, flaw, remove, seal, whole_file, written
from vitseg.runs.folder import RunFolder
from vitseg.training.loop import StageTraining
from vitseg.training.weights import Weights
from vitseg.words import Strict, explain


class Position(Strict):
    """What of a checkpoint is no tensor: where training stood, and the rest of its state."""

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

_STATE = "vitseg"
"""The one metadata key: the order of several is random, and equal states give equal files."""


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
    position = state | {"sequence": sequence, "offset": offset}
    tensors: Weights = {}
    for prefix, name in (("now", "weights"), ("best", "best_weights")):
        for key, tensor in position.pop(name).items():
            tensors[f"{prefix}/{key}"] = tensor
    for parameter, slots in position.pop("optimizer").items():
        for key, tensor in slots.items():
            tensors[f"optimizer/{parameter}/{key}"] = tensor.contiguous()
    path = folder / f"{sequence:08d}.safetensors"
    with written(folder):
        folder.mkdir(exist_ok=True)
    with whole_file(path, need=sum(tensor.nbytes for tensor in tensors.values())) as aside:
        text = json.dumps(position, allow_nan=False)
        save_file(tensors, aside, {_STATE: UNSEALED + text})
        seal(aside)
    for old in _newest_first(folder)[KEEP:]:
        remove(old)


def newest_checkpoint(folder: Path, log: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The state of the newest checkpoint that is whole, with its `sequence` and `offset`, and why
    newer ones were skipped.

    One that knows of more bytes than the log has is no use either.
    """
    skipped, there = [], log.stat().st_size if log.exists() else 0
    for path in _newest_first(folder):
        reason = flaw(path)
        if not reason:
            try:
                state = _load(path)
                if state["offset"] <= there:
                    return state, skipped
                reason = f"{log.name} is shorter than it says"
            except (OSError, ValueError, SafetensorError) as error:
                reason = f"it holds no state of a training ({error})"
        skipped.append(f"checkpoint {path.stem} was skipped: {reason}")
    return None, skipped


def drop_after(folder: Path, sequence: int) -> None:
    """Delete the checkpoints of what is about to happen again: they were skipped, and would crowd
    out new ones.
    """
    for path in _newest_first(folder):
        if int(path.stem) > sequence:
            remove(path)


def steps_saved(folder: Path) -> int:
    """Optimizer steps of the run up to its newest checkpoint, as that says; 0 without one."""
    for path in _newest_first(folder):
        with contextlib.suppress(OSError, ValueError, SafetensorError):
            position = _position(path)
            return position.steps_before + position.step
    return 0


def _newest_first(folder: Path) -> list[Path]:
    """Files, and the folders that checkpoints were before November 2026."""
    return sorted((p for p in folder.glob("*") if p.stem.isdecimal()), reverse=True)


def _position(path: Path) -> Position:
    """Raises OSError, ValueError or SafetensorError for what is no checkpoint."""
    if path.is_dir():
        text = (path / "state.json").read_bytes()
    else:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_STATE, "")[len(UNSEALED) :]
    try:
        return Position.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(explain(error, Position).problem) from None


def _load(path: Path) -> dict[str, Any]:
    """Raises as `_position` does, whatever digest it has."""
    state = _position(path).model_dump()
    if state["sequence"] != int(path.stem):
        raise ValueError(f"it is checkpoint {state['sequence']}")
    # bytes, not a file mapped into memory: Windows deletes no file that is mapped
    if path.is_dir():
        tensors = load((path / "weights.safetensors").read_bytes())
        for name, tensor in load((path / "optimizer.safetensors").read_bytes()).items():
            tensors[f"optimizer/{name}"] = tensor
    else:
        tensors = load(path.read_bytes())
    found: dict[str, Weights] = {"now": {}, "best": {}}
    slots: dict[int, Weights] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind in found:
            found[kind][rest] = tensor
        else:
            parameter, _, slot = rest.partition("/")
            slots.setdefault(int(parameter), {})[slot] = tensor
    return state | {"optimizer": slots, "weights": found["now"], "best_weights": found["best"]}
