"""A notebook as a page: executed, with its charts and the text of its widgets, and nothing to
fetch.
"""

from __future__ import annotations

import re

import nbformat
from headless import write_index, write_page
from PIL import Image

CELL = """
import ipywidgets, plotly.graph_objects as go
from IPython.display import clear_output, display
display(go.Figure())  # brings the program that draws, and is cleared
clear_output(wait=True)
display(go.Figure(go.Scatter(y=[3, 1, 2], name="a curve")))
ipywidgets.Label("a widget")
"""


def test_a_page_holds_what_the_cells_gave_and_fetches_nothing(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# A lesson"), nbformat.v4.new_code_cell(CELL)]
    )
    nbformat.write(notebook, tmp_path / "lesson.ipynb")
    write_page(tmp_path / "lesson.ipynb", tmp_path / "pages")
    page = (tmp_path / "pages" / "lesson.html").read_text(encoding="utf-8")
    assert "A lesson" in page and '"name":"a curve"' in page and "Label(value" in page
    assert page.count("* plotly.js v") == 1 and "html-manager" not in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=.?https?:[^>]*>", page)


def test_the_index_links_the_pages_and_holds_its_pictures(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "look.png")
    readme = (
        '# The course\n\n| | |\n|---|---|\n| <img src="look.png" width="300" alt="a look"> | '
        "[00 Start](00_start.ipynb) |\n"
    )
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    write_index(tmp_path / "README.md", tmp_path / "pages")
    page = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert (
        'href="00_start.html"' in page
        and "data:image/png;base64," in page
        and "look.png" not in page
    )
