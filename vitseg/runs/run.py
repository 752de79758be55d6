"""A whole run: the stages one after the other, recorded, saved, summed up."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from vitseg.data.dataset import SegmentationData
from vitseg.errors import RunError
from vitseg.events import EpochEnded, Event, RunEnded, RunStarted
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import newest_checkpoint, save_checkpoint
from vitseg.runs.durable import whole_folder, write_json
from vitseg.runs.folder import RunFolder, environment
from vitseg.runs.summary import summarise
from vitseg.training.device import Machine, resolve
from vitseg.training.evaluate import evaluate
from vitseg.training.loop import StageTraining, batches_per_epoch, depth_of_stage
from vitseg.training.losses import SegmentationLoss
from vitseg.training.weights import load_weights


def train(recipe: Recipe, folder: str | Path | None = None) -> Iterator[Event]:
    """Train all stages of a recipe and record them in `folder` (a new one under `runs_root()` by default).

    An iterable of events: nothing is trained until it is asked for them, and no more once it is not. Data, model and
    settings are checked before the folder is made; anything wrong is a VitsegError.
    """
    work = prepare(recipe)
    run = RunFolder.create(folder, recipe, work.data, environment(work.model, work.machine))
    yield from _recorded(run, recipe, work, state=None)


def resume(folder: str | Path) -> Iterator[Event]:
    """Go on with a run from its newest whole checkpoint. Yields what happens from there on."""
    run = RunFolder(folder)
    recipe = run.resolved_recipe()
    if run.summary_file.exists():
        raise RunError(f"{run.path}: this run has ended.", "Read it with vitseg.replay(folder).")
    state = newest_checkpoint(run.checkpoints)  # None: it was cut off in its first epoch, and begins again
    work = prepare(recipe)
    run.check_split(work.data)
    run.cut_back(state["sequence"] if state else 0, state["offset"] if state else 0)
    yield from _recorded(run, recipe, work, state)


class Work(NamedTuple):
    """What a recipe is carried out on."""

    data: SegmentationData
    model: Segmenter
    machine: Machine


def prepare(recipe: Recipe) -> Work:
    """Data, model and machine of a recipe, every setting checked against them."""
    machine = resolve(recipe)
    machine.settle()
    data = SegmentationData(recipe.data)
    model = build_segmenter(recipe.model, data.classes, recipe.data.size, recipe.seed)
    for number in range(1, len(recipe.stages) + 1):
        depth_of_stage(recipe, number, model)
    SegmentationLoss(recipe.loss, len(data.classes))
    return Work(data, model, machine)


def _recorded(run: RunFolder, recipe: Recipe, work: Work, state: dict[str, Any] | None) -> Iterator[Event]:
    for event, training in _stages(run, recipe, work, state):
        if not event.transient:
            run.record(event)
        if isinstance(event, EpochEnded):
            save_checkpoint(run.checkpoints, run.sequence, run.events_file.stat().st_size, training.state_dict())
        if isinstance(event, RunEnded):
            write_json(run.summary_file, summarise(run.events(), [s for _, s in run.timings()]))
        yield event


def _stages(
    run: RunFolder, recipe: Recipe, work: Work, state: dict[str, Any] | None
) -> Generator[tuple[Event, StageTraining | None], None, None]:
    """Every event of the run with the stage it is of. `state` is where to go on from."""
    if state is None:
        yield _started(run.recipe, work), None  # as asked for; what "auto" became stands beside it
    epochs, steps = (state["epochs_before"], state["steps_before"]) if state else (0, 0)
    for number in range(state["stage"] if state else 1, len(recipe.stages) + 1):
        training = StageTraining(recipe, number, work.model, work.data, epochs_before=epochs, steps_before=steps)
        if state is not None:
            training.load_state_dict(state)
            state = None
        for event in training:
            yield event, training
        epochs, steps = epochs + training.epoch, steps + training.step
        _keep_stage_end(run, number, training)
        if number == len(recipe.stages) or recipe.stages[number].start_from == "best":
            load_weights(work.model, training.best_weights)
    yield from ((event, None) for event in _end(run, recipe, work))


def _end(run: RunFolder, recipe: Recipe, work: Work) -> Iterator[Event]:
    """Save the best weights, score them, and the test images, once."""
    data, model, _ = work
    with whole_folder(run.best) as aside:
        model.save_pretrained(aside)
    best = yield from evaluate(recipe, model, data, "validation")
    test = (yield from evaluate(recipe, model, data, "test")) if data.splits["test"] else None
    yield RunEnded(best, test)


def _keep_stage_end(run: RunFolder, number: int, training: StageTraining) -> None:
    with whole_folder(run.path / "stages" / str(number)) as aside:
        save_file(training.best_weights, aside / "best.safetensors")
        save_file(training.trained_weights(), aside / "last.safetensors")


def _started(recipe: Recipe, work: Work) -> RunStarted:
    data, model, machine = work
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
        encoder=model.shape.source,
        masks=data.masks,
    )
