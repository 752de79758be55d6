"""Same seed, same bits: whatever else the process does, and however the images are loaded."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import vitseg
from vitseg.effects import Clahe, CoarseDropout, Crop, Elastic, Hue
from vitseg.events import BatchEnded


def _bits(folder: Path) -> dict[str, bytes]:
    files = [folder / "events.jsonl", *sorted((folder / "best").rglob("*.safetensors"))]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def recipe(tiny_recipe):
    effects = (Elastic(), Hue(), CoarseDropout(), Clahe())
    return tiny_recipe.replace(
        {"model.dropout": 0.5, "data.views": 3, "data.effects": effects, "data.crop": Crop()}
    )


@pytest.fixture
def reference(recipe, tmp_path):
    list(vitseg.train(recipe, tmp_path / "reference"))
    return _bits(tmp_path / "reference")


def test_two_runs_are_byte_identical(recipe, reference, tmp_path):
    list(vitseg.train(recipe, tmp_path / "again"))
    assert _bits(tmp_path / "again") == reference


def test_another_seed_is_another_run(recipe, reference, tmp_path):
    list(vitseg.train(recipe.replace({"seed": 1}), tmp_path / "other"))
    assert _bits(tmp_path / "other") != reference


def test_a_thread_that_draws_seeds_and_calls_the_snapshot_changes_nothing(
    recipe, reference, tmp_path
):
    job = vitseg.Job(recipe)
    data, stop, busy = job.data, threading.Event(), threading.Event()
    snapshot = job.model.snapshot()
    image = data.load(data.splits["train"][0])[0]

    def meddle() -> None:
        while not stop.is_set():
            torch.manual_seed(7)
            torch.rand(1000)
            snapshot.predict(image)
            busy.set()

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        assert busy.wait(30)
        for event in vitseg.train(recipe, tmp_path / "meddled"):
            if isinstance(event, BatchEnded):
                busy.clear()
                busy.wait(5)  # at least one full turn of the other thread between any two steps
    finally:
        stop.set()
        thread.join()
    assert _bits(tmp_path / "meddled") == reference


def test_training_leaves_the_global_generator_where_it_was(recipe, tmp_path):
    before = torch.get_rng_state()
    list(vitseg.train(recipe, tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_nothing_but_the_recipe_line(recipe, reference, tmp_path, workers):
    list(vitseg.train(recipe.replace({"workers": workers}), tmp_path / "workers"))
    got = _bits(tmp_path / "workers")
    said = got.pop("events.jsonl").replace(f'"workers":{workers}'.encode(), b'"workers":0')
    assert said == reference.pop("events.jsonl")
    assert got == reference


def test_a_global_draw_in_training_would_be_noticed(recipe, reference, tmp_path, monkeypatch):
    """Negative control: dropout from torch's global generator makes the first comparison fail."""
    from vitseg.model import noise

    def drawn_globally(self, x, units, layer):
        kept = torch.rand(len(x), units, *[1] * (x.ndim - 2)) >= self.rate
        return x * kept / (1 - self.rate)

    monkeypatch.setattr(noise.KeyedNoise, "drop", drawn_globally)
    runs = []
    for name in ("one", "two"):
        list(vitseg.train(recipe, tmp_path / name))
        runs.append(_bits(tmp_path / name))
    assert runs[0] != runs[1]
