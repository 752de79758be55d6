"""A step shared by several is the step of one, and whatever happens to one of them is heard by all.

The real `Team`, but its members are threads, which exchange through a list what processes exchange
through torch.distributed: `tests/runs/test_together.py` has real ones.
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

from vitseg.errors import RecipeError, TrainingError
from vitseg.events import BatchEnded, EpochEnded, Event
from vitseg.recipe import Recipe
from vitseg.training import loop, team
from vitseg.training.loop import StageTraining
from vitseg.training.team import Left, Team

SGD = {"optimizer": {"kind": "sgd"}}
"""See test_accumulation: where weights are compared most closely."""


class Threads:
    """What `Team` uses of torch.distributed, among threads that have told their rank."""

    ReduceOp = dist.ReduceOp

    def __init__(self, size: int):
        self.size, self.here = size, threading.local()
        self._barrier, self._said = threading.Barrier(size, timeout=20), [None] * size

    def _everybody(self, value: Any) -> list[Any]:
        self._said[self.here.rank] = value
        self._barrier.wait()
        said = list(self._said)
        self._barrier.wait()
        return said

    def all_reduce(
        self, tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, *, async_op: bool
    ) -> Any:
        said = torch.stack(self._everybody(tensor.clone()))
        tensor.copy_(said.amax(0) if op == dist.ReduceOp.MAX else said.sum(0))
        return SimpleNamespace(is_completed=lambda: True, wait=lambda: None)

    def broadcast_object_list(self, objects: list[Any], device: torch.device) -> None:
        objects[0] = self._everybody(objects[0])[0]

    def all_gather_object(self, into: list[Any], value: Any) -> None:
        into[:] = self._everybody(value)


@pytest.fixture
def each(monkeypatch) -> Callable[..., list[Any]]:
    """What `act(team)` gives in each of `size` members, or the exception that it ends with."""

    def _each(act: Callable[[Team], Any], size: int) -> list[Any]:
        threads = Threads(size)
        monkeypatch.setattr(team, "dist", threads)

        def member(rank: int) -> Any:
            threads.here.rank = rank
            torch.set_num_threads(1)
            try:
                return act(Team(rank, size))
            except Exception as error:
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
        def act(team: Team) -> tuple[list[Event], dict[str, torch.Tensor]]:
            stage = begin(recipe, 2, team=team)
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


def wrong_gradients(self: Team, parameters: Any) -> None:
    """The mean, as DistributedDataParallel has it."""
    for parameter in parameters:
        if parameter.grad is not None:
            self.sum(parameter.grad)
            parameter.grad /= self.size


@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (loop.StageTraining, "first_sample", lambda self: 0),  # the same dropout in every part
        (Team, "sum_gradients", wrong_gradients),
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
    monkeypatch.setattr(Team, "sum_gradients", lambda self, parameters: None)
    first, second = trained(recipe, 2)
    assert str(second).startswith("What the model holds is not that of process 0. block 3: ")
    assert str(first) == f"Process 1 of 2: {second}"


# ------------------------------------------------------------------ what happens to one is heard by
# all


def test_a_member_that_fails_ends_all_with_its_words(begin, each, recipe, monkeypatch):
    real = StageTraining.backward_own

    def fails_in_process_1(self, *given):
        if self.team.rank == 1 and self.step == 2:
            raise TrainingError("The loss of step 3 is nan.")
        return real(self, *given)

    monkeypatch.setattr(StageTraining, "backward_own", fails_in_process_1)
    first, second, third = each(lambda team: list(begin(recipe, 2, team=team)), 3)
    assert str(second) == "The loss of step 3 is nan."
    assert isinstance(first, TrainingError) and str(first) == str(third)
    assert str(first) == "Process 1 of 3: The loss of step 3 is nan."


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 9])
def test_whoever_stops_asking_for_events_lets_the_others_go(begin, each, recipe, count):
    def act(team: Team) -> list[Event]:
        seen, events = [], iter(begin(recipe, 2, team=team))
        for event in events:
            seen.append(event)
            if team.rank == 0 and len(seen) == count:
                events.close()
                team.leave()
                break
        return seen

    first, second = each(act, 2)
    assert len(first) == count and isinstance(second, Left)


def test_members_that_are_out_of_step_do_not_wait_for_each_other(each):
    for error in each(lambda team: team.sum(torch.ones(3 + team.rank)), 2):
        assert isinstance(error, TrainingError) and "out of step, by 4 and 3" in str(error)


def test_facts_that_differ_are_named(each):
    first, second = each(
        lambda team: team.same("an environment", {"threads": 2 - team.rank, "device": "cpu"}), 2
    )
    assert (
        str(second)
        == "an environment is not that of process 0. threads: 1, there 2. All must have the same."
    )
    assert isinstance(first, TrainingError) and "threads: 1" in str(first)


@pytest.mark.parametrize(("count", "size"), [(0, 2), (1, 2), (7, 3), (8, 8), (3, 5)])
def test_parts_are_the_whole_and_differ_by_one_at_most(count, size):
    parts = [Team(rank, size).part(list(range(count))) for rank in range(size)]
    assert [thing for part in parts for thing in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_gradient_that_nobody_has_stays_none(each):
    def act(team: Team) -> list[Any]:
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[1 + team.rank].grad = torch.ones(2) * (1 + team.rank)
        team.sum_gradients(parameters)
        return [p.grad if p.grad is None else p.grad.tolist() for p in parameters]

    assert each(act, 2) == [[None, [1.0, 1.0], [2.0, 2.0]]] * 2


# ------------------------------------------------------------------ what cannot be shared


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"model.decoder": "linear"},
            (
                'model.decoder="linear" has a BatchNorm, which needs the whole batch; set '
                "processes "
                "to 1"
            ),
        ),
        (
            {"loss.dice_over": "batch"},
            'loss.dice_over="batch" needs the whole batch at once; set processes to 1',
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
