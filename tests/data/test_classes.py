"""Classes merged, renamed, ignored, and images left out: against tables worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import stripes, write_pairs

from vitseg.data.check import Check
from vitseg.data.dataset import SegmentationData
from vitseg.data.masks import MaskCode, class_map, recounted
from vitseg.errors import ConfigError, DataError, RecipeError
from vitseg.images import IGNORE
from vitseg.settings import Classes, Data, Folder, Generated, Merge

NAMES = ("ground", "skin", "wound", "slough", "ink")
CODE = MaskCode({}, NAMES, "")
WHOLE = Classes(
    merge=(Merge(into="tissue", classes=("wound", "slough")),),
    ignore=("skin",),
    drop_images_with=("ink",),
)


def test_a_map_is_the_table_worked_out_by_hand():
    found = class_map(CODE, WHOLE)
    assert found.classes == ("ground", "tissue")
    assert found.table[:5].tolist() == [0, IGNORE, 1, 1, IGNORE]
    assert set(found.table[5:].tolist()) == {IGNORE}
    assert found.dropping == {4}
    assert recounted({0: 10, 1: 20, 2: 3, 3: 4, IGNORE: 9}, found.table) == {0: 10, 1: 7}


def test_nothing_asked_changes_nothing():
    found = class_map(CODE, Classes())
    assert (found.classes, found.table[:5].tolist(), found.description) == (
        NAMES,
        [0, 1, 2, 3, 4],
        "",
    )


def test_a_merged_class_stands_where_its_first_stood_and_one_alone_is_renamed():
    merges = (Merge(into="all", classes=("ink", "skin")), Merge(into="lesion", classes=("wound",)))
    found = class_map(CODE, Classes(merge=merges))
    assert found.classes == ("ground", "all", "lesion", "slough")
    assert found.table[:5].tolist() == [0, 1, 2, 3, 1]


def test_a_class_can_be_merged_into_one_that_is_there():
    for classes in (("ground", "ink"), ("ink",)):
        found = class_map(CODE, Classes(merge=(Merge(into="ground", classes=classes),)))
        assert found.classes == ("ground", "skin", "wound", "slough")
        assert found.table[:5].tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (Classes(ignore=("wund",)), r"data\.classes: got 'wund'.*Did you mean 'wound'"),
        (Classes(drop_images_with=("x",)), r"data\.classes: got 'x'"),
        (Classes(merge=(Merge(into="a", classes=("ink", "inc")),)), r"data\.classes: got 'inc'"),
        (Classes(foreground=("inc",)), r"data\.classes\.foreground: got 'inc'"),
        (Classes(foreground=NAMES), "nothing would be background"),
        (Classes(ignore=NAMES), "some of the classes"),
    ],
    ids=str,
)
def test_a_class_that_is_not_there_is_an_error_with_the_nearest_name(cfg: Classes, said: str):
    with pytest.raises(ConfigError, match=said):
        class_map(CODE, cfg)


def test_two_things_cannot_be_done_with_one_class():
    with pytest.raises(RecipeError, match="ink is named twice"):
        Classes(ignore=("ink",), drop_images_with=("ink",))
    with pytest.raises(RecipeError, match="foreground has no effect"):
        Data(mode="multiclass", classes=Classes(foreground=("ink",)))


def data_of(tmp_path, **settings) -> Data:
    masks = {
        f"n{i}": stripes(*values)
        for i, values in enumerate([(0, 1, 2), (0, 3), (0, 2, 3), (0, 4), (1, 2), (0, 1)])
    }
    write_pairs(tmp_path, masks, classes=list(NAMES), encoding="index")
    return Data(source=Folder(path=str(tmp_path)), size=(28, 28), **settings)


def test_samples_images_and_scores_know_the_new_classes_alone(tmp_path):
    cfg = data_of(tmp_path, classes=WHOLE)
    data, plain = (
        SegmentationData(cfg),
        SegmentationData(cfg.model_copy(update={"classes": Classes()})),
    )
    names = [n for side in data.splits.values() for n in side]
    assert sorted(names) == ["n0", "n1", "n2", "n4", "n5"], "n3 holds ink"
    assert (data.classes, data.mode) == (("ground", "tissue"), "binary")
    assert "wound + slough = tissue; skin ignored; images with ink left out" in data.masks
    for name in names:
        before, after = plain.load(name)[1], data.load(name)[1]
        expected = np.select([before == 0, before == 1, before > 1], [0, IGNORE, 1])
        assert np.array_equal(after, expected)
        sample = data[name, "0"]
        assert set(sample.multiclass_mask.unique().tolist()) <= {0, 1, IGNORE}
        assert torch.equal(sample.multiclass_mask, sample.binary_mask)
        assert data.fingerprint(name, "0")[1] != plain.fingerprint(name, "0")[1], (
            "a kept mask of other classes is another mask"
        )
        assert data.fingerprint(name, "0")[0] == plain.fingerprint(name, "0")[0], (
            "features are of the image alone"
        )


def test_binary_mode_looks_for_the_classes_that_it_is_told(tmp_path):
    cfg = data_of(tmp_path, mode="binary", classes=Classes(foreground=("slough", "ink")))
    data = SegmentationData(cfg)
    assert data.classes == ("background", "foreground")
    assert data.trained(torch.tensor([0, 1, 2, 3, 4, IGNORE])).tolist() == [0, 0, 0, 1, 1, IGNORE]
    one = SegmentationData(cfg.model_copy(update={"classes": Classes(foreground=("ink",))}))
    assert one.classes == ("background", "ink")


def test_the_check_counts_the_new_classes(tmp_path):
    found = Check(data_of(tmp_path, classes=WHOLE))
    assert [c.name for c in found.classes] == ["ground", "tissue"]
    assert sum(found.splits.values()) == 5
    assert sum(sum(c.images.values()) for c in found.classes if c.name == "tissue") == 4
    assert "skin ignored" in found.masks


def test_generated_images_take_part():
    cfg = Classes(drop_images_with=("necrosis",))
    data = SegmentationData(Data(source=Generated(images=12, side=32), classes=cfg))
    whole = SegmentationData(Data(source=Generated(images=12, side=32)))
    without = {n for side in whole.splits.values() for n in side if 3 not in whole.load(n)[1]}
    kept = {n for side in data.splits.values() for n in side}
    assert 0 < len(kept) < 12
    assert kept == without
    assert data.all_classes == ("background", "granulation", "slough", "rim")
    with pytest.raises(DataError, match=r"drop_images_with=\('background',\): 0 image"):
        SegmentationData(
            Data(
                source=Generated(images=12, side=32),
                classes=Classes(drop_images_with=("background",)),
            )
        )


def test_the_check_says_nothing_of_images_that_are_left_out(tmp_path):
    masks = {"a": stripes(0, 2), "b": stripes(0), "c": stripes(0, 4), "d": stripes(0, 1, 2)}
    folder = write_pairs(tmp_path, masks, classes=list(NAMES), encoding="index")
    cfg = Data(source=Folder(path=str(folder)), classes=Classes(drop_images_with=("ink",)))
    check = Check(cfg)
    assert sorted(check.whole) == list("abd")
    assert [p.path.stem for p in check.notes if p.kind == "no foreground"] == ["b"]
    assert [p.path.stem for p in check.notes if p.kind == "tiny"] == list("abd")
