"""The stage store: a finished stage is found again by a key of all that its numbers follow from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitseg.data.augment import libraries
from vitseg.draws import NUMERICS
from vitseg.errors import RunError
from vitseg.files import flaw
from vitseg.plan import describe, effective
from vitseg.runs.folder import RunFolder
from vitseg.training.audit import part_hashes
from vitseg.training.job import Job

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

_COMPUTE = ("torch", "transformers", "numpy", "pillow")
_OTHERS = ("vitseg", "safetensors", "pydantic")

_BEST = "IoU, then loss, then the later epoch; never the start of stage 1"
"""Which weights of a stage are its best, part of its key: stages that were finished by another rule
are not taken over.
"""

_FILE = "key"
_PLACES = (f"*/stages/*/{_FILE}", f"*/trials/*/stages/*/{_FILE}")


def environment(job: Job) -> dict[str, Any]:
    """What the numbers of a run depend on besides its recipe; data and start weights by digests of
    their content.

    Nothing of the user's own environment. Takes as long as reading all files and weights once.
    """
    machine, model = job.machine, job.model
    gpu = machine.device.type == "cuda"
    weights = json.dumps([part_hashes(model), model.make()], default=str)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in _COMPUTE} | libraries(job.data.cfg.effects),
        "other_versions": {name: version(name) for name in _OTHERS},
        "device": str(machine.device),
        "device_name": torch.cuda.get_device_name() if gpu else platform.machine(),
        "precision": machine.precision,
        "threads": machine.threads,
        "processes": machine.processes,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "encoder": model.shape.source,
        "data": job.data.digest(),
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
    }


def stage_keys(job: Job, facts: dict[str, Any]) -> list[str]:
    """A key for each stage of a job in an environment. The same key, the same bits: names, folders,
    workers and cache are not in it.
    """
    decisive = [NUMERICS, _BEST, *(facts[name] for name in DECISIVE)]
    keys, clocks = [], []
    for plan in job.stages:
        settings = effective(job.recipe, plan.number, plan.batches, plan.depth)
        # what was found there is in the environment, by its content
        for files in ("source", "split_file", "group_file"):
            settings["data"].pop(files)
        clocks.append(describe(plan.stage))  # the log says how often each has moved
        content = json.dumps([decisive, settings, clocks], sort_keys=True)
        keys.append(hashlib.sha256(content.encode()).hexdigest())
    return keys


def about(job: Job) -> dict[str, Any]:
    """The content of a new run's `environment.json`."""
    facts = environment(job)
    return facts | {"keys": stage_keys(job, facts)}


def decisive(facts: dict[str, Any]) -> dict[str, Any]:
    """What of an environment must be the same for all processes of a run, as JSON has it."""
    return json.loads(json.dumps({name: facts.get(name) for name in DECISIVE}))


class StageEnd(NamedTuple):
    """The end of stage `stage` of a run: where another run may start."""

    run: Path
    stage: int

    def __str__(self) -> str:
        return f"stage {self.stage} of {self.run.name}"


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
    for file in _keys_below(places):
        with contextlib.suppress(OSError):  # somebody deletes the run this instant
            there.setdefault(key_of(file.parent), []).append((file.stat().st_mtime, file.parent))
    for number in range(len(keys), 0, -1):
        for _, folder in sorted(there.get(keys[number - 1], ()), reverse=True):
            end = StageEnd(folder.parents[1], number)
            if _is_whole(end):
                return end
    return None


def _keys_below(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        for pattern in _PLACES:
            yield from place.glob(pattern)


def _is_whole(end: StageEnd) -> bool:
    """Whether the weights of the run's stages are what was written, and its log goes that far."""
    run = RunFolder(end.run)
    try:
        damaged = any(flaw(run.stage(number)) for number in range(1, end.stage + 1))
        return not damaged and bool(run.up_to(end.stage))
    except (RunError, OSError, ValueError):  # also where somebody else has spoilt the log
        return False
