"""A notebook as a page: executed, with its charts and the text of its widgets, and nothing to fetch."""

from __future__ import annotations

import re

import nbformat

from vitseg.ui.headless import write_page

CELL = """
import ipywidgets, plotly.graph_objects as go
from IPython.display import display
display(go.Figure(go.Scatter(y=[3, 1, 2], name="a curve")))
ipywidgets.Label("a widget")
"""


def test_a_page_holds_what_the_cells_gave_and_fetches_nothing(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A lesson"), nbformat.v4.new_code_cell(CELL)])
    nbformat.write(notebook, tmp_path / "lesson.ipynb")
    write_page(tmp_path / "lesson.ipynb", tmp_path / "pages")
    page = (tmp_path / "pages" / "lesson.html").read_text(encoding="utf-8")
    assert "A lesson" in page and '"name":"a curve"' in page and "Label(value" in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=.?https?:[^>]*>", page)
