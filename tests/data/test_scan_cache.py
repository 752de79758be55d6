"""A folder that was scanned before opens without reading its files, and with the same result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import stripes
from PIL import Image

from vitseg.data import scan_cache
from vitseg.data.check import Check
from vitseg.data.dataset import SegmentationData
from vitseg.data.folder import Scan
from vitseg.errors import DataError
from vitseg.images import opened
from vitseg.settings import Crop, Data, Folder
from vitseg.ui.data_report import DataReport

NAMES = "abcdefgh"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone."""
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and masks of every sort that a scan tells something of: palettes, 16 bits, bands that
    are dropped, orientations.
    """
    place = tmp_path / "data"
    for kind in ("images", "masks"):
        (place / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n, name in enumerate(NAMES):
        image = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        image.save(place / "images" / f"{name}.png")
        mask = Image.fromarray(stripes(0, 1, n % 3)).convert("P")
        mask.putdata(stripes(0, 1, n % 3).ravel().tolist())
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        mask.save(place / "masks" / f"{name}.png")
    dim = Image.fromarray(rng.integers(0, 4096, (24, 24), np.uint16))
    dim.save(place / "images" / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (24, 24), (9, 9, 9)).save(place / "images" / "c.png", exif=exif)
    Image.fromarray(rng.integers(0, 256, (24, 24, 4), np.uint8)).save(place / "images" / "d.png")
    return place


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose pixels have been read, one entry for each time."""
    names: list[str] = []

    def counted(path: Path):
        names.append(f"{path.parent.name}/{path.name}")
        return opened(path)

    monkeypatch.setattr(scan_cache, "opened", counted)
    return names


def scanned(folder: Path, **settings: Any) -> Scan:
    return Scan(Folder(path=str(folder), **settings))


def observed(folder: Path, **settings: Any) -> dict[str, Any]:
    """All that a check and a training can tell of a folder."""
    data = Data(source=Folder(path=str(folder), **settings), size=(28, 28), crop=Crop(p=1.0))
    check = Check(data)
    report = json.loads(DataReport(check).to_json())
    seen: dict[str, Any] = {"check": report, "findings": check.findings}
    try:
        made = SegmentationData(data)
    except DataError as error:
        return seen | {"refused": str(error)}
    names = sorted(made.images)
    return seen | {
        "pairs": made.images,
        "code": made.images[names[0]].code._asdict(),
        "classes": made.classes,
        "masks": made.masks,
        "splits": made.splits,
        "warnings": made.warnings,
        "counts": {name: made.counts(name) for name in names},
        "pixels": made.pixels("train"),
        "digest": made.digest(),
        "fingerprints": [made.fingerprint(name, view) for name in names for view in ("0", "1")],
    }


def cache_file(cache: Path) -> Path:
    (file,) = (cache / "scans").glob("*.json")
    return file


# ---------------------------------------------------------------------- the same, without reading


def test_a_folder_that_was_scanned_is_not_decoded_again(cache, folder, decoded):
    scanned(folder)
    assert len(decoded) == 16
    scanned(folder)
    assert len(decoded) == 16


def test_no_content_is_digested_again_for_the_keys_of_stages(cache, folder, monkeypatch):
    cfg = Data(source=Folder(path=str(folder)), size=(28, 28))
    digest = SegmentationData(cfg).digest()

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was digested again")

    monkeypatch.setattr("vitseg.data.scan_cache.sha256_of", refuse)
    assert SegmentationData(cfg).digest() == digest


def test_a_second_start_tells_what_the_first_one_told(cache, folder):
    first = observed(folder)
    assert first["warnings"] and first["digest"]
    assert observed(folder) == first
    shutil.rmtree(cache)
    assert observed(folder) == first


def test_the_path_is_told_as_it_is_given_not_as_it_was_cached(cache, folder, monkeypatch):
    scanned(folder)
    monkeypatch.chdir(folder.parent)
    warnings = scanned(Path("data")).findings
    assert warnings and all(found.says.startswith("data/images/") for found in warnings)


BREAKS: dict[str, Callable[[Path], object]] = {
    "a truncated image": lambda f: _cut(f / "images" / "e.png"),
    "a truncated mask": lambda f: _cut(f / "masks" / "e.png"),
    "no mask": lambda f: (f / "masks" / "e.png").unlink(),
    "another size": lambda f: Image.new("L", (24, 20)).save(f / "masks" / "e.png"),
    "a label outside": lambda f: Image.fromarray(stripes(0, 77)).save(f / "masks" / "e.png"),
    "a mask in colour": lambda f: Image.new("RGB", (24, 24)).save(f / "masks" / "e.png"),
    "turned behind the pixels, and of another size": lambda f: _turn(f / "images" / "e.png"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _turn(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 24)).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    chunk, content = content[start:end], content[:start] + content[end:]
    path.write_bytes(content[:-12] + chunk + content[-12:])


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("on_problem", ["refuse", "skip"])
def test_what_is_wrong_is_told_again_in_the_same_words(cache, folder, broken, on_problem):
    (folder / "classes.json").write_text('{"classes": ["x", "y", "z"], "encoding": "index"}')
    observed(folder)
    broken(folder)
    first = observed(folder, on_problem=on_problem)
    assert first["check"]["problems"]
    assert observed(folder, on_problem=on_problem) == first
    shutil.rmtree(cache)
    assert observed(folder, on_problem=on_problem) == first


# ---------------------------------------------------------------------- changes are noticed


def test_a_changed_file_is_read_again_and_no_other(cache, folder, decoded):
    before = observed(folder)
    del decoded[:]
    Image.fromarray(stripes(2, 2, 2)).save(folder / "masks" / "e.png")
    after = observed(folder)
    assert decoded == ["masks/e.png"]
    assert after["counts"]["e"] == {2: 576} != before["counts"]["e"]
    assert after["digest"] != before["digest"]


def test_other_content_of_the_same_size_is_noticed_by_its_time(cache, folder, decoded):
    mask = folder / "masks" / "e.bmp"
    (folder / "masks" / "e.png").unlink()
    Image.fromarray(stripes(0, 1)).save(mask)
    before, size = observed(folder), mask.stat().st_size
    del decoded[:]
    Image.fromarray(stripes(1, 2)).save(mask)
    os.utime(mask, ns=(0, time.time_ns() + 10**9))
    after = observed(folder)
    assert mask.stat().st_size == size and decoded == ["masks/e.bmp"]
    assert after["counts"]["e"] == {1: 288, 2: 288} and after["digest"] != before["digest"]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no time of change but that of content")
def test_a_file_whose_time_was_set_back_is_read_again(cache, folder):
    mask = folder / "masks" / "e.png"
    scanned(folder)
    stat = mask.stat()
    content = bytearray(mask.read_bytes())
    content[len(content) // 2] ^= 1
    mask.write_bytes(content)
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [found.path for found in scanned(folder).problems] == [mask]


def test_files_that_come_and_go_are_noticed(cache, folder, decoded):
    scanned(folder)
    del decoded[:]
    for kind in ("images", "masks"):
        shutil.copy(folder / kind / "a.png", folder / kind / "i.png")
        (folder / kind / "b.png").unlink()
    assert [pair.name for pair in scanned(folder).pairs] == list("acdefghi")
    assert sorted(decoded) == ["images/i.png", "masks/i.png"]
    assert "b.png" not in cache_file(cache).read_text()
    (folder / "masks" / "c.png").unlink()
    assert [found.kind for found in scanned(folder).problems] == ["no mask"]


def test_a_file_that_changes_after_the_start_has_another_fingerprint(cache, folder):
    data = SegmentationData(Data(source=Folder(path=str(folder)), size=(28, 28)))
    before = data.fingerprint("e", "0")
    Image.new("RGB", (24, 24)).save(folder / "images" / "e.png")
    assert data.fingerprint("e", "0") != before


# ---------------------------------------------------------------------- a cache that is no help


def _replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text().replace(old, new))


SPOILT: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "no text": lambda file: file.write_bytes(b"\xff\x00" * 100),
    "a number changed": _replaced('"0":384', '"0":383'),
    "a digest changed": _replaced('],"', '],"0'),
    "nested without end": lambda file: file.write_text("[" * 100000),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_damaged_cache_is_not_believed_and_made_anew(cache, folder, decoded, spoil):
    first = observed(folder)
    content = cache_file(cache).read_bytes()
    del decoded[:]
    spoil(cache_file(cache))
    assert cache_file(cache).is_dir() or cache_file(cache).read_bytes() != content
    assert observed(folder) == first
    assert len(decoded) >= 16
    assert cache_file(cache).is_dir() or cache_file(cache).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vitseg.data.scan_cache.READERS", ("images.py", "data/check.py")),
        ("PIL.__version__", "0.0"),
        ("PIL.Image.MAX_IMAGE_PIXELS", 10**6),
    ],
    ids=["code", "Pillow", "limit"],
)
def test_what_another_reader_cached_is_not_believed(
    cache, folder, decoded, monkeypatch, name, value
):
    scanned(folder)
    del decoded[:]
    monkeypatch.setattr(name, value)
    scanned(folder)
    assert len(decoded) == 16


def test_an_image_over_a_lower_limit_is_refused_though_it_was_cached(cache, folder, monkeypatch):
    assert not scanned(folder).problems
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(scanned(folder).problems) == 16


def test_without_a_place_for_the_cache_all_goes_on(tmp_path, folder, monkeypatch, decoded):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "file"))
    first = observed(folder)
    assert observed(folder) == first and len(decoded) == 4 * 16


def test_masks_that_are_photographs_do_not_swell_the_cache(cache, folder):
    rng = np.random.default_rng(1)
    for name in NAMES:
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        for kind in ("images", "masks"):
            noise.save(folder / kind / f"{name}.png")
    assert [found.kind for found in scanned(folder).problems] == ["unclear masks"]
    assert cache_file(cache).stat().st_size < 10_000
    assert [found.kind for found in scanned(folder).problems] == ["unclear masks"]


SCAN_OFTEN = """
import sys
from vitseg.data.folder import Scan
from vitseg.settings import Folder
for _ in range(50):
    pairs = Scan(Folder(path=sys.argv[1])).pairs
    print([pair.mask_scan.counts for pair in pairs])
"""


def test_processes_that_scan_at_once_spoil_nothing(cache, folder, decoded):
    """One image is replaced again and again meanwhile, so that the cache is written each time."""
    command = [sys.executable, "-c", SCAN_OFTEN, str(folder)]
    scanning = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    aside, n = folder / "images" / "h.tmp", 0
    while any(process.poll() is None for process in scanning):
        n = (n + 1) % 256
        Image.new("RGB", (24, 24), (n, 0, 0)).save(aside, "PNG")
        aside.replace(folder / "images" / "h.png")
        time.sleep(0.01)
    expected = f"{[pair.mask_scan.counts for pair in scanned(folder).pairs]}\n"
    assert [process.communicate()[0] for process in scanning] == 2 * [50 * expected]
    del decoded[:]
    scanned(folder)
    assert not decoded
    assert len(json.loads(cache_file(cache).read_bytes().partition(b"\n")[2])) == 16
