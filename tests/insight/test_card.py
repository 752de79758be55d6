"""The model card says what the run's files say, is what the hub reads, and leaves the model
loadable.
"""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

import vitseg
from vitseg.errors import RunError
from vitseg.insight.reading import read


@pytest.fixture
def copy(run, tmp_path):
    return vitseg.RunFolder(shutil.copytree(run, tmp_path / "run"))


def test_the_card_quotes_the_run_and_the_model_still_loads(copy, data):
    before = vitseg.load(copy.path).state_dict()
    path = vitseg.write_card(copy.path)
    assert path == copy.best / "README.md"
    card, best = ModelCard.load(path), copy.summary["best"]
    assert card.data.library_name == "vitseg"
    assert card.data.pipeline_tag == "image-segmentation"
    text = card.text
    reading = read(vitseg.load(copy.path), data)
    low, high = reading.interval()
    for value in (best["iou"], low, high, best["f1"], reading.calibration.error()):
        assert f"| {value:.3f} |" in text
    assert vitseg.explain(copy.path) in text
    assert "10 train, 2 validation images" in text
    assert "source: generated" in text
    for name, iou in zip(copy.summary["classes"], best["per_class_iou"], strict=True):
        assert re.search(rf"\| {name} \| {'n/a' if iou is None else f'{iou:.3f}'} \|", text)
    assert all(torch.equal(t, before[n]) for n, t in vitseg.load(copy.path).state_dict().items())
    assert [*vitseg.replay(copy.path)]


def test_a_run_that_has_not_ended_or_whose_images_are_others_gets_no_card(copy):
    split = copy.path / "split.json"
    text = split.read_text()
    split.write_text(text.replace("generated-0001", "generated-0099"))
    with pytest.raises(RunError, match="images are not those of the run"):
        vitseg.write_card(copy.path)
    split.write_text(text)
    copy.summary_file.unlink()
    with pytest.raises(RunError, match="has not ended"):
        vitseg.write_card(copy.path)
    assert not (copy.best / "README.md").exists()


def test_a_reading_of_other_images_or_weights_is_not_put_into_the_card(copy, data):
    model = vitseg.load(copy.path)
    with pytest.raises(
        RunError, match=r"reading: train images, IoU 0\.\d+; the run has logged 0\."
    ):
        vitseg.write_card(copy.path, read(model, data, "train"))
    with torch.no_grad():
        model.decoder.classify.bias[1] += 100  # everything is granulation
    with pytest.raises(
        RunError, match=r"reading: validation images, IoU 0\.\d+; the run has logged 0\."
    ):
        vitseg.write_card(copy.path, read(model, data))
    assert not (copy.best / "README.md").exists()
