"""Decoders: the direct reading, and maps that any norm can be trained on."""

from __future__ import annotations

import pytest
import torch

from vitseg.model.decoder import build_decoder
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import build_segmenter
from vitseg.settings import Model

WIDTH, CLASSES, SIZE = 32, 3, (28, 42)


def skips(batch=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, WIDTH, 4, 6, generator=generator) * scale for scale in (50.0, 10.0, 3.0, 1.0)]


@pytest.mark.parametrize("name", ["lean", "unet"])
def test_the_direct_reading_begins_at_zero_and_learns(name):
    decoder = build_decoder(name, WIDTH, CLASSES, 0.0, seed=0)
    before = decoder(skips(), SIZE)
    assert not decoder.direct.weight.any() and not decoder.direct.bias.any()
    before.square().sum().backward()
    assert decoder.direct.weight.grad.abs().max() > 0
    with torch.no_grad():
        decoder.direct.bias += torch.tensor([1.0, 2.0, 3.0])
        added = decoder(skips(), SIZE) - before
    torch.testing.assert_close(added, torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand_as(added), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["lean", "unet"])
def test_an_image_s_logits_do_not_depend_on_its_batch(name):
    decoder = build_decoder(name, WIDTH, CLASSES, 0.1, seed=0)
    with torch.no_grad():
        decoder.direct.weight.normal_(generator=torch.Generator().manual_seed(2))
        key_noise(decoder, 0)
        whole = decoder.train()(skips(4), SIZE)
        for first in (0, 2):
            key_noise(decoder, 0, first_sample=first)
            part = decoder([s[first : first + 2] for s in skips(4)], SIZE)
            torch.testing.assert_close(part, whole[first : first + 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_maps_are_contiguous_so_that_a_norm_on_them_can_be_trained(family, encoders):
    model = build_segmenter(Model(encoder=encoders[family]), ("a", "b"), (70, 70), 0)
    levels = model.prefix(torch.zeros(2, 3, 70, 70))
    maps = [model.encoder.to_map(t, (70, 70)) for t in levels.values()]
    assert all(m.is_contiguous() for m in maps)
    norm = torch.nn.GroupNorm(4, WIDTH)
    norm(maps[-1]).sum().backward()  # as a view this ended the process
