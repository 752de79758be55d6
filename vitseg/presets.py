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
    """Three stages on DINOv2-small. Without a folder: the built-in generated images, minutes on two CPU cores.

    With a folder of images and masks: more pixels, in the images' own proportions, and as many epochs as half an hour on
    two cores allows: those of about 1.15 million image patches in all, at least 6 and at most 28.
    """
    if folder is None:
        return Recipe(name="quick", data=Data(source=Generated()), batch_size=6, stages=_three_stages(6, 3, 3))
    files = _images(Path(folder).expanduser())
    height, width = _canvas(files[:25])
    source = _folder(folder)
    data = Data(source=source, size=(height, width))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source.path).name).strip("-._")[:40] or "run"
    patches = max(1, len(files)) * (height // 14) * (width // 14)
    epochs = min(28, max(6, 1_150_000 // patches))
    later = round(epochs * 3 / 14)
    first = epochs - 2 * later
    steps = first * -(-round(0.8 * len(files)) // 4)
    burn_in = steps // 3 if 0 < steps < 100 else 60  # 60 would leave a short stage little, or nothing, to anneal
    return Recipe(name=name, data=data, batch_size=4, stages=_three_stages(first, later, later, burn_in))


def _folder(path: str | Path) -> Folder:
    """One spelling of the path, so that the run can be reported and resumed, and a sweep be found, from elsewhere."""
    return Folder(path=os.path.realpath(Path(path).expanduser()))  # Path.resolve() breaks off at a link to itself


def _images(folder: Path) -> list[Path]:
    """The files to train on. What is wrong with a folder is said when its data are loaded."""
    places = (folder / "train" / "images", folder / "images")
    try:
        return sorted(next((p for p in places if p.is_dir()), folder).glob("[!.]*"))
    except OSError:  # a name too long, or a folder that may not be looked into
        return []


def _canvas(files: list[Path], shorter: int = 252, patch: int = 14) -> tuple[int, int]:
    """(height, width) in whole patches, in the median proportions of the images, 1:2 at most; square without any."""
    ratio = median([height / width for height, width in filter(None, map(size_of, files))] or [1.0])
    longer = round(shorter * min(max(ratio, 1 / ratio), 2.0) / patch) * patch
    return (longer, shorter) if ratio > 1 else (shorter, longer)


def _three_stages(first: int, second: int, third: int, burn_in: int = 60) -> tuple[Stage, ...]:
    return (
        Stage(name="Frozen encoder", unfrozen_blocks=0, epochs=first, lr=2e-3,
              schedule=CosineRestarts(burn_in_batches=burn_in)),
        Stage(name="Last blocks", unfrozen_blocks=2, epochs=second, lr=6e-4, schedule=Exponential(gamma=0.8),
              encoder_lr_factor=0.1),
        Stage(name="Deeper", unfrozen_blocks=4, epochs=third, lr=1e-4, schedule=Exponential(gamma=0.8),
              encoder_lr_factor=0.1),
    )  # fmt: skip


def whole_encoder(folder: str | Path | None = None) -> Recipe:
    """What `quick` trains, for as many epochs, but every block at once: what the three stages are to be held against.

    As EoMT trains (Kerssies et al. 2025): the decoder warms up while the encoder stands still; then all of it trains, the last
    block at 1e-4 and each below at 0.8 of the one above, with a warm-up and a polynomial decay. There it is one optimizer with
    an encoder LR of 0 at first; here it is a stage at depth 0, whose features are kept, and a fresh optimizer after it.
    """
    recipe = quick(folder)
    epochs = sum(stage.epochs for stage in recipe.stages)
    first = max(1, round(epochs / 6))
    stages = (
        Stage(name="Decoder warms up", unfrozen_blocks=0, epochs=first, lr=2e-3, schedule=Constant()),
        Stage(name="Whole encoder", unfrozen_blocks="all", epochs=epochs - first, lr=1e-3, schedule=WarmupPoly(),
              encoder_lr_factor=0.1, layer_decay=0.8),
    )  # fmt: skip
    return recipe.replace({"name": f"{recipe.name[:26]}-whole-encoder", "stages": stages})


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
        recompute=True,
    )
