"""A run's folder, its summary, and going on after a cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from transformers import AutoModel

import vitseg
from vitseg.errors import FreezeBreach, RunError
from vitseg.events import BatchEnded, EpochEnded, RunEnded, RunStarted, StageEnded, StageStarted
from vitseg.files import held
from vitseg.runs import folder
from vitseg.runs import run as runs
from vitseg.runs.checkpoint import newest_checkpoint
from vitseg.training.loop import StageTraining


def test_the_log_replays_exactly_what_was_yielded(tiny_recipe, tmp_path):
    events = [e for e in vitseg.train(tiny_recipe, tmp_path / "run") if not e.transient]
    assert list(vitseg.replay(tmp_path / "run")) == events
    kinds = [type(e) for e in events]
    stage = lambda epochs: [StageStarted, *([BatchEnded] * 5 + [EpochEnded]) * epochs, StageEnded]  # noqa: E731
    assert kinds == [RunStarted, *stage(2), *stage(2), *stage(1), RunEnded]
    assert [e.step for e in events if isinstance(e, BatchEnded)] == list(range(1, 26))


def test_the_summary_holds_what_is_promised(tiny_recipe, tmp_path):
    list(vitseg.train(tiny_recipe, tmp_path / "run"))
    summary = vitseg.RunFolder(tmp_path / "run").summary
    assert [s["unfrozen_blocks"] for s in summary["stages"]] == [0, 1, 2]
    assert [s["schedule"] for s in summary["stages"]] == [
        {"kind": "cosine_restarts", "steps_per": "batch", "steps_taken": 6},
        {"kind": "exponential", "steps_per": "epoch", "steps_taken": 2},
        {"kind": "constant", "steps_per": "never", "steps_taken": 0},
    ]
    assert [s["lr"]["first"] for s in summary["stages"]] == [1e-3, 3e-4, 1e-4]
    assert summary["stages"][1]["lr"]["last"] == 1.5e-4
    for stage in summary["stages"]:
        assert {"name", "trainable", "total", "epochs", "seconds", "best", "test"} <= stage.keys()
        assert {"iou", "f1", "accuracy", "per_class_iou"} <= stage["best"].keys()
    assert summary["classes"] == ["background", "granulation", "slough"]


def test_best_scored_by_scikit_learn_in_a_new_process_gives_the_summary_s_iou(
    tiny_recipe, tmp_path
):
    run = vitseg.RunFolder(tmp_path / "run")
    list(vitseg.train(tiny_recipe, run.path))
    script = "import sys, numpy, vitseg; m = vitseg.load(sys.argv[1]); d = vitseg.SegmentationData("
    script += (
        "vitseg.RunFolder(sys.argv[1]).recipe.data); numpy.savez(sys.argv[2], **{n: "
        "m.predict(d.load(n)[0]) for n in "
    )
    script += "d.splits['validation']})"
    out = tmp_path / "predicted.npz"
    subprocess.run([sys.executable, "-c", script, str(run.path), str(out)], check=True)
    data = vitseg.SegmentationData(tiny_recipe.data)
    predicted = np.load(out)
    truth = np.concatenate([data.load(n)[1].ravel() for n in predicted.files])
    masks = np.concatenate([predicted[n].ravel() for n in predicted.files])
    expected = jaccard_score(truth, masks, labels=np.unique(truth), average="macro")
    assert run.summary["stages"][-1]["best"]["iou"] == pytest.approx(expected, abs=1e-12)


def test_a_batch_larger_than_the_training_set_is_among_the_notes(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace({"batch_size": 6, "accumulate": 2, "stages.1.epochs": 1})
    notes = [e.notes for e in vitseg.train(recipe, tmp_path / "run") if isinstance(e, StageStarted)]
    said = (
        "A batch of 12 is larger than the 10 training images: each epoch is one step over all "
        "of them."
    )
    assert all(said in of_stage for of_stage in notes)
    whole = tiny_recipe.replace({"batch_size": 5, "accumulate": 2})
    assert not any(
        "larger than" in n
        for n in next(e for e in vitseg.train(whole) if isinstance(e, StageStarted)).notes
    )


def test_a_later_stage_never_ends_below_where_it_began(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace({"stages.2.lr": 0.5})  # ruins whatever it touches
    events = list(vitseg.train(recipe, tmp_path / "run"))
    ended = [e for e in events if isinstance(e, StageEnded)]
    started = [e for e in events if isinstance(e, StageStarted)]
    assert started[2].validation["iou"] == ended[1].best["iou"]
    assert ended[2].best["iou"] >= ended[1].best["iou"]
    assert next(e for e in events if isinstance(e, RunEnded)).best["iou"] == ended[2].best["iou"]


def test_a_stage_stops_early_when_its_own_best_is_old(tiny_recipe, tmp_path):
    changes = {"stages.1.patience": 2, "stages.1.epochs": 9, "stages.1.lr": 0.5}
    events = list(vitseg.train(tiny_recipe.replace(changes), tmp_path / "run"))
    ended = next(e for e in events if isinstance(e, StageEnded) and e.stage == 2)
    assert ended.epochs - ended.best_epoch == 2
    assert (ended.stopped_early, ended.epochs < 9) == (True, True)
    after = [e for e in events if isinstance(e, StageStarted)][2]
    assert (after.epoch, after.step) == (2 + ended.epochs, 10 + 5 * ended.epochs)


def test_start_from_last_takes_the_last_weights_not_the_best(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace({"stages.0.lr": 0.5, "stages.1.start_from": "last"})
    started = [
        e
        for e in vitseg.train(recipe, tmp_path / "run")
        if isinstance(e, StageStarted | EpochEnded)
    ]
    last_of_first, start_of_second = started[2], started[3]
    assert start_of_second.validation == last_of_first.validation


@pytest.mark.parametrize("events_before_the_cut", [9, 14, 16, 24, 30])
def test_a_run_cut_off_goes_on_to_the_same_bytes(tiny_recipe, tmp_path, events_before_the_cut):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(vitseg.train(tiny_recipe, whole))
    logged = (e for e in vitseg.train(tiny_recipe, cut) if not e.transient)
    list(islice(logged, events_before_the_cut))
    logged.close()
    list(vitseg.resume(cut))
    assert (cut / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()
    assert _tree(cut / "best") == _tree(whole / "best")
    assert _tree(cut / "stages") == _tree(whole / "stages")


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tiny_recipe, tmp_path):
    run = vitseg.RunFolder(tmp_path / "run")
    with closing(vitseg.train(tiny_recipe, run.path)) as events:
        next(e for e in events if isinstance(e, EpochEnded) and e.epoch == 3)
    newest = sorted(run.checkpoints.iterdir())[-1]
    before = newest_checkpoint(run)[0]["sequence"]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert newest_checkpoint(run)[0]["sequence"] < before


def test_a_torn_last_line_of_the_log_is_not_read_as_data(tiny_recipe, tmp_path):
    run = vitseg.RunFolder(tmp_path / "run")
    list(vitseg.train(tiny_recipe, run.path))
    text = run.events_file.read_text()
    run.events_file.write_text(text[:-20])
    assert len(list(run.events())) == text.count("\n") - 1


def test_a_checkpoint_leaves_out_what_is_frozen(tiny_recipe, tmp_path):
    run = vitseg.RunFolder(tmp_path / "run")
    for event in vitseg.train(tiny_recipe, run.path):
        if isinstance(event, EpochEnded):
            break
    names = load_file(sorted(run.checkpoints.iterdir())[-1])
    weights = [name.split("/")[1] for name in names if not name.startswith("optimizer/")]
    assert weights
    assert all(name.startswith("decoder.") for name in weights)


def test_a_run_cut_off_in_its_first_epoch_begins_again_in_the_same_folder(tiny_recipe, tmp_path):
    list(vitseg.train(tiny_recipe, tmp_path / "whole"))
    events = vitseg.train(tiny_recipe, tmp_path / "cut")
    next(e for e in events if isinstance(e, BatchEnded))
    events.close()
    list(vitseg.resume(tmp_path / "cut"))
    assert (tmp_path / "cut" / "events.jsonl").read_bytes() == (
        tmp_path / "whole" / "events.jsonl"
    ).read_bytes()


def test_a_run_is_not_resumed_on_other_images(tiny_recipe, tmp_path):
    events = vitseg.train(tiny_recipe, tmp_path / "run")
    next(e for e in events if isinstance(e, EpochEnded))
    events.close()
    split = tmp_path / "run" / "split.json"
    split.write_text(split.read_text().replace("generated-0003", "generated-9999"))
    with pytest.raises(RunError, match="the images are not those of the run"):
        next(iter(vitseg.resume(tmp_path / "run")))


def test_an_evaluation_between_two_steps_changes_nothing(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace({"model.dropout": 0.5})
    list(vitseg.train(recipe, tmp_path / "reference"))
    job = vitseg.Job(recipe)
    lines = []
    for event in vitseg.StageTraining(job, 1):
        job.model.eval()
        if isinstance(event, BatchEnded):
            lines.append(event)
    expected = [
        e
        for e in vitseg.replay(tmp_path / "reference")
        if isinstance(e, BatchEnded) and e.stage == 1
    ]
    assert lines == expected


def test_an_ended_run_is_not_resumed_and_a_used_folder_not_overwritten(tiny_recipe, tmp_path):
    list(vitseg.train(tiny_recipe, tmp_path / "run"))
    with pytest.raises(RunError, match="has ended"):
        next(iter(vitseg.resume(tmp_path / "run")))
    with pytest.raises(RunError, match="holds a run already"):
        next(iter(vitseg.train(tiny_recipe, tmp_path / "run")))


def test_a_run_that_ends_as_it_is_about_to_be_resumed_is_left_alone(
    tiny_recipe, tmp_path, monkeypatch
):
    events = iter(vitseg.train(tiny_recipe, tmp_path / "run"))
    next(events)

    def late(folder):
        list(events)
        return held(folder)

    monkeypatch.setattr(runs, "held", late)
    with pytest.raises(RunError, match="has ended"):
        next(iter(vitseg.resume(tmp_path / "run")))
    assert isinstance(list(vitseg.replay(tmp_path / "run"))[-1], RunEnded)


def test_a_test_split_is_scored_once_at_the_end(tiny_recipe, tmp_path):
    root = tmp_path / "data"
    data = vitseg.SegmentationData(tiny_recipe.data)
    for split, names in (("train", 4), ("validation", 2), ("test", 2)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for name in data.splits["train"][:names]:
            image, mask = data.load(name)
            image.save(root / split / "images" / f"{name}.png")
            vitseg.images.palette_image(mask).save(root / split / "masks" / f"{name}.png")
    changes = {
        "data.source": {"kind": "folder", "path": str(root)},
        "data.validation_fraction": 0.2,
    }
    recipe = tiny_recipe.replace(changes)
    events = list(vitseg.train(recipe, tmp_path / "run"))
    assert [e.test is not None for e in events if isinstance(e, RunEnded)] == [True]
    stages = vitseg.RunFolder(tmp_path / "run").summary["stages"]
    assert [stage["test"] is None for stage in stages] == [True, True, False]


def test_the_report_opens_offline_and_names_what_it_shows(tiny_recipe, tmp_path):
    list(vitseg.train(tiny_recipe, tmp_path / "run"))
    page = vitseg.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "on generated images" in page
    assert 'src="http' not in page.replace("data:image", "")
    assert "cdn.plot.ly" not in page.split("plotly.js v")[0]
    for name in ("LR (planned)", "train loss", "valid loss", "train IoU", "valid IoU", "valid F1"):
        assert name in page


def test_names_from_outside_are_escaped_in_the_report(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace({"stages.0.name": "<img src=x onerror=alert(1)>"})
    list(vitseg.train(recipe, tmp_path / "run"))
    page = vitseg.report(tmp_path / "run").read_text(encoding="utf-8")
    table = page[page.index("<table") : page.index("</table>")]
    assert "<img" not in table
    assert "&lt;img" in table


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def breached(tiny_recipe, tmp_path):
    """A run that a detector has ended in its second epoch, and what it said."""
    run, job = vitseg.RunFolder(tmp_path / "run"), vitseg.Job(tiny_recipe)
    with pytest.raises(FreezeBreach) as caught:
        for event in vitseg.train(job, run.path):
            if isinstance(event, EpochEnded):
                job.model.encoder.blocks[0].requires_grad_(True)
    return run, str(caught.value)


def test_what_a_detector_caught_is_kept_until_the_run_goes_on(breached):
    run, said = breached
    wanted = folder.Failure(kind="FreezeBreach", says=said, parts=("block 1",))
    assert run.failure() == wanted
    events = vitseg.resume(run.path)
    next(events)
    assert run.failure() is None
    events.close()
    assert run.failure() is None  # to stop is not to fail


def test_a_failure_that_cannot_be_kept_does_not_hide_the_error(tiny_recipe, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    job = vitseg.Job(tiny_recipe)
    events = vitseg.train(job, tmp_path / "run")
    next(e for e in events if isinstance(e, EpochEnded))
    job.model.encoder.blocks[0].requires_grad_(True)
    monkeypatch.setattr(folder, "write_json", full)
    with pytest.raises(FreezeBreach):
        list(events)
    assert vitseg.RunFolder(tmp_path / "run").failure() is None


@pytest.mark.parametrize(("most_bytes", "named"), [(20_000, "checkpoints"), (10, "events.jsonl")])
def test_a_full_disk_is_said_and_costs_no_more_than_the_epoch(
    tiny_recipe, tmp_path, most_bytes, named
):
    """The system itself refuses to let a file grow: Python ignores SIGXFSZ, and gets "File too
    large".
    """
    resource = pytest.importorskip("resource")
    run, (soft, hard) = (
        vitseg.RunFolder(tmp_path / "run"),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    events = vitseg.train(tiny_recipe, run.path)
    next(e for e in events if isinstance(e, EpochEnded))
    saved = _tree(run.checkpoints)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        with pytest.raises(
            RunError,
            match=(
                r"cannot be written \(.*File too large.*; (it needs [\d.]+ MB; )?[\d,.]+ MB are "
                r"free there\)"
            ),
        ) as refused:
            list(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(run.path / named) in refused.value.problem
    assert "Make room" in refused.value.mend
    assert _tree(run.checkpoints) == saved
    assert list(run.path.rglob("*.new")) == []
    list(vitseg.resume(run.path))
    list(vitseg.train(tiny_recipe, tmp_path / "whole"))
    assert run.events_file.read_bytes() == (tmp_path / "whole" / "events.jsonl").read_bytes()
    assert _tree(run.best) == _tree(tmp_path / "whole" / "best")


def test_seconds_stand_still_while_the_consumer_does_something_else(
    tiny_recipe, tmp_path, monkeypatch
):
    """By a clock on which a step takes 1 second, and the consumer 100 for every event."""
    now, train_step = [0.0], StageTraining.train_step

    def slow_step(stage, portions):
        now[0] += 1
        return train_step(stage, portions)

    def consume(events):
        for _ in events:
            now[0] += 100

    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(StageTraining, "train_step", slow_step)
    consume(islice(vitseg.train(tiny_recipe, tmp_path / "run"), 30))
    consume(vitseg.resume(tmp_path / "run"))
    summary = vitseg.RunFolder(tmp_path / "run").summary
    assert [*(stage["seconds"] for stage in summary["stages"]), summary["seconds"]] == [
        10.0,
        10.0,
        5.0,
        25.0,
    ]
    consume(runs.fork(tmp_path / "run", 2, tiny_recipe, tmp_path / "child"))
    summary = vitseg.RunFolder(tmp_path / "child").summary
    assert [*(stage["seconds"] for stage in summary["stages"]), summary["seconds"]] == [
        None,
        None,
        5.0,
        5.0,
    ]


def test_timings_are_kept_apart_from_events(tiny_recipe, tmp_path):
    run = vitseg.RunFolder(tmp_path / "run")
    list(vitseg.train(tiny_recipe, run.path))
    assert len(run.timings()) == len(list(run.events()))
    assert not any(
        "second" in json.loads(line) for line in run.events_file.read_text().splitlines()
    )


@pytest.fixture(scope="module")
def ended(tiny_recipe, tmp_path_factory) -> vitseg.RunFolder:
    run = vitseg.RunFolder(tmp_path_factory.mktemp("ended") / "run")
    list(vitseg.train(tiny_recipe, run.path, reuse=False))
    return run


def test_an_ended_run_has_each_of_its_weights_once(ended):
    weights = list(ended.path.rglob("*.safetensors"))
    assert len({p.stat().st_ino for p in weights}) == len({p.read_bytes() for p in weights})
    assert len(weights) > len(list(ended.store.iterdir())) > 0
    assert not ended.checkpoints.exists()


@pytest.mark.parametrize("how", ["copied", "zipped"])
def test_best_of_a_run_that_was_copied_is_loaded_by_transformers_alone(how, ended, tmp_path):
    if how == "copied":
        shutil.copytree(ended.path, tmp_path / "there")
    else:
        archive = shutil.make_archive(str(tmp_path / "run"), "zip", ended.path)
        shutil.unpack_archive(archive, tmp_path / "there")
    folder = tmp_path / "there" / "best" / "encoder"
    vit, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    ours = vitseg.load(tmp_path / "there").encoder.vit.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in vit.state_dict().items())


def test_the_encoder_in_best_is_one_to_name_in_a_recipe(ended, tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace({"model.encoder": str(ended.best / "encoder")})
    first = next(vitseg.train(recipe, tmp_path / "run"))
    assert len(first.encoder["sha256"]) == 64


def test_to_save_a_model_over_best_leaves_other_runs_alone(ended, tiny_recipe, tmp_path):
    """Which have the same frozen parts."""
    other = vitseg.RunFolder(ended.path.parent / "other")
    list(vitseg.train(tiny_recipe, other.path, reuse=False))
    before, model = _tree(ended.best), vitseg.load(other.path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save_pretrained(other.best)
    assert _tree(ended.best) == before
