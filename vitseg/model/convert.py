"""An encoder out of a `.pth` file: the one place where a pickle is read, on request, by a reader
that runs no code.
"""

from __future__ import annotations

import pickle
from pathlib import Path
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
        raise WeightsError(
            f"{place}: holds something already.", "Choose a new folder for the encoder."
        )
    stored, loaded = _tensors(Path(file)), load_vit(like)
    wanted = loaded.vit.state_dict()
    known = max(wanted, key=len)
    starts = sorted(name.removesuffix(known) for name in stored if name.endswith(known))
    found = {
        name: stored[start + name]
        for start in starts[:1]
        for name in wanted
        if start + name in stored
    }
    problems = _misfits(found, wanted)
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise WeightsError(
            f"{file}: is no {like}: {'; '.join(problems[:4])}{more}.",
            "Name an encoder of the same make.",
        )
    loaded.vit.load_state_dict(found)
    try:
        with quiet():
            loaded.vit.save_pretrained(place)
        write_color_statistics(place, loaded.mean, loaded.std)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{place}: cannot be written ({error}).", "Choose another folder, or make room."
        ) from None


def _misfits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            problems.append(f"{name} is {shapes}")
    return problems


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror}).") from None
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "Save its state_dict alone, where it was made; nothing in the file was run."
        raise WeightsError(
            f"{file}: holds more than weights, or is damaged ({first})", mend
        ) from None
    for name in _UNDER:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    weights = (
        {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    )
    if not weights:
        raise WeightsError(
            f"{file}: holds no weights by name.",
            f"They are looked for at the top, or under {', '.join(_UNDER)}.",
        )
    return weights
