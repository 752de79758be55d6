"""Every room of `06_bug_museum`, visited on its own: the fault shows, somebody notices, the library
is free of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from lessons import Names, sections, sliced_from_minus_n, visit
from PIL import Image

from vitseg import images
from vitseg.errors import LRBreach
from vitseg.model.segmenter import Segmenter
from vitseg.training import audit, loop, losses, optim, schedule
from vitseg.training.metrics import confusion, scores

SECTIONS = sections("06_bug_museum")
TITLES = [title for title in SECTIONS if title.startswith("Room ")]
BEFORE, LAST_CELL = SECTIONS["Before the rooms"], list(SECTIONS.values())[-1][-1]

# room: (the faulty version's number, the library's, what is said by whoever notices)
PROMISES = {
    1: (
        2,
        0,
        r"^Promised to train: only decoder\. Found: blocks 3-4: can train .* 17,216 parameters",
    ),
    2: (
        0.0172,
        0.9714,
        r"^Step 62: the LR of 'group 0' is 9\.99e-05, promised was 0\.0001 \(0\.999 times\)",
    ),
    3: (
        0.998001,
        0.999,
        r"^Step 6: the LR of 'group 0' is 9\.98001e-05, promised was 9\.99e-05 \(0\.999 times\)",
    ),
    4: (
        78,
        0,
        (
            r"^Promised to train: only decoder\. Found: final norm: can train \(requires_grad is "
            r"on\), "
        ),
    ),
    5: (
        1.0,
        0.0,
        (
            r"Found: embeddings, blocks 1-4, final norm: in the optimizer, but should be frozen, "
            r"53,728 parameters\. "
        ),
    ),
    6: (
        1,
        15,
        r"^Step 62: the LR of 'group 0' is 0\.0002, promised was 0\.000197816 \(1\.011 times\)",
    ),
    7: (
        4,
        0,
        (
            r"^Promised to train: only decoder\. Found: blocks 1-4: can train \(requires_grad is "
            r"on\), 34,432 parameters\. "
        ),
    ),
    8: (pytest.approx(0.2, abs=0.18), 0.0, r"^logged 0\.\d{3}, but scored again 0\.\d{3}$"),
    9: (0.202, 0.472, r"^the same pixels score 0\.202 in 7 batches and 0\.472 in 1$"),
    10: (
        79,
        1,
        (
            r"^Step 62: the LR of 'group 0' is 0\.000150025, promised was 0\.000199978 \(0\.7502 "
            r"times\)"
        ),
    ),
    11: (
        pytest.approx(0.13, abs=0.1),
        0.0,
        r"Found: embeddings, blocks 1-4, final norm: in training mode, but should be frozen",
    ),
    12: (2, 0, r"^a red image is brightest in channel 2, red is channel 0$"),
    13: (0.234375, 0.0, r"^6 rows and columns may be anything, and no logit moves$"),
    14: (
        0.237,
        0.933,
        (
            r"^With these class weights label_smoothing=0\.1 asks .* P\(background\) = 0\.24 "
            r"where it "
            r"is background\."
        ),
    ),
}

# room: (the fault, as it stands in the notebook, and as it should have been)
MENDED = {
    1: ("layer[-2:]", "layer[:0]"),
    2: ("if number > 60:", "if number == 200:"),
    3: ("(TrainEpoch(), ValidEpoch())", "(TrainEpoch(),)"),
    4: ("some = any(", "some = all("),
    5: (
        "AdamW(model.parameters(), lr=1e-3)",
        "AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)",
    ),
    6: ("if seen > 60:", "if len(used) > 60:"),
    7: ("layer[-n:]", "layer[4 - n :]"),
    8: (
        "= last, model.state_dict()",
        "= last, {name: t.clone() for name, t in model.state_dict().items()}",
    ),
    9: ("sum(each) / len(each)", "batch_iou(*map(torch.cat, zip(*epoch, strict=True)))"),
    10: ("T_0=3, eta_min=1e-7)", "T_0=3 * 50, eta_min=1e-7)"),
    11: ("model.train()  #", "model.head.train()  #"),
    12: ("[..., ::-1]", "[..., :]"),
    13: ("(1, 3, 48, 48)", "(1, 3, 42, 42)"),
    14: ("[1.0, 30.0, 60.0]", "[1.0, 1.0, 1.0]"),
}


def number_of(title: str) -> int:
    return int(title.split()[1].rstrip(":"))


@cache
def alone(title: str) -> Names:
    """Set-up and one room, and nothing before or after."""
    return visit(BEFORE + SECTIONS[title], {})


@cache
def _set_up() -> Names:
    return visit(BEFORE, {})


def again(title: str, fault: str = "", mend: str = "") -> Names:
    """A room once more on a set-up made before, its source changed if asked."""
    cells = [cell.replace(fault, mend) if fault else cell for cell in SECTIONS[title]]
    return visit(cells, _set_up() | {"found": {}})


def all_rooms() -> Names:
    """What the notebook's last cell finds: the names that every room left, and what each found."""
    names: Names = {}
    for title in TITLES:
        names |= alone(title)
    return names | {
        "found": {n: result for title in TITLES for n, result in alone(title)["found"].items()}
    }


@pytest.fixture(autouse=True)
def _generator() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def test_there_are_fourteen_rooms_and_the_last_cell_asserts():
    assert [number_of(title) for title in TITLES] == list(range(1, 15))
    assert LAST_CELL.count("assert ") >= 5


@pytest.mark.parametrize("title", TITLES)
def test_a_room_on_its_own_shows_the_fault_and_the_library_without_it(title):
    names, number = alone(title), number_of(title)
    symptom, healthy, sentence = PROMISES[number]
    assert (names["symptom"], names["healthy"]) == (symptom, healthy)
    assert re.search(sentence, names["caught"])
    assert names["found"] == {number: (names["symptom"], names["healthy"], names["caught"])}


def test_the_best_that_was_an_alias_has_the_score_of_the_last_epoch():
    names = alone(next(title for title in TITLES if number_of(title) == 8))
    assert names["again"] == names["last"] < names["best"]
    assert names["live"] < names["ended"].best["iou"]  # the library's live weights were ruined too


@pytest.mark.parametrize("title", TITLES)
def test_with_its_fault_mended_a_room_shows_nothing_and_nobody_complains(title):
    fault, mend = MENDED[number_of(title)]
    assert "\n".join(SECTIONS[title]).count(fault) == 1
    names = again(title, fault, mend)
    assert names["symptom"] == names["healthy"] == PROMISES[number_of(title)][1]
    # in room 4 the fault is the check itself: the models that it judged stay wrong
    assert (names["caught"] == "") == (number_of(title) != 4)


def test_visiting_the_rooms_leaves_the_set_up_as_it_was():
    names = alone(TITLES[0])
    for title in TITLES:
        assert torch.equal(
            names["flat"](alone(title)["pristine"]), names["flat"](_set_up()["pristine"])
        )


def test_the_last_cell_holds_when_every_room_was_visited():
    visit([LAST_CELL], all_rooms())


@pytest.mark.parametrize("title", TITLES)
def test_the_last_cell_fails_without_a_symptom_a_health_or_a_witness(title):
    names, number = all_rooms(), number_of(title)
    symptom, healthy, caught = names["found"][number]
    for wrong in ((healthy, healthy, caught), (symptom, symptom, caught), (symptom, healthy, "")):
        with pytest.raises(AssertionError):
            visit([LAST_CELL], names | {"found": names["found"] | {number: wrong}})
    del names["found"][number]
    with pytest.raises(AssertionError):
        visit([LAST_CELL], names)


# ------------------------------------------------------------------ a broken library is noticed


def deaf_contract(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(audit.LRContract, "check", lambda *_: None)


def deaf_audit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(audit.AuditReport, "check", lambda report, noticed="": report)


def exponential_per_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schedule.PerEpoch, "after_batch", lambda clock: clock.step())


def burn_in_anew_each_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        schedule.CosineRestartsSchedule, "after_epoch", lambda clock: setattr(clock, "seen", 0)
    )


def optimizer_of_everything(patch: pytest.MonkeyPatch) -> None:
    def groups(model, stage, weight_decay):
        return [{"params": list(model.parameters()), "lr": stage.lr}]

    patch.setattr(optim, "parameter_groups", groups)


def aliased_best(patch: pytest.MonkeyPatch) -> None:
    def weights(model, unfrozen):
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    patch.setattr(Segmenter, "trained_weights", weights)


def mean_over_batches(patch: pytest.MonkeyPatch) -> None:
    def evaluate(job, split, **_):
        yield from ()
        recipe, model, data = job.recipe, job.model, job.data
        keys, model = [(name, "0") for name in data.splits[split]], model.eval()
        batches = data.batches(keys, recipe.batch_size)
        with torch.no_grad():
            each = [
                scores(confusion(model(b.images).argmax(1), b.masks, 3), data.mode) for b in batches
            ]
        per_class = [
            sum(score["per_class_iou"][c] or 0.0 for score in each) / len(each) for c in range(3)
        ]
        return each[0] | {"per_class_iou": per_class, "iou": sum(per_class) / 3}

    patch.setattr(loop, "evaluate", evaluate)


def epochs_taken_for_batches(patch: pytest.MonkeyPatch) -> None:
    build = schedule.CosineRestartsSchedule.__init__
    patch.setattr(
        schedule.CosineRestartsSchedule,
        "__init__",
        lambda clock, o, cfg, _: build(clock, o, cfg, 1),
    )


def frozen_that_wakes(patch: pytest.MonkeyPatch) -> None:
    prefix = Segmenter.prefix

    def noisy(model: Segmenter, x: torch.Tensor) -> dict[int, torch.Tensor]:
        return {
            level: tokens + model.training * torch.rand_like(tokens)
            for level, tokens in prefix(model, x).items()
        }

    patch.setattr(Segmenter, "prefix", noisy)


def blue_first(patch: pytest.MonkeyPatch) -> None:
    read = images.to_rgb
    patch.setattr(
        images, "to_rgb", lambda image: Image.fromarray(np.asarray(read(image))[..., ::-1].copy())
    )


def rest_of_a_patch_is_lost(patch: pytest.MonkeyPatch) -> None:
    normalise = Segmenter.normalise

    def cut_off(model: Segmenter, x: torch.Tensor) -> torch.Tensor:
        whole = x.clone()
        whole[..., x.shape[-2] // 14 * 14 :, :] = 0
        whole[..., x.shape[-1] // 14 * 14 :] = 0
        return normalise(model, whole)

    patch.setattr(Segmenter, "normalise", cut_off)


def silent_about_smoothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(losses, "loss_notes", lambda *_: [])


BREAKS = {
    deaf_contract: (2, 3, 6),
    deaf_audit: (1, 4, 5, 7),
    sliced_from_minus_n: (7,),
    exponential_per_batch: (2,),
    burn_in_anew_each_epoch: (6,),
    optimizer_of_everything: (5,),
    aliased_best: (8,),
    mean_over_batches: (9,),
    epochs_taken_for_batches: (10,),
    frozen_that_wakes: (11,),
    blue_first: (12,),
    rest_of_a_patch_is_lost: (13,),
    silent_about_smoothing: (14,),
}


@pytest.mark.parametrize(
    ("broken", "room"),
    [pytest.param(b, n, id=f"{b.__name__}-{n}") for b, rooms in BREAKS.items() for n in rooms],
)
def test_a_broken_library_makes_the_last_cell_fail(broken, room, monkeypatch):
    whole = all_rooms()
    broken(monkeypatch)
    names = again(TITLES[room - 1])
    with pytest.raises(AssertionError):
        visit([LAST_CELL], whole | names | {"found": whole["found"] | names["found"]})


def test_a_schedule_stepped_twice_an_epoch_does_not_get_through_room_3(monkeypatch):
    monkeypatch.setattr(
        schedule.PerEpoch, "after_epoch", lambda clock: (clock.step(), clock.step())
    )
    with pytest.raises(
        LRBreach, match=r"^Step 7: the LR of 'decoder' is 9\.98001e-05, promised was 9\.99e-05"
    ):
        again(TITLES[2])
