"""A fork inherits finished stages and trains the later ones; what it inherits is what it would have
trained.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import soak
from safetensors.torch import load_file, save_file

import vitseg
from vitseg.errors import RunError
from vitseg.events import BatchEnded, RunEnded, RunStarted, StageEnded, StageStarted
from vitseg.runs import run as runs
from vitseg.runs.folder import RunFolder
from vitseg.runs.run import fork, resume, train


def lines(folder, without_start=True):
    kept = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in kept if not (without_start and line["event"] == "RunStarted")]


@pytest.fixture
def parent(tiny_recipe, tmp_path):
    list(train(tiny_recipe, tmp_path / "parent"))
    return tmp_path / "parent"


@pytest.mark.parametrize("stage", [1, 2])
def test_a_fork_without_a_change_gives_the_parent_s_bits(stage, parent, tiny_recipe, tmp_path):
    events = list(fork(parent, stage, tiny_recipe, tmp_path / "child"))
    assert lines(tmp_path / "child") == lines(parent)
    assert next(e for e in events if isinstance(e, RunStarted)).parent == {
        "run": "parent",
        "stage": stage,
    }
    for file in (
        "best/decoder.safetensors",
        "best/encoder/block-4.safetensors",
        "stages/3/last/encoder/block-4.safetensors",
    ):
        assert (tmp_path / "child" / file).read_bytes() == (parent / file).read_bytes()
    seconds = [row["seconds"] for row in vitseg.RunFolder(tmp_path / "child").summary["stages"]]
    assert [s is None for s in seconds] == [n <= stage for n in (1, 2, 3)]


def test_a_fork_with_another_depth_keeps_stage_1_and_trains_the_rest_anew(
    parent, tiny_recipe, tmp_path
):
    changed = tiny_recipe.replace({"stages.1.unfrozen_blocks": 3, "name": "deeper"})
    list(fork(parent, 1, changed, tmp_path / "child"))
    ours, theirs = lines(tmp_path / "child"), lines(parent)
    second = next(
        i for i, line in enumerate(ours) if line["event"] == "StageStarted" and line["stage"] == 2
    )
    assert ours[:second] == theirs[:second]
    assert [line["unfrozen_blocks"] for line in ours if line["event"] == "StageStarted"] == [
        0,
        3,
        2,
    ]
    assert ours[second + 1 :] != theirs[second + 1 :]


def test_a_fork_may_have_fewer_stages(parent, tiny_recipe, tmp_path):
    shorter = tiny_recipe.model_copy(update={"stages": tiny_recipe.stages[:2]})
    list(fork(parent, 1, shorter, tmp_path / "child"))
    assert len(vitseg.RunFolder(tmp_path / "child").summary["stages"]) == 2


@pytest.mark.parametrize("wanted", [1, 8])
def test_a_fork_that_was_cut_off_goes_on_to_the_same_bits(wanted, parent, tiny_recipe, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(fork(parent, 1, tiny_recipe, whole))
    stream = fork(parent, 1, tiny_recipe, cut)
    begun = False
    for event in stream:
        begun = begun or (isinstance(event, StageStarted) and event.stage == 2)
        wanted -= begun
        if not wanted:
            break
    stream.close()
    list(resume(cut))
    assert (cut / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()
    assert (cut / "best/encoder/block-4.safetensors").read_bytes() == (
        whole / "best/encoder/block-4.safetensors"
    ).read_bytes()


def tree(folder):
    """Every file by its content, but for the clock's and the lock."""
    files = (
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in {"timings.jsonl", "summary.json", ".lock"}
    )
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


MOMENTS = ("nothing copied", "half copied", "half recorded", "all recorded")


@pytest.fixture
def photos(parent, tiny_recipe, tmp_path, monkeypatch):
    """Copies of a fork's folder, `whole` when it has ended, taken while it inherits: what a kill -9
    would have left.
    """
    whole, record, write_json = tmp_path / "whole", RunFolder.record, runs.write_json

    def photograph(moment):
        if not (tmp_path / moment).exists():
            shutil.copytree(whole, tmp_path / moment)

    def copying(source, target, **settings):
        photograph("nothing copied")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source / "best", target / "best", dirs_exist_ok=True)
        photograph("half copied")
        return shutil.copytree(source, target, **settings | {"dirs_exist_ok": True})

    def recording(run, event):
        if isinstance(event, StageEnded):
            photograph("half recorded")
        record(run, event)

    def writing(path, value):
        if path.name == "fork.json" and value["sequence"]:
            photograph("all recorded")
        write_json(path, value)

    monkeypatch.setattr(runs, "shutil", SimpleNamespace(copytree=copying))
    monkeypatch.setattr(RunFolder, "record", recording)
    monkeypatch.setattr(runs, "write_json", writing)
    list(fork(parent, 1, tiny_recipe, whole))
    monkeypatch.undo()
    return tmp_path


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_fork_killed_while_it_inherits_goes_on_to_the_same_bits(moment, photos):
    cut, whole = photos / moment, photos / "whole"
    assert runs.kept_events(RunFolder(cut)) == []
    events = list(resume(cut))
    assert next(e for e in events if isinstance(e, RunStarted)).parent == {
        "run": "parent",
        "stage": 1,
    }
    assert tree(cut) == tree(whole)


def test_a_fork_killed_while_it_inherits_says_so_when_its_parent_is_gone(photos):
    (photos / "parent").rename(photos / "elsewhere")
    with pytest.raises(
        RunError, match=r"parent/stages/1: manifest.json cannot be read \(No such file"
    ):
        next(resume(photos / "half copied"))


def test_a_new_run_in_the_folder_of_a_fork_that_never_began_is_no_fork(photos, tiny_recipe):
    next(train(tiny_recipe, photos / "nothing copied"))
    assert RunFolder(photos / "nothing copied").forked() is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages.0.lr": 5e-4}, "stages.0.lr: 0.0005, was 0.001."),
        ({"batch_size": 3}, "batch_size: 3, was 2"),
        ({"seed": 1}, "seed: 1, was 0"),
        ({"data.views": 3}, "data.views: 3, was 2."),
    ],
)
def test_a_fork_refuses_what_its_inherited_stages_were_not_trained_with(
    changes, named, parent, tiny_recipe, tmp_path
):
    with pytest.raises(RunError, match="stage 1 was trained otherwise") as refused:
        list(fork(parent, 1, tiny_recipe.replace(changes), tmp_path / "child"))
    assert named in str(refused.value)
    assert not (tmp_path / "child").exists()


def test_a_fork_needs_a_stage_that_has_ended_and_one_after_it(parent, tiny_recipe, tmp_path):
    with pytest.raises(RunError, match="goes on with stage 4, and the recipe has 3"):
        list(fork(parent, 3, tiny_recipe, tmp_path / "child"))
    with pytest.raises(RunError, match="stage 4 of this run has not ended"):
        list(fork(parent, 4, tiny_recipe, tmp_path / "child"))
    with pytest.raises(RunError, match="is not a run folder"):
        list(fork(tmp_path / "nowhere", 1, tiny_recipe, tmp_path / "child"))


def test_a_fork_on_another_machine_or_encoder_is_refused(parent, tiny_recipe, tmp_path, encoders):
    with pytest.raises(RunError, match="threads: 2, was 1"):
        list(fork(parent, 1, tiny_recipe.replace({"threads": 2}), tmp_path / "child"))
    other = tmp_path / "encoder"
    shutil.copytree(encoders["dinov2"], other)
    list(train(tiny_recipe.replace({"model.encoder": str(other)}), tmp_path / "first"))
    weights = load_file(other / "model.safetensors")
    save_file(
        {k: v + 0.01 for k, v in weights.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(RunError, match="encoder"):
        list(
            fork(
                tmp_path / "first",
                1,
                tiny_recipe.replace({"model.encoder": str(other)}),
                tmp_path / "child",
            )
        )
    assert not (tmp_path / "child").exists()


def test_a_run_has_one_trainer_at_a_time(tiny_recipe, tmp_path):
    first = train(tiny_recipe, tmp_path / "run")
    for _ in range(6):
        next(first)
    assert vitseg.RunFolder(tmp_path / "run").is_held()
    with pytest.raises(RunError, match="is being trained by process"):
        list(resume(tmp_path / "run"))
    next(first)
    first.close()
    assert not vitseg.RunFolder(tmp_path / "run").is_held()
    list(resume(tmp_path / "run"))
    list(train(tiny_recipe, tmp_path / "plain"))
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == (
        tmp_path / "plain" / "events.jsonl"
    ).read_bytes()


# ---------------------------------------------------------------------- within a stage


def stop_after(step, recipe, folder):
    with closing(train(recipe, folder, reuse=False)) as events:
        next(e for e in events if isinstance(e, BatchEnded) and e.step == step)


@pytest.mark.parametrize("step", [3, 12, 17])
def test_a_fork_from_within_a_stage_gives_the_bits_of_a_run_trained_so_from_the_start(
    step, tiny_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(RunFolder, "drop_checkpoints", lambda run: None)  # to be compared
    other = tiny_recipe.replace({"stages.2.lr": 3e-5, "stages.2.name": "Otherwise"})
    stop_after(step, tiny_recipe, tmp_path / "parent")
    list(train(other, tmp_path / "whole", reuse=False))
    events = fork(tmp_path / "parent", None, other, tmp_path / "fork")
    next(e for e in events if isinstance(e, BatchEnded) and e.step == step + 2)  # trained here
    events.close()
    rest = list(resume(tmp_path / "fork"))
    assert isinstance(rest[-1], RunEnded) and rest[0].step == step + 2
    whole, found = soak.content(tmp_path / "whole"), soak.content(tmp_path / "fork")
    assert found["events.jsonl"].split(b"\n", 1)[1] == whole["events.jsonl"].split(b"\n", 1)[1]
    differ = {Path(n).name for n in whole.keys() | found.keys() if whole.get(n) != found.get(n)}
    assert differ <= {"events.jsonl", "state.json", "manifest.json"}, (
        "which hold the parent's name, or places in the log"
    )


def test_a_fork_from_within_a_stage_refuses_what_that_stage_was_not_trained_with(
    tiny_recipe, tmp_path
):
    stop_after(12, tiny_recipe, tmp_path / "parent")
    with pytest.raises(RunError, match=r"stages\.1\.lr: 5e-05, was 0\.0003"):
        next(
            fork(
                tmp_path / "parent",
                None,
                tiny_recipe.replace({"stages.1.lr": 5e-5}),
                tmp_path / "fork",
            )
        )
    assert not (tmp_path / "fork").exists()


def test_a_fork_from_within_needs_a_checkpoint(tiny_recipe, tmp_path):
    stop_after(12, tiny_recipe, tmp_path / "parent")
    short = tiny_recipe.replace({"stages": tiny_recipe.stages[:1]})
    with pytest.raises(RunError, match="goes on with stage 2, and the recipe has 1"):
        next(fork(tmp_path / "parent", None, short, tmp_path / "fork"))
    shutil.rmtree(tmp_path / "parent" / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint"):
        next(fork(tmp_path / "parent", None, tiny_recipe, tmp_path / "fork"))
