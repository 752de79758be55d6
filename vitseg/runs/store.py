"""The stage store: a stage that some run has finished is found again by the key of all that its
numbers follow from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitseg.draws import NUMERICS
from vitseg.errors import RunError
from vitseg.files import flaw
from vitseg.plan import describe, effective
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder

DECISIVE = (
    "versions",
    "device",
    "device_name",
    "precision",
    "threads",
    "processes",
    "cpu_capability",
    "data",
    "weights",
)
"""What of a run's environment its numbers follow from."""

_BEST = "IoU, then loss, then the later epoch; never the start of stage 1"
"""Which weights of a stage are its best, part of its key: stages that were finished by another rule
are not taken over.
"""

_FILE = "key"
_PLACES = (f"*/stages/*/{_FILE}", f"*/trials/*/stages/*/{_FILE}")


class StageEnd(NamedTuple):
    """The end of stage `stage` of a run: where another run may start."""

    run: Path
    stage: int

    def __str__(self) -> str:
        return f"stage {self.stage} of {self.run.name}"


def stage_keys(
    recipe: Recipe, batches_per_epoch: int, blocks: int, environment: dict[str, Any]
) -> list[str]:
    """A key for each stage of a recipe. The same key, the same bits: names, folders, workers and
    cache are not in it.
    """
    decisive = [NUMERICS, _BEST, *(environment[name] for name in DECISIVE)]
    keys = []
    for number in range(1, len(recipe.stages) + 1):
        settings = effective(recipe, number, batches_per_epoch, blocks)
        for files in (
            "source",
            "split_file",
            "group_file",
        ):  # what was found there is in the environment, by its content
            settings["data"].pop(files)
        clocks = [
            describe(stage) for stage in recipe.stages[:number]
        ]  # the log says how often each has moved
        keys.append(
            hashlib.sha256(
                json.dumps([decisive, settings, clocks], sort_keys=True).encode()
            ).hexdigest()
        )
    return keys


def decisive(environment: dict[str, Any]) -> dict[str, Any]:
    """What of it must be the same for all processes of a run, as JSON has it."""
    return json.loads(json.dumps({name: environment.get(name) for name in DECISIVE}))


def keep_key(folder: Path, key: str) -> None:
    """Write a stage's key beside its weights."""
    (folder / _FILE).write_text(key, encoding="utf-8")


def key_of(folder: Path) -> str:
    """The key of the stage whose weights are in `folder`; "" if it has none."""
    try:
        return (folder / _FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def find_stage(keys: Sequence[str], places: Sequence[Path]) -> StageEnd | None:
    """The run below `places` that has finished the most of these stages, the newest of several;
    None if there is none.
    """
    there: dict[str, list[tuple[float, Path]]] = {}
    for file in (file for place in places for pattern in _PLACES for file in place.glob(pattern)):
        with contextlib.suppress(OSError):  # somebody deletes the run this instant
            there.setdefault(key_of(file.parent), []).append((file.stat().st_mtime, file.parent))
    for number, key in reversed(list(enumerate(keys, start=1))):
        for _, folder in sorted(there.get(key, ()), reverse=True):
            stages = [folder.with_name(str(n)) for n in range(1, number + 1)]
            if not any(map(flaw, stages)) and _is_told(end := StageEnd(folder.parents[1], number)):
                return end
    return None


def _is_told(end: StageEnd) -> bool:
    """Whether the run's log tells of the stage, to its end."""
    try:
        return bool(RunFolder(end.run).up_to(end.stage))
    except (RunError, OSError, ValueError):  # also where somebody else has spoilt the log
        return False
