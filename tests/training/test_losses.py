"""Losses against PyTorch's and MONAI's own, whole and in portions, with and without ignored
pixels.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor

from vitseg.errors import ConfigError
from vitseg.images import IGNORE
from vitseg.presets import giant
from vitseg.settings import Loss
from vitseg.training.losses import SegmentationLoss

CLASSES = 3
WEIGHTS = (0.5, 1.0, 4.0)
KINDS = {
    "cross-entropy": Loss(dice=0.0),
    "smoothed, weighted cross-entropy": Loss(dice=0.0, label_smoothing=0.1, class_weights=WEIGHTS),
    "dice": Loss(cross_entropy=0.0),
    "dice over the batch": Loss(cross_entropy=0.0, dice_over="batch"),
    "focal": Loss(cross_entropy=0.0, dice=0.0, focal=1.0),
    "weighted focal": Loss(
        cross_entropy=0.0, dice=0.0, focal=1.0, focal_gamma=4.0, class_weights=WEIGHTS
    ),
    "everything": Loss(dice=5.0, focal=2.0, label_smoothing=0.1, class_weights=WEIGHTS),
}
every_kind = pytest.mark.parametrize("cfg", KINDS.values(), ids=KINDS)


def loss_of(cfg: Loss) -> SegmentationLoss:
    return SegmentationLoss(cfg, CLASSES)


def batch(images: int = 4, side: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits, and masks in which every image has every class."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, CLASSES, side, side, generator=draws) * 3
    masks = torch.randint(0, CLASSES, (images, side, side), generator=draws)
    masks[:, 0, :CLASSES] = torch.arange(CLASSES)
    return logits, masks


def with_ignored(masks: Tensor) -> Tensor:
    """More of every image ignored than of the one before it."""
    masks = masks.clone()
    for number, mask in enumerate(masks):
        mask[1 : number + 2] = IGNORE
    return masks


def gradient(loss: SegmentationLoss, logits: Tensor, masks: Tensor) -> tuple[float, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, masks)
    value.backward()
    return value.item(), logits.grad


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["hard", "smoothed"])
@pytest.mark.parametrize(
    "prepare", [Tensor.clone, with_ignored], ids=["all pixels", "some ignored"]
)
def test_cross_entropy_is_pytorchs(weights: tuple[float, ...] | None, smoothing: float, prepare):
    logits, masks = batch()
    masks = prepare(masks)
    ours = loss_of(Loss(dice=0.0, label_smoothing=smoothing, class_weights=weights))(logits, masks)
    theirs = F.cross_entropy(
        logits,
        masks,
        weights and torch.tensor(weights),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("over", "pooled"), [("image", False), ("batch", True)])
def test_dice_is_monais_where_every_class_is_present(over: str, pooled: bool):
    logits, masks = batch()
    ours = loss_of(Loss(cross_entropy=0.0, dice_over=over))(logits, masks)
    theirs = DiceLoss(softmax=True, to_onehot_y=True, batch=pooled)(logits, masks[:, None])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_dice_over_images_is_another_number_than_over_the_batch():
    values = [
        loss_of(Loss(cross_entropy=0.0, dice_over=over))(*batch()).item()
        for over in ("image", "batch")
    ]
    assert abs(values[0] - values[1]) > 1e-3


def test_dice_is_the_mean_over_the_classes_present_in_an_image():
    logits, masks = batch(images=1)
    masks[masks == 2] = 1
    p = logits.softmax(1)[0]
    by_class = [
        1 - (2 * p[c][masks[0] == c].sum() + 1e-5) / (p[c].sum() + (masks == c).sum() + 1e-5)
        for c in (0, 1)
    ]
    ours = loss_of(Loss(cross_entropy=0.0))(logits, masks)
    torch.testing.assert_close(ours, torch.stack(by_class).mean(), rtol=1e-6, atol=0)


def test_image_that_is_ignored_altogether_does_not_enter_the_dice_of_the_others():
    logits, masks = batch(images=3)
    dice = loss_of(Loss(cross_entropy=0.0))
    alone = dice(logits[:2], masks[:2])
    masks[2] = IGNORE
    torch.testing.assert_close(dice(logits, masks), alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 4.0])
def test_focal_is_monais(gamma: float):
    logits, masks = batch()
    ours = loss_of(
        Loss(
            cross_entropy=0.0,
            dice=0.0,
            focal=1.0,
            **({} if gamma == 2.0 else {"focal_gamma": gamma}),
        )
    )
    theirs = FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True)(logits, masks[:, None])
    torch.testing.assert_close(
        ours(logits, masks), CLASSES * theirs, rtol=1e-5, atol=0
    )  # theirs divides by classes too


def test_focal_is_lins_formula_weighted_by_the_class_of_the_truth():
    logits, masks = batch()
    masks = with_ignored(masks)
    total = weight = 0.0
    for image, row, column in (masks != IGNORE).nonzero().tolist():
        truth = masks[image, row, column]
        p = logits[image, :, row, column].double().softmax(0)[truth].item()
        total -= WEIGHTS[truth] * (1 - p) ** 4 * torch.tensor(p, dtype=torch.float64).log().item()
        weight += WEIGHTS[truth]
    assert loss_of(KINDS["weighted focal"])(logits, masks).item() == pytest.approx(
        total / weight, rel=1e-5
    )


def test_focal_without_focus_is_cross_entropy():
    logits, masks = batch()
    focal = loss_of(
        Loss(cross_entropy=0.0, dice=0.0, focal=1.0, focal_gamma=0.0, class_weights=WEIGHTS)
    )
    plain = loss_of(Loss(dice=0.0, class_weights=WEIGHTS))
    torch.testing.assert_close(focal(logits, masks), plain(logits, masks), rtol=1e-6, atol=0)


def test_parts_add_up_with_the_weights_of_the_recipe():
    logits, masks = batch()
    single = [Loss(dice=0.0), Loss(cross_entropy=0.0), Loss(cross_entropy=0.0, dice=0.0, focal=1.0)]
    ce, dice, focal = (loss_of(cfg)(logits, masks) for cfg in single)
    together = loss_of(Loss(cross_entropy=0.5, dice=5.0, focal=2.0))(logits, masks)
    torch.testing.assert_close(together, 0.5 * ce + 5 * dice + 2 * focal, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "cfg",
    [c for c in KINDS.values() if c.dice_over == "image"],
    ids=[k for k in KINDS if "batch" not in k],
)
@pytest.mark.parametrize("portions", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_sums_and_counts_over_portions_make_the_loss_and_gradient_of_the_whole(
    cfg: Loss, portions: tuple[int, ...]
):
    logits, masks = batch()
    masks, loss = with_ignored(masks), loss_of(cfg)
    whole, expected = gradient(loss, logits, masks)
    logits.requires_grad_()
    pairs = list(zip(logits.split(portions), masks.split(portions), strict=True))
    counts = sum(loss.counts(m) for _, m in pairs)
    total = sum(loss.mean(loss.sums(x, m), counts) for x, m in pairs)
    total.backward()
    assert total.item() == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-8)


def test_mean_of_the_portions_losses_is_another_number():
    """The negative control: portions with unequal numbers of valid pixels must not weigh the
    same.
    """
    logits, masks = batch()
    masks, loss = with_ignored(masks), loss_of(KINDS["cross-entropy"])
    portions = [loss(logits[i : i + 1], masks[i : i + 1]).item() for i in range(4)]
    assert abs(sum(portions) / 4 - loss(logits, masks).item()) > 1e-3


@every_kind
def test_ignored_pixels_get_no_gradient_and_change_nothing(cfg: Loss):
    logits, masks = batch()
    masks, loss = with_ignored(masks), loss_of(cfg)
    ignored = (masks == IGNORE)[:, None].expand_as(logits)
    value, grad = gradient(loss, logits, masks)
    assert grad[ignored].abs().max() == 0
    assert grad[~ignored].abs().min() > 0
    assert loss(logits.masked_fill(ignored, 50.0), masks).item() == value


@pytest.mark.parametrize(
    "cfg", [pytest.param(c, id=k) for k, c in {**KINDS, "giant": giant().loss}.items()]
)
def test_batch_that_is_ignored_altogether_costs_nothing(cfg: Loss):
    logits, masks = batch()
    value, grad = gradient(loss_of(cfg), logits, torch.full_like(masks, IGNORE))
    assert value == 0
    assert grad.abs().max() == 0


@every_kind
@pytest.mark.parametrize("scale", [1e2, 1e4], ids=["sure", "very sure"])
def test_sure_predictions_right_or_wrong_give_finite_losses_and_gradients(cfg: Loss, scale: float):
    logits, masks = batch()
    value, grad = gradient(loss_of(cfg), logits * scale, masks)
    assert torch.tensor(value).isfinite()
    assert grad.isfinite().all()


def test_focal_with_a_gamma_below_one_has_finite_gradients_where_the_prediction_is_sure():
    _, masks = batch()
    sure = F.one_hot(masks, CLASSES).permute(0, 3, 1, 2) * 200.0
    _, grad = gradient(
        loss_of(Loss(cross_entropy=0.0, dice=0.0, focal=1.0, focal_gamma=0.5)), sure, masks
    )
    assert grad.isfinite().all()


def test_half_precision_logits_are_summed_in_single_precision():
    logits, masks = batch()
    loss = loss_of(KINDS["everything"])
    assert loss(logits.bfloat16(), masks).dtype == torch.float32
    assert loss(logits.bfloat16(), masks).item() == loss(logits.bfloat16().float(), masks).item()


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0), (1.0, 1.0, 1.0, 1.0)])
def test_wrong_number_of_class_weights_is_an_error_that_says_how_many(weights: tuple[float, ...]):
    with pytest.raises(
        ConfigError, match=r"loss\.class_weights: got .*3 positive numbers"
    ) as refused:
        loss_of(Loss(class_weights=weights))
    assert (refused.value.field, refused.value.got) == ("loss.class_weights", weights)
