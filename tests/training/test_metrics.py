"""Scores come from one confusion matrix over the epoch; scikit-learn and torchmetrics are the
judges.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from torch import Tensor
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from vitseg.images import IGNORE
from vitseg.training.metrics import confusion, scores

CLASSES = 4
often = settings(max_examples=40, deadline=None, derandomize=True)


def score(truth: Tensor, predicted: Tensor, classes: int = CLASSES, **how) -> dict:
    mode = how.pop("mode", "multiclass")
    return scores(confusion(predicted, truth, classes), mode, **how)


@st.composite
def epochs(draw, least_classes: int = 2, most_classes: int = 5) -> tuple[int, Tensor, Tensor]:
    """(classes, truth, predicted): few enough pixels that classes are often absent from either,
    some of them ignored.
    """
    classes = draw(st.integers(least_classes, most_classes))
    pixels = draw(st.integers(1, 30))
    truth = st.lists(st.sampled_from([*range(classes), IGNORE]), min_size=pixels, max_size=pixels)
    predicted = st.lists(st.integers(0, classes - 1), min_size=pixels, max_size=pixels)
    return classes, torch.tensor(draw(truth)), torch.tensor(draw(predicted), dtype=torch.uint8)


def pixels(*runs: tuple[int, int]) -> Tensor:
    """Class ids by (id, count)."""
    return torch.tensor([class_id for class_id, count in runs for _ in range(count)])


ADVERSARIAL = {
    "all classes": (
        pixels((0, 5), (1, 3), (2, 2), (3, 4)),
        pixels((0, 4), (1, 5), (3, 1), (2, 1), (3, 3)),
    ),
    "class absent from the truth": (pixels((0, 6), (1, 6)), pixels((0, 3), (2, 3), (1, 6))),
    "class never predicted": (pixels((0, 6), (1, 3), (3, 3)), pixels((0, 9), (3, 3))),
    "class absent from both": (pixels((0, 8), (3, 4)), pixels((0, 7), (3, 5))),
    "one class, right": (pixels((2, 9)), pixels((2, 9))),
    "one class, wrong": (pixels((2, 9)), pixels((1, 9))),
    "ignored pixels": (pixels((0, 4), (IGNORE, 5), (1, 4)), pixels((0, 3), (3, 7), (1, 3))),
    "everything wrong": (pixels((0, 4), (1, 4)), pixels((1, 4), (0, 4))),
}
adversarial = pytest.mark.parametrize(("truth", "predicted"), ADVERSARIAL.values(), ids=ADVERSARIAL)


def assert_scikit_learn_agrees(
    truth: Tensor, predicted: Tensor, classes: int, background: bool
) -> None:
    found = score(truth, predicted, classes, score_background=background)
    t, p = truth[truth != IGNORE].numpy(), predicted[truth != IGNORE].numpy()
    present = sorted(set(t.tolist()))
    counted = [c for c in present if c > 0 or background]
    assert [f is not None for f in found["per_class_iou"]] == [c in present for c in range(classes)]
    for c in present:
        assert found["per_class_iou"][c] == pytest.approx(
            sklearn.jaccard_score(t, p, labels=[c], average=None)[0]
        )
        assert found["per_class_f1"][c] == pytest.approx(
            sklearn.f1_score(t, p, labels=[c], average=None)[0]
        )
    assert found["accuracy"] == (pytest.approx(sklearn.accuracy_score(t, p)) if present else None)
    expected = dict.fromkeys(("iou", "f1", "f1_macro", "f1_micro", "f1_weighted"))
    if counted:
        f1 = {
            a: sklearn.f1_score(t, p, labels=counted, average=a)
            for a in ("macro", "micro", "weighted")
        }
        expected = {
            "iou": sklearn.jaccard_score(t, p, labels=counted, average="macro"),
            "f1": f1["macro"],
        }
        expected |= {f"f1_{average}": value for average, value in f1.items()}
    assert {k: found[k] for k in expected} == {
        k: v if v is None else pytest.approx(v) for k, v in expected.items()
    }


@adversarial
@pytest.mark.parametrize(
    "background", [True, False], ids=["with background", "background excluded"]
)
def test_multiclass_scores_are_those_of_scikit_learn(
    truth: Tensor, predicted: Tensor, background: bool
):
    assert_scikit_learn_agrees(truth, predicted, CLASSES, background)


@often
@given(epochs(), st.booleans())
def test_scores_of_any_epoch_are_those_of_scikit_learn(
    epoch: tuple[int, Tensor, Tensor], background: bool
):
    classes, truth, predicted = epoch
    assert_scikit_learn_agrees(truth, predicted, classes, background)


@adversarial
def test_matrix_and_class_scores_are_those_of_torchmetrics(truth: Tensor, predicted: Tensor):
    how = {"num_classes": CLASSES, "ignore_index": IGNORE}
    assert confusion(predicted, truth, CLASSES).equal(
        MulticlassConfusionMatrix(**how)(predicted, truth)
    )
    found = score(truth, predicted)
    for metric, key in (
        (MulticlassJaccardIndex, "per_class_iou"),
        (MulticlassF1Score, "per_class_f1"),
    ):
        theirs = metric(**how, average=None)(predicted, truth).tolist()
        assert all(
            ours is None or ours == pytest.approx(t, abs=1e-6)
            for ours, t in zip(found[key], theirs, strict=True)
        )


@often
@given(epochs(most_classes=2))
def test_binary_iou_and_f1_are_those_of_the_foreground(epoch: tuple[int, Tensor, Tensor]):
    classes, truth, predicted = epoch
    t, p = truth[truth != IGNORE].numpy(), predicted[truth != IGNORE].numpy()
    found = score(truth, predicted, classes, mode="binary")
    if 1 not in t:
        assert found["iou"] is found["f1"] is None
    else:
        assert found["iou"] == pytest.approx(sklearn.jaccard_score(t, p, pos_label=1))
        assert found["f1"] == pytest.approx(sklearn.f1_score(t, p, pos_label=1))


@pytest.mark.parametrize("background", [True, False])
def test_binary_scores_do_not_depend_on_score_background(background: bool):
    truth, predicted = pixels((0, 6), (1, 4)), pixels((0, 4), (1, 5), (0, 1))
    found = score(truth, predicted, 2, mode="binary", score_background=background)
    assert found["iou"] == 3 / 6
    assert found["f1"] == 6 / 9
    assert found["f1_macro"] == pytest.approx((2 * 4 / (6 + 5) + 6 / 9) / 2)


@often
@given(epochs(), st.data())
def test_any_split_into_batches_gives_the_same_epoch_matrix(
    epoch: tuple[int, Tensor, Tensor], data: st.DataObject
):
    classes, truth, predicted = epoch
    cuts = sorted(data.draw(st.lists(st.integers(0, len(truth)), max_size=4)))
    batches = zip(torch.tensor_split(truth, cuts), torch.tensor_split(predicted, cuts), strict=True)
    total = sum(
        (confusion(p, t, classes) for t, p in batches),
        torch.zeros(classes, classes, dtype=torch.int64),
    )
    assert total.equal(confusion(predicted, truth, classes))


def test_mean_over_batches_is_another_number_than_the_epochs_iou():
    """The negative control: a class in one batch of two, seen as 0 in the other, halves its IoU."""
    truth, predicted = pixels((0, 8), (1, 8)), pixels((0, 8), (1, 6), (0, 2))
    batches = [(truth[:8], predicted[:8]), (truth[8:], predicted[8:])]
    means = [
        np.mean(
            [
                sklearn.jaccard_score(t, p, labels=[c], average=None, zero_division=0)[0]
                for t, p in batches
            ]
        )
        for c in (0, 1)
    ]
    assert means == [0.5, 0.375]
    assert score(truth, predicted, 2)["per_class_iou"] == [8 / 10, 6 / 8]


def test_matrix_has_truth_by_row_and_prediction_by_column():
    assert confusion(pixels((2, 3)), pixels((1, 3)), 3).tolist() == [
        [0, 0, 0],
        [0, 0, 3],
        [0, 0, 0],
    ]


def test_matrix_of_two_dimensional_masks_counts_every_valid_pixel():
    truth = torch.full((3, 10, 12), 1)
    truth[0, :5] = IGNORE
    matrix = confusion(torch.zeros(3, 10, 12, dtype=torch.int64), truth, 2)
    assert matrix.tolist() == [[0, 0], [3 * 120 - 60, 0]]


def test_absent_class_is_none_neither_zero_nor_one():
    found = score(pixels((0, 4), (1, 4)), pixels((0, 4), (1, 2), (2, 2)))
    assert found["per_class_iou"] == [1.0, 0.5, None, None]
    assert found["iou"] == 0.75  # class 2 was predicted, but is not in the truth


def test_absent_foreground_is_none_in_binary_mode():
    found = score(pixels((0, 9)), pixels((0, 9)), 2, mode="binary")
    assert (found["iou"], found["f1"], found["accuracy"]) == (None, None, 1.0)


def test_one_class_predicted_perfectly_scores_one():
    found = score(pixels((2, 9)), pixels((2, 9)))
    assert (found["iou"], found["f1"], found["per_class_iou"]) == (
        1.0,
        1.0,
        [None, None, 1.0, None],
    )


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_epoch_that_is_ignored_altogether_has_no_scores(mode: str):
    found = score(pixels((IGNORE, 9)), pixels((1, 9)), 2, mode=mode)
    assert found == dict.fromkeys(found) | {
        "per_class_iou": [None, None],
        "per_class_f1": [None, None],
    }


def test_epoch_of_background_alone_has_no_mean_when_background_is_excluded():
    found = score(pixels((0, 9)), pixels((0, 8), (1, 1)), score_background=False)
    assert (found["iou"], found["f1_micro"], found["accuracy"]) == (None, None, 8 / 9)


@often
@given(epochs(), st.sampled_from(["binary", "multiclass"]))
def test_scores_are_plain_numbers_that_json_can_hold(epoch: tuple[int, Tensor, Tensor], mode: str):
    classes, truth, predicted = epoch
    assert (
        json.loads(
            json.dumps(found := score(truth, predicted, classes, mode=mode), allow_nan=False)
        )
        == found
    )
