"""Recipes to begin with: a quick one, the origin's, and whatever an origin-style training_config.json says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitseg.errors import RecipeError
from vitseg.recipe import SGD, AdamW, CosineRestarts, Data, Exponential, Folder, Generated, Loss, Model, Recipe, Stage


def quick(folder: str | Path | None = None) -> Recipe:
    """Three stages on DINOv2-small. Without a folder: the built-in generated images, minutes on two CPU cores.

    With a folder of images and masks: more pixels and more epochs, since real images are worth them.
    """
    if folder is None:
        return Recipe(name="quick", data=Data(source=Generated()), batch_size=6, stages=_three_stages(6, 3, 3))
    data = Data(source=_folder(folder), size=(224, 224))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(folder).resolve().name).strip("-.")[:40] or "run"
    return Recipe(name=name, data=data, stages=_three_stages(16, 6, 6))


def _folder(path: str | Path) -> Folder:
    """Absolute, so that the run can be reported and resumed from elsewhere."""
    return Folder(path=str(Path(path).expanduser().absolute()))


def _three_stages(first: int, second: int, third: int) -> tuple[Stage, ...]:
    return (
        Stage(name="Frozen encoder", unfrozen_blocks=0, epochs=first, lr=2e-3, schedule=CosineRestarts()),
        Stage(name="Last blocks", unfrozen_blocks=2, epochs=second, lr=6e-4, schedule=Exponential(gamma=0.8),
              encoder_lr_factor=0.1),
        Stage(name="Deeper", unfrozen_blocks=4, epochs=third, lr=1e-4, schedule=Exponential(gamma=0.8),
              encoder_lr_factor=0.1),
    )  # fmt: skip


def giant(folder: str | Path | None = None) -> Recipe:
    """The origin's settings: DINOv2-giant, 30 + 30 + 40 epochs, the last 8, then 16 blocks, LR 2e-4 x 1, 0.3, 0.05.

    As the origin meant them: the freezing is real, the burn-in is counted once a stage. Needs a GPU, and the hub.
    """
    source = Generated(classes=10, side=384) if folder is None else _folder(folder)
    stages = (
        Stage(name="Frozen encoder", unfrozen_blocks=0, epochs=30, lr=2e-4, schedule=CosineRestarts()),
        Stage(name="Last 8 blocks", unfrozen_blocks=8, epochs=30, lr=2e-4 * 0.3, drop_path=0.1, patience=15),
        Stage(name="Last 16 blocks", unfrozen_blocks=16, epochs=40, lr=2e-4 * 0.05, drop_path=0.1, patience=15),
    )
    return Recipe(
        name="giant",
        data=Data(source=source, size=(384, 384)),
        model=Model(encoder="facebook/dinov2-giant", decoder="unet", skip_depths=(10, 20, 30, 40), dropout=0.5),
        stages=stages,
        loss=Loss(dice=5.0),
        optimizer=AdamW(weight_decay=1e-5),
        clip_norm=0.1,
    )


@dataclass(frozen=True, slots=True)
class KeyFate:
    """What became of one key: "honoured" as it stands, "mapped" to a setting of ours, or "refused"."""

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
        """The recipe. Raises RecipeError, naming every refused key: none is ignored."""
        if refused := [k for k in self.keys if k.fate == "refused"]:
            lines = "; ".join(f"{k.key}: {k.meaning}" for k in refused)
            raise RecipeError(f"training_config: {lines}.", "Take these keys out, or change them as they say.")
        return giant().replace(self.changes)


def from_training_config(
    config: str | Path | dict[str, Any], preprocessing: str | Path | dict[str, Any] | None = None
) -> Reading:
    """Read the origin's `training_config.json` and `preprocessing_config.json`: paths, JSON text, or dicts.

    Starts from `giant()`, the origin's own settings, and says of every key whether it is honoured, mapped or
    refused. A fragment, such as the one in the origin's fix report, is enough.
    """
    fates: list[KeyFate] = []
    changes: dict[str, Any] = {}
    values = _flat(_read(config)) | _flat(_read(preprocessing) if preprocessing is not None else {})
    for key, value in values.items():
        reader = _KEYS.get(key)
        if reader is None:
            fates.append(KeyFate(key, value, "refused", "no setting of that name is known here"))
            continue
        fate, meaning, settings = reader(value)
        fates.append(KeyFate(key, value, fate, meaning))
        for path, setting in settings.items():
            changes[path] = {**changes.get(path, {}), **setting} if isinstance(setting, dict) else setting
    return Reading(tuple(fates), _complete(changes))


def _complete(changes: dict[str, Any]) -> dict[str, Any]:
    """Schedules in one piece: T_0 and eta_min belong to the cosine, gamma to the exponential, of each stage."""
    parts = {k.removeprefix("_"): changes.pop(k) for k in list(changes) if k.startswith("_")}
    kinds = {"cosine_restarts": parts.get("cosine", {}), "exponential": parts.get("exponential", {})}
    for index, default in enumerate(("cosine_restarts", "exponential", "exponential")):
        kind = parts.get("scheduler", {}).get("kind", default) if index == 0 else default
        changes[f"stages.{index}.schedule"] = {"kind": kind} | kinds[kind]
    factor = parts.get("lr", {}).get("value")
    if factor is not None:
        changes |= {f"stages.{i}.lr": factor * share for i, share in enumerate((1, 0.3, 0.05))}
    return changes


def _read(config: str | Path | dict[str, Any]) -> dict[str, Any]:
    if isinstance(config, dict):
        return config
    text = config if isinstance(config, str) and config.lstrip().startswith("{") else None
    try:
        found = json.loads(Path(config).read_text(encoding="utf-8") if text is None else text)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{str(config)[:80]}: cannot be read as JSON ({error}).", "Give a path, JSON text or a dict."
        ) from None
    if not isinstance(found, dict):
        raise RecipeError(f"{str(config)[:80]}: holds {type(found).__name__}, not an object of settings.")
    return found


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as dotted keys; a list is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _honour(path: str, meaning: str = ""):
    return lambda value: ("honoured", meaning or path, {path: value})


def _map(meaning: str, settings):
    return lambda value: ("mapped", meaning, settings(value))


def _only(allowed: Any, meaning: str, otherwise: str):
    """Honoured while it asks for what is so anyway."""
    return lambda value: ("honoured", meaning, {}) if value == allowed else ("refused", otherwise, {})


def _refuse(why: str):
    return lambda value: ("refused", why, {})


def _scheduler(value: Any) -> tuple[str, str, dict[str, Any]]:
    if value not in ("cosine_restarts", "exponential"):
        return "refused", f"got {value!r}; known: cosine_restarts, exponential", {}
    meaning = "stages.0.schedule; the origin's stages 2 and 3 are exponential whatever this says"
    return "honoured", meaning, {"_scheduler": {"kind": value}}


def _optimizer(value: Any) -> tuple[str, str, dict[str, Any]]:
    known = {"adamw": AdamW(weight_decay=1e-5), "sgd": SGD()}
    if str(value).lower() not in known:
        return "refused", f"got {value!r}; known: AdamW, SGD", {}
    return "honoured", "optimizer", {"optimizer": json.loads(known[str(value).lower()].model_dump_json())}


def _model_size(value: Any) -> tuple[str, str, dict[str, Any]]:
    depths = {"small": (3, 6, 9, 12), "base": (3, 6, 9, 12), "large": (6, 12, 18, 24), "giant": (10, 20, 30, 40)}
    if value not in depths:
        return "refused", f"got {value!r}; known: {', '.join(depths)}", {}
    settings = {"model.encoder": f"facebook/dinov2-{value}", "model.skip_depths": list(depths[value])}
    return "mapped", "model.encoder and model.skip_depths", settings


def _loss(value: Any) -> tuple[str, str, dict[str, Any]]:
    known = {"ce": (0, 0), "ce_dice": (1, 0), "ce_focal": (0, 1)}
    if value not in known:
        return "refused", f"got {value!r}; known: {', '.join(known)}; `vitseg` tries several with a sweep", {}
    dice, focal = known[value]
    return "mapped", "loss.dice and loss.focal", {"loss.dice": 5.0 * dice, "loss.focal": 5.0 * focal}


_SIZE = _map("data.size (height, width)", lambda v: {"data.size": [v, v] if isinstance(v, int) else list(v)})
_LR = _map("stages.*.lr, times 1, 0.3 and 0.05", lambda v: {"_lr": {"value": v}})
_KEYS = {
    "scheduler_type": _scheduler,
    "cosine_restart_config.T_0": _map("schedule.T_0, in batches", lambda v: {"_cosine": {"T_0": v}}),
    "cosine_restart_config.T_mult": _map("schedule.T_mult", lambda v: {"_cosine": {"T_mult": v}}),
    "cosine_restart_config.eta_min": _map("schedule.eta_min", lambda v: {"_cosine": {"eta_min": v}}),
    "cosine_restart_config.last_epoch": _only(-1, "a fresh start", "ignored by the origin; resume a run instead"),
    "gamma": _map("schedule.gamma, once per epoch", lambda v: {"_exponential": {"gamma": v}}),
    "scheduler_gamma": _map("schedule.gamma, once per epoch", lambda v: {"_exponential": {"gamma": v}}),
    "learning_rate": _LR,
    "lr": _LR,
    "optimizer": _optimizer,
    "weight_decay": _honour("optimizer.weight_decay"),
    "batch_size": _honour("batch_size"),
    "num_workers": _honour("workers"),
    "seed": _honour("seed"),
    "loss_function": _loss,
    "loss_functions": _refuse("ignored by the origin; set loss_function, or sweep over losses"),
    "lambda": _map("loss.dice", lambda v: {"loss.dice": float(v)}),
    "label_smoothing": _honour("loss.label_smoothing"),
    "class_weights": _honour("loss.class_weights"),
    "focal_gamma": _honour("loss.focal_gamma"),
    "dropout": _honour("model.dropout"),
    "decoder_dropout": _honour("model.dropout"),
    "drop_path_rate": _map("drop_path of stages 2 and 3", lambda v: {f"stages.{i}.drop_path": v for i in (1, 2)}),
    "gradient_clipping": _honour("clip_norm"),
    "early_stopping_patience": _map("patience of stages 2 and 3", lambda v: {f"stages.{i}.patience": v for i in (1, 2)}),
    "stage1_epochs": _honour("stages.0.epochs"),
    "stage2_epochs": _honour("stages.1.epochs"),
    "stage3_epochs": _honour("stages.2.epochs"),
    "stage2_unfreeze_layers": _map("stages.1.unfrozen_blocks", lambda v: {"stages.1.unfrozen_blocks": v}),
    "stage3_unfreeze_layers": _map("stages.2.unfrozen_blocks", lambda v: {"stages.2.unfrozen_blocks": v}),
    "progressive_training": _only(True, "three stages", "there are always stages; make a recipe with one"),
    "model_size": _model_size,
    "mixed_precision": _map("precision", lambda v: {"precision": "auto" if v else "fp32"}),
    "use_ema": _only(False, "no moving average", "the origin copied the weights and never updated the copy"),
    "f1_average": _only("macro", "f1 is the mean over classes", "ignored by the origin; all three F1 are always given"),
    "metrics": _refuse("ignored by the origin; IoU, F1 and accuracy are always given"),
    "dice_loss_mode": _refuse("ignored by the origin; the mode follows data.mode"),
    "final_model_epoch": _refuse("ignored by the origin; best/ holds the best epoch"),
    "normalization": _refuse("ignored by the origin; the encoder's own statistics are used"),
    "random_split": _only(False, "the split follows data.split_seed", "a split by the clock cannot be repeated"),
    "image_size": _SIZE,
    "resize": _SIZE,
    "mode": _honour("data.mode"),
    "horizontal_flip": _honour("data.augment.flip_horizontal"),
    "vertical_flip": _honour("data.augment.flip_vertical"),
    "rotation_degrees": _map("data.augment.rotate_degrees", lambda v: {"data.augment.rotate_degrees": float(v)}),
}  # fmt: skip
