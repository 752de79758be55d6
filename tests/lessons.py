"""The notebooks' code, to be run in this process: a cell at a time, with other cells left out, or
on a broken library.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from vitseg.model import freeze

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
Names = dict[str, Any]


def sections(notebook: str) -> dict[str, list[str]]:
    """The code cells under each heading of the first two levels, in order."""
    found: dict[str, list[str]] = {}
    for cell in nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            found[list(found)[-1]].append(cell.source)
        elif heading := re.search(r"^##? (.+)$", cell.source, re.MULTILINE):
            found[heading[1]] = []
    return found


def visit(cells: list[str], names: Names) -> Names:
    """Run cells in a namespace, and give it back."""
    names.setdefault("display", lambda *_, **__: None)
    for number, cell in enumerate(cells, start=1):
        exec(compile(cell, f"cell {number}", "exec"), names)
    return names


def sliced_from_minus_n(patch: pytest.MonkeyPatch) -> None:
    """The origin's bug in the library: at depth 0 every block trains."""

    def trained(n: int, depth: int) -> set[str]:
        return {"decoder", *[f"block {i}" for i in range(1, depth + 1)][-n:]} | (
            {"final norm"} if n else set()
        )

    patch.setattr(freeze, "trained_parts", trained)
