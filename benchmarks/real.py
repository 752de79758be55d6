"""Train the quick recipe on real data sets, time it against its forecast, and score its best/ with scikit-learn.

    python benchmarks/real.py [FOLDER ...]           (default: ../shared/data/fuseg and camvid; `make real`)
    python benchmarks/real.py --long [FOLDER ...]    20 + 6 + 6 epochs, seeds 0, 1 and 2; seed 0 of fuseg

Every run trains all of its stages, on an empty feature cache. Prints a table, writes runs/real.json (runs/real-long.json), and
exits 1 when scikit-learn, in a process that has not trained, disagrees with summary.json by more than 0.005 IoU; when the
forecast of a run is more than 25 % off; when a run takes longer than 30 minutes (15); or when the mean IoU misses its floor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import vitseg
from vitseg.places import cache_folder
from vitseg.recipe import Recipe
from vitseg.runs.forecast import forecast, measure
from vitseg.runs.work import prepare
from vitseg.ui.table import Table

FLOORS = {"fuseg": (0.62, 0.67), "camvid": (0.55, 0.62)}
"""The least IoU of the quick recipe, and of the long one."""

SEEDS = {"fuseg": 1}
"""Of the long run, where it is not three."""

TOLERANCE, MOST_MINUTES, OFF = 0.005, (30, 15), 0.25
DEFAULT = [Path(__file__).parents[2] / "shared" / "data" / name for name in FLOORS]


def rescore(folder: Path) -> float:
    """IoU of best/ on the validation images by scikit-learn, in this process, which has not trained."""
    import numpy as np
    from sklearn.metrics import jaccard_score

    run = vitseg.RunFolder(folder)
    model, data = vitseg.load(folder), vitseg.SegmentationData(run.recipe.data)
    truths, predictions = [], []
    for name in data.splits["validation"]:
        image, truth = data.load(name)
        predicted = model.predict(image)
        truths.append(truth[truth != 255])
        predictions.append(predicted[truth != 255])
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    if data.mode == "binary":
        return jaccard_score(truth > 0, predicted)
    return jaccard_score(truth, predicted, labels=np.unique(truth), average="macro")


def train_and_score(recipe: Recipe, name: str) -> dict:
    """Forecast a run, train it, and score it, on a feature cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weights").symlink_to(WEIGHTS, target_is_directory=True)
        os.environ["VITSEG_CACHE"] = folder
        work = prepare(recipe)
        expected = sum(stage.seconds for stage in forecast(recipe, measure(recipe, work), work))
        recipe.save(Path(folder) / "recipe.json")
        run, started = vitseg.new_run(recipe.name), time.monotonic()
        command = [sys.executable, "-m", "vitseg", "run", Path(folder) / "recipe.json", str(run.path), "--retrain"]
        subprocess.run(command, check=True)
        minutes = (time.monotonic() - started) / 60
        again = [sys.executable, __file__, "--score", str(run.path)]
        scored = subprocess.run(again, check=True, capture_output=True, text=True)
    rows = run.summary["stages"]
    return {
        "data": name, "seed": recipe.seed, "epochs": [row["epochs"] for row in rows], "minutes": minutes,
        "stages": [row["best"]["iou"] for row in rows], "sklearn": float(scored.stdout), "run": str(run.path),
        "forecast": expected / 60, "taken": sum(row["seconds"] for row in rows) / 60,
    }  # fmt: skip


def missed(row: dict, long: bool) -> list[str]:
    """What of its promises a run has not kept, its floor apart."""
    found = {
        "scikit-learn": abs(row["stages"][-1] - row["sklearn"]) > TOLERANCE,
        "forecast": abs(row["forecast"] / row["taken"] - 1) > OFF,
        "time": row["minutes"] > MOST_MINUTES[long],
    }
    return [name for name, bad in found.items() if bad]


def recipes(folder: Path, long: bool) -> list[Recipe]:
    recipe = vitseg.quick(folder)
    if not long:
        return [recipe]
    recipe = recipe.replace({f"stages.{n}.epochs": epochs for n, epochs in enumerate((20, 6, 6))})
    return [recipe.replace({"seed": seed}) for seed in range(SEEDS.get(folder.name, 3))]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--score"]:
        sys.stdout.write(f"{rescore(Path(arguments[1]))}\n")
        return 0
    long = "--long" in arguments
    folders = [Path(folder) for folder in arguments if folder != "--long"] or DEFAULT
    if absent := [str(folder) for folder in folders if not folder.is_dir()]:
        sys.stderr.write(f"{', '.join(absent)}: no such folder. data/README.md says where these sets come from.\n")
        return 2
    rows = [train_and_score(recipe, folder.name) for folder in folders for recipe in recipes(folder, long)]
    (vitseg.runs_root() / f"real{'-long' * long}.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    columns = (
        "data",
        "seed",
        "epochs",
        "IoU after stage 1",
        "2",
        "3",
        "scikit-learn",
        "minutes",
        "forecast",
        "taken",
        "missed",
    )
    cells = [
        (r["data"], str(r["seed"]), " + ".join(map(str, r["epochs"])), *(f"{iou:.3f}" for iou in r["stages"]),
         f"{r['sklearn']:.3f}", f"{r['minutes']:.1f}", f"{r['forecast']:.1f}", f"{r['taken']:.1f}",
         ", ".join(missed(r, long)))
        for r in rows
    ]  # fmt: skip
    sys.stdout.write(f"\n{Table(columns, tuple(cells), 'minutes: the whole run; forecast and taken: its stages')}\n")
    below = []
    for name in dict.fromkeys(r["data"] for r in rows):
        mean, floor = fmean(r["stages"][-1] for r in rows if r["data"] == name), FLOORS.get(name, (0, 0))[long]
        sys.stdout.write(f"{name}: mean IoU {mean:.3f}, floor {floor}\n")
        below += [name] * (mean < floor)
    return 1 if below or any(missed(r, long) for r in rows) else 0


if __name__ == "__main__":
    WEIGHTS = cache_folder() / "weights"
    sys.exit(main(sys.argv[1:]))
