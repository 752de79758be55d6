"""What is to be done: a recipe, in the words of the field. Frozen, checked when it is made, JSON on disk."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from vitseg.errors import RecipeError
from vitseg.words import Words, explain

Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Augment(Words):
    """How a view may differ from its image. Each is the largest change; 0 switches it off."""

    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    zoom: Fraction = 0.2
    brightness: Fraction = 0.2
    contrast: Fraction = 0.2
    saturation: Fraction = 0.2


class Generated(Words):
    """The built-in data set: wound-like regions on skin-like ground, drawn from `seed`. Needs no files."""

    kind: Literal["generated"] = "generated"
    images: Annotated[int, Field(ge=4)] = 150
    classes: Annotated[int, Field(ge=2, le=10)] = 5
    side: Annotated[int, Field(ge=32, le=2048)] = 168
    seed: int = 0


class Folder(Words):
    """A folder with `images/` and `masks/`, or with `train/`, `validation/`, `test/` that hold them.

    `encoding` says how a mask stores its classes; "auto" looks at the masks, or reads `classes.json`.
    Settings given here win over `classes.json`.
    """

    kind: Literal["folder"] = "folder"
    path: str
    encoding: Literal["auto", "index", "binary_255", "binary_1", "grey", "rgb"] = "auto"
    classes: tuple[str, ...] | None = None
    ignore_value: Annotated[int, Field(ge=0, le=65535)] | None = None
    grey_factor: Annotated[int, Field(ge=2, le=255)] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        self._refuse_without_effect(self.encoding not in {"auto", "grey"}, "grey_factor")
        self._refuse_without_effect(self.encoding not in {"auto", "rgb"}, "colors")
        for field in ("classes", "colors"):
            named = getattr(self, field) or ()
            if len(set(named)) < len(named):
                raise ValueError(f"{field} names one of them twice: {named}")
        if self.encoding == "grey" and self.grey_factor is None:
            raise ValueError('encoding="grey" needs grey_factor: the value of class 1')
        return self


class Data(Words):
    """Which images, how they are split, and which views of them are trained on.

    `size` is (height, width) in pixels; images keep their aspect and are padded at the bottom and the right.
    `views` augmented versions of each image exist, the first one clean; epoch e of a stage shows view e mod
    `views`. "fresh" draws new ones each epoch. `group` is a regular expression; images whose names match with the
    same first group are kept on one side of the split.
    """

    source: Annotated[Generated | Folder, Field(discriminator="kind")] = Generated()
    size: tuple[Annotated[int, Field(ge=14, le=4096)], Annotated[int, Field(ge=14, le=4096)]] = (168, 168)
    mode: Literal["auto", "binary", "multiclass"] = "auto"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    group: str | None = None
    views: Count | Literal["fresh"] = 4
    augment: Augment = Augment()
    score_background: bool = True
    split_seed: int = 0
    view_seed: int = 0

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.views == 1 and self.augment != Augment():
            raise ValueError("augment has no effect with views=1, the clean view alone; leave it out, or ask for more views")
        self._refuse_without_effect(self.views == 1, "view_seed")
        self._refuse_without_effect(self.mode == "binary", "score_background")
        return self


class Model(Words):
    """Encoder, decoder and how they meet. `skip_depths` counts blocks; None means L/4, L/2, 3L/4, L."""

    encoder: str = "dinov2-small-packaged"
    decoder: Literal["lean", "unet", "linear"] = "lean"
    skip_depths: tuple[Count, Count, Count, Count] | None = None
    dropout: Fraction = 0.1

    @model_validator(mode="after")
    def _skips_rise(self) -> Self:
        if self.skip_depths and list(self.skip_depths) != sorted(set(self.skip_depths)):
            raise ValueError(f"skip_depths must rise, as in (3, 6, 9, 12); got {self.skip_depths}")
        return self


class CosineRestarts(Words):
    """Cosine annealing with warm restarts (Loshchilov & Hutter 2017), after a burn-in at the full LR.

    The burn-in is counted once per stage, in batches. `T_0` is the first cycle's length: in batches, or, with
    `unit="epoch"`, in epochs (the LR still moves every batch, as in PyTorch's fractional use).
    """

    kind: Literal["cosine_restarts"] = "cosine_restarts"
    T_0: Count = 15
    T_mult: Count = 1
    eta_min: Annotated[float, Field(ge=0)] = 1e-7
    burn_in_batches: Annotated[int, Field(ge=0)] = 60
    unit: Literal["batch", "epoch"] = "batch"

    @model_validator(mode="after")
    def _pytorch_finds_the_cycle(self) -> Self:
        if self.unit == "epoch" and self.T_mult > 2:
            raise ValueError('T_mult is 1 or 2 with unit="epoch": PyTorch misses restarts of other growth by rounding')
        return self


class Exponential(Words):
    """LR times `gamma` once per epoch, after training: epoch e is trained at lr * gamma ** (e - 1)."""

    kind: Literal["exponential"] = "exponential"
    gamma: Rate = 0.999


class Constant(Words):
    """The same LR throughout."""

    kind: Literal["constant"] = "constant"


class WarmupPoly(Words):
    """Linear warm-up over `warmup_batches`, then polynomial decay to 0 at the end of the stage."""

    kind: Literal["warmup_poly"] = "warmup_poly"
    warmup_batches: Annotated[int, Field(ge=0)] = 20
    power: Annotated[float, Field(gt=0, le=10)] = 0.9


Schedule = Annotated[CosineRestarts | Exponential | Constant | WarmupPoly, Field(discriminator="kind")]


class Stage(Words):
    """One stage of progressive training.

    `unfrozen_blocks` counts encoder blocks from the last: 0 is a frozen encoder, "all" is every block. The decoder
    always trains. Encoder LR is `lr * encoder_lr_factor`, times `layer_decay` once more per block below the last.
    `patience` stops the stage after that many epochs without a better validation IoU.
    """

    name: str
    unfrozen_blocks: Annotated[int, Field(ge=0)] | Literal["all"]
    epochs: Count
    lr: Rate
    schedule: Schedule = Exponential()
    encoder_lr_factor: Rate = 1.0
    layer_decay: Rate = 1.0
    drop_path: Fraction = 0.0
    patience: Count | None = None
    start_from: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        self._refuse_without_effect(self.unfrozen_blocks == 0, "encoder_lr_factor", "layer_decay", "drop_path")
        self._refuse_without_effect(self.unfrozen_blocks == 1, "layer_decay")
        if isinstance(self.schedule, CosineRestarts) and self.schedule.eta_min >= self.lr:
            raise ValueError(f"schedule.eta_min={self.schedule.eta_min} must be below lr={self.lr}")
        return self


class Loss(Words):
    """A weighted sum: `cross_entropy` * CE + `dice` * Dice + `focal` * Focal.

    `class_weights` act on cross-entropy and focal, `label_smoothing` on cross-entropy alone. `dice_over="image"` averages Dice
    over images; "batch" pools the pixels of the batch first.
    """

    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    dice: Annotated[float, Field(ge=0)] = 1.0
    focal: Annotated[float, Field(ge=0)] = 0.0
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    label_smoothing: Fraction = 0.0
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    dice_over: Literal["image", "batch"] = "image"

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.cross_entropy + self.dice + self.focal == 0:
            raise ValueError("cross_entropy, dice and focal are all 0: there is nothing to minimise")
        self._refuse_without_effect(self.focal == 0, "focal_gamma")
        self._refuse_without_effect(self.dice == 0, "dice_over")
        self._refuse_without_effect(self.cross_entropy + self.focal == 0, "class_weights")
        self._refuse_without_effect(self.cross_entropy == 0, "label_smoothing")
        return self


class AdamW(Words):
    """AdamW (Loshchilov & Hutter 2019). No weight decay on norms, biases and layer scale."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)


class SGD(Words):
    """Stochastic gradient descent with momentum. No weight decay on norms, biases and layer scale."""

    kind: Literal["sgd"] = "sgd"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-5
    momentum: Fraction = 0.9


Optimizer = Annotated[AdamW | SGD, Field(discriminator="kind")]


class Recipe(Words):
    """All of a run's settings. `replace` makes changed copies; `save` and `load_recipe` keep it as JSON.

    A batch is one optimizer step: `batch_size` images in each of `accumulate` portions. `clip_norm` is the largest
    gradient norm. `seed` draws initialisation, order and dropout; data and views have seeds of their own. `features` is the
    precision in which the frozen blocks' features are used; with `cache` they are kept on disk, which changes no number.
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    data: Data = Data()
    model: Model = Model()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    loss: Loss = Loss()
    optimizer: Optimizer = AdamW()
    batch_size: Count = 8
    accumulate: Count = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Count | Literal["auto"] = "auto"
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    features: Literal["exact", "half"] = "exact"
    cache: bool = True

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.loss.dice_over == "batch" and self.accumulate > 1:
            raise ValueError('loss.dice_over="batch" needs the whole batch at once; set accumulate to 1')
        if self.stages[0].start_from != "best":
            raise ValueError("stages.0.start_from has no effect: there is no stage before it; leave it out")
        if self.model.decoder == "linear" and self.accumulate > 1:
            raise ValueError('model.decoder="linear" has a BatchNorm, which needs the whole batch; set accumulate to 1')
        return self

    def replace(self, changes: dict[str, Any]) -> Recipe:
        """A copy with settings changed by path: `recipe.replace({"stages.1.lr": 1e-4})`. Checked like a new one."""
        tree = json.loads(self.model_dump_json())
        for path, value in changes.items():
            _set(tree, path, json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else value)
        try:
            return parse(json.dumps(tree))
        except TypeError as error:
            raise RecipeError(f"{', '.join(changes)}: {error}.", "Give numbers, strings, tuples or settings.") from None

    def settle(self, changes: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """Like `replace`; settings that have no effect any more are put back to their defaults, and named.

        At depth 0, for instance, there is no encoder LR: `encoder_lr_factor` goes, where `replace` would refuse.
        """
        idle: dict[str, Any] = {}
        while True:
            try:
                return self.replace(changes | idle), idle
            except RecipeError as error:
                if error.idle.keys() <= idle.keys():
                    raise
                idle |= error.idle

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def parse(text: str | bytes) -> Recipe:
    """A recipe from JSON text. Raises RecipeError with a line for each setting refused."""
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        raise explain(error, Recipe) from None


def load_recipe(path: str | Path) -> Recipe:
    """A recipe from a JSON file. Raises RecipeError, naming the file."""
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).", "Give the path of a recipe.json.") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.problem}", error.mend) from None


def _set(tree: Any, path: str, value: Any) -> None:
    """Write `value` at a dotted path. A name that does not exist is left to validation, which knows the spelling."""
    *parents, last = path.split(".")
    name = last
    try:
        for name in parents:
            tree = tree[_place(tree, name)]
        tree[_place(tree, last)] = value
    except (KeyError, IndexError, ValueError, TypeError):
        here = f"0..{len(tree) - 1}" if isinstance(tree, list) else ", ".join(tree) if isinstance(tree, dict) else "none"
        close = difflib.get_close_matches(name, tree, n=1) if isinstance(tree, dict) else []
        meant = f" did you mean {close[0]}?" if close else ""
        raise RecipeError(f"{path}: there is no such setting;{meant} possible at that place: {here}.") from None


def _place(tree: Any, name: str) -> int | str:
    """A list's position, counted from 0, or a name."""
    if not isinstance(tree, list):
        return name
    if not name.isdecimal():
        raise ValueError(name)
    return int(name)
