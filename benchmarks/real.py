"""Train the quick recipe on real data sets and score its best/ with scikit-learn, in a process of its own.

    python benchmarks/real.py [FOLDER ...]        (default: ../shared/data/fuseg and camvid; `make real`)

Prints a table, writes runs/real.json, and exits 1 when scikit-learn disagrees with summary.json by more than
0.005 IoU, when a floor is missed, or when a run takes more than 30 minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import vitseg
from vitseg.ui.table import Table

FLOORS = {"fuseg": 0.62, "camvid": 0.55}
TOLERANCE, MOST_MINUTES = 0.005, 30
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


def train_and_score(data: Path) -> dict:
    run, started = vitseg.new_run(data.name), time.monotonic()
    subprocess.run([sys.executable, "-m", "vitseg", "run", "quick", str(run.path), "--data", str(data)], check=True)
    minutes = (time.monotonic() - started) / 60
    scored = subprocess.run([sys.executable, __file__, "--score", str(run.path)], check=True, capture_output=True, text=True)
    stages = [stage["best"]["iou"] for stage in run.summary["stages"]]
    row = {"data": data.name, "stages": stages, "sklearn": float(scored.stdout), "minutes": minutes, "run": str(run.path)}
    agrees, fast = abs(stages[-1] - row["sklearn"]) <= TOLERANCE, minutes <= MOST_MINUTES
    return row | {"ok": agrees and fast and stages[-1] >= FLOORS.get(data.name, 0)}


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--score"]:
        sys.stdout.write(f"{rescore(Path(arguments[1]))}\n")
        return 0
    folders = [Path(folder) for folder in arguments or DEFAULT]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        sys.stderr.write(f"{', '.join(missing)}: no such folder. data/README.md says where these sets come from.\n")
        return 2
    rows = [train_and_score(folder) for folder in folders]
    (vitseg.runs_root() / "real.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    columns = ("data", "IoU after stage 1", "2", "3", "scikit-learn on best/", "floor", "minutes", "ok")
    cells = [
        (r["data"], *(f"{iou:.3f}" for iou in r["stages"]), f"{r['sklearn']:.3f}", f"{FLOORS.get(r['data'], 0)}",
         f"{r['minutes']:.1f}", "yes" if r["ok"] else "NO")
        for r in rows
    ]  # fmt: skip
    sys.stdout.write(f"\n{Table(columns, tuple(cells))}\n")
    return 0 if all(r["ok"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
