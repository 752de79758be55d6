"""One run in two or three processes: the curve of one, the same folder, and nobody is left waiting
when one of them ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import soak
from background import until

import vitseg
from vitseg.errors import ConfigError, LRBreach, RunError, TrainingError
from vitseg.events import BatchEnded, EpochEnded, FeaturesUsed, RunEnded, RunStarted
from vitseg.runs.folder import RunFolder
from vitseg.training import parallel

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="processes are found in /proc, or with ps"
)


LAUNCHED = {
    "RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


@pytest.fixture
def recipe(tiny_recipe):
    """Steps of three images: two for one process, one for the other. The last of an epoch has one
    alone.
    """
    return tiny_recipe.replace({"model.dropout": 0.3, "batch_size": 3})


@pytest.fixture
def shared(recipe):
    return recipe.replace({"processes": 2})


def helpers() -> list[int]:
    """The processes that follow one of ours."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [
        int(pid)
        for pid, parent, args in rows
        if "vitseg.runs.follow" in args and int(parent) == os.getpid()
    ]


@pytest.fixture
def helpers_run(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Has the helpers that are started from now on run some code before their own."""

    def _helpers_run(code: str) -> None:
        start = "import runpy, sys; module = sys.argv[2]; del sys.argv[1:3]"
        run = 'runpy.run_module(module, run_name="__main__", alter_sys=True)'
        (tmp_path / "helper.py").write_text("\n".join([start, textwrap.dedent(code), run]))
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "helper.py"} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return _helpers_run


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_have_the_loss_curve_of_one(recipe, tmp_path, capsys, size):
    shared = recipe.replace({"processes": size})
    alone = [e for e in vitseg.train(recipe, tmp_path / "alone", reuse=False) if not e.transient]
    shown = vitseg.progress(vitseg.train(shared, tmp_path / "shared"))
    together = [e for e in shown if not e.transient]
    assert [type(e) for e in alone] == [type(e) for e in together]
    pairs = [pair for pair in zip(alone, together, strict=True) if isinstance(pair[0], BatchEnded)]
    assert len(pairs) == 20 and [one.lr for one, _ in pairs] == [two.lr for _, two in pairs]
    assert max(abs(one.loss - two.loss) for one, two in pairs) <= 1e-5
    for one, two in zip(alone, together, strict=True):
        if isinstance(one, EpochEnded):
            assert two.validation | {"loss": 0.0} == one.validation | {
                "loss": 0.0
            }  # pixels are counted: no rounding
            assert abs(two.validation["loss"] - one.validation["loss"]) <= 1e-5
    assert not helpers()
    environment = RunFolder(tmp_path / "shared").environment()
    threads = environment["threads"]
    assert environment["processes"] == size
    (started,) = (e for e in together if isinstance(e, RunStarted))
    assert (started.threads, started.processes) == (threads, size)
    assert f"processes: {size}." in capsys.readouterr().out
    assert list(vitseg.replay(tmp_path / "shared")) == together


def test_they_go_on_to_the_same_bits_after_a_stop_and_after_the_death_of_one(shared, tmp_path):
    list(vitseg.train(shared, tmp_path / "whole", reuse=False))
    with closing(vitseg.train(shared, tmp_path / "cut", reuse=False)) as events:
        next(e for e in events if isinstance(e, BatchEnded) and e.step == 6)
    assert not helpers()
    events = vitseg.resume(tmp_path / "cut")
    next(e for e in events if isinstance(e, BatchEnded) and e.step == 13)
    (helper,) = helpers()
    os.kill(helper, signal.SIGKILL)
    with pytest.raises(
        TrainingError, match=r"One of the 2 processes that train this run has ended .*vitseg resume"
    ):
        list(events)
    assert RunFolder(tmp_path / "cut").failure().kind == "TrainingError"
    assert isinstance(list(vitseg.resume(tmp_path / "cut"))[-1], RunEnded)
    assert soak.content(tmp_path / "cut") == soak.content(tmp_path / "whole")


@pytest.mark.parametrize("size", [2, 3])
def test_when_one_is_killed_the_others_end(recipe, tmp_path, size):
    events = vitseg.train(recipe.replace({"processes": size}), tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, BatchEnded) and e.step == 3)
    started = helpers()
    assert len(started) == size - 1
    os.kill(started[-1], signal.SIGKILL)
    before = time.monotonic()
    with pytest.raises(TrainingError, match=f"One of the {size} processes that train this run"):
        list(events)
    assert time.monotonic() - before < 30 and not any(alive(pid) for pid in started)


def test_an_error_in_one_reaches_process_0_and_ends_all(recipe, tmp_path, helpers_run):
    helpers_run("""
        from vitseg.errors import LRBreach
        from vitseg.training.loop import StageTraining

        real = StageTraining.backward

        def backward(self, portions):
            if self.group.rank == 1 and self.step == 2:
                raise LRBreach("The LR of step 3 is odd.", "Look at it.")
            return real(self, portions)

        StageTraining.backward = backward
    """)
    events = vitseg.train(recipe.replace({"processes": 3}), tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, BatchEnded) and e.step == 2)
    started, before = helpers(), time.monotonic()
    with pytest.raises(LRBreach) as caught:
        list(events)
    assert str(caught.value) == "Process 1 of 3: The LR of step 3 is odd. Look at it."
    assert time.monotonic() - before < 30 and not any(alive(pid) for pid in started)
    assert RunFolder(tmp_path / "run").failure().kind == "LRBreach"


@pytest.mark.slow
def test_a_pause_ends_nothing(shared, tmp_path, monkeypatch):
    """Forty seconds of it; the one clock that runs meanwhile is that of the next test."""
    waits = []
    real = parallel.dist.init_process_group

    def init_process_group(*given: Any, timeout: timedelta, **named: Any) -> None:
        waits.append(timeout)
        real(*given, timeout=timeout, **named)

    monkeypatch.setattr(parallel.dist, "init_process_group", init_process_group)
    events = vitseg.train(shared, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, BatchEnded) and e.step == 3)
    assert waits == [parallel.COLLECTIVE_TIMEOUT] and waits[0] > timedelta(minutes=15)
    time.sleep(40)
    assert isinstance(list(events)[-1], RunEnded)


def test_a_pause_longer_than_the_group_s_timeout_would_be_noticed(shared, tmp_path, helpers_run):
    helpers_run("""
        from datetime import timedelta
        from vitseg.training import parallel

        parallel.COLLECTIVE_TIMEOUT = timedelta(seconds=2)
    """)
    events = vitseg.train(shared, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, BatchEnded) and e.step == 3)
    time.sleep(4)
    with pytest.raises(TrainingError, match="One of the 2 processes that train this run has ended"):
        list(events)


@pytest.mark.parametrize("size", [2, 3])
def test_the_helpers_end_with_a_kernel_that_is_killed(recipe, tmp_path, size):
    shared = recipe.replace({"processes": size})
    shared.save(tmp_path / "recipe.json")
    command = [
        sys.executable,
        "-m",
        "vitseg",
        "run",
        str(tmp_path / "recipe.json"),
        str(tmp_path / "run"),
        "--retrain",
    ]
    begun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "run" / "events.jsonl"
    try:
        until(lambda: log.exists() and "BatchEnded" in log.read_text(), 60)
        children = [
            int(pid)
            for pid in Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
        ]
    finally:
        begun.kill()
        begun.wait()
    assert len(children) == size - 1
    until(lambda: not any(alive(pid) for pid in children), 20)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_helper_that_cannot_begin_is_said(shared, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(
        TrainingError,
        match="A process that was to share the training ended as it began: no such thing",
    ):
        list(vitseg.train(shared, tmp_path / "run", reuse=False))


def test_other_processes_are_another_training(recipe, shared, tmp_path, monkeypatch):
    list(
        vitseg.train(recipe.replace({"stages": recipe.stages[:1]}), tmp_path / "alone", reuse=False)
    )
    with pytest.raises(RunError, match="processes: 2, was 1"):
        list(vitseg.fork(tmp_path / "alone", 1, shared, tmp_path / "child"))
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        vitseg.VitsegError, match="processes: got 2; allowed: 4, as torchrun has begun so many"
    ):
        list(vitseg.train(shared, tmp_path / "launched", reuse=False))
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(
        ConfigError, match=r"WORLD_SIZE, .*: got .*'many', .*; allowed: numbers in the environment"
    ):
        list(vitseg.train(shared, tmp_path / "launched", reuse=False))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(TrainingError, match="Process 1 of torchrun does not train by itself"):
        list(vitseg.train(shared, tmp_path / "launched", reuse=False))
    assert not (tmp_path / "launched").exists()


def test_one_group_at_a_time_in_a_process(shared, tmp_path):
    events = vitseg.train(shared, tmp_path / "first", reuse=False)
    next(events)
    with pytest.raises(TrainingError, match=r"under way in this kernel\. Stop it first"):
        next(vitseg.train(shared, tmp_path / "second", reuse=False))
    assert not (tmp_path / "second").exists()
    events.close()
    assert isinstance(list(vitseg.train(shared, tmp_path / "second", reuse=False))[-1], RunEnded)


@pytest.mark.slow
def test_an_interrupt_is_heard_while_a_helper_hangs(shared, tmp_path):
    events = vitseg.train(shared, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, BatchEnded) and e.step == 3)
    (helper,) = helpers()
    os.kill(helper, signal.SIGSTOP)
    for second in (1.0, 2.0):  # the first asks for an end of the step
        threading.Timer(second, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        list(events)
    assert not helpers()
    assert isinstance(list(vitseg.resume(tmp_path / "run"))[-1], RunEnded)


def test_a_view_that_one_process_has_kept_is_read_by_the_other(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    clean = shared.replace({"data.views": 1, "stages": shared.stages[:1], "stages.0.epochs": 3})
    used = [
        e for e in vitseg.train(clean, tmp_path / "run", reuse=False) if isinstance(e, FeaturesUsed)
    ]
    assert [(e.read, e.computed) for e in used] == [(0, 10), (10, 0), (10, 0)]


@pytest.mark.slow
def test_torchrun_begins_the_same_run(shared, tmp_path):
    list(vitseg.train(shared, tmp_path / "here", reuse=False))
    shared.save(tmp_path / "recipe.json")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "vitseg",
    ]
    order = ["run", str(tmp_path / "recipe.json"), str(tmp_path / "launched"), "--retrain"]
    done = subprocess.run(
        [*launch, *order], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert soak.content(tmp_path / "launched") == soak.content(tmp_path / "here")


@pytest.mark.slow
def test_a_workbench_whose_kernel_is_one_of_two_pauses_stops_and_goes_on(
    shared, tmp_path, monkeypatch
):
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path))
    shared = shared.replace({"workers": 1})
    wb = vitseg.Workbench(shared)
    assert "cpu, 2 processes" in wb.box.children[0].value
    wb.start()
    until(lambda: wb.events and isinstance(wb.events[-1], BatchEnded), 60)
    wb.pause()
    until(lambda: wb.session.state == "paused")
    assert len(helpers()) == 1  # it waits, and costs nothing
    wb.resume()
    steps = len(wb.events)
    until(lambda: len(wb.events) > steps + 2)
    wb.stop()
    assert wb.wait() == "stopped" and not helpers()
    wb.start()
    assert wb.wait(120) == "ended" and not helpers()
    list(vitseg.train(shared, tmp_path / "whole", reuse=False))
    assert soak.content(wb.session.run.path) == soak.content(tmp_path / "whole")
