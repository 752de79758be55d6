"""Wherever a run is cut, and however it goes on, it ends with the same bits as one that was left
alone.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import soak

from vitseg.events import BatchEnded, Event, RunEnded
from vitseg.recipe import Recipe
from vitseg.runs.run import resume, train

pytestmark = pytest.mark.usefixtures("checkpoints_stay")

NOISY = {"model.dropout": 0.3, "data.views": 2}


def left_alone(recipe: Recipe, folder: Path) -> dict[str, bytes]:
    """What such a run ends with."""
    list(train(recipe, folder, reuse=False))
    return soak.content(folder)


def cut_after(recipe: Recipe, folder: Path, steps: list[int]) -> dict[str, bytes]:
    """What a run ends with that is stopped after each of these optimizer steps, and resumed."""
    for step in steps:
        with closing(go_on(recipe, folder)) as events:
            assert (
                next(e for e in events if isinstance(e, BatchEnded) and e.step >= step).step == step
            )
    assert isinstance(list(go_on(recipe, folder))[-1], RunEnded)
    return soak.content(folder)


def go_on(recipe: Recipe, folder: Path) -> Generator[Event]:
    return (
        resume(folder) if (folder / "events.jsonl").exists() else train(recipe, folder, reuse=False)
    )


def differing(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def test_a_stop_after_every_step_of_three_stages_changes_no_bit(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace(NOISY)
    assert (
        differing(
            left_alone(recipe, tmp_path / "whole"),
            cut_after(recipe, tmp_path / "cut", list(range(1, 26))),
        )
        == []
    )


@pytest.mark.slow
def test_a_stop_around_the_end_of_the_burn_in_of_sixty_batches_changes_no_bit(
    tiny_recipe, tmp_path
):
    schedule = {"kind": "cosine_restarts", "T_0": 4, "burn_in_batches": 60}
    recipe = tiny_recipe.replace(
        {"stages.0.epochs": 13, "stages.0.schedule": schedule, "data.size": (28, 28)}
    )
    whole = left_alone(recipe, tmp_path / "whole")
    for steps in ([59], [60], [61], [59, 60, 61]):
        assert (
            differing(whole, cut_after(recipe, tmp_path / "-".join(map(str, steps)), steps)) == []
        )


def test_a_stop_between_batches_of_several_portions_changes_no_bit(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace(
        NOISY | {"accumulate": 2}
    )  # 3 steps an epoch, the last of one portion
    assert (
        differing(
            left_alone(recipe, tmp_path / "whole"),
            cut_after(recipe, tmp_path / "cut", [1, 2, 3, 5, 7, 14]),
        )
        == []
    )


@pytest.mark.parametrize(
    "otherwise",
    [{"workers": 1}, {"workers": 2}, {"cache": False}, {"cache": False, "workers": 2}],
    ids=str,
)
def test_workers_and_cache_change_no_bit_of_a_run_that_is_cut(
    otherwise: dict[str, Any], tiny_recipe, tmp_path
):
    """But for the line that tells of the recipe, and the place in the log that moves with its
    length.
    """
    recipe = tiny_recipe.replace(NOISY)
    whole = left_alone(recipe, tmp_path / "whole")
    found = cut_after(recipe.replace(otherwise), tmp_path / "cut", [4, 9, 12])
    assert found["events.jsonl"].split(b"\n", 1)[1] == whole["events.jsonl"].split(b"\n", 1)[1]
    state = next(name for name in whole if name.endswith("state.json"))
    assert json.loads(found[state]) | {"offset": 0} == json.loads(whole[state]) | {"offset": 0}
    assert {Path(name).name for name in differing(whole, found)} <= {
        "events.jsonl",
        "state.json",
        "manifest.json",
    }
