"""Splits that can be repeated and keep groups together; batches that are the same for any number of
workers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import SIDE, stripes, write_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitseg.data.dataset import SegmentationData
from vitseg.data.synthetic import generate
from vitseg.errors import ConfigError, DataError
from vitseg.images import FILL, IGNORE
from vitseg.settings import Augment, Data, Folder, Generated

SIZE = (28, 28)


def generated(images: int = 20, **settings) -> SegmentationData:
    return SegmentationData(
        Data(**{"source": Generated(images=images, classes=3, side=32), "size": SIZE} | settings)
    )


def in_folder(folder: Path, **settings) -> SegmentationData:
    return SegmentationData(Data(source=Folder(path=str(folder)), size=SIZE, **settings))


def as_binary(mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask == IGNORE, IGNORE, (mask > 0).long())


@pytest.fixture
def wards(tmp_path: Path) -> Path:
    """Twelve images of four patients."""
    return write_pairs(tmp_path / "wards", {f"p{i % 4}_{i:02}": stripes(0, 1) for i in range(12)})


# ---------------------------------------------------------------------- splits


def test_split_is_the_one_that_the_seed_has_always_given():
    numbers = [int(name[-2:]) for name in generated(images=10).splits["validation"]]
    assert numbers == [3, 4]
    assert [int(name[-2:]) for name in generated(images=10, split_seed=1).splits["validation"]] == [
        2,
        8,
    ]


def test_split_depends_on_split_seed_and_fraction_alone():
    first = generated().splits
    for other in ({"view_seed": 5}, {"views": "fresh"}, {"mode": "binary"}, {"size": (42, 56)}):
        assert generated(**other).splits == first
    assert generated(split_seed=1).splits != first
    assert generated(validation_fraction=0.5).splits != first


def test_split_does_not_depend_on_the_order_of_the_files(
    wards: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = in_folder(wards).splits
    forwards = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(forwards(self), reverse=True))
    assert in_folder(wards).splits == expected


@pytest.mark.parametrize(("fraction", "held_out"), [(0.2, 4), (0.5, 10), (0.01, 1), (0.99, 19)])
def test_validation_gets_its_fraction_and_both_sides_get_something(fraction: float, held_out: int):
    splits = generated(validation_fraction=fraction).splits
    assert (len(splits["train"]), len(splits["validation"]), splits["test"]) == (
        20 - held_out,
        held_out,
        [],
    )
    assert set(splits["train"]).isdisjoint(splits["validation"])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**9), fraction=st.floats(0.01, 0.99))
@pytest.mark.parametrize("group", [r"-00(\d)", r"\d$"], ids=["first group", "whole match"])
def test_a_group_is_never_on_two_sides(group: str, seed: int, fraction: float):
    splits = generated(images=40, split_seed=seed, validation_fraction=fraction, group=group).splits
    position = -2 if "(" in group else -1
    sides = [{name[position] for name in splits[side]} for side in ("train", "validation")]
    assert all(sides)
    assert sides[0].isdisjoint(sides[1])
    assert sum(map(len, splits.values())) == 40


def test_without_a_group_the_patients_do_get_mixed(wards: Path):
    """The negative control."""
    patients = {
        side: {name[:2] for name in in_folder(wards).splits[side]}
        for side in ("train", "validation")
    }
    assert patients["train"] & patients["validation"]
    kept = in_folder(wards, group=r"(p\d)_").splits
    assert not {n[:2] for n in kept["train"]} & {n[:2] for n in kept["validation"]}


def test_saved_splits_are_kept_as_they_are(tmp_path: Path):
    for split, stems in {"train": "abc", "validation": "de", "test": "a"}.items():
        write_pairs(tmp_path / split, {stem: stripes(0, 1) for stem in stems})
    assert in_folder(tmp_path).splits == {
        "train": ["train/a", "train/b", "train/c"],
        "validation": ["validation/d", "validation/e"],
        "test": ["test/a"],
    }


def test_validation_is_drawn_from_train_where_only_test_is_given(tmp_path: Path):
    for split, stems in {"train": "abcde", "test": "fg"}.items():
        write_pairs(tmp_path / split, {stem: stripes(0, 1) for stem in stems})
    splits = in_folder(tmp_path).splits
    assert splits["test"] == ["test/f", "test/g"]
    assert sorted(splits["train"] + splits["validation"]) == [f"train/{s}" for s in "abcde"]
    assert len(splits["validation"]) == 1


@pytest.mark.parametrize(
    ("group", "error", "said"),
    [
        (
            r"x(\d)",
            DataError,
            r"group='x\(\\\\d\)'.* no group for 'generated-0000', .* and 15 more",
        ),
        (r"generated", DataError, r"group='generated'.*20 image\(s\) in 1 group\(s\) cannot"),
        (r"(", ConfigError, r"data\.group: got '\('; allowed: a regular expression"),
        (r"-00(1\d)?", DataError, "no group for 'generated-0000'"),
    ],
    ids=["no match", "one group", "no regular expression", "a group without part in some matches"],
)
def test_a_group_that_cannot_split_is_refused(group: str, error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        generated(group=group)


def test_a_single_image_cannot_be_split(tmp_path: Path):
    with pytest.raises(DataError, match=r"1 image\(s\) in 1 group\(s\) cannot be split"):
        in_folder(write_pairs(tmp_path, {"only": stripes(0, 1)}))


@pytest.mark.parametrize(
    "setting", [{"group": "(.)"}, {"validation_fraction": 0.3}, {"split_seed": 1}], ids=str
)
def test_what_says_how_to_split_is_refused_beside_saved_splits_since_it_would_do_nothing(
    setting: dict, tmp_path: Path
):
    for split in ("train", "validation"):
        write_pairs(tmp_path / split, {stem: stripes(0, 1) for stem in "ab"})
    with pytest.raises(ConfigError, match="The folder has a validation/ of its own") as refused:
        in_folder(tmp_path, **setting)
    assert {refused.value.field.removeprefix("data."): refused.value.got} == setting


def test_background_cannot_be_left_out_of_the_score_where_there_are_two_classes():
    with pytest.raises(ConfigError, match=r"data\.score_background: got False"):
        SegmentationData(
            Data(source=Generated(images=4, classes=2, side=32), size=SIZE, score_background=False)
        )


def test_validation_without_train_is_refused(tmp_path: Path):
    write_pairs(tmp_path / "validation", {"a": stripes(0, 1)})
    with pytest.raises(DataError, match="train/ holds no images"):
        in_folder(tmp_path)


# ---------------------------------------------------------------------- order and batches


def test_order_is_a_shuffle_of_the_training_images_by_seed_stage_and_epoch_alone():
    data = generated()
    orders = {key: tuple(data.order(*key)) for key in [(0, 1, 1), (1, 1, 1), (0, 2, 1), (0, 1, 2)]}
    assert len(set(orders.values())) == 4
    assert all(sorted(o) == data.splits["train"] for o in orders.values())
    assert tuple(generated().order(0, 1, 1)) == orders[0, 1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_bit_equal_for_any_number_of_workers(workers: int):
    data = generated(images=8, views="fresh")
    keys = [(name, "fresh 1 1") for name in data.order(0, 1, 1)]
    runs = [list(data.batches(keys, 2, count)) for count in (0, workers)]
    for one, other in zip(*runs, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
        assert all(map(torch.equal, one.originals, other.originals))


def test_batches_draw_nothing_from_torchs_global_generator():
    data, before = generated(images=8), torch.get_rng_state()
    assert len(list(data.batches([(n, "3") for n in data.splits["train"]], 2))) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_keep_the_order_of_the_keys_and_the_last_may_be_smaller():
    data = generated(images=8)
    keys = [(name, "0") for name in data.splits["train"]][::-1]
    assert [b.names for b in data.batches(keys, 4)] == [
        [n for n, _ in keys[:4]],
        [n for n, _ in keys[4:]],
    ]


# ---------------------------------------------------------------------- samples


def test_a_sample_has_both_masks_and_the_original_one():
    data = generated()
    name = data.splits["train"][0]
    sample = data[name, "1"]
    assert (sample.image.shape, sample.image.dtype) == ((3, *SIZE), torch.uint8)
    assert (sample.multiclass_mask.shape, sample.multiclass_mask.dtype) == (SIZE, torch.int64)
    assert torch.equal(sample.binary_mask, as_binary(sample.multiclass_mask))
    assert np.array_equal(sample.original.numpy(), generate(data.cfg.source, int(name[-4:]))[1])


def test_binary_means_any_class_but_the_first_and_ignored_stays_ignored():
    ids = torch.tensor([0, 1, 2, IGNORE])
    assert generated(mode="binary").trained(ids).tolist() == [0, 1, 1, IGNORE]


@pytest.mark.parametrize(
    ("mode", "classes", "trained"),
    [
        ("auto", 2, ("background", "wound")),
        ("auto", 3, ("background", "granulation", "slough")),
        ("binary", 3, ("background", "foreground")),
        ("multiclass", 2, ("background", "wound")),
    ],
)
def test_mode_says_which_mask_is_trained(mode: str, classes: int, trained: tuple[str, ...]):
    data = SegmentationData(
        Data(source=Generated(images=4, classes=classes, side=32), size=SIZE, mode=mode)
    )
    assert data.classes == trained
    names = data.splits["train"]
    (batch,) = data.batches([(n, "0") for n in names], 4)
    assert batch.masks.max() < len(trained)
    expected = [data[n, "0"].multiclass_mask for n in names]
    assert torch.equal(
        batch.masks, torch.stack([as_binary(m) if len(trained) == 2 else m for m in expected])
    )


@pytest.mark.parametrize(
    ("height", "width", "inside"), [(20, 40, (14, 28)), (40, 20, (28, 14)), (30, 30, (28, 28))]
)
def test_padding_is_ignored_in_the_mask_and_nothing_else_is(
    height: int, width: int, inside: tuple[int, int], tmp_path: Path
):
    folder = write_pairs(tmp_path, {name: np.ones((height, width), np.uint8) for name in "ab"})
    sample = in_folder(folder, mode="multiclass")["a", "0"]
    within = torch.zeros(SIZE, dtype=torch.bool)
    within[: inside[0], : inside[1]] = True
    assert torch.equal(sample.multiclass_mask != IGNORE, within)
    assert torch.equal(sample.binary_mask != IGNORE, within)
    assert (sample.image.permute(1, 2, 0)[~within] == torch.tensor(FILL)).all()
    assert sample.original.shape == (height, width)


def test_ignored_pixels_of_the_file_are_ignored_in_both_masks(tmp_path: Path):
    folder = write_pairs(tmp_path, {name: stripes(0, 1, 2, 9) for name in "ab"}, ignore_value=9)
    sample = in_folder(folder)["a", "0"]
    for mask in (sample.multiclass_mask, sample.binary_mask):
        assert (mask[: SIZE[0]] == IGNORE).float().mean().item() == pytest.approx(1 / 4, abs=0.05)


def test_red_is_channel_zero_of_what_the_network_gets(tmp_path: Path):
    folder = write_pairs(tmp_path, {name: stripes(0, 1) for name in "ab"})
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(folder / "images" / "a.png")
    assert in_folder(folder)["a", "0"].image.flatten(1).float().mean(1).tolist() == [255, 0, 0]


def test_a_file_that_vanishes_while_training_is_named(wards: Path):
    data = in_folder(wards, augment=Augment())
    name = data.splits["train"][0]
    (wards / "images" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=rf"{name}\.png.*: changed or vanished since"):
        data[name, "0"]
