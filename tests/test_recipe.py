"""A recipe is checked when it is made: nothing misspelt, converted, out of range or without effect
gets through.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitseg.effects import (
    Blur,
    Clahe,
    CoarseDropout,
    Crop,
    Elastic,
    GridDistortion,
    Hue,
    OpticalDistortion,
    RightAngle,
)
from vitseg.errors import RecipeError
from vitseg.plan import preview
from vitseg.presets import giant, quick, whole_encoder
from vitseg.recipe import Recipe, load_recipe, parse
from vitseg.settings import (
    SGD,
    AdamW,
    Augment,
    Constant,
    CosineRestarts,
    Data,
    Exponential,
    Folder,
    Generated,
    Loss,
    Model,
    Stage,
    WarmupPoly,
)

STAGE = {"name": "one", "unfrozen_blocks": 1, "epochs": 2, "lr": 1e-3}
FROZEN = STAGE | {"unfrozen_blocks": 0}
EFFECTS = (
    RightAngle,
    Hue,
    Blur,
    Elastic,
    GridDistortion,
    OpticalDistortion,
    CoarseDropout,
    Clahe,
    Crop,
)
NAN, INF = math.nan, math.inf


def stage(**settings: Any) -> Stage:
    return Stage(**STAGE | settings)


def make(cls: type, settings: dict[str, Any]) -> Any:
    return cls(
        **(STAGE if cls is Stage else {"stages": (stage(),)} if cls is Recipe else {}) | settings
    )


def refusal(cls: type, settings: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as refused:
        make(cls, settings)
    return str(refused.value)


# ---------------------------------------------------------------------- one setting at a time


@pytest.mark.parametrize(
    ("cls", "misspelt", "meant"),
    [
        (Stage, "freeze_dept", None),
        (Stage, "unfrozen_block", "unfrozen_blocks (of Stage)"),
        (Stage, "learning_rate", None),
        (Stage, "shedule", "schedule (of Stage)"),
        (Exponential, "gama", "gamma (of Exponential)"),
        (CosineRestarts, "T0", "T_0 (of CosineRestarts)"),
        (Loss, "dise", "dice (of Loss)"),
        (Recipe, "batchsize", "batch_size (of Recipe)"),
        (Data, "view", "views (of Data)"),
        (Recipe, "SEED", "seed (of Recipe)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_spelling_and_where_it_belongs(
    cls: type, misspelt: str, meant: str | None
):
    hint = f"; did you mean {meant}?" if meant else "."
    assert (
        refusal(cls, {misspelt: 1}) == f"{cls.__name__} refused. {misspelt}: unknown setting{hint}"
    )


def test_a_value_that_might_be_of_two_kinds_is_refused_once():
    said = refusal(Stage, {"name": "x", "unfrozen_blocks": -1, "epochs": 1, "lr": 0.1})
    assert (
        said
        == "Stage refused. unfrozen_blocks: got -1; allowed: greater than or equal to 0 or 'all'."
    )


def test_a_setting_in_the_wrong_place_is_told_where_it_belongs():
    assert (
        refusal(Recipe, {"gamma": 1})
        == "Recipe refused. gamma: unknown setting; gamma is a setting of Exponential."
    )


CONVERSIONS = [
    (Stage, "lr", "1e-4", "a valid number"),
    (Stage, "lr", True, "a valid number"),
    (Stage, "lr", None, "a valid number"),
    (Stage, "epochs", True, "a valid integer"),
    (Stage, "epochs", 3.0, "a valid integer"),
    (Stage, "epochs", "3", "a valid integer"),
    (Stage, "unfrozen_blocks", 2.0, "a valid integer"),
    (Stage, "unfrozen_blocks", True, "a valid integer"),
    (Stage, "name", 3, "a valid string"),
    (Recipe, "seed", False, "a valid integer"),
    (Recipe, "seed", None, "a valid integer"),
    (Augment, "flip_vertical", 1, "a valid boolean"),
    (Augment, "flip_vertical", "yes", "a valid boolean"),
    (CosineRestarts, "T_0", 15.0, "a valid integer"),
]
OUT_OF_RANGE = [
    *[
        (Stage, "lr", lr, said)
        for lr, said in (
            (0.0, "greater than 0"),
            (-1e-3, "greater than 0"),
            (1e3, "less than or equal to 1"),
        )
    ],
    *[(Stage, "lr", lr, "a finite number") for lr in (NAN, INF, -INF)],
    *[
        (Exponential, "gamma", g, said)
        for g, said in (
            (0.0, "greater than 0"),
            (-1.0, "greater than 0"),
            (2.0, "less than or equal to 1"),
        )
    ],
    (Exponential, "gamma", NAN, "a finite number"),
    *[(CosineRestarts, "T_0", t, "greater than or equal to 1") for t in (0, -3)],
    (CosineRestarts, "T_mult", 0, "greater than or equal to 1"),
    (CosineRestarts, "eta_min", -1e-9, "greater than or equal to 0"),
    (CosineRestarts, "burn_in_batches", -1, "greater than or equal to 0"),
    (CosineRestarts, "unit", "step", "'batch' or 'epoch'"),
    (WarmupPoly, "warmup_batches", -1, "greater than or equal to 0"),
    (WarmupPoly, "power", 0.0, "greater than 0"),
    (Stage, "epochs", 0, "greater than or equal to 1"),
    (Stage, "unfrozen_blocks", -1, "greater than or equal to 0"),
    (Stage, "unfrozen_blocks", "every", "a valid integer or 'all'"),
    (Stage, "drop_path", 1.0, "less than 1"),
    (Stage, "layer_decay", 0.0, "greater than 0"),
    (Stage, "encoder_lr_factor", 1.5, "less than or equal to 1"),
    (Stage, "patience", 0, "greater than or equal to 1"),
    (Loss, "focal", NAN, "a finite number"),
    (Loss, "dice", -1.0, "greater than or equal to 0"),
    (Loss, "label_smoothing", 1.0, "less than 1"),
    (AdamW, "weight_decay", -0.1, "greater than or equal to 0"),
    (SGD, "momentum", 1.0, "less than 1"),
    (Data, "validation_fraction", 0.0, "greater than 0"),
    (Data, "validation_fraction", 1.0, "less than 1"),
    (Data, "views", 0, "greater than or equal to 1"),
    (Data, "views", "stale", "a valid integer or 'fresh'"),
    (Augment, "rotate_degrees", 181.0, "less than or equal to 180"),
    (Augment, "zoom", 1.0, "less than 1"),
    *[(effect, "p", 0.0, "greater than 0") for effect in EFFECTS],
    *[(effect, "p", 1.5, "less than or equal to 1") for effect in EFFECTS],
    (Hue, "degrees", 181.0, "less than or equal to 180"),
    (Blur, "sigma_pixels", 0.0, "greater than 0"),
    (Elastic, "strength", 0.5, "less than or equal to 0.4"),
    (Elastic, "cells", 1, "greater than or equal to 2"),
    (GridDistortion, "strength", 1.0, "less than or equal to 0.9"),
    (OpticalDistortion, "strength", 0.5, "less than or equal to 0.3"),
    (CoarseDropout, "holes", 0, "greater than or equal to 1"),
    (CoarseDropout, "side", 0.6, "less than or equal to 0.5"),
    (Clahe, "clip_limit", 0.5, "greater than or equal to 1"),
    (Clahe, "cells", 13, "less than or equal to 12"),
    (Crop, "margin", -0.1, "greater than or equal to 0"),
    (Model, "dropout", 1.0, "less than 1"),
    (Model, "decoder", "fpn", "'lean', 'unet' or 'linear'"),
    (Recipe, "batch_size", 0, "greater than or equal to 1"),
    (Recipe, "clip_norm", 0.0, "greater than 0"),
    (Recipe, "device", "tpu", "'auto', 'cpu', 'cuda' or 'mps'"),
    (Recipe, "precision", "fp8", "'auto', 'fp32', 'bf16' or 'fp16'"),
    (Recipe, "workers", -1, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("cls", "field", "value", "allowed"), CONVERSIONS + OUT_OF_RANGE)
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(
    cls: type, field: str, value: Any, allowed: str
):
    assert f"{field}: got {value!r}; allowed: {allowed}" in refusal(cls, {field: value})


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "with space", "x" * 65])
def test_a_name_that_could_leave_the_runs_folder_is_refused(name: str):
    assert f"name: got {name!r}" in refusal(Recipe, {"name": name})


def test_every_wrong_setting_is_named_at_once():
    said = refusal(Stage, {"lr": 0.0, "epochs": 0, "gamma": 1})
    assert all(part in said for part in ("lr: got 0.0", "epochs: got 0", "gamma: unknown setting"))


WITHOUT_EFFECT = [
    (Stage, {"unfrozen_blocks": 0, "encoder_lr_factor": 0.1}, "encoder_lr_factor=0.1"),
    (Stage, {"unfrozen_blocks": 0, "layer_decay": 0.8}, "layer_decay=0.8"),
    (Stage, {"unfrozen_blocks": 0, "drop_path": 0.1}, "drop_path=0.1"),
    (Loss, {"focal_gamma": 4.0}, "focal_gamma=4.0"),
    (Loss, {"dice": 0.0, "dice_over": "batch"}, "dice_over='batch'"),
    (Loss, {"cross_entropy": 0.0, "class_weights": (1.0, 2.0)}, "class_weights=(1.0, 2.0)"),
    (Loss, {"cross_entropy": 0.0, "label_smoothing": 0.1}, "label_smoothing=0.1"),
    (Folder, {"path": "x", "encoding": "index", "grey_factor": 15}, "grey_factor=15"),
    (Folder, {"path": "x", "encoding": "grey", "colors": ((0, 0, 0),)}, "colors=((0, 0, 0),)"),
    (Data, {"mode": "binary", "score_background": False}, "score_background=False"),
    (Data, {"views": 1, "view_seed": 3}, "view_seed=3"),
    (Data, {"views": 1, "effects": (Hue(),)}, "effects=(Hue(kind='hue', p=0.5, degrees=15.0),)"),
    (Data, {"views": 1, "crop": Crop()}, "crop=Crop(p=0.5, margin=0.25)"),
]


@pytest.mark.parametrize(
    ("cls", "settings", "what"), WITHOUT_EFFECT, ids=[w for _, _, w in WITHOUT_EFFECT]
)
def test_a_setting_without_effect_is_refused(cls: type, settings: dict[str, Any], what: str):
    field, value = what.split("=", maxsplit=1)
    says = f"{field}: got {value}, which has no effect here; leave it out."
    assert says in refusal(cls, settings)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (
            Stage,
            {"unfrozen_blocks": 2, "encoder_lr_factor": 0.1, "layer_decay": 0.8, "drop_path": 0.1},
        ),
        (Loss, {"focal": 1.0, "focal_gamma": 4.0}),
        (Loss, {"cross_entropy": 0.0, "dice": 0.0, "focal": 1.0, "class_weights": (1.0, 2.0)}),
        (Loss, {"dice_over": "batch", "label_smoothing": 0.1, "class_weights": (1.0, 2.0)}),
        (Data, {"views": 2, "view_seed": 3, "effects": (Hue(),), "crop": Crop()}),
    ],
)
def test_the_same_setting_is_taken_where_it_has_an_effect(cls: type, settings: dict[str, Any]):
    assert {k: getattr(make(cls, settings), k) for k in settings} == settings


def test_grey_masks_need_their_factor():
    with pytest.raises(RecipeError):
        Folder(path="x", encoding="grey")


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (Loss, {"cross_entropy": 0.0, "dice": 0.0}, "there is nothing to minimise"),
        (
            Stage,
            {"schedule": CosineRestarts(eta_min=1e-3)},
            "schedule.eta_min: got 0.001; allowed: below lr=0.001.",
        ),
        (Model, {"skip_depths": (3, 6, 6, 12)}, "skip_depths must rise"),
        (Model, {"skip_depths": (12, 9, 6, 3)}, "skip_depths must rise"),
        (
            Recipe,
            {"accumulate": 2, "loss": Loss(dice_over="batch")},
            'loss.dice_over="batch" needs the whole batch at once',
        ),
        (Recipe, {"stages": ()}, "at least 1 item"),
        (
            Data,
            {"views": 1, "augment": Augment(zoom=0.5)},
            "saturation=0.2), which has no effect here; leave it out.",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    cls: type, settings: dict[str, Any], said: str
):
    assert said in refusal(cls, settings)


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        quick().seed = 3


# ---------------------------------------------------------------------- edits by path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 7),
        ("stages.1.lr", 5e-4),
        ("stages.2.unfrozen_blocks", "all"),
        ("stages.0.schedule.T_0", 3),
        ("data.augment.zoom", 0.5),
        ("data.effects", (Blur(), Hue(p=1.0))),
        ("data.crop", Crop(p=1.0)),
        ("model.skip_depths", (1, 2, 3, 4)),
        ("clip_norm", None),
        ("loss", Loss(dice=2.0)),
        ("stages.1.schedule", WarmupPoly(power=1.0)),
        ("data.source", Folder(path="somewhere", classes=("a", "b"))),
    ],
)
def test_replace_changes_the_setting_at_a_path_and_nothing_else(path: str, value: Any):
    before = quick()
    found: Any = before.replace({path: value})
    assert before == quick()
    assert before.replace({path: value}) != before
    *parents, last = path.split(".")
    kept: Any = before
    for name in parents:
        found, kept = (
            x[int(name)] if isinstance(x, tuple) else getattr(x, name) for x in (found, kept)
        )
    assert getattr(found, last) == value
    assert found.model_copy(update={last: getattr(kept, last)}) == kept


def test_replace_makes_several_changes_at_once():
    changed = quick().replace({"stages.0.epochs": 1, "stages.1.epochs": 2, "name": "both"})
    assert (changed.name, *[s.epochs for s in changed.stages]) == ("both", 1, 2, 3)


def test_replace_with_nothing_is_the_same_recipe():
    assert quick().replace({}) == quick()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages.1.lr": 0.0}, "stages.1.lr: got 0.0; allowed: greater than 0"),
        ({"stages.1.lr": "1e-4"}, "stages.1.lr: got '1e-4'; allowed: a valid number"),
        ({"stages.1.epochs": True}, "stages.1.epochs: got True; allowed: a valid integer"),
        ({"stages.1.epochs": 3.0}, "stages.1.epochs: got 3.0; allowed: a valid integer"),
        ({"stages.0.lr": NAN}, "stages.0.lr: got nan; allowed: a finite number"),
        ({"stages.0.lr": INF}, "stages.0.lr: got inf; allowed: a finite number"),
        (
            {"stages.1.schedule.gamma": 1.5},
            "stages.1.schedule.gamma: got 1.5; allowed: less than or equal to 1",
        ),
        (
            {"stages.0.schedule.burn_in_batches": -1},
            "stages.0.schedule.burn_in_batches: got -1; allowed: greater than",
        ),
        (
            {"stages.0.encoder_lr_factor": 0.5},
            "stages.0.encoder_lr_factor: got 0.5, which has no effect here; leave it out",
        ),
        (
            {"stages.1.unfrozen_blocks": 0},
            "stages.1.encoder_lr_factor: got 0.1, which has no effect here; leave it out",
        ),
        (
            {"stages.1.schedule.kind": "cosine"},
            "'cosine_restarts', 'exponential', 'constant', 'warmup_poly'",
        ),
        ({"stages": []}, "stages: got []; allowed: "),
    ],
)
def test_replace_checks_like_a_new_recipe_and_names_the_path(changes: dict[str, Any], said: str):
    with pytest.raises(RecipeError) as refused:
        quick().replace(changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("stages.1.lrr", "stages.1.lrr: unknown setting; did you mean lr (of Stage)?"),
        ("sed", "sed: unknown setting; did you mean seed"),
        ("stages.3.lr", "stages.3.lr: there is no such setting; possible at that place: 0..2"),
        (
            "stages.first.lr",
            "stages.first.lr: there is no such setting; possible at that place: 0..2",
        ),
        ("stags.1.lr", "stags: unknown setting; did you mean stages (of Recipe)?"),
        ("seed.x", "seed.x: there is no such setting; possible at that place: none"),
        ("stages.0.schedule.gamma", "stages.0.schedule.gamma: unknown setting"),
        ("data.source.path", "data.source.path: unknown setting"),
        ("", "unknown setting"),
    ],
)
def test_replace_refuses_unknown_paths_and_says_what_there_is(path: str, said: str):
    with pytest.raises(RecipeError) as refused:
        quick().replace({path: 1})
    assert said in str(refused.value)


def test_pydantics_own_copy_would_have_taken_it():
    """The negative control: why `replace` exists."""
    assert quick().stages[0].model_copy(update={"lr": "fast"}).lr == "fast"


def test_replace_takes_settings_within_a_tuple():
    recipe = quick()
    shorter = recipe.replace({"stages": recipe.stages[:2], "stages.1.epochs": 1})
    assert [s.epochs for s in shorter.stages] == [6, 1] and shorter.stages[0] == recipe.stages[0]


def test_replace_with_a_value_that_json_cannot_hold_is_refused_in_plain_words():
    with pytest.raises(RecipeError, match=r"data\.source\.path: .*object.*Give numbers"):
        quick(Path("somewhere")).replace({"data.source.path": object()})


def test_replace_takes_a_path_for_its_text():
    recipe = quick(Path("somewhere")).replace({"data.source.path": Path("elsewhere")})
    assert recipe.data.source.path == "elsewhere"


# ---------------------------------------------------------------------- on disk


@pytest.mark.parametrize(
    "recipe",
    [quick(), quick("some/folder"), giant(), giant("f"), whole_encoder("f" * 60)],
    ids=["quick", "quick+data", "giant", "giant+data", "whole"],
)
def test_a_recipe_comes_back_from_json_as_it_was(recipe: Recipe, tmp_path: Path):
    recipe.save(tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    assert parse(recipe.model_dump_json()) == recipe


def test_every_kind_of_part_comes_back_from_json(tiny_recipe: Recipe):
    recipe = tiny_recipe.replace(
        {
            "optimizer": SGD(momentum=0.5),
            "stages.0.schedule": WarmupPoly(warmup_batches=3),
            "stages.1.schedule": Constant(),
            "data.source": Folder(
                path="x",
                encoding="rgb",
                colors=((0, 0, 0), (1, 2, 3)),
                classes=("a", "b"),
                ignore_value=9,
            ),
            "data.views": "fresh",
            "data.effects": tuple(kind() for kind in EFFECTS[:-1]),
            "data.crop": Crop(margin=0.0),
            "loss": Loss(focal=1.0, focal_gamma=4.0, class_weights=(1.0, 2.5)),
        }
    )
    assert parse(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{nope", "Invalid JSON"),
        ("[]", "got []; allowed: an object"),
        ("", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (
            json.dumps({"stages": [STAGE | {"lr": NAN}]}),
            "stages.0.lr: got nan; allowed: a finite number",
        ),
        (
            json.dumps({"stages": [STAGE | {"epochs": 3.0}]}),
            "stages.0.epochs: got 3.0; allowed: a valid integer",
        ),
        (json.dumps({"stages": [{"name": "one"}]}), "stages.0.unfrozen_blocks: needs a value."),
        (
            json.dumps({"stages": [FROZEN | {"drop_path": 0.1}]}),
            "stages.0.drop_path: got 0.1, which has no effect here",
        ),
        (json.dumps({"seed": 1}), "stages: needs a value."),
    ],
)
def test_a_file_that_holds_no_recipe_is_refused_with_its_path(
    text: str | bytes, said: str, tmp_path: Path
):
    path = tmp_path / "recipe.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert refused.value.problem.startswith(f"{path}: Recipe refused. ")
    assert said in refused.value.problem


def test_a_recipe_that_is_not_there_is_refused_with_its_path(tmp_path: Path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(
            RecipeError, match=rf"{path}: cannot be read .*Give the path of a recipe\.json"
        ):
            load_recipe(path)


def test_a_long_file_that_holds_no_recipe_is_not_repeated_in_full():
    with pytest.raises(RecipeError) as refused:
        parse("x" * 5000)
    assert len(str(refused.value)) < 1000


# ---------------------------------------------------------------------- presets


def test_giant_is_the_origins_plan():
    stages = giant().stages
    assert [s.epochs for s in stages] == [30, 30, 40]
    assert [s.unfrozen_blocks for s in stages] == [0, 8, 16]
    assert [s.lr for s in stages] == pytest.approx([2e-4, 6e-5, 1e-5], rel=1e-12)
    assert stages[0].schedule == CosineRestarts(
        T_0=15, T_mult=1, eta_min=1e-7, burn_in_batches=60, unit="batch"
    )
    assert stages[1].schedule == stages[2].schedule == Exponential(gamma=0.999)
    assert giant().model == Model(
        encoder="facebook/dinov2-giant", decoder="unet", skip_depths=(10, 20, 30, 40), dropout=0.5
    )
    assert (giant().clip_norm, giant().optimizer) == (0.1, AdamW(weight_decay=1e-5))


def test_quick_needs_no_files_and_unfreezes_step_by_step():
    assert quick().data.source == Generated()
    assert quick().model.encoder == "dinov2-small-packaged"
    assert [s.unfrozen_blocks for s in quick().stages] == [0, 2, 4]


def test_the_whole_encoder_trains_for_as_many_epochs_as_quick_after_its_decoder_has_warmed_up():
    recipe = whole_encoder()
    assert [s.unfrozen_blocks for s in recipe.stages] == [0, "all"] and recipe.stages[
        1
    ].layer_decay == 0.8
    assert sum(s.epochs for s in recipe.stages) == sum(s.epochs for s in quick().stages)
    assert recipe.stages[1].lr * recipe.stages[1].encoder_lr_factor == pytest.approx(1e-4)
    assert recipe.replace({"name": "quick", "stages": quick().stages}) == quick()


def test_presets_take_a_folder_and_keep_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    expected = Folder(path=str(tmp_path / "my" / "wounds"))
    assert quick("my/wounds").data.source == giant("my/wounds").data.source == expected
    assert quick("my/wounds").name == "wounds"


@pytest.mark.parametrize(
    ("sizes", "canvas"),
    [
        ([(480, 360)], (252, 336)),  # (width, height) as Pillow has it
        ([(360, 480)], (336, 252)),
        ([(256, 256)], (252, 252)),
        ([(300, 300), (480, 360), (480, 360)], (252, 336)),  # the median image
        ([(2000, 100)], (252, 504)),  # 1:2 at most
        ([], (252, 252)),
    ],
)
@pytest.mark.parametrize("place", ["images", "train/images"])
def test_quick_takes_the_proportions_of_the_images(sizes, canvas, place, tmp_path: Path):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "notes.txt").write_text("no image")
    for i, size in enumerate(sizes):
        Image.new("L", size).save(tmp_path / place / f"{i}.png")
    assert quick(tmp_path).data.size == canvas


@pytest.mark.parametrize(
    ("images", "epochs"), [(0, [6, 13, 9]), (12, [6, 13, 9]), (320, [2, 4, 3]), (2000, [1, 3, 2])]
)
def test_quick_trains_about_as_long_whatever_the_folder_holds(
    images: int, epochs: list[int], tmp_path: Path
):
    (tmp_path / "images").mkdir()
    for i in range(images):
        (tmp_path / "images" / f"{i}.png").touch()
    assert [stage.epochs for stage in quick(tmp_path).stages] == epochs


@pytest.mark.parametrize(
    ("images", "warmup"), [(4, [1, 2, 1]), (12, [3, 7, 5]), (320, [20, 20, 20])]
)
def test_quick_warms_each_stage_up_for_a_fifth_of_it_at_most_and_ends_near_0(
    images: int, warmup: list[int], tmp_path: Path
):
    (tmp_path / "images").mkdir()
    for i in range(images):
        (tmp_path / "images" / f"{i}.png").touch()
    recipe = quick(tmp_path)
    assert [stage.schedule.warmup_batches for stage in recipe.stages] == warmup
    planned = preview(recipe, -(-round(0.8 * images) // 4))
    for number, stage in enumerate(recipe.stages, start=1):
        lrs = [point.lr for point in planned if point.stage == number]
        assert max(lrs) == stage.lr and lrs[-1] < 0.25 * stage.lr


def test_quick_of_a_folder_unfreezes_six_then_eight_blocks_the_last_at_1e_4_then_half(
    tmp_path: Path,
):
    stages = quick(tmp_path).stages
    assert [
        (s.unfrozen_blocks, s.lr, s.lr * s.encoder_lr_factor, s.layer_decay) for s in stages[1:]
    ] == [(6, 1e-3, 1e-4, 0.8), (8, 5e-4, 5e-5, 0.8)]
    assert (stages[0].unfrozen_blocks, stages[0].lr) == (0, 2e-3)


def test_quick_sees_an_image_upright(tmp_path: Path):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (480, 360)).save(tmp_path / "images" / "a.jpg", exif=exif)
    assert quick(tmp_path).data.size == (336, 252)


@pytest.mark.parametrize("name", ["My wounds", "Füße", "漢字", "-x-", "_data", "a" * 200])
def test_quick_takes_a_folder_of_any_name(name: str, tmp_path: Path):
    assert quick(tmp_path / name).data.source.path == str(tmp_path / name)
