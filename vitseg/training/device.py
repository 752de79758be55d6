"""Which device, which number format, how many threads: "auto" resolved, impossible pairs
refused.
"""

import os
from typing import NamedTuple

import psutil
import torch

from vitseg.errors import ConfigError
from vitseg.recipe import Recipe
from vitseg.training.parallel import launched


class Machine(NamedTuple):
    """Where and how each process of a run computes."""

    device: str
    precision: str
    threads: int
    processes: int

    def __str__(self) -> str:
        return f"{self.device}{f', {self.processes} processes' * (self.processes > 1)}"

    def autocast(self) -> torch.autocast:
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device, kind, enabled=kind is not None)

    def free_memory(self) -> int:
        """Bytes that are free for this process where it computes, at this moment; of a container's
        limit it does not know.
        """
        if self.device == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            # PyTorch holds more than it uses
            return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if self.device == "mps":
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
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = ["cuda"] * cuda + ["mps"] * mps + ["cpu"]
    device = there[0] if recipe.device == "auto" else recipe.device
    if device not in there:
        raise ConfigError("device", device, ", ".join(sorted(there)), 'Use "auto".')
    precision, threads = recipe.precision, recipe.threads
    if precision == "fp16" and device != "cuda":
        hint = f"fp16 needs cuda, the device is {device}."
        raise ConfigError("precision", "fp16", "fp32, bf16", hint)
    if precision == "auto":
        precision = "fp32"  # bf16 without hardware for it is several times slower
        if device == "cuda":
            precision = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    _check_processes(recipe.processes, device)
    if threads == "auto":
        try:
            cores = len(os.sched_getaffinity(0))  # in a container fewer than the machine has
        except AttributeError:  # macOS, Windows
            cores = os.cpu_count() or 1
        threads = max(1, cores // recipe.processes)
    return Machine(device, precision, threads, recipe.processes)


def _check_processes(processes: int, device: str) -> None:
    """Raises ConfigError unless they are as many as `torchrun` has started, and each has a GPU."""
    launch = launched()
    if launch and launch.size != processes:
        hint = f'recipe.replace({{"processes": {launch.size}}}), or --set processes={launch.size}'
        allowed = f"{launch.size}, as torchrun has begun so many"
        raise ConfigError("processes", processes, allowed, hint)
    here, gpus = launch.local_size if launch else processes, torch.cuda.device_count() or 1
    if device != "cpu" and here > gpus:
        raise ConfigError("processes", processes, f"at most {gpus}: one for each GPU here")
