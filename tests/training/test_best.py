"""Which weights of a stage are its best: by IoU, then by loss, then the later ones; a random
decoder never is.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import write_pairs

import vitseg
from vitseg.events import EpochEnded, StageEnded, StageStarted
from vitseg.settings import Constant, Data, Folder, Stage
from vitseg.training import loop
from vitseg.ui import charts
from vitseg.ui.console import progress

CLASSES = {"binary": 2, "multiclass": 3}


def scored(iou: float | None, loss: float | None, classes: int = 2) -> dict:
    scores = dict.fromkeys(("f1", "f1_macro", "f1_micro", "f1_weighted"), iou) | {
        "accuracy": 0.9,
        "iou": iou,
        "loss": loss,
    }
    return scores | {
        "per_class_iou": [0.9] + [iou] * (classes - 1),
        "per_class_f1": [0.9] + [iou] * (classes - 1),
    }


@pytest.fixture
def best_of(small_recipe, begin, monkeypatch):
    """The best epoch of a stage whose evaluations score what is given: the start weights first,
    then epoch after epoch.
    """

    def _best_of(number: int, *evaluations: tuple[float | None, float | None]) -> int:
        found = iter(evaluations)

        def evaluate(*_: object, **__: object):
            yield from ()
            return scored(*next(found), classes=3)

        monkeypatch.setattr(loop, "evaluate", evaluate)
        epochs = {f"stages.{number - 1}.epochs": len(evaluations) - 1}
        events = list(begin(small_recipe.replace(epochs), number))
        end = events[-1]
        flagged = [e.epoch for e in events if isinstance(e, EpochEnded) and e.best]
        assert end.best == scored(*evaluations[end.best_epoch], classes=3)
        assert end.best_epoch == (flagged[-1] if flagged else 0)
        return end.best_epoch

    return _best_of


@pytest.mark.parametrize(
    ("number", "evaluations", "best"),
    [
        (
            1,
            [(0.0, 0.84), (0.0, 0.7), (0.0, 0.5)],
            2,
        ),  # the loss falls while no foreground is found
        (1, [(0.0, 0.84), (0.0, 0.5), (0.0, 0.7)], 1),
        (
            1,
            [(0.0, 0.84), (0.0, 0.9), (0.0, 1.2)],
            1,
        ),  # a trained decoder all the same, though the loss rises
        (
            1,
            [(0.2, 0.84), (0.0, 0.7), (0.0, 0.6)],
            2,
        ),  # a random decoder hits some pixels by chance
        (1, [(0.2, 0.84), (0.1, 0.5), (0.3, 0.9), (0.2, 0.4)], 2),
        (1, [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5)], 2),  # all equal: the later one
        (1, [(None, None), (None, None)], 1),  # nothing to score by
        (
            2,
            [(0.4, 0.5), (0.3, 0.4), (0.2, 0.3)],
            0,
        ),  # a later stage's start is trained, and may stay the best
        (2, [(0.4, 0.5), (0.4, 0.4), (0.4, 0.6)], 1),
        (2, [(0.0, 0.5), (0.0, 0.6), (0.0, 0.7)], 0),
        (2, [(0.0, 0.5), (0.0, 0.5)], 1),
    ],
)
def test_iou_decides_then_the_loss_then_the_later_epoch(best_of, number, evaluations, best):
    assert best_of(number, *evaluations) == best


def test_patience_counts_from_a_lower_loss_too(small_recipe, begin, monkeypatch):
    losses = iter([1.0, 0.9, 0.8, 0.7, 0.7, 0.8, 0.9, 1.0])

    def evaluate(*_: object, **__: object):
        yield from ()
        return scored(0.0, next(losses), classes=3)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    end = list(begin(small_recipe.replace({"stages.0.epochs": 7, "stages.0.patience": 2})))[-1]
    assert (end.best_epoch, end.epochs, end.stopped_early) == (4, 6, True)


@pytest.fixture
def rare(tmp_path, tiny_recipe):
    """Images without a trace of the few foreground pixels that their masks hold: no epoch finds
    any.
    """
    rng = np.random.default_rng(0)

    def recipe(mode: str) -> vitseg.Recipe:
        masks = {}
        for n in range(10):
            masks[f"s{n}"] = mask = np.zeros((56, 56), np.uint8)
            for value in range(1, CLASSES[mode]):
                y, x = rng.integers(0, 53, 2)
                mask[y : y + 3, x : x + 3] = value
            mask[0, 0] = CLASSES[mode] - 1
        data = Data(
            source=Folder(path=str(write_pairs(tmp_path / mode, masks))),
            size=(56, 56),
            mode=mode,
            views=2,
        )
        stage = Stage(name="a", unfrozen_blocks=0, epochs=3, lr=1e-3, schedule=Constant())
        later = Stage(name="b", unfrozen_blocks=1, epochs=1, lr=3e-4, schedule=Constant())
        return tiny_recipe.replace({"data": data, "stages": (stage, later)})

    return recipe


@pytest.mark.parametrize("mode", CLASSES)
def test_with_rare_foreground_what_was_trained_goes_on_and_every_stage_says_that_it_found_nothing(
    rare, mode, tmp_path, capsys
):
    recipe = rare(mode)
    events = list(progress(vitseg.train(recipe, tmp_path / "run")))
    started, ended = (
        [e for e in events if isinstance(e, kind)] for kind in (StageStarted, StageEnded)
    )
    first = vitseg.build_segmenter(
        recipe.model, ["a"] * CLASSES[mode], recipe.data.size, recipe.seed
    ).decoder.state_dict()
    best = vitseg.load(tmp_path / "run").decoder.state_dict()
    assert not any(
        torch.equal(first[name], best[name]) for name in ("classify.weight", "classify.bias")
    )
    assert started[1].validation["loss"] == ended[0].best["loss"] < started[0].validation["loss"]
    assert ended[0].best_epoch > 0
    for number, end in enumerate(ended, start=1):
        assert end.best["per_class_iou"][1:] == [0.0] * (CLASSES[mode] - 1)
        assert (
            f"The best weights of stage {number} find no foreground" in end.warning
            and "data.crop" in end.warning
        )
    assert capsys.readouterr().out.count("Warning: The best weights of stage") == 2
    assert vitseg.explain(tmp_path / "run").count("find no foreground") == 2
    assert charts.checks(events).count("<p class=bad>✗ The best weights of stage") == 2
    assert (
        vitseg.report(tmp_path / "run")
        .read_text()
        .count("<p class=bad>✗ The best weights of stage")
        == 2
    )


def test_a_stage_that_finds_foreground_has_no_warning(tiny_recipe, tmp_path):
    """The control: the same loop on images that show what their masks hold."""
    recipe = tiny_recipe.replace(
        {"stages.0.lr": 1e-2, "stages.0.epochs": 6, "stages.0.schedule": Constant()}
    )
    ended = [e for e in vitseg.train(recipe, tmp_path / "run") if isinstance(e, StageEnded)]
    assert [any(e.best["per_class_iou"][1:]) for e in ended] == [True] * 3
    assert [e.warning for e in ended] == [""] * 3


def test_where_no_truth_has_a_foreground_there_is_nothing_to_find(small_recipe, begin, monkeypatch):
    def evaluate(*_: object, **__: object):
        yield from ()
        return scored(None, 0.5, classes=3)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    assert list(begin(small_recipe))[-1].warning == ""
