"""Class weights, image rarity and what label smoothing makes of weights: against tables worked out
by hand.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import stripes, write_pairs

import vitseg
from vitseg.data.dataset import SegmentationData
from vitseg.data.splits import drawn_by, rarity
from vitseg.errors import ConfigError
from vitseg.settings import ByFrequency, Classes, Data, Folder, Generated
from vitseg.training.losses import best_of_an_oracle, loss_notes, loss_of, weights_by_frequency

PIXELS = {"a": {0: 90, 1: 10}, "b": {0: 60, 2: 40}, "c": {0: 100}, "d": {0: 50, 1: 50}}
"""Of 400 pixels class 0 holds 300, class 1 60, class 2 40; class 3 none. In images that hold them:
300/400, 60/200, 40/100.
"""


def test_inverse_frequency_is_the_table_worked_out_by_hand():
    assert weights_by_frequency(ByFrequency(), PIXELS, 4) == pytest.approx(
        (400 / 900, 400 / 180, 400 / 120, 1.0)
    )


def test_median_frequency_is_the_table_worked_out_by_hand():
    found = weights_by_frequency(ByFrequency(kind="median"), PIXELS, 4)
    assert found == pytest.approx((0.4 / 0.75, 0.4 / 0.3, 1.0, 1.0))


@pytest.mark.parametrize("kind", ["inverse", "median"])
def test_scaled_to_a_largest_the_ratios_of_the_foreground_stay_and_background_is_one(kind):
    free = weights_by_frequency(ByFrequency(kind=kind), PIXELS, 3)
    scaled = weights_by_frequency(ByFrequency(kind=kind, largest=60.0), PIXELS, 3)
    assert scaled[0] == 1
    assert max(scaled) == pytest.approx(60)
    assert scaled[1] / scaled[2] == pytest.approx(free[1] / free[2])


def test_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    pixels = np.repeat([0, 1, 2], [300, 60, 40])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=pixels)
    assert weights_by_frequency(ByFrequency(), PIXELS, 3) == pytest.approx(expected)


def in_folder(tmp_path, **settings) -> SegmentationData:
    for split, masks in {
        "train": {"a": stripes(0, 1), "b": stripes(0, 0, 0, 2), "c": stripes(0)},
        "validation": {"d": stripes(2), "e": stripes(2)},
    }.items():
        write_pairs(tmp_path / split, masks)
    (tmp_path / "classes.json").write_text('{"classes": ["x", "y", "z"], "encoding": "index"}')
    return SegmentationData(Data(source=Folder(path=str(tmp_path)), size=(48, 24), **settings))


def test_weights_come_from_training_images_alone_as_they_lie_on_the_canvas(tmp_path):
    data = in_folder(tmp_path)
    assert data.pixels("train") == {
        "train/a": {0: 288, 1: 288},
        "train/b": {0: 432, 2: 144},
        "train/c": {0: 576},
    }
    recipe = vitseg.quick().replace({"data": data.cfg, "loss.class_weights": ByFrequency()})
    loss = loss_of(recipe, data)
    assert loss.weights.tolist() == pytest.approx(
        [1728 / (3 * 1296), 1728 / (3 * 288), 1728 / (3 * 144)]
    )
    given = vitseg.quick().replace(
        {"data": data.cfg, "loss.class_weights": tuple(loss.weights.tolist())}
    )
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.arange(128).reshape(2, 8, 8) % 3
    assert loss(logits, masks) == loss_of(given, data)(logits, masks)
    assert loss(logits, masks) != loss_of(vitseg.quick().replace({"data": data.cfg}), data)(
        logits, masks
    )
    assert loss_notes(recipe, data)[0].startswith("Class weights: x 0.444, y 2, z 4.")
    assert loss_notes(given, data) == []


def test_rarity_is_the_table_worked_out_by_hand():
    assert rarity(PIXELS) == {"a": 2.0, "b": 4.0, "c": 1.0, "d": 2.0}


def test_where_all_images_are_alike_rarity_would_do_nothing_and_is_refused():
    with pytest.raises(ConfigError, match=r"data\.sampler: got 'rarity'"):
        rarity({"a": {0: 1, 1: 1}, "b": {0: 5, 1: 2}})


def test_a_weight_follows_the_name_whatever_the_order():
    weights = rarity(PIXELS)
    for seed in range(20):
        names = list(weights)
        random.Random(seed).shuffle(names)
        assert drawn_by({n: weights[n] for n in names}, 7) == drawn_by(weights, 7)
        pixels = {n: PIXELS[n] for n in names}
        assert rarity(pixels) == weights


def test_images_are_drawn_as_often_as_their_weights_say():
    weights = rarity(PIXELS)
    drawn = [name for seed in range(3000) for name in drawn_by(weights, seed)]
    for name, weight in weights.items():
        assert drawn.count(name) / len(drawn) == pytest.approx(weight / 9, abs=0.015)


def test_an_epoch_is_drawn_by_rarity_and_as_long_as_ever(tmp_path):
    data, plain = in_folder(tmp_path, sampler="rarity"), in_folder(tmp_path)
    drawn = [data.order(0, 1, epoch) for epoch in range(1, 400)]
    assert {len(names) for names in drawn} == {3}
    counts = {
        name: sum(names.count(name) for names in drawn) / (3 * 399)
        for name in plain.splits["train"]
    }
    assert counts == pytest.approx({"train/a": 3 / 7, "train/b": 3 / 7, "train/c": 1 / 7}, abs=0.04)
    assert data.order(0, 1, 5) == data.order(0, 1, 5)
    assert sorted(plain.order(0, 1, 5)) == plain.splits["train"]


def test_in_binary_mode_rarity_is_of_what_is_trained(tmp_path):
    masks = {
        "a": stripes(0),
        "b": stripes(0, 1),
        "c": stripes(0, 2),
        "d": stripes(0, 1),
        "e": stripes(0),
    }
    for split in ("train", "validation"):
        write_pairs(tmp_path / split, masks)
    (tmp_path / "classes.json").write_text(
        '{"classes": ["x", "ink", "wound"], "encoding": "index"}'
    )
    source, classes = Folder(path=str(tmp_path)), Classes(foreground=("wound",))
    data = SegmentationData(Data(source=source, mode="binary", classes=classes, sampler="rarity"))
    drawn = Counter(name for epoch in range(600) for name in data.order(0, 1, epoch))
    assert drawn["train/c"] / drawn["train/b"] == pytest.approx(5, rel=0.15), (
        "one of five has the wound; ink is ground"
    )
    assert drawn["train/b"] / drawn["train/a"] == pytest.approx(1, rel=0.15)


def test_the_optimum_of_smoothed_weighted_cross_entropy_is_what_it_converges_to():
    """The origin's defect 44: with weights of 30 to 60 the best answer on background is
    P(background) = 0.18.
    """
    weights = (1.0,) + (45.0,) * 10
    assert best_of_an_oracle(weights, 0.1) == pytest.approx(0.18, abs=0.005)
    assert best_of_an_oracle((1.0,) * 11, 0.1) == pytest.approx(0.91, abs=0.005)
    logits = torch.zeros(1, 11, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(
            logits, torch.tensor([0]), torch.tensor(weights), label_smoothing=0.1, reduction="sum"
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits.softmax(1)[0, 0].item() == pytest.approx(
        best_of_an_oracle(weights, 0.1), abs=1e-3
    )


@pytest.mark.parametrize(("smoothing", "warned"), [(0.1, True), (0.0, False)])
def test_smoothing_beside_large_weights_is_warned_of_with_the_number(smoothing, warned):
    recipe = vitseg.quick().replace(
        {"loss.class_weights": (1.0, 50.0, 50.0, 50.0, 50.0), "loss.label_smoothing": smoothing}
    )
    data = SegmentationData(Data(source=Generated(images=4, side=32)))
    said = loss_notes(recipe, data)
    assert any("P(background) = 0.19" in line for line in said) == warned
    assert bool(said) == warned
