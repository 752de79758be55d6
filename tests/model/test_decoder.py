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
    return [
        torch.randn(batch, WIDTH, 4, 6, generator=generator) * scale
        for scale in (50.0, 10.0, 3.0, 1.0)
    ]


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
    torch.testing.assert_close(
        added, torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand_as(added), rtol=0, atol=1e-4
    )


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


@pytest.mark.parametrize("name", ["lean", "unet", "linear"])
@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_a_decoder_trains_on_maps_as_they_lie_channels_last(family, name, encoders):
    model = build_segmenter(
        Model(encoder=encoders[family], decoder=name, dropout=0.0), ("a", "b"), (70, 70), 0
    )
    levels = model.prefix(torch.rand(2, 3, 70, 70, generator=torch.Generator().manual_seed(3)))
    maps = [model.encoder.to_map(levels[d], (70, 70)) for d in model.shape.skip_depths]
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    gradients = [
        _gradients(model.decoder.train(), layout(maps))
        for layout in (list, lambda ms: [m.contiguous() for m in ms])
    ]
    for lying, contiguous in zip(*gradients, strict=True):
        torch.testing.assert_close(lying, contiguous, rtol=1e-4, atol=1e-4)


def _gradients(decoder, maps):
    decoder.zero_grad()
    decoder(
        maps, (70, 70)
    ).square().mean().backward()  # a GroupNorm with weights ended the process on such maps
    return [p.grad.clone() for p in decoder.parameters()]


@pytest.mark.parametrize("name", ["lean", "unet"])
def test_the_direct_reading_is_that_of_maps_normed_one_by_one(name):
    decoder = build_decoder(name, WIDTH, CLASSES, 0.0, seed=0)
    torch.nn.init.normal_(decoder.direct.weight, generator=torch.Generator().manual_seed(2))
    norm = torch.nn.GroupNorm(4, 4 * WIDTH)
    expected = decoder.direct(norm(torch.cat(skips(), dim=1)))
    for parameter in decoder.classify.parameters():
        parameter.data.zero_()  # so that the pyramid adds nothing
    torch.testing.assert_close(decoder(skips(), (4, 6)), expected, rtol=1e-4, atol=1e-4)
