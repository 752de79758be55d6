"""Recipes to begin with: a quick one, the same in a warm-up instead of stages, and the origin's."""

from __future__ import annotations

import os
import re
from pathlib import Path
from statistics import median

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

    With a folder of images and masks: more pixels, in the images' own proportions, and as many
    epochs as 20 minutes of CPU time allow: those of about a million image patches in all, at least
    6 and at most 28. Rates and depth as in decision 25.
    """
    if folder is None:
        return Recipe(
            name="quick", data=Data(source=Generated()), batch_size=6, stages=_careful_stages()
        )
    files = _images(Path(folder).expanduser())
    height, width = _canvas(files[:25])
    source = _folder(folder)
    data = Data(source=source, size=(height, width), views=6, augment=Augment(zoom=0.4))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source.path).name).strip("-._")[:40] or "run"
    patches = max(1, len(files)) * (height // 14) * (width // 14)
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


def _canvas(files: list[Path], shorter: int = 252, patch: int = 14) -> tuple[int, int]:
    """(height, width) in whole patches, in the median proportions of the images, 1:2 at most;
    square without any.
    """
    ratio = median([height / width for height, width in filter(None, map(size_of, files))] or [1.0])
    longer = round(shorter * min(max(ratio, 1 / ratio), 2.0) / patch) * patch
    return (longer, shorter) if ratio > 1 else (shorter, longer)


def _careful_stages() -> tuple[Stage, ...]:
    """Four blocks at most, at a tenth of the decoder's rate, on both kinds of schedule: stages to
    be watched.
    """
    deep = {"epochs": 3, "schedule": Exponential(gamma=0.8), "encoder_lr_factor": 0.1}
    return (
        Stage(
            name="Frozen encoder", unfrozen_blocks=0, epochs=6, lr=2e-3, schedule=CosineRestarts()
        ),
        Stage(name="Last blocks", unfrozen_blocks=2, lr=6e-4, **deep),
        Stage(name="Deeper", unfrozen_blocks=4, lr=1e-4, **deep),
    )


def _deep_stages(epochs: int, batches_per_epoch: int) -> tuple[Stage, ...]:
    """A short frozen stage, six blocks of which the last has 1e-4, then eight at half the rates:
    two, four and three ninths.
    """
    first, third = round(epochs * 2 / 9), round(epochs * 3 / 9)

    def stage(name: str, unfrozen: int, epochs: int, lr: float, **encoder: float) -> Stage:
        warmup = min(20, epochs * batches_per_epoch // 5)
        schedule = WarmupPoly(warmup_batches=warmup)
        return Stage(
            name=name, unfrozen_blocks=unfrozen, epochs=epochs, lr=lr, schedule=schedule, **encoder
        )

    encoder = {"encoder_lr_factor": 0.1, "layer_decay": 0.8}
    return (
        stage("Frozen encoder", 0, first, 2e-3),
        stage("Last blocks", 6, epochs - first - third, 1e-3, **encoder),
        stage("Deeper", 8, third, 5e-4, **encoder),
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
    stages = (
        Stage(
            name="Decoder warms up", unfrozen_blocks=0, epochs=first, lr=2e-3, schedule=Constant()
        ),
        Stage(
            name="Whole encoder",
            unfrozen_blocks="all",
            epochs=epochs - first,
            lr=1e-3,
            schedule=WarmupPoly(),
            encoder_lr_factor=0.1,
            layer_decay=0.8,
        ),
    )
    return recipe.replace({"name": f"{recipe.name[:26]}-whole-encoder", "stages": stages})


def giant(folder: str | Path | None = None) -> Recipe:
    """The origin's settings: DINOv2-giant, 30 + 30 + 40 epochs, the last 8, then 16 blocks, LR 2e-4
    x 1, 0.3, 0.05.

    As the origin meant them: the freezing is real, the burn-in is counted once a stage. Needs a
    GPU, and the hub.
    """
    source = Generated(classes=10, side=384) if folder is None else _folder(folder)
    lr, deep = 2e-4, {"drop_path": 0.1, "patience": 15}
    stages = (
        Stage(
            name="Frozen encoder", unfrozen_blocks=0, epochs=30, lr=lr, schedule=CosineRestarts()
        ),
        Stage(name="Last 8 blocks", unfrozen_blocks=8, epochs=30, lr=lr * 0.3, **deep),
        Stage(name="Last 16 blocks", unfrozen_blocks=16, epochs=40, lr=lr * 0.05, **deep),
    )
    return Recipe(
        name="giant",
        data=Data(source=source, size=(384, 384)),
        model=Model(
            encoder="facebook/dinov2-giant",
            decoder="unet",
            skip_depths=(10, 20, 30, 40),
            dropout=0.5,
        ),
        stages=stages,
        loss=Loss(dice=5.0),
        optimizer=AdamW(weight_decay=1e-5),
        clip_norm=0.1,
        recompute=True,
    )
