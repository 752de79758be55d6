"""Train the quick recipe on real data sets, time it against its forecast, and score its best/ with
scikit-learn.

    python benchmarks/real.py [FOLDER ...]
        (default: ../shared/data/fuseg and camvid; `make real`)

Every run trains all of its stages, on an empty feature cache. Prints a table, writes
runs/real.json, and exits 1 when scikit-learn, in a process that has not trained, disagrees with
summary.json by more than 0.005 IoU; when the forecast of a run is more than 25 % off; when a run
takes more CPU minutes than its set allows; or when its IoU misses the floor.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import vitseg
from vitseg.files import cache_folder
from vitseg.recipe import Recipe
from vitseg.runs.forecast import forecast, measure
from vitseg.training.job import Job
from vitseg.ui.table import Table

FLOORS = {"fuseg": 0.73, "camvid": 0.63}
MOST_CPU_MINUTES = {"fuseg": 22, "camvid": 20}
TOLERANCE, OFF = 0.005, 0.25
DEFAULT = [Path(__file__).parents[2] / "shared" / "data" / name for name in FLOORS]


def rescore(folder: Path) -> float:
    """IoU of best/ on the validation images by scikit-learn, in this process, which has not
    trained.
    """
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
        job = Job(recipe)
        expected = sum(stage.seconds for stage in forecast(job, measure(job)))
        recipe.save(Path(folder) / "recipe.json")
        run, started, spent = vitseg.new_run(recipe.name), time.monotonic(), cpu_seconds()
        command = [
            sys.executable,
            "-m",
            "vitseg",
            "run",
            Path(folder) / "recipe.json",
            str(run.path),
            "--retrain",
        ]
        subprocess.run(command, check=True)
        minutes, cpu = (time.monotonic() - started) / 60, (cpu_seconds() - spent) / 60
        again = [sys.executable, __file__, "--score", str(run.path)]
        scored = subprocess.run(again, check=True, capture_output=True, text=True)
    rows = run.summary["stages"]
    return {
        "data": name,
        "epochs": [row["epochs"] for row in rows],
        "minutes": minutes,
        "cpu": cpu,
        "stages": [row["best"]["iou"] for row in rows],
        "sklearn": float(scored.stdout),
        "run": str(run.path),
        "forecast": expected / 60,
        "taken": sum(row["seconds"] for row in rows) / 60,
    }


def cpu_seconds() -> float:
    """Of all processes that this one has waited for."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def missed(row: dict) -> list[str]:
    """Which of its promises a run has broken."""
    name = row["data"]
    found = {
        "scikit-learn": abs(row["stages"][-1] - row["sklearn"]) > TOLERANCE,
        "forecast": abs(row["forecast"] / row["taken"] - 1) > OFF,
        "CPU time": row["cpu"] > MOST_CPU_MINUTES.get(name, math.inf),
        "floor": row["stages"][-1] < FLOORS.get(name, 0),
    }
    return [promise for promise, bad in found.items() if bad]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--score"]:
        sys.stdout.write(f"{rescore(Path(arguments[1]))}\n")
        return 0
    folders = list(map(Path, arguments)) or DEFAULT
    if absent := [str(folder) for folder in folders if not folder.is_dir()]:
        sys.stderr.write(
            f"{', '.join(absent)}: no such folder. data/README.md says where these sets come "
            f"from.\n"
        )
        return 2
    rows = [train_and_score(vitseg.quick(folder), folder.name) for folder in folders]
    (vitseg.runs_root() / "real.json").write_text(
        json.dumps(rows, indent=2) + "\n", encoding="utf-8"
    )
    columns = (
        "data",
        "epochs",
        "IoU after stage 1",
        "2",
        "3",
        "scikit-learn",
        "CPU minutes",
        "minutes",
        "forecast",
        "taken",
        "missed",
    )
    cells = [
        (
            r["data"],
            " + ".join(map(str, r["epochs"])),
            *(f"{iou:.3f}" for iou in r["stages"]),
            f"{r['sklearn']:.3f}",
            f"{r['cpu']:.1f}",
            f"{r['minutes']:.1f}",
            f"{r['forecast']:.1f}",
            f"{r['taken']:.1f}",
            ", ".join(missed(r)),
        )
        for r in rows
    ]
    title = "minutes: the whole run; forecast and taken: its stages"
    sys.stdout.write(f"\n{Table(columns, tuple(cells), title)}\n")
    return 1 if any(map(missed, rows)) else 0


if __name__ == "__main__":
    WEIGHTS = cache_folder() / "weights"
    sys.exit(main(sys.argv[1:]))
