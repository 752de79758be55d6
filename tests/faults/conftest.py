"""What is left of a run after its end, for a comparison of all that it was."""

from __future__ import annotations

import pytest

from vitseg.runs.folder import RunFolder


@pytest.fixture
def checkpoints_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that have ended keep their checkpoints: the optimizer's state is compared too."""
    monkeypatch.setattr(RunFolder, "drop_checkpoints", lambda run: None)
