"""Blocks run once more in the backward pass: the same bits, with less kept in between."""

from __future__ import annotations

import pytest
import torch

from vitseg.events import BatchEnded, EpochEnded
from vitseg.model.noise import key_noise
from vitseg.runs.forecast import forecast, measure
from vitseg.training.job import Job

NOISY = {
    "model.dropout": 0.3,
    "stages.1.drop_path": 0.3,
    "stages.1.unfrozen_blocks": 3,
    "stages.1.layer_decay": 0.8,
}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stage_with_drop_path_has_the_same_bits(begin, small_recipe, accumulate):
    recipe = small_recipe.replace(NOISY | {"accumulate": accumulate, "batch_size": 2})
    kept, again = (begin(recipe.replace({"recompute": flag}), 2) for flag in (False, True))
    numbers = [
        [e for e in stage if isinstance(e, BatchEnded | EpochEnded)] for stage in (kept, again)
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) > 2
    for name, weight in kept.trained_weights().items():
        assert torch.equal(weight, again.trained_weights()[name]), name


@pytest.mark.parametrize("recompute", [True, False])
def test_drop_path_with_another_key_would_give_other_bits(begin, small_recipe, recompute):
    """What makes the test above say something: the second pass is not the first by accident."""
    stage = begin(small_recipe.replace(NOISY | {"recompute": recompute}), 2)
    model = stage.model.train()
    batch = next(stage.data.batches([(n, "0") for n in stage.data.splits["train"][:2]], 2))
    gradients = []
    for key in ("one", "another"):
        key_noise(model, "one")
        loss = model(batch.images).square().mean()
        key_noise(model, key)
        model.zero_grad()
        loss.backward()
        gradients.append(model.encoder.blocks[-2].mlp.fc1.weight.grad.clone())
    assert torch.equal(*gradients) is not recompute


def test_the_forecast_knows_that_it_takes_less_memory(small_recipe):
    recipe = small_recipe.replace({"data.size": (140, 140), "stages.1.unfrozen_blocks": 4})
    plans = []
    for flag in (False, True):
        changed = recipe.replace({"recompute": flag})
        job = Job(changed)
        plans.append(forecast(job, measure(job)))
    assert plans[1][1].memory < plans[0][1].memory
    assert plans[1][0].memory == plans[0][0].memory  # nothing trains in the encoder
