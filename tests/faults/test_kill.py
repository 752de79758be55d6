"""A training that is killed goes on to the same bits, wherever the kill falls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import soak
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vitseg.errors import RunError
from vitseg.events import BatchEnded, EpochEnded, RunResumed
from vitseg.files import UNSEALED, seal
from vitseg.recipe import Recipe
from vitseg.runs import checkpoint
from vitseg.runs import run as runs
from vitseg.runs.run import resume, train


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
    tensors = load_file(newest)
    moments = {k: v * 1.001 for k, v in tensors.items() if k.startswith("optimizer/")}
    save_file(tensors | moments, newest, {"vitseg": UNSEALED + state_of(newest)})
    seal(newest)
    list(resume(tmp_path / "cut"))
    wanted, found = (soak.content(tmp_path / name) for name in ("whole", "cut"))
    assert wanted.keys() == found.keys() and wanted["events.jsonl"] != found["events.jsonl"]


def state_of(checkpoint: Path) -> str:
    with safe_open(checkpoint, "pt") as file:
        return file.metadata()["vitseg"][len(UNSEALED) :]


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
            kept = sorted(p.stem for p in (tmp_path / "run" / "checkpoints").iterdir())
            break
    events.close()
    assert (
        kept
        == [
            f"{line['seq']:08d}" for line in log(tmp_path / "run") if line["event"] == "BatchEnded"
        ][1:3]
    )


@pytest.mark.parametrize("harm", ["flip a bit", "cut it short", "spoil the digest", "empty it"])
def test_a_damaged_checkpoint_is_skipped_and_named(harm, tiny_recipe, tmp_path):
    list(train(tiny_recipe, tmp_path / "whole", reuse=False))
    stop_after(8, tiny_recipe, tmp_path / "run")
    _, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    if harm == "flip a bit":
        content[-1] ^= 1
    elif harm == "cut it short":
        del content[len(content) // 2 :]
    elif harm == "spoil the digest":
        content[content.index(b"sha256:") + 7] ^= 1
    else:
        content.clear()
    newest.write_bytes(content)
    rest = list(resume(tmp_path / "run"))
    why = "it is not what was written"
    assert rest[0] == RunResumed(5, [f"checkpoint {newest.stem} was skipped: {why}"])
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == (
        tmp_path / "whole" / "events.jsonl"
    ).read_bytes()


def test_what_a_kill_left_half_written_is_swept_away(tiny_recipe, tmp_path):
    events = train(tiny_recipe, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, EpochEnded))
    events.close()
    (tmp_path / "run" / "checkpoints" / ".00000099.safetensors.new").write_bytes(b"half")
    (tmp_path / "run" / "stages" / ".1.new").mkdir(parents=True)
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
    assert (tmp_path / "run" / "summary.json").exists()


def test_damaged_checkpoints_do_not_crowd_out_new_ones(tiny_recipe, tmp_path):
    stop_after(8, tiny_recipe, tmp_path / "run")
    for checkpoint_file in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint_file.write_bytes(b"")
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


def test_a_run_that_ended_keeps_no_checkpoint_also_if_it_was_killed_before_it_dropped_them(
    tiny_recipe, tmp_path, monkeypatch
):
    """Killed before that, while its end is being written, it goes on from the last of them."""
    dropped = []

    def photograph(run):
        shutil.copytree(run.path, tmp_path / "killed")
        dropped.append(run.path)

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "drop_checkpoints", photograph)
        list(train(tiny_recipe, tmp_path / "run", reuse=False))
    assert dropped == [tmp_path / "run"]
    killed = tmp_path / "killed"
    (shutil.copytree(killed, tmp_path / "sooner") / "summary.json").unlink()
    assert len(list((killed / "checkpoints").iterdir())) == 2
    with pytest.raises(RunError, match="has ended"):
        next(resume(killed))
    assert not (killed / "checkpoints").exists()
    events = list(resume(tmp_path / "sooner"))
    assert events[0].step == 25
    assert not (tmp_path / "sooner" / "checkpoints").exists()
    for name in ("killed", "sooner"):
        assert soak.content(tmp_path / name) == soak.content(killed)
