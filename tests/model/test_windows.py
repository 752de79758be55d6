"""Windows cover an image, agree with MONAI's, and are what `predict` does where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitseg.errors import ConfigError
from vitseg.model.segmenter import Segmenter, build_segmenter, window_starts
from vitseg.settings import Model

SIZE = (42, 56)


@pytest.fixture(scope="module")
def model(encoders: dict[str, str]) -> Segmenter:
    return build_segmenter(Model(encoder=encoders["dinov2"]), ("a", "b", "c"), SIZE, seed=0)


def photo(height: int, width: int) -> np.ndarray:
    """Smooth noise, of which a model with random weights makes more than one class."""
    coarse = np.random.default_rng(0).integers(
        0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8
    )
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("length", [10, 11, 15, 20, 37])
def test_windows_cover_every_pixel_and_stay_inside(length: int, overlap: float):
    starts = window_starts(length, 10, overlap)
    assert starts == sorted(set(starts))
    assert {n for s in starts for n in range(s, s + 10)} == set(range(length))


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_that_would_leave_gaps_or_never_end_is_refused(model: Segmenter, overlap: float):
    with pytest.raises(ConfigError, match="a share of a window"):
        model.predict_windows(photo(50, 60), overlap)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_an_image_of_the_canvas_s_size_gives_what_predict_gives(model: Segmenter, overlap: float):
    image = photo(*SIZE)
    mask = model.predict_windows(image, overlap)
    assert np.array_equal(mask, model.predict(image))
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(42, 56), (100, 131), (43, 57), (42, 200)])
def test_logits_are_those_of_monai(model: Segmenter, size: tuple[int, int], overlap: float):
    from monai.inferers import sliding_window_inference

    image = torch.from_numpy(photo(*size).copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        expected = sliding_window_inference(image[None], SIZE, 1, model, overlap, mode="constant")[
            0
        ]
    found = model.window_logits(photo(*size), overlap)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    mask = model.predict_windows(photo(*size), overlap)
    assert mask.shape == size and mask.dtype == np.uint8
    assert (mask == expected.argmax(0).numpy()).mean() > 0.999


def test_it_is_not_what_predict_gives_of_a_large_image(model: Segmenter):
    """The negative control."""
    image = photo(100, 131)
    assert (model.predict_windows(image) != model.predict(image)).mean() > 0.01


@pytest.mark.parametrize("size", [(20, 30), (20, 56), (1, 1), (20, 150)])
def test_a_smaller_image_is_padded_not_scaled(model: Segmenter, size: tuple[int, int]):
    image = photo(*size)
    padded = np.full((SIZE[0], max(SIZE[1], size[1]), 3), (124, 116, 104), np.uint8)
    padded[: size[0], : size[1]] = image
    assert np.array_equal(
        model.predict_windows(image), model.predict_windows(padded)[: size[0], : size[1]]
    )


def test_the_model_stays_in_the_mode_it_was_in(model: Segmenter):
    for training in (True, False):
        model.train(training)
        model.predict_windows(photo(50, 60))
        assert model.training == training
