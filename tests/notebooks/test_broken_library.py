"""What a notebook claims is about the library: with a broken one it does not come to its end."""

from __future__ import annotations

import pytest
from lessons import NOTEBOOKS, sections, sliced_from_minus_n, visit

from vitseg.data import augment
from vitseg.errors import FreezeBreach
from vitseg.model.segmenter import Segmenter

pytestmark = [pytest.mark.slow, pytest.mark.notebook, pytest.mark.weights]
BREACH = "Promised to train: only decoder. Found: blocks 1-12: can train"


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path))
    monkeypatch.delenv("VITSEG_DATA", raising=False)


def cells_of(notebook: str) -> list[str]:
    return [cell for cells in sections(notebook).values() for cell in cells]


def mask_stays_behind(patch: pytest.MonkeyPatch) -> None:
    """Augmentation moves the image, and not its mask."""
    warp = augment._warp
    patch.setattr(augment, "_warp", lambda pair, *how: (warp(pair, *how)[0], pair[1]))


def rest_of_a_patch_is_lost(patch: pytest.MonkeyPatch) -> None:
    """Pixels beyond the last whole patch do not count."""
    normalise = Segmenter.normalise

    def cut_off(model, images):
        whole = images.clone()
        whole[..., images.shape[-2] // 14 * 14 :, :] = 0
        whole[..., images.shape[-1] // 14 * 14 :] = 0
        return normalise(model, whole)

    patch.setattr(Segmenter, "normalise", cut_off)


BROKEN = {
    "01_data": mask_stays_behind,
    "02_what_the_encoder_sees": sliced_from_minus_n,
    "03_the_decoder": rest_of_a_patch_is_lost,
    "04_freezing_and_learning_rate": sliced_from_minus_n,
}


@pytest.mark.parametrize("notebook", BROKEN)
def test_the_last_cell_of_a_lesson_fails(notebook, monkeypatch):
    *lesson, last = cells_of(notebook)
    BROKEN[notebook](monkeypatch)
    names = visit(lesson, {})
    with pytest.raises(AssertionError):
        visit([last], names)
    if "temporary" in names:  # the first lesson keeps a folder for its exercises
        names["temporary"].cleanup()


@pytest.mark.parametrize("notebook", ["00_start_here", "05_progressive_training"])
def test_a_training_does_not_even_begin(notebook, monkeypatch):
    sliced_from_minus_n(monkeypatch)
    with pytest.raises(FreezeBreach, match=BREACH):
        visit(cells_of(notebook), {})


def test_no_trial_of_an_ablation_ends(monkeypatch, capsys):
    sliced_from_minus_n(monkeypatch)
    with pytest.raises(
        KeyError, match="control1-seed0"
    ):  # the lesson reads the result of a trial that has none
        visit(cells_of("07_ablation"), {})
    assert capsys.readouterr().out.count(f"FreezeBreach: {BREACH}") == 12
