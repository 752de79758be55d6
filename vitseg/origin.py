"""Reading the origin's `training_config.json` and `preprocessing_config.json`: no key is
ignored.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from vitseg.errors import RecipeError
from vitseg.presets import giant
from vitseg.recipe import Recipe
from vitseg.settings import SGD, Exponential

_PATHS = {
    "cosine_restart_config.T_0": "stages.0.schedule.T_0",
    "cosine_restart_config.T_mult": "stages.0.schedule.T_mult",
    "cosine_restart_config.eta_min": "stages.0.schedule.eta_min",
    "gamma": "stages.{}.schedule.gamma",
    "drop_path_rate": "stages.{}.drop_path",
    "early_stopping_patience": "stages.{}.patience",
    "stage1_epochs": "stages.0.epochs",
    "stage2_epochs": "stages.1.epochs",
    "stage3_epochs": "stages.2.epochs",
    "stage2_unfreeze_layers": "stages.1.unfrozen_blocks",
    "stage3_unfreeze_layers": "stages.2.unfrozen_blocks",
    "weight_decay": "optimizer.weight_decay",
    "gradient_clipping": "clip_norm",
    "batch_size": "batch_size",
    "num_workers": "workers",
    "seed": "seed",
    "label_smoothing": "loss.label_smoothing",
    "class_weights": "loss.class_weights",
    "focal_gamma": "loss.focal_gamma",
    "dropout": "model.dropout",
    "mode": "data.mode",
    "image_size": "data.size",
    "horizontal_flip": "data.augment.flip_horizontal",
    "vertical_flip": "data.augment.flip_vertical",
    "rotation_degrees": "data.augment.rotate_degrees",
    "brightness": "data.augment.brightness",
    "contrast": "data.augment.contrast",
    "saturation": "data.augment.saturation",
}
"""The setting that a key's value goes to; {} stands for each of stages 2 and 3, counted from 0."""

_CHOICES = {
    "scheduler_type": {  # of stage 1; the origin's later stages are exponential whatever it says
        "cosine_restarts": {},
        "exponential": {"stages.0.schedule": Exponential()},
    },
    "optimizer": {"adamw": {}, "sgd": {"optimizer": SGD()}},
    "loss_function": {
        "ce": {"loss.dice": 0.0},
        "ce_dice": {},
        "ce_focal": {"loss.dice": 0.0, "loss.focal": 5.0},
    },
    "model_size": {
        size: {"model.encoder": f"facebook/dinov2-{size}", "model.skip_depths": None}
        for size in ("small", "base", "large")
    }
    | {"giant": {}},
    "mixed_precision": {"true": {}, "false": {"precision": "fp32"}},
    "cosine_restart_config.last_epoch": {"-1": {}},
    "progressive_training": {"true": {}},
    "use_ema": {"false": {}},
    "f1_average": {"macro": {}},
    "random_split": {"false": {}},
}
"""Values that stand for settings: those in which they differ from `giant()`. Read before the keys
that change one of these settings.
"""

_REFUSED = {
    "cosine_restart_config.last_epoch": "ignored by the origin; resume a run instead",
    "progressive_training": "there are always stages; make a recipe with one",
    "use_ema": "the origin copied the weights and never updated the copy",
    "f1_average": "ignored by the origin; all three F1 are always given",
    "random_split": "a split by the clock cannot be repeated; data.split_seed decides",
    "loss_functions": "ignored by the origin; set loss_function, or sweep over losses",
    "metrics": "ignored by the origin; IoU, F1 and accuracy are always given",
    "dice_loss_mode": "ignored by the origin; the mode follows data.mode",
    "final_model_epoch": "ignored by the origin; best/ holds the best epoch",
    "normalization": "ignored by the origin; the encoder's own statistics are used",
}
"""Why a key is refused, if it has no choice, or not that one."""

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

Config = str | Path | dict[str, Any]
"""A path, JSON text, or what it says."""


class KeyFate(NamedTuple):
    """What became of one key: "honoured" as it stands, "mapped" to a setting of ours, or
    "refused".
    """

    key: str
    value: Any
    fate: str
    meaning: str


class Reading(NamedTuple):
    """An origin-style configuration, read: what became of every key, and the recipe it makes."""

    keys: tuple[KeyFate, ...]
    changes: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The recipe. Raises RecipeError, naming every refused key."""
        refused = [f"{k.key}: {k.meaning}" for k in self.keys if k.fate == "refused"]
        if refused:
            problem = f"training_config: {'; '.join(refused)}."
            raise RecipeError(problem, "Take these keys out, or do what stands after each.")
        return giant().replace(self.changes)


def from_training_config(config: Config, preprocessing: Config | None = None) -> Reading:
    """Read the origin's configuration: paths, JSON text, or dicts.

    Starts from `giant()`, the origin's own settings, and says of every key whether it is honoured,
    mapped or refused. A fragment, such as the one in the origin's fix report, is enough.
    """
    values = _flat(_read(config)) | _flat(_read(preprocessing or {}))
    keys, first, changes = {}, {}, {"data.effects": []}
    for key in sorted(values, key=lambda k: k not in _CHOICES):
        name, value, settings = _ALIASES.get(key, key), values[key], {}
        try:
            if first.setdefault(name, key) != key:
                raise ValueError(f"it says the same as {first[name]}; keep one")
            settings = _settings(name, value, values)
            fate = "honoured" if all(s == value for s in settings.values()) else "mapped"
            meaning = ", ".join(f"{path}={s!r}" for path, s in settings.items())
        except (TypeError, ValueError) as error:
            fate, meaning = "refused", f"got {value!r}; {error}"
        keys[key] = KeyFate(key, value, fate, meaning or "as in giant()")
        effects = changes["data.effects"] + settings.get("data.effects", [])
        changes |= settings | {"data.effects": effects}
    return Reading(tuple(keys[key] for key in values), changes)


def _read(config: Config) -> dict[str, Any]:
    if isinstance(config, dict):
        return config
    try:
        text = str(config)
        if not text.lstrip().startswith(("{", "[")):
            text = Path(text).read_text(encoding="utf-8")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, not an object")
    except (OSError, ValueError) as error:
        problem = f"{str(config)[:80]}: cannot be read as JSON ({error})."
        raise RecipeError(problem, "Give a path, JSON text or a dict.") from None
    return found


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as dotted keys; a list is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        flat |= inner or {f"{prefix}{key}": value}
    return flat


def _settings(name: str, value: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The settings that a key changes, by path. Raises TypeError or ValueError with the reason for
    which it is refused.
    """
    choices, choice, stages = _CHOICES.get(name, {}), str(value).lower(), [1, 2]
    if choice in choices:
        return choices[choice]
    if choices or name in _REFUSED:
        raise ValueError(_REFUSED.get(name, f"known: {', '.join(choices)}"))
    if name in _EFFECTS:
        effect = {"kind": _EFFECTS[name]} | ({} if value is True else {"p": value})
        return {"data.effects": [effect]} if value else {}
    match name:
        case "learning_rate":
            return {f"stages.{i}.lr": value * f for i, f in enumerate((1.0, 0.3, 0.05))}
        case "lambda":
            loss = values.get("loss_function", "ce_dice")
            if loss not in ("ce_dice", "ce_focal"):
                raise ValueError(f"it has no effect with loss_function {loss!r}")
            return {f"loss.{loss.removeprefix('ce_')}": value}
        case "image_size" if isinstance(value, int):
            value = [value, value]
        case "gamma" if values.get("scheduler_type") == "exponential":
            stages = [0, 1, 2]
    if name not in _PATHS:
        raise ValueError("no setting of that name is known here")
    return {_PATHS[name].format(stage): value for stage in stages}
