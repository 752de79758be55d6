"""Every test of a screen has a runs root of its own, and leaves nothing training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vitseg.ui import live


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path / "runs"))
    yield
    if alive := live.current():
        alive.stop()
        alive.wait(20)
