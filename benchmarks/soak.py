"""Kill trainings with SIGKILL, again and again, and compare what they end with: `make soak`, or

    python benchmarks/soak.py [KILLS] [SEED] [SABOTAGE]        (200 kills by default)

A run of three stages on a tiny encoder is killed at a random moment, or inside a save (before or
after a sync or a rename, or with a file half written), and resumed, until it ends. Then its log,
its weights, its optimizer's state and its best weights are compared byte for byte with those of a
run that nobody killed. At least a quarter of the kills fall into saves. Prints a table, writes
runs/soak.json, and exits 1 on any difference or leftover. SABOTAGE switches one mechanism off,
which must make it exit with 1: "in place" (files are written where they belong, and believed),
"global draws", or "log not cut back".
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

import vitseg
from vitseg.files import UNSEALED, write_json
from vitseg.model import noise
from vitseg.recipe import Recipe, load_recipe
from vitseg.runs import checkpoint, run
from vitseg.runs.folder import RunFolder
from vitseg.settings import Constant, CosineRestarts, Data, Exponential, Generated, Model, Stage
from vitseg.ui.table import Table

PLACES = ("time", "sync", "rename", "torn")
PRELOADED = [
    "vitseg.runs.run",
    "transformers.models.auto.modeling_auto",
    "transformers.models.dinov2.modeling_dinov2",
]
"""What takes seconds to import, once for all processes."""

MOST_KILLS = 3
"""Of one run: then it is let be, so that it ends."""


def tiny(folder: Path) -> Recipe:
    """The recipe below on an encoder of four random blocks."""
    config = AutoConfig.for_model(
        "dinov2",
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=14,
        image_size=70,
        mlp_ratio=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    return three_short_stages(str(folder))


def three_short_stages(encoder: str) -> Recipe:
    """12 generated images: 10 train (batches of 2, so 5 an epoch), 2 validation. With views,
    drop-path and layer decay.
    """
    return Recipe(
        name="tiny",
        data=Data(
            source=Generated(images=12, classes=3, side=70),
            size=(70, 70),
            validation_fraction=0.17,
            views=2,
        ),
        model=Model(encoder=encoder),
        stages=(
            Stage(
                name="Frozen",
                unfrozen_blocks=0,
                epochs=2,
                lr=1e-3,
                schedule=CosineRestarts(T_0=3, burn_in_batches=4),
            ),
            Stage(
                name="Last",
                unfrozen_blocks=1,
                epochs=2,
                lr=3e-4,
                schedule=Exponential(gamma=0.5),
                drop_path=0.2,
            ),
            Stage(
                name="Deeper",
                unfrozen_blocks=2,
                epochs=1,
                lr=1e-4,
                schedule=Constant(),
                layer_decay=0.8,
            ),
        ),
        batch_size=2,
        threads=1,
    )


def write_in_place() -> None:
    """Nothing aside, no rename, and nobody asks whether a file is what was written."""

    @contextlib.contextmanager
    def straight(path: Path, need: int = 0, store: Path | None = None) -> Iterator[Path]:
        if not path.suffix:
            path.mkdir(parents=True, exist_ok=True)
        yield path
        os.fsync(os.open(path, os.O_RDONLY))

    def believe(folder: RunFolder) -> tuple[dict | None, list[str]]:
        there = checkpoint._newest_first(folder)
        return (checkpoint._load(there[0]) if there else None), []

    checkpoint.whole_file = run.whole_folder = straight
    run.newest_checkpoint = believe


def draw_from_torch() -> None:
    """Dropout and drop-path from torch's global generator, seeded once, as everybody does it."""
    torch.manual_seed(0)
    noise.KeyedNoise.drop = lambda self, x, units, layer: (
        x * (torch.rand(len(x), units, *[1] * (x.ndim - 2)) >= self.rate) / (1 - self.rate)
    )


def leave_the_log() -> None:
    """A resumed run writes on at the end of the log, wherever its checkpoint was taken."""

    def keep_all(folder: RunFolder, sequence: int, offset: int) -> None:
        folder.sequence = sequence

    RunFolder.cut_back = keep_all


SABOTAGE = {
    "": lambda: None,
    "in place": write_in_place,
    "global draws": draw_from_torch,
    "log not cut back": leave_the_log,
}


def train_or_resume(folder: Path, recipe: Path, place: str, count: int, sabotage: str = "") -> None:
    """In a process of its own: go on with the run, with a checkpoint after every step, and die at
    the `count`-th such place.
    """
    checkpoint.EVERY_SECONDS = 0.0
    RunFolder.drop_checkpoints = lambda run: None  # the optimizer's state is compared too
    SABOTAGE[sabotage]()
    if place == "sync":
        os.fsync = _dies(os.fsync, count)
    if place == "rename":
        Path.rename, Path.replace = _dies(Path.rename, count), _dies(Path.replace, count)
    if place == "torn":
        checkpoint.save_file = _torn(checkpoint.save_file, count)
    begun = (folder / "events.jsonl").exists()
    for _ in (
        vitseg.resume(folder) if begun else vitseg.train(load_recipe(recipe), folder, reuse=False)
    ):
        pass


def _dies(act: Callable, count: int) -> Callable:
    """`act`, but its `count`-th call is this process's last: half of the times before it is done,
    half after.
    """
    calls = iter(range(1, sys.maxsize))

    def last(*more: object) -> object:
        number = next(calls)
        if number == count and count % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = act(*more)
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return last


def _torn(save: Callable, count: int) -> Callable:
    """As if the file system had kept half of a file: its `count`-th is cut in two."""
    calls = iter(range(1, sys.maxsize))

    def half(tensors: dict, path: Path, metadata: dict) -> None:
        save(tensors, path, metadata)
        if next(calls) == count:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return half


def kill_until_it_ends(
    folder: Path, recipe: Path, rng: random.Random, seconds: float, sabotage: str
) -> Counter[str]:
    """Where the kills of one run fell. It ends by itself, or with an error."""
    processes, kills = multiprocessing.get_context("forkserver"), Counter[str]()
    while True:
        place = rng.choice(PLACES) if kills.total() < MOST_KILLS else "none"
        process = processes.Process(
            target=train_or_resume, args=(folder, recipe, place, rng.randint(1, 12), sabotage)
        )
        process.start()
        process.join(rng.uniform(0, seconds) if place == "time" else 600)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode != -signal.SIGKILL:
            return kills
        kills[place] += 1


def taken_apart(checkpoint: bytes) -> tuple[bytes, bytes]:
    """The position in a checkpoint, without the digest, and its tensors; of a torn one, what there
    is.
    """
    end = 8 + int.from_bytes(checkpoint[:8], "little")
    with contextlib.suppress(ValueError):
        state = json.loads(checkpoint[8:end])["__metadata__"]["vitseg"]
        return state[len(UNSEALED) :].encode(), checkpoint[end:]
    return b"torn", checkpoint


def content(folder: Path) -> dict[str, bytes]:
    """All that a run ends with, but for the clock's: log, best weights, stage ends and the newest
    checkpoint.
    """
    kept = [
        folder / "events.jsonl",
        folder / "summary.json",
        *(folder / "best").rglob("*"),
        *(folder / "stages").rglob("*"),
    ]
    left = folder.rglob(".*.new")
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in [*kept, *left] if p.is_file()
    }
    for newest in sorted((folder / "checkpoints").glob("[!.]*"))[-1:]:
        state, tensors = taken_apart(newest.read_bytes())
        found[f"checkpoints/{newest.stem}/state.json"] = state
        found[f"checkpoints/{newest.stem}/tensors"] = tensors
    return (
        found | {"summary.json": b"there"} if "summary.json" in found else found
    )  # it holds seconds


def soak(kills: int, seed: int, place: Path, sabotage: str = "") -> dict[str, object]:
    """Run after run until that many kills have fallen. The result says how many, where, and which
    runs ended otherwise.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    recipe, rng, fell, different, runs = (
        tiny(place / "encoder"),
        random.Random(seed),
        Counter[str](),
        [],
        0,
    )
    recipe.save(place / "recipe.json")
    os.environ["VITSEG_CACHE"] = str(place / "cache")
    for name in ("warm", "whole"):  # the second says how long one takes
        began = time.monotonic()
        train = multiprocessing.get_context("forkserver").Process(
            target=train_or_resume, args=(place / name, place / "recipe.json", "none", 0, sabotage)
        )
        train.start()
        train.join()
    seconds, wanted = time.monotonic() - began, content(place / "whole")
    while fell.total() < kills:
        folder = place / f"run{runs}"
        fell += kill_until_it_ends(folder, place / "recipe.json", rng, seconds, sabotage)
        runs += 1
        found = content(folder)
        different += [
            f"{folder.name}/{n}"
            for n in sorted(wanted.keys() | found.keys())
            if wanted.get(n) != found.get(n)
        ]
    return {"runs": runs, "kills": fell.total(), "fell": dict(fell), "different": different}


def main(kills: str = "200", seed: str = "0", sabotage: str = "") -> int:
    with tempfile.TemporaryDirectory() as folder:
        result = soak(int(kills), int(seed), Path(folder), sabotage)
    rows = [(place, str(number)) for place, number in result["fell"].items()]
    words = (
        f"{result['kills']} kills in {result['runs']} runs; {len(result['different'])} files "
        f"differ from the run left alone"
    )
    sys.stdout.write(f"{Table(('killed at', 'times'), tuple(rows), words)}\n")
    file = vitseg.runs_root() / "soak.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    sys.stdout.write("".join(f"{name}\n" for name in result["different"]))
    inside = sum(number for place, number in result["fell"].items() if place != "time")
    return 1 if result["different"] or inside < result["kills"] / 4 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
