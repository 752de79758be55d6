"""The forecast knows what is kept already, and what the cache can buy."""

from __future__ import annotations

import pytest

from vitseg.runs.forecast import Cost, forecast, measure
from vitseg.runs.run import train
from vitseg.training.job import Job


@pytest.fixture
def recipe(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("VITSEG_CACHE", str(tmp_path / "cache"))
    return tiny_recipe


COST = Cost(
    read=1,
    loading=0.25,
    encoder=40,
    decoder_training=12,
    block_training=30,
    saved=0,
    saved_first=0,
    saved_more=0,
    level_bytes=1000,
    known=0.0,
)
"""A block costs 10, and 30 where it trains, the decoder 4 and 12; 10 images to train on, 2 to
validate; views "0" and "1"; skips at levels 1, 2, 3, 4.
"""


def test_the_arithmetic_of_a_cold_cache(recipe):
    one, two, three = forecast(Job(recipe), COST)
    whole, validation = 1 + 40, 2
    assert one.seconds == 2 * 10 * (whole + 12) + validation * (whole + 4) + 2 * validation * (
        0.25 + 4
    )
    assert two.seconds == 2 * 10 * (0.25 + 12 + 30) + 3 * validation * (0.25 + 4 + 10)
    assert three.seconds == 10 * (0.25 + 12 + 2 * 30) + 2 * validation * (0.25 + 4 + 20)
    assert (
        one.kept == (2 * 10 + 2) * 4 * 1000 and two.kept == three.kept == 0
    )  # levels 3 and 2 are skips
    assert (one.bound, two.bound) == ("the decoder", "the blocks that train")
    assert one.gain == (1 + 40 + 12) / (0.25 + 12) and two.gain == (1 + 30 + 12 + 30) / (
        0.25 + 12 + 30
    )


def test_a_level_that_is_no_skip_is_climbed_to_once(recipe):
    recipe = recipe.replace({"model.skip_depths": [1, 2, 3, 4]})
    job = Job(recipe)
    job.model.shape = job.model.shape.model_copy(update={"skip_depths": (1, 2, 4, 4)})
    _, two, _ = forecast(job, COST)
    assert two.kept == (2 * 10 + 2) * 1000, "level 3, of every view"
    climbed = 2 * 10 * 10 + 2 * 10
    assert two.seconds == 2 * 10 * (0.25 + 12 + 30) + 3 * 2 * (0.25 + 4 + 10) + climbed


def test_without_a_cache_every_epoch_computes(recipe):
    one, two, _ = forecast(Job(recipe.replace({"cache": False})), COST)
    assert (
        one.seconds == 2 * 10 * (41 + 12) + 3 * 2 * (41 + 4) and one.kept == 0 and one.gain == 1.0
    )
    assert two.seconds == 2 * 10 * (1 + 30 + 12 + 30) + 3 * 2 * (1 + 30 + 4 + 10)


def test_fresh_views_are_never_kept(recipe):
    one, *_ = forecast(Job(recipe.replace({"data.views": "fresh"})), COST)
    assert one.kept == 2 * 4 * 1000, "the validation images alone"


def test_what_is_kept_already_is_known(recipe, tmp_path):
    job = Job(recipe)
    assert measure(job).known == 0
    list(train(recipe, tmp_path / "run"))
    cost = measure(Job(recipe))
    assert cost.known == 1 and 0 < cost.loading < 0.1
    (one, *_) = forecast(job, COST._replace(known=cost.known))
    assert one.kept == 0 and one.seconds == 2 * 10 * (0.25 + 12) + 3 * 2 * (0.25 + 4)


def test_stages_that_are_inherited_take_no_time(recipe):
    whole, one, two, three = (forecast(Job(recipe), COST, n) for n in (0, 1, 2, 3))
    assert two[0].seconds == two[1].seconds == two[0].kept == 0 and two[2].seconds > 0
    assert one[1].kept == (2 * 10 + 2) * 3 * 1000 and one[1].seconds > whole[1].seconds, (
        "stage 2 has to fill the cache itself"
    )
    assert sum(f.seconds for f in three) == 0 and [f.steps for f in three] == [
        f.steps for f in whole
    ]
