"""Images, masks and data sets as they really come: row by row of the faults, each tried as a user
would meet it.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from builders import SIDE, stripes, to_image, write_pairs
from PIL import Image, ImageFile

import vitseg
from vitseg import cli
from vitseg.data.check import Check
from vitseg.data.dataset import SegmentationData
from vitseg.data.folder import read_folder
from vitseg.data.masks import read_raw
from vitseg.errors import ConfigError, DataError, RecipeError, RunError
from vitseg.events import BatchEnded, EpochEnded
from vitseg.images import IGNORE, open_rgb, size_of
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.recipe import Recipe
from vitseg.runs.run import resume, train
from vitseg.settings import Data, Folder, Model

TWO = stripes(0, 1)
Recipes = Callable[..., Recipe]


@pytest.fixture
def recipe_of(tiny_recipe: Recipe) -> Recipes:
    """Three short stages on a folder, on a canvas of 28 x 28 or as said."""

    def recipe(folder: Path, **settings: object) -> Recipe:
        usual = {
            "data.source": Folder(path=str(folder)),
            "data.size": [28, 28],
            "data.validation_fraction": 0.2,
            "device": "cpu",
        }
        return tiny_recipe.replace(
            usual | {path.replace("__", "."): value for path, value in settings.items()}
        )

    return recipe


@pytest.fixture(scope="module")
def model(encoders: dict[str, str]) -> Segmenter:
    return build_segmenter(Model(encoder=encoders["dinov2"]), ("a", "b", "c"), (70, 70), seed=0)


def refused(folder: Path, **settings: object) -> DataError:
    with pytest.raises(DataError) as error:
        read_folder(Folder(path=str(folder), **settings))
    return error.value


def data_of(folder: Path, **settings: object) -> SegmentationData:
    return SegmentationData(Data(source=Folder(path=str(folder), **settings), size=(28, 28)))


def losses(events: list) -> list[float]:
    return [e.loss for e in events if isinstance(e, BatchEnded)]


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("decoder", ["lean", "unet", "linear"])
def test_row_38_a_last_batch_of_one_image_is_trained_on(
    decoder: str, recipe_of: Recipes, tmp_path: Path
):
    folder = write_pairs(tmp_path / "data", {str(n): TWO for n in range(6)})
    recipe = recipe_of(folder, batch_size=4, model__decoder=decoder)
    assert len(SegmentationData(recipe.data).splits["train"]) % 4 == 1
    found = losses(list(train(recipe, tmp_path / "run", reuse=False)))
    assert len(found) == 2 * 5 and all(map(math.isfinite, found))


def test_row_38_a_batch_norm_over_a_single_patch_is_refused_before_anything_is_trained(
    recipe_of: Recipes, tmp_path: Path
):
    folder = write_pairs(tmp_path / "data", {str(n): TWO for n in range(6)})
    recipe = recipe_of(folder, batch_size=4, model__decoder="linear", data__size=[14, 14])
    with pytest.raises(
        ConfigError,
        match=(
            r"batch_size: got 4; allowed: what does not leave 1 of 5 images over.*raise "
            r"data\.size"
        ),
    ):
        list(train(recipe, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert losses(
        list(train(recipe.replace({"batch_size": 5}), tmp_path / "five", reuse=False))
    )  # the mend


# ---------------------------------------------------------------------- files


def test_row_39_spoilt_files_are_listed_with_their_reason_or_left_out_and_counted(tmp_path: Path):
    folder = write_pairs(tmp_path, dict.fromkeys("abcdefgh", TWO))
    whole = (folder / "images" / "a.png").read_bytes()
    spoilt = {"a": whole[: len(whole) // 2], "b": whole[:-30], "c": b"", "d": b"hello"}
    for name, content in spoilt.items():
        (folder / "images" / f"{name}.png").write_bytes(content)
    _, *lines = refused(folder).problem.splitlines()
    assert [line.strip().partition(": ")[0] for line in lines] == [
        str(folder / "images" / f"{name}.png") for name in spoilt
    ]
    for line, reason in zip(
        lines,
        ("truncated", "truncated", "not a known image format (0 bytes)", "(5 bytes)"),
        strict=True,
    ):
        assert reason in line
    data = data_of(folder, on_problem="skip")
    assert sorted(data.images) == list("efgh") and "4 files with problems" in data.masks


@pytest.mark.parametrize("orientation", [1, 6])
def test_row_40_sizes_that_differ_once_upright_are_both_named(orientation: int, tmp_path: Path):
    folder = write_pairs(
        tmp_path, {"a": np.zeros((20, 40), np.uint8), "b": np.zeros((20, 40), np.uint8)}
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(folder / "images" / "a.png", exif=exif)
    if orientation == 1:
        assert len(read_folder(Folder(path=str(folder))).pairs) == 2
        return
    (line,) = refused(folder).problem.splitlines()[1:]
    says = (
        "size differs from its image (image 20x40, mask 40x20 pixels once upright: the image "
        "has EXIF orientation 6, its"
    )
    hint = (
        "If the mask was drawn on the stored pixels, save it with the image's: mask.save(path, "
        "exif=image.getexif())."
    )
    assert line.strip() == f"{folder}/masks/a.png: {says} mask 1 (1 is none)). {hint}"


def test_row_41_an_unknown_label_is_named_with_file_value_count_and_what_is_allowed(tmp_path: Path):
    strange = np.zeros((SIDE, SIDE), np.uint8)
    strange[:2, :3], strange[5, 5] = 7, 4
    folder = write_pairs(
        tmp_path, {"a": TWO, "b": strange}, classes=["ground", "wound"], encoding="index"
    )
    (line,) = refused(folder).problem.splitlines()[1:]
    says = (
        "labels outside the classes: 4 in 1 pixels, 7 in 6 pixels; allowed: 0, 1 (value = "
        "class, 2 classes (declared))."
    )
    assert line.strip() == f"{folder}/masks/b.png: {says}"


def test_row_41_a_value_below_zero_is_an_unknown_label_too(tmp_path: Path):
    folder = write_pairs(
        tmp_path, {"a": TWO, "b": TWO, "c": TWO}, classes=["ground", "wound"], encoding="index"
    )
    (folder / "masks" / "b.png").unlink()
    below = np.zeros((SIDE, SIDE), np.int32)
    below[0, 0] = -1
    Image.fromarray(below).save(folder / "masks" / "b.tif")
    assert "labels outside the classes: -1 in 1 pixels" in refused(folder).problem


def test_row_42_the_indices_of_a_palette_are_the_labels(tmp_path: Path):
    ids = stripes(0, 1, 2)
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    folder = write_pairs(tmp_path, {"a": image, "b": image})
    data = data_of(folder)
    assert np.array_equal(data.load("a")[1], ids)
    with Image.open(folder / "masks" / "a.png") as stored:  # the negative control
        assert stored.mode == "P" and sorted(
            set(np.asarray(stored.convert("L")).ravel().tolist())
        ) == [0, 76, 150]


def test_row_44_sixteen_bits_are_kept_in_a_mask_and_scaled_in_an_image(tmp_path: Path):
    folder = write_pairs(
        tmp_path, {name: stripes(0, 1000, 2000, dtype=np.uint16) for name in "ab"}, encoding="index"
    )
    assert "would make 2001 classes" in str(refused(folder))
    write_pairs(folder, {name: stripes(0, 250, 65535, dtype=np.uint16) for name in "ab"})
    (folder / "classes.json").write_text(
        '{"encoding": "grey", "grey_factor": 250, "ignore_value": 65535}'
    )
    Image.fromarray(np.full((SIDE, SIDE), 257 * 100, np.uint16)).save(folder / "images" / "a.png")
    image, ids = data_of(folder).load("a")
    assert np.array_equal(ids, stripes(0, 1, IGNORE)) and set(
        np.asarray(image).ravel().tolist()
    ) == {100}


@pytest.mark.parametrize(
    ("values", "declared", "expected"),
    [
        ((0, 255), {}, {0: 0, 255: 1}),
        ((0, 1), {}, {0: 0, 1: 1}),
        ((0, 1, 255), {"ignore_value": 255}, {0: 0, 1: 1, 255: IGNORE}),
        ((0, 1, 255), {"encoding": "binary_255", "ignore_value": 1}, {0: 0, 255: 1, 1: IGNORE}),
        ((0, 1, 255), {}, None),
    ],
    ids=["0 and 255", "0 and 1", "255 ignored", "1 ignored", "ambiguous"],
)
def test_row_45_what_255_means_is_read_declared_or_asked_for(
    values: tuple[int, ...], declared: dict, expected, tmp_path: Path
):
    folder = write_pairs(tmp_path, {name: stripes(*values) for name in "ab"}, **declared)
    if expected is None:
        assert "is 255 a class, or to be ignored?" in refused(folder).problem
        return
    code = read_folder(Folder(path=str(folder))).code
    assert code.values == expected
    assert np.array_equal(
        code.decode(read_raw(folder / "masks" / "a.png")), stripes(*(expected[v] for v in values))
    )


MODES = {
    "1": (Image.new("1", (8, 8), 1), ".png", (255, 255, 255)),
    "L": (Image.new("L", (8, 8), 7), ".bmp", (7, 7, 7)),
    "LA": (Image.new("LA", (8, 8), (9, 255)), ".png", (9, 9, 9)),
    "RGBA": (Image.new("RGBA", (8, 8), (1, 2, 3, 255)), ".webp", (1, 2, 3)),
    "I;16": (Image.fromarray(np.full((8, 8), 257 * 9, np.uint16)), ".tif", (9, 9, 9)),
    "I;16B": (Image.fromarray(np.full((8, 8), 257 * 9, ">u2")), ".tif", (9, 9, 9)),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), ".tif", (255, 0, 0)),
    "CMYK photograph": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), ".jpg", (255, 0, 0)),
}


@pytest.mark.parametrize(("image", "suffix", "color"), MODES.values(), ids=MODES)
def test_row_47_every_mode_is_read_from_its_file_as_rgb(
    image: Image.Image, suffix: str, color: tuple, tmp_path: Path
):
    path = tmp_path / f"image{suffix}"
    image.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    read = np.asarray(open_rgb(path))
    assert read.shape == (8, 8, 3) and np.abs(read.astype(int) - color).max() <= (
        3 if suffix == ".jpg" else 0
    )


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".gif"])
def test_row_47_a_file_of_several_pictures_is_refused_and_one_of_a_single_picture_is_read(
    suffix: str, model, tmp_path: Path
):
    first, second = (Image.fromarray(np.full((20, 20), grey, np.uint8)) for grey in (0, 200))
    first.save(tmp_path / f"several{suffix}", save_all=True, append_images=[second])
    first.save(tmp_path / f"single{suffix}")
    with pytest.raises(DataError, match="it holds 2 pictures; save the one that is meant"):
        model.predict(tmp_path / f"several{suffix}")
    assert model.predict(tmp_path / f"single{suffix}").shape == (20, 20)


UPRIGHT = np.random.default_rng(0).integers(0, 3, (30, 20), np.uint8)
AS_STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("tagged", ["in front", "behind the pixels"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", AS_STORED)
def test_row_48_exif_rotated_is_turned_for_image_and_mask(
    orientation: int, suffix: str, tagged: str, tmp_path: Path
):
    """An image by its tag, a mask as painted upright, a mask by its own tag; the header says what
    the pixels say.
    """
    folder = write_pairs(tmp_path, {"painted": UPRIGHT, "tagged": UPRIGHT})
    stored = np.ascontiguousarray(AS_STORED[orientation](UPRIGHT))

    def save(pixels: np.ndarray, path: Path) -> Path:
        exif, options = Image.Exif(), {"lossless": True} if suffix == ".webp" else {}
        exif[0x0112] = orientation
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(suffix), exif=exif, **options)
        if tagged == "behind the pixels" and suffix == ".png":
            _move_exif_behind(path.with_suffix(suffix))
        return path.with_suffix(suffix)

    images = [
        save(np.stack([stored * 100] * 3, axis=-1), folder / "images" / f"{name}.png")
        for name in ("painted", "tagged")
    ]
    if suffix != ".webp":  # has no grey
        save(stored, folder / "masks" / "tagged.png")
    data = data_of(folder)
    for name in ("painted", "tagged"):
        image, ids = data.load(name)
        assert np.array_equal(ids, UPRIGHT) and np.array_equal(
            np.asarray(image)[..., 0], UPRIGHT * 100
        )
    if tagged == "in front" or suffix != ".png":
        assert size_of(images[0]) == (30, 20)
    with Image.open(
        images[0]
    ) as raw:  # the negative control; of a TIFF Pillow itself turns the pixels
        assert suffix == ".tif" or (np.asarray(raw).shape[:2] == (30, 20)) == (orientation < 5)


def _move_exif_behind(path: Path) -> None:
    """The chunk that holds the tag, behind those that hold the pixels: allowed, and met with."""
    content, chunks, at = path.read_bytes(), [], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        chunks.append(content[at:end])
        at = end
    exif = [c for c in chunks if c[4:8] == b"eXIf"]
    assert exif
    rest = [c for c in chunks if c[4:8] != b"eXIf"]
    path.write_bytes(content[:8] + b"".join([*rest[:-1], *exif, rest[-1]]))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (60000, 1500), (10000, 9000)])
def test_row_49_an_enormous_image_is_named_with_the_limit_and_never_decoded(
    width, height, model, tmp_path: Path, monkeypatch
):
    folder = write_pairs(tmp_path, dict.fromkeys("abc", TWO))
    head = b"IHDR" + pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [
        pack(">I", len(c) - 4) + c + pack(">I", zlib.crc32(c))
        for c in (head, b"IDAT" + zlib.compress(b"\0"))
    ]
    bomb = folder / "images" / "b.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    load = ImageFile.ImageFile.load

    def small_ones_only(self: ImageFile.ImageFile) -> object:
        assert self.width * self.height < 10**6
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", small_ones_only)
    (line,) = refused(folder).problem.splitlines()[1:]
    assert line.strip().startswith(f"{bomb}: cannot be read (") and "pixels" in line
    with pytest.raises(DataError, match="cannot be read as an image"):
        model.predict(bomb)


# ---------------------------------------------------------------------- names


NAMES = (
    "with space",
    "🙂👩‍🔬",
    "שלום",
    "-dash",
    "100%s",
    "%2e",
    "ünïcödé",
    unicodedata.normalize("NFD", "é è"),
    "a\nb",
    "漢字" * 2 + "x" * 238,
    "<b>'\"&",
    "$(id)",
    "*?[x]",
    "con",
    ".. x",
)


def test_row_50_unusual_names_work_from_the_check_to_the_prediction(
    recipe_of: Recipes, tmp_path: Path, capsys
):
    assert max(len(f"{name}".encode()) for name in NAMES) == 250
    places = [n for n in NAMES if not n.startswith(".")]
    folder = write_pairs(tmp_path / "ein Ördner\u202e 100%", dict.fromkeys(places, TWO))
    for seed, image in enumerate(sorted((folder / "images").iterdir())):
        noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(noise).save(image)
    report = vitseg.check(folder)
    assert report.ok and report.check.found == len(places) and not report.check.warnings
    recipe = recipe_of(folder, batch_size=4)
    assert set(SegmentationData(recipe.data).images) == set(places)
    assert losses(list(train(recipe, tmp_path / "run", reuse=False)))
    vitseg.report(tmp_path / "run")
    assert (
        cli.main(
            [
                "predict",
                str(tmp_path / "run"),
                str(folder / "images"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == set(places)
    (folder / "masks" / "a\nb.png").unlink()
    assert cli.main(["check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "images/a\\nb.png: no mask of that name in masks/." in said and "\u202e" not in said


def test_row_50_a_name_that_is_no_text_is_shown_in_escapes(tmp_path: Path, capsys):
    folder = write_pairs(tmp_path / "data", dict.fromkeys("abc", TWO))
    for kind in ("images", "masks"):
        (folder / kind / "c.png").rename(folder / kind / os.fsdecode(b"\xff.png"))
    page = tmp_path / "page.html"
    assert (
        cli.main(
            ["check", str(folder), "--html", str(page), "--json", str(tmp_path / "check.json")]
        )
        == 1
    )
    assert (
        r"\udcff.png: its name is no text in UTF-8" in capsys.readouterr().out
        and r"\udcff.png" in page.read_text("utf-8")
    )
    assert len(json.loads((tmp_path / "check.json").read_text("utf-8"))["problems"]) == 2
    assert sorted(data_of(folder, on_problem="skip").images) == ["a", "b"]


@pytest.mark.parametrize(
    "path", ["a" * 300, "/tmp/" + "b/" * 3000], ids=["a long name", "a long path"]
)
def test_row_51_a_path_that_is_too_long_is_a_sentence(path: str):
    for call in (vitseg.check, lambda p: list(vitseg.train(vitseg.quick(p)))):
        with pytest.raises(DataError, match=r"cannot be looked into \(File name too long\)"):
            call(path)


def test_row_52_links_are_followed_named_where_they_lead_out_and_refused_where_they_lead_nowhere(
    tmp_path: Path,
):
    folder = write_pairs(tmp_path / "data", dict.fromkeys("abcd", TWO))
    inside, outside = folder / "kept.png", tmp_path / "outside.png"
    for image, place in (("a", inside), ("b", outside)):
        (folder / "images" / f"{image}.png").rename(place)
        (folder / "images" / f"{image}.png").symlink_to(place)
    check = Check(Data(source=Folder(path=str(folder))))
    assert [p.says for p in check.warnings if p.kind == "link that leads out"] == [
        f"{folder}/images/b.png: a link to {outside}, outside the data set's folder."
    ]
    assert not check.problems and len(read_folder(Folder(path=str(folder))).pairs) == 4
    inside.unlink()
    for mask in (folder / "masks").glob("c.png"):
        mask.unlink()
        mask.symlink_to(mask.name)
    lines = [line.strip() for line in refused(folder).problem.splitlines()[1:]]
    assert lines == [
        (f"{folder}/images/a.png: cannot be read (a link that leads nowhere, to {inside})."),
        f"{folder}/masks/c.png: cannot be read (a link that leads nowhere, to c.png).",
    ]


def test_row_52_a_folder_that_is_a_link_to_itself_is_a_sentence(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    for call in (vitseg.check, lambda p: list(vitseg.train(vitseg.quick(p)))):
        with pytest.raises(
            DataError, match=r"cannot be looked into \(Too many levels of symbolic links"
        ):
            call(tmp_path / "loop")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd"])
def test_row_53_a_split_that_names_files_elsewhere_opens_none(
    name: str, recipe_of: Recipes, tmp_path: Path
):
    folder = write_pairs(tmp_path / "data", {str(n): TWO for n in range(6)})
    events = train(recipe_of(folder), tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, EpochEnded))
    events.close()
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    split["train"][0] = name
    (tmp_path / "run" / "split.json").write_text(json.dumps(split))
    with pytest.raises(RunError, match="the images are not those of the run"):
        list(resume(tmp_path / "run"))


# ---------------------------------------------------------------------- sets


def test_row_55_all_missing_and_all_orphan_masks_are_listed(tmp_path: Path):
    folder = write_pairs(tmp_path, dict.fromkeys("abcdefgh", TWO))
    for name in "abc":
        (folder / "masks" / f"{name}.png").unlink()
    for name in "fgh":
        (folder / "images" / f"{name}.png").unlink()
    assert [line.strip() for line in refused(folder).problem.splitlines()[1:]] == [
        *(f"{folder}/images/{name}.png: no mask of that name in masks/." for name in "abc"),
        *(f"{folder}/masks/{name}.png: no image of that name in images/." for name in "fgh"),
    ]


def test_row_56_two_files_of_one_name_are_both_named(tmp_path: Path):
    folder = write_pairs(tmp_path, dict.fromkeys(("a", "b", "B", "c"), TWO))
    to_image(TWO).save(folder / "images" / "a.bmp")
    assert [line.strip() for line in refused(folder).problem.splitlines()[1:]] == [
        f"{folder}/images/B.png: has the same name as b.png (ignoring suffix and capitals).",
        f"{folder}/images/a.bmp: has the same name as a.png (ignoring suffix and capitals).",
        f"{folder}/masks/B.png: has the same name as b.png (ignoring suffix and capitals).",
    ]


def test_row_57_an_empty_set_an_empty_split_and_a_single_image_are_refused_by_name(tmp_path: Path):
    assert "no image found" in str(refused(write_pairs(tmp_path / "empty", {})))
    write_pairs(tmp_path / "halves" / "train", {"a": TWO})
    write_pairs(tmp_path / "halves" / "validation", {})
    assert data_of(write_pairs(tmp_path / "two", {"a": TWO, "b": TWO})).splits[
        "validation"
    ]  # two are enough
    for folder, said in (
        ("one", r"1 image\(s\) in 1 group\(s\) cannot be split"),
        ("halves", r"1 image\(s\) in 1 group\(s\) cannot be split"),
    ):
        if folder == "one":
            write_pairs(tmp_path / folder, {"a": TWO})
        with pytest.raises(DataError, match=said):
            data_of(tmp_path / folder)
    write_pairs(tmp_path / "no train" / "train", {})
    write_pairs(tmp_path / "no train" / "validation", {"a": TWO})
    with pytest.raises(DataError, match="train/ holds no images"):
        data_of(tmp_path / "no train")


def test_row_57_fewer_images_than_a_batch_make_one_step_an_epoch(
    recipe_of: Recipes, tmp_path: Path
):
    folder = write_pairs(tmp_path / "data", {"a": TWO, "b": TWO})
    events = list(train(recipe_of(folder, batch_size=16), tmp_path / "run", reuse=False))
    assert len(losses(events)) == 2 + 2 + 1 and all(map(math.isfinite, losses(events)))


def scores_of(recipe: Recipe, run: Path) -> list[dict]:
    return [e.validation for e in train(recipe, run, reuse=False) if isinstance(e, EpochEnded)]


def test_row_58_a_class_that_validation_lacks_is_none_and_the_mean_is_over_the_others(
    recipe_of: Recipes, tmp_path: Path
):
    for split, values in (("train", (0, 1, 2)), ("validation", (0, 1))):
        write_pairs(tmp_path / "data" / split, {name: stripes(*values) for name in "abcd"})
    (tmp_path / "data" / "classes.json").write_text(
        '{"classes": ["a", "b", "c"], "encoding": "index"}'
    )
    for score in scores_of(recipe_of(tmp_path / "data"), tmp_path / "run"):
        first, second, absent = score["per_class_iou"]
        assert absent is None and score["iou"] == pytest.approx((first + second) / 2)


def test_row_58_one_class_alone_trains_and_has_no_iou_of_what_is_not_there(
    recipe_of: Recipes, tmp_path: Path
):
    folder = write_pairs(
        tmp_path / "data", {str(n): stripes(0) for n in range(6)}, classes=["ground", "wound"]
    )
    scores = scores_of(recipe_of(folder), tmp_path / "run")
    assert len(scores) == 5 and all(0 <= s["accuracy"] <= 1 for s in scores)
    assert {score["iou"] for score in scores} == {None}, "neither 0 nor 1, whatever was predicted"


def test_row_59_masks_that_are_ignored_altogether_make_no_nan_and_are_counted(
    recipe_of: Recipes, tmp_path: Path
):
    masks = {str(n): stripes(9) if n < 4 else TWO for n in range(8)}
    folder = write_pairs(
        tmp_path / "data", masks, classes=["ground", "wound"], encoding="index", ignore_value=9
    )
    notes = [
        p for p in Check(Data(source=Folder(path=str(folder)))).notes if p.kind == "all ignored"
    ]
    assert sorted(p.path.stem for p in notes) == list("0123")
    recipe = recipe_of(folder, batch_size=1)
    events = list(train(recipe, tmp_path / "run", reuse=False))
    ignored = sum(name in "0123" for name in SegmentationData(recipe.data).splits["train"])
    steps = {e.step: e.loss for e in events if isinstance(e, BatchEnded) and e.epoch == 1}
    assert (
        all(map(math.isfinite, losses(events))) and list(steps.values()).count(0.0) == ignored > 0
    )


@pytest.mark.parametrize("side", [*range(1, 43)])
def test_row_61_an_image_of_any_size_comes_back_at_its_own(side: int, model: Segmenter):
    pixels = np.random.default_rng(side).integers(0, 256, (side, 50 - side, 3), np.uint8)
    assert model.predict(pixels).shape == (side, 50 - side)


def test_row_61_images_below_a_patch_are_trained_on_and_canvases_below_one_are_refused(
    recipe_of: Recipes, tmp_path: Path
):
    folder = write_pairs(tmp_path / "data", {str(n): TWO[: 3 + n, :5] for n in range(6)})
    assert all(
        map(math.isfinite, losses(list(train(recipe_of(folder), tmp_path / "run", reuse=False))))
    )
    assert [p.kind for p in vitseg.check(folder).check.notes] == ["tiny"] * 6
    with pytest.raises(
        RecipeError, match=r"data\.size\.0: got 13; allowed: greater than or equal to 14"
    ):
        recipe_of(folder, data__size=[13, 28])


@pytest.mark.parametrize("part", ["image", "mask"])
def test_row_62_a_file_that_changes_while_training_is_named_and_what_was_saved_stays(
    part, recipe_of: Recipes, tmp_path: Path
):
    folder = write_pairs(tmp_path / "data", {str(n): TWO for n in range(6)})
    recipe = recipe_of(folder, data__views="fresh", data__augment={}, cache=False)
    events = train(recipe, tmp_path / "run", reuse=False)
    next(e for e in events if isinstance(e, EpochEnded))
    for path in (folder / f"{part}s").iterdir():
        to_image(TWO[:20]).convert("RGB" if part == "image" else "L").save(path)
    with pytest.raises(
        DataError, match=rf"/{part}s/\d\.png.*changed or vanished since it was first looked at"
    ):
        list(events)
    assert list((tmp_path / "run" / "checkpoints").iterdir())
