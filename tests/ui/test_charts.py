"""Charts are functions of events: what they show is what the events say."""

from __future__ import annotations

import numpy as np
import pytest

import vitseg
from vitseg.events import BatchEnded, EpochEnded, StageStarted
from vitseg.ui import charts, table, theme


@pytest.fixture(scope="module")
def run(encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = vitseg.Recipe(
        data=vitseg.Data(source=vitseg.Generated(images=8, classes=3, side=70), size=(70, 70)),
        model=vitseg.Model(encoder=encoders["dinov2"]),
        stages=(
            vitseg.Stage(
                name="one",
                unfrozen_blocks=0,
                epochs=2,
                lr=1e-3,
                schedule=vitseg.CosineRestarts(burn_in_batches=1),
            ),
            vitseg.Stage(
                name="two", unfrozen_blocks=1, epochs=2, lr=1e-4, encoder_lr_factor=0.1, patience=1
            ),
        ),
        batch_size=2,
        threads=1,
    )
    list(vitseg.train(recipe, folder))
    return vitseg.RunFolder(folder)


def traces(figure):
    """Those that are seen."""
    return {trace.name: trace for trace in figure.data if len(trace.x)}


def test_the_curves_are_the_events(run):
    events = list(run.events())
    batches = [e for e in events if isinstance(e, BatchEnded)]
    ended = [e for e in events if isinstance(e, EpochEnded)]
    shown = traces(charts.curves(events))
    assert shown.keys() == {
        "LR",
        "LR (planned)",
        "LR, encoder",
        "train loss",
        "valid loss",
        "train IoU",
        "valid IoU",
        "valid F1",
    }
    assert list(shown["train loss"].y) == [e.loss for e in batches]
    assert list(shown["LR"].y) == [e.lr["decoder"] for e in batches]
    assert list(shown["LR"].customdata) == [e.step for e in batches]
    assert list(shown["train IoU"].y) == [e.train["iou"] for e in ended]
    starts = [e.validation["iou"] for e in events if isinstance(e, StageStarted)]
    assert {*starts, *(e.validation["iou"] for e in ended)} == {
        y for y in shown["valid IoU"].y if not np.isnan(y)
    }


def test_an_earlier_run_lies_beneath_and_is_named(run):
    events = list(run.events())
    figure = charts.curves(events, beneath=events[: len(events) // 2])
    beneath = {name: trace for name, trace in traces(figure).items() if name.endswith(", parent")}
    assert beneath.keys() == {"valid loss, parent", "valid IoU, parent"}
    whole = traces(charts.curves(events))["valid IoU"].y
    assert 0 < len(beneath["valid IoU, parent"].y) < len(whole)
    np.testing.assert_array_equal(
        beneath["valid IoU, parent"].y, whole[: len(beneath["valid IoU, parent"].y)]
    )
    assert not any(name.endswith(", parent") for name in traces(charts.curves(events)))


def test_the_planned_lr_coincides_with_the_used_one(run):
    shown = traces(charts.curves(run.events()))
    assert list(shown["LR"].x) == list(shown["LR (planned)"].x)
    assert list(shown["LR"].y) == pytest.approx(list(shown["LR (planned)"].y), rel=1e-12)


def test_the_encoder_s_own_lr_is_shown_only_where_it_differs(run):
    y = traces(charts.curves(run.events()))["LR, encoder"].y
    batches = [e for e in run.events() if isinstance(e, BatchEnded)]
    np.testing.assert_array_equal(y, [np.nan if e.stage == 1 else e.lr["encoder"] for e in batches])


def test_curves_of_a_run_that_has_just_begun_can_be_drawn(run):
    events = list(run.events())
    for n in range(len(events) + 1):
        charts.curves(events[:n])


def test_the_freeze_map_has_a_cell_for_every_part(run):
    map_of = charts.freeze_map_of(run.events())
    assert map_of.columns == ("", "embeddings", "1", "2", "3", "4", "final norm", "decoder")
    assert map_of.rows == [("1 one", *"······●"), ("2 two", *"····●●●")]
    started = [e for e in run.events() if isinstance(e, StageStarted)]
    for event, (_, *cells) in zip(started, map_of.rows, strict=True):
        for part, cell in zip(event.parts, cells, strict=True):
            kind = "trains" if part["trains"] else "frozen"
            assert cell.attributes["title"] == (
                f"{part['name']}: {kind}, {part['parameters']:,} parameters, "
                f"{part['in_optimizer']:,} in the optimizer"
            )


def test_a_map_of_what_is_planned_marks_what_will_train_and_a_broken_promise_stands_out():
    parts = [
        {"name": "block 1", "trains": False, "parameters": 5},
        {"name": "decoder", "trains": True, "parameters": 7},
    ]
    assert charts.freeze_map([("1 one", parts)]).rows == [("1 one", "·", "○")]
    parts[0]["broken"] = True
    map_of = charts.freeze_map([("1 one", parts)])
    assert map_of.rows == [("1 one", "✗", "○")] and "✗ otherwise than promised" in map_of.caption
    words = "block 1: frozen, 5 parameters. Promised, but not so: see Checks"
    assert f'<td title="{words}" aria-label="{words}"' in map_of._repr_html_()


def test_a_planned_curve_needs_no_training():
    recipe = vitseg.quick()
    figure = charts.planned_lr(recipe, 20)
    assert len(figure.data[0].x) == 20 * sum(stage.epochs for stage in recipe.stages)
    texts = [note.text.partition("<br>")[0] for note in figure.layout.annotations]
    assert texts == [f"{n} {stage.name}" for n, stage in enumerate(recipe.stages, start=1)]


def test_the_class_map_has_every_epoch_and_an_absent_class_is_n_a(run):
    events = list(run.events())
    ended = [e for e in events if isinstance(e, EpochEnded)]
    ended[0].validation["per_class_iou"][2] = None
    map_of = charts.class_map(events)
    assert map_of.columns == ("epoch", *(str(e.epoch) for e in ended))
    for c, (name, *cells) in enumerate(map_of.rows):
        for event, cell in zip(ended, cells, strict=True):
            iou = event.validation["per_class_iou"][c]
            assert cell == ("n/a" if iou is None else f"{100 * iou:.0f}")
            if iou is not None:
                assert cell.attributes["title"] == f"{name}, epoch {event.epoch}: {iou:.3f}"
                assert cell.attributes["style"] == (
                    f"background:color-mix(in srgb, {theme.TRAIN} {iou:.0%}, transparent)"
                )
    some = [int(epoch) for epoch in charts.class_map(events, most=2).columns[1:]]
    assert some == [e.epoch for e in ended][-1 - 2 * (len(some) - 1) :: 2] and len(some) == 2
    assert "After the first epoch" in str(charts.class_map([]))
    summary = run.summary
    summary["best"]["per_class_iou"][2] = None
    assert table.classes(summary).rows[2] == ("slough", "n/a")


def test_the_result_table_says_what_the_scores_are_over(run):
    text = str(table.results(run.summary))
    assert "mean over the classes present in the truth, of 3" in text
    assert "on generated images" in text
    assert "cosine restarts / batch" in text
    assert "last block " in text
    assert "test images" not in text


def test_the_result_table_has_a_row_for_the_test_images(run):
    *_, last = table.results(run.summary | {"test": {"iou": 0.5, "f1": None}}).rows
    assert last[0] == "test images, once" and last[-3:] == ("", "0.500", "n/a")


def test_html_in_names_is_escaped():
    assert "<b>" not in table.Table(("a",), (("<b>x</b>",),))._repr_html_()
