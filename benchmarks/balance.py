"""Which balance of rare classes helps, and by how much: stage 1 of the recipe in careful.py, three
seeds, paired differences.

    python benchmarks/balance.py FOLDER
        (at two thirds of its canvas; half an hour on two cores)

The frozen features are computed once for all. A setting that the images make void, such as rarity
where all are alike, is left out and said. Prints a table; the runs stay in the runs root, and the
same command finds what has been trained.
"""

from __future__ import annotations

import sys
from typing import Any

from careful import careful

import vitseg
from vitseg.errors import VitsegError
from vitseg.recipe import Recipe
from vitseg.sweep.findings import estimate
from vitseg.ui.table import Table

SEEDS = range(3)
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "weights, inverse frequency": {"loss.class_weights": vitseg.ByFrequency()},
    "weights, median frequency": {"loss.class_weights": vitseg.ByFrequency(kind="median")},
    "weights, inverse, largest 5": {"loss.class_weights": vitseg.ByFrequency(largest=5.0)},
    "weights, inverse, largest 60": {"loss.class_weights": vitseg.ByFrequency(largest=60.0)},
    "the same, label smoothing 0.1": {
        "loss.class_weights": vitseg.ByFrequency(largest=60.0),
        "loss.label_smoothing": 0.1,
    },
    "images by rarity": {"data.sampler": "rarity"},
}


def iou(recipe: Recipe) -> float:
    folder = vitseg.new_run(recipe.name)
    for _ in vitseg.train(recipe, folder.path):
        pass
    return folder.summary["best"]["iou"]


def row(
    name: str, changes: dict[str, Any], recipe: Recipe, plain: list[float]
) -> tuple[tuple[str, ...], list[float]]:
    """A row of the table, and the scores by seed."""
    scores = []
    try:
        scores += [iou(recipe.replace(changes | {"seed": seed})) for seed in SEEDS]
    except VitsegError as error:
        return (name, *[""] * (len(SEEDS) + 1), str(error)), []
    gain = str(estimate([a - b for a, b in zip(scores, plain, strict=True)])) if plain else ""
    return (name, *(f"{s:.3f}" for s in scores), f"{sum(scores) / len(scores):.3f}", gain), scores


def main(folder: str) -> int:
    quick = careful(folder)
    size = tuple(round(side * 2 / 3 / 14) * 14 for side in quick.data.size)
    recipe = quick.replace(
        {"stages": [quick.stages[0].model_dump(mode="json")], "data.size": size, "name": "balance"}
    )
    rows, plain = [], []
    for name, changes in SETTINGS.items():
        cells, scores = row(name, changes, recipe, plain)
        rows.append(cells)
        plain = plain or scores
        sys.stdout.write(f"{name}: {cells[-2] or 'left out'}\n")
        sys.stdout.flush()
    columns = ("balance", *(f"seed {seed}" for seed in SEEDS), "mean IoU", "gain over none (95 %)")
    sys.stdout.write(f"\n{Table(columns, tuple(rows))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
