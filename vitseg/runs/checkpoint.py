"""Checkpoints: a training state in one sealed safetensors file each, no pickle."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from vitseg.events import Scores
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

_KINDS = {"now": "weights", "best": "best_weights", "optimizer": "optimizer"}
"""The tensors of a state by the first part of their names."""


class Saver:
    """Checkpoints of a run: when one is due, and whether there is anything to save. Between two
    stages there is nothing to go on with but the end of the last epoch, which is saved.
    """

    def __init__(self) -> None:
        self.run: RunFolder | None = None
        self.training: StageTraining | None = None
        self._saved, self._at = -1, time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._at > EVERY_SECONDS

    def save(self) -> None:
        if self.training is None or self.run.sequence == self._saved:
            return
        save_checkpoint(self.run, self.training.state_dict())
        self._saved, self._at = self.run.sequence, time.monotonic()


def save_checkpoint(run: RunFolder, state: dict[str, Any]) -> None:
    """Write `state` as a checkpoint that goes with what is logged so far.

    The newest KEEP checkpoints stay. Frozen weights are not in it: the recipe names them.
    """
    position = state | {"sequence": run.sequence, "offset": run.sync()}
    tensors: Weights = {}
    for kind, name in _KINDS.items():
        for key, value in position.pop(name).items():
            if kind == "optimizer":
                for slot, tensor in value.items():
                    tensors[f"{kind}/{key}/{slot}"] = tensor.contiguous()
            else:
                tensors[f"{kind}/{key}"] = value
    with written(run.checkpoints):
        run.checkpoints.mkdir(exist_ok=True)
    path = run.checkpoints / f"{run.sequence:08d}.safetensors"
    with whole_file(path, need=sum(tensor.nbytes for tensor in tensors.values())) as aside:
        text = json.dumps(position, allow_nan=False)
        save_file(tensors, aside, {_STATE: UNSEALED + text})
        seal(aside)
    for old in _newest_first(run)[KEEP:]:
        remove(old)


def newest_checkpoint(run: RunFolder) -> tuple[dict[str, Any] | None, list[str]]:
    """The state of the newest checkpoint that is whole, with its `sequence` and `offset`, and why
    newer ones were skipped.

    One that knows of more bytes than the log has is no use either.
    """
    skipped, log = [], run.events_file
    for path in _newest_first(run):
        reason = flaw(path)
        if not reason:
            try:
                state = _load(path)
                if state["offset"] <= log.stat().st_size:
                    return state, skipped
                reason = f"{log.name} is shorter than it says"
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                reason = f"it holds no state of a training ({error})"
        skipped.append(f"checkpoint {path.stem} was skipped: {reason}")
    return None, skipped


def drop_after(run: RunFolder, sequence: int) -> None:
    """Delete the checkpoints of what is about to happen again: they were skipped, and would crowd
    out new ones.
    """
    for path in _newest_first(run):
        if int(path.stem) > sequence:
            remove(path)


def steps_saved(run: RunFolder) -> int:
    """Optimizer steps of the run up to its newest checkpoint, as that says; 0 without one."""
    for path in _newest_first(run):
        with suppress(OSError, ValueError, SafetensorError):
            position = _position(path)
            return position["steps_before"] + position["step"]
    return 0


def _newest_first(run: RunFolder) -> list[Path]:
    """Files, and the folders that checkpoints were before November 2026."""
    return sorted((p for p in run.checkpoints.glob("*") if p.stem.isdecimal()), reverse=True)


def _position(path: Path) -> dict[str, Any]:
    """Raises OSError, ValueError or SafetensorError for what is no checkpoint."""
    if path.is_dir():
        text = (path / "state.json").read_bytes()
    else:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_STATE, "")[len(UNSEALED) :]
    try:
        position = Position.model_validate_json(text).model_dump()
    except ValidationError as error:
        raise ValueError(explain(error, Position).problem) from None
    if position["sequence"] != int(path.stem):
        raise ValueError(f"it is checkpoint {position['sequence']}")
    return position


def _load(path: Path) -> dict[str, Any]:
    """Raises as `_position` does, whatever digest it has."""
    state = _position(path) | {name: {} for name in _KINDS.values()}
    # bytes, not a file mapped into memory: Windows deletes no file that is mapped
    if path.is_dir():
        tensors = load((path / "weights.safetensors").read_bytes())
        for name, tensor in load((path / "optimizer.safetensors").read_bytes()).items():
            tensors[f"optimizer/{name}"] = tensor
    else:
        tensors = load(path.read_bytes())
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        found = state[_KINDS[kind]]
        if kind == "optimizer":
            parameter, _, key = key.partition("/")
            found = found.setdefault(int(parameter), {})
        found[key] = tensor
    return state
