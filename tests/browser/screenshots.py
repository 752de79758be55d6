"""Take the pictures of the workbench that the README shows, or train a folder through it.

python tests/browser/screenshots.py
    docs/pictures/, on generated images (a quarter of an hour)
python tests/browser/screenshots.py caught
    those of one show alone: workbench, ablation, caught, twice, reading
python tests/browser/screenshots.py course
    one of each notebook for their index, from the pages of `make gallery`
python tests/browser/screenshots.py FOLDER PICTURES
    a whole run on that folder; pictures and numbers go to PICTURES
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from PIL import Image, ImageOps
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser.lab import CHROMIUM, Lab, chromium, jupyter
from lessons import sections

OURS = Path(__file__).parents[2] / "docs" / "pictures"
HOURS = 3 * 3_600_000
WORKBENCH = "import vitseg\n\nwb = vitseg.Workbench(vitseg.quick({folder}))\nwb"
ABLATION = """import vitseg

recipe = vitseg.quick().replace({"data.source.images": 40, "data.size": (98, 98), "batch_size": 4})
recipe = recipe.replace({"stages.0.epochs": 3, "stages.1.epochs": 2, "stages.2.epochs": 1})
recipe = recipe.replace({"stages.0.schedule.burn_in_batches": 8, "stages.0.schedule.T_0": 8})
ablation = vitseg.ablate(recipe, axes={"stages.1.unfrozen_blocks": [0, 2, 4]}, seeds=3)
ablation"""
COURSE = {  # the cell of each notebook whose output stands for it
    "00_start_here": "charts.curves(events",
    "01_data": "vitseg.contact_sheet(data, names)",
    "02_what_the_encoder_sees": "display(strip([picture(train.images[i])",
    "03_the_decoder": "legend(data.classes, 620)",
    "04_freezing_and_learning_rate": "charts.freeze_map(",
    "05_progressive_training": "beneath=Curves(parent)",
    "06_bug_museum": 'tickformat=".1e"',
    "07_ablation": "ablation.show()",
    "08_reading_a_result": "vitseg.gallery(reading",
    "09_your_own_data": "pictures.predictions(",
}
FAULT = """# somewhere else, while stage 1 trains: "fine-tune the last two blocks"
for block in wb.session.job.model.encoder.blocks[-2:]:
    block.requires_grad_(True)"""


def main(arguments: list[str]) -> None:
    if len(arguments) == 2:
        folder, pictures = Path(arguments[0]).resolve(), Path(arguments[1])
        pictures.mkdir(parents=True, exist_ok=True)
        with lesson(WORKBENCH.format(folder=repr(str(folder)))) as (lab, runs):
            whole_run(lab, pictures)
            tell(next(runs.glob("[!.]*")))
    for name in [] if len(arguments) == 2 else arguments or SHOWS:
        SHOWS[name]()


def workbench() -> None:
    with lesson(WORKBENCH.format(folder="")) as (lab, runs):
        whole_run(lab, OURS)
        tell(next(runs.glob("[!.]*")))
        fork(lab, OURS)


def caught() -> None:
    """A moving picture: a frozen encoder trains, is paused, goes on; a line of code thaws it; the
    map turns red.
    """
    with lesson(FAULT, WORKBENCH.format(folder="")) as (lab, _):
        lab.page.set_viewport_size({"width": 1180, "height": 1070})
        lab.wait_text(r"MB")  # the forecast
        film = [(frame(lab), 1800)]
        lab.click("Start")
        lab.wait_text("Training stage 1")
        while len(lab.trace("valid IoU")[1]) < 4:
            film.append((frame(lab), 250))
            time.sleep(2)
        lab.click("Pause")
        lab.wait_text("Paused")
        film.append((frame(lab), 1800))
        lab.click("Resume")
        for _ in range(4):
            time.sleep(2)
            film.append((frame(lab), 250))
        lab.run_cell(0)
        lab.wait_text("Stopped by the freeze audit")
        time.sleep(1)
        film.append((frame(lab), 5000))
    pictures, durations = zip(*film, strict=True)
    shared = pictures[-1].quantize(
        128, dither=Image.Dither.NONE
    )  # it has every colour, and the red one
    pictures = [p.quantize(palette=shared, dither=Image.Dither.NONE) for p in pictures]
    pictures[0].save(
        OURS / "caught.gif", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )


def twice() -> None:
    """The promised learning rate, and that of a scheduler which validation steps too: the museum's
    third room.
    """
    museum = sections("06_bug_museum")
    room = next(cells for title, cells in museum.items() if title.startswith("Room 3"))
    with lesson("\n".join([*museum["Before the rooms"], *room[:3]])) as (lab, _):
        lab.page.set_viewport_size({"width": 960, "height": 800})
        time.sleep(2.5)
        lab.page.locator(".jp-NotebookPanel:visible .js-plotly-plot").first.screenshot(
            path=str(OURS / "stepped-twice.png")
        )


def reading() -> None:
    """The confusion matrix of notebook 08, after a click on a cell."""
    told = sections("08_reading_a_result")
    trained, read = next(iter(told.values()))[0], told["One set of predictions, three numbers"][0]
    with lesson(
        "\n".join([trained, read, "vitseg.show_confusions(reading, model, data, most=2)"])
    ) as (lab, _):
        lab.page.set_viewport_size({"width": 960, "height": 1400})
        lab.wait_text("were taken for")
        time.sleep(2.5)
        cells = lab.page.locator(
            ".jp-NotebookPanel:visible .heatmaplayer image"
        ).first.bounding_box()
        lab.page.mouse.click(
            cells["x"] + cells["width"] * 1.5 / 5, cells["y"] + cells["height"] * 2.5 / 5
        )
        lab.wait_text("'slough' were taken for 'granulation'")
        lab.page.mouse.move(5, 5)
        time.sleep(1)
        lab.page.locator(".jp-NotebookPanel:visible .jp-OutputArea-output").last.screenshot(
            path=str(OURS / "confusions.png")
        )


def course() -> None:
    """Of each notebook one output, no larger than the index shows it."""
    root = Path(__file__).parents[2]
    (OURS / "course").mkdir(exist_ok=True)
    with (
        sync_playwright() as play,
        play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page(viewport={"width": 1000, "height": 900}, device_scale_factor=1)
        for name, line in COURSE.items():
            cells = [
                c.source
                for c in nbformat.read(root / f"notebooks/{name}.ipynb", 4).cells
                if c.cell_type == "code"
            ]
            page.goto((root / f"gallery/{name}.html").as_uri())
            page.add_style_tag(content=".jp-OutputPrompt { display: none }")
            cell = page.locator(".jp-CodeCell").nth(
                next(i for i, source in enumerate(cells) if line in source)
            )
            output = cell.locator(".jp-OutputArea-output")
            shown = (
                output.last
                if output.last.locator(".js-plotly-plot").count()
                else cell.locator(".jp-Cell-outputWrapper")
            )
            shown.scroll_into_view_if_needed()
            time.sleep(2)
            shot = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
            shot = shot.crop(ImageOps.invert(shot).getbbox())  # without the white around it
            shot = shot.crop((0, 0, shot.width, min(shot.height, shot.width * 5 // 8)))
            shot.thumbnail((720, 450), Image.Resampling.LANCZOS)
            shot.quantize(128, dither=Image.Dither.NONE).save(
                OURS / "course" / f"{name[:2]}.png", optimize=True
            )


def frame(lab: Lab) -> Image.Image:
    shot = lab.page.locator(".jp-NotebookPanel:visible").first.screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB")


@contextlib.contextmanager
def lesson(*cells: str) -> Iterator[tuple[Lab, Path]]:
    """A notebook whose last cell was run; gives the open page and the folder of its runs."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        kernel = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel
        )
        nbformat.write(notebook, root / "lesson.ipynb")
        with (
            jupyter(root, VITSEG_RUNS=str(root / "runs")) as address,
            chromium(root, address) as lab,
        ):
            lab.page.set_default_timeout(HOURS)
            lab.page.set_viewport_size({"width": 1180, "height": 1000})
            lab.open("lesson.ipynb")
            lab.page.keyboard.press("Control+B")  # the side bar
            lab.run_cell(len(cells) - 1)
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
    lab.wait_text("Start trains stages 2 to 3 from stage 1 of")
    lab.click("Start")
    lab.wait_text(r"Ended\. Best")
    shoot(lab, pictures / "workbench-fork.png")


def ablation() -> None:
    """The plan and a table half full, in the dark theme; the end in the light one."""
    with lesson(ABLATION) as (lab, _):
        lab.wait_text("Start trains the remaining")
        lab.click("Start")
        lab.wait_text("5 of 12 trials have ended")
        lab.theme("JupyterLab Dark")
        shoot(lab, OURS / "ablation-during-dark.png")
        lab.theme("JupyterLab Light")
        lab.wait_text("12 of 12 trials have ended")
        shoot(lab, OURS / "ablation-after.png")


def tell(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for stage in summary["stages"]:
        row = {k: stage[k] for k in ("name", "unfrozen_blocks", "epochs", "seconds")} | stage[
            "best"
        ]
        sys.stdout.write(f"{json.dumps(row)}\n")
    sys.stdout.write(f"{summary['seconds'] / 60:.1f} minutes of training\n")


def shoot(lab: Lab, path: Path) -> None:
    time.sleep(2.5)
    lab.page.wait_for_selector(
        "#jupyterlab-splash", state="detached"
    )  # a new theme is announced by it
    lab.page.locator(".jp-NotebookPanel:visible").first.screenshot(path=str(path))


SHOWS = {
    "workbench": workbench,
    "ablation": ablation,
    "caught": caught,
    "twice": twice,
    "reading": reading,
    "course": course,
}

if __name__ == "__main__":
    main(sys.argv[1:])
