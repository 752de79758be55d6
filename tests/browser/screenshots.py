"""Take the pictures of the workbench that the README shows: `python tests/browser/screenshots.py` (three minutes)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser.lab import Lab, chromium, jupyter

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
CELL = "import vitseg\n\nwb = vitseg.Workbench(vitseg.quick())\nwb"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cells = [nbformat.v4.new_code_cell(CELL)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "lesson.ipynb")
        with jupyter(root, VITSEG_RUNS=str(root / "runs")) as address, chromium(root, address) as lab:
            lab.page.set_viewport_size({"width": 1180, "height": 1000})
            lab.page.set_default_timeout(600_000)
            lab.open("lesson.ipynb")
            lab.page.keyboard.press("Control+B")  # the side bar
            lab.run_cell(0)
            lab.wait_text(r"MB")  # the forecast
            lab.select("Stage", "2 Last blocks")
            shoot(lab, "before")
            lab.click("Start")
            lab.wait_points("train loss", 140)
            lab.theme("JupyterLab Dark")
            shoot(lab, "during-dark")
            lab.wait_text(r"Ended\. Best")
            lab.theme("JupyterLab Light")
            lab.page.set_viewport_size({"width": 1180, "height": 620})
            lab.page.locator(".jp-NotebookPanel .widget-image img, .jp-NotebookPanel img").first.scroll_into_view_if_needed()
            lab.page.mouse.move(600, 600)
            lab.page.mouse.wheel(0, 3000)
            shoot(lab, "after")


def shoot(lab: Lab, name: str) -> None:
    lab.page.wait_for_timeout(2500)
    PICTURES.mkdir(exist_ok=True)
    lab.page.locator(".jp-NotebookPanel:visible").first.screenshot(path=str(PICTURES / f"workbench-{name}.png"))


if __name__ == "__main__":
    main()
