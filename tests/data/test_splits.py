"""Splits that are drawn, grouped, stratified, or read from a file: what never happens, whatever the
names.
"""

from __future__ import annotations

import json
from itertools import product
from types import SimpleNamespace

import pytest
from builders import stripes, write_pairs
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vitseg.data.dataset import SegmentationData
from vitseg.data.folder import SPLITS
from vitseg.data.splits import random_split, splits_of
from vitseg.errors import ConfigError, DataError, RecipeError
from vitseg.settings import Classes, Data, Folder, Generated

HELD = st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=6, max_size=40)
IMAGES = dict.fromkeys("abc", SimpleNamespace(split=None))
TWO_IMAGES = dict.fromkeys("ab", SimpleNamespace(split=None))
FRACTIONS = st.sampled_from([(0.2, 0.0), (0.2, 0.2), (0.1, 0.1), (0.34, 0.33), (0.5, 0.0)])


def split(held: list[set[int]], **settings_of_data) -> dict[str, list[str]]:
    holds = {f"n{i:02d}": frozenset(classes) for i, classes in enumerate(held)}
    return random_split(list(holds), Data(**settings_of_data), holds.__getitem__)


def absent(
    splits: dict[str, list[str]], held: list[set[int]], test: float = 0.0, least: int = 3
) -> list[tuple[int, str]]:
    """Classes with that many images, and a side that has none of them."""
    asked = SPLITS if test else SPLITS[:2]
    sides = {side: set().union(*(held[int(n[1:])] for n in splits[side])) for side in asked}
    counts = {c: sum(c in h for h in held) for c in set().union(*held)}
    return [
        (c, side)
        for c, n in counts.items()
        if n >= least
        for side, there in sides.items()
        if c not in there
    ]


def can_be_done(held: list[set[int]], sides: int) -> bool:
    """By trying all: whether some split has every class of at least 3 images on all sides."""
    counts = {c: sum(c in h for h in held) for c in set().union(*held)}
    enough = {c for c, n in counts.items() if n >= 3}
    return any(
        all(
            enough <= set().union(*(h for h, s in zip(held, dealt, strict=True) if s == side))
            for side in range(sides)
        )
        for dealt in product(range(sides), repeat=len(held))
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(held=HELD, fractions=FRACTIONS, seed=st.integers(0, 99))
@example([{0, i} for i in range(1, 11)], (0.2, 0.2), 0)  # each has a class of its own
@example([{i} for i in range(10)], (0.2, 0.0), 0)
@example([set() for _ in range(6)], (0.1, 0.1), 0)
def test_every_image_has_one_side_and_no_side_is_empty(held, fractions, seed):
    for stratify in (False, True):
        splits = split(
            held,
            validation_fraction=fractions[0],
            test_fraction=fractions[1],
            stratify=stratify,
            split_seed=seed,
        )
        assert sorted(n for names in splits.values() for n in names) == [
            f"n{i:02d}" for i in range(len(held))
        ]
        asked = {"train", "validation"} | ({"test"} if fractions[1] else set())
        assert {side for side, names in splits.items() if names} == asked


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    held=st.lists(st.sets(st.integers(0, 3), min_size=1, max_size=2), min_size=12, max_size=40),
    fractions=FRACTIONS,
)
def test_stratified_keeps_every_class_of_three_images_on_all_sides(held, fractions):
    splits = split(
        held, validation_fraction=fractions[0], test_fraction=fractions[1], stratify=True
    )
    assert not absent(splits, held, fractions[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    held=st.lists(st.sets(st.integers(0, 3), max_size=3), min_size=4, max_size=8),
    test=st.sampled_from([0.0, 0.25]),
)
@example(
    [{0, 1}, {0, 1, 2}, {0, 2}, {1, 2}], 0.25
)  # three sides cannot each have all three classes of three images
def test_where_any_split_keeps_all_classes_so_does_ours(held, test):
    assume(can_be_done(held, 3 if test else 2))
    assert not absent(
        split(held, validation_fraction=0.25, test_fraction=test, stratify=True), held, test
    )


def test_unstratified_a_rare_class_does_get_lost():
    """The negative control."""
    held = [{0}] * 27 + [{0, 1}] * 3
    lost = [seed for seed in range(20) if absent(split(held, split_seed=seed), held)]
    assert lost
    assert not any(absent(split(held, split_seed=seed, stratify=True), held) for seed in lost)


def test_stratified_sides_are_about_as_large_as_asked():
    held = [{0, i % 3} for i in range(60)]
    sizes = {
        k: len(v)
        for k, v in split(held, validation_fraction=0.2, test_fraction=0.1, stratify=True).items()
    }
    assert sizes == pytest.approx({"train": 42, "validation": 12, "test": 6}, abs=2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(held=HELD, groups=st.integers(4, 9), stratify=st.booleans(), fractions=FRACTIONS)
def test_a_group_is_never_on_two_sides_stratified_or_not_by_name_or_by_list(
    held, groups, stratify, fractions, tmp_path_factory
):
    file = tmp_path_factory.mktemp("groups") / "groups.csv"
    file.write_text(
        "name,group\n" + "".join(f"n{i:02d},g{i % groups}\n" for i in range(len(held))),
        encoding="utf-8",
    )
    asked = {
        "validation_fraction": fractions[0],
        "test_fraction": fractions[1],
        "stratify": stratify,
    }
    splits = split(held, group_file=str(file), **asked)
    sides = [{int(n[1:]) % groups for n in splits[side]} for side in SPLITS]
    assert sum(map(len, sides)) == len(set().union(*sides))
    by_name = split(held, group=r"\d$", **asked)
    ends = [{n[-1] for n in by_name[side]} for side in SPLITS]
    assert sum(map(len, ends)) == len(set().union(*ends))


def test_a_run_s_split_is_used_again_and_the_seed_does_not_matter(tmp_path):
    first = SegmentationData(Data(source=Generated(images=20, side=32), test_fraction=0.2))
    file = tmp_path / "split.json"
    file.write_text(json.dumps(first.splits), encoding="utf-8")
    again = SegmentationData(Data(source=Generated(images=20, side=32), split_file=str(file)))
    assert again.splits == first.splits
    with pytest.raises(RecipeError, match=r"test_fraction: got 0\.2, which has no effect"):
        Data(split_file=str(file), test_fraction=0.2)


def test_a_split_is_used_again_without_the_images_of_a_class(tmp_path):
    data = Data(source=Generated(images=16, side=32))
    first = SegmentationData(data)
    file = tmp_path / "split.json"
    file.write_text(json.dumps(first.splits), encoding="utf-8")
    dropped = SegmentationData(
        data.model_copy(
            update={"split_file": str(file), "classes": Classes(drop_images_with=("necrosis",))}
        )
    )
    kept = {
        name for names in first.splits.values() for name in names if 3 not in first.counts(name)
    }
    assert dropped.splits == {
        side: [n for n in names if n in kept] for side, names in first.splits.items()
    }
    assert 0 < len(kept) < 16


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("no json", ConfigError, r"data\.split_file: got .*allowed: a run's split\.json"),
        (
            '["a"]',
            ConfigError,
            "allowed: a run's split.json: train, validation and test, each a list",
        ),
        (
            '{"train": ["a"], "val": ["b"]}',
            DataError,
            "there is no split 'val'; on no side: 'b', 'c'",
        ),
        (
            '{"train": ["a", "../x"], "validation": ["b"]}',
            DataError,
            r"there is no image '\.\./x'; on no side: 'c'",
        ),
        ('{"train": ["a", "b", "c"], "validation": ["b"]}', DataError, "more than once: 'b'"),
        ('{"train": ["a", "b", "c"]}', DataError, "empty: 'validation'"),
        ('{"train": 3, "validation": ["b"]}', ConfigError, "'int' object is not iterable"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused_with_all_that_is_wrong(
    content, error, said, tmp_path
):
    file = tmp_path / "split.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=said):
        splits_of(IMAGES, Data(split_file=str(file)), {}.get)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("name;group\na;1\n", ConfigError, r"data\.group_file.*columns name and group, .*'name'"),
        ("", DataError, "no group for 'a', 'b', 'c'"),
        ("name,group\na,1\nb,\n", DataError, "no group for 'b', 'c'"),
        (
            "name,group\na,1\nb,1\nc,1\n",
            DataError,
            r"group_file='.*: 3 image\(s\) in 1 group\(s\) cannot",
        ),
        ("name,group\na,1\nb,1\nc,2\na,2\n", ConfigError, r"data\.group_file.*'a' in two groups"),
    ],
)
def test_a_list_of_groups_that_does_not_fit_is_refused(content, error, said, tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=said):
        splits_of(IMAGES, Data(group_file=str(file)), {}.get)
    with pytest.raises(ConfigError, match=r"data\.group_file"):
        splits_of(IMAGES, Data(group_file=str(tmp_path / "none.csv")), {}.get)
    with pytest.raises(RecipeError, match="group_file"):
        Data(group_file="")


def test_a_test_share_is_drawn_beside_a_given_validation_is_refused(tmp_path):
    for place in ("train", "test"):
        write_pairs(tmp_path / place, {stem: stripes(0, 1) for stem in "abc"})
    with pytest.raises(ConfigError, match="The folder has a test/ of its own"):
        SegmentationData(Data(source=Folder(path=str(tmp_path)), test_fraction=0.2))


def test_fractions_leave_something_to_train_on():
    with pytest.raises(RecipeError, match="leave nothing to train on"):
        Data(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(DataError, match=r"2 image\(s\) in 2 group\(s\) cannot be split"):
        splits_of(TWO_IMAGES, Data(test_fraction=0.2), {}.get)
