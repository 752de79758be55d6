"""TensorBoard shows the numbers of the log, at their steps, and the events pass unchanged."""

from __future__ import annotations

import builtins

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vitseg
from vitseg.errors import RunError, VitsegError
from vitseg.events import BatchEnded, EpochEnded, RunStarted


def curves(folder):
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_every_point_of_a_run_is_there_at_its_step(tiny_recipe, tmp_path):
    live = list(vitseg.mirror(vitseg.train(tiny_recipe, tmp_path / "run"), tmp_path / "live"))
    logged = list(vitseg.mirror(vitseg.replay(tmp_path / "run"), tmp_path / "past"))
    assert logged == list(vitseg.replay(tmp_path / "run")) == [e for e in live if not e.transient]
    found = curves(tmp_path / "live")
    assert found == curves(tmp_path / "past")
    steps = [e for e in logged if isinstance(e, BatchEnded)]
    assert found["loss/train"] == [(e.step, pytest.approx(e.loss, rel=1e-6)) for e in steps]
    assert found["LR/decoder"] == [
        (e.step, pytest.approx(e.lr["decoder"], rel=1e-6)) for e in steps
    ]
    epochs = [e for e in logged if isinstance(e, EpochEnded)]
    valid = [(e.step, pytest.approx(e.validation["iou"], rel=1e-6)) for e in epochs]
    assert all(point in found["IoU/valid"] for point in valid)
    assert found["IoU/train"] == [(e.step, pytest.approx(e.train["iou"], rel=1e-6)) for e in epochs]
    classes = next(e.classes for e in logged if isinstance(e, RunStarted))
    present = {
        c
        for c, iou in zip(classes, epochs[-1].validation["per_class_iou"], strict=True)
        if iou is not None
    }
    assert {tag for tag in found if tag.startswith("IoU by class/")} == {
        f"IoU by class/{c}" for c in present
    }
    assert len(present) >= 2


def test_without_tensorboard_it_says_how_to_get_it(monkeypatch, tmp_path):
    there = builtins.__import__

    def without(name, *more, **options):
        if name == "torch.utils.tensorboard":
            raise ImportError("no module", name="tensorboard")
        return there(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        VitsegError, match=r"tensorboard is not installed.*pip install 'vitseg\[tensorboard\]'"
    ):
        next(vitseg.mirror([], tmp_path))


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        next(vitseg.mirror([], tmp_path / "file" / "curves"))
