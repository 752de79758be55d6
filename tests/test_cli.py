"""The command line does what the calls do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitseg
from vitseg import cli
from vitseg.events import EpochEnded
from vitseg.images import color_of

HEADLESS = str(Path(__file__).parents[1] / "tools" / "headless.py")


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    tiny_recipe.save(tmp_path / "recipe.json")
    return tmp_path / "recipe.json"


def test_run_trains_and_ends_in_table_folder_and_report(recipe_file, tmp_path, capsys):
    assert (
        cli.main(["run", str(recipe_file), str(tmp_path / "run"), "--set", "stages.1.epochs=1"])
        == 0
    )
    said = capsys.readouterr().out
    run = vitseg.RunFolder(tmp_path / "run")
    assert [stage["epochs"] for stage in run.summary["stages"]] == [2, 1, 1]
    assert "Stage 2: Last · exponential / epoch, epochs: 1\n" in said
    assert "optimizer holds" in said
    last = [line for line in said.splitlines() if line.strip()][-2:]
    assert last == [f"run folder  {run.path}", f"report      {run.path / 'report.html'}"]
    rows = said.rsplit("run folder", 1)[0].rstrip().splitlines()[-3:]
    assert [row[:8] for row in rows] == ["1 Frozen", "2 Last  ", "3 Deeper"]


def test_resume_goes_on_where_the_run_was_cut_off(tiny_recipe, tmp_path):
    events = vitseg.train(tiny_recipe, tmp_path / "run")
    next(e for e in events if isinstance(e, EpochEnded))
    events.close()
    assert cli.main(["resume", str(tmp_path / "run")]) == 0
    assert [stage["epochs"] for stage in vitseg.RunFolder(tmp_path / "run").summary["stages"]] == [
        2,
        2,
        1,
    ]


def test_predict_writes_a_palette_mask_and_an_overlay_of_the_image_s_size(
    tiny_recipe, tmp_path, capsys
):
    list(vitseg.train(tiny_recipe, tmp_path / "run"))
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    assert (
        cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "photo.png"), "--out", str(out)])
        == 0
    )
    with (
        Image.open(out / "photo.png") as mask,
        Image.open(out / "overlays" / "photo.png") as overlay,
    ):
        assert (mask.mode, mask.size, overlay.size) == ("P", (53, 37), (53, 37))
        assert np.array_equal(np.asarray(mask), vitseg.load(tmp_path / "run").predict(pixels))
        assert tuple(mask.getpalette()[3:6]) == color_of(1)
    assert "0 background, 1 granulation, 2 slough" in capsys.readouterr().out
    files = [str(tmp_path / "run"), str(tmp_path / "photo.png"), "--out", str(out)]
    assert cli.main(["predict", *files, "--windows"]) == 0
    with Image.open(out / "photo.png") as mask:
        assert np.array_equal(
            np.asarray(mask), vitseg.load(tmp_path / "run").predict_windows(pixels)
        )


def test_predict_does_not_write_over_the_images(tiny_recipe, tmp_path, capsys):
    image = tmp_path / "photo.png"
    Image.new("RGB", (20, 20)).save(image)
    before = image.read_bytes()
    assert cli.main(["predict", str(tmp_path / "run"), str(image), "--out", str(tmp_path)]) == 2
    assert "holds the images themselves" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_recipe_prints_json_that_run_takes(tmp_path, capsys):
    assert cli.main(["recipe", "quick", "--data", str(tmp_path)]) == 0
    assert vitseg.recipe.parse(capsys.readouterr().out) == vitseg.quick(tmp_path)


def test_a_notebook_run_headless_shows_its_text_as_it_comes(tmp_path):
    import nbformat

    (tmp_path / "notebooks").mkdir()
    cells = [
        nbformat.v4.new_code_cell("import os; print('in', os.getcwd())"),
        nbformat.v4.new_code_cell("6 * 7"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "a.ipynb")
    command = [sys.executable, HEADLESS, "notebooks/a.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"in {tmp_path / 'notebooks'}", "42"]


def test_a_mistake_in_a_headless_notebook_is_a_sentence_and_code_two(tmp_path):
    import nbformat

    cell = nbformat.v4.new_code_cell("import vitseg; vitseg.quick().replace({'stages.0.epoch': 3})")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    done = subprocess.run(
        [sys.executable, HEADLESS, "a.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "stages.0.epoch: unknown setting; did you mean epochs (of Stage)?" in done.stderr
    assert "Traceback" not in done.stderr


def test_cache_is_listed_verified_and_cleared(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    list(vitseg.train(tiny_recipe, tmp_path / "run"))
    assert cli.main(["cache"]) == 0
    text = capsys.readouterr().out
    assert (
        "GB cached, of at most 20 GB" in text and "70x70" in text and text.count("\n") == 9
    )  # levels 1 to 4, masks

    rows = [p for p in (tmp_path / "cache" / "features").rglob("*") if p.is_file()]
    rows[0].write_bytes(rows[0].read_bytes()[:-1])
    assert cli.main(["cache", "verify"]) == 0
    assert f"1 rows were not whole, and are dropped\n  {rows[0]}\n" in capsys.readouterr().out
    assert cli.main(["cache", "verify"]) == 0 and "0 rows were not" in capsys.readouterr().out

    assert cli.main(["cache", "clear", "dinov3"]) == 2
    assert (
        f"cache: got 'dinov3'; allowed: {Path(tiny_recipe.model.encoder).name}, masks."
        in capsys.readouterr().err
    )
    assert (
        cli.main(["cache", "clear", tiny_recipe.model.encoder]) == 0
        and "GB cleared" in capsys.readouterr().out
    )
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1  # the masks stay

    assert cli.main(["cache", "clear"]) == 0 and "GB cleared" in capsys.readouterr().out
    assert not list((tmp_path / "cache" / "features").rglob("*"))


def test_explain_and_card_tell_of_a_run_and_refuse_what_is_none(tiny_recipe, tmp_path, capsys):
    list(vitseg.train(tiny_recipe, tmp_path / "run"))
    assert cli.main(["explain", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{vitseg.explain(tmp_path / 'run')}\n"
    assert cli.main(["card", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'best' / 'README.md'}\n"
    assert "## Limits" in (tmp_path / "run" / "best" / "README.md").read_text(encoding="utf-8")
    for command in ("explain", "card"):
        assert cli.main([command, str(tmp_path)]) == 2
        assert "is not a run folder" in capsys.readouterr().err
