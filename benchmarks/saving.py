"""What saving costs: the share of a run's time that goes into checkpoints, how large they are, and
what is left on disk.

    python benchmarks/saving.py [FOLDER]
        (the quick recipe, on generated images by default; minutes)

A checkpoint at the end of each epoch, and one a minute within it, as always. Beside the size of a
stage's checkpoint stands that of one with all weights and the optimizer's state of all of them, as
a training script usually writes it. Then 33 tiny trials of an ablation are trained. Of the run and
of the trials it is said what they take on disk, a file with several names counted once, the encoder
among them. Writes runs/saving.json, and exits 1 if saving takes more than 5 % of the time, the run
more than 120 MB, or the trials more than 700 MB.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import torch

import vitseg
from vitseg.events import StageEnded, StageStarted
from vitseg.files import write_json
from vitseg.runs import checkpoint
from vitseg.training.job import Job
from vitseg.ui.table import Table

MOST = 0.05
RUN_MB, TRIALS_MB = 120, 700
AXES = {"stages.1.unfrozen_blocks": [0, 1, 2, 3, 4], "stages.1.lr": [3e-4, 6e-4]}
"""Ten settings and a control, with three seeds."""


def on_disk(folder: Path) -> float:
    """Megabytes, a file with several names counted once."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[stat.st_ino] = stat.st_size
    return sum(found.values()) / 1e6


def trials(folder: Path) -> float:
    """Train 33 trials of two short stages on eight small images; megabytes of all of them."""
    settings = {"data.source.images": 8, "data.size": (56, 56), "batch_size": 4}
    recipe = vitseg.quick().replace(settings | {"stages": vitseg.quick().stages[:2]})
    recipe = recipe.replace({"stages.0.epochs": 1, "stages.1.epochs": 1})
    ablation = vitseg.ablate(recipe, AXES, seeds=3, folder=folder)
    ablation.finish()
    ended = len(list(folder.glob("trials/*/summary.json")))
    assert ended == 33, f"{ended} trials have ended"
    return on_disk(folder)


def whole_checkpoint(model: torch.nn.Module, file: Path) -> int:
    """Bytes of all weights and both moments of each."""
    for parameter in model.parameters():
        parameter.requires_grad_(True).grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return file.stat().st_size


def main(folder: str | None = None) -> int:
    spent: dict[int, list[float]] = defaultdict(list)
    sizes: dict[int, int] = {}
    save = checkpoint.save_checkpoint

    def timed(run: vitseg.RunFolder, state: dict) -> None:
        began = time.monotonic()
        save(run, state)
        spent[state["stage"]].append(time.monotonic() - began)
        sizes[state["stage"]] = max(run.checkpoints.iterdir()).stat().st_size

    recipe, seconds = vitseg.quick(folder), {}
    with tempfile.TemporaryDirectory() as place:
        job = Job(recipe)
        with patch.object(checkpoint, "save_checkpoint", timed):
            for event in vitseg.train(job, Path(place) / "run", reuse=False):
                if isinstance(event, StageStarted):
                    began = time.monotonic()
                if isinstance(event, StageEnded):
                    seconds[event.stage] = time.monotonic() - began
                    sys.stdout.write(f"stage {event.stage}: done\n")
                    sys.stdout.flush()
        of_run = on_disk(Path(place))
        whole = whole_checkpoint(job.model, Path(place) / "whole.pt")
        of_trials = trials(Path(place) / "ablation")
    rows = [
        (
            str(n),
            str(len(s)),
            f"{1000 * sum(s) / len(s):.0f} ms",
            f"{seconds[n]:.0f} s",
            f"{100 * sum(s) / seconds[n]:.2f} %",
            f"{sizes[n] / 1e6:.1f} MB",
            f"{whole / 1e6:.0f} MB",
        )
        for n, s in spent.items()
    ]
    columns = (
        "stage",
        "checkpoints",
        "each took",
        "the stage took",
        "share",
        "size",
        "with all weights",
    )
    sys.stdout.write(f"\n{Table(columns, tuple(rows))}\n")
    share = sum(map(sum, spent.values())) / sum(seconds.values())
    sys.stdout.write(f"{100 * share:.2f} % of the time\n")
    sys.stdout.write(f"the run takes {of_run:.0f} MB on disk, of at most {RUN_MB}\n")
    sys.stdout.write(f"33 tiny trials take {of_trials:.0f} MB on disk, of at most {TRIALS_MB}\n")
    file = vitseg.runs_root() / "saving.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        file,
        {
            "share": share,
            "seconds": seconds,
            "saving": dict(spent),
            "bytes": sizes,
            "whole": whole,
            "run_mb": of_run,
            "trials_mb": of_trials,
        },
    )
    return 0 if share < MOST and of_run <= RUN_MB and of_trials <= TRIALS_MB else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
