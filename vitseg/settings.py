"""The parts of a recipe: data, model, stages and their schedules, loss, optimizer."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vitseg.effects import Crop, Effect
from vitseg.words import Conflict, Words

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
    """The built-in data set: wound-like regions on skin-like ground, drawn from `seed`. Needs no
    files.
    """

    kind: Literal["generated"] = "generated"
    images: Annotated[int, Field(ge=4)] = 150
    classes: Annotated[int, Field(ge=2, le=10)] = 5
    side: Annotated[int, Field(ge=32, le=2048)] = 168
    seed: int = 0


class Folder(Words):
    """A folder with `images/` and `masks/`, or with `train/`, `validation/`, `test/` that hold
    them.

    `encoding` says how a mask stores its classes; "auto" looks at the masks, or reads
    `classes.json`. Settings given here win over `classes.json`. `on_problem="skip"` leaves out
    pairs that are not whole, and says how many.
    """

    kind: Literal["folder"] = "folder"
    path: str
    encoding: Literal["auto", "index", "binary_255", "binary_1", "grey", "rgb"] = "auto"
    classes: tuple[str, ...] | None = None
    ignore_value: Annotated[int, Field(ge=0, le=65535)] | None = None
    grey_factor: Annotated[int, Field(ge=2, le=255)] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    on_problem: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        is_grey = self.encoding in {"auto", "grey"} and self.colors is None
        self._refuse_without_effect(not is_grey, "grey_factor")
        self._refuse_without_effect(self.encoding not in {"auto", "rgb"}, "colors")
        for field in ("classes", "colors"):
            named = getattr(self, field) or ()
            if len(set(named)) < len(named):
                raise ValueError(f"{field} names one of them twice: {named}")
        if self.encoding == "grey" and self.grey_factor is None:
            raise ValueError('encoding="grey" needs grey_factor: the value of class 1')
        return self


class Merge(Words):
    """Classes that become one of the name `into`, which stands where the first of them stood; one
    class alone is renamed.
    """

    into: Annotated[str, Field(min_length=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.classes == (self.into,):
            raise ValueError(
                f"into={self.into!r} is what the class is called already; leave it out"
            )
        return self


class Classes(Words):
    """What becomes of the classes that the masks hold. Nothing is changed on disk.

    Pixels of `ignore` count nowhere; images that hold a class of `drop_images_with` are left out.
    `foreground` is what binary mode looks for, by the new names; None is every class but the first.
    """

    merge: tuple[Merge, ...] = ()
    ignore: tuple[str, ...] = ()
    drop_images_with: tuple[str, ...] = ()
    foreground: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_fate_a_class(self) -> Self:
        merged = (merge.classes for merge in self.merge)
        named = list(chain(*merged, self.ignore, self.drop_images_with))
        looked_for = self.foreground or ()
        if len(set(looked_for)) < len(looked_for):
            raise ValueError(f"foreground names one of them twice: {looked_for}")
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(
                f"{', '.join(twice)}: named twice; "
                "a class can be merged, ignored, or its images dropped"
            )
        return self


class Data(Words):
    """Which images, how they are split, and which views of them are trained on.

    `size` is (height, width) in pixels; images keep their aspect and are padded at the bottom and
    the right. `views` augmented versions of each image exist, the first one clean; epoch e of a
    stage shows view e mod `views`. "fresh" draws new ones each epoch. Every view but the clean one
    is made by `crop`, then `augment`, then the `effects` in their order, each if chance will have
    it.

    The split is that of the folder, or of `split_file` (a run's `split.json`), or it is drawn:
    `group` is a regular expression; images whose names match with the same first group are kept on
    one side; `group_file` is a CSV of name and group instead. `stratify` spreads every class over
    all sides, as far as can be. `sampler="rarity"` draws each epoch's images with replacement,
    those with rare classes more often.
    """

    source: Annotated[Generated | Folder, Field(discriminator="kind")] = Generated()
    size: tuple[Annotated[int, Field(ge=14, le=4096)], Annotated[int, Field(ge=14, le=4096)]] = (
        168,
        168,
    )
    mode: Literal["auto", "binary", "multiclass"] = "auto"
    classes: Classes = Classes()
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_fraction: Fraction = 0.0
    group: str | None = None
    group_file: Annotated[str, Field(min_length=1)] | None = None
    stratify: bool = False
    split_file: Annotated[str, Field(min_length=1)] | None = None
    sampler: Literal["shuffle", "rarity"] = "shuffle"
    views: Count | Literal["fresh"] = 4
    augment: Augment = Augment()
    effects: tuple[Effect, ...] = ()
    crop: Crop | None = None
    score_background: bool = True
    split_seed: int = 0
    view_seed: int = 0

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.views == 1 and self.augment != Augment():
            raise ValueError(
                "augment has no effect with views=1, the clean view alone; "
                "leave it out, or ask for more views"
            )
        self._refuse_without_effect(self.views == 1, "view_seed", "effects", "crop")
        self._refuse_without_effect(self.mode == "binary", "score_background")
        drawn = ("validation_fraction", "test_fraction", "group", "group_file", "stratify")
        self._refuse_without_effect(self.split_file is not None, *drawn, "split_seed")
        self._refuse_without_effect(self.group is not None, "group_file")
        if self.mode != "binary" and self.classes.foreground is not None:
            raise ValueError(
                'classes.foreground has no effect unless mode is "binary"; leave it out'
            )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction leave nothing to train on; "
                "together they must be below 1"
            )
        return self


class Model(Words):
    """Encoder, decoder and how they meet. `skip_depths` counts blocks; None means L/4, L/2, 3L/4,
    L.
    """

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
    """Cosine annealing with warm restarts (Loshchilov & Hutter 2017), after a burn-in at the full
    LR.

    The burn-in is counted once per stage, in batches. `T_0` is the first cycle's length: in
    batches, or, with `unit="epoch"`, in epochs (the LR still moves every batch, as in PyTorch's
    fractional use).
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
            raise ValueError(
                'T_mult is 1 or 2 with unit="epoch": '
                "PyTorch misses restarts of other growth by rounding"
            )
        return self


class Exponential(Words):
    """LR times `gamma` once per epoch, after training: epoch e is trained at lr * gamma ** (e -
    1).
    """

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


Schedule = Annotated[
    CosineRestarts | Exponential | Constant | WarmupPoly, Field(discriminator="kind")
]


class Stage(Words):
    """One stage of progressive training.

    `unfrozen_blocks` counts encoder blocks from the last: 0 is a frozen encoder, "all" is every
    block. The decoder always trains. Encoder LR is `lr * encoder_lr_factor`, times `layer_decay`
    once more per block below the last. `patience` stops the stage after that many epochs without a
    better validation IoU, or the same at a lower loss.
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
        self._refuse_without_effect(
            self.unfrozen_blocks == 0, "encoder_lr_factor", "layer_decay", "drop_path"
        )
        self._refuse_without_effect(self.unfrozen_blocks == 1, "layer_decay")
        if isinstance(self.schedule, CosineRestarts) and self.schedule.eta_min >= self.lr:
            eta_min = self.schedule.eta_min
            says = f"schedule.eta_min={eta_min} must be below lr={self.lr}"
            raise Conflict("schedule.eta_min", says)
        return self


class ByFrequency(Words):
    """Class weights from the pixels of the training masks, "inverse" to a class's frequency, or
    "median" frequency over it.

    With `largest` the foreground's weights are scaled so that the largest is that, their ratios
    kept; background weighs 1.
    """

    kind: Literal["inverse", "median"] = "inverse"
    largest: Annotated[float, Field(gt=0, le=1000)] | None = None


class Loss(Words):
    """A weighted sum: `cross_entropy` * CE + `dice` * Dice + `focal` * Focal.

    `class_weights`, given or counted, act on cross-entropy and focal, `label_smoothing` on
    cross-entropy alone. `dice_over="image"` averages Dice over images; "batch" pools the pixels of
    the batch first.
    """

    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    dice: Annotated[float, Field(ge=0)] = 1.0
    focal: Annotated[float, Field(ge=0)] = 0.0
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    label_smoothing: Fraction = 0.0
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | ByFrequency | None = None
    dice_over: Literal["image", "batch"] = "image"

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.cross_entropy + self.dice + self.focal == 0:
            raise ValueError(
                "cross_entropy, dice and focal are all 0: there is nothing to minimise"
            )
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
    """Stochastic gradient descent with momentum. No weight decay on norms, biases and layer
    scale.
    """

    kind: Literal["sgd"] = "sgd"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-5
    momentum: Fraction = 0.9


Optimizer = Annotated[AdamW | SGD, Field(discriminator="kind")]
