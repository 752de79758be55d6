"""For tests of what trains in the background: wait until it has, or let it fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from vitseg.errors import TrainingError
from vitseg.training.loop import StageTraining


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def trial_that_fails(patch: pytest.MonkeyPatch, name: str, says: str) -> None:
    """A sweep's trial of that name ends with a TrainingError at its first step; all others
    train.
    """
    real = StageTraining.train_step

    def train_step(self: StageTraining, portions: Any) -> Any:
        if self.recipe.name == name:
            raise TrainingError(says)
        return real(self, portions)

    patch.setattr(StageTraining, "train_step", train_step)
