"""Faults of docs/faults.md that no other file tests: each says what it is and what mends it, and
what was saved stays.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import mutate
import pytest
import soak
import torch
from builders import stripes, write_pairs

import vitseg
from vitseg.data.dataset import Key, Sample, SegmentationData
from vitseg.errors import DataError, RunError, TrainingError, VitsegError, WeightsError
from vitseg.events import BatchEnded, EpochEnded, RunResumed
from vitseg.files import sha256_of
from vitseg.runs.run import resume, train
from vitseg.settings import Data, Folder
from vitseg.training.job import Job
from vitseg.training.loop import StageTraining

pytestmark = pytest.mark.usefixtures("checkpoints_stay")

ROOT = Path(__file__).parents[2]


def until_step(step: int, events) -> None:
    next(e for e in events if isinstance(e, BatchEnded) and e.step == step)


# ---------------------------------------------------------------------- disk


def test_a_disk_that_is_full_in_the_middle_of_a_save_costs_nothing(tiny_recipe, tmp_path):
    """On a small disk of its own, which only the superuser can mount."""
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        run = vitseg.RunFolder(disk / "run")
        with closing(train(tiny_recipe, run.path, reuse=False)) as events:
            until_step(8, events)
        before = {p.name: sha256_of(p) for p in run.checkpoints.iterdir()}
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 60_000))
        with pytest.raises(
            RunError,
            match=r"No space left on device.*; it needs \d\.\d MB; 0\.\d MB are free there",
        ) as refused:
            list(resume(run.path))
        assert "Make room" in refused.value.mend
        assert {p.name: sha256_of(p) for p in run.checkpoints.iterdir()} == before
        assert list(run.path.rglob("*.new")) == []
        filler.unlink()
        rest = list(resume(run.path))
        assert rest[0] == RunResumed(8, [])
        assert soak.content(run.path) == soak.content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_folder_that_is_deleted_meanwhile_is_said(tiny_recipe, tmp_path):
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    until_step(2, events)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match="cannot be written"):
        list(events)


def test_a_run_folder_goes_on_where_it_was_copied_to(tiny_recipe, tmp_path):
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    with closing(train(tiny_recipe, tmp_path / "here", reuse=False)) as events:
        until_step(7, events)
    shutil.move(tmp_path / "here", tmp_path / "there")
    list(resume(tmp_path / "there"))
    assert soak.content(tmp_path / "there") == soak.content(tmp_path / "whole")


# ---------------------------------------------------------------------- loading images


@pytest.fixture
def pairs(tmp_path) -> Path:
    write_pairs(
        tmp_path / "data", {name: stripes(0, 1) for name in "abcdefgh"}, classes=["ground", "wound"]
    )
    return tmp_path / "data"


def test_an_image_that_a_worker_cannot_read_is_named(pairs, tiny_recipe, tmp_path):
    settings = {
        "data.source": Folder(path=str(pairs)),
        "data.size": [28, 28],
        "workers": 2,
        "cache": False,
    }
    events = train(tiny_recipe.replace(settings), tmp_path / "run", reuse=False)
    until_step(1, events)
    for file in (pairs / "images").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=re.escape(f"{pairs}/images/")) as refused:
        list(events)
    assert "Traceback" not in str(refused.value)


def test_a_worker_that_is_killed_is_said(pairs):
    class Deadly(SegmentationData):
        """Where a worker reads, so that none dies with a lock of torch's in its hand: for that
        torch waits without end.
        """

        def __getitem__(self, key: Key) -> Sample:
            os.kill(os.getpid(), signal.SIGKILL)

    data = Deadly(Data(source=Folder(path=str(pairs)), size=(28, 28)))
    batches = data.batches([(name, "0") for name in data.splits["train"]], 1, workers=1)
    with pytest.raises(
        DataError, match="workers: one of 1 that load the images was ended"
    ) as refused:
        list(batches)
    assert "set workers to 0" in refused.value.mend


# ---------------------------------------------------------------------- numbers


def test_a_step_that_finds_no_memory_says_what_to_lower_and_changes_nothing(
    tiny_recipe, tmp_path, monkeypatch
):
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    until_step(7, events)

    def none_left(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingError, match="not enough memory for step 8: CUDA") as refused,
    ):
        patch.setattr(StageTraining, "backward", none_left)
        list(events)
    assert "Lower batch_size" in refused.value.mend and "data.size" in refused.value.mend
    list(resume(tmp_path / "run"))
    assert soak.content(tmp_path / "run") == soak.content(tmp_path / "whole")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_the_step_and_names_the_images(
    value, tiny_recipe
):
    job = Job(tiny_recipe)
    stage = StageTraining(job, 1)
    events = iter(stage)
    batch = next(e for e in events if isinstance(e, BatchEnded))
    kept = {name: tensor.clone() for name, tensor in stage.trained_weights().items()}
    sums = job.loss.sums
    job.loss.sums = lambda logits, masks: sums(logits, masks) * value
    with pytest.raises(
        TrainingError,
        match=(
            rf"The loss of step {batch.step + 1} is (nan|inf); LR: decoder 0\.001, .*; "
            rf"images: \w+"
        ),
    ):
        list(events)
    assert all(
        torch.equal(kept[name], tensor) for name, tensor in stage.trained_weights().items()
    ), "no step was taken"


def test_a_run_that_a_loss_has_ended_goes_on_from_what_was_saved(
    tiny_recipe, tmp_path, monkeypatch
):
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    until_step(8, events)
    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingError, match="The loss of step 9 is nan"),
    ):
        patch.setattr(
            "vitseg.training.losses.SegmentationLoss.mean", lambda *_: torch.tensor(torch.nan)
        )
        list(events)
    list(resume(tmp_path / "run"))
    assert soak.content(tmp_path / "run") == soak.content(tmp_path / "whole")


# ---------------------------------------------------------------------- checkpoints that are not
# what they should be


@pytest.mark.parametrize("examples", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_spoilt_files_lead_to_a_sentence_or_to_nothing(examples, tmp_path, monkeypatch):
    """`make soak` tries ten thousand."""
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    found = mutate.mutate(examples, tmp_path)
    assert found.total() >= examples and len(found) >= 3


def test_a_fault_that_is_let_through_would_be_noticed(tmp_path, monkeypatch):
    """The negative control: a reader that trusts."""
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(
        mutate.OPEN,
        "recipe",
        lambda bench, copy: json.loads((copy / "recipe.json").read_text())["stages"][0]["lr"],
    )
    with pytest.raises((KeyError, ValueError, TypeError, RecursionError, BaseExceptionGroup)):
        mutate.mutate(200, tmp_path, ("recipe",))


def test_a_pickle_is_run_by_nobody(tiny_recipe, encoders, tmp_path):
    canary = tmp_path / "canary"
    poison = pickle.dumps(mutate.Canary(canary))
    shutil.copytree(encoders["dinov2"], tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").rename(tmp_path / "encoder" / "pytorch_model.bin")
    (tmp_path / "encoder" / "pytorch_model.bin").write_bytes(poison)
    for name in ("weights.pt", "weights.pth"):
        (tmp_path / name).write_bytes(poison)
        with pytest.raises(VitsegError):
            vitseg.load(tmp_path / name)
    with pytest.raises(WeightsError, match=r"no file named model\.safetensors"):
        next(
            train(
                tiny_recipe.replace({"model.encoder": str(tmp_path / "encoder")}), tmp_path / "run"
            )
        )
    assert not canary.exists()
    pickle.loads(poison)
    assert canary.exists(), "the canary can sing"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model.decoder": "unet"}, "does not fit the model"),
        ({"data.source.classes": 4}, "does not fit the model"),
    ],
    ids=["another decoder", "another number of classes"],
)
def test_a_checkpoint_of_another_model_is_refused_with_what_differs(
    other, said, tiny_recipe, tmp_path
):
    for name, recipe in (("one", tiny_recipe), ("two", tiny_recipe.replace(other))):
        with closing(train(recipe, tmp_path / name, reuse=False)) as events:
            next(e for e in events if isinstance(e, EpochEnded))
    shutil.rmtree(tmp_path / "one" / "checkpoints")
    shutil.copytree(tmp_path / "two" / "checkpoints", tmp_path / "one" / "checkpoints")
    log = tmp_path / "one" / "events.jsonl"
    log.write_bytes(log.read_bytes() + b" " * 9999)  # long enough for the other's place in it
    with pytest.raises(TrainingError, match=said) as refused:
        list(resume(tmp_path / "one"))
    assert re.search(r"weights: \S+ is only in one|size mismatch for \S+:", str(refused.value))


def test_a_checkpoint_of_a_later_stage_than_there_is_is_refused(tiny_recipe, tmp_path):
    with closing(train(tiny_recipe, tmp_path / "run", reuse=False)) as events:
        until_step(13, events)
    short = tiny_recipe.replace({"stages": tiny_recipe.stages[:1]})
    short.save(tmp_path / "run" / "recipe.json")
    with pytest.raises(RunError, match="goes on with stage 2, and the recipe has 1"):
        next(resume(tmp_path / "run"))


# ---------------------------------------------------------------------- what must not leak or leave


def test_nothing_of_the_user_s_environment_is_written_down(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-is-secret")
    list(train(tiny_recipe, tmp_path / "run", reuse=False))
    for file in (p for p in (tmp_path / "run").rglob("*") if p.is_file()):
        assert b"hunter2-is-secret" not in file.read_bytes(), file


def test_no_script_of_ours_opens_jupyter_to_others():
    kept = (
        ROOT / "Makefile",
        ROOT / "README.md",
        *(ROOT / "vitseg").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
    )
    for file in kept:
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"0\.0\.0\.0|token=(''|\"\")|disable_check_xsrf|allow_origin|--ip=\*", text
        ), file


# ---------------------------------------------------------------------- the table


def test_every_row_of_the_table_names_tests_that_are_there():
    table = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    there = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) > 50 and sorted(named - there) == []
