"""Checkpoints: a training state in one sealed safetensors file each, no pickle."""

import json
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from vitseg.events import Scores
from vitseg.files import UNSEALED, flaw, remove, seal, whole_file
from vitseg.model.segmenter import Weights
from vitseg.runs.folder import RunFolder
from vitseg.training.loop import StageTraining
from vitseg.words import Strict


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

State = dict[str, Any]
"""What `StageTraining.state_dict` gives; of a checkpoint with `sequence` and `offset`, its place in
the log.
"""

_STATE = "vitseg"
"""The one metadata key: the order of several is random, and equal states give equal files."""


class Saver:
    """Checkpoints of a run: when one is due, and whether there is anything to save. Between two
    stages there is nothing to go on with but the end of the last epoch, which is saved.
    """

    def __init__(self) -> None:
        self.run: RunFolder | None = None
        self.training: StageTraining | None = None
        self._saved, self._at = -1, time.monotonic()

    def save(self, now: bool = True) -> None:
        """Write a checkpoint, if there is anything new to save, and it is wanted now or due."""
        due = now or time.monotonic() - self._at > EVERY_SECONDS
        if due and self.training and self.run.sequence != self._saved:
            save_checkpoint(self.run, self.training.state_dict())
            self._saved, self._at = self.run.sequence, time.monotonic()


def save_checkpoint(run: RunFolder, state: State) -> None:
    """Write `state` as a checkpoint that goes with what is logged so far.

    The newest KEEP checkpoints stay. Frozen weights are not in it: the recipe names them.
    """
    position = state | {"sequence": run.sequence, "offset": run.sync()}
    kinds = {"now": position.pop("weights"), "best": position.pop("best_weights")}
    for parameter, slots in position.pop("optimizer").items():
        kinds[f"optimizer/{parameter}"] = slots
    tensors: Weights = {}
    for kind, found in kinds.items():
        for name, tensor in found.items():
            tensors[f"{kind}/{name}"] = tensor.contiguous()
    path = run.checkpoints / f"{run.sequence:08d}.safetensors"
    with whole_file(path, need=sum(tensor.nbytes for tensor in tensors.values())) as aside:
        aside.parent.mkdir(exist_ok=True)
        text = json.dumps(position, allow_nan=False)
        save_file(tensors, aside, {_STATE: UNSEALED + text})
        seal(aside)
    for old in _newest_first(run)[KEEP:]:
        remove(old)


def newest_checkpoint(run: RunFolder) -> tuple[State | None, list[str]]:
    """The state of the newest checkpoint that is whole, with its `sequence` and `offset`, and why
    newer ones were skipped.

    One that knows of more bytes than the log has is no use either.
    """
    skipped, log = [], run.events_file
    for path in _newest_first(run):
        try:
            if reason := flaw(path):
                raise ValueError(reason)
            state = _load(path)
            if state["offset"] > log.stat().st_size:
                raise ValueError(f"{log.name} is shorter than it says")
            return state, skipped
        except (OSError, ValueError, SafetensorError) as error:
            skipped.append(f"checkpoint {path.stem} was skipped: {error}")
    return None, skipped


def drop_after(run: RunFolder, sequence: int) -> None:
    """Delete the checkpoints of what is about to happen again: they were skipped, and would crowd
    out new ones.
    """
    for path in _newest_first(run):
        if path.stem > f"{sequence:08d}":
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
    return sorted(run.checkpoints.glob("[0-9]*"), reverse=True)


def _position(path: Path) -> State:
    """Raises OSError, ValueError or SafetensorError for what is no checkpoint."""
    if path.is_dir():
        text = (path / "state.json").read_bytes()
    else:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_STATE, "")[len(UNSEALED) :]
    return Position.model_validate_json(text).model_dump()


def _load(path: Path) -> State:
    """Raises as `_position` does, whatever digest it has."""
    kinds: dict[str, Weights] = defaultdict(dict)
    for file in path.glob("*.safetensors") if path.is_dir() else [path]:
        # bytes, not a file mapped into memory: Windows deletes no file that is mapped
        for name, tensor in load(file.read_bytes()).items():
            kind, _, key = name.rpartition("/")
            kinds[kind.removeprefix("optimizer/")][key] = tensor
    state = {"weights": kinds.pop("now", {}), "best_weights": kinds.pop("best", {})}
    optimizer = {int(parameter): slots for parameter, slots in kinds.items()}
    return _position(path) | state | {"optimizer": optimizer}
