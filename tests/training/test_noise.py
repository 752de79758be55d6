"""Dropout and drop-path: draws are a function of (key, layer, sample), and of nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitseg.errors import TrainingError
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.noise import KeyedDropout, KeyedNoise, key_noise
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.settings import Model

RATE = 0.25
KEPT = float(torch.tensor(1.0) / (1 - RATE))


def drop_channels(x: Tensor, *key: object, layer: str = "decoder", first_sample: int = 0) -> Tensor:
    """One pass of spatial dropout."""
    noise = KeyedNoise(RATE)
    key_noise(noise, *key, first_sample=first_sample)
    return noise.drop(x, x.shape[1], layer)


def drop_path(x: Tensor, *key: object, layer: str = "block 1", first_sample: int = 0) -> Tensor:
    """One pass of drop-path around a block that adds 1."""
    noise = KeyedNoise(RATE)
    key_noise(noise, *key, first_sample=first_sample)
    return x + noise.drop(torch.ones_like(x), 1, layer)


KINDS: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "dropout": (drop_channels, torch.ones(64, 32, 2, 2)),
    "drop-path": (drop_path, torch.zeros(2000, 3, 4)),
}
each_kind = pytest.mark.parametrize(("draw", "x"), KINDS.values(), ids=KINDS)


@each_kind
def test_the_same_key_draws_the_same(draw, x):
    assert torch.equal(draw(x, 0, "noise", 2, 7), draw(x, 0, "noise", 2, 7))


@each_kind
@pytest.mark.parametrize(
    "other",
    [
        (1, "noise", 2, 7),
        (0, "else", 2, 7),
        (0, "noise", 3, 7),
        (0, "noise", 2, 8),
        (0, "noise", 27),
    ],
)
def test_another_key_draws_something_else(draw, x, other):
    assert not torch.equal(draw(x, 0, "noise", 2, 7), draw(x, *other))


@each_kind
def test_another_layer_draws_something_else(draw, x):
    assert not torch.equal(draw(x, 0), draw(x, 0, layer="block 2"))


@each_kind
@pytest.mark.parametrize("sizes", [(32, 32), (1, 63), (20, 20, 20, 4), (1,) * 64])
def test_a_batch_in_portions_draws_what_it_draws_in_one(draw, x, sizes):
    portions, first = x[:64].split(sizes), [sum(sizes[:i]) for i in range(len(sizes))]
    in_portions = [
        draw(p, 0, "noise", 1, 1, first_sample=f) for p, f in zip(portions, first, strict=True)
    ]
    assert torch.equal(torch.cat(in_portions), draw(x[:64], 0, "noise", 1, 1))


@each_kind
def test_portions_that_do_not_say_where_they_begin_draw_the_same_twice(draw, x):
    """The control: it is `first_sample` that makes the difference."""
    a, b = (draw(portion, 0) for portion in x[:64].split(32))
    assert torch.equal(a, b)
    assert not torch.equal(torch.cat([a, b]), draw(x[:64], 0))


@each_kind
def test_the_mean_is_preserved_and_what_is_kept_is_scaled(draw, x):
    change = (
        draw(x, 0) if draw is drop_channels else draw(x, 0) - x
    )  # of the ones, or of what the block added
    assert set(change.unique().tolist()) == {0.0, KEPT}
    units = change.flatten(2)[:, :, 0] if draw is drop_channels else change[:, 0, :1]
    assert torch.equal(
        change, units.reshape(units.shape + (1,) * (change.ndim - units.ndim)).expand_as(change)
    )  # whole units
    deviation = (
        RATE / (1 - RATE) / units.numel()
    ) ** 0.5  # of the mean of so many independent draws
    assert abs(units.mean().item() - 1) < 4 * deviation


@each_kind
def test_no_global_generator_is_touched_and_none_is_listened_to(draw, x):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = draw(x, 0)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(draw(x, 0), first)
        nn.Dropout()(x)  # the control: PyTorch's own does touch it
        torch.manual_seed(1)
        nn.Dropout()(x)
        assert not torch.equal(torch.get_rng_state(), state)


def global_states() -> list:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_a_whole_stage_with_dropout_and_drop_path_touches_no_global_generator(small_recipe, begin):
    """Building the model and loading the data included; other cells of a notebook draw from the
    same generators.
    """
    recipe = small_recipe.replace({"model.dropout": 0.3, "data.views": "fresh"})
    before = global_states()
    events = list(begin(recipe, 2))
    assert len(events) > 10
    assert global_states() == before


def test_what_other_cells_draw_meanwhile_changes_no_number(small_recipe, begin):
    def records(seed: int) -> list:
        events = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for event in begin(small_recipe, 2):
                if not event.transient:
                    events.append(event)
                torch.rand(3)
        return events

    assert records(1) == records(2)


# ------------------------------------------------------------------ when it acts


def test_no_channel_is_dropped_in_eval_mode_nor_at_rate_0_even_without_a_key():
    x = torch.ones(2, 3, 4, 4)
    for rate, training in ((RATE, False), (0.0, True), (0.0, False)):
        assert KeyedDropout(rate).train(training)(x) is x


def blocks_run(model: Segmenter, rate: float) -> dict[int, Tensor]:
    """All levels of 200 images that differ, the last two blocks of four unfrozen."""
    set_freeze_depth(model, 2)
    encoder = model.encoder
    encoder.rate = rate
    images = torch.rand(200, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return encoder.run(encoder.embed(images), 0, 4, set(range(5)), (28, 28))


def test_drop_path_acts_in_blocks_that_train_alone_and_leaves_their_input_bit_equal(model):
    key_noise(model, 0)
    plain, noisy = blocks_run(model.train(), 0.0), blocks_run(model.train(), RATE)
    for level in range(3):
        assert torch.equal(plain[level], noisy[level])
    dropped = (noisy[3] == noisy[2]).flatten(1).all(1)
    assert 0.15 * 200 < dropped.sum() < 0.35 * 200
    added = plain[3] - plain[2]
    torch.testing.assert_close(noisy[3][~dropped], (plain[2] + KEPT * added)[~dropped])
    assert not torch.equal(dropped, (noisy[4] == noisy[3]).flatten(1).all(1))


def test_no_path_is_dropped_in_eval_mode_even_without_a_key(model):
    plain, noisy = blocks_run(model.eval(), 0.0), blocks_run(model.eval(), RATE)
    assert all(torch.equal(plain[level], noisy[level]) for level in plain)


def test_training_without_a_key_is_an_error_with_a_mend(model):
    for forward in (
        lambda: KeyedDropout(RATE)(torch.ones(2, 3, 4, 4)),
        lambda: blocks_run(model.train(), RATE),
    ):
        with pytest.raises(
            TrainingError, match=r"no key\. Call key_noise\(model, seed, step\) before each step\."
        ):
            forward()


@pytest.fixture
def model(encoders) -> Segmenter:
    return build_segmenter(
        Model(encoder=encoders["dinov2"], dropout=0.3), ("a", "b"), (28, 28), seed=0
    )


def test_a_model_in_train_mode_wants_a_key_and_in_eval_mode_does_not(model):
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    model(images)
    with pytest.raises(TrainingError):
        model.train()(images)
    key_noise(model, 0)
    first = model(images)
    assert torch.equal(model(images), first)
    key_noise(model, 1)
    assert not torch.equal(model(images), first)


def test_every_noise_of_a_model_gets_the_key(model):
    key_noise(model, 0, "noise", 1, 2, first_sample=6)
    noises = [m for m in model.modules() if isinstance(m, KeyedNoise)]
    assert noises == [model.encoder, model.decoder.dropout]
    assert {(m.key, m.first_sample) for m in noises} == {((0, "noise", 1, 2), 6)}
