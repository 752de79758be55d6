"""What is gained by not computing twice: CPU seconds beside those of other trainers, step by step in turn, in one process.

    python benchmarks/bench.py [small] [base] [twelve]        (`make bench`: all three)

`small`, `base`: five contenders (benchmarks/contenders.py) train the same model on the same generated images, 224 x 224, in
batches of 8, three epochs of one view: a plain loop, Lightning and the Hugging Face Trainer, which run the frozen encoder in
every step; ours without a cache; ours with one, whose first epoch fills it. `base` has random weights, which cost the same, and
races against the plain loop alone. `twelve`: twelve variants of stage 2 after the same stage 1, against twelve whole runs of
the plain loop, of which one for each depth is really run. Prints tables with the bound that floating-point operations set,
writes runs/bench.json, and exits 1 on a missed target.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
import transformers
from contenders import build, ours, plain, with_hf_trainer, with_lightning
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

import vitseg
from vitseg.data.dataset import SegmentationData
from vitseg.events import StageStarted
from vitseg.model.freeze import set_freeze_depth
from vitseg.recipe import Recipe
from vitseg.settings import Constant, Data, Exponential, Generated, Model, Stage
from vitseg.ui.table import Table

SIZE, IMAGES, EPOCHS = (224, 224), 60, 3
TARGETS = {
    ("small", 0): {"epoch": 5.0}, ("base", 0): {"epoch": 15.0},
    ("small", 2): {"train": 2.1, "valid": 4.0}, ("small", 4): {"train": 1.5, "valid": 2.2},
}  # fmt: skip
FIRST = 1.15
DEPTHS, RATES, SCHEDULES = (1, 2, 4), (6e-4, 3e-4), (Constant(), Exponential(gamma=0.8))


def recipe_for(encoder: str, unfrozen: int, cache: bool) -> Recipe:
    stage = Stage(name="stage", unfrozen_blocks=unfrozen, epochs=EPOCHS, lr=1e-3, schedule=Constant())
    data = Data(source=Generated(images=IMAGES, side=SIZE[0]), size=SIZE, views=1)
    return Recipe(data=data, model=Model(encoder=encoder), stages=(stage,), batch_size=8, cache=cache)


@contextmanager
def own_cache() -> Iterator[Path]:
    """An empty feature cache; the weights stay where they are."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weights").symlink_to(WEIGHTS, target_is_directory=True)
        os.environ["VITSEG_CACHE"] = folder
        yield Path(folder)


def drawn(recipe: Recipe) -> SegmentationData:
    """The data, every image drawn before anything is timed."""
    data = SegmentationData(recipe.data)
    for name in (name for split in data.splits.values() for name in split):
        data.load(name)
    return data


def race(encoder: str, unfrozen: int, others: bool) -> dict[str, dict[str, float]]:
    """Mean CPU seconds of a training and a validation step, by contender; of ours with a cache also of the first epoch."""
    uncached, cached = (recipe_for(encoder, unfrozen, cache) for cache in (False, True))
    with own_cache():
        data = drawn(cached)
        runners = {"plain": plain(uncached, data), "uncached": ours(uncached, data), "cached": ours(cached, data)}
        if others:
            runners |= {"lightning": with_lightning(uncached, data), "hf": with_hf_trainer(uncached, data)}
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
                break
    steps = {kind: len(times) // (EPOCHS + (kind == "valid")) for kind, times in spent["plain"].items()}
    later = {name: {k: _mean(t[steps[k] :]) for k, t in kinds.items()} for name, kinds in spent.items()}
    first = {k: _mean(t[: steps[k]]) for k, t in spent["cached"].items()}
    costs = later | {"first": first}
    return {name: c | {"epoch": sum(steps[k] * c[k] for k in steps)} for name, c in costs.items()}


def variants() -> list[Recipe]:
    """Twelve recipes that differ in stage 2 alone."""
    first = recipe_for("dinov2-small-packaged", 0, True)
    return [
        first.replace({"name": f"variant{n}", "stages": (first.stages[0], _second(*setting))})
        for n, setting in enumerate(product(DEPTHS, RATES, SCHEDULES))
    ]


def _second(unfrozen: int, lr: float, schedule: object) -> Stage:
    return Stage(name="second", unfrozen_blocks=unfrozen, epochs=EPOCHS, lr=lr, schedule=schedule)


def twelve() -> dict[str, float]:
    """CPU and wall seconds of all variants by ours and by the plain loop, and what operations allow."""
    recipes, per_depth = variants(), len(RATES) * len(SCHEDULES)
    with own_cache() as folder:
        os.environ["VITSEG_RUNS"] = str(folder / "runs")
        drawn(recipes[0])
        begun = time.process_time(), time.monotonic()
        begun_stages = [event.stage for recipe in recipes for event in _trained(recipe)]
        mine = time.process_time() - begun[0], time.monotonic() - begun[1]
    del os.environ["VITSEG_RUNS"]
    theirs = [0.0, 0.0]
    data = drawn(recipes[0])
    for depth in DEPTHS:
        begun = time.process_time(), time.monotonic()
        for unfrozen in (0, depth):
            for _ in plain(recipe_for("dinov2-small-packaged", unfrozen, False), data):
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


def operations(encoder: str) -> tuple[float, float, int]:
    """Operations of a forward pass, an image: of one block and of the decoder; and the number of blocks."""
    recipe = recipe_for(encoder, 0, False)
    model = build(recipe, SegmentationData(recipe.data))
    set_freeze_depth(model, 0)
    images = torch.zeros(1, 3, *SIZE)
    whole, levels = _flops(lambda: model.prefix(images))
    decoder, _ = _flops(lambda: model.suffix(levels, SIZE))
    return whole / model.encoder.depth, decoder, model.encoder.depth


def bound(encoder: str, unfrozen: int) -> float:
    """What operations allow for a training step: all of it over what cannot be kept. Backward takes twice a forward pass."""
    block, decoder, depth = operations(encoder)
    tail = 3 * (decoder + unfrozen * block)
    return ((depth - unfrozen) * block + tail) / tail


def _bound_of_twelve(per_depth: int) -> float:
    """Of the training steps: twelve stages 1 and 2 whole, over one stage 1 and twelve stages 2 of what cannot be kept."""
    block, decoder, depth = operations("dinov2-small-packaged")
    tails = [3 * (decoder + k * block) for k in DEPTHS]
    whole = sum(per_depth * (depth * block + 3 * decoder + (depth - k) * block + t) for k, t in zip(DEPTHS, tails, strict=True))
    return whole / (depth * block + 3 * decoder + per_depth * sum(tails))


def _flops(act) -> tuple[float, object]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = act()
    return float(counter.get_total_flops()), result


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def base_encoder(folder: Path) -> str:
    """DINOv2-base with random weights: the time is that of the real one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=768, num_attention_heads=12, image_size=518, patch_size=14)
        Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def _share(cost: dict[str, dict[str, float]], name: str) -> str:
    return f"{cost[name]['epoch'] / cost['plain']['epoch']:.2f}" if name in cost else ""


def main(parts: list[str]) -> int:
    found, rows, ok = [], [], True
    with tempfile.TemporaryDirectory() as folder:
        encoders = {"small": "dinov2-small-packaged"} | (
            {"base": base_encoder(Path(folder) / "base")} if "base" in parts else {}
        )
        for size, unfrozen in [(s, k) for s in parts if s in encoders for k in (0, 2, 4)]:
            cost, most = race(encoders[size], unfrozen, size == "small"), bound(encoders[size], unfrozen)
            ratio = {k: cost["plain"][k] / cost["cached"][k] for k in ("train", "valid", "epoch")}
            first = cost["first"]["epoch"] / cost["plain"]["epoch"]
            missed = [k for k, target in TARGETS.get((size, unfrozen), {}).items() if ratio[k] < target]
            missed += ["first"] * (first > FIRST)
            ok = ok and not missed
            found.append({"encoder": size, "unfrozen": unfrozen, "ratio": ratio, "first": first, "bound": most, "cpu": cost})
            others = [_share(cost, name) for name in ("lightning", "hf", "uncached")]
            rows.append((size, str(unfrozen), *(f"{ratio[k]:.2f}" for k in ratio), f"{most:.2f}", f"{first:.2f}", *others,
                         ", ".join(missed) or "met"))  # fmt: skip
            sys.stdout.write(f"{size}, {unfrozen} unfrozen: done\n")
            sys.stdout.flush()
    if rows:
        columns = ("encoder", "unfrozen", "train x", "valid x", "epoch x", "bound, train", "first epoch", "Lightning",
                   "HF Trainer", "ours uncached", "targets")  # fmt: skip
        words = "CPU of the plain loop over ours; from 'first epoch' on: an epoch's CPU over that of the plain loop"
        sys.stdout.write(f"\n{Table(columns, tuple(rows), words)}\n")
    if "twelve" in parts:
        result = twelve()
        found.append(result)
        ok = ok and (result["stage 1 trained"], result["stage 2 trained"]) == (1, len(variants()))
        sys.stdout.write(
            f"\ntwelve variants of stage 2: stage 1 was trained {result['stage 1 trained']} time(s), stage 2 "
            f"{result['stage 2 trained']} times; {result['cpu']:.2f} x less CPU, {result['wall']:.2f} x less time than twelve "
            f"whole runs of the plain loop (bound of their training steps: {result['bound']:.2f})\n"
        )
    file = vitseg.runs_root() / "bench.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if ok else 1


if __name__ == "__main__":
    from vitseg.model.weights import cache_folder, packaged_folder

    packaged_folder()
    WEIGHTS = cache_folder() / "weights"
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.exit(main(sys.argv[1:] or ["small", "base", "twelve"]))
