"""A step shared by several is the step of one, and whatever happens to one of them is heard by all.

The real `ProcessGroup`, but its members are threads, which exchange through a list what processes
exchange through torch.distributed: `tests/runs/test_follow.py` has real ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vitseg.errors import RecipeError, RunError, TrainingError
from vitseg.events import BatchEnded, EpochEnded, Event
from vitseg.recipe import Recipe
from vitseg.training import parallel
from vitseg.training.loop import StageTraining
from vitseg.training.parallel import Left, ProcessGroup

SGD = {"optimizer": {"kind": "sgd"}}
"""See test_accumulation: where weights are compared most closely."""


class Threads:
    """What `ProcessGroup` uses of torch.distributed, among threads that have told their rank. Who
    disconnects makes the exchanges of the others raise, as a closed connection does.
    """

    def __init__(self, size: int):
        self.size, self.here = size, threading.local()
        self._barrier, self._said = threading.Barrier(size, timeout=20), [None] * size

    def _everybody(self, value: Any) -> list[Any]:
        self._said[self.here.rank] = value
        self._barrier.wait()
        said = list(self._said)
        self._barrier.wait()
        return said

    def all_reduce(self, tensor: torch.Tensor, *, async_op: bool) -> Any:
        tensor.copy_(torch.stack(self._everybody(tensor.clone())).sum(0))
        return SimpleNamespace(is_completed=lambda: True, wait=lambda: None)

    def broadcast_object_list(self, objects: list[Any], device: torch.device) -> None:
        objects[0] = self._everybody(objects[0])[0]

    def disconnect(self) -> None:
        self._barrier.abort()


@pytest.fixture
def each(monkeypatch) -> Callable[..., list[Any]]:
    """What `act(group)` gives in each of `size` members, or the exception that it ends with."""

    def _each(act: Callable[[ProcessGroup], Any], size: int) -> list[Any]:
        threads, store = Threads(size), dist.HashStore()
        monkeypatch.setattr(parallel, "dist", threads)

        def member(rank: int) -> Any:
            threads.here.rank = rank
            torch.set_num_threads(1)
            group = ProcessGroup(rank, size, store)
            try:
                return act(group)
            except (Exception, GeneratorExit) as error:
                group.leave(error)
                threads.disconnect()
                return error

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(member, range(size)))

    return _each


@pytest.fixture
def recipe(small_recipe: Recipe) -> Recipe:
    """Stage 2 with dropout and drop-path; rotated views, so that parts differ in the number of
    pixels that count.
    """
    noisy = {
        "model.dropout": 0.3,
        "stages.1.drop_path": 0.3,
        "stages.1.unfrozen_blocks": 2,
        "stages.1.epochs": 2,
    }
    return small_recipe.replace(
        noisy | {"data.views": "fresh", "data.augment.rotate_degrees": 90.0, "batch_size": 4}
    )


@pytest.fixture
def trained(begin, each) -> Callable[..., list[tuple[list[Event], dict[str, torch.Tensor]]]]:
    """Events and weights of stage 2, of each member."""

    def _trained(recipe: Recipe, size: int = 1) -> list[Any]:
        def act(group: ProcessGroup) -> tuple[list[Event], dict[str, torch.Tensor]]:
            stage = begin(recipe, 2, group=group)
            return list(stage), stage.trained_weights()

        return each(act, size)

    return _trained


def losses(events: list[Event]) -> list[float]:
    return [e.loss for e in events if isinstance(e, BatchEnded)]


def logged(events: list[Event]) -> list[Event]:
    return [e for e in events if not e.transient]


@pytest.mark.parametrize(
    ("size", "images", "changes"),
    [
        (2, 11, {"stages.1.lr": 3e-5}),
        (
            2,
            10,
            SGD
            | {"loss": {"class_weights": [0.2, 1.0, 3.0], "focal": 0.5, "label_smoothing": 0.1}},
        ),
        (2, 10, SGD | {"model.decoder": "unet"}),
        (2, 11, SGD | {"batch_size": 2, "accumulate": 2}),
        (3, 9, SGD),
        (4, 10, SGD | {"batch_size": 1, "accumulate": 4}),
    ],
    ids=[
        "AdamW",
        "class weights and focal",
        "unet",
        "accumulate",
        "two without an image",
        "portions of one",
    ],
)
def test_a_step_shared_by_several_is_the_step_of_one(trained, recipe, size, images, changes):
    recipe = recipe.replace({"data.source.images": images + 2} | changes)
    ((alone, weights),) = trained(recipe)
    for events, shared in trained(recipe, size):
        assert losses(events) == pytest.approx(losses(alone), rel=1e-6)
        assert max((weights[name] - shared[name]).abs().max().item() for name in weights) <= 1e-6
        for ours, theirs in zip(logged(alone), logged(events), strict=True):
            if isinstance(ours, EpochEnded):  # pixels are counted: no rounding
                scores = ours.validation | {"loss": 0.0}, theirs.validation | {"loss": 0.0}
                assert scores[0] == scores[1] and ours.train["iou"] == theirs.train["iou"]


def test_all_of_them_tell_the_same(trained, recipe):
    (first, weights), (second, others) = trained(recipe, 2)
    assert logged(first) == logged(second)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


# ------------------------------------------------------------------ controls: the test above can
# fail


def wrong_gradients(self: ProcessGroup, parameters: Any) -> None:
    """The mean, as DistributedDataParallel has it."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = self.sum(parameter.grad) / self.size


@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (StageTraining, "first_sample", lambda self: 0),  # the same dropout in every part
        (ProcessGroup, "sum_gradients", wrong_gradients),
    ],
    ids=["same noise", "mean of gradients"],
)
def test_a_wrong_exchange_is_noticed(trained, recipe, monkeypatch, where, name, wrong):
    recipe = recipe.replace(SGD | {"clip_norm": None})
    ((alone, _),) = trained(recipe)
    monkeypatch.setattr(where, name, wrong)
    for events, _ in trained(recipe, 2):
        assert losses(events) != pytest.approx(losses(alone), rel=1e-5)


def test_without_exchange_the_weights_part_and_the_epoch_does_not_end(trained, recipe, monkeypatch):
    monkeypatch.setattr(ProcessGroup, "sum_gradients", lambda self, parameters: None)
    first, second = trained(recipe, 2)
    assert str(second).startswith("What the model holds is not that of process 0. block 3: ")
    assert str(first) == f"Process 1 of 2: {second}"


# ------------------------------------------------------------------ what happens to one is heard by
# all


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TrainingError("The loss of step 3 is nan."), "The loss of step 3 is nan."),
        (
            ZeroDivisionError("division by zero"),
            "ZeroDivisionError: division by zero What was saved is whole: go on with vitseg "
            "resume.",
        ),
    ],
    ids=["for readers", "of the program"],
)
def test_a_member_that_fails_ends_all_with_its_words(begin, each, recipe, monkeypatch, error, says):
    real = StageTraining.backward

    def fails_in_process_1(self, portions):
        if self.group.rank == 1 and self.step == 2:
            raise error
        return real(self, portions)

    monkeypatch.setattr(StageTraining, "backward", fails_in_process_1)
    first, second, third = each(lambda group: list(begin(recipe, 2, group=group)), 3)
    assert second is error
    assert isinstance(first, TrainingError) and str(first) == str(third)
    assert str(first) == f"Process 1 of 3: {says}"


def test_a_group_that_is_broken_is_not_given_another_reason(each):
    """The error of one is that of all, whoever raises it next; and so is that of nobody."""

    def act(group: ProcessGroup) -> None:
        if group.rank == 2:
            raise TrainingError("The first.")
        try:
            group.sum(torch.ones(1))
        except TrainingError as error:
            group.leave(RunError("The second."))
            raise error

    first, second, _ = each(act, 3)
    assert str(first) == str(second) == "Process 2 of 3: The first."


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 9])
def test_whoever_stops_asking_for_events_lets_the_others_go(begin, each, recipe, count):
    seen: list[Event] = []

    def act(group: ProcessGroup) -> None:
        events = iter(begin(recipe, 2, group=group))
        for event in events:
            if group.rank == 0:
                seen.append(event)
                if len(seen) == count:
                    events.close()
                    raise GeneratorExit

    first, second = each(act, 2)
    assert isinstance(first, GeneratorExit) and len(seen) == count
    assert isinstance(second, Left)


def test_facts_that_differ_are_named(each):
    def tells(group: ProcessGroup) -> None:
        group.same("an environment", {"threads": 2 - group.rank, "device": "cpu"})
        group.sum(torch.ones(1))

    first, second = each(tells, 2)
    assert (
        str(second)
        == "an environment is not that of process 0. threads: 1, there 2. All must have the same."
    )
    assert isinstance(first, TrainingError) and "threads: 1" in str(first)


@pytest.mark.parametrize(("count", "size"), [(0, 2), (1, 2), (7, 3), (8, 8), (3, 5)])
def test_parts_are_the_whole_and_differ_by_one_at_most(count, size):
    parts = [ProcessGroup(rank, size).part(list(range(count))) for rank in range(size)]
    assert [thing for part in parts for thing in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_gradient_that_nobody_has_stays_none(each):
    def act(group: ProcessGroup) -> list[Any]:
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[1 + group.rank].grad = torch.ones(2) * (1 + group.rank)
        group.sum_gradients(parameters)
        return [p.grad if p.grad is None else p.grad.tolist() for p in parameters]

    assert each(act, 2) == [[None, [1.0, 1.0], [2.0, 2.0]]] * 2


# ------------------------------------------------------------------ what cannot be shared


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"model.decoder": "linear"},
            'model.decoder="linear" has a BatchNorm, which needs the whole batch at once; set',
        ),
        (
            {"loss.dice_over": "batch"},
            'loss.dice_over="batch" needs the whole batch at once; set accumulate and processes to',
        ),
        (
            {"processes": 5},
            "processes=5 for steps of 4: some would get no image; set processes to 4",
        ),
        ({"processes": 0}, "processes"),
    ],
)
def test_what_cannot_be_shared_is_refused(recipe, changes, says):
    with pytest.raises(RecipeError) as caught:
        recipe.replace({"processes": 2} | changes)
    assert says in str(caught.value)
