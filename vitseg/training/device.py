"""Which device, which number format, how many threads: "auto" resolved, impossible pairs
refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch

from vitseg.errors import ConfigError
from vitseg.recipe import Recipe


class Launch(NamedTuple):
    """This process's number among those that `torchrun` has begun, and among those of this
    machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` says to each."""


def launched() -> Launch | None:
    """None where nobody but us has begun this process. Raises ConfigError for words that are no
    numbers.
    """
    said = [os.environ.get(name, "") for name in LAUNCHED]
    if not all(said):
        return None
    if wrong := [
        name for name, word in zip(LAUNCHED[:4], said, strict=False) if not word.isdecimal()
    ]:
        raise ConfigError(
            wrong[0], os.environ[wrong[0]], "a number in the environment, as torchrun sets it"
        )
    return Launch(*map(int, said[:4]))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how each process of a run computes. `amp` is the autocast type, None for full
    fp32.
    """

    device: torch.device
    precision: str
    threads: int
    processes: int

    def __str__(self) -> str:
        return f"{self.device}{f', {self.processes} processes' * (self.processes > 1)}"

    @property
    def amp(self) -> torch.dtype | None:
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def autocast(self, wanted: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=wanted and self.amp is not None)

    def free_memory(self) -> int:
        """Bytes that are free for this process where it computes, at this moment; of a container's
        limit it does not know.
        """
        if self.device.type == "cuda":
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(
                self.device
            )  # by PyTorch's cache
            return torch.cuda.mem_get_info(self.device)[0] + unused
        if self.device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return psutil.virtual_memory().available

    def settle(self) -> None:
        """Use the recorded number of threads: it decides the order of sums, and so the bits."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def resolve(recipe: Recipe) -> Machine:
    """The machine of a recipe. Raises ConfigError for a device that is not there, fp16 without
    CUDA, or more processes than GPUs.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    name = recipe.device
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there[name]:
        raise ConfigError("device", name, ", ".join(d for d in there if there[d]), 'Use "auto".')
    precision = recipe.precision
    if precision == "auto":
        # bf16 without hardware for it is several times slower than fp32, so a CPU stays with fp32
        precision = (
            "fp32"
            if name != "cuda"
            else "bf16"
            if torch.cuda.get_device_capability()[0] >= 8
            else "fp16"
        )
    if precision == "fp16" and name != "cuda":
        raise ConfigError(
            "precision", "fp16", "fp32, bf16", f"fp16 needs cuda, the device is {name}."
        )
    launch = launched()
    if launch and launch.size != recipe.processes:
        mend = f'recipe.replace({{"processes": {launch.size}}}), or --set processes={launch.size}'
        raise ConfigError(
            "processes", recipe.processes, f"{launch.size}, as torchrun has begun so many", mend
        )
    here = launch.local_size if launch else recipe.processes
    if name != "cpu" and here > (gpus := torch.cuda.device_count() or 1):
        raise ConfigError("processes", recipe.processes, f"at most {gpus}: one for each GPU here")
    threads = max(1, _cores() // recipe.processes) if recipe.threads == "auto" else recipe.threads
    return Machine(torch.device(name), precision, threads, recipe.processes)


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
