"""Reading the origin's `training_config.json` and `preprocessing_config.json`: no key is
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitseg.errors import RecipeError
from vitseg.presets import giant
from vitseg.recipe import Recipe
from vitseg.settings import SGD, AdamW


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
        if refused := [k for k in self.keys if k.fate == "refused"]:
            lines = "; ".join(f"{k.key}: {k.meaning}" for k in refused)
            raise RecipeError(
                f"training_config: {lines}.", "Take these keys out, or do what stands after each."
            )
        return giant().replace(self.changes)


def from_training_config(
    config: str | Path | dict[str, Any], preprocessing: str | Path | dict[str, Any] | None = None
) -> Reading:
    """Read the origin's configuration: paths, JSON text, or dicts.

    Starts from `giant()`, the origin's own settings, and says of every key whether it is honoured,
    mapped or refused. A fragment, such as the one in the origin's fix report, is enough.
    """
    values = _flat(_read(config)) | _flat(_read(preprocessing) if preprocessing is not None else {})
    fates: dict[str, KeyFate] = {}
    changes: dict[str, Any] = {}
    for key in sorted(values, key=lambda k: k not in _FIRST):
        value = values[key]
        try:
            fate, meaning, settings = _fate(key, value, values)
        except (TypeError, ValueError, KeyError):
            fate, meaning, settings = "refused", f"got {value!r}, which means nothing here", {}
        fates[key] = KeyFate(key, value, fate, meaning)
        if "data.effects" in settings:  # each key adds its own, in the order of the file
            settings = {"data.effects": changes.get("data.effects", []) + settings["data.effects"]}
        changes |= settings
    return Reading(tuple(fates[key] for key in values), changes)


def _fate(key: str, value: Any, values: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if key not in _KEYS:
        return "refused", "no setting of that name is known here", {}
    if reason := _in_the_way(key, values):
        return "refused", reason, {}
    fate, meaning, settings = _KEYS[key](value)
    if key == "lambda":
        kind = values.get("loss_function", "ce_dice")
        meaning, settings = (
            f"loss.{_WEIGHTED[kind]}",
            {f"loss.{_WEIGHTED[kind]}": settings["lambda"]},
        )
    if key in _GAMMAS and values.get("scheduler_type") == "exponential":
        meaning, settings = (
            "schedule.gamma of stages 1, 2, 3",
            settings | {"stages.0.schedule.gamma": value},
        )
    return fate, meaning, settings


def _in_the_way(key: str, values: dict[str, Any]) -> str:
    """Another key that keeps this one from having an effect."""
    for twins in _TWINS:
        others = [other for other in twins if other != key and other in values]
        if key in twins and others:
            return f"says the same as {others[0]}; keep one"
    if (
        key.startswith("cosine_restart_config.")
        and values.get("scheduler_type", "cosine_restarts") != "cosine_restarts"
    ):
        return f"has no effect with scheduler_type {values['scheduler_type']!r}"
    if key == "lambda" and values.get("loss_function", "ce_dice") not in _WEIGHTED:
        return f"has no effect with loss_function {values['loss_function']!r}"
    return ""


def _read(config: str | Path | dict[str, Any]) -> dict[str, Any]:
    if isinstance(config, dict):
        return config
    text = config if isinstance(config, str) and config.lstrip().startswith(("{", "[")) else None
    try:
        found = json.loads(Path(config).read_text(encoding="utf-8") if text is None else text)
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
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat


Reader = Callable[[Any], tuple[str, str, dict[str, Any]]]


def _honour(path: str) -> Reader:
    return lambda value: ("honoured", path, {path: value})


def _map(meaning: str, settings: Callable[[Any], dict[str, Any]]) -> Reader:
    return lambda value: ("mapped", meaning, settings(value))


def _stages(setting: str, *stages: int) -> Reader:
    """One value for several stages, counted from 0."""
    where = ", ".join(str(i + 1) for i in stages)
    return _map(
        f"{setting} of stages {where}",
        lambda value: {f"stages.{i}.{setting}": value for i in stages},
    )


def _only(allowed: Any, meaning: str, otherwise: str) -> Reader:
    """Honoured while it asks for what is so anyway."""
    return lambda value: (
        ("honoured", meaning, {}) if value == allowed else ("refused", otherwise, {})
    )


def _one_of(known: dict[str, dict[str, Any]], fate: str, meaning: str) -> Reader:
    """A name that stands for settings."""

    def read(value: Any) -> tuple[str, str, dict[str, Any]]:
        match = {name.lower(): settings for name, settings in known.items()}.get(str(value).lower())
        if match is None:
            return "refused", f"got {value!r}; known: {', '.join(known)}", {}
        return fate, meaning, match

    return read


def _effect(kind: str) -> Reader:
    """A switch, or the probability of an effect; its other settings are ours."""

    def read(value: Any) -> tuple[str, str, dict[str, Any]]:
        if value in (False, 0):
            return "honoured", "off", {}
        effect = {"kind": kind} if value is True else {"kind": kind, "p": value}
        return "mapped", f"data.effects, its {kind}", {"data.effects": [effect]}

    return read


def _refuse(why: str) -> Reader:
    return lambda value: ("refused", why, {})


def _encoder(size: str, *skips: int) -> dict[str, Any]:
    return {"model.encoder": f"facebook/dinov2-{size}", "model.skip_depths": list(skips)}


_WEIGHTED = {"ce_dice": "dice", "ce_focal": "focal"}
_ADAMW, _SGD = AdamW(weight_decay=1e-5).model_dump(mode="json"), SGD().model_dump(mode="json")
_LR = _map(
    "lr of stages 1, 2, 3, times 1, 0.3, 0.05",
    lambda v: {f"stages.{i}.lr": v * f for i, f in enumerate((1.0, 0.3, 0.05))},
)
_GAMMA = _stages("schedule.gamma", 1, 2)
_SIZE = _map(
    "data.size (height, width)", lambda v: {"data.size": [v, v] if isinstance(v, int) else list(v)}
)
_COSINE = "schedule of stage 1; the origin's stages 2 and 3 are exponential whatever this says"
_KEYS: dict[str, Reader] = {
    "scheduler_type": _one_of(
        {k: {"stages.0.schedule": {"kind": k}} for k in ("cosine_restarts", "exponential")},
        "honoured",
        _COSINE,
    ),
    "cosine_restart_config.T_0": _map(
        "stages.0.schedule.T_0, in batches", lambda v: {"stages.0.schedule.T_0": v}
    ),
    "cosine_restart_config.T_mult": _honour("stages.0.schedule.T_mult"),
    "cosine_restart_config.eta_min": _honour("stages.0.schedule.eta_min"),
    "cosine_restart_config.last_epoch": _only(
        -1, "a fresh start", "ignored by the origin; resume a run instead"
    ),
    "gamma": _GAMMA,
    "scheduler_gamma": _GAMMA,
    "learning_rate": _LR,
    "lr": _LR,
    "optimizer": _one_of(
        {"AdamW": {"optimizer": _ADAMW}, "SGD": {"optimizer": _SGD}}, "honoured", "optimizer"
    ),
    "weight_decay": _honour("optimizer.weight_decay"),
    "batch_size": _honour("batch_size"),
    "num_workers": _honour("workers"),
    "seed": _honour("seed"),
    "loss_function": _one_of(
        {
            "ce": {"loss.dice": 0.0, "loss.focal": 0.0},
            "ce_dice": {"loss.dice": 5.0, "loss.focal": 0.0},
            "ce_focal": {"loss.dice": 0.0, "loss.focal": 5.0},
        },
        "mapped",
        "loss.dice and loss.focal, at lambda 5",
    ),
    "loss_functions": _refuse("ignored by the origin; set loss_function, or sweep over losses"),
    "lambda": lambda value: ("mapped", "", {"lambda": float(value)}),
    "label_smoothing": _honour("loss.label_smoothing"),
    "class_weights": _honour("loss.class_weights"),
    "focal_gamma": _honour("loss.focal_gamma"),
    "dropout": _honour("model.dropout"),
    "decoder_dropout": _honour("model.dropout"),
    "drop_path_rate": _stages("drop_path", 1, 2),
    "gradient_clipping": _honour("clip_norm"),
    "early_stopping_patience": _stages("patience", 1, 2),
    "stage1_epochs": _honour("stages.0.epochs"),
    "stage2_epochs": _honour("stages.1.epochs"),
    "stage3_epochs": _honour("stages.2.epochs"),
    "stage2_unfreeze_layers": _stages("unfrozen_blocks", 1),
    "stage3_unfreeze_layers": _stages("unfrozen_blocks", 2),
    "progressive_training": _only(
        True, "three stages", "there are always stages; make a recipe with one"
    ),
    "model_size": _one_of(
        {
            "small": _encoder("small", 3, 6, 9, 12),
            "base": _encoder("base", 3, 6, 9, 12),
            "large": _encoder("large", 6, 12, 18, 24),
            "giant": _encoder("giant", 10, 20, 30, 40),
        },
        "mapped",
        "model.encoder and model.skip_depths",
    ),
    "mixed_precision": _one_of(
        {"true": {"precision": "auto"}, "false": {"precision": "fp32"}}, "mapped", "precision"
    ),
    "use_ema": _only(
        False, "no moving average", "the origin copied the weights and never updated the copy"
    ),
    "f1_average": _only(
        "macro",
        "f1 is the mean over classes",
        "ignored by the origin; all three F1 are always given",
    ),
    "metrics": _refuse("ignored by the origin; IoU, F1 and accuracy are always given"),
    "dice_loss_mode": _refuse("ignored by the origin; the mode follows data.mode"),
    "final_model_epoch": _refuse("ignored by the origin; best/ holds the best epoch"),
    "normalization": _refuse("ignored by the origin; the encoder's own statistics are used"),
    "random_split": _only(
        False, "the split follows data.split_seed", "a split by the clock cannot be repeated"
    ),
    "image_size": _SIZE,
    "resize": _SIZE,
    "mode": _honour("data.mode"),
    "horizontal_flip": _honour("data.augment.flip_horizontal"),
    "vertical_flip": _honour("data.augment.flip_vertical"),
    "brightness": _honour("data.augment.brightness"),
    "contrast": _honour("data.augment.contrast"),
    "saturation": _honour("data.augment.saturation"),
    "rotation_degrees": _map(
        "data.augment.rotate_degrees", lambda v: {"data.augment.rotate_degrees": float(v)}
    ),
}
_EFFECTS = {
    "rot90": "right_angle",
    "color_jitter": "hue",
    "blur": "blur",
    "elastic_transform": "elastic",
    "grid_distortion": "grid_distortion",
    "optical_distortion": "optical_distortion",
    "coarse_dropout": "coarse_dropout",
    "clahe": "clahe",
}
"""Colour jitter is hue here; its brightness, contrast and saturation are `data.augment`'s."""
_KEYS |= {key: _effect(kind) for name, kind in _EFFECTS.items() for key in (name, f"{name}.p")}
_FIRST = ("scheduler_type", "optimizer", "loss_function", "model_size")
"""Keys that set several settings at once are read before those that change one of them."""
_GAMMAS = {"gamma", "scheduler_gamma"}
_TWINS = (
    {"learning_rate", "lr"},
    _GAMMAS,
    {"dropout", "decoder_dropout"},
    {"image_size", "resize"},
    *({name, f"{name}.p"} for name in _EFFECTS),
)
