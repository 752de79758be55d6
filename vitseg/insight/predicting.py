"""Probabilities of an image at its own size, plainly and with test-time augmentation."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from vitseg.model.segmenter import Segmenter


def probabilities(model: Segmenter, image: Image.Image) -> Tensor:
    """Softmax (classes, h, w) of one image at its own size, on the CPU."""
    return model.logits(image).softmax(0).cpu()


def flipped(model: Segmenter, image: Image.Image) -> Tensor:
    """Test-time augmentation: the mean of the probabilities of the image and of its mirror image,
    turned back.

    Probabilities, not logits: a mean of logits is a geometric mean, in which the surer of two
    passes has more than a vote.
    """
    mirrored = probabilities(model, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).flip(2)
    return torch.stack([probabilities(model, image), mirrored]).mean(0)
