"""What a look at a folder makes of what it finds: classes counted, pairs left out, reports."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import SIDE, stripes
from PIL import Image

import vitseg
from vitseg import cli
from vitseg.data.check import Check
from vitseg.data.dataset import SegmentationData
from vitseg.data.folder import read_folder
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data, Folder, Generated

CLASSES = ["ground", "wound", "scar"]


def write(place: Path, name: str, mask: np.ndarray, seed: int) -> None:
    """An image of its own, and its mask."""
    for kind in ("images", "masks"):
        (place / kind).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), np.uint8)
    Image.fromarray(noise).save(place / "images" / f"{name}.png")
    Image.fromarray(mask).save(place / "masks" / f"{name}.png")


def large(*values: int) -> np.ndarray:
    """A mask of 48 x 48 with these values in stripes."""
    return np.kron(stripes(*values), np.ones((2, 2), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hundred good pairs, split."""
    for n in range(100):
        write(tmp_path / ("train" if n < 80 else "validation"), f"{n:03}", large(0, 1, 2), n)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES, "encoding": "index"}))
    return tmp_path


def found(folder: Path) -> Counter[str]:
    """Problems and warnings, by kind."""
    check = Check(Data(source=Folder(path=str(folder))))
    return Counter(p.kind for p in [*check.problems, *check.warnings])


FAULTS: dict[str, Callable[[Path, str], object]] = {
    "no mask": lambda f, n: (f / "masks" / f"{n}.png").unlink(),
    "unreadable image": lambda f, n: (f / "images" / f"{n}.png").write_bytes(b"hello"),
    "sizes differ": lambda f, n: Image.fromarray(stripes(0, 1)).save(f / "masks" / f"{n}.png"),
    "unknown label": lambda f, n: Image.fromarray(large(0, 7)).save(f / "masks" / f"{n}.png"),
    "one name twice": lambda f, n: shutil.copy(
        f / "images" / f"{n}.png", f / "images" / f"{n}.bmp"
    ),
}
"""What is done to a pair. All kinds of faults: test_every_fault.py."""


@pytest.mark.real
def test_real_sets_raise_no_alarm_that_is_false(real_data: Path):
    """Of the foot ulcers, two validation images are training images as well: by their names in the
    set as it is spread.
    """
    assert found(real_data / "camvid") == {}
    check = Check(Data(source=Folder(path=str(real_data / "fuseg"))))
    assert not check.problems and {p.kind for p in check.warnings} == {
        "same image in two splits",
        "same image twice",
    }
    across = [p for p in check.warnings if p.kind == "same image in two splits"]
    assert [p.path.name for p in across] == ["0121.jpg", "0636.jpg"]
    for problem, other in zip(across, ("0284.jpg", "0356.jpg"), strict=True):
        twin = real_data / "fuseg" / "validation" / "images" / other
        assert str(twin) in problem.says and twin.read_bytes() == problem.path.read_bytes()


def test_what_is_worth_knowing_is_no_alarm(tmp_path: Path):
    for n in range(6):
        write(tmp_path / "train", str(n), large(0, 1), n)
    write(tmp_path / "validation", "7", large(0, 0), 7)
    write(tmp_path / "validation", "8", stripes(0, 1), 8)
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": ["ground", "wound"], "encoding": "index"})
    )
    check = Check(Data(source=Folder(path=str(tmp_path))))
    assert not check.problems and not check.warnings
    assert {p.kind for p in check.notes} == {"no foreground", "tiny"}


def test_a_class_that_a_split_lacks_is_a_warning(folder: Path):
    for file in (folder / "validation/masks").iterdir():
        Image.fromarray(large(0, 1)).save(file)
    check = Check(Data(source=Folder(path=str(folder))))
    (warning,) = check.warnings
    assert warning.says == f"{folder}: class 'scar' occurs in no mask of validation."


def test_classes_are_counted_as_by_hand(tmp_path: Path):
    for n, values in enumerate([(0, 1), (0, 1), (0, 2), (0, 0)]):
        write(tmp_path / "train", str(n), stripes(*values), n)
    write(tmp_path / "validation", "9", stripes(1, 2), 9)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES, "encoding": "index"}))
    check = Check(Data(source=Folder(path=str(tmp_path))))
    half, whole = SIDE * SIDE // 2, SIDE * SIDE
    assert [(c.name, c.images, c.pixels) for c in check.classes] == [
        ("ground", {"train": 4}, {"train": 3 * half + whole}),
        ("wound", {"train": 2, "validation": 1}, {"train": 2 * half, "validation": half}),
        ("scar", {"train": 1, "validation": 1}, {"train": half, "validation": half}),
    ]
    assert check.together == [[4, 2, 1], [2, 3, 1], [1, 1, 2]]


def test_images_that_a_drawn_split_would_put_on_both_sides_are_found(tmp_path: Path):
    for n in range(10):
        write(tmp_path, str(n), large(0, 1), 0)  # ten times the same
    (kind,) = found(tmp_path)
    assert kind == "same image in two splits"


def test_pairs_that_are_not_whole_are_left_out_if_that_is_asked_for_and_counted(folder: Path):
    for kind, name in (("no mask", "003"), ("unreadable image", "004"), ("unknown label", "005")):
        FAULTS[kind](folder / "train", name)
    with pytest.raises(DataError, match=r"3 problems\."):
        read_folder(Folder(path=str(folder)))
    data = SegmentationData(Data(source=Folder(path=str(folder), on_problem="skip"), size=(28, 28)))
    assert len(data.splits["train"]) == 77
    assert data.masks.endswith("; 3 files with problems and what belongs to them left out")
    list(data.batches([(name, "0") for name in data.splits["train"]], 8))


def test_what_cannot_be_left_out_is_refused_also_then(folder: Path):
    FAULTS["one name twice"](folder / "train", "003")
    with pytest.raises(DataError, match=r"003\.bmp: has the same name as 003\.png"):
        read_folder(Folder(path=str(folder), on_problem="skip"))


def test_a_check_of_generated_images_is_refused():
    with pytest.raises(ConfigError, match="Generated images need no check"):
        vitseg.check(Data(source=Generated()))


def test_masks_that_can_be_read_in_two_ways_are_refused_with_their_question(tmp_path: Path):
    for n in range(4):
        write(tmp_path, str(n), large(0, 1, 255), n)
    with pytest.raises(DataError, match="is 255 a class, or to be ignored"):
        read_folder(Folder(path=str(tmp_path)))


# ---------------------------------------------------------------------- headers, then pixels


def test_files_that_are_cut_off_or_do_not_fit_are_found_and_no_other(folder: Path):
    FAULTS["unreadable image"](folder / "train", "003")
    FAULTS["sizes differ"](folder / "train", "004")
    (folder / "train" / "images" / "005.png").write_bytes(
        (folder / "train" / "images" / "005.png").read_bytes()[:-30]
    )
    check = Check(Data(source=Folder(path=str(folder))))
    assert (check.found, len(check.whole)) == (100, 97)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_alone(
    terminal: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    FAULTS["sizes differ"](folder / "train", "004")
    error = io.StringIO()
    error.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr("vitseg.data.folder.MOMENT", 0)
    assert cli.main(["check", str(folder)]) == 1
    assert ("pixels: " in error.getvalue()) == terminal
    assert "problems: 1," in capsys.readouterr().out and (terminal or not error.getvalue())


# ---------------------------------------------------------------------- the report


def test_the_command_line_prints_writes_and_exits_with_one_where_something_is_wrong(
    folder: Path, tmp_path, capsys
):
    assert cli.main(["check", str(folder)]) == 0
    assert "100 pairs, 100 whole (80 train, 20 validation)" in capsys.readouterr().out
    FAULTS["sizes differ"](folder / "train", "007")
    json_file, page = tmp_path / "check.json", tmp_path / "check.html"
    assert cli.main(["check", str(folder), "--json", str(json_file), "--html", str(page)]) == 1
    said = capsys.readouterr()
    assert "PROBLEM: sizes differ (1)" in said.out and said.err == f"{json_file}\n{page}\n"
    kept = json.loads(json_file.read_text())
    assert [p["kind"] for p in kept["problems"]] == ["sizes differ"] and kept["whole"] == 99
    html = page.read_text(encoding="utf-8")
    assert (
        "<figcaption>train/masks/007.png: size differs from its image" in html
        and html.count("<img ") > 20
        and "://" not in html.replace("http://www.w3.org", "")
    )
    assert cli.main(["check", str(folder), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out) == kept


def test_names_are_escaped_in_the_page(tmp_path: Path):
    for n in range(4):
        write(tmp_path / "data", f"<img src=x onerror=alert({n})>", large(0, 1), n)
    report = vitseg.check(tmp_path / "data")
    FAULTS["no mask"](tmp_path / "data", "<img src=x onerror=alert(0)>")
    page = vitseg.check(tmp_path / "data").save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert report.ok and "<img src=x" not in report._repr_html_()


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_a_sentence(option: str, folder: Path, capsys):
    assert cli.main(["check", str(folder), option, str(folder / "no" / "such" / "place")]) == 2
    assert "cannot be written ([Errno 2] No such file or directory" in capsys.readouterr().err
