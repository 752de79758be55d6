"""Three stages against the whole encoder at once: the same images, epochs and seeds, paired
differences, and what each costs.

    python benchmarks/three_stages.py [FOLDER]
        (without a folder: the generated images, ten minutes on two cores)

Three trainings a seed: the epochs of careful.py wholly in stage 1, its three stages, and
`vitseg.whole_encoder`. A folder is trained at two thirds of its canvas. Prints a table with CPU
minutes, which other work on the machine does not stretch; nothing is taken from earlier runs, but
features of frozen blocks are kept, as they are for everybody. No rate was tuned on the images.
"""

from __future__ import annotations

import sys
import time

from careful import careful, whole_encoder

import vitseg
from vitseg.recipe import Recipe
from vitseg.sweep.findings import estimate
from vitseg.ui.table import Table

SEEDS = range(3)


def trained(recipe: Recipe) -> tuple[float, float]:
    """IoU of the best weights on the validation images at their own size, and CPU minutes."""
    folder, began = vitseg.new_run(recipe.name), time.process_time()
    for _ in vitseg.train(recipe, folder.path, reuse=False):
        pass
    return folder.summary["best"]["iou"], (time.process_time() - began) / 60


def main(folder: str | None = None) -> int:
    quick, whole = careful(folder), whole_encoder(folder)
    size = (
        {"data.size": tuple(round(side * 2 / 3 / 14) * 14 for side in quick.data.size)}
        if folder
        else {}
    )
    alone = quick.stages[0].model_dump(mode="json") | {
        "epochs": sum(stage.epochs for stage in quick.stages)
    }
    recipes = {
        "decoder alone, encoder frozen": quick.replace(
            {"name": "decoder-alone", "stages": [alone], **size}
        ),
        "three stages: 0, 2, 4 blocks": quick.replace({"name": "three-stages", **size}),
        "whole encoder, layer-wise decay": whole.replace({"name": "whole-encoder", **size}),
    }
    rows, stages = [], []
    for name, recipe in recipes.items():
        scores, minutes = zip(
            *(trained(recipe.replace({"seed": seed})) for seed in SEEDS), strict=True
        )
        stages = list(scores) if "three" in name else stages
        gain = (
            str(estimate([s - t for s, t in zip(scores, stages, strict=True)]))
            if stages and "three" not in name
            else ""
        )
        mean = f"{sum(scores) / len(scores):.3f}"
        rows.append(
            (name, *(f"{s:.3f}" for s in scores), mean, gain, f"{sum(minutes) / len(minutes):.1f}")
        )
        sys.stdout.write(f"{name}: {mean} {gain}\n")
        sys.stdout.flush()
    columns = (
        "trained",
        *(f"seed {s}" for s in SEEDS),
        "mean IoU",
        "over three stages (95 %)",
        "CPU minutes",
    )
    sys.stdout.write(f"\n{Table(columns, tuple(rows))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
