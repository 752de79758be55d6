"""A training that is killed goes on to the same bits, wherever the kill falls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import soak
from safetensors.torch import load, save_file

from vitseg.errors import RunError
from vitseg.events import BatchEnded, EpochEnded, RunResumed
from vitseg.recipe import Recipe
from vitseg.runs import checkpoint
from vitseg.runs import run as runs
from vitseg.runs.durable import MANIFEST, whole_folder
from vitseg.runs.run import resume, train
from vitseg.runs.signals import held_back


def test_twenty_kills_change_no_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    result = soak.soak(20, 1, tmp_path)
    assert (
        result["kills"] >= 20
        and sum(n for place, n in result["fell"].items() if place != "time") >= 5
    )
    assert result["different"] == []


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [name for name in soak.SABOTAGE if name])
def test_the_kills_would_tell_if_a_mechanism_were_off(sabotage, tmp_path, monkeypatch):
    """The negative controls."""
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    assert soak.soak(6, 1, tmp_path, sabotage)["different"]


def test_the_comparison_would_see_an_optimizer_that_lost_its_memory(tiny_recipe, tmp_path):
    """The negative control: the same weights and position, but moments that are a little off."""
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    stop_after(8, tiny_recipe, tmp_path / "cut")
    newest = max((tmp_path / "cut" / "checkpoints").iterdir())
    files = {p.name: p.read_bytes() for p in newest.iterdir() if p.name != MANIFEST}
    with whole_folder(newest) as aside:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        moments = {k: v * 1.001 for k, v in load(files["optimizer.safetensors"]).items()}
        save_file(moments, aside / "optimizer.safetensors")
    list(resume(tmp_path / "cut"))
    wanted, found = (soak.content(tmp_path / name) for name in ("whole", "cut"))
    assert wanted.keys() == found.keys() and wanted["events.jsonl"] != found["events.jsonl"]


def stop_after(step: int, recipe: Recipe, folder: Path) -> None:
    """Train, and ask for no more events after that optimizer step."""
    with closing(train(recipe, folder, reuse=False)) as events:
        next(e for e in events if isinstance(e, BatchEnded) and e.step == step)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 5])
def test_whoever_stops_asking_loses_no_step(steps, tiny_recipe, tmp_path):
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    stop_after(steps, tiny_recipe, tmp_path / "cut")
    rest = list(resume(tmp_path / "cut"))
    assert rest[0] == RunResumed(steps, [])
    assert sum(isinstance(e, BatchEnded) for e in rest) == 25 - steps
    assert (tmp_path / "cut" / "events.jsonl").read_bytes() == (
        tmp_path / "whole" / "events.jsonl"
    ).read_bytes()


def test_a_checkpoint_is_written_within_an_epoch_when_a_minute_has_passed(
    tiny_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    for event in events:
        if isinstance(event, BatchEnded) and event.step == 3:
            kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
            break
    events.close()
    assert (
        kept
        == [
            f"{line['seq']:08d}" for line in log(tmp_path / "run") if line["event"] == "BatchEnded"
        ][1:3]
    )


@pytest.mark.parametrize("harm", ["flip a bit", "remove the optimizer", "tear the manifest"])
def test_a_damaged_checkpoint_is_skipped_and_named(harm, tiny_recipe, tmp_path):
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    stop_after(8, tiny_recipe, tmp_path / "run")
    _, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    if harm == "flip a bit":
        content = bytearray((newest / "weights.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "weights.safetensors").write_bytes(content)
        why = "weights.safetensors is not what was written"
    elif harm == "remove the optimizer":
        (newest / "optimizer.safetensors").unlink()
        why = "optimizer.safetensors cannot be read (No such file or directory)"
    else:
        (newest / "manifest.json").write_text("{")
        why = "manifest.json is torn"
    rest = list(resume(tmp_path / "run"))
    assert rest[0] == RunResumed(5, [f"checkpoint {newest.name} was skipped: {why}"])
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == (
        tmp_path / "whole" / "events.jsonl"
    ).read_bytes()


def test_what_a_kill_left_half_written_is_swept_away(tiny_recipe, tmp_path):
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, EpochEnded))
    events.close()
    (tmp_path / "run" / "checkpoints" / ".00000099.new").mkdir()
    (tmp_path / "run" / ".summary.json.new").write_text("{")
    list(resume(tmp_path / "run"))
    assert list((tmp_path / "run").rglob(".*.new")) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)]
)
def test_a_signal_ends_the_command_after_the_step_under_way_and_nothing_is_lost(
    number, code, tiny_recipe, tmp_path
):
    long = tiny_recipe.replace({"stages.0.epochs": 60})
    long.save(tmp_path / "recipe.json")
    command = [
        sys.executable,
        "-m",
        "vitseg",
        "run",
        tmp_path / "recipe.json",
        tmp_path / "run",
        "--retrain",
    ]
    hears = lambda: signal.signal(number, signal.SIG_DFL)  # noqa: E731  whoever runs the tests may have it ignored
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hears
    )
    end = time.monotonic() + 60
    while (
        not (tmp_path / "run" / "events.jsonl").exists() or len(log_so_far(tmp_path / "run")) < 12
    ):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == code
    assert (b"Go on with: vitseg resume" in said) is (number == signal.SIGINT)
    events = resume(tmp_path / "run")
    steps = [line["step"] for line in log(tmp_path / "run") if line["event"] == "BatchEnded"]
    assert next(events).step == steps[-1]
    events.close()


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_back() as asked:
            signal.raise_signal(signal.SIGHUP)
        assert asked == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_takes_effect_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), held_back() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked == [signal.SIGINT]
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it was held back")
    finally:
        signal.signal(signal.SIGINT, before)


def log_so_far(folder: Path) -> list[str]:
    return (folder / "events.jsonl").read_text().splitlines()


def test_a_second_trainer_of_a_folder_is_refused_by_name(tiny_recipe, tmp_path):
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, EpochEnded))
    with pytest.raises(RunError, match=f"is being trained by process {os.getpid()} on "):
        next(resume(tmp_path / "run"))
    events.close()


def test_a_dead_trainer_s_lock_is_none(tiny_recipe, tmp_path):
    tiny_recipe.save(tmp_path / "recipe.json")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vitseg",
            "run",
            tmp_path / "recipe.json",
            tmp_path / "run",
            "--retrain",
        ]
    )
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "events.jsonl").exists() or len(log_so_far(tmp_path / "run")) < 4:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert runs.RunFolder(tmp_path / "run").is_held()
    process.kill()
    process.wait()
    assert not runs.RunFolder(tmp_path / "run").is_held()
    list(resume(tmp_path / "run"))
    assert (tmp_path / "run" / "summary.json").exists() and not (
        tmp_path / "run" / ".holder"
    ).exists()


def test_damaged_checkpoints_do_not_crowd_out_new_ones(tiny_recipe, tmp_path):
    stop_after(8, tiny_recipe, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "weights.safetensors").unlink()
    events = resume(tmp_path / "run")
    assert next(events).step == 0
    next(e for e in events if isinstance(e, EpochEnded))
    events.close()
    assert next(resume(tmp_path / "run")).step == 5


def test_a_checkpoint_that_knows_more_than_the_log_is_skipped(tiny_recipe, tmp_path):
    """A power cut may keep the one and lose the end of the other."""
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    stop_after(8, tiny_recipe, tmp_path / "run")
    log_file = tmp_path / "run" / "events.jsonl"
    log_file.write_bytes(log_file.read_bytes()[:-40])
    rest = list(resume(tmp_path / "run"))
    assert rest[0].step == 5 and "events.jsonl is shorter than it says" in rest[0].skipped[0]
    assert log_file.read_bytes() == (tmp_path / "whole" / "events.jsonl").read_bytes()


def test_a_save_that_fails_on_stop_is_said(tiny_recipe, tmp_path, monkeypatch):
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, BatchEnded))
    monkeypatch.setattr(checkpoint, "save_file", no_room)
    with pytest.raises(RunError, match="No space left on device"):
        events.close()


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")
