"""Take the pictures of the workbench that the README shows, or train a folder through it.

python tests/browser/screenshots.py                   docs/pictures/*.png, on generated images (a quarter of an hour)
python tests/browser/screenshots.py FOLDER PICTURES   a whole run on that folder; pictures and numbers go to PICTURES
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser.lab import Lab, chromium, jupyter

OURS = Path(__file__).parents[2] / "docs" / "pictures"
HOURS = 3 * 3_600_000
SETTINGS = {"data.source.images": 40, "data.size": (98, 98), "batch_size": 4, "stages.0.epochs": 3, "stages.1.epochs": 2,
            "stages.2.epochs": 1, "stages.0.schedule.burn_in_batches": 8, "stages.0.schedule.T_0": 8}  # fmt: skip
ABLATION = f"vitseg.ablate(vitseg.quick().replace({SETTINGS}), {{'stages.1.unfrozen_blocks': [0, 2, 4]}}, seeds=3)"


def main(arguments: list[str]) -> None:
    if arguments:
        folder, pictures = Path(arguments[0]).resolve(), Path(arguments[1])
        pictures.mkdir(parents=True, exist_ok=True)
        with lesson(f"vitseg.Workbench(vitseg.quick({str(folder)!r}))") as (lab, runs):
            whole_run(lab, pictures)
            tell(next(runs.iterdir()))
        return
    with lesson("vitseg.Workbench(vitseg.quick())") as (lab, runs):
        whole_run(lab, OURS)
        tell(next(runs.iterdir()))
        fork(lab, OURS)
    with lesson(ABLATION) as (lab, _):
        ablation(lab, OURS)


@contextlib.contextmanager
def lesson(shown: str) -> Iterator[tuple[Lab, Path]]:
    """A notebook whose first cell shows something; gives the open page and the folder of its runs."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cells = [nbformat.v4.new_code_cell(f"import vitseg\n\nshown = {shown}\nshown")]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "lesson.ipynb")
        with jupyter(root, VITSEG_RUNS=str(root / "runs")) as address, chromium(root, address) as lab:
            lab.page.set_default_timeout(HOURS)
            lab.page.set_viewport_size({"width": 1180, "height": 1000})
            lab.open("lesson.ipynb")
            lab.page.keyboard.press("Control+B")  # the side bar
            lab.run_cell(0)
            yield lab, root / "runs"
            lab.assert_clean()


def whole_run(lab: Lab, pictures: Path) -> None:
    """From the controls to the end, in the light theme, with a look at the dark one."""
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


def ablation(lab: Lab, pictures: Path) -> None:
    """The plan and a table half full, in the dark theme; the end in the light one."""
    lab.wait_text("Start trains them")
    lab.click("Start")
    lab.wait_text("5 of 12 trials have ended")
    lab.theme("JupyterLab Dark")
    shoot(lab, pictures / "ablation-during-dark.png")
    lab.theme("JupyterLab Light")
    lab.wait_text("All 12 trials have ended")
    shoot(lab, pictures / "ablation-after.png")


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
