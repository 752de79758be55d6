"""The panel of views shows the views that are asked for, and says what was done to each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from builders import stripes, write_pairs

import vitseg
from vitseg.effects import Blur, Crop, RightAngle


def panel(columns: int = 3, **settings):
    cfg = {
        "source": vitseg.Generated(images=6, classes=3, side=48),
        "size": (56, 56),
        "effects": (Blur(p=1.0), RightAngle()),
    }
    data = vitseg.SegmentationData(vitseg.Data(**cfg | settings))
    _, image, view, shown = vitseg.show_views(data, columns, 60).children
    return data, image, view, shown


def titles(shown) -> list[str]:
    return re.findall(r"<figcaption>view ([^:<]*):", shown.value)


def test_views_stand_side_by_side_and_the_slider_moves_on():
    data, image, view, shown = panel(views=6)
    assert (image.description, view.description) == ("Image", "View")
    assert titles(shown) == ["0", "1", "2"]
    assert shown.value.count("data:image/png;base64,") == 4  # the last is the key of colours
    view.value = 3
    assert titles(shown) == ["3", "4", "5"]
    assert (view.min, view.max) == (0, 3)
    assert {name for _, name in image.options} == {
        name for split in data.splits.values() for name in split
    }


def test_each_is_said_to_be_what_it_is():
    data, image, _, shown = panel(views=3, crop=Crop(p=1.0))
    clean, *others = re.findall(r": ([^<]*)</figcaption>", shown.value)
    assert clean == "clean"
    assert all(words.startswith("cropped, ") and "blur" in words for words in others)
    before = shown.value
    image.value = data.splits["validation"][0]
    assert shown.value != before


def test_fresh_views_are_those_of_the_epochs():
    assert titles(panel(views="fresh")[3]) == ["fresh 1 1", "fresh 1 2", "fresh 1 3"]


def test_the_clean_view_alone_needs_no_slider():
    _, _, view, shown = panel(views=1, effects=())
    assert titles(shown) == ["0"]
    assert view.disabled


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_the_key_names_the_classes_that_are_trained(mode: str, monkeypatch: pytest.MonkeyPatch):
    from vitseg.ui import pictures

    named = []
    monkeypatch.setattr(
        pictures,
        "legend",
        lambda classes, width: named.append(classes) or pictures.Image.new("RGB", (9, 9)),
    )
    data = panel(mode=mode)[0]
    assert named == [data.classes]
    assert len(data.classes) == {"binary": 2, "multiclass": 3}[mode]


def test_a_file_that_has_vanished_is_a_sentence_not_a_traceback(tmp_path: Path):
    write_pairs(tmp_path, {name: stripes(0, 1).astype(np.uint8) for name in "abcdef"})
    data, image, _, shown = panel(source=vitseg.Folder(path=str(tmp_path)))
    gone = data.splits["train"][1]
    data.images[gone].image.unlink()
    image.value = gone
    assert "changed or vanished" in shown.value
    assert "class=bad" in shown.value
