"""Decoders: from feature maps of four depths, all on the patch grid, to logits.

A ViT has no pyramid: its four skips have one size. `lean` and `unet` make one, by upsampling the
deeper maps and meeting the shallower ones on the way. Convolutions on the patch grid are cheap;
those at x8 set the price. What the encoder knows already need not squeeze through the pyramid's few
channels: it goes to the logits directly.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitseg.model.noise import KeyedDropout

_PYRAMIDS = {"lean": (1, (128, 128, 64, 32), (1, 2, 4)), "unet": (2, (256, 128, 64, 32), (2, 4, 8))}
"""Convolutions a level, channels from the deepest map on, and each level's size in patch grids."""


def _layers(inputs: int, width: int, size: int) -> list[nn.Module]:
    """A convolution with GroupNorm: batches are small and may be split."""
    convolution = nn.Conv2d(inputs, width, size, padding=size // 2, bias=False)
    return [convolution, nn.GroupNorm(8, width), nn.ReLU()]


class _Meet(nn.Module):
    """Upsample the map from below, join the skip, convolve."""

    def __init__(self, below: int, skip: int, width: int, scale: int, convolutions: int):
        super().__init__()
        self.scale = scale
        self.project = nn.Conv2d(skip, width, 1)
        layers = _layers(below + width, width, 3)
        for _ in range(1, convolutions):
            layers += _layers(width, width, 3)
        self.convolve = nn.Sequential(*layers)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """below (B, C, h, w), skip (B, D, gh, gw) to (B, width, gh * scale, gw * scale)."""
        size = tuple(self.scale * side for side in skip.shape[2:])
        skip = resize(self.project(skip), size)  # 1x1 first: on the patch grid it is cheapest
        return self.convolve(torch.cat([resize(below, size), skip], dim=1))


class PyramidDecoder(nn.Module):
    """A U-Net decoder by its name: deepest skip first, one level a skip.

    Its logits are added to those of `direct`, a linear reading of the four skips. Channels of a ViT
    differ in scale by an order of magnitude; each skip is normed as a whole, image by image, which
    puts the four on an equal footing.
    """

    def __init__(self, name: str, width: int, classes: int, dropout: float):
        super().__init__()
        convolutions, widths, scales = _PYRAMIDS[name]
        self.start = nn.Sequential(*_layers(width, widths[0], 1))
        self.levels = nn.ModuleList()
        for (below, out), scale in zip(pairwise(widths), scales, strict=True):
            self.levels.append(_Meet(below, width, out, scale, convolutions))
        self.dropout = KeyedDropout(dropout)
        self.classify = nn.Conv2d(widths[-1], classes, 1)
        self.direct = nn.Conv2d(4 * width, classes, 1)

    def forward(self, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Four maps (B, D, h, w), shallow to deep, to logits (B, classes, *size)."""
        x = self.start(skips[-1])
        for level, skip in zip(self.levels, reversed(skips[:-1]), strict=True):
            x = level(x, skip)
        deep, direct = self.classify(self.dropout(x)), self.read(skips)
        # a loss is slow on logits that lie channels last
        return resize(deep.contiguous(), size) + resize(direct.contiguous(), size)

    def read(self, skips: list[Tensor]) -> Tensor:
        """The direct reading (B, classes, h, w): `direct` of the four maps, each normed as a
        whole.
        """
        weights = self.direct.weight.chunk(4, dim=1)
        parts = map(F.conv2d, map(_normed, skips), weights)
        return sum(parts, start=self.direct.bias[:, None, None])


class LinearDecoder(nn.Module):
    """The linear probe of DINOv2: BatchNorm and a 1x1 convolution on the four maps side by side."""

    def __init__(self, width: int, classes: int, dropout: float):
        super().__init__()
        self.norm = nn.BatchNorm2d(4 * width)
        self.dropout = KeyedDropout(dropout)
        self.classify = nn.Conv2d(4 * width, classes, 1)

    def forward(self, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
        x = self.norm(torch.cat(skips, dim=1))
        return resize(self.classify(self.dropout(x)), size)


@torch.no_grad()
def build_decoder(name: str, width: int, classes: int, dropout: float, seed: int) -> nn.Module:
    """A decoder by its recipe name, its weights drawn from `seed` alone.

    Convolutions after He et al. 2015, norms at identity; the direct reading begins at 0 and adds
    nothing yet.
    """
    kind = LinearDecoder if name == "linear" else partial(PyramidDecoder, name)
    with torch.device("meta"):  # no memory, and no draw from the global generator
        decoder = kind(width, classes, dropout)
    generator = torch.Generator().manual_seed(seed)
    for path, module in decoder.to_empty(device="cpu").named_modules():
        if isinstance(module, nn.Conv2d):
            follows = "linear" if path == "classify" else "relu"
            nn.init.kaiming_normal_(module.weight, nonlinearity=follows, generator=generator)
            if path == "direct":
                module.weight.zero_()
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.reset_parameters()
    return decoder


def _normed(x: Tensor) -> Tensor:
    """A map (B, D, h, w) at mean 0 and variance 1, image by image; scale and shift are left to what
    reads it.

    By the layer norm of what lies channels last: a GroupNorm takes three times as long, and its
    backward pass ends the process where it has weights and its input needs no gradient (torch 2.13,
    CPU).
    """
    x = x.permute(0, 2, 3, 1)
    return F.layer_norm(x, x.shape[1:]).permute(0, 3, 1, 2)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) at another size, bilinear."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
