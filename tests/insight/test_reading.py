"""A result is read as hand-computed tables, scikit-learn, torchmetrics and MONAI read it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_surface_dice
from sklearn.metrics import jaccard_score
from torchmetrics.classification import MulticlassCalibrationError

import vitseg
from vitseg.data.dataset import SegmentationData
from vitseg.errors import ConfigError
from vitseg.images import IGNORE
from vitseg.insight.reading import (
    BINS,
    TOLERANCE,
    Calibration,
    Reading,
    binned,
    flipped,
    objects_of,
    probabilities,
    read,
)
from vitseg.model.segmenter import build_segmenter
from vitseg.presets import quick
from vitseg.settings import Model
from vitseg.ui import result


def made(*matrices: list[list[int]], mode: str = "multiclass") -> Reading:
    """A Reading of images a, b, c ... with these pixel counts."""
    found = torch.tensor(matrices)
    classes = tuple(f"class {i}" for i in range(found.shape[1]))
    return Reading(
        classes,
        mode,
        True,
        "validation",
        tuple("abcdefgh"[: len(found)]),
        found,
        pd.DataFrame(),
        pd.DataFrame(),
        Calibration(*torch.zeros(3, BINS)),
    )


def test_three_means_of_the_same_predictions_by_hand():
    reading = made([[80, 0], [10, 10]], [[99, 0], [0, 1]], [[50, 0], [25, 25]], mode="binary")
    assert reading.iou_by_image().to_dict() == {"a": 0.5, "b": 1.0, "c": 0.5}
    means = reading.means(2)
    assert means["images"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert means["data set"] == pytest.approx(36 / 71)
    assert means["batches"] == pytest.approx((11 / 21 + 25 / 50) / 2)


def test_an_image_without_anything_to_score_is_left_out_of_the_mean_and_the_ranking():
    reading = made([[100, 0], [0, 0]], [[50, 0], [25, 25]], [[90, 5], [0, 5]], mode="binary")
    assert reading.iou_by_image().isna().tolist() == [True, False, False]
    assert reading.means(1)["images"] == 0.5
    assert reading.examples(1) == {"best": ["c"], "median": ["b"], "worst": ["b"]}


def test_best_median_and_worst_are_different_images_in_order():
    reading = made(*([[0, 0], [100 - n, n]] for n in (30, 90, 10, 50, 70)), mode="binary")
    assert reading.examples(1) == {"best": ["b"], "median": ["d"], "worst": ["c"]}
    assert reading.examples(5) == reading.examples(1)  # five images are no fifteen


def test_confusions_name_the_images_and_the_shares_add_up():
    reading = made([[5, 3, 0], [0, 4, 0], [0, 0, 0]], [[1, 9, 0], [2, 2, 0], [0, 0, 0]])
    assert list(reading.confused("class 0", 1).items()) == [("b", 9), ("a", 3)]
    assert list(reading.confused(1, 0).items()) == [("b", 2)]
    truth, prediction = reading.shares("truth"), reading.shares("prediction")
    assert truth[0].tolist() == [6 / 18, 12 / 18, 0]
    assert prediction[:, 0].tolist() == [6 / 8, 2 / 8, 0]
    assert truth[2].isnan().all()
    with pytest.raises(ConfigError, match="allowed: 'class 0', 'class 1', 'class 2'"):
        reading.confused("class 7", 1)
    with pytest.raises(ConfigError, match="of: got 'rows'; allowed: truth, prediction"):
        reading.shares("rows")


def test_the_interval_covers_its_score_is_drawn_the_same_each_time_and_shrinks_with_images():
    few = made(*([[0, 0], [100 - n, n]] for n in (20, 40, 60, 80)), mode="binary")
    many = made(*([[0, 0], [100 - n, n]] for n in (20, 40, 60, 80) * 2), mode="binary")
    state = np.random.get_state()[1].copy()
    low, high = few.interval()
    assert low < few.scores()["iou"] < high
    assert few.interval() == [low, high]
    assert np.ptp(many.interval()) < high - low
    assert np.array_equal(state, np.random.get_state()[1])
    # the standard error of the mean of four is 11.2 (population), so the interval is about +-0.22
    assert high - low == pytest.approx(2 * 1.96 * 0.112, rel=0.15)


def test_where_no_image_holds_anything_that_is_scored_there_is_no_number():
    reading = made([[100, 0], [0, 0]], [[90, 10], [0, 0]], mode="binary")
    assert pd.isna([*reading.means(1).values(), *reading.interval()]).all()
    assert [row[1] for row in result.score_card(reading).rows[:5]] == ["n/a"] * 5


TRUTH = np.array(
    [
        [1, 1, 0, 0, 0, 2],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, IGNORE],
    ],
    dtype=np.uint8,
)
PREDICTED = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, IGNORE],
    ],
    dtype=np.uint8,
)


def test_objects_by_hand_corners_joined_ignored_pixels_of_no_class():
    things, _ = objects_of("a", TRUTH, PREDICTED, (1, 2))
    found = {(class_id, pixels): scores for _, class_id, pixels, *scores in things}
    assert found == {
        (1, 5): [3 / 5, 3 / 5],  # the square and the pixel at its corner
        (1, 4): [2 / 4, 2 / 5],
        (2, 1): [0, 0],
    }


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own
def test_borders_are_those_of_monai_and_a_class_that_is_missing_has_none():
    rng = np.random.default_rng(0)
    for _ in range(10):
        truth, predicted = np.zeros((2, 40, 50), dtype=np.uint8)
        for mask in (truth, predicted):
            top, left = rng.integers(2, 15, 2)
            mask[top : top + rng.integers(5, 20), left : left + rng.integers(5, 30)] = 1
        _, [(_, _, distance, within)] = objects_of("a", truth, predicted, (1, 2))
        both = [
            torch.nn.functional.one_hot(torch.from_numpy(m).long(), 2).permute(2, 0, 1)[None]
            for m in (predicted, truth)
        ]
        assert distance == pytest.approx(
            compute_average_surface_distance(*both, symmetric=True).item(), abs=1e-5
        )
        assert within == pytest.approx(
            compute_surface_dice(*both, class_thresholds=[TOLERANCE]).item(), abs=1e-5
        )
    assert objects_of("a", TRUTH, np.zeros_like(TRUTH), (1, 2))[1] == []


def test_calibration_is_that_of_torchmetrics_and_adds_up():
    given = torch.Generator().manual_seed(0)
    chances = torch.randn(3, 40, 50, generator=given).mul(2).softmax(0)
    truth = torch.randint(0, 3, (40, 50), generator=given).to(torch.uint8)
    truth[:4] = IGNORE
    confidence, predicted = chances.max(0)
    whole = Calibration(*binned(confidence, predicted, truth))
    oracle = MulticlassCalibrationError(3, n_bins=BINS, norm="l1", ignore_index=IGNORE)
    expected = oracle(chances[None], truth.long()[None]).item()
    assert whole.error() == pytest.approx(expected, abs=1e-6)
    halves = [binned(confidence[s], predicted[s], truth[s]) for s in (slice(0, 20), slice(20, 40))]
    assert Calibration(*sum(halves)).error() == pytest.approx(whole.error(), abs=1e-12)
    assert whole.pixels.sum() == 36 * 50
    sure = whole.curve()["confidence"]
    assert sure.is_monotonic_increasing and sure.is_unique


def test_reading_a_run_gives_the_score_that_was_logged_and_scikit_learn_s(run, model, data):
    reading = read(model, data)
    best = vitseg.RunFolder(run).summary["best"]
    assert reading.scores()["iou"] == best["iou"]
    truths, answers = [], []
    for name in data.splits["validation"]:
        image, ids = data.load(name)
        truths.append(data.trained(torch.from_numpy(ids)).flatten().numpy())
        answers.append(model.predict(image).ravel())
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    expected = jaccard_score(truth, answer, labels=np.unique(truth), average="macro")
    assert reading.scores()["iou"] == pytest.approx(expected)
    assert reading.things["pixels"].sum() == int((truth > 0).sum())
    assert reading.calibration.pixels.sum() == len(truth)


def test_a_split_without_images_is_refused(model, data):
    with pytest.raises(ConfigError, match="split: got 'tset'; allowed: train, validation"):
        read(model, data, "tset")


def test_mirrored_twice_is_a_mean_of_both_and_leaves_the_model_as_it_was(model, data):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image, _ = data.load(data.splits["validation"][0])
    model.train()
    mean, plain = flipped(model, image), probabilities(model, image)
    assert model.training
    assert model.decoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    mirrored = model.logits(image.transpose(0)).softmax(0).flip(2)
    assert torch.allclose(mean, (plain + mirrored) / 2)
    assert torch.allclose(mean.sum(0), torch.ones(mean.shape[1:]), atol=1e-5)
    assert not torch.equal(mean, plain)


@pytest.mark.real
def test_the_first_class_is_an_object_unless_it_is_the_background(real_data, encoders):
    data = SegmentationData(quick(real_data / "camvid").data)
    data.splits["validation"] = data.splits["validation"][:2]
    reading = read(
        build_segmenter(Model(encoder=encoders["vit"]), data.classes, (42, 56), seed=0), data
    )
    assert reading.classes[0] == "sky"
    assert 0 in set(reading.things["class_id"])


def test_a_model_of_other_classes_is_refused(encoders, data):
    model = build_segmenter(Model(encoder=encoders["vit"]), ("a", "b", "c", "d"), (70, 70), seed=0)
    with pytest.raises(
        ConfigError,
        match=r"model: got \('a', 'b', 'c', 'd'\); allowed: a model of the data's classes",
    ):
        read(model, data)
