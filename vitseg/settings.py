"""The parts of a recipe: data, model, stages and their schedules, loss, optimizer."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from pydantic_core import PydanticCustomError

from vitseg.effects import Crop, Effect
from vitseg.words import Words

Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=14, le=4096)]


def _refuse_twice(fields: str, names: Iterable[object] | None) -> None:
    twice = [str(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{fields}: {', '.join(twice)} is named twice")


class Augment(Words):
    """How a view may differ from its image. Each is the largest change; 0 switches it off."""

    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotate_degrees: float = Field(15.0, ge=0, le=180)
    zoom: Fraction = 0.2
    brightness: Fraction = 0.2
    contrast: Fraction = 0.2
    saturation: Fraction = 0.2


class Generated(Words):
    """The built-in data set: wound-like regions on skin-like ground, drawn from `seed`. Needs no
    files.
    """

    kind: Literal["generated"] = "generated"
    images: int = Field(150, ge=4)
    classes: int = Field(5, ge=2, le=10)
    side: int = Field(168, ge=32, le=2048)
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
    ignore_value: int | None = Field(None, ge=0, le=65535)
    grey_factor: int | None = Field(None, ge=2, le=255)
    colors: tuple[tuple[int, int, int], ...] | None = None
    on_problem: Literal["refuse", "skip"] = "refuse"

    def model_post_init(self, context: object) -> None:
        is_grey = self.encoding in {"auto", "grey"} and self.colors is None
        self._refuse_without_effect(not is_grey, "grey_factor")
        self._refuse_without_effect(self.encoding not in {"auto", "rgb"}, "colors")
        _refuse_twice("classes", self.classes)
        _refuse_twice("colors", self.colors)
        if self.encoding == "grey" and self.grey_factor is None:
            raise ValueError('encoding="grey" needs grey_factor: the value of class 1')


class Merge(Words):
    """Classes that become one of the name `into`, which stands where the first of them stood; one
    class alone is renamed.
    """

    into: str = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=1)

    def model_post_init(self, context: object) -> None:
        if self.classes == (self.into,):
            raise ValueError(f"into={self.into!r} is the class's name already; leave it out")


class Classes(Words):
    """What becomes of the classes that the masks hold. Nothing is changed on disk.

    Pixels of `ignore` count nowhere; images that hold a class of `drop_images_with` are left out.
    `foreground` is what binary mode looks for, by the new names; None is every class but the first.
    """

    merge: tuple[Merge, ...] = ()
    ignore: tuple[str, ...] = ()
    drop_images_with: tuple[str, ...] = ()
    foreground: tuple[str, ...] | None = Field(None, min_length=1)

    def model_post_init(self, context: object) -> None:
        merged = (merge.classes for merge in self.merge)
        _refuse_twice(
            "merge, ignore, drop_images_with",
            [*chain(*merged), *self.ignore, *self.drop_images_with],
        )
        _refuse_twice("foreground", self.foreground)


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

    source: Generated | Folder = Field(Generated(), discriminator="kind")
    size: tuple[Side, Side] = (168, 168)
    mode: Literal["auto", "binary", "multiclass"] = "auto"
    classes: Classes = Classes()
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    test_fraction: Fraction = 0.0
    group: str | None = None
    group_file: str | None = Field(None, min_length=1)
    stratify: bool = False
    split_file: str | None = Field(None, min_length=1)
    sampler: Literal["shuffle", "rarity"] = "shuffle"
    views: Count | Literal["fresh"] = 4
    augment: Augment = Augment()
    effects: tuple[Effect, ...] = ()
    crop: Crop | None = None
    score_background: bool = True
    split_seed: int = 0
    view_seed: int = 0

    def model_post_init(self, context: object) -> None:
        self._refuse_without_effect(self.views == 1, "augment", "view_seed", "effects", "crop")
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
                "validation_fraction and test_fraction leave nothing to train on; together they "
                "must be below 1"
            )


class Model(Words):
    """Encoder, decoder and how they meet. `skip_depths` counts blocks; None means L/4, L/2, 3L/4,
    L.
    """

    encoder: str = "dinov2-small-packaged"
    decoder: Literal["lean", "unet", "linear"] = "lean"
    skip_depths: tuple[Count, Count, Count, Count] | None = None
    dropout: Fraction = 0.1

    def model_post_init(self, context: object) -> None:
        if self.skip_depths and list(self.skip_depths) != sorted(set(self.skip_depths)):
            raise ValueError(f"skip_depths must rise, as in (3, 6, 9, 12); got {self.skip_depths}")


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
    eta_min: NonNegativeFloat = 1e-7
    burn_in_batches: NonNegativeInt = 60
    unit: Literal["batch", "epoch"] = "batch"

    def model_post_init(self, context: object) -> None:
        if self.unit == "epoch" and self.T_mult > 2:
            raise ValueError(
                'T_mult is 1 or 2 with unit="epoch": PyTorch misses restarts of other growth by '
                "rounding"
            )


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
    warmup_batches: NonNegativeInt = 20
    power: float = Field(0.9, gt=0, le=10)


Schedule = CosineRestarts | Exponential | Constant | WarmupPoly


class Stage(Words):
    """One stage of progressive training.

    `unfrozen_blocks` counts encoder blocks from the last: 0 is a frozen encoder, "all" is every
    block. The decoder always trains. Encoder LR is `lr * encoder_lr_factor`, times `layer_decay`
    once more per block below the last. `patience` stops the stage after that many epochs without a
    better validation IoU, or the same at a lower loss.
    """

    name: str
    unfrozen_blocks: NonNegativeInt | Literal["all"]
    epochs: Count
    lr: Rate
    schedule: Schedule = Field(Exponential(), discriminator="kind")
    encoder_lr_factor: Rate = 1.0
    layer_decay: Rate = 1.0
    drop_path: Fraction = 0.0
    patience: Count | None = None
    start_from: Literal["best", "last"] = "best"

    def model_post_init(self, context: object) -> None:
        self._refuse_without_effect(
            self.unfrozen_blocks == 0, "encoder_lr_factor", "layer_decay", "drop_path"
        )
        self._refuse_without_effect(self.unfrozen_blocks == 1, "layer_decay")
        if isinstance(self.schedule, CosineRestarts) and self.schedule.eta_min >= self.lr:
            says = f"got {self.schedule.eta_min}; allowed: below lr={self.lr}"
            raise PydanticCustomError("conflict", says, {"field": "schedule.eta_min"})


class ByFrequency(Words):
    """Class weights from the pixels of the training masks, "inverse" to a class's frequency, or
    "median" frequency over it.

    With `largest` the foreground's weights are scaled so that the largest is that, their ratios
    kept; background weighs 1.
    """

    kind: Literal["inverse", "median"] = "inverse"
    largest: float | None = Field(None, gt=0, le=1000)


class Loss(Words):
    """A weighted sum: `cross_entropy` * CE + `dice` * Dice + `focal` * Focal.

    `class_weights`, given or counted, act on cross-entropy and focal, `label_smoothing` on
    cross-entropy alone. `dice_over="image"` averages Dice over images; "batch" pools the pixels of
    the batch first.
    """

    cross_entropy: NonNegativeFloat = 1.0
    dice: NonNegativeFloat = 1.0
    focal: NonNegativeFloat = 0.0
    focal_gamma: NonNegativeFloat = 2.0
    label_smoothing: Fraction = 0.0
    class_weights: tuple[PositiveFloat, ...] | ByFrequency | None = None
    dice_over: Literal["image", "batch"] = "image"

    def model_post_init(self, context: object) -> None:
        if self.cross_entropy + self.dice + self.focal == 0:
            raise ValueError("cross_entropy, dice, focal are all 0: there is nothing to minimise")
        self._refuse_without_effect(self.focal == 0, "focal_gamma")
        self._refuse_without_effect(self.dice == 0, "dice_over")
        self._refuse_without_effect(self.cross_entropy + self.focal == 0, "class_weights")
        self._refuse_without_effect(self.cross_entropy == 0, "label_smoothing")


class AdamW(Words):
    """AdamW (Loshchilov & Hutter 2019). No weight decay on norms, biases and layer scale."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0, le=1)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)


class SGD(Words):
    """Stochastic gradient descent with momentum. No weight decay on norms, biases and layer
    scale.
    """

    kind: Literal["sgd"] = "sgd"
    weight_decay: float = Field(1e-5, ge=0, le=1)
    momentum: Fraction = 0.9


Optimizer = AdamW | SGD
