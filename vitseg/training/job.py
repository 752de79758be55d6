"""A recipe resolved once on this machine: data, model, device, loss, and the plan of each stage."""

from __future__ import annotations

from typing import NamedTuple

from vitseg.data.dataset import SegmentationData
from vitseg.errors import ConfigError
from vitseg.events import Parent, RunStarted
from vitseg.model.freeze import checked_depth, trained_parts
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.plan import batch_notes, batches_per_epoch, notes, planned_lr
from vitseg.recipe import Recipe
from vitseg.settings import Stage
from vitseg.training.cache import default_cache
from vitseg.training.device import resolve
from vitseg.training.losses import SegmentationLoss, loss_notes, loss_of


class StagePlan(NamedTuple):
    """A stage of a job: `unfrozen` of the encoder's `depth` blocks train, for `stage.epochs` epochs
    of `batches` optimizer steps.
    """

    number: int
    stage: Stage
    unfrozen: int
    depth: int
    batches: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage, unless it stops early."""
        return self.stage.epochs * self.batches

    @property
    def trained(self) -> set[str]:
        """The names of the parts that train."""
        return trained_parts(self.unfrozen, self.depth)

    def lr(self, step: int, skipped: int = 0) -> float:
        """The planned base LR of a step, from 1, when `skipped` steps were lost to overflow."""
        return planned_lr(self.stage, step, self.batches, skipped)


def unfrozen_in(recipe: Recipe, number: int, model: Segmenter) -> int:
    """How many blocks a stage unfreezes in this model. Raises ConfigError where its encoder has
    fewer, or its decoder does not use the last.
    """
    wanted = recipe.stages[number - 1].unfrozen_blocks
    field = f"stages.{number - 1}.unfrozen_blocks"
    depth, last_skip = model.encoder.depth, model.shape.skip_depths[-1]
    count = checked_depth(wanted, depth, field)
    if count and last_skip < depth:
        hint = (
            f"Blocks above the last skip, {last_skip}, are not used; end model.skip_depths with "
            f"{depth}."
        )
        raise ConfigError(field, wanted, "0", hint)
    return count


class Job:
    """What trains, on what, where and how: `Job(recipe)` resolves a recipe on this machine.

    Training, evaluation, forecasts and records take a job and resolve nothing again. `data`,
    `model` and `loss` can be handed in where they exist already; `model` is the one that trains.
    Raises a VitsegError, naming the setting, for anything that cannot be done here.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        data: SegmentationData | None = None,
        model: Segmenter | None = None,
        loss: SegmentationLoss | None = None,
    ):
        if not isinstance(recipe, Recipe):
            hint = "Read one from a file with vitseg.load_recipe(path)."
            raise ConfigError("recipe", recipe, "a Recipe", hint)
        self.recipe, self.machine = recipe, resolve(recipe)
        self.data = data or SegmentationData(recipe.data)
        if model is None:
            self.machine.settle()
            classes = self.data.classes
            model = build_segmenter(recipe.model, classes, recipe.data.size, recipe.seed)
        self.model, self.images = model, len(self.data.splits["train"])
        self.batches = batches_per_epoch(recipe, self.images)
        self.stages, depth = list[StagePlan](), model.encoder.depth
        for number, stage in enumerate(recipe.stages, start=1):
            unfrozen = unfrozen_in(recipe, number, model)
            self.stages.append(StagePlan(number, stage, unfrozen, depth, self.batches))
        height, width = model.padded(recipe.data.size)
        one_patch, size = height * width == model.encoder.patch**2, recipe.batch_size
        if recipe.model.decoder == "linear" and one_patch and 1 in (size, self.images % size):
            allowed = f"what does not leave 1 of {self.images} images over, and more than 1"
            hint = (
                "The linear decoder has a BatchNorm, and the last batch would be one patch. "
                'Or raise data.size, or use "lean".'
            )
            raise ConfigError("batch_size", size, allowed, hint)
        self.loss = loss or loss_of(recipe, self.data, self.machine.device)
        self.cache = default_cache() if recipe.cache else None

    def replace(self, recipe: Recipe | None = None, model: Segmenter | None = None) -> Job:
        """The same job under another recipe, or with another model; its data stay, and model and
        loss stay on their device. For checks, plans and forecasts: nothing is loaded.
        """
        recipe = recipe or self.recipe
        loss = self.loss if recipe.loss == self.recipe.loss else None
        return Job(recipe, data=self.data, model=model or self.model, loss=loss)

    def deepest(self, number: int) -> int:
        """How many blocks stages 1 .. `number` have changed, or will have."""
        return max(plan.unfrozen for plan in self.stages[:number])

    def notes(self, number: int) -> list[str]:
        """What a reader should know about a stage before it begins. Warnings about the images are
        given once, for stage 1.
        """
        said = list(self.data.warnings) if number == 1 else []
        said += notes(self.recipe.stages[number - 1], self.batches)
        said += loss_notes(self.recipe, self.data, self.loss)
        return said + batch_notes(self.recipe, self.images)

    def started(self, asked: Recipe, parent: Parent | None = None) -> RunStarted:
        """The first event of a run; `asked` is its recipe as it was before "auto" was resolved."""
        return RunStarted(
            recipe=asked.model_dump(mode="json"),
            classes=list(self.data.classes),
            mode=self.data.mode,
            train_images=self.images,
            validation_images=len(self.data.splits["validation"]),
            test_images=len(self.data.splits["test"]),
            batches_per_epoch=self.batches,
            blocks=self.model.encoder.depth,
            **self.machine._asdict(),
            encoder=self.model.shape.source,
            masks=self.data.masks,
            parent=parent,
        )
