"""An encoder out of a `.pth` file: the one place where a pickle is read, on request, by a reader
that runs no code.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vitseg.errors import WeightsError
from vitseg.model.weights import load_vit, quiet, write_color_statistics

_UNDER = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights, if not at the top."""


def convert_encoder(file: str | Path, like: str, folder: str | Path) -> None:
    """Take the encoder out of a training checkpoint, and save it in `folder`, to be named in a
    recipe.

    `like` is an encoder of the same make, by name or folder; its weights are replaced. Names in the
    file may have anything before those of `like` (`model.encoder.`). Raises WeightsError for a file
    that needs code to be run, and unless every weight of `like`, and of its size, is there.
    """
    place = Path(folder).expanduser()
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise WeightsError(f"{place}: holds something already.", "Choose a new folder.")
    stored, loaded = _tensors(Path(file)), load_vit(like)
    wanted = loaded.vit.state_dict()
    known = max(wanted, key=len)
    starts = sorted(name.removesuffix(known) for name in stored if name.endswith(known))
    start = starts[0] if starts else ""
    try:
        found = {name: stored[start + name] for name in wanted if start + name in stored}
        loaded.vit.load_state_dict(found)
    except RuntimeError as error:
        problem = f"{file}: is no {like} ({shorten(str(error), 400)})."
        raise WeightsError(problem, "Name an encoder of the same make.") from None
    try:
        with quiet():
            loaded.vit.save_pretrained(place)
        write_color_statistics(place, loaded.mean, loaded.std)
    except (OSError, SafetensorError) as error:
        problem = f"{place}: cannot be written ({error})."
        raise WeightsError(problem, "Choose another folder, or make room.") from None


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror}).") from None
    except Exception as error:  # a torn pickle fails in many ways
        first = (str(error) or type(error).__name__).splitlines()[0]
        hint = "Save its state_dict alone, where it was made; nothing in the file was run."
        problem = f"{file}: holds more than weights, or is damaged ({first})"
        raise WeightsError(problem, hint) from None
    for name in _UNDER:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    weights = {}
    if isinstance(found, dict):
        weights = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        hint = f"They are looked for at the top, or under {', '.join(_UNDER)}."
        raise WeightsError(f"{file}: holds no weights by name.", hint)
    return weights
