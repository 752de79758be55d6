"""The LR is the promised one: the design's closed form, `plan.preview`, PyTorch and what a run
records agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import count

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR

from vitseg import plan
from vitseg.errors import ConfigError, VitsegError
from vitseg.events import BatchEnded, EpochEnded, StageEnded, StageStarted
from vitseg.recipe import Recipe
from vitseg.runs.run import train
from vitseg.settings import Constant, CosineRestarts, Exponential, Stage, WarmupPoly
from vitseg.training.audit import LRContract
from vitseg.training.schedule import build_schedule

LAYERS = 4
exactly = {"rel": 1e-12, "abs": 0.0}


# ------------------------------------------------------------------ the promise, from the design


def closed_form(stage: Stage, batch: int, per_epoch: int, factor: float = 1.0) -> float:
    """LR of batch `batch` (from 1) of a stage, in a group of that LR factor."""
    schedule, lr = stage.schedule, stage.lr * factor
    if isinstance(schedule, Constant):
        return lr
    if isinstance(schedule, Exponential):
        return lr * schedule.gamma ** (math.ceil(batch / per_epoch) - 1)
    if isinstance(schedule, WarmupPoly):
        warmup, total = schedule.warmup_batches, stage.epochs * per_epoch
        return lr * (
            batch / warmup
            if batch <= warmup
            else (1 - (batch - 1 - warmup) / (total - warmup)) ** schedule.power
        )
    if batch <= schedule.burn_in_batches + 1:  # at the default, batches 1..61
        return lr
    t = Fraction(
        batch - (schedule.burn_in_batches + 1), per_epoch if schedule.unit == "epoch" else 1
    )
    for length in (schedule.T_0 * schedule.T_mult**cycle for cycle in count()):
        if t < length:
            break
        t -= length
    floor = schedule.eta_min * factor
    return floor + (lr - floor) * (1 + math.cos(math.pi * t / length)) / 2


def factor_of(group: str, stage: Stage) -> float:
    """LR factor of a named parameter group: 1 for the decoder, the encoder's less for every block
    below the last.
    """
    if group.startswith("decoder"):
        return 1.0
    if group.startswith("encoder"):
        return stage.encoder_lr_factor
    block = int(group.removesuffix(", no decay").removeprefix("block "))
    return stage.encoder_lr_factor * stage.layer_decay ** (LAYERS - block)


# ------------------------------------------------------------------ what a run records


def a_stage(unfrozen: int | str, epochs: int, schedule: dict, **more: float) -> dict:
    return {
        "name": "A",
        "unfrozen_blocks": unfrozen,
        "epochs": epochs,
        "lr": 1e-3,
        "schedule": schedule,
    } | more


def cosine(**settings) -> dict:
    return {"kind": "cosine_restarts"} | settings


def exponential(gamma: float) -> dict:
    return {"kind": "exponential", "gamma": gamma}


# name: (settings changed, stages, batches in an epoch)
RUNS = {
    "the defaults, fewer than 60 batches an epoch, then the other schedule": (
        {"batch_size": 1},
        [a_stage(0, 8, cosine()), a_stage(1, 2, exponential(0.999))],
        10,
    ),
    "more than 60 batches an epoch": (
        {"data.source.images": 80, "batch_size": 1},
        [a_stage(0, 2, cosine())],
        66,
    ),
    "the cosine after the exponential, and again": (
        {},
        [
            a_stage(0, 2, exponential(0.5)),
            a_stage(1, 2, cosine(T_0=3, burn_in_batches=4)),
            a_stage(2, 2, cosine(T_0=2, burn_in_batches=0)),
            a_stage(1, 2, exponential(0.1)),
        ],
        5,
    ),
    "two portions a step, the last one alone": (
        {"accumulate": 2},
        [a_stage(0, 5, cosine(T_0=3, burn_in_batches=4)), a_stage(1, 3, exponential(0.5))],
        3,
    ),
    "four portions of one image, the last step of two": (
        {"accumulate": 4, "batch_size": 1},
        [a_stage(0, 4, cosine(T_0=3, burn_in_batches=4)), a_stage(1, 2, exponential(0.5))],
        3,
    ),
    "cycles that double": ({}, [a_stage(0, 5, cosine(T_0=2, T_mult=2, burn_in_batches=3))], 5),
    "cycles in epochs": ({}, [a_stage(0, 6, cosine(T_0=2, unit="epoch", burn_in_batches=7))], 5),
    "cycles in epochs that double, in portions": (
        {"accumulate": 2},
        [a_stage(0, 8, cosine(T_0=1, T_mult=2, unit="epoch", burn_in_batches=2))],
        3,
    ),
    "a factor for the encoder and for every block": (
        {},
        [
            a_stage(
                2,
                3,
                cosine(T_0=4, burn_in_batches=3, eta_min=2e-4),
                encoder_lr_factor=0.5,
                layer_decay=0.8,
            ),
            a_stage("all", 3, exponential(0.5), encoder_lr_factor=0.3, layer_decay=0.7),
        ],
        5,
    ),
    "a factor for the encoder as a whole": (
        {},
        [
            a_stage(1, 3, cosine(T_0=4, burn_in_batches=3, eta_min=2e-4), encoder_lr_factor=0.25),
            a_stage(2, 2, exponential(0.5), encoder_lr_factor=0.1),
        ],
        5,
    ),
    "warm-up and polynomial, then constant": (
        {},
        [
            a_stage(1, 3, {"kind": "warmup_poly", "warmup_batches": 4}, encoder_lr_factor=0.5),
            a_stage(0, 2, {"kind": "constant"}),
        ],
        5,
    ),
}


def groups_of(stage: Stage) -> set[str]:
    depth = LAYERS if stage.unfrozen_blocks == "all" else stage.unfrozen_blocks
    blocks = (
        {f"block {i}" for i in range(LAYERS - depth + 1, LAYERS + 1)}
        if stage.layer_decay < 1
        else {"encoder"}
    )
    names = {"decoder"} | (blocks if depth else set())
    return names | {f"{name}, no decay" for name in names}


@pytest.mark.parametrize("run", RUNS)
def test_every_recorded_lr_is_the_closed_form_and_the_previewed_one_in_every_group(
    small_recipe, tmp_path, run
):
    changes, stages, per_epoch = RUNS[run]
    recipe = small_recipe.replace(changes | {"stages": stages})
    batches = [e for e in train(recipe, tmp_path / "run") if isinstance(e, BatchEnded)]
    previewed = plan.preview(recipe, per_epoch)

    assert [(b.stage, b.step) for b in batches] == [(p.stage, p.step) for p in previewed]
    assert [b.epoch for b in batches] == [math.ceil(p.epoch) for p in previewed]
    assert [b.step for b in batches] == list(
        range(1, per_epoch * sum(s["epochs"] for s in stages) + 1)
    )
    for number, stage in enumerate(recipe.stages, start=1):
        recorded = [b for b in batches if b.stage == number]
        for n, (batch, planned) in enumerate(
            zip(recorded, (p for p in previewed if p.stage == number), strict=True), start=1
        ):
            promised = {
                g: closed_form(stage, n, per_epoch, factor_of(g, stage)) for g in groups_of(stage)
            }
            assert batch.lr == pytest.approx(promised, **exactly), f"stage {number}, batch {n}"
            assert planned.lr == pytest.approx(closed_form(stage, n, per_epoch), **exactly)


@pytest.mark.parametrize(
    "mistake",
    [
        {"schedule.burn_in_batches": 3},
        {"schedule.T_0": 4},
        {"schedule.T_mult": 2},
        {"schedule.eta_min": 1e-6},
        {"lr": 1.001e-3},
    ],
)
def test_the_comparison_notices_each_setting(small_recipe, begin, mistake):
    """A control: held against the closed form of another setting, the same records do not agree."""
    recipe = small_recipe.replace({"stages.0.epochs": 3})
    wrong = recipe.replace({f"stages.0.{path}": value for path, value in mistake.items()})
    used = [e.lr["decoder"] for e in begin(recipe) if isinstance(e, BatchEnded)]
    promised, other = (
        [closed_form(r.stages[0], n, 5) for n in range(1, 16)] for r in (recipe, wrong)
    )
    assert used == pytest.approx(promised, **exactly)
    assert used != pytest.approx(other, rel=1e-5, abs=0.0)


def test_exponential_steps_once_per_epoch_validation_included(small_recipe, begin):
    recipe = small_recipe.replace(
        {"stages.0.schedule": Exponential(gamma=0.5), "stages.0.epochs": 3}
    )
    events = list(begin(recipe))
    assert [e.lr["decoder"] for e in events if isinstance(e, BatchEnded)] == [1e-3] * 5 + [
        5e-4
    ] * 5 + [2.5e-4] * 5
    assert events[-1].schedule_steps == 3


@pytest.mark.parametrize(("stage", "moves"), [(1, 2 * 5 - 4), (2, 2), (3, 0)])
def test_a_stage_records_how_often_its_schedule_moved(small_recipe, begin, stage, moves):
    """Cosine once a batch after the burn-in, exponential once an epoch, constant never."""
    *_, end = begin(small_recipe, stage)
    assert isinstance(end, StageEnded)
    assert end.schedule_steps == moves


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_record_of_an_epoch_holds_the_lr_that_its_last_batch_used(small_recipe, begin, stage):
    events = list(begin(small_recipe, stage))
    last = [e.lr for e in events if isinstance(e, BatchEnded) and e.batch == e.batches]
    assert [e.lr for e in events if isinstance(e, EpochEnded)] == last


# ------------------------------------------------------------------ the schedule alone, without
# training


class Clock:
    """An optimizer with a group for each LR factor, and the schedule of a stage that moves it."""

    def __init__(self, stage: Stage, per_epoch: int, factors: tuple[float, ...] = (1.0, 0.5, 0.1)):
        self.stage, self.per_epoch, self.batch = stage, per_epoch, 0
        groups = [
            {
                "name": str(f),
                "lr_factor": f,
                "lr": stage.lr * f,
                "params": [torch.nn.Parameter(torch.zeros(1))],
            }
            for f in factors
        ]
        self.optimizer = torch.optim.SGD(groups)
        self.schedule = build_schedule(stage, self.optimizer, per_epoch)

    def lrs(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def tick(self) -> list[float]:
        """One batch, as the loop does it; the LR that it used."""
        used = self.lrs()
        self.optimizer.step()
        self.schedule.after_batch()
        self.batch += 1
        if self.batch % self.per_epoch == 0:
            self.schedule.after_epoch()
        return used


SCHEDULES = {
    "cosine": CosineRestarts(),
    "cosine, no burn-in, T_0 1": CosineRestarts(T_0=1, burn_in_batches=0),
    "cosine, doubling": CosineRestarts(T_mult=2),
    "cosine, tripling": CosineRestarts(T_0=2, T_mult=3, burn_in_batches=5),
    "cosine in epochs": CosineRestarts(T_0=3, unit="epoch"),
    "cosine in epochs, doubling": CosineRestarts(T_0=1, T_mult=2, unit="epoch", burn_in_batches=10),
    "exponential": Exponential(),
    "exponential, gamma 1": Exponential(gamma=1.0),
    "warm-up": WarmupPoly(),
    "no warm-up": WarmupPoly(warmup_batches=0, power=2.0),
    "warm-up to the end": WarmupPoly(warmup_batches=280),
    "constant": Constant(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def forty_epochs(schedule) -> Stage:
    return Stage(name="A", unfrozen_blocks=0, epochs=40, lr=1e-3, schedule=schedule)


@every_schedule
def test_the_schedule_walks_the_closed_form_in_every_group_and_the_contract_agrees(schedule):
    stage = forty_epochs(schedule)
    clock = Clock(stage, 7)
    contract = LRContract([plan.planned_lr(stage, n, 7) for n in range(1, 282)])
    for n in range(1, 281):
        contract.check(n, clock.optimizer)
        assert clock.tick() == pytest.approx(
            [closed_form(stage, n, 7, f) for f in (1.0, 0.5, 0.1)], **exactly
        ), n
    contract.check(281, clock.optimizer)  # where the last step left it


def torch_cosine(
    optimizer, cfg: CosineRestarts, eta_min: float, per_epoch: int
) -> Callable[[int], None]:
    """PyTorch's own warm restarts, stepped after every batch past the burn-in. Takes the batch's
    number.
    """
    scheduler = CosineAnnealingWarmRestarts(optimizer, cfg.T_0, cfg.T_mult, eta_min)

    def after_batch(n: int) -> None:
        if n > cfg.burn_in_batches:
            scheduler.step((n - cfg.burn_in_batches) / per_epoch if cfg.unit == "epoch" else None)

    return after_batch


def torch_exponential(
    optimizer, cfg: Exponential, eta_min: float, per_epoch: int
) -> Callable[[int], None]:
    """PyTorch's own decay, stepped after the last batch of an epoch."""
    scheduler = ExponentialLR(optimizer, cfg.gamma)
    return lambda n: scheduler.step() if n % per_epoch == 0 else None


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("name", [n for n in SCHEDULES if n.startswith(("cosine", "exponential"))])
def test_the_schedule_is_pytorchs_own_with_eta_min_scaled_by_the_groups_factor(name, factor):
    stage = forty_epochs(SCHEDULES[name])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=stage.lr * factor)
    oracle = torch_cosine if isinstance(stage.schedule, CosineRestarts) else torch_exponential
    after_batch = oracle(optimizer, stage.schedule, 1e-7 * factor, 7)
    clock = Clock(stage, 7, (factor,))
    for n in range(1, 281):
        assert clock.tick() == pytest.approx([optimizer.param_groups[0]["lr"]], **exactly), n
        optimizer.step()
        after_batch(n)


def test_burn_in_is_61_batches_at_the_full_lr_once_per_stage_and_restarts_come_every_15():
    stage = forty_epochs(CosineRestarts())
    clock = Clock(stage, 7)
    lrs = [clock.tick()[0] for _ in range(280)]
    assert [n for n, lr in enumerate(lrs, start=1) if lr == 1e-3] == [
        *range(1, 62),
        *range(76, 281, 15),
    ]
    assert lrs[61] == 1e-7 + (1e-3 - 1e-7) * (1 + math.cos(math.pi / 15)) / 2
    assert min(lrs) == pytest.approx(
        1e-7 + (1e-3 - 1e-7) * (1 + math.cos(math.pi * 14 / 15)) / 2, **exactly
    )
    (note,) = plan.notes(stage, 7)
    assert note.startswith(f"{len(range(76, 281, 15))} warm restarts in 280 batches")


def test_gamma_0_999_from_1e_4_is_9_91e_5_in_epoch_10_and_9_06e_5_in_epoch_100(small_recipe):
    stage = Stage(
        name="A", unfrozen_blocks=0, epochs=100, lr=1e-4, schedule=Exponential(gamma=0.999)
    )
    clock = Clock(stage, 8)
    driven = [clock.tick()[0] for _ in range(800)]
    previewed = [
        p.lr
        for p in plan.preview(small_recipe.replace({"stages": [stage.model_dump(mode="json")]}), 8)
    ]
    for lrs in (driven, previewed):
        by_epoch = {
            epoch: {f"{lr:.2e}" for lr in lrs[8 * (epoch - 1) : 8 * epoch]}
            for epoch in (1, 10, 100)
        }
        assert by_epoch == {1: {"1.00e-04"}, 10: {"9.91e-05"}, 100: {"9.06e-05"}}
        assert lrs[8 * 99] == pytest.approx(1e-4 * 0.999**99, **exactly)


def test_warm_up_rises_by_equal_steps_and_polynomial_decay_ends_at_0():
    stage = Stage(
        name="A",
        unfrozen_blocks=0,
        epochs=3,
        lr=1.0,
        schedule=WarmupPoly(warmup_batches=4, power=1.0),
    )
    clock = Clock(stage, 4, (1.0,))
    assert [clock.tick()[0] for _ in range(12)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
        0.875,
        0.75,
        0.625,
        0.5,
        0.375,
        0.25,
        0.125,
    ]
    assert clock.lrs() == [0.0]
    assert plan.planned_lr(stage, 13, 4) == 0.0


@every_schedule
@pytest.mark.parametrize("batch", [1, 58, 59, 60, 61, 62, 75, 76, 140])
def test_a_schedule_goes_on_from_where_it_stood_as_if_it_had_not_stopped(schedule, batch):
    """Where it stands follows from batches and epochs alone; nothing of it is saved."""
    stage = forty_epochs(schedule)
    whole, resumed = Clock(stage, 7), Clock(stage, 7)
    for _ in range(batch):
        whole.tick()
    resumed.batch = batch
    resumed.optimizer.step()  # PyTorch warns of a scheduler that moves first
    resumed.schedule.fast_forward(batch, batch // 7)
    assert resumed.schedule.steps == whole.schedule.steps
    assert resumed.lrs() == whole.lrs()
    assert [resumed.tick() for _ in range(140)] == [whole.tick() for _ in range(140)]


@every_schedule
def test_a_skipped_step_holds_back_a_clock_that_counts_batches_and_no_other(schedule):
    """Mixed precision may skip an optimizer step; then the loop does not tell the schedule of that
    batch.
    """
    stage = forty_epochs(schedule)
    clock, skipped = Clock(stage, 7), 0
    for n in range(1, 141):
        assert clock.lrs()[0] == pytest.approx(plan.planned_lr(stage, n, 7, skipped), **exactly), n
        if n in (1, 30, 31, 64, 100):
            skipped += 1
            clock.batch += 1
            if n % 7 == 0:
                clock.schedule.after_epoch()
        else:
            clock.tick()
    counts_batches = isinstance(schedule, CosineRestarts | WarmupPoly)
    behind = closed_form(stage, 141 - (5 if counts_batches else 0), 7)
    assert clock.lrs()[0] == pytest.approx(behind, **exactly)


@pytest.mark.parametrize("T_mult", [3, 10])
def test_cycles_in_epochs_that_pytorch_would_lose_by_rounding_are_refused(T_mult):
    """Its cycle is int(log(243, 3)), and that logarithm is 4.999..."""
    with pytest.raises(VitsegError, match="T_mult is 1 or 2"):
        CosineRestarts(T_0=1, T_mult=T_mult, unit="epoch", burn_in_batches=0)


# ------------------------------------------------------------------ what the reader is told


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "moves"), [(1, 61, False), (6, 10, False), (1, 62, True), (7, 10, True)]
)
def test_a_note_says_so_exactly_when_the_cosine_never_moves(epochs, per_epoch, moves):
    stage = Stage(name="A", unfrozen_blocks=0, epochs=epochs, lr=1e-3, schedule=CosineRestarts())
    lrs = {closed_form(stage, n, per_epoch) for n in range(1, epochs * per_epoch + 1)}
    assert (len(lrs) > 1) is moves
    (note,) = plan.notes(stage, per_epoch)
    assert note.startswith("The cosine never moves") is not moves
    if not moves:
        assert (
            f"the burn-in is 60 batches, the one after it still has the full rate, and the stage "
            f"has {epochs * per_epoch}."
        ) in note


def test_a_note_says_so_when_a_cycle_of_one_batch_keeps_the_cosine_from_moving():
    stage = Stage(name="A", unfrozen_blocks=0, epochs=10, lr=1e-3, schedule=CosineRestarts(T_0=1))
    assert {closed_form(stage, n, 10) for n in range(1, 101)} == {1e-3}
    assert plan.notes(stage, 10)[0].startswith("The cosine never moves")


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        (3, "One cosine, which does not come to a restart, in 21"),
        (4, "1 warm restart in 28"),
        (6, "2 warm restarts in 42"),
    ],
)
def test_the_note_counts_the_restarts_in_words(epochs, words):
    stage = Stage(
        name="A",
        unfrozen_blocks=0,
        epochs=epochs,
        lr=1e-3,
        schedule=CosineRestarts(burn_in_batches=8),
    )
    assert plan.notes(stage, 7) == [f"{words} batches (T_0 = 15 batches, after a burn-in of 8)."]


def test_a_schedule_is_no_recipe():
    with pytest.raises(ConfigError, match=r"recipe: got Constant.*allowed: a Recipe"):
        plan.preview(Constant(), 7)


def test_the_note_stands_in_the_record_of_the_stage(small_recipe: Recipe, begin):
    recipe = small_recipe.replace({"stages.0.schedule": CosineRestarts()})
    events = list(begin(recipe))
    (started,) = [e for e in events if isinstance(e, StageStarted)]
    assert started.notes == plan.notes(recipe.stages[0], 5)
    assert started.notes[0].startswith("The cosine never moves: the burn-in is 60 batches")
    assert {e.lr["decoder"] for e in events if isinstance(e, BatchEnded)} == {1e-3}


@pytest.mark.parametrize("schedule", [Constant(), WarmupPoly()])
def test_other_schedules_need_no_note(schedule):
    assert plan.notes(forty_epochs(schedule), 7) == []


def test_an_exponential_says_how_far_it_falls():
    (note,) = plan.notes(forty_epochs(Exponential(gamma=0.9)), 7)
    assert note == (
        f"The LR falls from 0.001 in the first epoch to {1e-3 * 0.9**39:.3g} in the last "
        f"(gamma = 0.9)."
    )
