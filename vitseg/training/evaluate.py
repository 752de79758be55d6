"""Scoring a split: a generator of progress whose return value is the scores."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from vitseg.data.dataset import SegmentationData, chunked
from vitseg.events import ValidationBatch
from vitseg.model.segmenter import Segmenter, restore
from vitseg.recipe import Recipe
from vitseg.training.device import resolve
from vitseg.training.features import Features
from vitseg.training.losses import loss_of
from vitseg.training.metrics import confusion, scores
from vitseg.training.team import Team


def evaluate(
    recipe: Recipe,
    model: Segmenter,
    data: SegmentationData,
    split: str,
    stage: int = 0,
    epoch: int = 0,
    features: Features | None = None,
    team: Team | None = None,
) -> Generator[ValidationBatch, None, dict[str, Any]]:
    """Score a split in eval mode: loss at network size, everything else at the images' own size.

    Never given a schedule, so it cannot step one. No `with` that changes torch's mode spans a
    yield. `features` are those of the model's stage, where they are kept. Of a `team` each process
    scores its part of the images, and all have the sums.
    """
    team = team or Team()
    machine, features = resolve(recipe), features or Features(recipe, model, data)
    loss = loss_of(recipe, data, machine.device)
    chunks = chunked(team.part([(name, "0") for name in data.splits[split]]), recipe.batch_size)
    matrix = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64)
    sums, counts = torch.zeros(2, 2, device=machine.device)
    model.eval()
    with team.together():
        for number, batch in enumerate(features.batches(chunks), start=1):
            machine.settle()
            masks = batch.masks.to(machine.device)
            with (
                torch.no_grad()
            ):  # in full precision, as predict does: the score is that of the saved model
                logits = model.suffix(batch.levels, recipe.data.size).float()
                sums, counts = sums + loss.sums(logits, masks), counts + loss.counts(masks)
            for image_logits, original in zip(logits, batch.originals, strict=True):
                predicted = restore(image_logits, tuple(original.shape)).cpu()
                matrix += confusion(predicted, original, len(data.classes))
            yield ValidationBatch(stage, epoch, number, len(chunks))
    matrix, sums, counts = team.sum(matrix), team.sum(sums), team.sum(counts)
    return {"loss": loss.mean(sums, counts).item()} | scores(
        matrix, data.mode, recipe.data.score_background
    )
