"""The stage store: a stage that has been trained is not trained again, and what is taken from it is
what training gives.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import stripes, write_pairs
from safetensors.torch import load_file, save_file

import vitseg
from vitseg.errors import RunError
from vitseg.events import BatchEnded, RunStarted, StageStarted
from vitseg.files import whole_folder
from vitseg.runs import store
from vitseg.runs.folder import RunFolder
from vitseg.runs.run import fork, resume, train
from vitseg.settings import Data, Exponential, Folder
from vitseg.training.loop import StageTraining


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs root of each test's own."""
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The stage of every optimizer step that is really made."""
    made, real = [], StageTraining.train_step
    monkeypatch.setattr(
        StageTraining, "train_step", lambda self, p: (made.append(self.number), real(self, p))[1]
    )
    return made


def lines(folder: Path) -> list[dict]:
    kept = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in kept] == list(range(1, len(kept) + 1))
    return [line for line in kept if line["event"] != "RunStarted"]


def weights(folder: Path) -> dict[str, bytes]:
    files = [
        p for part in ("best", "stages") for p in sorted((folder / part).rglob("*.safetensors"))
    ]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def inherited(folder: Path) -> int:
    started = next(e for e in RunFolder(folder).events() if isinstance(e, RunStarted))
    return started.parent["stage"] if started.parent else 0


def test_class_weights_that_were_counted_are_said_of_an_inherited_stage_too(tiny_recipe, root):
    recipe = tiny_recipe.replace({"loss.class_weights": vitseg.ByFrequency(largest=9.0)})
    notes = [
        [e.notes for e in train(recipe, root / name) if isinstance(e, StageStarted)]
        for name in ("first", "second")
    ]
    assert inherited(root / "second") == 3
    assert notes[0] == notes[1]
    assert all("Class weights: background 1, " in " ".join(said) for said in notes[0])


def test_a_run_that_has_been_trained_is_not_trained_again(tiny_recipe, root, steps):
    list(train(tiny_recipe, root / "first"))
    assert set(steps) == {1, 2, 3}
    steps.clear()
    list(train(tiny_recipe, root / "second"))
    assert steps == [] and inherited(root / "second") == 3
    assert lines(root / "second") == lines(root / "first") and weights(root / "second") == weights(
        root / "first"
    )
    first, second = RunFolder(root / "first").summary, RunFolder(root / "second").summary
    assert [row.pop("seconds") for row in second["stages"]] == [None] * 3
    assert (
        [row.pop("seconds") for row in first["stages"]]
        and first.pop("seconds")
        and second.pop("seconds") is not None
    )
    assert second.pop("parent") == {"run": "first", "stage": 3} and first.pop("parent") is None
    assert second == first
    (third,) = [
        e for e in train(tiny_recipe, root / "third", reuse=False) if isinstance(e, RunStarted)
    ]
    assert (
        third.parent is None
        and set(steps) == {1, 2, 3}
        and lines(root / "third") == lines(root / "first")
    )


@pytest.mark.parametrize("which", ["best", "last"])
def test_what_goes_on_from_a_stored_stage_is_what_it_would_have_been(
    which, tiny_recipe, root, tmp_path, steps
):
    deeper = tiny_recipe.replace({"stages.1.unfrozen_blocks": 3, "stages.1.start_from": which})
    list(train(tiny_recipe, root / "first"))
    steps.clear()
    list(train(deeper, root / "second"))
    assert set(steps) == {2, 3} and inherited(root / "second") == 1
    list(train(deeper, tmp_path / "alone", reuse=False))
    assert lines(root / "second") == lines(tmp_path / "alone") and weights(
        root / "second"
    ) == weights(tmp_path / "alone")


def test_of_several_runs_that_trained_it_the_newest_is_named(tiny_recipe, root):
    for name in ("b", "a", "c"):  # neither the first nor the last by name
        list(train(tiny_recipe, root / name, reuse=False))
        file = root / name / "stages" / "1" / store.KEY_FILE
        assert file.exists()
        os.utime(file, (0, "acb".index(name)))
    with closing(train(tiny_recipe.replace({"stages.1.lr": 5e-4}), root / "d")) as events:
        assert next(events).parent == {"run": "b", "stage": 1}


def test_a_stage_that_was_inherited_is_found_again_when_the_first_run_is_gone(
    tiny_recipe, root, steps
):
    list(train(tiny_recipe, root / "first"))
    list(train(tiny_recipe, root / "second"))
    shutil.rmtree(root / "first")
    steps.clear()
    list(train(tiny_recipe, root / "third"))
    assert steps == [] and inherited(root / "third") == 3


def test_what_changes_no_number_changes_no_key_and_is_told_in_the_run_s_own_words(
    tiny_recipe, root
):
    list(train(tiny_recipe, root / "first"))
    renamed = {
        "name": "other",
        "workers": 1,
        "cache": False,
        "stages.0.name": "Frost",
        "stages.2.name": "Deep",
    }
    list(train(tiny_recipe.replace(renamed), root / "second"))
    assert inherited(root / "second") == 3
    started = [e for e in RunFolder(root / "second").events() if isinstance(e, StageStarted)]
    assert [e.name for e in started] == ["Frost", "Last", "Deep"]
    of_stages = [e for e in RunFolder(root / "first").events() if isinstance(e, StageStarted)]
    assert [replace(e, name="") for e in started] == [replace(e, name="") for e in of_stages]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"stages.2.lr": 2e-4}, 2),
        (
            {"stages.2.schedule": Exponential(gamma=0.7)},
            2,
        ),  # the same LR in its one epoch, but another count of its steps
        ({"stages.2.unfrozen_blocks": 1, "stages.2.layer_decay": 1.0}, 2),
        ({"stages.1.drop_path": 0.1}, 1),
        ({"stages.1.epochs": 3}, 1),
        ({"stages.1.start_from": "last"}, 1),
        ({"stages.0.schedule.T_0": 2}, 0),
        ({"batch_size": 3}, 0),
        ({"seed": 1}, 0),
        ({"threads": 2}, 0),
        ({"features": "half"}, 0),
        ({"loss.dice": 0.5}, 0),
        ({"optimizer.weight_decay": 0.1}, 0),
        ({"clip_norm": 0.5}, 0),
        ({"model.dropout": 0.2}, 0),
        ({"data.views": 3}, 0),
        ({"data.view_seed": 1}, 0),
        ({"data.augment.rotate_degrees": 5.0}, 0),
        ({"data.size": (56, 70)}, 0),
        ({"data.split_seed": 1}, 0),
        ({"data.source.images": 13}, 0),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_what_changes_a_number_changes_the_key(changes, kept, trained_once, tiny_recipe):
    changed = tiny_recipe.replace(changes)
    events = train(
        changed, trained_once.parent / f"other-{'-'.join(changes)}", reuse=trained_once.parent
    )
    assert (next(events).parent or {"stage": 0})["stage"] == kept
    events.close()


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory, tiny_recipe) -> Path:
    folder = tmp_path_factory.mktemp("store") / "run"
    list(train(tiny_recipe, folder, reuse=False))
    return folder


def test_versions_machine_weights_and_our_own_numerics_are_in_the_key(
    trained_once, tiny_recipe, monkeypatch
):
    def kept() -> int:
        events = train(tiny_recipe, trained_once.parent / "other", reuse=trained_once.parent)
        started = next(events)
        events.close()
        shutil.rmtree(trained_once.parent / "other")
        return (started.parent or {"stage": 0})["stage"]

    assert kept() == 3
    for place, name, value in (
        (store, "NUMERICS", 99),
        (store, "version", lambda name: "9.9"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            assert kept() == 0, name
    job = vitseg.Job(tiny_recipe)
    job.model.encoder.vit.config.layer_norm_eps *= 2
    (started,) = [e for _, e in zip(range(1), train(job, reuse=trained_once.parent), strict=False)]
    assert started.parent is None
    job = vitseg.Job(tiny_recipe)
    with torch.no_grad():
        job.model.encoder.blocks[2].mlp.fc1.weight[0, 0] += 1e-3
    (started,) = [e for _, e in zip(range(1), train(job, reuse=trained_once.parent), strict=False)]
    assert started.parent is None


def test_a_changed_image_is_another_training(tiny_recipe, tmp_path, root):
    folder = write_pairs(tmp_path / "data", {f"{i}": stripes(0, 1, 2) for i in range(6)})
    recipe = tiny_recipe.replace(
        {"data": Data(source=Folder(path=str(folder)), size=(28, 28)), "stages.0.epochs": 1}
    )
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    list(train(recipe, root / "first"))
    moved = shutil.copytree(folder, tmp_path / "moved")
    list(train(recipe.replace({"data.source.path": str(moved)}), root / "moved"))
    assert inherited(root / "moved") == 1  # not where it lies: what is in it
    image = next((folder / "images").iterdir())
    content = bytearray(image.read_bytes())
    shutil.copy(
        next(p for p in sorted((folder / "masks").iterdir())), image
    )  # another picture of the same size
    assert image.read_bytes() != content
    list(train(recipe, root / "second"))
    assert inherited(root / "second") == 0


def damage_the_first(stage: Path) -> None:
    damage(stage.with_name("1"))


def spoil_a_key(stage: Path) -> None:
    (stage / "key").write_bytes(b"\xff\xfe")


def damage(stage: Path) -> None:
    file = stage / "best" / "decoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose_the_log(stage: Path) -> None:
    (stage.parents[1] / "events.jsonl").unlink()


def lose_the_end(stage: Path) -> None:
    log = stage.parents[1] / "events.jsonl"
    text = log.read_text().splitlines(keepends=True)
    log.write_text(
        "".join(line for line in text if not ('"StageEnded"' in line and '"stage":3' in line))
    )


def test_names_of_classes_change_no_number_and_are_the_new_run_s_own(tiny_recipe, tmp_path, root):
    folder = write_pairs(tmp_path / "data", {f"{i}": stripes(0, 1, 2) for i in range(6)})
    recipe = tiny_recipe.replace(
        {"data": Data(source=Folder(path=str(folder)), size=(28, 28)), "stages.0.epochs": 1}
    )
    list(train(recipe, root / "first"))
    (folder / "classes.json").write_text(json.dumps({"classes": ["skin", "slough", "rim"]}))
    list(train(recipe, root / "second"))
    assert inherited(root / "second") == 3 and RunFolder(root / "second").summary["classes"] == [
        "skin",
        "slough",
        "rim",
    ]


@pytest.mark.parametrize(
    ("harm", "kept"),
    [(damage, 2), (damage_the_first, 0), (spoil_a_key, 2), (lose_the_log, 0), (lose_the_end, 2)],
)
def test_a_stage_that_is_not_whole_is_not_taken(harm, kept, tiny_recipe, root, steps):
    list(train(tiny_recipe, root / "first"))
    harm(root / "first" / "stages" / "3")
    steps.clear()
    list(train(tiny_recipe, root / "second"))
    assert inherited(root / "second") == kept and set(steps) == {1, 2, 3} - set(range(1, kept + 1))


def test_the_comparison_would_see_a_stale_stage(tiny_recipe, root, tmp_path):
    """The negative control: a stage whose weights are not what its key says makes another run."""
    list(train(tiny_recipe, root / "first"))
    stage = root / "first" / "stages" / "1"
    tensors, key = load_file(stage / "best" / "decoder.safetensors"), (stage / "key").read_text()
    with whole_folder(stage, root / ".weights") as aside:
        for name in ("best", "last"):
            (aside / name).mkdir()
            changed = {k: v + 1e-4 for k, v in tensors.items()}
            save_file(changed, aside / name / "decoder.safetensors")
        (aside / "key").write_text(key)
    changed = tiny_recipe.replace({"stages.1.lr": 4e-4})
    list(train(changed, root / "second"))
    list(train(changed, tmp_path / "alone", reuse=False))
    assert lines(root / "second") != lines(tmp_path / "alone")


def cut_off(recipe, folder: Path, epoch: int) -> None:
    events = train(recipe, folder, reuse=False)
    for event in events:
        if isinstance(event, BatchEnded) and event.epoch == epoch:
            break
    events.close()


def test_a_run_that_goes_on_says_what_has_changed_and_goes_on_all_the_same_only_if_told_to(
    tiny_recipe, root, monkeypatch
):
    cut_off(tiny_recipe, root / "run", 3)
    assert (root / "run" / "stages" / "1" / "key").exists()
    monkeypatch.setattr(store, "version", lambda name: "9.9")
    now = store._COMPUTE
    with pytest.raises(
        RunError,
        match=(
            r"what the run began with has changed\. versions\.torch: '9\.9', was "
            r".*allow_inexact"
        ),
    ):
        list(resume(root / "run"))
    list(resume(root / "run", allow_inexact=True))
    kept = json.loads((root / "run" / "environment.json").read_text())
    assert (
        len(kept["inexact"]) == len(now)
        and set(kept["versions"]) == set(now)
        and "keys" not in kept
    )
    assert not (
        root / "run" / "stages" / "3" / "key"
    ).exists()  # nobody may take it for what its settings say


def test_a_fork_of_a_stage_trained_with_other_versions_is_let_be_and_has_no_keys(
    tiny_recipe, root, monkeypatch
):
    list(train(tiny_recipe, root / "parent"))
    monkeypatch.setattr(store, "version", lambda name: "9.9")
    list(fork(root / "parent", 1, tiny_recipe, root / "child"))
    assert not (
        root / "child" / "stages" / "2" / "key"
    ).exists()  # it is not what 9.9 alone would have made
    list(train(tiny_recipe, root / "other"))
    assert inherited(root / "other") == 0


def test_a_fork_refuses_other_images_of_the_same_names(tiny_recipe, tmp_path, root):
    folder = write_pairs(tmp_path / "data", {f"{i}": stripes(0, 1, 2) for i in range(6)})
    recipe = tiny_recipe.replace({"data": Data(source=Folder(path=str(folder)), size=(28, 28))})
    list(train(recipe, root / "parent"))
    write_pairs(folder, {"0": stripes(0, 2, 1)})
    with pytest.raises(RunError, match=r"stage 1 was trained otherwise\. data: "):
        list(fork(root / "parent", 1, recipe, root / "child"))


def test_a_run_of_stored_stages_alone_ends_as_it_was_trained_also_with_half_features(
    tiny_recipe, root
):
    half = tiny_recipe.replace({"features": "half"})
    list(train(half, root / "first"))
    list(train(half, root / "second"))
    assert inherited(root / "second") == 3 and lines(root / "second") == lines(root / "first")


def test_images_changed_while_it_trains_leave_the_stage_without_a_key(tiny_recipe, tmp_path, root):
    folder = write_pairs(tmp_path / "data", {f"{i}": stripes(0, 1, 2) for i in range(6)})
    recipe = tiny_recipe.replace(
        {"data": Data(source=Folder(path=str(folder)), size=(28, 28)), "stages.0.epochs": 1}
    )
    events = train(recipe, root / "run")
    next(e for e in events if isinstance(e, BatchEnded))
    write_pairs(folder, {"0": stripes(0, 2, 1)})
    next(e for e in events if isinstance(e, StageStarted) and e.stage == 2)
    write_pairs(
        folder, {"0": stripes(0, 1, 2)}
    )  # put back: but stage 2 began where stage 1 had gone with the other
    list(events)
    assert [(root / "run" / "stages" / str(n) / "key").exists() for n in (1, 2, 3)] == [False] * 3


def test_another_encoder_is_no_inexactness(tiny_recipe, root, monkeypatch):
    cut_off(tiny_recipe, root / "run", 3)
    monkeypatch.setattr(store, "part_hashes", lambda model: {"block 1": "other"})
    with pytest.raises(RunError, match=r"what the run began with has changed\. weights: "):
        next(resume(root / "run", allow_inexact=True))


def test_a_resumed_run_s_stages_are_in_the_store_too(tiny_recipe, root):
    cut_off(tiny_recipe, root / "run", 4)
    list(resume(root / "run"))
    list(train(tiny_recipe, root / "second"))
    assert inherited(root / "second") == 3


def test_a_stage_of_a_run_that_still_trains_is_taken(tiny_recipe, root):
    cut_off(tiny_recipe, root / "run", 3)
    list(train(tiny_recipe, root / "second"))
    assert inherited(root / "second") == 1
