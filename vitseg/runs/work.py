"""What a recipe is carried out on: data, model and machine, made and checked before anything is
trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitseg.data.dataset import SegmentationData
from vitseg.errors import ConfigError
from vitseg.events import RunStarted
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.recipe import Recipe
from vitseg.runs.environment import environment
from vitseg.runs.store import stage_keys
from vitseg.training.device import Machine, resolve
from vitseg.training.loop import batches_per_epoch, depth_of_stage
from vitseg.training.losses import loss_of


def nothing() -> None:
    """While nobody trains, there is nothing to save."""


@dataclass(slots=True)
class Work:
    """What a recipe is carried out on. `save` writes a checkpoint of the run that is carried out on
    it: call it between two of its events, where they are asked for.
    """

    data: SegmentationData
    model: Segmenter
    machine: Machine
    save: Callable[[], None] = nothing


def prepare(recipe: Recipe) -> Work:
    """Data, model and machine of a recipe, every setting checked against them."""
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            "recipe", recipe, "a Recipe", "Read one from a file with vitseg.load_recipe(path)."
        )
    machine = resolve(recipe)
    machine.settle()
    data = SegmentationData(recipe.data)
    model = build_segmenter(recipe.model, data.classes, recipe.data.size, recipe.seed)
    for number in range(1, len(recipe.stages) + 1):
        depth_of_stage(recipe, number, model)
    loss_of(recipe, data)
    _refuse_a_norm_of_one_value(recipe, data, model)
    return Work(data, model, machine)


def _refuse_a_norm_of_one_value(recipe: Recipe, data: SegmentationData, model: Segmenter) -> None:
    """A BatchNorm has nothing to norm by where a batch is one image of one patch."""
    height, width = model.padded(recipe.data.size)
    one_patch = height * width == model.encoder.patch**2
    left = len(data.splits["train"]) % recipe.batch_size
    if recipe.model.decoder == "linear" and one_patch and (left == 1 or recipe.batch_size == 1):
        allowed = (
            f"what does not leave 1 of {len(data.splits['train'])} images over, and more than 1"
        )
        mend = (
            "The linear decoder has a BatchNorm, and the last batch would be one patch. Or "
            'raise data.size, or use "lean".'
        )
        raise ConfigError("batch_size", recipe.batch_size, allowed, mend)


def about_run(recipe: Recipe, work: Work) -> dict[str, Any]:
    """The content of a new run's `environment.json`."""
    found = environment(work.data, work.model, work.machine)
    return found | {
        "keys": stage_keys(
            recipe, batches_per_epoch(recipe, work.data), work.model.encoder.depth, found
        )
    }


def run_started(recipe: Recipe, work: Work, parent: dict[str, Any] | None = None) -> RunStarted:
    data, model, machine = work.data, work.model, work.machine
    return RunStarted(
        recipe=recipe.model_dump(mode="json"),
        classes=list(data.classes),
        mode=data.mode,
        train_images=len(data.splits["train"]),
        validation_images=len(data.splits["validation"]),
        test_images=len(data.splits["test"]),
        batches_per_epoch=batches_per_epoch(recipe, data),
        blocks=model.encoder.depth,
        device=str(machine.device),
        precision=machine.precision,
        threads=machine.threads,
        processes=machine.processes,
        encoder=model.shape.source,
        masks=data.masks,
        parent=parent,
    )
