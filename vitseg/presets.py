"""Recipes to begin with: a quick one, the same in a warm-up instead of stages, and the origin's."""

import math
import os
import re
from pathlib import Path
from statistics import median
from typing import Any

from vitseg.images import size_of
from vitseg.recipe import Recipe
from vitseg.settings import (
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


def quick(folder: str | Path | None = None) -> Recipe:
    """Three stages on DINOv2-small. Without a folder: the built-in generated images, minutes on two
    CPU cores.

    With a folder of images and masks: more pixels, whole patches in the images' own proportions,
    1:2 at most, and as many epochs as 20 minutes of CPU time allow: those of about a million image
    patches in all, at least 6 and at most 28. Rates and depth as in decision 25.
    """
    if folder is None:
        return Recipe(name="quick", batch_size=6, stages=_CAREFUL)
    source = _folder(folder)
    files = _images(Path(source.path))
    ratios = [height / width for height, width in filter(None, map(size_of, files[:25]))]
    ratio = median(ratios or [1.0])
    longer = round(252 * min(max(ratio, 1 / ratio), 2.0) / 14) * 14
    size = (longer, 252) if ratio > 1 else (252, longer)
    data = Data(source=source, size=size, views=6, augment=Augment(zoom=0.4))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source.path).name).strip("-._")[:40] or "run"
    patches = max(1, len(files)) * math.prod(size) // 14**2
    epochs = min(28, max(6, 1_000_000 // patches))
    batches = -(-round(0.8 * len(files)) // 4) or 25
    return Recipe(name=name, data=data, batch_size=4, stages=_deep_stages(epochs, batches))


def _folder(path: str | Path) -> Folder:
    """One spelling of the path, so that the run can be reported and resumed, and a sweep be found,
    from elsewhere.
    """
    # Path.resolve() breaks off at a link to itself
    return Folder(path=os.path.realpath(Path(path).expanduser()))


def _images(folder: Path) -> list[Path]:
    """The files to train on. What is wrong with a folder is said when its data are loaded."""
    places = (folder / "train" / "images", folder / "images")
    try:
        return sorted(next((p for p in places if p.is_dir()), folder).glob("[!.]*"))
    except OSError:  # a name too long, or a folder that may not be looked into
        return []


def _stages(*rows: tuple[Any, ...], **encoder: Any) -> tuple[Stage, ...]:
    """Stages by name, depth, epochs, LR and schedule; `encoder` goes to those that train some of
    it.
    """
    stages = []
    for row in rows:
        settings = dict(zip(Stage.model_fields, row, strict=False))
        stages.append(Stage(**settings, **encoder if row[1] else {}))
    return tuple(stages)


_CAREFUL = _stages(
    ("Frozen encoder", 0, 6, 2e-3, CosineRestarts()),
    ("Last blocks", 2, 3, 6e-4, Exponential(gamma=0.8)),
    ("Deeper", 4, 3, 1e-4, Exponential(gamma=0.8)),
    encoder_lr_factor=0.1,
)
"""Four blocks at most, at a tenth of the decoder's rate, on both kinds of schedule: stages to be
watched.
"""


def _deep_stages(epochs: int, batches_per_epoch: int) -> tuple[Stage, ...]:
    """A short frozen stage, six blocks of which the last has 1e-4, then eight at half the rates:
    two, four and three ninths.
    """
    first, third = round(epochs * 2 / 9), round(epochs * 3 / 9)
    second = epochs - first - third

    def fifth(epochs: int) -> WarmupPoly:
        return WarmupPoly(warmup_batches=min(20, epochs * batches_per_epoch // 5))

    return _stages(
        ("Frozen encoder", 0, first, 2e-3, fifth(first)),
        ("Last blocks", 6, second, 1e-3, fifth(second)),
        ("Deeper", 8, third, 5e-4, fifth(third)),
        encoder_lr_factor=0.1,
        layer_decay=0.8,
    )


def whole_encoder(folder: str | Path | None = None) -> Recipe:
    """What `quick` trains, for as many epochs, but every block at once: what the three stages are
    to be held against.

    As EoMT trains (Kerssies et al. 2025): the decoder warms up while the encoder stands still; then
    all of it trains, the last block at 1e-4 and each below at 0.8 of the one above, with a warm-up
    and a polynomial decay. There it is one optimizer with an encoder LR of 0 at first; here it is a
    stage at depth 0, whose features are kept, and a fresh optimizer after it.
    """
    recipe = quick(folder)
    epochs = sum(stage.epochs for stage in recipe.stages)
    first = max(1, round(epochs / 6))
    stages = _stages(
        ("Decoder warms up", 0, first, 2e-3, Constant()),
        ("Whole encoder", "all", epochs - first, 1e-3, WarmupPoly()),
        encoder_lr_factor=0.1,
        layer_decay=0.8,
    )
    return recipe.replace({"name": f"{recipe.name[:26]}-whole-encoder", "stages": stages})


def giant(folder: str | Path | None = None) -> Recipe:
    """The origin's settings: DINOv2-giant, 30 + 30 + 40 epochs, the last 8, then 16 blocks, LR 2e-4
    x 1, 0.3, 0.05.

    As the origin meant them: the freezing is real, the burn-in is counted once a stage. Needs a
    GPU, and the hub.
    """
    source = Generated(classes=10, side=384) if folder is None else _folder(folder)
    lr = 2e-4
    return Recipe(
        name="giant",
        data=Data(source=source, size=(384, 384)),
        model=Model(
            encoder="facebook/dinov2-giant",
            decoder="unet",
            skip_depths=(10, 20, 30, 40),
            dropout=0.5,
        ),
        stages=_stages(
            ("Frozen encoder", 0, 30, lr, CosineRestarts()),
            ("Last 8 blocks", 8, 30, lr * 0.3, Exponential()),
            ("Last 16 blocks", 16, 40, lr * 0.05, Exponential()),
            drop_path=0.1,
            patience=15,
        ),
        loss=Loss(dice=5.0),
        optimizer=AdamW(weight_decay=1e-5),
        clip_norm=0.1,
        recompute=True,
    )
