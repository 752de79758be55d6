"""What the numbers of a run depend on besides its recipe."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from vitseg.model.segmenter import Segmenter
from vitseg.training.device import Machine

_VERSIONS = ("vitseg", "torch", "transformers", "safetensors", "numpy", "pillow", "pydantic")


def environment(model: Segmenter, machine: Machine) -> dict[str, Any]:
    """What the numbers of a run depend on besides its recipe. Nothing of the user's own environment."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in _VERSIONS},
        "device": str(machine.device),
        "device_name": torch.cuda.get_device_name() if machine.device.type == "cuda" else platform.machine(),
        "precision": machine.precision,
        "threads": machine.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "encoder": model.shape.source,
    }
