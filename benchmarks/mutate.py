"""Spoil what vitseg reads, in every way that comes to mind, and see that nothing but a sentence
comes of it.

    python benchmarks/mutate.py [EXAMPLES]        (10,000 by default; part of `make soak`)

Checkpoints, logs and the other files of a run, saved models, recipes, images and masks are cut,
flipped, doubled, replaced by pickles that would write a file, or, where they are JSON, changed in
one value; manifests and digests are mended or not. Whatever opens them must go on, or raise a
VitsegError, within five seconds; no pickle may have been run. Prints a table, writes
runs/mutate.json, and fails with the smallest example that breaks this.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from soak import tiny

import vitseg
from vitseg.errors import VitsegError
from vitseg.events import BatchEnded
from vitseg.files import MANIFEST, UNSEALED, seal, sha256_of, write_json
from vitseg.recipe import load_recipe
from vitseg.runs.folder import RunFolder, replay
from vitseg.runs.narrate import explanation
from vitseg.runs.run import resume, train
from vitseg.settings import Data, Folder
from vitseg.ui.curves import Curves
from vitseg.ui.table import Table

SECONDS = 5.0
ODD = (
    None,
    True,
    -1,
    0,
    1,
    10**30,
    1e308,
    "",
    "x" * 3000,
    "../../x",
    "/etc/passwd",
    "<img src=x onerror=1>",
    [],
    {},
    [[]],
    {"a": 1},
)


CHECKPOINT = b'{"__metadata__":{"vitseg":'
"""After the length of the header, with which a safetensors file begins."""


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@dataclass
class Bench:
    """What can be spoilt, as it was before, and who opens it."""

    place: Path
    found: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        transformers.logging.set_verbosity_error()
        self.canary = self.place / "canary"
        self.recipe = tiny(self.place / "encoder")
        (self.place / "recipe").mkdir()
        self.recipe.save(self.place / "recipe" / "recipe.json")
        for _ in train(self.recipe, self.place / "model", reuse=False):
            pass
        with contextlib.closing(train(self.recipe, self.place / "run", reuse=False)) as events:
            next(e for e in events if isinstance(e, BatchEnded) and e.step == 13)
        self._draw_images(self.place / "images")

    def _draw_images(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for n in range(4):
            suffix = ("png", "jpg", "bmp", "tif")[n]
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(
                folder / "images" / f"{n}.{suffix}"
            )
            Image.fromarray(rng.integers(0, 3, (40, 50), np.uint8)).save(
                folder / "masks" / f"{n}.png"
            )
        (folder / "classes.json").write_text(
            json.dumps({"classes": ["a", "b", "c"], "encoding": "index"})
        )

    def files(self, target: str) -> list[str]:
        wanted = {
            "run": lambda p: p.parts[0] != "best" and p.name != "timings.jsonl",
            "model": lambda p: p.parts[0] == "best",
        }
        keep = wanted.get(target, lambda p: True)
        root = self.place / target
        return sorted(
            p.relative_to(root).as_posix()
            for p in root.rglob("[!.]*")
            if p.is_file() and keep(p.relative_to(root))
        )

    def try_out(self, target: str, name: str, content: bytes, mended: bool) -> None:
        """Open a copy in which one file has other content."""
        copy = self.place / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.place / target, copy)
        (copy / name).write_bytes(content)
        if mended:
            mend_digest(copy / name)
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of a file that it can read all the same
                OPEN[target](self, copy)
            self.found["nothing was wrong with it"] += 1
        except VitsegError as error:
            assert str(error).strip()
            self.found[type(error).__name__] += 1
        assert time.monotonic() - began < SECONDS, "it hangs"
        assert not self.canary.exists(), "a pickle was run"


def mend_digest(file: Path) -> None:
    """So that what was changed is believed."""
    if file.parent.name == "checkpoints":
        content = re.sub(
            rb"sha256:.{64}", UNSEALED.encode(), file.read_bytes(), count=1, flags=re.DOTALL
        )
        file.write_bytes(content)
        with contextlib.suppress(ValueError):  # the place of the digest is spoilt
            seal(file)
    for folder in file.parents:
        if (folder / MANIFEST).exists():
            files = [p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST]
            write_json(
                folder / MANIFEST, {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}
            )


def open_run(bench: Bench, copy: Path) -> None:
    """All that is done with a run that was cut off."""
    run = RunFolder(copy)
    Curves(replay(copy))
    explanation(run.events())
    with contextlib.closing(resume(copy)) as events:
        for _, _ in zip(range(3), events, strict=False):
            pass


def open_images(bench: Bench, copy: Path) -> None:
    data = vitseg.SegmentationData(
        Data(source=Folder(path=str(copy)), size=(28, 28), validation_fraction=0.25)
    )
    for name in (n for split in data.splits.values() for n in split):
        data.load(name)


OPEN: dict[str, Callable[[Bench, Path], Any]] = {
    "run": open_run,
    "model": lambda bench, copy: vitseg.load(copy),
    "recipe": lambda bench, copy: load_recipe(copy / "recipe.json"),
    "images": open_images,
}


class Change(NamedTuple):
    """How a file is spoilt: small enough for hypothesis to keep thousands. `a` and `b` are places,
    in 1/1000 of the file.
    """

    way: str
    a: int = 0
    b: int = 0
    value: Any = None

    def of(self, content: bytes, canary: Path) -> bytes:
        a, b = sorted(len(content) * place // 1000 for place in (self.a, self.b))
        match self.way:
            case "cut":
                return content[:a]
            case "flip":
                return (
                    content[:a]
                    + bytes(byte ^ 1 << self.value for byte in content[a : a + 1])
                    + content[a + 1 :]
                )
            case "remove":
                return content[:a] + content[b:]
            case "double":
                return content[:b] + content[a:]
            case "replace":
                return content[:a] + self.value + content[a + len(self.value) :]
            case "pickle":
                return pickle.dumps(Canary(canary))
            case "deep":
                return b"[" * 200_000
            case _:
                return self._with_another_value(content)

    def _with_another_value(self, content: bytes) -> bytes:
        """JSON, or a line of it, or a checkpoint's, with one value changed, dropped, or added."""
        if content[8:].startswith(CHECKPOINT):
            end = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:end])
            state = header["__metadata__"]["vitseg"][len(UNSEALED) :].encode()
            header["__metadata__"]["vitseg"] = (
                UNSEALED + self._with_another_value(state).decode().strip()
            )
            text = json.dumps(header).encode()
            return len(text).to_bytes(8, "little") + text + content[end:]
        lines = content.splitlines(keepends=True)
        several = len(lines) > 1 and lines[0].rstrip().endswith(b"}")
        at = self.a * len(lines) // 1001 if several else 0
        tree = json.loads(lines[at] if several else content)
        places = list(_places(tree))
        holder, key = places[self.b * len(places) // 1001]
        if self.way == "drop":
            del holder[key]
        elif self.way == "add" and isinstance(holder, dict):
            holder["kind" if self.a % 2 else "x"] = self.value
        else:
            holder[key] = self.value
        changed = json.dumps(tree).encode()
        return b"".join([*lines[:at], changed + b"\n", *lines[at + 1 :]]) if several else changed


def changes(content: bytes) -> st.SearchStrategy[Change]:
    place = st.integers(0, 1000)
    odd = st.sampled_from(ODD) | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    nothing = st.none()
    found = [
        st.builds(
            Change,
            st.sampled_from(("cut", "remove", "double", "pickle", "deep")),
            place,
            place,
            nothing,
        ),
        st.builds(Change, st.just("flip"), place, place, st.integers(0, 7)),
        st.builds(Change, st.just("replace"), place, place, st.binary(max_size=64)),
    ]
    value = st.builds(
        Change, st.sampled_from(("set", "set", "set", "drop", "add")), place, place, odd
    )
    has_json = content.lstrip().startswith(b"{") or content[8:].startswith(CHECKPOINT)
    return st.one_of(*found, *([value] * 4 if has_json else []))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (object or list, key or index) in it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def mutate(examples: int, place: Path, targets: tuple[str, ...] = tuple(OPEN)) -> Counter[str]:
    """Try as many mutations. What came of them, by kind; an AssertionError, or whatever was raised,
    for what must not be.
    """
    bench = Bench(place)
    content = {
        (t, name): (place / t / name).read_bytes() for t in targets for name in bench.files(t)
    }
    files = st.sampled_from(targets).flatmap(
        lambda t: st.sampled_from([file for file in content if file[0] == t])
    )
    examples_of = files.flatmap(
        lambda file: st.tuples(st.just(file), changes(content[file]), st.booleans())
    )

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(examples_of)
    def check(example: tuple[tuple[str, str], Change, bool]) -> None:
        (target, name), change, mended = example
        bench.try_out(target, name, change.of(content[target, name], bench.canary), mended)

    check()
    return bench.found


def main(examples: str = "10000") -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = mutate(int(examples), Path(folder))
    rows = tuple((outcome, str(times)) for outcome, times in found.most_common())
    sys.stdout.write(f"{Table(('outcome', 'times'), rows, 'Files spoilt')}\n")
    file = vitseg.runs_root() / "mutate.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, dict(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
