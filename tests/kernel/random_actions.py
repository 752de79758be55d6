"""Anybody, pressing anything: run within a kernel by test_random_actions.py."""

from __future__ import annotations

import random
import threading
import time

import vitseg
from vitseg.ui.workbench import Workbench

LEGAL = {"ready", "running", "pausing", "paused", "stopping", "stopped", "ended", "failed", "shown"}
ACTIONS = (
    "Start",
    "Pause",
    "Stop",
    "Fork",
    "stage",
    "depth",
    "lr",
    "again",
    "other",
    "model",
    "rest",
    "rest",
)
BAD = ("should not happen", "could not be drawn", "not complete")


def act(recipe: vitseg.Recipe, count: int, seed: int) -> list[str]:
    """Press and move `count` times; gives the states that were seen. Raises AssertionError for an
    illegal one.
    """
    rng, views, seen = random.Random(seed), [Workbench(recipe, reuse=False)], set()
    for number in range(count):
        wb = rng.choice(views[-2:])
        action = rng.choice(
            [
                "Start",
                "Pause",
                "Stop",
                "Fork",
                "stage",
                "depth",
                "lr",
                "again",
                "other",
                "model",
                "rest",
                "rest",
            ]
        )
        _do(action, wb, rng, views, recipe)
        trainers = [t.name for t in threading.enumerate() if t.name.startswith("vitseg tiny")]
        assert len(trainers) <= 1, (number, action, trainers)
        states = {v.state for v in views}
        assert states <= LEGAL, (number, action, states)
        seen |= states
        assert sum(s.alive for s in {id(v.session): v.session for v in views}.values()) <= 1, (
            number,
            action,
        )
        said = [v.status.value for v in views[-2:]]
        assert not [s for s in said if any(bad in s for bad in BAD)], (number, action, said)
    return sorted(seen)


def _do(
    action: str, wb: Workbench, rng: random.Random, views: list[Workbench], recipe: vitseg.Recipe
) -> None:
    control = wb.controls
    if action in wb.buttons:
        if not wb.buttons[action].disabled:
            wb.buttons[action].click()
    elif action == "stage":
        control["Stage"].value = rng.randint(1, 3)
    elif action == "depth":
        control["Freeze depth"].value = rng.randint(0, 4)
    elif action == "lr":
        control["Learning rate"].value = rng.choice([0.0, 1e-3, 1e-4])
    elif action in {"again", "other"}:
        views.append(Workbench(recipe.replace({"seed": int(action == "other")}), reuse=False))
    elif action == "model":
        assert not wb.model.training
    else:
        time.sleep(0.03)
