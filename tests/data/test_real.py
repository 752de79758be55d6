"""The real sets are read as what they are."""

from __future__ import annotations

import pytest

from vitseg.data.dataset import SegmentationData
from vitseg.images import IGNORE
from vitseg.presets import quick

pytestmark = pytest.mark.real


def test_wounds_are_binary_and_some_masks_are_empty(real_data):
    data = SegmentationData(quick(real_data / "fuseg").data)
    assert (data.mode, data.masks) == ("binary", "0 and 255 (detected)")
    assert {split: len(names) for split, names in data.splits.items()} == {
        "train": 320,
        "validation": 80,
        "test": 0,
    }
    assert {tuple(data.load(name)[1].shape) for name in data.splits["validation"]} == {(256, 256)}


def test_road_scenes_have_eleven_classes_and_void_counts_nowhere(real_data):
    data = SegmentationData(quick(real_data / "camvid").data)
    assert (data.mode, len(data.classes), data.classes[8]) == ("multiclass", 11, "car")
    assert {split: len(names) for split, names in data.splits.items()} == {
        "train": 123,
        "validation": 34,
        "test": 0,
    }
    found = {
        int(v)
        for name in data.splits["validation"]
        for v in set(data.load(name)[1].ravel().tolist())
    }
    assert found == {*range(11), IGNORE}
