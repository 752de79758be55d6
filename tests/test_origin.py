"""The origin's configuration is read key by key: each is honoured, mapped or refused, none is
ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitseg.effects import Blur, Clahe, CoarseDropout, Elastic, GridDistortion, Hue, RightAngle
from vitseg.errors import RecipeError
from vitseg.origin import Reading, from_training_config
from vitseg.presets import giant
from vitseg.settings import SGD, CosineRestarts, Exponential

SNIPPET = {
    "scheduler_type": "cosine_restarts",
    "cosine_restart_config": {"T_0": 15, "T_mult": 1, "eta_min": 1e-7},
}


def fates(reading: Reading) -> dict[str, str]:
    return {key.key: key.fate for key in reading.keys}


@pytest.mark.parametrize("as_given", ["dict", "text", "path", "path as text"])
def test_the_bare_snippet_of_the_fix_report_is_read(as_given: str, tmp_path: Path):
    path = tmp_path / "training_config.json"
    path.write_text(json.dumps(SNIPPET), encoding="utf-8")
    given = {
        "dict": SNIPPET,
        "text": path.read_text(encoding="utf-8"),
        "path": path,
        "path as text": str(path),
    }[as_given]
    reading = from_training_config(given)
    assert reading.recipe == giant()  # the origin's own settings, which the snippet repeats
    assert reading.recipe.stages[0].schedule == CosineRestarts(T_0=15, T_mult=1, eta_min=1e-7)
    assert fates(reading) == {
        "scheduler_type": "honoured",
        "cosine_restart_config.T_0": "honoured",
        "cosine_restart_config.T_mult": "honoured",
        "cosine_restart_config.eta_min": "honoured",
    }


def test_the_snippets_numbers_are_read_not_assumed():
    """The negative control."""
    other = from_training_config(
        {"cosine_restart_config": {"T_0": 7, "T_mult": 2, "eta_min": 1e-6}}
    )
    assert other.recipe.stages[0].schedule == CosineRestarts(T_0=7, T_mult=2, eta_min=1e-6)


LANDS = [
    ({"scheduler_type": "exponential", "gamma": 0.9}, "stages.0.schedule", Exponential(gamma=0.9)),
    ({"scheduler_gamma": 0.95}, "stages.1.schedule.gamma", 0.95),
    ({"learning_rate": 1e-3}, "stages.0.lr", 1e-3),
    ({"learning_rate": 1e-3}, "stages.1.lr", 3e-4),
    ({"lr": 1e-3}, "stages.2.lr", 5e-5),
    ({"optimizer": "SGD"}, "optimizer", SGD()),
    ({"optimizer": "AdamW", "weight_decay": 0.05}, "optimizer.weight_decay", 0.05),
    ({"batch_size": 3}, "batch_size", 3),
    ({"num_workers": 2}, "workers", 2),
    ({"seed": 42}, "seed", 42),
    ({"loss_function": "ce"}, "loss.dice", 0.0),
    ({"loss_function": "ce_focal"}, "loss.focal", 5.0),
    ({"loss_function": "ce_focal", "focal_gamma": 4.0}, "loss.focal_gamma", 4.0),
    ({"loss_function": "ce_dice", "lambda": 20}, "loss.dice", 20.0),
    ({"label_smoothing": 0.1}, "loss.label_smoothing", 0.1),
    ({"class_weights": [1.0, 2.0]}, "loss.class_weights", (1.0, 2.0)),
    ({"decoder_dropout": 0.3}, "model.dropout", 0.3),
    ({"drop_path_rate": 0.2}, "stages.2.drop_path", 0.2),
    ({"gradient_clipping": 0.5}, "clip_norm", 0.5),
    ({"early_stopping_patience": 5}, "stages.1.patience", 5),
    ({"stage1_epochs": 11}, "stages.0.epochs", 11),
    ({"stage2_epochs": 12}, "stages.1.epochs", 12),
    ({"stage3_epochs": 13}, "stages.2.epochs", 13),
    ({"stage2_unfreeze_layers": 4}, "stages.1.unfrozen_blocks", 4),
    ({"stage3_unfreeze_layers": "all"}, "stages.2.unfrozen_blocks", "all"),
    ({"model_size": "large"}, "model.encoder", "facebook/dinov2-large"),
    ({"model_size": "large"}, "model.skip_depths", None),  # quarters of its depth
    ({"model_size": "giant"}, "model.skip_depths", (10, 20, 30, 40)),
    ({"mixed_precision": False}, "precision", "fp32"),
    ({"image_size": 518}, "data.size", (518, 518)),
    ({"resize": [280, 350]}, "data.size", (280, 350)),
    ({"mode": "binary"}, "data.mode", "binary"),
    ({"vertical_flip": True}, "data.augment.flip_vertical", True),
    ({"rotation_degrees": 30}, "data.augment.rotate_degrees", 30.0),
    ({"contrast": 0.4}, "data.augment.contrast", 0.4),
    ({"rot90": True}, "data.effects", (RightAngle(),)),
    ({"color_jitter": 0.3}, "data.effects", (Hue(p=0.3),)),
    ({"coarse_dropout": {"p": 0.2}}, "data.effects", (CoarseDropout(p=0.2),)),
    (
        {
            "clahe": True,
            "blur": 0.1,
            "elastic_transform": True,
            "grid_distortion": 1,
            "optical_distortion": False,
        },
        "data.effects",
        (Clahe(), Blur(p=0.1), Elastic(), GridDistortion(p=1.0)),
    ),
    (
        {
            "progressive_training": True,
            "use_ema": False,
            "random_split": False,
            "f1_average": "macro",
        },
        "seed",
        0,
    ),
]


@pytest.mark.parametrize(
    ("config", "path", "value"), LANDS, ids=[f"{json.dumps(c)} at {p}" for c, p, _ in LANDS]
)
def test_a_key_that_is_taken_lands_in_the_recipe(config: dict[str, Any], path: str, value: Any):
    reading = from_training_config(config)
    assert set(fates(reading).values()) <= {"honoured", "mapped"}
    found: Any = reading.recipe
    for name in path.split("."):
        found = found[int(name)] if isinstance(found, tuple) else getattr(found, name)
    assert found == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)


def test_preprocessing_is_read_beside_it():
    reading = from_training_config(SNIPPET, {"image_size": 224, "horizontal_flip": False})
    assert (reading.recipe.data.size, reading.recipe.data.augment.flip_horizontal) == (
        (224, 224),
        False,
    )


@pytest.mark.parametrize(
    "key",
    [
        "T_0",
        "learning_rat",
        "elastic_transform.alpha",
        "metrics",
        "loss_functions",
        "dice_loss_mode",
        "final_model_epoch",
        "normalization",
    ],
)
def test_an_unknown_or_ignored_key_is_refused_by_name_not_dropped(key: str):
    reading = from_training_config(SNIPPET | {key: 1, "batch_size": 4})
    assert fates(reading)[key] == "refused"
    with pytest.raises(RecipeError, match=rf"training_config: {key}: .*Take these keys out"):
        reading.recipe  # noqa: B018


def test_all_refused_keys_are_named_at_once():
    with pytest.raises(RecipeError) as refused:
        config = {"frobnicate": 1, "nested": {"deep": 2}, "use_ema": True, "scheduler_type": "poly"}
        from_training_config(config).recipe  # noqa: B018
    assert all(
        f"{key}: " in refused.value.problem
        for key in ("frobnicate", "nested.deep", "use_ema", "scheduler_type")
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"gamma": "0.9"}, "stages.1.schedule.gamma: got '0.9'"),
        ({"cosine_restart_config": {"T_0": 1.5}}, "stages.0.schedule.T_0: got 1.5"),
        ({"optimizer": "lion"}, "optimizer: got 'lion'; known: adamw, sgd"),
        ({"model_size": "huge"}, "model_size: got 'huge'; known: small, base, large, giant"),
        ({"loss_function": "tversky"}, "loss_function: got 'tversky'"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"rot90": True, "clahe": 3}, "data.effects.1.p: got 3"),
        ({"clahe": True, "clahe.p": 0.2}, "says the same as clahe"),
        ({"blur": "often"}, "data.effects.0.p: got 'often'"),
    ],
)
def test_a_known_key_with_an_impossible_value_is_refused(config: dict[str, Any], said: str):
    with pytest.raises(RecipeError) as refused:
        from_training_config(config).recipe  # noqa: B018
    assert said in str(refused.value)


@pytest.mark.parametrize("config", ["nowhere.json", "{broken", "[1, 2]"])
def test_a_configuration_that_cannot_be_read_is_refused(config: str):
    with pytest.raises(RecipeError, match="cannot be read as JSON"):
        from_training_config(config)


UNREADABLE = [
    {"learning_rate": "1e-4"},
    {"lambda": "five"},
    {"rotation_degrees": "x"},
    {"model_size": ["giant"]},
    {"loss_function": ["ce"]},
    {"image_size": None},
]


@pytest.mark.parametrize("config", UNREADABLE, ids=json.dumps)
def test_a_value_of_the_wrong_type_is_refused_in_plain_words(config: dict[str, Any]):
    with pytest.raises(RecipeError):
        from_training_config(config).recipe  # noqa: B018


LOST = [
    ({"weight_decay": 0.05, "optimizer": "AdamW"}, lambda r: r.optimizer.weight_decay == 0.05),
    ({"lambda": 10, "loss_function": "ce_dice"}, lambda r: r.loss.dice == 10),
    ({"lambda": 10, "loss_function": "ce_focal"}, lambda r: r.loss.focal == 10),
    ({"loss_function": "ce_focal", "lambda": 10}, lambda r: (r.loss.focal, r.loss.dice) == (10, 0)),
    (
        {"scheduler_type": "exponential", "cosine_restart_config": {"T_0": 7}},
        lambda r: r.stages[0].schedule.T_0 == 7,
    ),
    ({"learning_rate": None}, lambda r: False),
    ({"learning_rate": 1e-3, "lr": 1e-4}, lambda r: False),
]


@pytest.mark.parametrize(("config", "landed"), LOST, ids=[json.dumps(c) for c, _ in LOST])
def test_a_key_that_is_taken_is_not_lost_to_another(config: dict[str, Any], landed):
    """It lands in the recipe, or is refused."""
    try:
        recipe = from_training_config(config).recipe
    except RecipeError:
        return
    assert landed(recipe)


def test_what_one_configuration_says_does_not_leak_into_the_next():
    from_training_config({"scheduler_type": "exponential", "gamma": 0.5}).recipe  # noqa: B018
    other = from_training_config({"scheduler_type": "exponential"}).recipe
    assert other.stages[0].schedule == Exponential()
