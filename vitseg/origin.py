"""Reading the origin's `training_config.json` and `preprocessing_config.json`: no key is
ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitseg.errors import RecipeError
from vitseg.presets import giant
from vitseg.recipe import Recipe
from vitseg.settings import SGD, AdamW, CosineRestarts, Exponential

_SETTINGS = {
    "cosine_restart_config.T_mult": "stages.0.schedule.T_mult",
    "cosine_restart_config.eta_min": "stages.0.schedule.eta_min",
    "weight_decay": "optimizer.weight_decay",
    "batch_size": "batch_size",
    "num_workers": "workers",
    "seed": "seed",
    "label_smoothing": "loss.label_smoothing",
    "class_weights": "loss.class_weights",
    "focal_gamma": "loss.focal_gamma",
    "dropout": "model.dropout",
    "gradient_clipping": "clip_norm",
    "stage1_epochs": "stages.0.epochs",
    "stage2_epochs": "stages.1.epochs",
    "stage3_epochs": "stages.2.epochs",
    "mode": "data.mode",
    "horizontal_flip": "data.augment.flip_horizontal",
    "vertical_flip": "data.augment.flip_vertical",
    "brightness": "data.augment.brightness",
    "contrast": "data.augment.contrast",
    "saturation": "data.augment.saturation",
}
"""Honoured as they stand."""

_STAGES = {
    "gamma": ("schedule.gamma", [1, 2]),
    "drop_path_rate": ("drop_path", [1, 2]),
    "early_stopping_patience": ("patience", [1, 2]),
    "stage2_unfreeze_layers": ("unfrozen_blocks", [1]),
    "stage3_unfreeze_layers": ("unfrozen_blocks", [2]),
}
"""A setting of these stages, counted from 0."""

_CHOICES = {
    "scheduler_type": (
        "honoured",
        "schedule of stage 1; the origin's stages 2 and 3 are exponential whatever this says",
        ["stages.0.schedule"],
        {"cosine_restarts": [CosineRestarts()], "exponential": [Exponential()]},
    ),
    "optimizer": (
        "honoured",
        "optimizer",
        ["optimizer"],
        {"AdamW": [AdamW(weight_decay=1e-5)], "SGD": [SGD()]},
    ),
    "loss_function": (
        "mapped",
        "loss.dice and loss.focal, at lambda 5",
        ["loss.dice", "loss.focal"],
        {"ce": [0.0, 0.0], "ce_dice": [5.0, 0.0], "ce_focal": [0.0, 5.0]},
    ),
    "model_size": (
        "mapped",
        "model.encoder and model.skip_depths",
        ["model.encoder", "model.skip_depths"],
        {
            "small": ["facebook/dinov2-small", [3, 6, 9, 12]],
            "base": ["facebook/dinov2-base", [3, 6, 9, 12]],
            "large": ["facebook/dinov2-large", [6, 12, 18, 24]],
            "giant": ["facebook/dinov2-giant", [10, 20, 30, 40]],
        },
    ),
    "mixed_precision": (
        "mapped",
        "precision",
        ["precision"],
        {"true": ["auto"], "false": ["fp32"]},
    ),
}
"""Names that stand for several settings: what becomes of the key, what it means, the settings and
their values by name. Read before the keys that change one of these settings.
"""

_FIXED = {
    "cosine_restart_config.last_epoch": (
        -1,
        "a fresh start",
        "ignored by the origin; resume a run instead",
    ),
    "progressive_training": (
        True,
        "three stages",
        "there are always stages; make a recipe with one",
    ),
    "use_ema": (
        False,
        "no moving average",
        "the origin copied the weights and never updated the copy",
    ),
    "f1_average": (
        "macro",
        "f1 is the mean over classes",
        "ignored by the origin; all three F1 are always given",
    ),
    "random_split": (
        False,
        "the split follows data.split_seed",
        "a split by the clock cannot be repeated",
    ),
}
"""Honoured while they ask for what is so anyway; what to say then, and otherwise."""

_REFUSED = {
    "loss_functions": "ignored by the origin; set loss_function, or sweep over losses",
    "metrics": "ignored by the origin; IoU, F1 and accuracy are always given",
    "dice_loss_mode": "ignored by the origin; the mode follows data.mode",
    "final_model_epoch": "ignored by the origin; best/ holds the best epoch",
    "normalization": "ignored by the origin; the encoder's own statistics are used",
}

_EFFECTS = {
    "rot90": "right_angle",
    "color_jitter": "hue",  # its brightness, contrast and saturation are `data.augment`'s
    "blur": "blur",
    "elastic_transform": "elastic",
    "grid_distortion": "grid_distortion",
    "optical_distortion": "optical_distortion",
    "coarse_dropout": "coarse_dropout",
    "clahe": "clahe",
}
"""Switches, or the probabilities of effects; their other settings are ours."""

_ALIASES = {
    "lr": "learning_rate",
    "scheduler_gamma": "gamma",
    "decoder_dropout": "dropout",
    "resize": "image_size",
} | {f"{name}.p": name for name in _EFFECTS}

_NEEDS = {
    "lambda": ("loss_function", ["ce_dice", "ce_focal"]),
    **dict.fromkeys(
        (
            "cosine_restart_config.T_0",
            "cosine_restart_config.T_mult",
            "cosine_restart_config.eta_min",
            "cosine_restart_config.last_epoch",
        ),
        ("scheduler_type", ["cosine_restarts"]),
    ),
}
"""Keys without effect unless another, if it is there, has one of these values."""


Config = str | Path | dict[str, Any]
"""A path, JSON text, or what it says."""


@dataclass(frozen=True, slots=True)
class KeyFate:
    """What became of one key: "honoured" as it stands, "mapped" to a setting of ours, or
    "refused".
    """

    key: str
    value: Any
    fate: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Reading:
    """An origin-style configuration, read: what became of every key, and the recipe it makes."""

    keys: tuple[KeyFate, ...]
    changes: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The recipe. Raises RecipeError, naming every refused key."""
        refused = [f"{k.key}: {k.meaning}" for k in self.keys if k.fate == "refused"]
        if refused:
            raise RecipeError(
                f"training_config: {'; '.join(refused)}.",
                "Take these keys out, or do what stands after each.",
            )
        return giant().replace(self.changes)


def from_training_config(config: Config, preprocessing: Config | None = None) -> Reading:
    """Read the origin's configuration: paths, JSON text, or dicts.

    Starts from `giant()`, the origin's own settings, and says of every key whether it is honoured,
    mapped or refused. A fragment, such as the one in the origin's fix report, is enough.
    """
    values = _flat(_read(config))
    if preprocessing is not None:
        values |= _flat(_read(preprocessing))
    keys, changes = {}, {}
    for key in sorted(values, key=lambda k: k not in _CHOICES):
        try:
            fate, meaning, settings = _fate(key, values)
        except (TypeError, ValueError):
            meaning = f"got {values[key]!r}, which means nothing here"
            fate, settings = "refused", {}
        keys[key] = KeyFate(key, values[key], fate, meaning)
        if effects := changes.get("data.effects"):  # each key adds its own
            settings["data.effects"] = effects + settings.get("data.effects", [])
        changes |= settings
    return Reading(tuple(keys[key] for key in values), changes)


def _read(config: Config) -> dict[str, Any]:
    if isinstance(config, dict):
        return config
    try:
        text = str(config)
        if isinstance(config, Path) or not text.lstrip().startswith(("{", "[")):
            text = Path(config).read_text(encoding="utf-8")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{str(config)[:80]}: cannot be read as JSON ({error}).",
            "Give a path, JSON text or a dict.",
        ) from None
    return found


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as dotted keys; a list is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


Fate = tuple[str, str, dict[str, Any]]
"""What becomes of a key, what it means here, and the settings that it changes."""


def _fate(key: str, values: dict[str, Any]) -> Fate:
    name, value = _ALIASES.get(key, key), values[key]
    reason = _in_the_way(key, name, values) or _REFUSED.get(name)
    if reason:
        return "refused", reason, {}
    if path := _SETTINGS.get(name):
        return "honoured", path, {path: value}
    if name in _FIXED:
        wanted, meaning, otherwise = _FIXED[name]
        if value == wanted:
            return "honoured", meaning, {}
        return "refused", otherwise, {}
    if name in _CHOICES:
        fate, meaning, paths, choices = _CHOICES[name]
        for choice, settings in choices.items():
            if choice.lower() == str(value).lower():
                return fate, meaning, dict(zip(paths, settings, strict=True))
        return "refused", f"got {value!r}; known: {', '.join(choices)}", {}
    if name in _STAGES:
        setting, stages = _STAGES[name]
        if name == "gamma" and values.get("scheduler_type") == "exponential":
            stages = [0, *stages]
        where = ", ".join(str(i + 1) for i in stages)
        meaning = f"{setting} of stages {where}"
        return "mapped", meaning, {f"stages.{i}.{setting}": value for i in stages}
    return _computed(name, value, values)


def _in_the_way(key: str, name: str, values: dict[str, Any]) -> str:
    """Another key that keeps this one from having an effect."""
    for other in values:
        if other != key and _ALIASES.get(other, other) == name:
            return f"says the same as {other}; keep one"
    other, wanted = _NEEDS.get(name, ("", []))
    if other in values and values[other] not in wanted:
        return f"has no effect with {other} {values[other]!r}"
    return ""


def _computed(name: str, value: Any, values: dict[str, Any]) -> Fate:
    if effect := _EFFECTS.get(name):
        if value in (False, 0):
            return "honoured", "off", {}
        settings = {"kind": effect}
        if value is not True:
            settings["p"] = value
        return "mapped", f"data.effects, its {effect}", {"data.effects": [settings]}
    match name:
        case "cosine_restart_config.T_0":
            path = "stages.0.schedule.T_0"
            return "mapped", f"{path}, in batches", {path: value}
        case "learning_rate":
            rates = {f"stages.{i}.lr": value * f for i, f in enumerate((1.0, 0.3, 0.05))}
            return "mapped", "lr of stages 1, 2, 3, times 1, 0.3, 0.05", rates
        case "lambda":
            path = "loss.dice"
            if values.get("loss_function") == "ce_focal":
                path = "loss.focal"
            return "mapped", path, {path: float(value)}
        case "image_size":
            size = [value, value] if isinstance(value, int) else list(value)
            return "mapped", "data.size (height, width)", {"data.size": size}
        case "rotation_degrees":
            path = "data.augment.rotate_degrees"
            return "mapped", path, {path: float(value)}
    return "refused", "no setting of that name is known here", {}
