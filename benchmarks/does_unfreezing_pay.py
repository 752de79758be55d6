"""Does unfreezing pay on these images? Depth 0, 2 and 4 in stage 2, three seeds, against the same
epochs in stage 1.

    python benchmarks/does_unfreezing_pay.py FOLDER [--schedulers]

The recipe of careful.py at two thirds of its canvas, with one later stage that has the epochs of
both. With --schedulers the later stage's depth is crossed with cosine restarts and exponential
decay. About an hour on two cores, and the same command goes on where it was cut off. Prints the
table, the effects and the sentence; the sweep's folder keeps all of it.
"""

from __future__ import annotations

import sys
import time

from careful import careful

import vitseg
from vitseg.settings import CosineRestarts, Exponential
from vitseg.sweep.findings import Findings


def main(folder: str, *options: str) -> int:
    quick = careful(folder)
    later = quick.stages[1].model_dump(mode="json") | {
        "epochs": quick.stages[1].epochs + quick.stages[2].epochs
    }
    size = tuple(round(side * 2 / 3 / 14) * 14 for side in quick.data.size)
    recipe = quick.replace(
        {"stages": [quick.stages[0].model_dump(mode="json"), later], "data.size": size}
    )
    axes = {"stages.1.unfrozen_blocks": [0, 2, 4]}
    if "--schedulers" in options:
        axes["stages.1.schedule"] = [Exponential(gamma=0.8), CosineRestarts()]
    began = time.monotonic()
    ablation = vitseg.ablate(recipe, axes, seeds=3)
    ablation.finish()
    sys.stdout.write(f"\n{ablation.table}\n\n")
    for name, gain in Findings(ablation.grid, ablation.sweep.results()).main_effects():
        sys.stdout.write(f"{name}: {gain}\n")
    sys.stdout.write(
        f"\n{ablation.sentence}\n{(time.monotonic() - began) / 60:.0f} minutes; "
        f"{ablation.sweep.path}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
