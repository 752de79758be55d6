"""A sweep trains every combination, each first stage once, and each trial as if it were alone."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
from background import trial_that_fails

import vitseg
from vitseg.effects import Blur, RightAngle
from vitseg.errors import ConfigError, RecipeError, RunError
from vitseg.events import BatchEnded, EpochEnded, RunStarted, StageStarted, TrialEnded, TrialStarted
from vitseg.runs import checkpoint
from vitseg.settings import Constant, CosineRestarts, Exponential
from vitseg.sweep.grid import make_grid
from vitseg.sweep.local import Sweep
from vitseg.training.job import Job
from vitseg.training.loop import StageTraining

FACTS = {"images": 10, "blocks": 4}
DEPTHS = {"stages.1.unfrozen_blocks": [0, 1, 2]}


def facts_of(recipe):
    job = Job(recipe)
    return job.images, job.model.encoder.depth


@pytest.fixture
def grid(tiny_recipe):
    """3 x 2 combinations over stage 2, 3 seeds."""
    axes = DEPTHS | {
        "stages.1.schedule": [Exponential(gamma=0.5), CosineRestarts(T_0=3, burn_in_batches=1)]
    }
    recipe = tiny_recipe.replace({"stages.0.epochs": 1, "stages.1.epochs": 1})
    return make_grid(recipe, axes, 3, *facts_of(recipe))


@pytest.fixture
def small(tiny_recipe):
    """Two depths, one seed: two trials and their control."""
    recipe = tiny_recipe.replace({"stages.0.epochs": 1, "stages.1.epochs": 1})
    return make_grid(recipe, {"stages.1.unfrozen_blocks": [0, 2]}, 1, *facts_of(recipe))


# ---------------------------------------------------------------------- the plan


def test_every_combination_has_every_seed_and_its_control(grid):
    own = [t for t in grid.trials if t.setting is not None]
    assert {(t.setting, t.seed) for t in own} == set(itertools.product(range(6), range(3)))
    controls = {t.name: t for t in grid.trials if t.setting is None}
    assert sorted(controls) == ["control1-seed0", "control1-seed1", "control1-seed2"]
    for trial in own:
        control = controls[trial.control]
        assert control.seed == trial.seed == control.recipe.seed == trial.recipe.seed
        assert [s.epochs for s in control.recipe.stages] == [3] and control.recipe.stages[
            0
        ].unfrozen_blocks == 0


def test_seeds_leave_data_split_and_views_as_they_are(grid):
    assert len({t.recipe.data for t in grid.trials}) == 1


def test_trials_that_share_stage_1_stand_together_and_inherit_it(grid):
    shared = [t.shared for t in grid.trials]
    assert shared.count(0) == 6  # three seeds, and their controls
    assert [t.seed for t in grid.trials] == sorted(t.seed for t in grid.trials)
    assert set(shared) == {0, 1}


def test_a_trial_inherits_two_stages_where_only_the_third_differs(tiny_recipe):
    grid = make_grid(tiny_recipe, {"stages.2.unfrozen_blocks": [2, 3]}, 1, **FACTS)
    assert {t.name: t.shared for t in grid.trials}["02-seed0"] == 2


@pytest.mark.parametrize(
    ("axes", "kept", "why"),
    [
        (
            {"stages.2.unfrozen_blocks": [0, 2], "stages.2.layer_decay": [0.8, 0.5]},
            3,
            "stage 3 layer_decay has no effect there",
        ),
        (
            {"stages.2.unfrozen_blocks": ["all", 4]},
            1,
            "unfrozen_blocks 4 is the same training as stage 3 unfrozen_blocks all",
        ),
        (
            {"stages.1.schedule": [Constant(), Exponential(gamma=1.0)]},
            1,
            "exponential is the same training as",
        ),
        (
            {"stages.0.schedule": [Constant(), CosineRestarts(burn_in_batches=99)]},
            1,
            "is the same training as",
        ),
    ],
)
def test_combinations_that_come_to_the_same_training_are_left_out_and_said(
    axes, kept, why, tiny_recipe
):
    grid = make_grid(tiny_recipe, axes, 1, **FACTS)
    assert len(grid.settings) == kept
    assert grid.places.size == kept + len(grid.notes) and why in " ".join(grid.notes)


def test_schedules_that_differ_in_one_step_are_two(tiny_recipe):
    grid = make_grid(
        tiny_recipe,
        {"stages.0.schedule": [Constant(), CosineRestarts(T_0=2, burn_in_batches=8)]},
        1,
        **FACTS,
    )
    assert len(grid.settings) == 2 and grid.notes == []


@pytest.mark.parametrize(
    ("axes", "kind", "said"),
    [
        ({"stages.1.unfrozen_block": [1]}, RecipeError, "did you mean unfrozen_blocks"),
        ({"stage.1.lr": [1e-3]}, RecipeError, "did you mean stages"),
        ({"stages.1.lr": []}, ConfigError, "axes['stages.1.lr']: got []"),
        ({"stages.1.lr": "1e-3"}, ConfigError, "a list of at least one value"),
        ({"stages.1.lr": [1e-3, -1.0]}, RecipeError, "axes['stages.1.lr']: Recipe refused."),
        ({"stages.1.unfrozen_blocks": [0, "some"]}, RecipeError, "got 'some'"),
        ({}, ConfigError, "axes: got {}"),
        ({"seed": [0, 1]}, ConfigError, "give seeds="),
        ({"data.split_seed": [0, 1]}, ConfigError, "scored on the same images"),
        ({"data.source.seed": [0, 1]}, ConfigError, "scored on the same images"),
    ],
)
def test_an_axis_that_cannot_be_is_named(axes, kind, said, tiny_recipe):
    with pytest.raises(kind) as refused:
        make_grid(tiny_recipe, axes, 1, **FACTS)
    assert said.lower() in str(refused.value).lower()


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [-1], [0.5], [True]])
def test_seeds_that_cannot_be_are_refused(seeds, tiny_recipe):
    with pytest.raises(ConfigError, match="seeds"):
        make_grid(tiny_recipe, DEPTHS, seeds, **FACTS)


# ---------------------------------------------------------------------- the training


def lines(folder, drop=("RunStarted",)):
    kept = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in kept if line["event"] not in drop]


def test_stage_1_is_trained_once_a_seed_and_every_trial_is_as_if_alone(grid, tmp_path, monkeypatch):
    begun = []
    real = StageTraining.__iter__
    monkeypatch.setattr(
        StageTraining, "__iter__", lambda self: begun.append(self.number) or real(self)
    )
    sweep = Sweep(grid, tmp_path / "sweep")
    list(sweep.events())
    assert (
        begun.count(1) == 3 + 3 and begun.count(2) == begun.count(3) == 18
    )  # a control is one stage
    monkeypatch.undo()
    for trial in grid.trials:
        run = sweep.run_of(trial.name)
        assert [s["epochs"] for s in run.summary["stages"]] == [
            s.epochs for s in trial.recipe.stages
        ]
        assert not run.checkpoints.exists()
    for alone in [t for t in grid.trials if t.seed == 1]:
        name = alone.name
        list(vitseg.train(alone.recipe, tmp_path / name, reuse=False))
        assert lines(sweep.run_of(name).path) == lines(tmp_path / name)
        for file in ("best/decoder.safetensors", "best/encoder/block-4.safetensors"):
            assert (sweep.run_of(name).path / file).read_bytes() == (
                tmp_path / name / file
            ).read_bytes()


def test_a_sweep_that_was_cut_off_goes_on_to_the_same_bits(small, tmp_path):
    whole, cut = Sweep(small, tmp_path / "whole"), Sweep(small, tmp_path / "elsewhere" / "cut")
    list(whole.events())
    stream = cut.events()
    second = False
    for event in stream:  # as a kill does, in the second trial, after an epoch of its own
        second |= isinstance(event, TrialStarted) and event.trial == "02-seed0"
        if second and isinstance(event, EpochEnded) and event.stage == 2:
            break
    stream.close()
    again = Sweep(small, tmp_path / "elsewhere" / "cut")
    assert [t.name for t in again.todo()] == ["02-seed0", "control1-seed0"]
    events = list(again.events())
    assert not [
        e for e in events if isinstance(e, StageStarted) and e.stage == 2
    ]  # it went on, it did not begin again
    for trial in small.trials:
        assert lines(again.run_of(trial.name).path) == lines(whole.run_of(trial.name).path)


def test_a_trial_that_fails_is_told_of_and_the_others_go_on(small, tmp_path, monkeypatch):
    trial_that_fails(monkeypatch, "02-seed0", "The loss of step 9 is nan.")
    sweep = Sweep(small, tmp_path / "sweep")
    ended = {e.trial: e.error for e in sweep.events() if isinstance(e, TrialEnded)}
    assert ended == {
        "01-seed0": None,
        "02-seed0": "TrainingError: The loss of step 9 is nan.",
        "control1-seed0": None,
    }
    assert set(sweep.results()) == {"01-seed0", "control1-seed0"}
    monkeypatch.undo()
    list(sweep.events())
    assert (
        set(sweep.results()) == {"01-seed0", "02-seed0", "control1-seed0"} and sweep.failures == {}
    )


def test_the_same_call_finds_its_folder_and_another_sweep_is_refused(
    small, tiny_recipe, tmp_path, monkeypatch
):
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path))
    sweep = Sweep(small)
    next(sweep.events())
    assert Sweep(small).path == sweep.path
    other = make_grid(small.recipe, {"stages.1.unfrozen_blocks": [0, 1]}, 1, **FACTS)
    assert Sweep(other).path != sweep.path
    with pytest.raises(RunError, match="holds another sweep; it differs in axes"):
        Sweep(other, sweep.path)
    sweep.file.write_text("[")
    with pytest.raises(RunError, match="holds another sweep"):
        Sweep(small)


def test_a_sweep_over_tuples_and_schedules_is_found_again(tiny_recipe, tmp_path):
    axes = {
        "model.skip_depths": [(1, 2, 3, 4)],
        "stages.1.schedule": [Constant(), Exponential(gamma=0.5)],
        "data.effects": [(), (Blur(),), (Blur(p=1.0), RightAngle())],
    }
    grid = make_grid(tiny_recipe, axes, 1, **FACTS)
    assert {words[2] for words in grid.settings} == {
        "()",
        "blur p 0.5",
        "blur p 1.0, then right angle",
    }
    next(Sweep(grid, tmp_path / "sweep").events())
    assert Sweep(make_grid(tiny_recipe, axes, 1, **FACTS), tmp_path / "sweep").file.exists()


def test_a_sweep_is_trained_by_one_at_a_time(small, tmp_path):
    first = Sweep(small, tmp_path / "sweep").events()
    next(first)
    with pytest.raises(RunError, match="is being trained by process"):
        list(Sweep(small, tmp_path / "sweep").events())
    first.close()


def test_steps_of_a_trial_are_the_steps_of_its_recipe(small, tmp_path):
    steps = [e for e in Sweep(small, tmp_path / "sweep").events() if isinstance(e, BatchEnded)]
    assert len(steps) == 15 + (15) + 15  # inherited ones are passed on too


def test_a_save_that_fails_when_a_sweep_is_left_is_said_and_frees_the_folder(
    small, tmp_path, monkeypatch
):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    sweep = Sweep(small, tmp_path / "sweep")
    events = sweep.events()
    next(e for e in events if isinstance(e, BatchEnded))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", no_room)
        with pytest.raises(RunError, match="No space left on device"):
            events.close()
    assert sweep.failures == {}
    assert next(sweep.events()).trial == "01-seed0"


def test_all_blocks_of_another_encoder_are_not_counted_as_this_one_s(tiny_recipe):
    axes = {
        "model.encoder": [tiny_recipe.model.encoder, "facebook/dinov2-large"],
        "stages.2.unfrozen_blocks": [4, "all"],
    }
    grid = make_grid(tiny_recipe, axes, 1, **FACTS)
    assert (
        len(grid.settings) == 3
    )  # 4 and "all" are the same for the encoder that is known to have four


def test_a_sweep_whose_trials_have_all_been_trained_before_is_soon_over(small, tmp_path):
    list(Sweep(small, tmp_path / "a" / "sweep").events())
    shutil.move(tmp_path / "a", tmp_path / "b")
    again = tmp_path / "b" / "again"
    session = vitseg.ablate(small.recipe, small.axes, small.seeds, again).session
    session.start()
    list(session.follow())
    assert session.progress()[0] == 1.0 and not session.source.todo()
    assert all(
        e.parent
        for t in small.trials
        for e in session.source.run_of(t.name).events()
        if isinstance(e, RunStarted)
    )
