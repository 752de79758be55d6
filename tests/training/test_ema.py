"""The moving average is torch's own, is really updated, and changes nothing about the training
beside it.
"""

from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import vitseg
from vitseg.errors import ConfigError, TrainingError
from vitseg.events import BatchEnded, FeaturesUsed
from vitseg.model.segmenter import build_segmenter
from vitseg.training.ema import Ema
from vitseg.training.evaluate import evaluate


def training(recipe, number=2):
    data = vitseg.SegmentationData(recipe.data)
    model = build_segmenter(recipe.model, data.classes, recipe.data.size, recipe.seed)
    return vitseg.StageTraining(vitseg.Job(recipe, model=model, data=data), number)


def test_the_average_is_that_of_torch_and_the_training_is_not_changed(tiny_recipe):
    alone, followed = training(tiny_recipe), training(tiny_recipe)
    plain = [
        e for e in alone if not isinstance(e, FeaturesUsed)
    ]  # of which the second reads what the first has computed
    oracle = AveragedModel(followed.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ema, events = Ema(followed.model, decay=0.9), []
    for event in ema.follow(followed):
        events += [event] if not isinstance(event, FeaturesUsed) else []
        if isinstance(event, BatchEnded):
            oracle.update_parameters(followed.model)
    assert events == plain
    assert ema.updates == oracle.n_averaged == sum(isinstance(e, BatchEnded) for e in events) == 10
    expected = dict(oracle.module.named_parameters())
    averaged = dict(ema.averaged().named_parameters())
    assert averaged.keys() == expected.keys()
    for name, weight in averaged.items():
        assert torch.allclose(weight, expected[name], atol=1e-7), name
    moved = [
        n
        for n, p in averaged.items()
        if not torch.equal(p, dict(followed.model.named_parameters())[n])
    ]
    assert any(n.startswith("decoder.") for n in moved)
    assert any("encoder.vit" in n for n in moved)
    assert len(ema._average) < len(averaged), "what is frozen is not kept twice"


def test_the_averaged_model_can_be_scored_and_is_a_copy(tiny_recipe):
    stage = training(tiny_recipe, 1)
    ema = Ema(stage.model, decay=0.5)
    for _ in ema.follow(stage):
        pass
    before = {n: t.clone() for n, t in stage.model.state_dict().items()}
    model = ema.averaged()
    assert not model.training
    scored = [*evaluate(stage.job.replace(model=model), "validation")]
    assert scored
    assert all(torch.equal(t, before[n]) for n, t in stage.model.state_dict().items())


def test_an_average_that_was_never_updated_is_refused_not_handed_out(tiny_recipe):
    stage = training(tiny_recipe, 1)
    with pytest.raises(TrainingError, match="Nothing has been averaged yet"):
        Ema(stage.model).averaged()
    with pytest.raises(ConfigError, match="decay: got 1; allowed: 0 <= decay < 1"):
        Ema(stage.model, decay=1)
