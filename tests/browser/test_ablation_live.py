"""An ablation as a person meets it: the plan, a table that fills, a kernel that dies, and the rest
of it afterwards.
"""

from __future__ import annotations

import os

import nbformat
import pytest
from browser.lab import CHROMIUM, chromium, jupyter

from vitseg.settings import Constant

if CHROMIUM is None and not os.environ.get("VITSEG_REQUIRE_BROWSER"):
    pytest.skip("no Chromium; the browser tests need one", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CELL = """
import vitseg
from vitseg.ui import table
recipe = vitseg.load_recipe({recipe!r})
ablation = vitseg.ablate(recipe, {{"stages.1.unfrozen_blocks": [0, 1, 2]}}, seeds=2)
ablation
"""
ASK = "print(ablation.state, len(ablation.sweep.results()), len(ablation.frame()))"
FINISH = "ablation.finish()"
AGAIN = "ablation"
TABLES = """
run = ablation.sweep.run_of("03-seed0")
print(ablation.report(), vitseg.report(run.path, shown=1))
display(table.results(run.summary), ablation.table, table.stages(recipe))
"""
HEAT = "IoU, mean over seeds"
WIDTHS = (924, 1366, 1920)


def test_a_table_that_fills_and_goes_on_after_the_kernel_was_restarted(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace(
        {"data.source.images": 24, "stages.0.schedule": Constant(), "stages.1.epochs": 4}
    )
    names = ("Decoder, encoder frozen", "Last block or two, low LR", "Last two blocks, lower LR")
    recipe = recipe.replace({f"stages.{i}.name": name for i, name in enumerate(names)})
    recipe.save(tmp_path / "recipe.json")
    sources = (CELL.format(recipe=str(tmp_path / "recipe.json")), ASK, FINISH, AGAIN, TABLES)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "ablation.ipynb"
    )
    runs = tmp_path / "runs"
    with jupyter(tmp_path, VITSEG_RUNS=str(runs)) as address, chromium(tmp_path, address) as lab:
        lab.open("ablation.ipynb")
        lab.run_cell(0)
        lab.wait_text(r"8 \(settings x seeds: 3 x 2, controls: 2\)")
        lab.wait_text("0 of 8 trials have ended. Start trains the remaining 8")
        lab.click("Start")
        lab.wait_text("2 of 8 trials have ended")
        lab.run_cell(1)  # another cell, meanwhile
        state, ended, trials = lab.output(1).split()
        assert state == "running" and int(ended) >= 2 and trials == "8"
        lab.restart_kernel()
        lab.run_cell(0)
        lab.wait_text(r"[2-7] of 8 trials have ended. Start trains the remaining")
        assert len(list(runs.glob("sweep-*"))) == 1
        kept = len(list(runs.glob("*/trials/*/summary.json")))
        lab.click("Start")
        lab.run_cell(2)  # waits, while the button's run goes on
        lab.wait_text("8 of 8 trials have ended")
        lab.wait_points("control", 1)  # the chart on the page, not only the table
        lab.wait_text("against the same .* epochs spent wholly in stage 1")
        assert 2 <= kept < len(list(runs.glob("*/trials/*/summary.json"))) == 8
        assert lab.trace(HEAT) == (["all seeds"], ["0", "1", "2"])
        lab.clear(0)
        lab.run_cell(3)  # the same figure on another place of the page
        lab.wait_points("control", 1)
        assert lab.trace(HEAT) == (["all seeds"], ["0", "1", "2"])
        lab.save()
        lab.reload()
        lab.wait_points("control", 1)
        assert lab.trace(HEAT) == (["all seeds"], ["0", "1", "2"])

        # tables at three widths
        lab.run_cell(4)
        for width in WIDTHS:
            lab.resize(width)
            assert lab.cut_off() == []
            assert width == min(WIDTHS) or lab.beyond_the_edge() == []
        reports = lab.output(4).split()[:2]
        lab.assert_clean()
        for path in reports:
            lab.page.goto(f"file://{path}")
            for width in WIDTHS:
                lab.resize(width)
                assert lab.cut_off() == [] and lab.page.evaluate(
                    "document.body.scrollWidth <= innerWidth"
                )
        assert (lab.errors, lab.outside) == ([], [])
