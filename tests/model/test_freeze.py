"""What is frozen stays as it is: parameters, modes and features, at every depth of every family."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from vitseg.errors import ConfigError
from vitseg.model.encoder import FAMILIES
from vitseg.model.freeze import freeze_report, set_freeze_depth
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.recipe import Recipe
from vitseg.runs.run import train
from vitseg.settings import Model

LAYERS = 4
DEPTHS = (*range(LAYERS + 1), "all")
RATES = ("dropout_prob", "dropout", "drop_path_rate")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_depth = pytest.mark.parametrize("depth", DEPTHS)


@pytest.fixture(scope="module")
def originals(encoders: dict[str, str]) -> dict[str, Segmenter]:
    """A segmenter of every family as `build_segmenter` makes it."""
    return {
        f: build_segmenter(Model(encoder=encoders[f]), ("a", "b", "c"), (28, 28), seed=0)
        for f in FAMILIES
    }


@pytest.fixture
def build(originals: dict[str, Segmenter]) -> Callable[..., Segmenter]:
    """A copy of a family's segmenter, frozen to a depth."""

    def _build(family: str = "dinov2", depth: int | str = 0) -> Segmenter:
        model = copy.deepcopy(originals[family])
        set_freeze_depth(model, depth)
        return model

    return _build


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def blocks_of(depth: int | str) -> int:
    return LAYERS if depth == "all" else depth


def should_train(name: str, unfrozen: int) -> bool:
    """The promise, read off a parameter's or module's name; says nothing about how the library
    finds its parts.
    """
    if found := re.search(r"^encoder\.vit\..*?layers?\.(\d+)(?:\.|$)", name):
        return int(found[1]) >= LAYERS - unfrozen
    if re.match(r"encoder\.vit\.(layernorm|norm)(\.|$)", name):
        return unfrozen > 0
    return name.startswith("decoder.")


def promised(model: Segmenter, unfrozen: int) -> set[str]:
    return {name for name, _ in model.named_parameters() if should_train(name, unfrozen)}


def trainable(model: Segmenter) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def awake(module: nn.Module) -> set[str]:
    """Names of the innermost modules in training mode: containers compute nothing."""
    return {name for name, m in module.named_modules() if m.training and not list(m.children())}


def promised_awake(model: Segmenter, unfrozen: int) -> set[str]:
    leaves = {name for name, m in model.named_modules() if not list(m.children())}
    return {name for name in leaves if should_train(name, unfrozen)}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())
    }


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Names of what is no longer the same, bit for bit."""
    return {name for name, t in weights(model).items() if not torch.equal(t, before[name])}


# ------------------------------------------------------------------ which parameters train


@every_family
@every_depth
def test_exactly_the_promised_parameters_require_a_gradient(build, family, depth):
    model = build(family, depth)
    assert trainable(model) == promised(model, blocks_of(depth))


@every_family
def test_the_promise_of_this_file_tells_depths_apart(build, family):
    """A control: one block more promises more, and at the deepest only embeddings are left out."""
    model = build(family)
    sizes = [len(promised(model, n)) for n in range(LAYERS + 1)]
    assert sizes == sorted(set(sizes))
    left_out = {name for name, _ in model.named_parameters()} - promised(model, LAYERS)
    assert (
        left_out
        == {name for name, _ in model.named_parameters() if ".embeddings." in name}
        != set()
    )


@every_family
@every_depth
def test_twenty_optimizer_steps_move_what_trains_and_no_bit_of_what_is_frozen(
    build, images, family, depth
):
    model = build(family, depth).train()
    before = weights(model)
    # handed every parameter, with weight decay: what is frozen must be safe because it is frozen
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    masks = torch.randint(3, (2, 28, 28), generator=torch.Generator().manual_seed(1))
    for step in range(20):
        key_noise(model, 0, step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), masks).backward()
        optimizer.step()
    assert moved(before, model) == promised(model, blocks_of(depth))


def test_zero_freezes_every_block_although_a_slice_from_minus_zero_is_every_block(build):
    model = build(depth="all")
    blocks = model.encoder.blocks
    assert len(blocks[-0:]) == LAYERS  # the trap
    set_freeze_depth(model, 0)
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert model.encoder.cut == LAYERS


@pytest.mark.parametrize(("first", "then"), list(product(DEPTHS, DEPTHS)))
def test_depth_is_absolute_and_idempotent(build, first, then):
    """Deeper and then shallower freezes again; the same depth twice changes nothing."""
    model, other = build(depth=first), build(depth=then)
    reports = [set_freeze_depth(model, then) for _ in range(2)]
    assert reports == [freeze_report(other)] * 2
    assert trainable(model) == trainable(other) == promised(model, blocks_of(then))
    assert model.encoder.unfrozen_blocks == blocks_of(then)


def test_freezing_again_drops_the_gradients_of_before(build, images):
    """A gradient left behind would be applied by an optimizer that still holds the parameter."""
    model = build(depth=3).train()
    key_noise(model, 0)
    model(images).sum().backward()
    assert any(p.grad is not None for p in model.encoder.parameters())
    set_freeze_depth(model, 1)
    assert all(p.grad is None for p in model.parameters())


@every_depth
def test_report_counts_what_trains(build, depth):
    model = build(depth=depth)
    report, unfrozen = freeze_report(model), blocks_of(depth)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert report.total == sum(sizes.values())
    assert report.trainable == sum(sizes[name] for name in promised(model, unfrozen))
    last = tuple(f"block {i}" for i in range(LAYERS - unfrozen + 1, LAYERS + 1))
    assert report.parts == ((*last, "final norm", "decoder") if unfrozen else ("decoder",))


# ------------------------------------------------------------------ training mode


def _by_way_of(*others: int) -> Callable[[Segmenter], object]:
    """Train at other depths and come back; the change of depth alone must put things right, no
    `train()` after it.
    """

    def wake(model: Segmenter) -> None:
        depth = model.encoder.unfrozen_blocks
        for other in others:
            set_freeze_depth(model, other)
            model.train()
        set_freeze_depth(model, depth)

    return wake


WAKERS = {
    "model.train()": lambda model: model.train(),
    "encoder.train()": lambda model: (model.decoder.train(), model.encoder.train()),
    "eval() then train()": lambda model: model.train().eval().train(),
    "encoder.eval() then encoder.train()": lambda model: (
        model.train(),
        model.encoder.eval(),
        model.encoder.train(),
    ),
    "from a deeper one": _by_way_of(LAYERS),
    "from a shallower one": _by_way_of(LAYERS, 0),
}


@every_family
@every_depth
@pytest.mark.parametrize("waker", WAKERS)
def test_what_is_frozen_stays_in_eval_mode_and_what_trains_is_in_train_mode(
    build, family, depth, waker
):
    model = build(family, depth)
    WAKERS[waker](model)
    assert awake(model) == promised_awake(model, blocks_of(depth))


@every_family
@every_depth
def test_eval_reaches_what_trains_too(build, family, depth):
    model = build(family, depth).train()
    assert awake(model)
    assert awake(model.eval()) == set()


def test_a_change_of_depth_in_eval_mode_wakes_nothing(build):
    model = build(depth=1).eval()
    set_freeze_depth(model, 3)
    assert awake(model) == set()
    assert awake(model.train()) == promised_awake(model, 3)


# ------------------------------------------------------------------ features


@every_family
@every_depth
def test_frozen_features_of_an_image_are_the_same_twice_in_train_mode(build, images, family, depth):
    model = build(family, depth).train()
    first, second = model.prefix(images), model.prefix(images)
    assert set(first) == set(range(1, model.encoder.cut)) | {model.encoder.cut}
    assert all(torch.equal(first[level], second[level]) for level in first)
    assert not any(level.requires_grad for level in first.values())


@every_family
def test_an_encoder_that_trains_draws_nothing_of_its_own(build, images, family):
    """Every rate of its config is 0: with our drop-path at 0, two passes of all blocks are equal in
    train mode.
    """
    model = build(family, "all").train()
    encoder = model.encoder
    first, second = (
        encoder.run(encoder.embed(images), 0, LAYERS, set(), (28, 28))[LAYERS] for _ in range(2)
    )
    assert torch.equal(first, second)


@every_family
def test_the_same_encoder_left_to_transformers_differs_from_pass_to_pass(encoders, images, family):
    """The control of the two tests above: these encoders do drop, and DINOv3 does rescale, when
    nobody stops them.
    """
    vit = AutoModel.from_pretrained(encoders[family]).train()
    options = {"interpolate_pos_encoding": True} if family == "vit" else {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        first, second = (vit(images, **options).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


@every_family
def test_every_dropout_rate_of_the_config_is_set_to_0(build, encoders, family):
    def rates(config) -> dict[str, float]:
        return {k: v for k, v in config.to_dict().items() if k.endswith(RATES)}

    stored, used = AutoConfig.from_pretrained(encoders[family]), build(family).encoder.vit
    assert set(rates(stored).values()) == {0.1}
    assert rates(used.config) == dict.fromkeys(rates(stored), 0.0)
    assert {m.p for m in used.modules() if isinstance(m, nn.Dropout)} <= {0.0}


@every_depth
def test_the_rotary_embedding_of_dinov3_is_not_augmented_at_random_in_train_mode(
    build, images, depth
):
    model = build("dinov3_vit", depth).train()
    rotary = model.encoder.vit.rope_embeddings
    plain = rotary(images)
    assert all(torch.equal(a, b) for a, b in zip(plain, rotary(images), strict=True))
    rotary.train()  # the control: it would be
    with torch.random.fork_rng():
        assert not torch.equal(plain[0], rotary(images)[0])


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("wrong", [-1, LAYERS + 1, 99, True, False, 1.0, None, "All", "2"])
def test_an_impossible_depth_is_refused_by_name_and_changes_nothing(build, wrong):
    model = build(depth=2)
    with pytest.raises(ConfigError) as caught:
        set_freeze_depth(model, wrong)
    assert (caught.value.field, caught.value.got) == ("unfrozen_blocks", wrong)
    assert str(caught.value).startswith(
        f'unfrozen_blocks: got {wrong!r}; allowed: 0..{LAYERS} or "all".'
    )
    assert trainable(model) == promised(model, 2)


def test_a_stage_deeper_than_its_encoder_is_refused_before_the_run_begins(
    tiny_recipe: Recipe, tmp_path
):
    folder = tmp_path / "run"
    with pytest.raises(
        ConfigError, match=r'^stages\.1\.unfrozen_blocks: got 5; allowed: 0\.\.4 or "all"\.'
    ):
        next(train(tiny_recipe.replace({"stages.1.unfrozen_blocks": 5}), folder))
    assert not folder.exists()
