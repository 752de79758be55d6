"""An encoder out of somebody's `.pth`: every weight or none, and no code is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from vitseg import cli
from vitseg.errors import WeightsError
from vitseg.model.weights import convert_encoder, load_vit


@pytest.fixture
def trained(encoders) -> torch.nn.Module:
    """An encoder with other weights than the one of its folder."""
    model = AutoModel.from_pretrained(encoders["dinov2"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return model


def as_script(model: torch.nn.Module, before: str = "encoder.") -> dict[str, torch.Tensor]:
    """As a training script keeps it: the encoder under some name, a decoder beside it."""
    return {before + k: v for k, v in model.state_dict().items()} | {
        "decoder.weight": torch.zeros(3, 3)
    }


@pytest.mark.parametrize("under", ["", "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("before", ["", "encoder.", "module.model.backbone."])
def test_the_encoder_is_found_under_whatever_name(under, before, trained, encoders, tmp_path):
    content = as_script(trained, before)
    torch.save({under: content, "epoch": 7} if under else content, tmp_path / "best.pth")
    convert_encoder(tmp_path / "best.pth", encoders["dinov2"], tmp_path / "encoder")
    vit, _ = load_vit(str(tmp_path / "encoder"))
    found, wanted = vit.state_dict(), trained.state_dict()
    assert found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )


def test_the_command_line_says_how_to_use_it(trained, encoders, tmp_path, capsys):
    torch.save(as_script(trained), tmp_path / "best.pth")
    folder = tmp_path / "encoder"
    assert (
        cli.main(["convert", str(tmp_path / "best.pth"), str(folder), "--like", encoders["dinov2"]])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == f"--set model.encoder={folder}"
    assert (
        load_file(folder / "model.safetensors").keys()
        == load_file(Path(encoders["dinov2"]) / "model.safetensors").keys()
    )


class Whole:
    """A script that saves its model, not the weights."""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda file, model: torch.save({"model": Whole()}, file),
            "cannot be read as weights alone",
        ),
        (
            lambda file, model: file.write_bytes(b"PK\x03\x04 torn"),
            "cannot be read as weights alone",
        ),
        (lambda file, model: file.write_bytes(b""), "cannot be read as weights alone"),
        (lambda file, model: torch.save([1, 2], file), "holds no weights by name"),
        (lambda file, model: torch.save({"epoch": 1}, file), "holds no weights by name"),
        (
            lambda file, model: torch.save({"decoder.weight": torch.zeros(1)}, file),
            "Missing key.*cls_token",
        ),
        (
            lambda file, model: torch.save(
                as_script(model) | {"encoder.layernorm.weight": torch.zeros(7)}, file
            ),
            r"size mismatch for layernorm.weight.*\[7\]",
        ),
        (lambda file, model: shutil.rmtree(file, ignore_errors=True), "cannot be read"),
    ],
    ids=[
        "a whole model",
        "torn",
        "empty",
        "a list",
        "no tensors",
        "no encoder",
        "another width",
        "not there",
    ],
)
def test_what_holds_no_such_encoder_is_refused_and_nothing_is_written(
    spoil, said, trained, encoders, tmp_path
):
    spoil(tmp_path / "best.pth", trained)
    with pytest.raises(WeightsError, match=said):
        convert_encoder(tmp_path / "best.pth", encoders["dinov2"], tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize("taken", ["a file", "a folder with something in it"])
def test_nothing_is_written_over(taken, trained, encoders, tmp_path):
    torch.save(as_script(trained), tmp_path / "best.pth")
    place = tmp_path / "encoder" if taken == "a file" else tmp_path
    if taken == "a file":
        place.write_text("mine")
    with pytest.raises(WeightsError, match="holds something already"):
        convert_encoder(tmp_path / "best.pth", encoders["dinov2"], place)
    assert taken != "a file" or place.read_text() == "mine"
