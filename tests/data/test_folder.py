"""Every image and every mask is looked at before training; all that is wrong is said at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import SIDE, stripes, write_pairs
from PIL import Image

from vitseg.data.folder import SUFFIXES, read_folder
from vitseg.errors import DataError
from vitseg.settings import Folder

GOOD = {name: stripes(0, 1) for name in "abcdefgh"}


def names(folder: Path) -> list[str]:
    return [pair.name for pair in read_folder(Folder(path=str(folder))).pairs]


def problems(folder: Path) -> list[str]:
    """The report's lines, its head left out."""
    with pytest.raises(DataError) as refused:
        names(folder)
    head, *lines = refused.value.problem.splitlines()
    assert head == f"{folder}: {len(lines)} problem{'s' if len(lines) > 1 else ''}."
    return [line.strip() for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", GOOD)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing mask": (
        lambda f: (f / "masks/a.png").unlink(),
        "images/a.png: no mask of that name in masks/",
    ),
    "orphan mask": (
        lambda f: (f / "images/b.png").unlink(),
        "masks/b.png: no image of that name in images/",
    ),
    "zero bytes": (
        lambda f: (f / "images/c.png").write_bytes(b""),
        "images/c.png: cannot be read (",
    ),
    "truncated image": (lambda f: _truncate(f / "images/d.png"), "images/d.png: cannot be read ("),
    "truncated mask": (lambda f: _truncate(f / "masks/e.png"), "masks/e.png: cannot be read ("),
    "text for an image": (
        lambda f: (f / "images/f.png").write_text("hello"),
        "images/f.png: cannot be read (",
    ),
    "another size": (
        lambda f: Image.fromarray(stripes(0, 1)[:20]).save(f / "masks/g.png"),
        f"masks/g.png: size differs from its image (image {SIDE}x{SIDE}, mask {SIDE}x20 pixels)",
    ),
    "JPEG mask": (
        lambda f: Image.fromarray(stripes(0, 1)).save(f / "masks/h.png", "JPEG"),
        "masks/h.png: cannot be read (a JPEG mask;",
    ),
}


@pytest.mark.parametrize(("break_it", "said"), BREAKS.values(), ids=BREAKS)
def test_a_fault_is_reported_with_its_file_and_nothing_else(
    folder: Path, break_it: Callable[[Path], object], said: str
):
    break_it(folder)
    (line,) = problems(folder)
    assert line.startswith(f"{folder}/{said}")


def test_all_faults_of_a_folder_are_in_one_report(folder: Path):
    for break_it, _ in BREAKS.values():
        break_it(folder)
    shutil.copy(folder / "images/g.png", folder / "images/g.bmp")
    lines = problems(folder)
    expected = [f"{folder}/{said}" for _, said in BREAKS.values()] + [
        f"{folder}/images/g.bmp: has the same name as g.png"
    ]
    assert len(lines) == len(expected)
    assert all(any(line.startswith(e) for line in lines) for e in expected)


def test_strange_labels_are_in_the_same_report_as_the_other_faults(tmp_path: Path):
    folder = write_pairs(
        tmp_path, GOOD | {"strange": stripes(0, 9)}, classes=["a", "b"], encoding="index"
    )
    (folder / "masks/a.png").unlink()
    assert len(problems(folder)) == 2


def test_a_long_report_shows_twenty_faults_and_counts_the_rest(tmp_path: Path):
    folder = write_pairs(tmp_path, {f"{i:02}": stripes(0, 1) for i in range(25)})
    for mask in (folder / "masks").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match=r"25 problems\.") as refused:
        names(folder)
    assert len(refused.value.problem.splitlines()) == 1 + 20
    assert refused.value.problem.count("no mask of that name") == 20


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_an_image_that_claims_to_be_enormous_is_a_fault_like_any_other(
    folder: Path, kind: str, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE)
    Image.new("L", (2 * SIDE + 1, SIDE)).save(folder / kind / "a.png")  # over twice the limit
    (line,) = problems(folder)
    assert line.startswith(f"{folder}/{kind}/a.png: cannot be read")


def test_hidden_files_and_other_kinds_are_passed_over(folder: Path):
    for stray in (
        "images/.DS_Store",
        "images/._a.png",
        "masks/Thumbs.db",
        "masks/notes.txt",
        "images/.hidden.jpg",
    ):
        (folder / stray).write_bytes(b"junk")
    assert names(folder) == list("abcdefgh")


@pytest.mark.parametrize("suffix", sorted(SUFFIXES | {".PNG", ".Jpg"}))
def test_images_of_every_known_kind_meet_their_mask_by_name(suffix: str, tmp_path: Path):
    folder = write_pairs(tmp_path, {"a.b": stripes(0, 1)})
    image = folder / "images" / "a.b.png"
    Image.open(image).save(image.with_name(f"a.b{suffix}"))
    if suffix != ".png":
        image.unlink()
    assert names(folder) == ["a.b"]


@pytest.mark.parametrize(
    "name",
    ["with space", "dotted.name", "-dash", "ünïcödé", "漢字", "100%", "🙂", "שלום", "a" * 200],
)
def test_unusual_names_work_and_are_shown_as_they_are(name: str, tmp_path: Path):
    assert names(write_pairs(tmp_path, {name: stripes(0, 1)})) == [name]
    (tmp_path / "masks" / f"{name}.png").unlink()
    assert problems(tmp_path) == [
        f"{tmp_path / 'images' / name}.png: no mask of that name in masks/."
    ]


def test_a_folder_with_splits_gives_names_by_split(tmp_path: Path):
    for split, stems in {"train": "ab", "validation": "a", "test": "c"}.items():
        write_pairs(tmp_path / split, {stem: stripes(0, 1) for stem in stems})
    pairs = read_folder(Folder(path=str(tmp_path))).pairs
    assert [(pair.name, pair.split) for pair in pairs] == [
        ("train/a", "train"),
        ("train/b", "train"),
        ("validation/a", "validation"),
        ("test/c", "test"),
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: None, "cannot be looked into .No such file"),
        (lambda f: f.mkdir(), "images: cannot be looked into .No such file"),
        (lambda f: f.write_text("a file"), "cannot be looked into .Not a directory"),
        (
            lambda f: (f / "images").mkdir(parents=True),
            "masks: cannot be looked into .No such file",
        ),
        (lambda f: write_pairs(f, {}), "no image found"),
        (lambda f: write_pairs(f / "train", {}), "no image found"),
        (lambda f: (f / "test").mkdir(parents=True), "test/images: cannot be looked into"),
    ],
    ids=["absent", "empty", "a file", "no masks/", "no files", "empty train/", "empty test/"],
)
def test_a_folder_without_pairs_is_refused_and_the_layout_is_explained(
    make: Callable, said: str, tmp_path: Path
):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=said) as refused:
        names(tmp_path / "data")
    assert str(tmp_path / "data") in refused.value.problem
    assert "images/ and masks/ (same names)" in refused.value.mend


def test_a_split_by_another_name_is_not_passed_over_in_silence(tmp_path: Path):
    for split, stems in {"train": "abc", "val": "d"}.items():
        write_pairs(tmp_path / split, {stem: stripes(0, 1) for stem in stems})
    try:
        found = names(tmp_path)
    except DataError as refused:
        found = [str(refused)]
    assert any("val" in part for part in found)


def test_masks_and_images_are_compared_as_they_are_seen_not_as_they_are_stored(tmp_path: Path):
    """A photograph on its side, by its EXIF tag, with an upright mask: sizes agree."""
    folder = write_pairs(tmp_path, {"a": np.zeros((SIDE, 2 * SIDE), np.uint8)})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (SIDE, 2 * SIDE)).save(folder / "images" / "a.png", exif=exif)
    assert names(folder) == ["a"]
