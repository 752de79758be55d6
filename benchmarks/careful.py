"""The recipe that the tables on unfreezing and on rare classes were measured with;
`vitseg.quick(folder)` until November 2026.

At most four blocks, at a tenth of the decoder's rate, zoom 0.2, four views, and the epochs of 1.15
million image patches.
"""

from __future__ import annotations

from pathlib import Path

import vitseg
from vitseg.recipe import Recipe


def careful(folder: str | Path | None = None) -> Recipe:
    """Without a folder it is `vitseg.quick()`, on generated images."""
    quick = vitseg.quick()
    if folder is None:
        return quick
    recipe = vitseg.quick(folder).replace(
        {"data.augment": vitseg.Augment(), "data.views": 4, "stages": quick.stages}
    )
    images = len(vitseg.SegmentationData(recipe.data).splits["train"])
    height, width = recipe.data.size
    epochs = min(28, max(6, 1_150_000 // (images * (height // 14) * (width // 14))))
    later = round(epochs * 3 / 14)
    return recipe.replace(
        {f"stages.{n}.epochs": e for n, e in enumerate((epochs - 2 * later, later, later))}
    )


def whole_encoder(folder: str | Path | None = None) -> Recipe:
    """`vitseg.whole_encoder` for as many epochs, on the same views."""
    recipe = careful(folder)
    epochs = sum(stage.epochs for stage in recipe.stages)
    first = max(1, round(epochs / 6))
    stages = vitseg.whole_encoder(folder).stages
    return recipe.replace({"stages": stages}).replace(
        {"stages.0.epochs": first, "stages.1.epochs": epochs - first}
    )
