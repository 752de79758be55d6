"""This version opens what vitseg of 2026-11-28 wrote: runs (ended, cut off, forked), an ablation, a
search, recipes.

`recorded/make.py` made the recordings; they are never made again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import vitseg
from vitseg.events import RunEnded, RunResumed, RunStarted, StageEnded
from vitseg.model.decoder import build_decoder
from vitseg.recipe import load_recipe

RECORDED = Path(__file__).parent / "recorded"
RECIPES = sorted((RECORDED / "recipes").glob("*.json"))


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All recordings, unpacked; recipes name the encoder by its path from here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path / "runs"))
    for archive in RECORDED.glob("*.zip"):
        shutil.unpack_archive(archive, tmp_path)
    return tmp_path


def iou_of(folder: Path) -> float:
    """The validation IoU of the best weights, predicted now."""
    data = vitseg.SegmentationData(vitseg.RunFolder(folder).recipe.data)
    return vitseg.read(vitseg.load(folder), data).scores()["iou"]


def test_a_run_is_replayed_summed_up_explained_and_its_weights_score_as_they_did(opened):
    run = vitseg.RunFolder(opened / "run")
    events = list(vitseg.replay(run.path))
    assert [e.step for e in events if isinstance(e, StageEnded)] == [8, 16]
    assert (
        isinstance(events[0], RunStarted)
        and isinstance(events[-1], RunEnded)
        and events[-1].test is not None
    )
    assert events[-1].best == run.summary["best"]
    assert iou_of(run.path) == pytest.approx(run.summary["best"]["iou"], abs=1e-3)
    assert vitseg.explain(run.path).count("Stage ") == 2
    assert vitseg.report(run.path).stat().st_size > 1e6


def test_a_run_that_was_cut_off_goes_on_from_its_folder_checkpoint(opened):
    before = list(vitseg.replay(opened / "cut"))
    events = list(
        vitseg.resume(opened / "cut", allow_inexact=True)
    )  # this may be another processor
    assert events[0] == RunResumed(15, skipped=[])
    assert list(vitseg.replay(opened / "cut"))[: len(before)] == before
    whole = vitseg.RunFolder(opened / "run").summary["best"]["iou"]
    assert events[-1].best["iou"] == pytest.approx(whole, abs=1e-3)


def test_with_its_newest_checkpoint_spoilt_it_goes_on_from_the_one_before(opened):
    newest = max((opened / "cut" / "checkpoints").iterdir())
    (newest / "weights.safetensors").write_bytes(b"torn")
    resumed = next(vitseg.resume(opened / "cut", allow_inexact=True))
    assert [newest.name in words for words in resumed.skipped] == [True]


def test_a_run_is_forked_and_a_fork_is_read(opened):
    recipe = vitseg.RunFolder(opened / "run").recipe.replace({"stages.1.lr": 5e-4})
    end = list(vitseg.fork(opened / "run", 1, recipe, opened / "again"))[-1]
    then = vitseg.RunFolder(opened / "fork")
    assert end.best["iou"] == pytest.approx(then.summary["best"]["iou"], abs=1e-3)
    assert then.forked()["stage"] == 1


def test_an_ablation_is_found_ended_with_its_table_and_its_sentence(opened):
    recipe = load_recipe(opened / "run" / "recipe.json")
    axes = {"stages.1.unfrozen_blocks": [0, 2], "stages.1.encoder_lr_factor": [0.1, 0.5]}
    ablation = vitseg.ablate(recipe, axes, seeds=2, folder=opened / "ablation")
    assert ablation.state == "ended"
    assert f"{ablation.table}\n\n{ablation.sentence}\n" == (RECORDED / "ablation.txt").read_text()


def test_a_search_is_found_ended_with_its_trials(opened):
    recipe = load_recipe(opened / "run" / "recipe.json")
    search = vitseg.search(
        recipe, {"stages.1.unfrozen_blocks": [1, 2]}, trials=2, folder=opened / "search"
    )
    assert search.state == "ended"
    assert search.best.stages[1].unfrozen_blocks in (1, 2)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_says_what_it_said(path):
    """Settings that are new since may stand beside; of those recorded none has gone or changed."""
    recorded = json.loads(path.read_text())

    def held(old: object, new: object) -> bool:
        if isinstance(old, dict):
            return isinstance(new, dict) and all(
                name in new and held(value, new[name]) for name, value in old.items()
            )
        if isinstance(old, list):
            return isinstance(new, list) and len(old) == len(new) and all(map(held, old, new))
        return old == new

    assert held(recorded, json.loads(load_recipe(path).model_dump_json()))
    assert not held(recorded | {"seed": 99}, json.loads(load_recipe(path).model_dump_json()))


def test_decoders_have_the_weights_they_had():
    for name, shapes in json.loads((RECORDED / "decoders.json").read_text()).items():
        state = build_decoder(name, 384, 3, 0.1, seed=0).state_dict()
        assert {key: list(value.shape) for key, value in state.items()} == shapes
        assert all(isinstance(value, torch.Tensor) for value in state.values())
