"""What saving costs: the share of a run's time that goes into checkpoints, and how large they are.

    python benchmarks/saving.py [FOLDER]
        (the quick recipe, on generated images by default; minutes)

A checkpoint at the end of each epoch, and one a minute within it, as always. Beside the size of a
stage's checkpoint stands that of one with all weights and the optimizer's state of all of them, as
a training script usually writes it. Writes runs/saving.json, and exits 1 if saving takes more than
5 % of the time.
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
from vitseg.runs import checkpoint
from vitseg.runs.durable import write_json
from vitseg.training.job import Job
from vitseg.ui.table import Table

MOST = 0.05


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

    def timed(place: Path, sequence: int, offset: int, state: dict) -> None:
        began = time.monotonic()
        save(place, sequence, offset, state)
        spent[state["stage"]].append(time.monotonic() - began)
        sizes[state["stage"]] = sum(f.stat().st_size for f in (place / f"{sequence:08d}").iterdir())

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
        whole = whole_checkpoint(job.model, Path(place) / "whole.pt")
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
    file = vitseg.runs_root() / "saving.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        file,
        {"share": share, "seconds": seconds, "saving": dict(spent), "bytes": sizes, "whole": whole},
    )
    return 0 if share < MOST else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
