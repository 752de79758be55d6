"""Execute notebooks without a browser and see their text as it comes.

python tools/headless.py NOTEBOOK
python tools/headless.py --pages FOLDER NOTEBOOK ...
    each executed and timed, as a page that opens without a network; the README beside the first one
    becomes their index
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vitseg import errors

_BUNDLE = "plotly.js v"
_PICTURES = {"application/vnd.plotly.v1+json", "image/png", "image/jpeg"}


class TalkingClient(NotebookClient):
    """Passes printed text and tables on to standard output while cells run; pictures stay in the
    notebook.
    """

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        if msg["msg_type"] == "stream":
            sys.stdout.write(content["text"])
        elif msg["msg_type"] == "execute_result" and not _PICTURES & content["data"].keys():
            sys.stdout.write(content["data"]["text/plain"] + "\n")
        sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)


def execute(path: Path, **environment: str) -> nbformat.NotebookNode:
    """The notebook, executed from a fresh kernel in its own folder. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as private:
        # pipes in a private folder rather than ports, where the system has them: nobody else can
        # listen or speak
        transport = "ipc" if os.name == "posix" else "tcp"
        kernel = AsyncKernelManager(
            kernel_name="python3", transport=transport, connection_file=f"{private}/kernel.json"
        )
        client = TalkingClient(
            notebook, km=kernel, timeout=None, resources={"metadata": {"path": str(path.parent)}}
        )
        client.execute(cleanup_kc=True, env=os.environ | environment)
    return notebook


def write_page(path: Path, folder: Path) -> None:
    """Execute a notebook and write it as HTML. Live widgets are shown as their text."""
    notebook = execute(path, PLOTLY_RENDERER="notebook")  # charts that draw themselves
    for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata.pop("widgets", None)  # their state, for which a page would fetch a program
    _write_html(notebook, path, folder / f"{path.stem}.html")


def write_index(readme: Path, folder: Path) -> None:
    """A README that links notebooks, as a page that links their pages."""
    text = readme.read_text(encoding="utf-8").replace(".ipynb)", ".html)")
    _write_html(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]),
        readme,
        folder / "index.html",
    )


def _write_html(notebook: nbformat.NotebookNode, path: Path, page: Path) -> None:
    from nbconvert import HTMLExporter  # slow to import, and of use here alone
    from plotly.offline import get_plotlyjs

    exporter = HTMLExporter(
        mathjax_url="", require_js_url="", embed_images=True
    )  # nothing is fetched
    html, _ = exporter.from_notebook_node(
        notebook, {"metadata": {"name": path.stem, "path": str(path.parent)}}
    )
    html = re.sub(
        r'<script src="https://[^"]*mathjax[^"]*"></script>', "", html
    )  # plotly's, for formulas that are not there
    if (
        "Plotly.newPlot" in html and _BUNDLE not in html
    ):  # it came with the first chart, and a cell that draws again has cleared that
        html = html.replace("<head>", f"<head><script>{get_plotlyjs()}</script>", 1)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")


def main() -> int:
    pages, *paths = sys.argv[2:] if sys.argv[1] == "--pages" else (None, sys.argv[1])
    try:
        for path in map(Path, paths):
            began = time.monotonic()
            if pages is None:
                execute(path)
            else:
                write_page(path, Path(pages))
                sys.stderr.write(f"{path.stem}: {time.monotonic() - began:.0f} s\n")
        if pages and (readme := Path(paths[0]).with_name("README.md")).is_file():
            write_index(readme, Path(pages))
    except CellExecutionError as error:
        kind = getattr(errors, error.ename.rpartition(".")[2], object)
        known = issubclass(kind, errors.VitsegError)
        sys.stderr.write(f"\n{error.evalue if known else error}\n")
        return 2 if known else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
