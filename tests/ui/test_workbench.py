"""The workbench without a browser: what the controls do, and that its buttons never lie."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from background import until

import vitseg
from vitseg.errors import RunError, TrainingError
from vitseg.events import BatchEnded, EpochEnded, StageStarted, ValidationBatch
from vitseg.runs import checkpoint
from vitseg.training import job as jobs
from vitseg.training.device import Machine
from vitseg.training.loop import StageTraining
from vitseg.ui import session
from vitseg.ui.controls import ALL, ONE
from vitseg.ui.curves import NAMES, Points
from vitseg.ui.workbench import Workbench


@pytest.fixture
def wb(tiny_recipe):
    return Workbench(tiny_recipe)


def control(wb, label):
    return wb.controls[label]


def press(wb, label):
    """A click as the browser sends it: a button that is off does nothing."""
    button = wb.buttons["Pause" if label == "Resume" else label]
    assert button.description == label, f"{button.description} where {label} was expected"
    if not button.disabled:
        button.click()


def broken_cells(wb):
    return re.findall(r'<td title="([^:]+): [^"]*Promised, but not so', wb.freeze_map.value)


def shown(wb):
    return {t.name: t for t in wb.figure.data}


# ---------------------------------------------------------------------- before the run


def test_every_control_and_button_of_the_design_is_there(wb):
    labels = (
        "Stage, Freeze depth, Scheduler, Learning rate, Epochs, Batch size, Seed, Device, "
        "Run, Start from, Retrain"
    )
    assert list(wb.controls.by_label) == labels.split(", ")
    assert list(wb.buttons) == ["Start", "Pause", "Stop", "Fork"]
    assert [wb.buttons[b].disabled for b in wb.buttons] == [False, True, True, True]
    assert wb.state == "ready" and "Ready. Start trains stages 1 to 3" in wb.status.value


def test_what_an_earlier_run_has_trained_is_told_before_start(wb, tiny_recipe):
    wb.session.forecast()
    control(wb, "Epochs").value = 3
    assert "trained already" not in wb.stage_table.value
    control(wb, "Epochs").value = 2
    list(vitseg.train(tiny_recipe))
    control(wb, "Stage").value = 2
    assert wb.stage_table.value.count("trained already") == 3
    control(wb, "Learning rate").value = 1e-4
    assert wb.stage_table.value.count("trained already") == 1, (
        "what follows from the change is trained anew"
    )
    control(wb, "Retrain").value = True
    assert "trained already" not in wb.stage_table.value


def test_the_planned_lr_is_there_before_start_and_follows_the_controls(wb, tiny_recipe):
    def planned():
        return np.asarray(shown(wb)["LR (planned)"].y)

    before = planned()
    np.testing.assert_allclose(before, [p.lr for p in vitseg.preview(tiny_recipe, 5)], rtol=1e-6)
    control(wb, "Stage").value = 2
    control(wb, "Learning rate").value = 1e-4
    np.testing.assert_allclose(planned()[10:15], 1e-4, rtol=1e-6)
    control(wb, "Epochs").value = 4
    assert len(planned()) == len(before) + 10
    control(wb, "Scheduler").value = "Constant"
    np.testing.assert_allclose(planned()[10:30], 1e-4, rtol=1e-6)
    control(wb, "Batch size").value = 5
    assert len(planned()) == 2 * (2 + 4 + 1)
    assert wb.recipe.stages[1].epochs == 4 and wb.recipe.batch_size == 5


def test_the_freeze_depth_is_seen_at_once(wb):
    control(wb, "Stage").value = 3
    control(wb, "Freeze depth").value = 4
    decoder, norm = 3, 2  # in every stage; in the two that unfreeze
    assert (
        len(re.findall('<td title="[^"]+: trains, ', wb.freeze_map.value)) == decoder + norm + 1 + 4
    )


def test_stage_1_has_a_frozen_encoder_and_its_slider_is_off(wb):
    assert control(wb, "Freeze depth").disabled
    control(wb, "Stage").value = 2
    assert not control(wb, "Freeze depth").disabled


def test_a_depth_of_0_takes_the_encoder_s_settings_with_it(wb):
    control(wb, "Stage").value = 3  # it has layer_decay, which has no effect on a frozen encoder
    control(wb, "Freeze depth").value = 0
    assert wb.controls.problems == {} and wb.recipe.stages[2].layer_decay == 1.0
    control(wb, "Freeze depth").value = 2
    assert wb.recipe.stages[2].layer_decay == 0.8


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("Learning rate", 0.0),
        ("Learning rate", -1.0),
        ("Epochs", 0),
        ("Batch size", 0),
        ("Batch size", -3),
    ],
)
def test_a_setting_that_cannot_work_says_so_beside_its_control(label, value, wb):
    control(wb, label).value = value
    assert "got" in wb.controls.says[label].value and wb.buttons["Start"].disabled
    assert "Start is off: " in wb.status.value and "got " in wb.status.value
    with pytest.raises(TrainingError):
        wb.start()
    control(wb, label).value = {"Learning rate": 1e-3, "Epochs": 2, "Batch size": 2}[label]
    assert wb.controls.says[label].value == "" and not wb.buttons["Start"].disabled


def test_a_later_stage_alone_needs_a_stage_to_start_from(wb):
    control(wb, "Stage").value = 2
    control(wb, "Run").value = ONE
    says = wb.controls.says["Start from"].value
    assert "Choose one in Start from" in says and wb.buttons["Start"].disabled
    control(wb, "Run").value = ALL
    assert not wb.buttons["Start"].disabled


def test_the_forecast_comes_from_timed_batches(wb):
    until(lambda: wb.session.cost is not None)
    one, two, three = wb.session.forecast()
    assert (one.steps, two.steps, three.steps) == (10, 10, 5)
    assert all(f.seconds > 0 and f.memory > 0 and f.checkpoint > 0 for f in (one, two, three))
    assert one.checkpoint < two.checkpoint
    until(lambda: "<td>10</td>" in wb.stage_table.value)


def test_what_kept_features_take_and_give_is_said_before_and_counted_after_each_epoch(wb):
    until(lambda: "x as fast</td>" in wb.stage_table.value)
    assert "cached features" in wb.stage_table.value and "bound by" in wb.stage_table.value
    wb.start()
    wb.wait()
    until(lambda: "Cached features: epoch 5 read" in wb.tabs.checks.value)


def test_finish_prints_the_forecast_before_it_trains(wb, capsys):
    wb.finish()
    text = capsys.readouterr().out
    assert (
        text.index("Forecast, from a few timed batches") < text.index("Stage 1:")
        and "x as fast" in text
    )


# ---------------------------------------------------------------------- during the run


def test_a_run_through_the_workbench_is_the_run_of_train_to_the_byte(wb, tiny_recipe, tmp_path):
    wb.start()
    assert not wb.model.training  # another cell looks at it meanwhile
    assert wb.wait() == "ended"
    list(vitseg.train(tiny_recipe, tmp_path / "plain", reuse=False))
    for file in ("events.jsonl", "best/decoder.safetensors", "best/encoder/block-4.safetensors"):
        assert (wb.folder / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_the_traces_are_the_events(wb):
    wb.start()
    wb.wait()
    batches = [e for e in wb.events if isinstance(e, BatchEnded)]
    until(lambda: len(shown(wb)["LR"].x) == len(batches) and "Ended" in wb.status.value)
    np.testing.assert_allclose(shown(wb)["LR"].y, [e.lr["decoder"] for e in batches], rtol=1e-6)
    np.testing.assert_allclose(shown(wb)["LR (planned)"].y, shown(wb)["LR"].y, rtol=1e-6)
    np.testing.assert_allclose(shown(wb)["train loss"].y, [e.loss for e in batches], rtol=1e-6)
    ended = [e.validation["iou"] for e in wb.events if isinstance(e, EpochEnded)]
    assert set(np.float32(ended)) <= set(np.asarray(shown(wb)["valid IoU"].y))
    assert [t.name for t in wb.figure.data][-len(NAMES) :] == list(NAMES)
    assert wb.bar.value == 1.0 and wb.tabs.checks.value.count("✓") == 7


def test_without_a_run_there_is_nothing_to_pause_or_resume(wb):
    for act in (wb.pause, wb.resume):
        with pytest.raises(RunError, match=r"Nothing has been started.*Press Start\."):
            act()
    wb.stop()
    assert wb.state == wb.wait() == "ready"


def test_what_stands_on_a_page_that_is_loaded_again_is_what_is_drawn_now(wb):
    wb.start()
    assert wb.wait() == "ended"
    state = {trace["name"]: trace for trace in wb.figure.get_state()["_widget_data"]}
    assert (
        state["train loss"]["x"]["shape"]
        == (sum(isinstance(e, BatchEnded) for e in wb.events),)
        != (0,)
    )


def test_a_breach_says_when_it_was_noticed(wb):
    wb.start()
    until(lambda: sum(isinstance(e, BatchEnded) for e in wb.events) > 3)
    wb.pause()
    until(lambda: wb.state == "paused")
    step = [e for e in wb.events if isinstance(e, BatchEnded)][-1].step
    wb.session.job.model.encoder.blocks[0].requires_grad_(True)
    wb.resume()
    assert wb.wait() == "failed" and f"Noticed after step {step}, in stage 1." in wb.status.value


def test_predictions_of_before_a_stop_stay_on_the_slider(wb):
    wb.start()
    until(lambda: len(wb.session.predictions) > 2)
    wb.stop()
    wb.wait()
    before = sorted(wb.session.predictions)
    wb.resume()
    assert wb.wait() == "ended"
    assert sorted(wb.session.predictions) == list(range(6)) and before[0] == 0
    assert wb.tabs.epoch.value == wb.tabs.epoch.max == 5


def test_the_runs_tab_tells_of_the_run_that_trains(wb):
    wb.start()
    until(lambda: "running here" in wb.tabs.runs.value)
    assert wb.wait() == "ended"
    assert "running here" not in wb.tabs.runs.value


def test_pause_stops_the_points_and_resume_brings_them(wb):
    wb.start()
    until(lambda: len(wb.events) > 3)
    wb.pause()
    until(lambda: wb.state == "paused")
    before = len(wb.events)
    time.sleep(0.3)
    assert len(wb.events) == before and wb.buttons["Pause"].description == "Resume"
    wb.resume()
    until(lambda: len(wb.events) > before)


def test_pause_saves_the_step_that_it_pauses_after(wb, tiny_recipe, monkeypatch):
    """Whoever pauses may close the laptop."""
    clip, seconds = StageTraining.clip, [0.2]
    slow = lambda *args: (time.sleep(seconds[0]), clip(*args))[1]  # noqa: E731
    monkeypatch.setattr(StageTraining, "clip", slow)
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) and e.step == 6 for e in wb.events))
    press(wb, "Pause")
    until(lambda: wb.state == "paused")
    step = next(e.step for e in reversed(wb.events) if isinstance(e, BatchEnded))
    wb.session.between(lambda: None)  # jobs are done in turn
    assert checkpoint.steps_saved(vitseg.RunFolder(wb.folder)) == step
    seconds[0] = 1.0  # the next save of its own, at the end of the epoch, is far away
    monkeypatch.setattr(checkpoint, "save_file", no_room)
    wb.resume()
    until(
        lambda: (
            wb.state == "running"
            and any(isinstance(e, BatchEnded) and e.step > step for e in wb.events)
        )
    )
    wb.pause()
    until(lambda: "is not saved: " in wb.status.value and "No space left" in wb.status.value)
    monkeypatch.undo()
    wb.resume()
    assert wb.wait(60) == "ended"


def test_a_pause_after_a_step_that_failed_saves_nothing_of_it(wb, monkeypatch):
    clip, left = StageTraining.clip, iter(range(7))

    def fails(*args):
        if next(left, None) is None:
            raise RuntimeError("in the midst of step 8")
        return clip(*args)

    monkeypatch.setattr(StageTraining, "clip", fails)
    wb.start()
    assert wb.wait(60) == "failed"
    assert checkpoint.steps_saved(vitseg.RunFolder(wb.folder)) == 5
    wb.pause()
    assert checkpoint.steps_saved(vitseg.RunFolder(wb.folder)) == 5


def no_room(*_):
    raise OSError(28, "No space left on device")


def test_the_model_can_be_asked_for_at_any_time_and_is_a_copy(wb):
    wb.start()
    until(lambda: len(wb.events) > 3)
    first = wb.model
    assert not first.training and first is not wb.session.job.model
    wb.pause()
    until(lambda: wb.state == "paused")
    assert wb.model is not first
    wb.stop()
    wb.wait()
    assert wb.model.predict(np.zeros((50, 60, 3), np.uint8)).shape == (50, 60)


def test_predictions_are_kept_for_every_epoch_and_the_slider_travels(wb):
    wb.start()
    wb.wait()
    until(lambda: wb.tabs.epoch.value == wb.tabs.epoch.max == 5)
    assert set(wb.session.predictions) == {0, 1, 2, 3, 4, 5}
    last = wb.tabs.picture.value
    wb.tabs.epoch.value = 0
    assert wb.tabs.picture.value != last and "After epoch 0" in wb.tabs.picture.value


def test_a_control_that_is_moved_meanwhile_waits_for_the_next_start(wb, tiny_recipe):
    wb.start()
    until(lambda: len(wb.events) > 2)
    control(wb, "Learning rate").value = 5e-4
    assert "takes effect at the next start" in wb.status.value
    assert wb.recipe == tiny_recipe
    wb.wait()
    assert wb.recipe.stages[0].lr == 5e-4
    assert json.loads((wb.folder / "recipe.json").read_text())["stages"][0]["lr"] == 1e-3


def test_a_second_start_does_nothing(wb):
    wb.start()
    first = wb.session.events
    wb.start()
    assert wb.session.events is first
    wb.wait()
    assert len(list(wb.folder.parent.glob("[!.]*"))) == 1


def test_another_workbench_cannot_start_while_one_trains(wb, tiny_recipe):
    wb.start()
    other = Workbench(tiny_recipe.replace({"seed": 5}))
    assert other.session is not wb.session and other.buttons["Start"].disabled
    assert "is training in this kernel" in other.status.value
    with pytest.raises(TrainingError, match="is training in this kernel"):
        other.start()
    wb.stop()
    wb.wait()
    other.draw()
    assert not other.buttons["Start"].disabled


def test_running_the_cell_again_attaches_to_the_live_run(wb, tiny_recipe):
    wb.start()
    until(lambda: len(wb.events) > 4)
    again = Workbench(tiny_recipe)
    assert again.session is wb.session and again.state in {"running", "ended"}
    again.wait()
    until(lambda: len(shown(again)["LR"].x) == sum(isinstance(e, BatchEnded) for e in again.events))


@pytest.mark.parametrize("when", ["at once", "while scoring"])
def test_stop_before_the_first_batch_or_while_scoring_can_be_resumed(
    when, wb, tiny_recipe, tmp_path, monkeypatch
):
    take = wb.session.take

    def stop_while_scoring(event):
        take(event)
        if isinstance(event, ValidationBatch) and when == "while scoring":
            wb.session.stop()

    with monkeypatch.context() as patch:
        patch.setattr(wb.session, "take", stop_while_scoring)
        wb.start()
        if when == "at once":
            wb.stop()
        assert wb.wait() == "stopped"
    assert when == "at once" or wb.session.resumable
    if wb.session.resumable and wb.folder.exists():
        until(lambda: "Resume begins again" in wb.status.value)
        press(wb, "Resume")
        assert wb.wait() == "ended"
        list(vitseg.train(tiny_recipe, tmp_path / "plain", reuse=False))
        assert (wb.folder / "events.jsonl").read_bytes() == (
            tmp_path / "plain" / "events.jsonl"
        ).read_bytes()
        assert [e for e in wb.events if isinstance(e, StageStarted)]


def test_an_error_in_training_is_a_sentence_and_the_run_can_go_on(wb, monkeypatch):
    from vitseg.training.loop import StageTraining

    real = StageTraining.train_step

    def fails(self, portions):
        if self.steps_before + self.step == 7:
            raise OSError(28, "No space left on device")
        return real(self, portions)

    monkeypatch.setattr(StageTraining, "train_step", fails)
    wb.start()
    assert wb.wait() == "failed"
    until(lambda: "No space left on device" in wb.status.value)
    assert (
        "✗ Stopped by OSError" in wb.tabs.checks.value
        and wb.buttons["Pause"].description == "Resume"
    )
    monkeypatch.undo()
    monkeypatch.setenv("VITSEG_RUNS", str(wb.folder.parent))
    press(wb, "Resume")
    assert wb.wait() == "ended"


def test_an_error_in_a_chart_does_not_stop_the_training(wb, monkeypatch):
    monkeypatch.setattr(Points, "trace", lambda *_: 1 / 0)
    wb.start()
    assert wb.session.wait() == "ended"
    until(lambda: "The screen could not be drawn. ZeroDivisionError" in wb.status.value)


def test_a_freeze_breach_is_red_with_its_sentence(wb):
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.session.between(lambda: wb.session.job.model.encoder.blocks[-1].requires_grad_(True))
    assert wb.wait() == "failed"
    until(lambda: "✗ Stopped by FreezeBreach" in wb.tabs.checks.value)
    assert "block 4" in wb.tabs.checks.value and "block 4" in wb.status.value
    until(lambda: broken_cells(wb) == ["block 4"])
    control(wb, "Learning rate").value = 5e-4  # the map shows what Start would do
    assert broken_cells(wb) == []


# ---------------------------------------------------------------------- in between


def test_fork_starts_from_the_end_of_stage_1_and_lays_the_curves_over_each_other(wb):
    wb.start()
    wb.wait()
    parent = wb.folder
    control(wb, "Stage").value = 2
    press(wb, "Fork")
    control(wb, "Freeze depth").value = 3
    assert control(wb, "Start from").label == f"stage 1 of {parent.name}"
    press(wb, "Start")
    assert wb.wait() == "ended" and wb.folder != parent
    assert [e.unfrozen_blocks for e in wb.events if isinstance(e, StageStarted)] == [0, 3, 2]
    assert json.loads((wb.folder / "fork.json").read_text())["parent"] == str(parent)
    until(lambda: len(shown(wb)["valid IoU, parent"].x) > 0)


def test_a_fork_that_changes_what_was_inherited_is_refused_beside_start_from(wb):
    wb.start()
    wb.wait()
    control(wb, "Stage").value = 2
    press(wb, "Fork")
    control(wb, "Seed").value = 3
    says = wb.controls.says["Start from"].value
    assert "seed: 3, was 0" in says and wb.buttons["Start"].disabled


def test_fork_without_a_finished_stage_is_a_sentence(wb):
    with pytest.raises(RunError, match="no finished stage"):
        wb.fork()


def test_this_stage_alone_from_a_stage_end(wb):
    wb.start()
    wb.wait()
    control(wb, "Stage").value = 2
    press(wb, "Fork")
    control(wb, "Run").value = ONE
    press(wb, "Start")
    assert wb.wait() == "ended"
    assert len(vitseg.RunFolder(wb.folder).summary["stages"]) == 2


def test_a_run_of_the_past_is_shown_and_one_that_was_cut_off_goes_on(wb, tiny_recipe, tmp_path):
    stream = vitseg.train(tiny_recipe, tmp_path / "runs" / "cut")
    for event in stream:
        if isinstance(event, EpochEnded):
            break
    stream.close()
    other = Workbench(tmp_path / "runs" / "cut")
    assert other.state == "shown" and other.buttons["Pause"].description == "Resume"
    assert "cut off or stopped" in other.tabs.runs.value
    press(other, "Resume")
    assert other.wait() == "ended"
    list(vitseg.train(tiny_recipe, tmp_path / "plain", reuse=False))
    assert (tmp_path / "runs" / "cut" / "events.jsonl").read_bytes() == (
        tmp_path / "plain" / "events.jsonl"
    ).read_bytes()
    other.tabs.export_csv()
    assert (
        (tmp_path / "runs" / "cut" / "curves.csv")
        .read_text()
        .startswith("curve,epoch,step,value\nLR (planned),")
    )
    other.tabs.export_report()
    assert (tmp_path / "runs" / "cut" / "report.html").exists()


# ---------------------------------------------------------------------- other runs, other
# workbenches, odd folders


@pytest.fixture
def short(tiny_recipe):
    """The first stage alone."""
    return tiny_recipe.replace({"stages": [tiny_recipe.stages[0].model_dump(mode="json")]})


def show(wb, folder):
    wb.tabs.draw_runs()
    wb.tabs.which.value = folder
    wb.attempt(wb.tabs.show)


def test_show_draws_the_run_that_it_names_also_where_another_has_as_many_points(short):
    wb = Workbench(short)
    wb.start()
    wb.wait()
    first, losses = wb.folder, [e.loss for e in wb.events if isinstance(e, BatchEnded)]
    control(wb, "Seed").value = 7
    wb.start()
    wb.wait()
    assert not np.allclose(shown(wb)["train loss"].y, losses)
    show(wb, first)
    np.testing.assert_allclose(shown(wb)["train loss"].y, losses, rtol=1e-6)
    assert "<img" not in wb.tabs.picture.value
    best = vitseg.load(first)
    assert all(
        (p == q).all()
        for p, q in zip(wb.model.decoder.parameters(), best.decoder.parameters(), strict=True)
    )


def test_a_shown_run_is_in_the_table_and_the_freeze_map_with_its_own_depths(wb, tiny_recipe):
    control(wb, "Stage").value = 2
    control(wb, "Freeze depth").value = 4
    wb.start()
    wb.wait()
    other = Workbench(tiny_recipe)
    show(other, wb.folder)
    assert "all blocks" in other.stage_table.value or "last 4 blocks" in other.stage_table.value
    assert 'title="block 1: frozen, ' in other.freeze_map.value
    cells = other.freeze_map.value.split("<td ")
    assert not [c for c in cells if ": frozen, " in c and "●" in c.split("</td>")[0]]


def test_a_run_with_other_data_is_refused_with_the_way_to_open_it(wb, tiny_recipe, tmp_path):
    list(vitseg.train(tiny_recipe.replace({"data.views": 3}), tmp_path / "runs" / "other"))
    show(wb, tmp_path / "runs" / "other")
    assert "has other data" in wb.status.value and "vitseg.Workbench(" in wb.status.value


def test_the_first_cell_run_again_attaches_after_a_second_workbench_was_made(tiny_recipe):
    first = Workbench(tiny_recipe)
    first.start()
    second = Workbench(tiny_recipe.replace({"seed": 3}))
    again = Workbench(tiny_recipe)
    assert again.session is first.session and second.session is not first.session
    assert not second.buttons["Stop"].disabled
    second.buttons["Stop"].click()  # whose own Stop is gone can still be stopped
    assert first.wait() in {"stopped", "ended"}


def test_a_run_folder_shows_that_run_though_one_of_the_same_recipe_is_alive(tiny_recipe):
    wb = Workbench(tiny_recipe)
    wb.start()
    wb.wait()
    ended = wb.folder
    wb.start()
    until(lambda: len(wb.events) > 1)
    other = Workbench(ended)
    assert other.folder == ended and other.state == "shown"


def test_follow_gives_the_run_that_was_started_last(short):
    wb = Workbench(short)
    wb.start()
    wb.wait()
    control(wb, "Seed").value = 4
    wb.start()
    followed = list(wb.session.follow())
    assert [e.loss for e in followed if isinstance(e, BatchEnded)] == [
        e.loss for e in vitseg.replay(wb.folder) if isinstance(e, BatchEnded)
    ]


def test_a_device_that_is_not_here_is_said_before_start(wb):
    control(wb, "Device").value = "mps"
    assert "device: " in wb.controls.says["Device"].value and wb.buttons["Start"].disabled


def test_a_start_that_was_deleted_is_a_sentence(wb):
    wb.start()
    wb.wait()
    control(wb, "Stage").value = 2
    press(wb, "Fork")
    shutil.rmtree(wb.folder)
    control(wb, "Learning rate").value = 5e-4
    assert "is not a run folder" in wb.controls.says["Start from"].value


def test_odd_folders_among_the_runs_do_no_harm(tiny_recipe, tmp_path):
    list(vitseg.train(tiny_recipe, tmp_path / "runs" / "good"))
    for number, (file, text) in enumerate(
        (
            ("summary.json", "{"),
            ("summary.json", "[]"),
            ("events.jsonl", '{"a": 1}\n'),
            ("fork.json", "{}"),
            ("recipe.json", "x"),
        )
    ):
        bad = tmp_path / "runs" / f"bad{number}"
        shutil.copytree(tmp_path / "runs" / "good", bad)
        (bad / file).write_text(text)
        (bad / "stages" / "1-old").mkdir()
    wb = Workbench(tiny_recipe)
    assert wb.tabs.runs.value.count("bad") == 5
    for folder in sorted((tmp_path / "runs").glob("bad*")):
        show(wb, folder)
        assert "should not happen" not in wb.status.value


def test_a_picture_that_cannot_be_made_does_not_end_the_training(wb, monkeypatch):
    monkeypatch.setattr(vitseg.Segmenter, "predict", lambda *_: 1 / 0)
    wb.start()
    assert wb.wait() == "ended"
    assert "curves or predictions are not complete (ZeroDivisionError" in wb.status.value


def test_a_refused_value_goes_with_its_stage(wb):
    control(wb, "Learning rate").value = 0.0
    control(wb, "Stage").value = 2
    assert not wb.buttons["Start"].disabled and wb.controls.says["Learning rate"].value == ""
    control(wb, "Stage").value = 1
    assert control(wb, "Learning rate").value == 1e-3


def test_a_fork_before_any_run_changes_nothing(wb):
    with pytest.raises(RunError):
        wb.fork()
    assert "Ready" in wb.status.value


def test_an_edited_run_s_stage_ends_are_offered(wb):
    control(wb, "Learning rate").value = 2e-3
    wb.start()
    wb.wait()
    control(wb, "Stage").value = 2
    _, *ends = control(wb, "Start from").options
    assert ends == [f"stage {n} of {wb.folder.name}" for n in (3, 2, 1)]


def test_a_job_may_ask_for_a_job(wb):
    wb.start()
    until(lambda: len(wb.events) > 2)
    assert wb.session.between(lambda: wb.model) is not None


# ---------------------------------------------------------------------- what is shown, and what
# Start would train


def heading(wb):
    return re.sub("<[^>]+>", "", wb.heading.value).strip()


def test_the_heading_tells_a_run_from_what_start_would_train(wb):
    assert heading(wb) == "What Start would train."
    wb.start()
    until(lambda: len(wb.events) > 2)
    assert heading(wb).startswith(f"Run {wb.folder.name}, in training.") and str(
        wb.folder
    ) in heading(wb)
    wb.wait()
    name = wb.folder.name
    assert heading(wb).startswith(
        f"Run {name}. The controls hold its settings; Start would train them as a new run."
    )
    control(wb, "Learning rate").value = 5e-4
    assert heading(wb).startswith(
        f"What Start would train. For comparison, grey and dotted: run {name}."
    )
    control(wb, "Learning rate").value = 1e-3
    assert heading(wb).startswith(f"Run {name}."), "as it was"
    control(wb, "Learning rate").value = -1.0
    assert heading(wb).startswith("What Start would train.") and "Start is off" in wb.status.value


def test_choosing_a_stage_to_look_at_does_not_throw_the_shown_run_away(wb):
    wb.start()
    wb.wait()
    losses = np.array(shown(wb)["train loss"].y)
    control(wb, "Stage").value = 2
    np.testing.assert_array_equal(shown(wb)["train loss"].y, losses)
    assert heading(wb).startswith(f"Run {wb.folder.name}.") and "●" in wb.freeze_map.value
    assert "<td>▸ 2 Last" in wb.stage_table.value
    control(wb, "Freeze depth").value = 3
    assert len(shown(wb)["train loss"].y) == 0 and "●</td>" not in wb.freeze_map.value


def test_show_fills_the_controls_and_start_would_train_that(wb, tiny_recipe):
    edits = {"stages.1.unfrozen_blocks": 3, "stages.1.epochs": 1, "batch_size": 5, "seed": 4}
    other = vitseg.new_run("other")
    list(vitseg.train(tiny_recipe.replace(edits), other.path))
    control(wb, "Learning rate").value = 5e-4
    show(wb, other.path)
    assert (
        control(wb, "Batch size").value,
        control(wb, "Seed").value,
        control(wb, "Learning rate").value,
    ) == (5, 4, 1e-3)
    control(wb, "Stage").value = 2
    assert (control(wb, "Freeze depth").value, control(wb, "Epochs").value) == (3, 1)
    assert (
        wb.recipe == other.recipe
        and wb.stage_table.value.count("last 3 blocks") == 1
        and heading(wb).startswith("Run other-")
    )
    press(wb, "Start")
    assert wb.wait() == "ended" and wb.folder != other.path
    assert vitseg.RunFolder(wb.folder).recipe == other.recipe


def test_a_run_that_was_cut_off_is_named_where_resume_would_not_train_what_is_shown(wb):
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.stop()
    wb.wait()
    control(wb, "Seed").value = 9
    assert f"Resume would go on with {wb.folder.name}, unchanged." in heading(wb)
    press(wb, "Resume")
    assert wb.wait() == "ended"
    control(wb, "Stage").value = 2
    assert heading(wb).startswith("What Start would train.") and wb.recipe.seed == 9, (
        "which is not what was resumed"
    )


@pytest.mark.parametrize("changes", [{"device": "cuda"}, {"processes": 2, "device": "mps"}])
def test_a_run_of_another_machine_is_shown_and_start_would_train_what_the_controls_say(
    wb, tiny_recipe, changes
):
    run = vitseg.new_run("elsewhere")
    list(vitseg.train(tiny_recipe.replace({"seed": 5, "stages.0.lr": 2e-3}), run.path))
    changed = run.recipe.replace(changes)
    changed.save(run.path / "recipe.json")
    show(wb, run.path)
    assert (control(wb, "Seed").value, control(wb, "Learning rate").value) == (5, 2e-3)
    assert heading(wb).startswith("Run elsewhere-") and len(shown(wb)["train loss"].y) == 25
    assert "device: " in wb.status.value and wb.buttons["Start"].disabled
    control(wb, "Device").value = "cpu"
    assert (wb.recipe.seed, wb.recipe.stages[0].lr, wb.recipe.device) == (5, 2e-3, "cpu")
    assert not wb.buttons["Start"].disabled


def test_a_stage_that_the_run_does_not_have_can_be_looked_at_while_it_trains_and_after(wb):
    control(wb, "Run").value = ONE
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    control(wb, "Stage").value = 3
    assert "Stage 3 is not part of this run." in wb.notes.value
    assert wb.wait() == "ended"
    until(lambda: "could not be drawn" not in wb.status.value)


def test_a_shown_run_of_one_stage_leaves_the_later_stages_at_hand(wb, short):
    run = vitseg.new_run("one")
    list(vitseg.train(short.replace({"seed": 6}), run.path))
    show(wb, run.path)
    assert (
        heading(wb).startswith("Run one-")
        and control(wb, "Run").value == ONE
        and wb.controls.chosen() == run.recipe
    )
    assert [label for label, _ in control(wb, "Stage").options] == [
        "1 Frozen",
        "2 Last",
        "3 Deeper",
    ]
    control(wb, "Stage").value = 2
    press(wb, "Fork")
    assert control(wb, "Start from").label == f"stage 1 of {run.path.name}"


def test_a_run_outside_the_runs_root_is_in_the_list_and_is_exported(tiny_recipe, tmp_path):
    list(vitseg.train(tiny_recipe, vitseg.new_run("inside").path))
    list(vitseg.train(tiny_recipe, tmp_path / "elsewhere" / "mine"))
    wb = Workbench(tmp_path / "elsewhere" / "mine")
    assert wb.tabs.which.label == "mine" and "<td>mine</td>" in wb.tabs.runs.value
    wb.attempt(wb.tabs.export_csv)
    assert (tmp_path / "elsewhere" / "mine" / "curves.csv").exists()


def test_a_report_that_is_refused_leaves_no_sentence_that_it_is_being_written(wb):
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.stop()
    wb.wait()
    wb.tabs.draw_runs()
    wb.attempt(wb.tabs.export_report)
    assert "this run has not ended" in wb.status.value and wb.tabs.said.words == ""


def test_settings_that_timed_batches_depend_on_are_timed_again_after_show(wb, tiny_recipe):
    run = vitseg.new_run("recomputed")
    recipe = tiny_recipe.replace({"recompute": True, "batch_size": 10})
    list(vitseg.train(recipe, run.path))
    wb.session.forecast()
    show(wb, run.path)
    assert [f.memory for f in wb.session.forecast()] == [
        f.memory for f in Workbench(recipe).session.forecast()
    ]


def test_furniture_of_the_chart_follows_the_number_of_stages_down_and_up(wb):
    def furniture():
        numbers = [a.text for a in wb.figure.layout.annotations]
        assert len(wb.figure.layout.shapes) == len(numbers)
        return numbers

    assert furniture() == ["<b>1</b>"] * 3 + ["<b>2</b>"] * 3 + ["<b>3</b>"] * 3
    control(wb, "Run").value = ONE
    assert furniture() == ["<b>1</b>"] * 3
    wb.start()
    wb.wait()
    until(lambda: not any(t.name == "vitseg painter" for t in threading.enumerate()))
    assert furniture() == ["<b>1</b>"] * 3
    control(wb, "Run").value = ALL
    assert len(furniture()) == 9
    control(wb, "Stage").value = 2
    control(wb, "Run").value = ONE  # from the end of stage 1
    assert furniture() == ["<b>1</b>"] * 3 + ["<b>2</b>"] * 3


def test_the_forecast_follows_the_batch_size_as_a_new_workbench_says_it(wb, tiny_recipe):
    def memory(desk):
        return [f.memory for f in desk.session.forecast()]

    small = memory(wb)
    control(wb, "Batch size").value = 10
    large = memory(wb)
    assert all(b > a for a, b in zip(small, large, strict=True))
    anew = Workbench(tiny_recipe.replace({"batch_size": 10}))  # which measures four images, not two
    assert large == pytest.approx(memory(anew), rel=0.02)
    control(wb, "Batch size").value = 1000
    assert memory(wb) == large, "there are ten images"
    assert "<p class=bad>A batch of 1,000 is larger than the 10 training images" in wb.notes.value
    control(wb, "Batch size").value = 10
    assert "larger than" not in wb.notes.value


def test_more_memory_than_is_free_is_said_before_start(wb, capsys, monkeypatch):
    wb.session.forecast()
    wb.draw()
    assert "is free on" not in wb.notes.value
    monkeypatch.setattr(Machine, "free_memory", lambda machine: 1_000_000)
    wb.draw()
    assert re.search(
        r"<p class=bad>Stage 3 will need about [\d.]+ MB of memory, but only 1.0 MB is free on cpu",
        wb.notes.value,
    )
    wb.finish()
    text = capsys.readouterr().out
    assert text.index("is free on cpu. Lower the batch size") < text.index("Stage 1:")


def test_a_device_that_no_batch_was_timed_on_has_no_forecast(wb, monkeypatch):
    wb.session.forecast()
    resolved = jobs.resolve
    monkeypatch.setattr(jobs, "resolve", lambda r: resolved(r)._replace(device="meta"))
    assert wb.session.forecast() == []
    wb.draw()
    assert "<th>trains</th>" in wb.stage_table.value
    assert "<th>memory</th>" not in wb.stage_table.value


def test_the_run_in_training_is_among_the_runs_from_its_first_event_on(wb, monkeypatch):
    ready, real = threading.Event(), session.Job

    def slowly(recipe):
        ready.wait(20)
        return real(recipe)

    monkeypatch.setattr(session, "Job", slowly)
    wb.start()
    until(lambda: "Reading data and weights" in wb.status.value)  # drawn before there is a folder
    assert "No run has been recorded yet" in wb.tabs.runs.value
    ready.set()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.pause()
    until(
        lambda: (
            (wb.state == "paused" and "paused here" in wb.tabs.runs.value)
            or "running here" in wb.tabs.runs.value
        )
    )
    assert wb.folder.name in wb.tabs.runs.value and str(wb.folder.parent) in wb.tabs.runs.value
    assert wb.tabs.which.value == wb.folder


def test_export_writes_the_chosen_run_and_not_the_one_on_the_screen(wb, short):
    first = vitseg.new_run("first")
    list(vitseg.train(short.replace({"seed": 8}), first.path))
    wb.start()
    wb.wait()
    wb.tabs.draw_runs()
    assert wb.tabs.which.value == wb.folder, "it follows the screen"
    wb.tabs.which.value = first.path
    wb.tabs.draw_runs()
    assert wb.tabs.which.value == first.path, "until somebody chooses"
    wb.attempt(wb.tabs.export_csv)
    wb.attempt(wb.tabs.export_report)
    assert (wb.tabs.said.words, wb.tabs.said.path) == (
        "Report written:",
        str(first.path / "report.html"),
    )
    assert not (wb.folder / "curves.csv").exists() and not (wb.folder / "report.html").exists()
    rows = list(csv.DictReader((first.path / "curves.csv").read_text().splitlines()))
    losses = [float(row["value"]) for row in rows if row["curve"] == "train loss"]
    assert losses == [e.loss for e in first.events() if isinstance(e, BatchEnded)]


def test_a_run_that_trains_is_not_exported(wb):
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.tabs.draw_runs()
    wb.attempt(wb.tabs.export_csv)
    assert "is being trained. Wait for its end, or choose another run." in wb.status.value


# ---------------------------------------------------------------------- what a review found


def test_fifty_starts_at_once_begin_one_run_and_show_that_one(wb):
    barrier = threading.Barrier(50)

    def start():
        barrier.wait()
        wb.start()

    threads = [threading.Thread(target=start) for _ in range(50)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wb.wait() == "ended" and [p.name for p in wb.folder.parent.glob("[!.]*")] == [
        wb.folder.name
    ]


def test_curves_that_cannot_be_gathered_do_not_end_the_training(wb, monkeypatch):
    monkeypatch.setattr(wb.session.curves.__class__, "add", lambda *_: 1 / 0)
    wb.start()
    assert wb.wait() == "ended"
    assert "curves or predictions are not complete (ZeroDivisionError" in wb.status.value


def test_stop_while_an_epoch_is_scored_and_go_on_to_the_same_bits(wb, tiny_recipe, tmp_path):
    wb.start()
    until(
        lambda: (
            type(wb.session.position).__name__ == "ValidationBatch"
            and wb.session.position.epoch > 1
        )
    )
    wb.stop()
    assert wb.wait() == "stopped" and wb.session.resumable
    until(lambda: "Resume goes on after step" in wb.status.value)
    press(wb, "Resume")
    assert wb.wait() == "ended"
    list(vitseg.train(tiny_recipe, tmp_path / "plain", reuse=False))
    assert (wb.folder / "events.jsonl").read_bytes() == (
        tmp_path / "plain" / "events.jsonl"
    ).read_bytes()


def test_a_stop_before_the_first_epoch_s_end_loses_no_step(wb, tiny_recipe, tmp_path):
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.pause()
    until(lambda: wb.state == "paused")
    assert not any(isinstance(e, EpochEnded) for e in wb.events)
    steps = sum(isinstance(e, BatchEnded) for e in wb.events)
    wb.stop()
    wb.wait()
    until(lambda: f"Resume goes on after step {steps}." in wb.status.value)
    press(wb, "Resume")
    assert wb.wait() == "ended"
    list(vitseg.train(tiny_recipe, tmp_path / "plain", reuse=False))
    assert (wb.folder / "events.jsonl").read_bytes() == (
        tmp_path / "plain" / "events.jsonl"
    ).read_bytes()


def test_a_stop_that_cannot_save_says_so(wb, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    monkeypatch.setattr(checkpoint, "save_file", no_room)
    wb.stop()
    assert wb.wait() == "failed" and "No space left on device" in wb.status.value


def test_a_run_that_nothing_was_saved_of_begins_again(wb):
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.stop()
    wb.wait()
    shutil.rmtree(wb.folder / "checkpoints")
    wb.draw()
    assert "Resume begins again: nothing had been saved" in wb.status.value


def test_what_a_detector_caught_is_still_known_to_the_next_workbench(wb):
    wb.start()
    until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
    wb.session.between(lambda: wb.session.job.model.encoder.blocks[-1].requires_grad_(True))
    assert wb.wait() == "failed"
    other = Workbench(wb.folder)
    assert (
        "✗ Stopped by FreezeBreach" in other.tabs.checks.value and "block 4" in other.status.value
    )
    assert "failed (FreezeBreach)" in other.tabs.runs.value and broken_cells(other) == ["block 4"]


def test_a_moved_control_is_said_only_when_one_was_moved(wb):
    control(wb, "Learning rate").value = 5e-4
    control(wb, "Run").value = ONE
    wb.start()
    until(lambda: len(wb.events) > 2)
    wb.pause()
    until(lambda: wb.state == "paused")
    wb.draw()
    assert "A control was moved" not in wb.status.value
    control(wb, "Run").value = ALL
    assert "A control was moved" in wb.status.value


def test_a_run_that_another_process_trains_cannot_be_resumed_here(tiny_recipe, tmp_path):
    stream = vitseg.train(tiny_recipe, tmp_path / "runs" / "busy")
    next(e for e in stream if isinstance(e, EpochEnded))
    wb = Workbench(tmp_path / "runs" / "busy")
    assert (
        "training elsewhere" in wb.tabs.runs.value
        and "is being trained elsewhere" in wb.status.value
    )
    assert wb.buttons["Pause"].disabled
    stream.close()


def test_no_button_ends_in_a_traceback_though_a_summary_is_broken(wb):
    wb.start()
    wb.wait()
    (wb.folder / "summary.json").write_text("{")
    wb.buttons["Fork"].click()
    wb.attempt(wb.tabs.export_report)
    assert "not a file that vitseg wrote" in wb.status.value


def test_this_stage_takes_the_newest_end_of_the_stage_before(wb):
    wb.start()
    wb.wait()
    control(wb, "Stage").value = 2
    control(wb, "Run").value = ONE
    assert (
        control(wb, "Start from").label == f"stage 1 of {wb.folder.name}"
        and not wb.buttons["Start"].disabled
    )


def test_watch_passes_every_event_on_and_draws_now_and_then(tiny_recipe, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("IPython.display.display", drawn.append)
    monkeypatch.setattr("IPython.display.clear_output", lambda wait: None)
    seen = [
        e
        for e in vitseg.watch(vitseg.train(tiny_recipe, tmp_path / "run"), every=5)
        if not e.transient
    ]
    assert seen == list(vitseg.replay(tmp_path / "run"))
    assert len(drawn) == sum(not isinstance(e, BatchEnded) or e.step % 5 == 0 for e in seen)
    losses = next(t for t in drawn[-1].data if t.name == "train loss")
    np.testing.assert_allclose(
        losses.y, [e.loss for e in seen if isinstance(e, BatchEnded)], rtol=1e-6
    )


def test_a_run_that_was_trained_before_is_taken_and_retrained_only_if_told_to(wb, tiny_recipe):
    wb.start()
    assert wb.wait() == "ended"
    first, status = wb.events, wb.status
    wb.start()
    assert wb.wait() == "ended"
    words = "Everything up to the end of stage 3 comes from run"
    assert (
        words in status.value
        and "Tick Retrain to do so." in status.value
        and words in wb.tabs.checks.value
    )
    assert wb.events[1:] == first[1:] and wb.events[0].parent["stage"] == 3
    assert list(wb.session.predictions) == [
        5
    ]  # of the best weights, since no epoch was trained here
    control(wb, "Retrain").value = True
    wb.start()
    assert wb.wait() == "ended"
    assert wb.events == first and words not in status.value and len(wb.session.predictions) == 6
    again = Workbench(tiny_recipe, reuse=False)
    assert control(again, "Retrain").value
