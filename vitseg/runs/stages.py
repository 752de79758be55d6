"""The stages of a run one after the other, as every process of it trains them; the one that has the
run folder keeps what comes of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from vitseg.events import Event, RunEnded
from vitseg.files import whole_folder
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.segmenter import save_parts
from vitseg.recipe import Recipe
from vitseg.runs.folder import RunFolder
from vitseg.runs.store import keep_key, key_of
from vitseg.runs.work import Work, run_started
from vitseg.training.cache import default_cache
from vitseg.training.evaluate import evaluate
from vitseg.training.features import Features
from vitseg.training.loop import StageTraining, depth_of_stage
from vitseg.training.team import Team
from vitseg.training.weights import Weights, load_weights


class Start(NamedTuple):
    """Where training begins: at a stage, before which were so many epochs and steps; from the
    weights of the stage before it, which may be the last, or from a state within it.
    """

    stage: int = 1
    epochs: int = 0
    steps: int = 0
    weights: Weights | None = None
    state: dict[str, Any] | None = None


def stages(
    recipe: Recipe, work: Work, start: Start, team: Team, run: RunFolder | None = None
) -> Generator[tuple[Event, StageTraining | None], None, None]:
    """Every event of the run with the stage it is of. The process that has the `run` keeps what
    comes of it.
    """
    if run and start == Start():
        yield (
            run_started(run.recipe, work),
            None,
        )  # as asked for; what "auto" became stands beside it
    if start.weights is not None:
        set_freeze_depth(
            work.model.to(work.machine.device), depth_of_stage(recipe, start.stage - 1, work.model)
        )
        load_weights(work.model, start.weights)
    cache, features = default_cache() if recipe.cache else None, None
    epochs, steps, state = start.epochs, start.steps, start.state
    for number in range(start.stage, len(recipe.stages) + 1):
        place = {"epochs_before": epochs, "steps_before": steps}
        training = StageTraining(
            recipe, number, work.model, work.data, **place, cache=cache, team=team
        )
        if state is not None:
            training.load_state_dict(state)
            state = None
        for event in training:
            yield event, training
        features = training.features
        epochs, steps = epochs + training.epoch, steps + training.step
        if run:
            _keep_stage_end(run, number, training, work)
        if number == len(recipe.stages) or recipe.stages[number].start_from == "best":
            load_weights(work.model, training.best_weights)
    yield from ((event, None) for event in _end(recipe, work, features, team, run))


def _end(
    recipe: Recipe, work: Work, features: Features | None, team: Team, run: RunFolder | None
) -> Iterator[Event]:
    """Save the best weights, score them, and the test images, once."""
    data, model = work.data, work.model
    if run:
        with whole_folder(run.best, store=run.store) as aside:
            model.save_pretrained(aside)
    best = yield from evaluate(recipe, model, data, "validation", features=features, team=team)
    test = (
        (yield from evaluate(recipe, model, data, "test", team=team))
        if data.splits["test"]
        else None
    )
    yield RunEnded(best, test)


def _keep_stage_end(run: RunFolder, number: int, training: StageTraining, work: Work) -> None:
    """The weights, and the key under which they are found, unless somebody has changed an image in
    this stage or before.
    """
    with whole_folder(run.stage(number), store=run.store) as aside:
        save_parts(work.model, training.best_weights, aside / "best")
        save_parts(work.model, training.trained_weights(), aside / "last")
        before = number == 1 or key_of(run.stage(number - 1))
        if (
            before
            and (keys := run.keys())
            and not run.changed({"data": work.data.digest()}, ("data",))
        ):
            keep_key(aside, keys[number - 1])
