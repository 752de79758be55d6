"""Dropout and drop-path whose draws are a function of (key, layer, sample), never of a generator's
state.

Other cells of a notebook draw from torch's global generator while training runs; these modules
never touch it.
"""

import torch
from torch import Tensor, nn

from vitseg.draws import seed_for
from vitseg.errors import TrainingError


class KeyedNoise(nn.Module):
    """Base of modules that drop a share `rate` of something while they train."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate
        self.key: tuple[object, ...] | None = None
        self.first_sample = 0

    def drop(self, x: Tensor, units: int, layer: str) -> Tensor:
        """x (B, ...) without some of each sample's `units` along its second dimension; 1 unit is
        the whole sample. What stays is divided by 1 - rate, so that the mean stays.
        """
        if self.key is None:
            hint = "Call key_noise(model, seed, step) before each step."
            raise TrainingError("Dropout in training mode has no key.", hint)
        generator = torch.Generator().manual_seed(seed_for(*self.key, layer))
        draws = torch.rand(self.first_sample + len(x), units, generator=generator)
        draws = draws[self.first_sample :].view(len(x), units, *[1] * (x.ndim - 2))
        return x * ((draws >= self.rate) / (1 - self.rate)).to(x)


class KeyedDropout(KeyedNoise):
    """Drops whole channels of a decoder's (B, C, H, W) (spatial dropout, Tompson et al. 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return self.drop(x, x.shape[1], "decoder")


def key_noise(model: nn.Module, *key: object, first_sample: int = 0) -> None:
    """Give all noise in `model` the key of the coming forward pass.

    `first_sample` is the place in the batch of the first sample passed, so that a batch in two
    portions draws what it would draw in one.
    """
    for module in model.modules():
        if isinstance(module, KeyedNoise):
            module.key, module.first_sample = key, first_sample
