"""The workbench as a person meets it: in JupyterLab, in a browser, by its labels."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser.lab import CHROMIUM, Lab, chromium, jupyter
from browser.test_offline import BUTTONS

from vitseg.events import BatchEnded, EpochEnded
from vitseg.plan import preview
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.settings import Constant, CosineRestarts, Data, Exponential, Generated, Model, Stage

if CHROMIUM is None and not os.environ.get("VITSEG_REQUIRE_BROWSER"):
    pytest.skip("no Chromium; the browser tests need one", allow_module_level=True)

pytestmark = pytest.mark.browser

WATCH = """
import threading, time
seen = []
def watch():
    while True:
        if not seen or seen[-1][1] != wb.state:
            seen.append((time.time(), wb.state))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
"""
STATIC = "wb.show()"
ASK = (
    "print(wb.state, sum(type(e).__name__ == 'BatchEnded' for e in wb.events), not "
    "wb.model.training)"
)
LATENCY = "import json; print(json.dumps(seen))"


@pytest.fixture(scope="module")
def recipe(encoders) -> Recipe:
    """Half a minute of tiny steps: 10 an epoch."""
    return Recipe(
        name="tiny",
        data=Data(
            source=Generated(images=48, classes=3, side=140),
            size=(140, 140),
            validation_fraction=0.17,
            views=2,
        ),
        model=Model(encoder=encoders["dinov2"]),
        stages=(
            Stage(
                name="Frozen",
                unfrozen_blocks=0,
                epochs=9,
                lr=1e-3,
                schedule=CosineRestarts(T_0=9, burn_in_batches=20),
            ),
            Stage(
                name="Last", unfrozen_blocks=1, epochs=8, lr=3e-4, schedule=Exponential(gamma=0.9)
            ),
            Stage(name="Deeper", unfrozen_blocks=2, epochs=6, lr=1e-4, schedule=Constant()),
        ),
        batch_size=4,
        threads=1,
    )


@pytest.fixture(scope="module")
def place(recipe, tmp_path_factory):
    """A server, and a notebook with the workbench in its first cell."""
    root = tmp_path_factory.mktemp("lab")
    recipe.save(root / "recipe.json")
    start = (
        f"import vitseg\nwb = "
        f"vitseg.Workbench(vitseg.load_recipe({str(root / 'recipe.json')!r}))\nwb"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (start, WATCH, ASK, LATENCY, STATIC)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name in ("live", "saved", "unsaved"):
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / f"{name}.ipynb"
        )
    with jupyter(root, VITSEG_RUNS=str(root / "runs")) as address:
        yield root, address


@pytest.fixture
def lab(place):
    root, address = place
    with chromium(root, address) as page:
        yield page


def newest_run(root: Path) -> RunFolder:
    return RunFolder(max((root / "runs").glob("[!.]*"), key=lambda p: p.stat().st_mtime))


def logged(root: Path) -> list[BatchEnded]:
    return [e for e in newest_run(root).events() if isinstance(e, BatchEnded)]


def test_from_the_controls_to_the_end_of_a_run(lab, place, recipe):
    root, _ = place
    lab.open("live.ipynb")
    lab.run_cell(0)
    lab.wait_text("Ready. Start trains stages 1 to 3")

    # the plan is there before Start, and follows every control
    lab.wait_points("LR (planned)", 230)
    wanted = recipe
    lab.select("Stage", "2 Last")
    wait_until(lambda: lab.value("Learning rate") == 0.0003)
    for act, change in (
        (lambda: lab.number("Learning rate", 0.0002), {"stages.1.lr": 0.0002}),
        (lambda: lab.number("Epochs", 5), {"stages.1.epochs": 5}),
        (lambda: lab.select("Scheduler", "Constant"), {"stages.1.schedule": Constant()}),
        (lambda: lab.slide("Freeze depth", 3), {"stages.1.unfrozen_blocks": 3}),
        (lambda: lab.number("Batch size", 5), {"batch_size": 5}),
    ):
        act()
        wanted = wanted.replace(change)
        plan = preview(wanted, -(-40 // wanted.batch_size))
        wait_until(
            lambda plan=plan: same(
                lab.trace("LR (planned)"), [p.epoch for p in plan], [p.lr for p in plan]
            )
        )
    lab.wait_text("last 3 blocks")

    # a setting that cannot work says so, and Start is off
    lab.number("Learning rate", 0)
    lab.wait_text("stage 2 lr: got 0.0; allowed: greater than 0")
    wait_until(lambda: lab.is_off("Start"))
    lab.number("Learning rate", 0.0002)
    wait_until(lambda: not lab.is_off("Start"))

    # start, another cell, pause, resume, stop
    lab.run_cell(1)
    lab.click("Start")
    lab.wait_points("train loss", 12)
    lab.run_cell(2)
    state, steps, snapshot = lab.output(2).split()
    assert state == "running" and int(steps) >= 12 and snapshot == "True"
    clicked = lab.click("Pause")
    lab.wait_text("Paused. Resume goes on")
    paused_at = len(logged(root))
    wait_until(lambda: len(lab.trace("train loss")[1]) == paused_at)
    time.sleep(1.0)
    assert len(logged(root)) == len(lab.trace("train loss")[1]) == paused_at
    resumed = lab.click("Resume")
    lab.wait_points("train loss", paused_at + 3)
    stopped = lab.click("Stop")
    lab.wait_text(r"Stopped\. Resume goes on after step")
    lab.run_cell(3)
    seen = json.loads(lab.output(3))
    longest = longest_step(root)
    for click, state in ((clicked, "paused"), (resumed, "running"), (stopped, "stopped")):
        reached = next(t for t, s in seen if s == state and t > click - 0.05)
        assert reached - click <= longest + 0.5, f"{state}: {reached - click:.2f} s after the click"

    # what was stopped goes on from its checkpoint, to the end; the screen shows what the log holds
    lab.click("Resume")
    lab.wait_text(r"Ended\. Best valid IoU")
    run, batches = newest_run(root), logged(root)
    assert run.recipe == wanted and len(batches) == 8 * (9 + 5 + 6)
    wait_until(lambda: len(lab.trace("LR")[1]) == len(batches))
    epochs = [e.epoch - 1 + e.batch / e.batches for e in batches]
    assert same(lab.trace("LR"), epochs, [e.lr["decoder"] for e in batches])
    assert same(lab.trace("LR (planned)"), epochs, [e.lr["decoder"] for e in batches])
    assert same(lab.trace("train loss"), epochs, [e.loss for e in batches])
    ended = [e for e in run.events() if isinstance(e, EpochEnded)]
    assert same(lab.trace("train IoU"), [e.epoch for e in ended], [e.train["iou"] for e in ended])
    x, y = lab.trace("valid IoU")
    shown = {(a, np.float32(b)) for a, b in zip(x, y, strict=True)}
    assert {(e.epoch, np.float32(e.validation["iou"])) for e in ended} <= shown
    lab.tab("Checks")
    lab.wait_text("steps so far were taken at the promised learning rates")

    # what is shown and what Start would train are told apart, and the chart's furniture follows the
    # number of stages
    lab.wait_text(f"Run {run.path.name}. The controls hold its settings")
    lab.select("Stage", "1 Frozen")
    assert len(lab.trace("LR")[1]) == len(batches), "to look at a stage does not throw the run away"
    wait_until(lambda: numbers(lab) == ["1"] * 3 + ["2"] * 3 + ["3"] * 3)
    lab.select("Run", "this stage")
    lab.wait_text(f"What Start would train. For comparison, grey and dotted: run {run.path.name}")
    wait_until(lambda: numbers(lab) == ["1"] * 3)
    lab.select("Run", "all stages")
    wait_until(lambda: len(numbers(lab)) == 9)
    lab.select("Stage", "2 Last")
    lab.select("Run", "this stage")
    wait_until(lambda: numbers(lab) == ["1"] * 3 + ["2"] * 3)

    # an exported file is a link to it, and nothing leads out of the page
    lab.tab("Runs")
    lab.click("Export CSV")
    lab.wait_text("Curves written")
    link = lab.page.locator(".jp-NotebookPanel a:has-text('curves.csv')")
    text = lab.page.evaluate("async url => (await fetch(url)).text()", link.get_attribute("href"))
    assert text.encode() == (run.path / "curves.csv").read_bytes()
    lab.run_cell(4)
    lab.page.wait_for_function(
        "() => document.querySelectorAll('.jp-NotebookPanel .modebar').length === 2"
    )
    assert lab.ways_out() == ([], BUTTONS)
    lab.assert_clean()


@pytest.mark.parametrize("name", [pytest.param("saved", marks=pytest.mark.slow), "unsaved"])
def test_a_reload_of_the_page_does_not_end_the_training(name, lab, place):
    root, _ = place
    runs_before = len(list((root / "runs").glob("[!.]*")))
    lab.open(f"{name}.ipynb")
    lab.run_cell(0)
    lab.wait_text("Ready. Start trains")
    lab.wait_points("LR (planned)", 100)
    if name == "saved":
        lab.save()
    lab.click("Start")
    lab.wait_points("train loss", 10)
    before = len(logged(root))
    lab.reload()
    if name == "unsaved":
        assert lab.trace("train loss") == (
            [],
            [],
        )  # its output was never written; the cell attaches to the live run
        lab.run_cell(0)
    lab.wait_points("train loss", before + 5)
    assert len(logged(root)) > before
    lab.click("Stop")
    lab.wait_text(r"Stopped\. Resume goes on after step")
    batches = logged(root)
    wait_until(lambda: len(lab.trace("train loss")[1]) == len(batches))
    assert same(
        lab.trace("train loss"),
        [e.epoch - 1 + e.batch / e.batches for e in batches],
        [e.loss for e in batches],
    )
    assert len(list((root / "runs").glob("[!.]*"))) == runs_before + 1
    if (
        name == "saved"
    ):  # a page of a run that is over shows it too, though nothing is sent any more
        lab.save()
        lab.reload()
        lab.wait_text(r"Stopped\. Resume goes on after step")
        lab.wait_points("train loss", len(batches))
        assert same(
            lab.trace("train loss"),
            [e.epoch - 1 + e.batch / e.batches for e in batches],
            [e.loss for e in batches],
        )
    lab.assert_clean()


def numbers(lab: Lab) -> list[str]:
    """The numbers of the stages over the three charts; as many bands lie behind the curves."""
    found = lab.furniture()
    words = [text for text in found if text != "band"]
    assert found.count("band") == len(words)
    return sorted(words)


def longest_step(root: Path) -> float:
    """Seconds between two neighbouring events of the newest run: a batch, or the scoring after an
    epoch.
    """
    seconds = list(newest_run(root).timings().values())
    return max(b - a for a, b in pairwise(seconds))


def same(trace: tuple[list[float], list[float]], x: list[float], y: list[float]) -> bool:
    """Equal in the single precision in which a chart is sent."""
    return (
        len(trace[0]) == len(x)
        and np.allclose(trace[0], x, rtol=1e-6)
        and np.allclose(trace[1], y, rtol=1e-6)
    )


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
