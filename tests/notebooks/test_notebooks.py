"""Every notebook runs from a fresh kernel; its last cell asserts what it claimed."""

from __future__ import annotations

from pathlib import Path

import pytest
from headless import execute

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
TRAIN_FOR_LONG = {
    "00_start_here",
    "03_the_decoder",
    "05_progressive_training",
    "07_ablation",
    "08_reading_a_result",
}
CASES = [
    pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem in TRAIN_FOR_LONG else ())
    for p in NOTEBOOKS
]


@pytest.mark.notebook
@pytest.mark.weights
@pytest.mark.parametrize("path", CASES)
def test_notebook_runs_and_its_claims_hold(path, tmp_path, monkeypatch):
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path))
    monkeypatch.delenv("VITSEG_DATA", raising=False)
    notebook = execute(path)
    errors = [
        o
        for c in notebook.cells
        if c.cell_type == "code"
        for o in c.outputs
        if o.output_type == "error"
    ]
    assert errors == []
