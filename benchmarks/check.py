"""How fast a data set is looked through, and what training then waits for its images.

    python benchmarks/check.py [FOLDER ...]
        (with $VITSEG_REAL_DATA, or ../shared/data beside the checkout: its sets too)

Images and masks a second, of 300 generated pairs of 512 x 512, half of them photographs, and of
each folder, every pixel decoded and counted. Then the start of a
training on a folder of 2,000 such photographs: the first, and the second, which finds what the
first one saw in the cache; a process each, digests of all files included. Then a stage 1 of
DINOv2-small with the lean decoder, 224 x 224, whose features are kept: the share of an epoch in
which training and validation wait for their batches, in epochs after the first, which fills the
cache. Of the waiting a part is the check of one view an epoch, which is computed and compared with
what was kept. Writes runs/check.json, and exits 1 if the
second start takes more than a tenth of the first, or if waiting takes a tenth of each of these
epochs. Other load makes it longer: measure on a machine of your own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

import vitseg
from vitseg.data.check import Check
from vitseg.data.synthetic import generate
from vitseg.events import EpochEnded, StageStarted
from vitseg.files import write_json
from vitseg.recipe import Recipe
from vitseg.settings import Constant, Data, Folder, Generated, Stage
from vitseg.training.cache import FeatureCache
from vitseg.training.features import FeatureBatch, Features
from vitseg.training.job import Job
from vitseg.training.loop import StageTraining
from vitseg.ui.table import Table

MOST = 0.1
PAIRS, SIDE, PHOTOGRAPHS = 300, 512, 2000

START = """
import sys, time
from vitseg.data.dataset import SegmentationData
from vitseg.settings import Data, Folder
began = time.perf_counter()
SegmentationData(Data(source=Folder(path=sys.argv[1]))).digest()
print(time.perf_counter() - began)
"""


def made(place: Path) -> Path:
    for kind in ("images", "masks"):
        (place / kind).mkdir(parents=True)
    return place


def draw(place: Path) -> Path:
    """A folder of generated pairs."""
    cfg = Generated(images=PAIRS, side=SIDE)
    made(place)
    for n in range(PAIRS):
        image, ids = generate(cfg, n)
        image.save(
            place / "images" / f"{n}{'.jpg' if n % 2 else '.png'}",
            **({"quality": 90} if n % 2 else {"compress_level": 1}),
        )
        Image.fromarray(ids).save(place / "masks" / f"{n}.png", compress_level=1)
    return place


def photographs(place: Path) -> Path:
    """A folder of 2,000 JPEGs that all differ, and their masks: 20 generated pairs, each shifted a
    hundred times.
    """
    cfg, each = Generated(images=20, side=SIDE), PHOTOGRAPHS // 20
    made(place)
    for n in range(PHOTOGRAPHS):
        if n % each == 0:
            image, ids = generate(cfg, n // each)
        shifted = Image.fromarray(np.roll(image, n % each, axis=1))
        shifted.save(place / "images" / f"{n}.jpg", quality=90)
        mask = Image.fromarray(np.roll(ids, n % each, axis=1))
        mask.save(place / "masks" / f"{n}.png", compress_level=1)
    return place


def starts(folder: Path) -> list[float]:
    """Seconds of a first start on a folder, and of a second."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", START, str(folder)]
        env = os.environ | {"VITSEG_CACHE": cache}
        said = [
            subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout
            for _ in range(2)
        ]
    return [float(line) for line in said]


def rates(folder: Path) -> dict[str, float]:
    """Files a second of a whole check, nothing cached."""
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"VITSEG_CACHE": cache}):
        began = time.perf_counter()
        check = Check(Data(source=Folder(path=str(folder))))
        took = time.perf_counter() - began
    return {"files": 2 * check.found, "whole": 2 * check.found / took}


def waiting() -> list[dict[str, float]]:
    """Seconds of each epoch, and those in which nothing but the next batch was waited for."""
    start = waited = compared = 0.0
    epochs, batches, same = [], Features.batches, Features._same

    def timed(self: Features, *arguments: object, **options: object) -> Iterator[FeatureBatch]:
        nonlocal waited
        inner = batches(self, *arguments, **options)
        while True:
            asked = time.perf_counter()
            batch = next(inner, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def timed_same(self: Features, *arguments: object, **options: object) -> bool:
        nonlocal compared
        asked = time.perf_counter()
        found = same(self, *arguments, **options)
        compared += time.perf_counter() - asked
        return found

    stage = Stage(name="stage", unfrozen_blocks=0, epochs=3, lr=1e-3, schedule=Constant())
    data = Data(source=Generated(images=160, side=224), size=(224, 224), views=1)
    recipe = Recipe(data=data, stages=(stage,), batch_size=8)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.multiple(Features, batches=timed, _same=timed_same),
    ):
        job = Job(recipe)
        job.cache = FeatureCache(Path(folder))
        for event in StageTraining(job, 1):
            if isinstance(event, EpochEnded):
                epochs.append(
                    {"seconds": time.perf_counter() - start, "waited": waited, "compared": compared}
                )
            if isinstance(event, StageStarted | EpochEnded):
                start, waited, compared = time.perf_counter(), 0.0, 0.0
    return epochs


def real_sets() -> list[Path]:
    root = Path(os.environ.get("VITSEG_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return sorted(p.parent for p in root.glob("*/train"))


def main(folders: list[str]) -> int:
    with tempfile.TemporaryDirectory() as place:
        named = {f"{PAIRS} pairs, {SIDE} x {SIDE}": draw(Path(place) / "data")}
        named |= {path.name: path for path in map(Path, folders or real_sets())}
        found = {name: rates(path) for name, path in named.items()}
        first, second = starts(photographs(Path(place) / "photographs"))
    rows = [(name, f"{r['files']}", f"{r['whole']:.0f}") for name, r in found.items()]
    columns = ("", "files", "a second")
    sys.stdout.write(f"{Table(columns, tuple(rows), 'Check')}\n\n")
    sys.stdout.write(
        f"{PHOTOGRAPHS} photographs, {SIDE} x {SIDE}: first start {first:.2f} s, second "
        f"{second:.2f} s, ratio {second / first:.3f}\n\n"
    )
    sys.stdout.flush()
    epochs = waiting()
    shares = [e["waited"] / e["seconds"] for e in epochs]
    rows = [
        (
            str(n),
            f"{e['seconds']:.1f} s",
            f"{e['waited']:.2f} s",
            f"{e['compared']:.2f} s",
            f"{100 * share:.1f} %",
        )
        for n, (e, share) in enumerate(zip(epochs, shares, strict=True), start=1)
    ]
    columns = ("epoch", "took", "waited for batches", "of it checked", "share")
    sys.stdout.write(f"{Table(columns, tuple(rows), 'Stage 1, features kept')}\n")
    file = vitseg.runs_root() / "check.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"files_a_second": found, "starts": [first, second], "epochs": epochs})
    return 0 if second <= first / 10 and min(shares[1:]) < MOST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
