"""What is gained by not computing twice: CPU seconds beside those of other trainers, step by step
in turn, in one process.

    python benchmarks/bench.py [small] [base] [unet] [twelve]        (`make bench`: all four)

`small`, `base`, `unet`: contenders (benchmarks/contenders.py) train the same model on the same
generated images, 224 x 224, in batches of 8, with one view: a plain loop, which runs the frozen
encoder in every step; ours without a cache; ours with one, whose first epoch fills it; for `small`
Lightning and the Hugging Face Trainer as well. `base` has random weights, which cost the same;
`unet` is small with the heavy decoder. `twelve`: twelve variants of stage 2 after the same stage 1,
against twelve whole runs of the plain loop, of which one for each depth is really run. Memory is
the peak of a process that trains with one contender alone. Prints tables with the bound that
floating-point operations set, writes runs/bench.json, and exits 1 on a missed target.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers
from contenders import build, ours, plain, with_hf_trainer, with_lightning
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

import vitseg
from vitseg.data.dataset import SegmentationData
from vitseg.events import StageStarted
from vitseg.files import cache_folder
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.weights import packaged_folder
from vitseg.recipe import Recipe
from vitseg.settings import Constant, Data, Exponential, Generated, Model, Stage
from vitseg.ui.table import Table

LENGTHS = {0: (400, 2)}
"""Images and epochs by unfrozen blocks, else 60 and 3. As many as the foot-ulcer set has: ours
computes one view an epoch to check what it reads, which is much of a short epoch of stage 1.
"""

CASES = {"small": ("small", "lean"), "base": ("base", "lean"), "unet": ("small", "unet")}
TARGETS = {
    ("small", 0): {"epoch": 5.0},
    ("base", 0): {"epoch": 15.0},
    ("small", 2): {"train": 2.1, "valid": 4.0},
    ("small", 4): {"train": 1.5, "valid": 2.2},
}
FIRST = 1.15
SMALL = "dinov2-small-packaged"
WEIGHTS = cache_folder() / "weights"
DEPTHS, RATES, SCHEDULES = (1, 2, 4), (6e-4, 3e-4), (Constant(), Exponential(gamma=0.8))


class Case(NamedTuple):
    """A model and how much of it trains. `encoder` is a name or folder."""

    encoder: str
    decoder: str = "lean"
    unfrozen: int = 0
    images: int = 60
    epochs: int = 3
    side: int = 224

    def recipe(self, cache: bool = False) -> Recipe:
        stage = Stage(
            name="stage",
            unfrozen_blocks=self.unfrozen,
            epochs=self.epochs,
            lr=1e-3,
            schedule=Constant(),
        )
        data = Data(
            source=Generated(images=self.images, side=self.side),
            size=(self.side, self.side),
            views=1,
        )
        model = Model(encoder=self.encoder, decoder=self.decoder)
        return Recipe(data=data, model=model, stages=(stage,), batch_size=8, cache=cache)


@contextmanager
def own_cache() -> Iterator[Path]:
    """An empty feature cache; the weights stay where they are."""
    packaged_folder()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, VITSEG_CACHE=folder):
        (Path(folder) / "weights").symlink_to(WEIGHTS, target_is_directory=True)
        yield Path(folder)


def drawn(recipe: Recipe) -> SegmentationData:
    """The data, every image drawn before anything is timed."""
    data = SegmentationData(recipe.data)
    for name in (name for split in data.splits.values() for name in split):
        data.load(name)
    return data


def race(case: Case, others: bool) -> dict[str, Any]:
    """Mean CPU seconds of a training and a validation step, by contender; of ours with a cache also
    of the first epoch.
    """
    uncached, cached = case.recipe(), case.recipe(cache=True)
    with own_cache() as folder:
        data = drawn(cached)
        runners = {
            "plain": plain(uncached, data),
            "uncached": ours(uncached, data),
            "cached": ours(cached, data),
        }
        if others:
            runners |= {
                "lightning": with_lightning(uncached, data),
                "hf": with_hf_trainer(uncached, data),
            }
        spent = in_turn(runners)
        kept = sum(f.stat().st_size for f in (folder / "features").rglob("*") if f.is_file())
    steps = {
        kind: len(times) // (case.epochs + (kind == "valid"))
        for kind, times in spent["plain"].items()
    }
    costs = {
        name: {k: fmean(t[steps[k] :]) for k, t in kinds.items()} for name, kinds in spent.items()
    }
    costs["first"] = {k: fmean(t[: steps[k]]) for k, t in spent["cached"].items()}
    costs = {name: c | {"epoch": sum(steps[k] * c[k] for k in steps)} for name, c in costs.items()}
    ratio = {k: costs["plain"][k] / costs["cached"][k] for k in ("train", "valid", "epoch")}
    return {"cpu": costs, "ratio": ratio, "kept": kept}


def in_turn(runners: dict[str, Iterator[str]]) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of every step, by contender and kind."""
    spent: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in runners}
    while True:
        kinds = set()
        for name, runner in runners.items():
            begun = time.process_time()
            kind = next(runner, None)
            if kind:
                spent[name][kind].append(time.process_time() - begun)
            kinds.add(kind)
        if len(kinds) > 1:
            raise RuntimeError(f"the contenders are out of step: {kinds}")
        if kinds == {None}:
            return spent


def peak_memory(case: Case, contender: str) -> int:
    """Bytes that a process which trains the case with one contender had at most; the plain loop
    needs no second epoch.
    """
    case = case._replace(images=60, epochs=2 if contender == "cached" else 1)
    command = [sys.executable, __file__, "--alone", contender, json.dumps(case)]
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def alone(contender: str, case: Case) -> int:
    """Train with one contender, print the peak of this process."""
    with own_cache():
        recipe = case.recipe(cache=contender == "cached")
        for _ in (plain if contender == "plain" else ours)(recipe, SegmentationData(recipe.data)):
            pass
    status = Path("/proc/self/status").read_text(
        encoding="utf-8"
    )  # a child's ru_maxrss begins with its parent's
    kilobytes = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    sys.stdout.write(f"{1024 * kilobytes}\n")
    return 0


def variants() -> list[Recipe]:
    """Twelve recipes that differ in stage 2 alone."""
    first = Case(SMALL).recipe(cache=True)
    return [
        first.replace({"name": f"variant{n}", "stages": (first.stages[0], _second(*setting))})
        for n, setting in enumerate(product(DEPTHS, RATES, SCHEDULES))
    ]


def _second(unfrozen: int, lr: float, schedule: object) -> Stage:
    return Stage(name="second", unfrozen_blocks=unfrozen, epochs=3, lr=lr, schedule=schedule)


def twelve() -> dict[str, float]:
    """CPU and wall seconds of all variants by ours and by the plain loop, and what operations
    allow.
    """
    recipes, per_depth = variants(), len(RATES) * len(SCHEDULES)
    with own_cache() as folder:
        os.environ["VITSEG_RUNS"] = str(folder / "runs")
        drawn(recipes[0])
        begun = time.process_time(), time.monotonic()
        begun_stages = [event.stage for recipe in recipes for event in _trained(recipe)]
        mine = time.process_time() - begun[0], time.monotonic() - begun[1]
    theirs = [0.0, 0.0]
    data = drawn(recipes[0])
    for depth in DEPTHS:
        begun = time.process_time(), time.monotonic()
        for unfrozen in (0, depth):
            for _ in plain(Case(SMALL, unfrozen=unfrozen).recipe(), data):
                pass
        spent = time.process_time() - begun[0], time.monotonic() - begun[1]
        theirs = [total + per_depth * seconds for total, seconds in zip(theirs, spent, strict=True)]
    return {
        "stage 1 trained": begun_stages.count(1),
        "stage 2 trained": begun_stages.count(2),
        "cpu": theirs[0] / mine[0],
        "wall": theirs[1] / mine[1],
        "bound": _bound_of_twelve(per_depth),
    }


def _trained(recipe: Recipe) -> list[StageStarted]:
    """The stages that a run has trained itself."""
    events = list(vitseg.train(recipe))
    inherited = (events[0].parent or {"stage": 0})["stage"]
    return [e for e in events if isinstance(e, StageStarted) and e.stage > inherited]


def operations(case: Case) -> tuple[float, float, int]:
    """Operations of a forward pass, an image: of one block and of the decoder; and the number of
    blocks.
    """
    recipe = case.recipe()
    model = build(recipe, SegmentationData(recipe.data))
    set_freeze_depth(model, 0)
    images = torch.zeros(1, 3, *recipe.data.size)
    whole, levels = _flops(lambda: model.prefix(images))
    decoder, _ = _flops(lambda: model.suffix(levels, recipe.data.size))
    return whole / model.encoder.depth, decoder, model.encoder.depth


def bounds(case: Case) -> dict[str, float]:
    """What operations allow: all of a step over what cannot be kept of it. Backward takes twice a
    forward pass.
    """
    block, decoder, depth = operations(case)
    prefix, tail = (depth - case.unfrozen) * block, decoder + case.unfrozen * block
    train, valid = (prefix + 3 * tail) / (3 * tail), (prefix + tail) / tail
    return {
        "train": train,
        "valid": valid,
        "epoch": (5 * prefix + 13 * tail) / (13 * tail),
    }  # four steps of training to one


def _bound_of_twelve(per_depth: int) -> float:
    """Of the training steps: twelve stages 1 and 2 whole, over one stage 1 and twelve stages 2 of
    what cannot be kept.
    """
    block, decoder, depth = operations(Case(SMALL))
    tails = [3 * (decoder + k * block) for k in DEPTHS]
    whole = sum(
        per_depth * (depth * block + 3 * decoder + (depth - k) * block + t)
        for k, t in zip(DEPTHS, tails, strict=True)
    )
    return whole / (depth * block + 3 * decoder + per_depth * sum(tails))


def _flops(act) -> tuple[float, object]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = act()
    return float(counter.get_total_flops()), result


def base_encoder(folder: Path) -> str:
    """DINOv2-base with random weights: the time is that of the real one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=768, num_attention_heads=12, image_size=518, patch_size=14
        )
        Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def measured(part: str, unfrozen: int, encoders: dict[str, str]) -> dict[str, Any]:
    """All of one row of the table."""
    size, decoder = CASES[part]
    case = Case(encoders[size], decoder, unfrozen, *LENGTHS.get(unfrozen, ()))
    found = {
        "encoder": size,
        "decoder": decoder,
        "unfrozen": unfrozen,
        "bound": bounds(case),
        **race(case, part == "small"),
    }
    found["memory"] = {contender: peak_memory(case, contender) for contender in ("plain", "cached")}
    found["first"] = found["cpu"]["first"]["epoch"] / found["cpu"]["plain"]["epoch"]
    missed = [
        k for k, target in TARGETS.get((part, unfrozen), {}).items() if found["ratio"][k] < target
    ]
    sys.stdout.write(f"{size}, {decoder}, {unfrozen} unfrozen: done\n")
    sys.stdout.flush()
    return found | {"missed": missed + ["first"] * (found["first"] > FIRST)}


def table(rows: list[dict[str, Any]]) -> Table:
    columns = (
        "encoder",
        "decoder",
        "unfrozen",
        "train x (bound)",
        "valid x (bound)",
        "epoch x (bound)",
        "first epoch",
        "Lightning",
        "HF Trainer",
        "ours uncached",
        "kept",
        "memory, plain and ours",
        "targets",
    )
    cells = []
    for row in rows:
        cpu, ratio = row["cpu"], row["ratio"]
        shares = [
            f"{cpu[n]['epoch'] / cpu['plain']['epoch']:.2f}" if n in cpu else ""
            for n in ("lightning", "hf", "uncached")
        ]
        memory = " and ".join(f"{row['memory'][who] / 1e9:.2f}" for who in ("plain", "cached"))
        cells.append(
            (
                row["encoder"],
                row["decoder"],
                str(row["unfrozen"]),
                *(f"{ratio[k]:.2f} ({row['bound'][k]:.1f})" for k in ratio),
                f"{row['first']:.2f}",
                *shares,
                f"{row['kept'] / 1e6:.0f} MB",
                f"{memory} GB",
                ", ".join(row["missed"]) or "met",
            )
        )
    words = (
        "CPU of the plain loop over ours; from 'first epoch' to 'ours uncached': an epoch's "
        "CPU over that of the plain loop"
    )
    return Table(columns, tuple(cells), words)


def main(parts: list[str]) -> int:
    if parts[:1] == ["--alone"]:
        return alone(parts[1], Case(*json.loads(parts[2])))
    found, ok = [], True
    with tempfile.TemporaryDirectory() as folder:
        encoders = {"small": SMALL} | (
            {"base": base_encoder(Path(folder) / "base")} if "base" in parts else {}
        )
        found += [
            measured(part, unfrozen, encoders)
            for part in parts
            if part in CASES
            for unfrozen in (0, 2, 4)
        ]
    if found:
        ok = not any(row["missed"] for row in found)
        sys.stdout.write(f"\n{table(found)}\n")
    if "twelve" in parts:
        result = twelve()
        found.append(result)
        ok = ok and (result["stage 1 trained"], result["stage 2 trained"]) == (1, len(variants()))
        sys.stdout.write(
            f"\ntwelve variants of stage 2: stage 1 was trained {result['stage 1 trained']} "
            f"time(s), stage 2 "
            f"{result['stage 2 trained']} times; {result['cpu']:.2f} x less CPU, "
            f"{result['wall']:.2f} x less time than twelve "
            f"whole runs of the plain loop (bound of their training steps: {result['bound']:.2f})\n"
        )
    file = vitseg.runs_root() / "bench.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if ok else 1


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.exit(main(sys.argv[1:] or [*CASES, "twelve"]))
