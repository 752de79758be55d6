"""The detectors catch what goes wrong, in our loop and in a plain one, say where, and are silent
when all is well.

Every fault is committed from outside, between two events, by the means that any caller has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler
from transformers import (
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    SwinConfig,
    SwinModel,
)

import vitseg
from vitseg.errors import ConfigError, FreezeBreach, LRBreach, VitsegError
from vitseg.events import (
    BatchEnded,
    EpochEnded,
    FeaturesUsed,
    StageEnded,
    StageStarted,
    ValidationBatch,
)
from vitseg.settings import CosineRestarts, Exponential

EPOCHS, BATCHES, LAYERS = 2, 5, 4
EVERY_DEPTH = (0, 1, "all")


@dataclass
class Training:
    """What both loops show to the outside. `moments` trains when asked for the next moment."""

    model: nn.Module
    vit: nn.Module
    decoder: nn.Module
    blocks: nn.ModuleList
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    moments: Iterator[str]
    seen: list[str] = field(default_factory=list)

    def until(self, moment: str, count: int = 1) -> Training:
        """Train up to the `count`-th such moment."""
        while self.seen.count(moment) < count:
            self.seen.append(next(self.moments))
        return self

    def to_the_end(self) -> Training:
        for moment in self.moments:
            self.seen.append(moment)
        return self


# ------------------------------------------------------------------ a plain loop, without anything
# of ours but the detectors


def _config(num_hidden_layers: int = LAYERS) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=32,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        mlp_ratio=2,
        patch_size=14,
        image_size=28,
    )


class Plain(nn.Module):
    """A bare ViT of transformers and one convolution."""

    def __init__(self):
        super().__init__()
        self.vit = Dinov2Model(_config())
        self.head = nn.Conv2d(32, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.vit(images).last_hidden_state[:, 1:]  # without the class token
        logits = self.head(tokens.transpose(1, 2).unflatten(2, (2, 2)))
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear")

    def freeze(self, unfrozen: int | str) -> None:
        """As anybody would write it."""
        self.train()
        self.vit.requires_grad_(False).eval()
        count = LAYERS if unfrozen == "all" else unfrozen
        for part in (
            [*self.vit.encoder.layer[LAYERS - count :], self.vit.layernorm] if count else []
        ):
            part.requires_grad_(True).train()


def plain(unfrozen: int | str) -> Training:
    """A plain loop that is right, with the detectors where a careful author would put them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Plain()
        images, masks = torch.rand(BATCHES, 2, 3, 28, 28), torch.randint(3, (BATCHES, 2, 28, 28))
    model.freeze(unfrozen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scheduler = ExponentialLR(optimizer, gamma=0.5)

    def loop() -> Iterator[str]:
        contract = vitseg.LRContract(
            [1e-2 * 0.5 ** (n // BATCHES) for n in range(EPOCHS * BATCHES + 1)]
        )
        before = vitseg.audit(model, optimizer, unfrozen).check()
        yield "start"
        for epoch in range(EPOCHS):
            for number in range(BATCHES):
                vitseg.audit(model, optimizer, unfrozen, weights=False).check()
                contract.check(epoch * BATCHES + number + 1, optimizer)
                optimizer.zero_grad()
                F.cross_entropy(model(images[number]), masks[number]).backward()
                optimizer.step()
                yield "batch"
            with torch.no_grad():
                model(images[0])
            yield "validation"
            scheduler.step()
            yield "epoch"
        contract.check(EPOCHS * BATCHES + 1, optimizer)
        vitseg.audit(model, optimizer, unfrozen, since=before.hashes).check()
        yield "end"

    return Training(
        model, model.vit, model.head, model.vit.encoder.layer, optimizer, scheduler, loop()
    )


MOMENTS = {
    StageStarted: "start",
    BatchEnded: "batch",
    ValidationBatch: "validation",
    FeaturesUsed: "features",
    EpochEnded: "epoch",
    StageEnded: "end",
}


@pytest.fixture
def ours(small_recipe, begin) -> Callable[..., Training]:
    """A stage of our own loop."""

    def _ours(unfrozen: int | str, **changes: object) -> Training:
        settings = {
            "unfrozen_blocks": unfrozen,
            "lr": 1e-2,
            "schedule": Exponential(gamma=0.5),
            "epochs": EPOCHS,
        } | changes
        stage = begin(
            small_recipe.replace({f"stages.0.{name}": value for name, value in settings.items()})
        )
        encoder, moments = stage.model.encoder, (MOMENTS[type(event)] for event in stage)
        decoder, scheduler = stage.model.decoder, stage.schedule.inner
        return Training(
            stage.model, encoder.vit, decoder, encoder.blocks, stage.optimizer, scheduler, moments
        )

    return _ours


LOOPS = ("our loop", "a plain loop")


@pytest.fixture(params=LOOPS)
def train(request, ours) -> Callable[..., Training]:
    """Either loop: a callable that takes the number of unfrozen blocks."""
    return ours if request.param == "our loop" else plain


# ------------------------------------------------------------------ faults of freezing


def leave_the_last_two_blocks_trainable(t: Training) -> None:
    t.blocks[-2:].requires_grad_(True)


def train_the_embeddings(t: Training) -> None:
    t.vit.embeddings.requires_grad_(True)


def hold_a_frozen_block(t: Training) -> None:
    more = {
        "params": list(t.blocks[0].parameters()),
        "name": "more",
        "lr": t.optimizer.param_groups[0]["lr"],
    }
    t.optimizer.add_param_group(more)


def hold_a_stranger(t: Training) -> None:
    t.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1234))], "name": "more"})


def miss_an_unfrozen_block(t: Training) -> None:
    lost = {id(p) for p in t.blocks[2].parameters()}
    for group in t.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in lost]


def miss_one_bias(t: Training) -> None:
    lost = t.blocks[-1].mlp.fc1.bias
    for group in t.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not lost]


def freeze_an_unfrozen_block(t: Training) -> None:
    t.blocks[-1].requires_grad_(False)


def wake_a_frozen_block(t: Training) -> None:
    t.blocks[1].train()


def wake_the_whole_vit(t: Training) -> None:
    t.vit.train()


def put_an_unfrozen_block_to_sleep(t: Training) -> None:
    t.blocks[-1].eval()


def put_the_decoder_to_sleep(t: Training) -> None:
    t.decoder.eval()


def put_the_decoders_dropout_to_sleep(t: Training) -> None:
    t.decoder.dropout.eval()


# fault: (unfrozen blocks, what the sentence says: the parts, and what is wrong with them)
FREEZE_FAULTS = {
    leave_the_last_two_blocks_trainable: (0, r"blocks 3-4: [^;]*requires_grad is on"),
    train_the_embeddings: (1, r"embeddings: [^;]*requires_grad is on"),
    hold_a_frozen_block: (0, r"block 1: in the optimizer, but should be frozen"),
    hold_a_stranger: (0, r"the optimizer holds 1,234 parameters that are not the model's"),
    miss_an_unfrozen_block: (2, r"block 3: not in the optimizer"),
    miss_one_bias: (1, r"block 4: not in the optimizer"),
    freeze_an_unfrozen_block: (1, r"block 4: [^;]*requires_grad is off"),
    wake_a_frozen_block: (1, r"block 2: in training mode, but should be frozen"),
    wake_the_whole_vit: (2, r"embeddings, blocks 1-2: in training mode, but should be frozen"),
    put_an_unfrozen_block_to_sleep: (2, r"block 4: in eval mode, but should train"),
    put_the_decoder_to_sleep: (0, r"decoder: in eval mode, but should train"),
    put_the_decoders_dropout_to_sleep: (0, r"decoder: in eval mode, but should train"),
}


def _cases() -> Iterator:
    """Every fault in both loops, but for a dropout that only ours has."""
    for fault in FREEZE_FAULTS:
        for where in LOOPS[:1] if fault is put_the_decoders_dropout_to_sleep else LOOPS:
            yield pytest.param(fault, where, id=f"{where}-{fault.__name__}")


@pytest.mark.parametrize(("fault", "train"), list(_cases()), indirect=["train"])
def test_a_freeze_fault_is_caught_before_the_next_step_and_names_the_parts(train, fault):
    unfrozen, sentence = FREEZE_FAULTS[fault]
    training = train(unfrozen).until("batch", 2)
    fault(training)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    with pytest.raises(FreezeBreach, match=sentence):
        training.to_the_end()
    assert training.seen.count("batch") == 2
    assert all(torch.equal(p, before[name]) for name, p in training.model.named_parameters())


@pytest.mark.parametrize("moment", [None, "start", "epoch"])
@pytest.mark.parametrize(
    "fault", [leave_the_last_two_blocks_trainable, hold_a_frozen_block, wake_a_frozen_block]
)
def test_a_freeze_fault_before_an_epoch_is_caught_before_its_first_step(train, fault, moment):
    training = train(0)
    if moment:
        training.until(moment)
    fault(training)
    steps = training.seen.count("batch")
    with pytest.raises(FreezeBreach):
        training.to_the_end()
    assert training.seen.count("batch") == steps


@pytest.mark.parametrize("fault", [leave_the_last_two_blocks_trainable, hold_a_frozen_block])
def test_a_freeze_fault_after_the_last_step_is_caught_at_the_end(train, fault):
    training = train(0).until("batch", EPOCHS * BATCHES)
    fault(training)
    with pytest.raises(FreezeBreach):
        training.to_the_end()
    assert "end" not in training.seen


@pytest.mark.parametrize(
    "moment", [("start", 1), ("batch", 3), ("epoch", 1), ("batch", EPOCHS * BATCHES)]
)
def test_a_frozen_weight_written_in_place_is_caught_by_its_hash_or_by_what_it_computes(
    train, moment
):
    training = train(1).until(*moment)
    with torch.no_grad():
        training.blocks[1].mlp.fc2.weight[0, 0] += 1e-6
    with pytest.raises(FreezeBreach, match="block 2: changed, but should be frozen"):
        training.to_the_end()
    assert training.seen.count("batch") <= EPOCHS * BATCHES
    assert "end" not in training.seen


def test_a_trained_block_that_did_not_move_is_caught_at_the_end(train):
    training = train(1)
    last = training.blocks[-1]
    start = {name: p.detach().clone() for name, p in last.named_parameters()}
    training.until("batch", EPOCHS * BATCHES)
    with torch.no_grad():
        for name, parameter in last.named_parameters():
            parameter.copy_(start[name])
    with pytest.raises(FreezeBreach, match="block 4: unchanged, but should have trained"):
        training.to_the_end()


# ------------------------------------------------------------------ faults of the learning rate


def test_a_scheduler_stepped_after_every_batch_is_caught_at_step_2(train):
    training = train(0).until("batch")
    training.scheduler.step()
    with pytest.raises(LRBreach, match=r"^Step 2: .* is 0\.005, promised was 0\.01 \(0\.5 times\)"):
        training.to_the_end()
    assert training.seen.count("batch") == 1


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_scheduler_stepped_in_validation_too_is_caught_before_the_next_step(train, epoch):
    """After the last epoch as well, where no step follows."""
    training = train(1).until("batch", epoch * BATCHES)
    training.until("validation", training.seen.count("validation") + 1)
    training.scheduler.step()
    with pytest.raises(LRBreach, match=rf"^Step {epoch * BATCHES + 1}: .* \(0\.5 times\)"):
        training.to_the_end()
    assert training.seen.count("batch") == epoch * BATCHES


@pytest.mark.parametrize("batch", [1, 3, 4, 6, 10])
def test_a_cosine_stepped_out_of_turn_is_caught_at_the_next_step(ours, batch):
    """In the burn-in, at its end, in the middle of a cycle and after the last step."""
    training = ours(0, schedule=CosineRestarts(T_0=4, burn_in_batches=3)).until("batch", batch)
    training.scheduler.step()
    with pytest.raises(LRBreach, match=f"^Step {batch + 1}: "):
        training.to_the_end()
    assert training.seen.count("batch") == batch


@pytest.mark.parametrize("group", [0, -1])
def test_an_lr_written_by_hand_is_caught_in_any_group_by_name(ours, group):
    training = ours(1).until("batch", 3)
    written = training.optimizer.param_groups[group]
    written["lr"] *= 1 + 1e-6
    with pytest.raises(LRBreach, match=f"^Step 4: the LR of {written['name']!r} is "):
        training.to_the_end()


def test_a_scheduler_that_never_steps_is_caught_in_the_second_epoch(train):
    training = train(0).until("epoch")
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-2
    with pytest.raises(
        LRBreach, match=rf"^Step {BATCHES + 1}: .* is 0\.01, promised was 0\.005 \(2 times\)"
    ):
        training.to_the_end()


def test_a_contract_holds_every_group_to_its_own_factor_and_knows_where_it_ends():
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-2},
        {"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3},
    ]
    optimizer = torch.optim.SGD(groups)
    contract = vitseg.LRContract([1e-2])
    with pytest.raises(
        LRBreach, match=r"^Step 1: the LR of 'group 1' is 0\.001, promised was 0\.01"
    ):
        contract.check(1, optimizer)
    optimizer.param_groups[1]["lr_factor"] = 0.1
    contract.check(1, optimizer)
    for step in (0, 2):
        with pytest.raises(LRBreach, match=f"^Step {step} is outside the plan of 1 steps"):
            contract.check(step, optimizer)


def test_the_step_named_is_counted_over_the_whole_run_as_in_the_records(small_recipe, begin):
    stage = begin(small_recipe, 2, epochs_before=2, steps_before=10)
    event = next(e for e in stage if isinstance(e, BatchEnded))
    assert event.step == 11
    stage.schedule.inner.step()
    with pytest.raises(LRBreach, match=r"^Step 12: "):
        list(stage)


# ------------------------------------------------------------------ controls: silent when all is
# well


@pytest.mark.parametrize("unfrozen", EVERY_DEPTH)
def test_nothing_is_raised_where_nothing_is_wrong(train, unfrozen):
    training = train(unfrozen).to_the_end()
    assert training.seen.count("batch") == EPOCHS * BATCHES
    assert training.seen[-1] == "end"


@pytest.mark.parametrize("unfrozen", EVERY_DEPTH)
def test_the_audit_of_a_plain_model_counts_what_it_has(unfrozen):
    training = plain(unfrozen).until("batch")
    report = vitseg.audit(training.model, training.optimizer, unfrozen)
    sizes = {True: 0, False: 0}
    for parameter in training.model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    assert report.ok
    assert (report.total, report.trainable, report.optimizer_holds) == (
        sum(sizes.values()),
        sizes[True],
        sizes[True],
    )
    assert [p.name for p in report.parts] == [
        "embeddings",
        *(f"block {i}" for i in range(1, 5)),
        "final norm",
        "decoder",
    ]
    assert all(p.requires_grad == p.parameters * p.should_train for p in report.parts)


@pytest.mark.parametrize("promised", [n for n in range(LAYERS + 1) if n != 2])
def test_a_right_model_is_a_breach_of_any_other_promise(promised):
    training = plain(2).until("batch")
    assert vitseg.audit(training.model, training.optimizer, 2).ok
    report = vitseg.audit(
        training.model, training.optimizer, promised
    )  # reports, and leaves raising to check()
    assert not report.ok
    with pytest.raises(FreezeBreach):
        report.check()


# ------------------------------------------------------------------ shapes of other people's models


def _classifier() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2ForImageClassification(_config())
    return model, model.dinov2


def test_the_head_of_a_transformers_model_is_its_decoder():
    model, vit = _classifier()
    vit.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.classifier.parameters())
    assert vitseg.audit(model, optimizer, 0).ok


def test_a_bare_vit_has_no_decoder_to_miss():
    _, vit = _classifier()
    vit.requires_grad_(False).eval()
    trained = [vit.encoder.layer[-1], vit.layernorm]
    parameters = [p for part in trained for p in part.requires_grad_(True).train().parameters()]
    optimizer = torch.optim.SGD(parameters)
    before = vitseg.audit(vit, optimizer, 1).check()
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1)
    assert vitseg.audit(vit, optimizer, 1, since=before.hashes).ok


def test_unfrozen_blocks_above_the_last_skip_are_refused_before_the_stage_is_trained(
    small_recipe, begin, tmp_path
):
    Dinov2Model(_config(num_hidden_layers=6)).save_pretrained(tmp_path)
    recipe = small_recipe.replace(
        {"model.encoder": str(tmp_path), "model.skip_depths": [1, 2, 3, 4]}
    )
    with pytest.raises(ConfigError):
        list(begin(recipe, 2))


def test_a_model_without_a_vit_is_refused_by_name():
    model = nn.Conv2d(3, 3, 1)
    with pytest.raises(VitsegError, match="Conv2d"):
        vitseg.audit(model, torch.optim.SGD(model.parameters()), 0)


@pytest.mark.parametrize(
    "vit",
    [
        SwinModel(
            SwinConfig(embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=2, image_size=32)
        ),
        BeitModel(
            BeitConfig(
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=8,
                image_size=32,
            )
        ),
    ],
    ids=["stages of blocks", "no norm after the last block"],
)
def test_a_model_of_another_make_is_refused_and_not_misread(vit):
    with pytest.raises(
        ConfigError, match="a plain ViT of transformers: one list of like blocks, then a LayerNorm"
    ):
        vitseg.audit(vit, torch.optim.SGD(vit.parameters(), lr=0.1), 1)


def test_the_audit_does_not_share_the_mistakes_of_the_freezing(encoders, monkeypatch):
    """With `[-n:]` in the freezing, 0 blocks are all of them; the promise is worked out elsewhere,
    and says so.
    """
    import vitseg
    from vitseg.model import freeze

    model = vitseg.build_segmenter(
        vitseg.Model(encoder=encoders["dinov2"]), ("a", "b"), (70, 70), seed=0
    )
    blocks = [f"block {i}" for i in range(1, 5)]
    monkeypatch.setattr(freeze, "trained_parts", lambda n, depth: {"decoder", *blocks[-n:]})
    vitseg.set_freeze_depth(model, 0)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    with pytest.raises(vitseg.FreezeBreach, match="blocks 1-4"):
        vitseg.audit(model, optimizer, 0).check()


# ------------------------------------------------------------------ the mend fits the fault


@pytest.mark.parametrize(
    ("fault", "mend"),
    [
        (
            lambda t: t.model.train(),
            "Call eval() on what is frozen after every train() of the model.",
        ),
        (
            lambda t: t.blocks[0].requires_grad_(True),
            "Switch requires_grad off in what should be frozen.",
        ),
        (
            lambda t: t.vit.layernorm.requires_grad_(False),
            "Switch requires_grad on in what should train; the final norm goes with",
        ),
    ],
)
def test_the_mend_is_of_use_in_a_loop_that_is_not_ours(fault, mend):
    training = plain(1).until("batch")
    fault(training)
    with pytest.raises(FreezeBreach) as breach:
        vitseg.audit(training.model, training.optimizer, 1).check()
    assert mend in str(breach.value)


def test_a_model_that_is_not_ours_is_not_frozen_by_us():
    with pytest.raises(ConfigError, match="a model that vitseg has built"):
        vitseg.set_freeze_depth(plain(1).model, 0)
