"""A run told in words: every number in it is that of the events, also where they are not what was
promised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitseg
from vitseg.errors import RunError
from vitseg.events import BatchEnded, StageEnded, StageStarted
from vitseg.runs.folder import Failure
from vitseg.runs.narrate import explain, explanation


@pytest.fixture(scope="module")
def run(tiny_recipe, tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("explain") / "run"
    for _ in vitseg.train(tiny_recipe, folder):
        pass
    return folder


def test_each_stage_is_told_with_what_the_optimizer_held_the_rates_and_what_came_of_it(run):
    header, *stages, end = explain(run).split("\n\n")
    events = list(vitseg.replay(run))
    assert len(stages) == 3
    assert header.startswith("Run tiny: ")
    assert "10 training, 2 validation and 0 test images" in header
    for number, told in enumerate(stages, start=1):
        started = next(e for e in events if isinstance(e, StageStarted) and e.stage == number)
        ended = next(e for e in events if isinstance(e, StageEnded) and e.stage == number)
        steps = [e for e in events if isinstance(e, BatchEnded) and e.stage == number]
        assert all(text in told for text in started.audit.splitlines())
        assert f" {len(steps)} steps, " in told
        assert f"{steps[0].lr['decoder']:.2e}" in told
        assert f"{steps[-1].lr['decoder']:.2e}" in told
        assert f"moved {ended.schedule_steps:,} times in {ended.epochs} epochs" in told
        assert ended.audit in told
    assert "trains: decoder · optimizer" in stages[0]
    assert "trains: block 4, final norm, decoder · optimizer" in stages[1]
    assert "trains: blocks 3-4, final norm, decoder · optimizer" in stages[2]
    best = vitseg.RunFolder(run).summary["best"]["iou"]
    assert f"validation IoU of {best:.3f}" in end


def test_what_the_audit_found_is_told_not_what_was_promised(run):
    def other(event):
        if not isinstance(event, StageStarted) or event.stage > 1:
            return event
        return dataclasses.replace(event, audit="trains: block 4 · optimizer holds 7 of 9")

    told = explanation(map(other, vitseg.replay(run))).split("\n\n")[1]
    assert "trains: block 4 · optimizer holds 7 of 9" in told


def test_a_run_that_was_cut_off_and_one_that_failed_say_so(run):
    cut = list(vitseg.replay(run))[:6]
    assert explanation(cut).endswith("It has not ended.")
    failure = Failure(kind="LRBreach", says="Step 3 was taken at 2.")
    ending = "It ended with LRBreach: Step 3 was taken at 2."
    assert explanation(cut, failure).endswith(ending)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        explain(tmp_path)
