"""Figures and panels of a result show what was counted."""

from __future__ import annotations

import pytest

import vitseg
from vitseg.insight.inside import drift
from vitseg.insight.reading import read
from vitseg.ui import gallery, pictures, result


@pytest.fixture(scope="module")
def trained(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result") / "run"
    for _ in vitseg.train(tiny_recipe, folder):
        pass
    data = vitseg.SegmentationData(tiny_recipe.data)
    model = vitseg.load(folder)
    return folder, model, data, read(model, data, "train")


def test_figures_hold_the_numbers_of_the_reading(trained):
    folder, _, _, reading = trained
    heat = result.confusion_figure(reading).data[0]
    assert (heat.customdata == reading.matrix.numpy()).all()
    dots = [t for t in result.size_figure(reading).data if t.mode == "markers"]
    assert sum(len(t.x) for t in dots) == len(reading.things)
    dots = result.frequency_figure(reading).data
    known = [iou for iou in reading.scores()["per_class_iou"] if iou is not None]
    assert [dot.y[0] for dot in dots] == known
    assert sum(dot.x[0] for dot in dots) == pytest.approx(1)
    accuracy = reading.calibration.curve()["accuracy"]
    assert list(result.calibration_figure(reading).data[0].y) == list(accuracy)
    moved = drift(folder)
    assert result.drift_figure(moved).data[0].z[2][4] == moved[3]["block 4"]


def test_tables_say_the_three_means_and_a_row_for_each_class(trained):
    reading = trained[3]
    card = result.score_card(reading, 2)
    means = reading.means(2)
    numbers = dict(card.rows)
    assert {f"{mean:.3f}" for mean in means.values()} <= set(numbers.values())
    assert [row[1] for row in result.class_scores(reading).rows] == list(reading.classes)


def test_a_click_on_a_cell_shows_the_images_where_it_happened(trained):
    _, model, data, reading = trained
    panel = gallery.show_confusions(reading, model, data)
    figure, _, choice = panel.children
    _, truth, prediction, shown = choice.children
    for t in range(len(reading.classes)):
        for p in range(len(reading.classes)):
            truth.index, prediction.index = t, p
            found = reading.confused(t, p)
            assert f"{found.sum():,} pixels of" in shown.value
            assert f"in {len(found)} of {len(reading.names)} images" in shown.value
            assert ("<img" in shown.value) == bool(len(found))
    from plotly.callbacks import InputDeviceState, Points

    points = Points(point_inds=[[0, 0]], xs=[0], ys=[0], trace_name="", trace_index=0)
    figure.data[0]._dispatch_on_click(points, InputDeviceState())
    assert (truth.index, prediction.index) == (0, 0)


def test_the_gallery_names_the_images_and_a_spotlight_darkens_what_does_not_matter(trained):
    import numpy as np
    import torch
    from PIL import Image

    _, model, data, reading = trained
    sheet = gallery.gallery(reading, model, data, each=1)
    assert sheet.height > 3 * 150
    assert sheet.width >= 4 * 150
    white = Image.new("RGB", (4, 2), (200, 200, 200))
    dark = np.asarray(pictures.spotlight(white, torch.tensor([[0.0, 1, 1, 1]] * 2)))
    assert dark[0, 0].tolist() == [30, 30, 30]
    assert dark[0, 1].tolist() == [200, 200, 200]
