"""Every way in which masks store classes comes back exactly, or is refused; nothing is guessed in
silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import stripes, write_pairs
from PIL import Image

from vitseg.data.folder import read_folder
from vitseg.data.masks import read_raw
from vitseg.errors import DataError
from vitseg.images import IGNORE
from vitseg.settings import Folder

COLORS = ((0, 0, 0), (255, 0, 0), (0, 0, 255), (1, 2, 3))
CAMVID = ("0001TP_006690", "0006R0_f00930", "0016E5_07959", "Seq05VD_f00000")
FOUR, TWO = stripes(0, 1, 2, 3), stripes(0, 1)


def palette(ids: np.ndarray) -> Image.Image:
    """Class ids as indices into a palette whose colours say nothing about them."""
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([(251 * i) % 256 for i in range(768)])
    return image


def colored(mode: str) -> Callable[[np.ndarray], Image.Image]:
    return lambda ids: Image.fromarray(np.array(COLORS, dtype=np.uint8)[ids]).convert(mode)


def times(factor: int, dtype: type = np.uint8) -> Callable[[np.ndarray], Image.Image]:
    return lambda ids: Image.fromarray((ids.astype(dtype) * dtype(factor)).astype(dtype))


def storing(value: int, dtype: type = np.uint8) -> Callable[[np.ndarray], Image.Image]:
    """Ignored pixels stored as `value`, the classes as they are."""
    return lambda ids: Image.fromarray(np.where(ids == IGNORE, dtype(value), ids.astype(dtype)))


@dataclass
class Way:
    """How class ids are written into a mask file, what is declared about it, and what vitseg calls
    it.
    """

    write: Callable[[np.ndarray], Image.Image]
    said: str
    ids: np.ndarray = field(default_factory=lambda: FOUR)
    declared: dict[str, Any] = field(default_factory=dict)


TWO_IGNORED, FOUR_IGNORED = stripes(0, 1, IGNORE), stripes(0, 1, IGNORE, 2, 3)
WAYS = {
    "palette": Way(palette, "value = class (detected)"),
    "index": Way(Image.fromarray, "value = class (detected)"),
    "index, more classes than occur": Way(
        Image.fromarray, "value = class (declared)", declared={"classes": list("abcdefg")}
    ),
    "0 and 255": Way(times(255), "0 and 255 (detected)", TWO),
    "0 and 255, declared": Way(times(255), "0 and 255 (declared)", TWO, {"encoding": "binary_255"}),
    "0 and 1": Way(Image.fromarray, "0 and 1 (detected)", TWO),
    "1 bit": Way(lambda ids: Image.fromarray(ids == 1), "0 and 1 (detected)", TWO),
    "grey and alpha": Way(
        lambda ids: Image.fromarray(ids).convert("LA"), "value = class (detected)"
    ),
    "class x 15": Way(times(15), "value = class x 15 (detected)"),
    "class x 15, the origin's 11 classes": Way(
        times(15), "value = class x 15 (detected)", stripes(*range(11))
    ),
    "class x 15, declared": Way(
        times(15), "value = class x 15 (declared)", declared={"grey_factor": 15}
    ),
    "class x 3, declared": Way(
        times(3), "value = class x 3 (declared)", declared={"encoding": "grey", "grey_factor": 3}
    ),
    "class x 85, up to 255": Way(
        times(85), "value = class x 85 (declared)", declared={"grey_factor": 85}
    ),
    "RGB": Way(colored("RGB"), "4 colours (declared)", declared={"colors": COLORS}),
    "RGBA": Way(
        colored("RGBA"), "4 colours (declared)", declared={"encoding": "rgb", "colors": COLORS}
    ),
    "255 ignored": Way(
        storing(255),
        "value = class (detected), 255 is ignored",
        FOUR_IGNORED,
        {"ignore_value": 255},
    ),
    "7 ignored": Way(
        storing(7), "0 and 1 (detected), 7 is ignored", TWO_IGNORED, {"ignore_value": 7}
    ),
    "16 bit": Way(times(1, np.uint16), "value = class (detected)"),
    "16 bit, class x 255": Way(
        times(255, np.uint16),
        "value = class x 255 (declared)",
        stripes(*range(10)),
        {"grey_factor": 255},
    ),
    "16 bit, 65535 ignored": Way(
        storing(65535, np.uint16),
        "value = class (detected), 65535 is ignored",
        FOUR_IGNORED,
        {"ignore_value": 65535},
    ),
}


def code_of(folder: Path, **settings: Any):
    return read_folder(Folder(path=str(folder), **settings)).code


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_encoding_comes_back_exactly(way: Way, tmp_path: Path):
    folder = write_pairs(
        tmp_path, {"a": way.write(way.ids), "b": way.write(way.ids[:, ::-1].copy())}, **way.declared
    )
    code = code_of(folder)
    assert np.array_equal(code.decode(read_raw(folder / "masks" / "a.png")), way.ids)
    assert np.array_equal(code.decode(read_raw(folder / "masks" / "b.png")), way.ids[:, ::-1])
    assert all(part in code.description for part in re.split(r" (?=\()|, ", way.said))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_settings_of_the_recipe_do_what_classes_json_does(way: Way, tmp_path: Path):
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in way.declared.items()}
    code = code_of(write_pairs(tmp_path, {"a": way.write(way.ids)}), **settings)
    assert np.array_equal(code.decode(read_raw(tmp_path / "masks" / "a.png")), way.ids)


@pytest.mark.parametrize("way", ["palette", "RGB"])
def test_reading_such_masks_as_grey_would_have_lost_the_labels(way: str, tmp_path: Path):
    """The negative control: what PIL's own conversion makes of them."""
    WAYS[way].write(FOUR).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert not set(np.unique(np.asarray(image.convert("L")))) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("values", "question"),
    [
        ((0, 1, 255), "is 255 a class, or to be ignored"),
        ((0, 1, 2, 255), "is 255 a class, or to be ignored"),
        ((0, 85, 170, 255), "is 255 a class, or to be ignored"),
        ((0, 2, 4), "classes as they are, or class x 2"),
        ((0, 3), "classes as they are, or class x 3"),
        ((0, 4, 8), "classes as they are, or class x 4"),
    ],
)
def test_values_that_can_be_read_in_two_ways_are_refused_with_both(
    values: tuple[int, ...], question: str, tmp_path: Path
):
    with pytest.raises(DataError, match=question) as refused:
        code_of(write_pairs(tmp_path, {"a": stripes(*values)}))
    assert str(tmp_path) in refused.value.problem
    assert ", ".join(map(str, values)) in refused.value.problem
    assert "classes.json" in refused.value.mend


@pytest.mark.parametrize(
    "values", [(0, 15, 255), (0, 5, 255)], ids=["VOC's persons", "one class of Cityscapes"]
)
def test_255_beside_a_class_that_divides_it_is_asked_about_too(
    values: tuple[int, ...], tmp_path: Path
):
    with pytest.raises(DataError, match="255"):
        code_of(write_pairs(tmp_path, {"a": stripes(*values)}))


@pytest.mark.parametrize(
    ("values", "declared", "expected"),
    [
        ((0, 1, 255), {"ignore_value": 255}, {0: 0, 1: 1, 255: IGNORE}),
        ((0, 2, 4), {"encoding": "index"}, {0: 0, 2: 2, 4: 4}),
        ((0, 2, 4), {"encoding": "grey", "grey_factor": 2}, {0: 0, 2: 1, 4: 2}),
        ((0, 15, 30), {"encoding": "index"}, {0: 0, 15: 15, 30: 30}),
        ((0, 1), {"encoding": "index", "classes": ("a", "b", "c")}, {0: 0, 1: 1, 2: 2}),
    ],
)
def test_what_is_declared_settles_it_and_wins_over_what_would_be_detected(
    values, declared, expected, tmp_path: Path
):
    code = code_of(write_pairs(tmp_path, {"a": stripes(*values)}), **declared)
    assert {v: code.values[v] for v in expected} == expected
    assert "detected" not in code.description or "ignore_value" in declared


def test_the_recipe_wins_over_classes_json(tmp_path: Path):
    folder = write_pairs(
        tmp_path, {"a": stripes(0, 15, 30)}, grey_factor=15, classes=["a", "b", "c"]
    )
    assert code_of(folder).classes == ("a", "b", "c")
    assert code_of(folder, classes=("x", "y", "z")).classes == ("x", "y", "z")
    assert code_of(folder, encoding="grey", grey_factor=5, classes=tuple("0123456")).values[30] == 6


def test_camvid_is_recognised_by_its_names_and_says_so(tmp_path: Path):
    masks = {stem: stripes(*range(12)) for stem in CAMVID}
    code = code_of(write_pairs(tmp_path, masks))
    assert code.values == {i: i for i in range(11)} | {11: IGNORE}
    assert (code.classes[0], code.classes[10]) == ("sky", "bicyclist")
    assert "recognised: CamVid" in code.description
    assert "11 is ignored" in code.description


@pytest.mark.parametrize(
    ("stems", "highest", "declared"),
    [
        ([*CAMVID, "photo"], 11, {}),
        (CAMVID, 12, {}),
        (CAMVID, 11, {"classes": tuple("abcdefghijkl")}),
        (CAMVID, 11, {"encoding": "index"}),
    ],
    ids=[
        "another name among them",
        "a value that CamVid has not",
        "classes declared",
        "encoding declared",
    ],
)
def test_nothing_is_taken_for_camvid_that_is_not(
    stems, highest: int, declared: dict[str, Any], tmp_path: Path
):
    code = code_of(
        write_pairs(tmp_path, {stem: stripes(*range(highest + 1)) for stem in stems}), **declared
    )
    assert code.values == {i: i for i in range(highest + 1)}


def test_a_declared_ignore_value_survives_the_recognition_of_a_set(tmp_path: Path):
    code = code_of(write_pairs(tmp_path, {CAMVID[0]: stripes(0, 1, 11, 255)}), ignore_value=255)
    assert code.values[255] == IGNORE


def test_fewer_classes_than_camvid_has_are_not_replaced_by_its_own(tmp_path: Path):
    folder = write_pairs(tmp_path, {stem: stripes(*range(6)) for stem in CAMVID})
    with pytest.raises(DataError, match="labels outside the classes: 3 in 96 pixels"):
        code_of(folder, classes=("a", "b", "c"))


@pytest.mark.parametrize(
    ("pixels", "declared", "lost"),
    [
        (TWO * 255, {"encoding": "binary_255", "ignore_value": 255}, "foreground"),
        (TWO, {"encoding": "binary_1", "ignore_value": 0}, "background"),
        (
            stripes(0, 1, 2),
            {"encoding": "index", "classes": ("a", "b", "c"), "ignore_value": 2},
            "c",
        ),
        (stripes(0, 1, 2), {"classes": ("a", "b", "c"), "ignore_value": 2}, "c"),
        (FOUR, {"ignore_value": 2}, "class 2"),
        (FOUR * 15, {"grey_factor": 15, "ignore_value": 15}, "class 1"),
        (colored("RGB")(FOUR), {"colors": COLORS, "ignore_value": 0}, "background"),
    ],
    ids=["0 and 255", "0 and 1", "index", "by the names", "detected", "grey", "RGB"],
)
def test_an_ignore_value_never_takes_the_place_of_a_class(
    pixels, declared: dict[str, Any], lost: str, tmp_path: Path
):
    with pytest.raises(DataError) as refused:
        code_of(write_pairs(tmp_path, {"a": pixels}), **declared)
    assert (
        f"ignore_value={declared['ignore_value']} is how class {lost!r} is stored"
        in refused.value.problem
    )
    assert (
        "Leave ignore_value out, or store what is to be ignored as a value of its own."
        in refused.value.problem
    )


def test_beside_colours_the_ignored_value_is_a_grey_that_can_exist(tmp_path: Path):
    folder = write_pairs(tmp_path, {"a": colored("RGB")(FOUR)}, colors=COLORS)
    assert code_of(folder, ignore_value=7).values[0x070707] == IGNORE
    with pytest.raises(DataError, match=r"ignore_value=300 is no colour.*v in 0\.\.255"):
        code_of(folder, ignore_value=300)


def test_a_grey_factor_beside_masks_in_colour_is_refused_since_it_would_do_nothing(tmp_path: Path):
    folder = write_pairs(tmp_path, {"a": colored("RGB")(FOUR)}, colors=COLORS)
    with pytest.raises(
        DataError, match="grey_factor: got 15, which has no effect here; leave it out"
    ):
        code_of(folder, grey_factor=15)


def test_jpeg_masks_are_refused_because_compression_invents_labels(tmp_path: Path):
    write_pairs(tmp_path, {"a": TWO, "b": TWO})
    mask = tmp_path / "masks" / "a.png"
    Image.fromarray(TWO * 255).save(mask.with_suffix(".jpg"))
    mask.unlink()
    with pytest.raises(
        DataError, match=r"a\.jpg: .*a JPEG mask; compression invents labels; save masks as PNG"
    ):
        code_of(tmp_path)
    Image.fromarray(TWO * 255).save(mask, format="JPEG")  # the content decides, not the name
    mask.with_suffix(".jpg").unlink()
    with pytest.raises(DataError, match=r"a\.png: .*a JPEG mask"):
        code_of(tmp_path)


def test_jpeg_does_invent_labels(tmp_path: Path):
    """The negative control: what would have been trained on."""
    Image.fromarray((np.add.outer(np.arange(64), np.arange(64)) < 60).astype(np.uint8) * 255).save(
        tmp_path / "mask.jpg"
    )
    with Image.open(tmp_path / "mask.jpg") as image:
        assert len(np.unique(np.asarray(image))) > 20


def test_float_masks_are_refused(tmp_path: Path):
    write_pairs(tmp_path, {"a": TWO})
    (tmp_path / "masks" / "a.png").unlink()
    Image.fromarray(TWO.astype(np.float32)).save(tmp_path / "masks" / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: .*a mask in mode F; save masks as"):
        code_of(tmp_path)


def test_colours_need_a_map_and_the_error_lists_those_found(tmp_path: Path):
    with pytest.raises(DataError) as refused:
        code_of(write_pairs(tmp_path, {"a": colored("RGB")(FOUR)}))
    assert (
        "no colour map is declared; colours found: (0, 0, 0), (0, 0, 255), (1, 2, 3), (255, 0, 0)"
        in refused.value.problem
    )
    assert '"colors": [[r, g, b], ...] in classes.json' in refused.value.problem


@pytest.mark.parametrize(
    ("pixels", "declared", "said"),
    [
        (
            FOUR,
            {"classes": ["a", "b"], "encoding": "index"},
            "2 in 144 pixels, 3 in 144 pixels; allowed: 0, 1 (value = class",
        ),
        (stripes(0, 7), {"encoding": "binary_255"}, "7 in 288 pixels; allowed: 0, 255 (0 and 255"),
        (
            stripes(0, 15, 20),
            {"grey_factor": 15},
            "20 in 192 pixels; allowed: 0, 15 (value = class x 15",
        ),
        (
            colored("RGB")(TWO),
            {"colors": [[0, 0, 0]]},
            "(255, 0, 0) in 288 pixels; allowed: (0, 0, 0) (1 colours",
        ),
    ],
    ids=["index", "binary", "grey", "RGB"],
)
def test_labels_outside_the_classes_are_named_with_file_count_and_what_is_allowed(
    pixels, declared, said, tmp_path: Path
):
    with pytest.raises(DataError) as refused:
        code_of(write_pairs(tmp_path, {"strange": pixels}, **declared))
    assert (
        f"{tmp_path / 'masks' / 'strange.png'}: labels outside the classes: {said}"
        in refused.value.problem
    )
    assert "declared" in refused.value.problem


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"classes": ["a", "b", "c"], "encoding": "binary_1"}, "3 class names for 2 classes"),
        (
            {"classes": ["a"], "colors": [[0, 0, 0], [1, 1, 1]], "encoding": "rgb"},
            "1 class names for 2 classes",
        ),
        ({"clases": ["a", "b"]}, "clases"),
        ({"encoding": "gray"}, "gray"),
        ({"grey_factor": 1}, "grey_factor"),
    ],
    ids=[
        "names for a binary mask",
        "names for colours",
        "misspelt key",
        "misspelt encoding",
        "factor of 1",
    ],
)
def test_a_declaration_that_cannot_work_is_refused_by_name(
    declared: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(DataError) as refused:
        code_of(write_pairs(tmp_path, {"a": TWO}, **declared))
    assert said in str(refused.value)


@pytest.mark.parametrize("text", ["not JSON", "", "[1]"])
def test_a_classes_json_that_is_no_object_is_refused_by_name(text: str, tmp_path: Path):
    (write_pairs(tmp_path, {"a": TWO}) / "classes.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.json: .*It is a JSON object"):
        code_of(tmp_path)


def test_classes_json_is_found_below_the_home_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_pairs(tmp_path / "data", {"a": stripes(0, 15, 30)}, encoding="index")
    assert code_of(Path("~/data")).values[30] == 30


def test_a_grey_mask_among_coloured_ones_is_refused(tmp_path: Path):
    """A grey 255 would be read as the colour (0, 0, 255)."""
    masks = {"a": colored("RGB")(FOUR), "b": Image.fromarray(TWO * 255)}
    with pytest.raises(DataError, match=r"b\.png"):
        code_of(write_pairs(tmp_path, masks, colors=COLORS))
