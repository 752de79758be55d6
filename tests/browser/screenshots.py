"""Take the pictures of the workbench that the README shows, or train a folder through it.

python tests/browser/screenshots.py                   docs/pictures/*.png, on generated images (five minutes)
python tests/browser/screenshots.py FOLDER PICTURES   a whole run on that folder; pictures and numbers go to PICTURES
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser.lab import Lab, chromium, jupyter

OURS = Path(__file__).parents[2] / "docs" / "pictures"
HOURS = 3 * 3_600_000


def main(arguments: list[str]) -> None:
    folder, pictures = (repr(str(Path(arguments[0]).resolve())), Path(arguments[1])) if arguments else ("", OURS)
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cells = [nbformat.v4.new_code_cell(f"import vitseg\n\nwb = vitseg.Workbench(vitseg.quick({folder}))\nwb")]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "lesson.ipynb")
        with jupyter(root, VITSEG_RUNS=str(root / "runs")) as address, chromium(root, address) as lab:
            lab.page.set_default_timeout(HOURS)
            whole_run(lab, pictures)
            (run,) = (root / "runs").iterdir()
            tell(run)
            if not arguments:
                fork(lab, pictures)
            lab.assert_clean()


def whole_run(lab: Lab, pictures: Path) -> None:
    """From the controls to the end, in the light theme, with a look at the dark one."""
    lab.page.set_viewport_size({"width": 1180, "height": 1000})
    lab.open("lesson.ipynb")
    lab.page.keyboard.press("Control+B")  # the side bar
    lab.run_cell(0)
    lab.wait_text(r"MB")  # the forecast
    lab.select("Stage", "2 Last blocks")
    shoot(lab, pictures / "workbench-before.png")
    lab.click("Start")
    lab.wait_text("Training stage 2")
    lab.wait_points("valid IoU", 9)
    lab.theme("JupyterLab Dark")
    shoot(lab, pictures / "workbench-during-dark.png")
    lab.wait_text(r"Ended\. Best")
    lab.theme("JupyterLab Light")
    lab.page.set_viewport_size({"width": 1180, "height": 940})
    lab.show_tab("Predictions")
    shoot(lab, pictures / "workbench-after.png")


def fork(lab: Lab, pictures: Path) -> None:
    """From the end of stage 1, with more blocks; the parent's curves lie beneath."""
    lab.page.set_viewport_size({"width": 1180, "height": 1000})
    lab.page.locator(".jp-NotebookPanel:visible .jp-Cell").first.scroll_into_view_if_needed()
    lab.page.mouse.move(600, 500)
    lab.page.mouse.wheel(0, -5000)
    lab.click("Fork")
    lab.slide("Freeze depth", 6)
    lab.wait_text("The next run starts from stage 1 of")
    lab.click("Start")
    lab.wait_text(r"Ended\. Best")
    shoot(lab, pictures / "workbench-fork.png")


def tell(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for stage in summary["stages"]:
        row = {k: stage[k] for k in ("name", "unfrozen_blocks", "epochs", "seconds")} | stage["best"]
        sys.stdout.write(f"{json.dumps(row)}\n")
    sys.stdout.write(f"{summary['seconds'] / 60:.1f} minutes of training\n")


def shoot(lab: Lab, path: Path) -> None:
    time.sleep(2.5)
    lab.page.locator(".jp-NotebookPanel:visible").first.screenshot(path=str(path))


if __name__ == "__main__":
    main(sys.argv[1:])
