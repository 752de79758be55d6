"""A real kernel: an interrupt is for the cell, a restart ends the training cleanly, and the run
goes on afterwards.
"""

from __future__ import annotations

import time

import pytest

import vitseg
from vitseg.runs.run import resume, train

LONG = {"stages.0.epochs": 400}


@pytest.fixture
def training(kernel, say, tiny_recipe, tmp_path):
    """A run of 2,000 steps that has taken some."""
    tiny_recipe.replace(LONG).save(tmp_path / "recipe.json")
    _, client = kernel
    say(
        client,
        (
            f"import vitseg, time\nwb = "
            f"vitseg.Workbench(vitseg.load_recipe({str(tmp_path / 'recipe.json')!r}))\nwb.start()"
        ),
    )
    say(client, "while len(wb.events) < 15: time.sleep(0.02)")
    return kernel


def test_an_interrupt_ends_the_cell_and_not_the_training_and_says_so(training, say):
    manager, client = training
    client.execute("time.sleep(60)")
    time.sleep(0.5)
    manager.interrupt_kernel()
    assert client.get_shell_msg(timeout=10)["content"]["ename"] == "KeyboardInterrupt"
    before = int(say(client, "print(len(wb.events))"))
    assert say(client, "time.sleep(0.5); print(wb.state)") == "running"
    assert int(say(client, "print(len(wb.events))")) > before
    assert "press Stop for that" in say(client, "print(wb.status.value)")


def test_a_restart_ends_the_training_within_seconds_and_it_goes_on_to_the_same_bits(
    training, say, tiny_recipe, tmp_path
):
    manager, client = training
    say(
        client,
        "while sum(type(e).__name__ == 'EpochEnded' for e in wb.events) < 2: time.sleep(0.02)",
    )
    begun = time.monotonic()
    manager.shutdown_kernel()
    assert time.monotonic() - begun < 10
    (folder,) = (tmp_path / "runs").glob("[!.]*")
    recorded = vitseg.RunFolder(folder)
    assert not recorded.summary_file.exists()
    part = (folder / "events.jsonl").read_bytes()
    assert part.endswith(b"\n")
    list(_until(resume(folder), 300))
    list(_until(train(tiny_recipe.replace(LONG), tmp_path / "plain", reuse=False), 300))
    ours, theirs = (
        (f / "events.jsonl").read_bytes().splitlines() for f in (folder, tmp_path / "plain")
    )
    shared = min(len(ours), len(theirs))  # transient events count for `_until`, and are not logged
    assert shared > part.count(b"\n") > 15 and ours[:shared] == theirs[:shared]


def _until(stream, count):
    """The first `count` events of a run."""
    for _, event in zip(range(count), stream, strict=False):
        yield event
    stream.close()
