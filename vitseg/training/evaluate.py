"""Scoring a split: a generator of progress whose return value is the scores."""

from collections.abc import Generator
from typing import Any

import torch

from vitseg.data.dataset import chunked
from vitseg.events import ValidationBatch
from vitseg.model.segmenter import likeliest, restored
from vitseg.training.features import Features
from vitseg.training.job import Job
from vitseg.training.metrics import confusion, scores
from vitseg.training.parallel import ProcessGroup


def evaluate(
    job: Job,
    split: str,
    *,
    stage: int = 0,
    epoch: int = 0,
    features: Features | None = None,
    group: ProcessGroup | None = None,
) -> Generator[ValidationBatch, None, dict[str, Any]]:
    """Score a split in eval mode: loss at network size, everything else at the images' own size.

    Never given a schedule, so it cannot step one. No `with` that changes torch's mode spans a
    yield. `features` are those of the model's stage, where they are cached. Of a `group` each
    process scores its part of the images, and all of them get the sums.
    """
    group, features = group or ProcessGroup(), features or Features(job)
    data, model, loss = job.data, job.model, job.loss
    keys = group.part([(name, "0") for name in data.splits[split]])
    chunks = chunked(keys, job.recipe.batch_size)
    size, classes = job.recipe.data.size, len(data.classes)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    totals = torch.zeros(2, 2, device=job.machine.device)
    model.eval()
    for number, batch in enumerate(features.batches(chunks), start=1):
        # in full precision, as predict does: the score is that of the saved model
        with torch.no_grad():
            logits = model.suffix(batch.levels, size).float()
            totals += torch.stack([loss.sums(logits, batch.masks), loss.counts(batch.masks)])
        for image_logits, original in zip(logits, batch.originals, strict=True):
            predicted = likeliest(restored(image_logits, tuple(original.shape))).cpu()
            matrix += confusion(predicted, original, classes)
        yield ValidationBatch(stage, epoch, number, len(chunks))
    found = scores(group.sum(matrix), data.mode, job.recipe.data.score_background)
    return {"loss": loss.mean(*group.sum(totals)).item()} | found
