"""How far training has moved each part of the encoder from its pretrained weights."""

from __future__ import annotations

from pathlib import Path

from vitseg.model.encoder import Encoder
from vitseg.model.freeze import DECODER, model_parts
from vitseg.model.segmenter import load_parts, load_segmenter
from vitseg.model.weights import load_vit
from vitseg.runs.folder import RunFolder
from vitseg.training.weights import load_weights


def drift(folder: str | Path) -> dict[int, dict[str, float]]:
    """By stage that has ended, for each part of the encoder |w - w0| / |w0| over all its weights,
    w0 the pretrained ones.

    0 is exactly unmoved. Of the weights that the stage hands on as its best.
    """
    run = RunFolder(folder)
    model = load_segmenter(run.best)
    model.encoder = Encoder(load_vit(run.recipe.model.encoder).vit)
    parts = {name: part.parameters for name, part in model_parts(model).items() if name != DECODER}
    before = {name: [p.detach().clone() for p in parameters] for name, parameters in parts.items()}
    found = {}
    for stage in run.ended_stages():
        load_weights(model, load_parts(run.stage(stage) / "best"))
        found[stage] = {
            name: _moved(parameters, before[name]) for name, parameters in parts.items()
        }
    return found


def _moved(now: list, before: list) -> float:
    way = sum(
        float((a.detach() - b).double().square().sum()) for a, b in zip(now, before, strict=True)
    )
    return (way / sum(float(b.double().square().sum()) for b in before)) ** 0.5
