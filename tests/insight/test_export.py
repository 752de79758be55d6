"""An exported model gives torch's logits, for any batch, and from them the mask that predict
gives.
"""

from __future__ import annotations

import builtins

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from vitseg.errors import RunError, VitsegError, WeightsError
from vitseg.insight import export
from vitseg.insight.export import export_onnx
from vitseg.model.segmenter import build_segmenter, likeliest, restored
from vitseg.settings import Model

SIZE = (42, 60)  # no multiple of the patch


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("dinov2_with_registers", "vit")]


@pytest.fixture(params=["dinov2", "dinov3_vit", *SLOW])
def exported(request, encoders, tmp_path):
    model = build_segmenter(
        Model(encoder=encoders[request.param], decoder="lean"), ("a", "b, c", "d"), SIZE, seed=0
    )
    model.train()
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path) <= 1e-4
    assert model.training
    return model, path


def test_the_file_gives_torch_s_logits_and_predict_s_masks(exported):
    model, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model.eval()
    for batch in (1, 2, 5):
        images = torch.randint(
            0,
            256,
            (batch, 3, *SIZE),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(batch),
        )
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            assert np.abs(found - model(images).numpy()).max() <= 1e-4
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 55, 3), dtype=np.uint8))
    (found,) = session.run(["logits"], {"images": model.canvas(photo).numpy()})
    mask = likeliest(restored(torch.from_numpy(found[0]), (70, 55))).numpy()
    assert (mask != model.predict(photo)).mean() < 0.001
    assert len(np.unique(mask)) > 1
    about = session.get_modelmeta().custom_metadata_map
    assert about == {"classes": "a\nb, c\nd", "size": "42x60"}
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_an_export_that_differs_leaves_no_file(encoders, tmp_path, monkeypatch):
    model = build_segmenter(Model(encoder=encoders["vit"]), ("a", "b"), SIZE, seed=0)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(WeightsError, match="the exported logits differ by"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_packages_it_says_how_to_get_them(encoders, tmp_path, monkeypatch):
    there = builtins.__import__

    def without(name, *more, **options):
        if name == "onnxruntime":
            raise ImportError("no module", name=name)
        return there(name, *more, **options)

    model = build_segmenter(Model(encoder=encoders["vit"]), ("a", "b"), SIZE, seed=0)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        VitsegError, match=r"onnxruntime is not installed.*pip install 'vitseg\[onnx\]'"
    ):
        export_onnx(model, tmp_path / "model.onnx")


def test_a_folder_that_is_not_there_is_a_sentence(encoders, tmp_path):
    model = build_segmenter(Model(encoder=encoders["vit"]), ("a", "b"), SIZE, seed=0)
    with pytest.raises(RunError, match=r"model\.onnx"):
        export_onnx(model, tmp_path / "nowhere" / "model.onnx")
