"""A whole run: the stages one after the other, recorded, saved, summed up."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from vitseg import plan
from vitseg.data.dataset import SegmentationData
from vitseg.errors import ConfigError, RunError
from vitseg.events import EpochEnded, Event, RunEnded, RunStarted, StageEnded, StageStarted
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.recipe import Recipe
from vitseg.runs.checkpoint import newest_checkpoint, save_checkpoint
from vitseg.runs.durable import MANIFEST, held, whole_folder, write_json
from vitseg.runs.environment import environment
from vitseg.runs.folder import RunFolder, runs_root
from vitseg.runs.store import DECISIVE, find_stage, keep_key, key_of, stage_keys
from vitseg.runs.summary import summarise
from vitseg.training.cache import default_cache
from vitseg.training.device import Machine, resolve
from vitseg.training.evaluate import evaluate
from vitseg.training.features import Features
from vitseg.training.loop import StageTraining, batches_per_epoch, depth_of_stage
from vitseg.training.losses import SegmentationLoss
from vitseg.training.weights import load_weights


def train(
    recipe: Recipe, folder: str | Path | None = None, work: Work | None = None, *, reuse: bool | str | Path = True
) -> Generator[Event]:
    """Train all stages of a recipe and record them in `folder` (a new one under `runs_root()` by default).

    An iterable of events: nothing is trained until it is asked for them, and no more once it is not. Data, model and
    settings are checked before the folder is made; anything wrong is a VitsegError. `work` is what `prepare(recipe)`
    gave, for a caller who wants to look at the model meanwhile; it serves one run.

    First stages that a run under `runs_root()` has finished, on the same data, from the same weights, with the same
    settings, are taken from there: the same bits. `reuse` may name another folder to look in; False trains them all.
    """
    work = work or prepare(recipe)
    about = _about(recipe, work)
    places = {runs_root(), runs_root() if reuse is True else Path(reuse).expanduser().absolute()} if reuse else set()
    if found := find_stage(about["keys"], sorted(places)):
        yield from _inherit(RunFolder(found.run), found.stage, recipe, folder, work, about)
        return
    run = RunFolder.create(folder, recipe, work.data.splits, about)
    with held(run.path):
        yield from _recorded(run, recipe, work)


def fork(
    parent: str | Path, stage: int, recipe: Recipe, folder: str | Path | None = None, work: Work | None = None
) -> Generator[Event]:
    """A new run that inherits stages 1 .. `stage` of another and trains the later ones of `recipe`.

    Yields the inherited events first, so that the new run is complete. Raises RunError, naming every difference, if
    `recipe`, the machine or the encoder's weights differ in anything that those stages were trained with.
    """
    source = RunFolder(parent)
    source.up_to(stage)
    if stage >= len(recipe.stages):
        raise RunError(f"There is no stage after stage {stage} in this recipe.", "Add one, or fork from an earlier stage.")
    _refuse(source, stage, differences(source.recipe, recipe, stage))
    work = work or prepare(recipe)
    yield from _inherit(source, stage, recipe, folder, work, _about(recipe, work))


def _inherit(
    source: RunFolder, stage: int, recipe: Recipe, folder: str | Path | None, work: Work, about: dict[str, Any]
) -> Generator[Event]:
    origin = {"parent": str(source.path), "stage": stage, "sequence": 0, "offset": 0}
    if key_of(run_stage(source, stage)) != about["keys"][stage - 1]:  # trained with other versions, or by a run without keys
        about = {name: value for name, value in about.items() if name != "keys"}
    first = _first_events(source, stage, recipe, work)
    _refuse(source, stage, [f"{c}." for c in source.changed(about, ("data", "weights"))])
    run = RunFolder.create(folder, recipe, work.data.splits, about, forked=origin)
    with held(run.path):
        yield from _forked(run, recipe, work, first)


def resume(folder: str | Path, work: Work | None = None, *, allow_inexact: bool = False) -> Generator[Event]:
    """Go on with a run from its newest whole checkpoint. Yields what happens from there on.

    Raises RunError, naming every difference, if data, weights, versions or machine are not those that the run began with,
    for then its numbers would not be those of an uninterrupted run; `allow_inexact` goes on and records it. A fork that was
    cut off while it inherited does so again, from its parent: RunError if that is gone.
    """
    run = RunFolder(folder)
    recipe = run.resolved_recipe()
    if run.summary_file.exists():
        raise RunError(f"{run.path}: this run has ended.", "Read it with vitseg.replay(folder).")
    with held(run.path):
        state = newest_checkpoint(run.checkpoints)  # None: it was cut off in its first epoch, and begins again
        work = work or prepare(recipe)
        run.check_split(work.data.splits)
        _refuse_or_record(run, environment(*work), allow_inexact)
        forked = run.forked()
        if forked and not forked["sequence"]:
            yield from _forked(run, recipe, work, _first_events_again(run, forked, work))
            return
        place = state or forked or {"sequence": 0, "offset": 0}
        run.cut_back(place["sequence"], place["offset"])
        after = run.up_to(forked["stage"])[-1] if forked and not state else None
        yield from _recorded(run, recipe, work, state, after)


def _refuse_or_record(run: RunFolder, now: dict[str, Any], allow_inexact: bool) -> None:
    """Raises RunError if what the run began with has changed; if that is allowed, writes it down."""
    changed = run.changed(now, DECISIVE)
    if changed and not allow_inexact:
        mend = "Restore it, start a new run, or go on all the same with allow_inexact=True (vitseg resume --inexact)."
        raise RunError(f"{run.path}: what the run began with has changed. {'; '.join(changed)}.", mend)
    if changed:
        before = run.environment().get("inexact", [])
        write_json(run.path / "environment.json", now | {"inexact": [*before, *changed]})


def kept_events(folder: str | Path) -> list[Event]:
    """The events of a run that `resume` will not let happen again: those up to the checkpoint it goes on from."""
    run = RunFolder(folder)
    place = newest_checkpoint(run.checkpoints) or run.forked() or {"sequence": 0}
    return list(islice(run.events(), place["sequence"]))


class Work(NamedTuple):
    """What a recipe is carried out on."""

    data: SegmentationData
    model: Segmenter
    machine: Machine


def prepare(recipe: Recipe) -> Work:
    """Data, model and machine of a recipe, every setting checked against them."""
    if not isinstance(recipe, Recipe):
        raise ConfigError("recipe", recipe, "a Recipe", "Read one from a file with vitseg.load_recipe(path).")
    machine = resolve(recipe)
    machine.settle()
    data = SegmentationData(recipe.data)
    model = build_segmenter(recipe.model, data.classes, recipe.data.size, recipe.seed)
    for number in range(1, len(recipe.stages) + 1):
        depth_of_stage(recipe, number, model)
    SegmentationLoss(recipe.loss, len(data.classes))
    return Work(data, model, machine)


def _about(recipe: Recipe, work: Work) -> dict[str, Any]:
    """The content of a new run's `environment.json`."""
    found = environment(*work)
    return found | {"keys": stage_keys(recipe, batches_per_epoch(recipe, work.data), work.model.encoder.depth, found)}


def _recorded(
    run: RunFolder, recipe: Recipe, work: Work, state: dict[str, Any] | None = None, after: StageEnded | None = None
) -> Generator[Event]:
    run.failure_file.unlink(missing_ok=True)
    try:
        for event, training in _stages(run, recipe, work, state, after):
            if not event.transient:
                run.record(event)
            if isinstance(event, EpochEnded):
                save_checkpoint(run.checkpoints, run.sequence, run.events_file.stat().st_size, training.state_dict())
            if isinstance(event, RunEnded):
                write_json(run.summary_file, summarise(run.events(), [s for _, s in run.timings()]))
            yield from run.handed(event)
    except Exception as error:
        run.fail(error)
        raise


def _forked(run: RunFolder, recipe: Recipe, work: Work, first: list[Event]) -> Generator[Event]:
    """Inherit the parent's stages, of which the `first` events tell, and train the later ones.

    Until fork.json says that all of it is here, what was begun of it is done again.
    """
    origin = run.forked()
    for number in range(1, origin["stage"] + 1):
        with whole_folder(run_stage(run, number)) as aside:
            theirs = run_stage(RunFolder(origin["parent"]), number)
            shutil.copytree(theirs, aside, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
    run.cut_back(0, 0)
    for event in first:
        run.record(event)
    write_json(run.fork_file, origin | {"sequence": run.sequence, "offset": run.events_file.stat().st_size})
    for event in first:
        yield from run.handed(event)
    yield from _recorded(run, recipe, work, after=first[-1])


def _first_events(source: RunFolder, stage: int, recipe: Recipe, work: Work) -> list[Event]:
    """What a fork begins with: its start, and its parent's stages in the words of its own recipe."""
    batches = batches_per_epoch(recipe, work.data)
    first: list[Event] = [_start_of_fork(source, stage, recipe, work)]
    for event in source.up_to(stage):
        if isinstance(event, StageStarted):
            own = recipe.stages[event.stage - 1]
            event = replace(event, name=own.name, schedule=plan.describe(own), notes=plan.notes(own, batches))
        first.append(event)
    return first


def _first_events_again(run: RunFolder, origin: dict[str, Any], work: Work) -> list[Event]:
    """Those of a fork that was cut off before it had them all. Raises RunError if its parent is gone."""
    source = RunFolder(origin["parent"])
    if not source.events_file.exists():
        problem = f"{run.path}: was cut off while it inherited from {source.path}, which is gone."
        raise RunError(problem, "Bring that run back, or begin another.")
    return _first_events(source, origin["stage"], run.recipe, work)


def _stages(
    run: RunFolder, recipe: Recipe, work: Work, state: dict[str, Any] | None, after: StageEnded | None
) -> Generator[tuple[Event, StageTraining | None], None, None]:
    """Every event of the run with the stage it is of. It goes on from `state`, or `after` an inherited stage."""
    first, epochs, steps = 1, 0, 0
    if after is not None:
        first, epochs, steps = after.stage + 1, after.epoch, after.step
        which = recipe.stages[after.stage].start_from if first <= len(recipe.stages) else "best"
        load_weights(work.model, load_file(run_stage(run, after.stage) / f"{which}.safetensors"))
    elif state is not None:
        first, epochs, steps = state["stage"], state["epochs_before"], state["steps_before"]
    else:
        yield _started(run.recipe, work), None  # as asked for; what "auto" became stands beside it
    cache = default_cache() if recipe.cache else None
    features = None
    for number in range(first, len(recipe.stages) + 1):
        training = StageTraining(recipe, number, work.model, work.data, epochs_before=epochs, steps_before=steps, cache=cache)
        if state is not None:
            training.load_state_dict(state)
            state = None
        for event in training:
            yield event, training
        features = training.features
        epochs, steps = epochs + training.epoch, steps + training.step
        _keep_stage_end(run, number, training)
        if number == len(recipe.stages) or recipe.stages[number].start_from == "best":
            load_weights(work.model, training.best_weights)
    yield from ((event, None) for event in _end(run, recipe, work, features))


def _end(run: RunFolder, recipe: Recipe, work: Work, features: Features | None) -> Iterator[Event]:
    """Save the best weights, score them, and the test images, once."""
    data, model, _ = work
    with whole_folder(run.best) as aside:
        model.save_pretrained(aside)
    best = yield from evaluate(recipe, model, data, "validation", features=features)
    test = (yield from evaluate(recipe, model, data, "test")) if data.splits["test"] else None
    yield RunEnded(best, test)


def _keep_stage_end(run: RunFolder, number: int, training: StageTraining) -> None:
    with whole_folder(run_stage(run, number)) as aside:
        save_file(training.best_weights, aside / "best.safetensors")
        save_file(training.trained_weights(), aside / "last.safetensors")
        if keys := run.keys():
            keep_key(aside, keys[number - 1])


def run_stage(run: RunFolder, number: int) -> Path:
    """Where the weights at the end of a stage are kept."""
    return run.path / "stages" / str(number)


_FREE = {"name", "workers", "cache", "device", "precision", "threads"}
"""What a fork may change; device, precision and threads are compared as what they became."""


def differences(old: Recipe, new: Recipe, stage: int) -> list[str]:
    """What stages 1 .. `stage` of two recipes were, or would be, trained with, where that differs."""
    before, after = (dict(_flat(r.model_copy(update={"stages": r.stages[:stage]}).model_dump(mode="json"))) for r in (old, new))
    names = [name for name in before | after if name.partition(".")[0] not in _FREE]
    none = "nothing"
    return [
        f"{name}: {after.get(name, none)!r}, the parent has {before.get(name, none)!r}."
        for name in names
        if before.get(name, none) != after.get(name, none)
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings with their dotted paths, as `Recipe.replace` takes them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield path, value
        return
    for name, child in inner:
        yield from _flat(child, f"{path}.{name}" if path else str(name))


def _refuse(source: RunFolder, stage: int, found: list[str]) -> None:
    if found:
        mend = "Only later stages, name and workers of a fork may differ; train a new run for other changes."
        raise RunError(f"{source.path}: stage {stage} was trained otherwise. {' '.join(found)}", mend)


def _start_of_fork(source: RunFolder, stage: int, recipe: Recipe, work: Work) -> RunStarted:
    """Raises RunError if images, machine or encoder are not those that stage `stage` of `source` was trained with."""
    source.check_split(work.data.splits)
    started = _started(recipe, work, {"run": source.path.name, "stage": stage})
    before = next(e for e in source.events() if isinstance(e, RunStarted))
    _refuse(source, stage, [
        f"{name}: {getattr(started, name)!r}, the parent had {getattr(before, name)!r}."
        for name in ("device", "precision", "threads", "encoder", "classes", "mode", "masks")
        if getattr(started, name) != getattr(before, name)
    ])  # fmt: skip
    return started


def _started(recipe: Recipe, work: Work, parent: dict[str, Any] | None = None) -> RunStarted:
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
        parent=parent,
    )
