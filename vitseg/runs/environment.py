"""What the numbers of a run depend on besides its recipe."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any

import torch

from vitseg.data.augment import libraries
from vitseg.data.dataset import SegmentationData
from vitseg.model.segmenter import Segmenter
from vitseg.training.audit import part_hashes
from vitseg.training.device import Machine

_COMPUTE = ("torch", "transformers", "numpy", "pillow")
_OTHERS = ("vitseg", "safetensors", "pydantic")


def environment(data: SegmentationData, model: Segmenter, machine: Machine) -> dict[str, Any]:
    """What the numbers of a run depend on besides its recipe; data and start weights by digests of
    their content.

    Nothing of the user's own environment. Takes as long as reading all files and weights once.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in _COMPUTE} | libraries(data.cfg.effects),
        "other_versions": {name: version(name) for name in _OTHERS},
        "device": str(machine.device),
        "device_name": torch.cuda.get_device_name()
        if machine.device.type == "cuda"
        else platform.machine(),
        "precision": machine.precision,
        "threads": machine.threads,
        "processes": machine.processes,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "encoder": model.shape.source,
        "data": data.digest(),
        "weights": hashlib.sha256(
            json.dumps([part_hashes(model), model.make()], default=str).encode()
        ).hexdigest(),
    }
