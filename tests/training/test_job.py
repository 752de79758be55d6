"""A job resolves a recipe once: machine, loss, class weights and encoder are made a single time."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest
from background import until

import vitseg
from vitseg.errors import ConfigError
from vitseg.events import BatchEnded, StageStarted
from vitseg.model.encoder import Encoder
from vitseg.model.segmenter import Segmenter
from vitseg.settings import ByFrequency
from vitseg.training import job as jobs
from vitseg.training import losses


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each was done since the test began."""
    count: Counter[str] = Counter()

    def counting(module: object, name: str) -> None:
        real = getattr(module, name)

        def counted(*args: object, **settings: object) -> object:
            count[name] += 1
            return real(*args, **settings)

        monkeypatch.setattr(module, name, counted)

    for name in ("resolve", "SegmentationData", "build_segmenter", "loss_of"):
        counting(jobs, name)
    counting(losses, "weights_by_frequency")
    return count


def test_a_run_resolves_its_recipe_once(tiny_recipe, tmp_path, made):
    weighted = tiny_recipe.replace({"loss.class_weights": ByFrequency(largest=4.0)})
    events = list(vitseg.train(weighted, tmp_path / "run", reuse=False))
    assert sum(isinstance(e, StageStarted) for e in events) == 3
    assert dict(made) == dict.fromkeys(
        ("resolve", "SegmentationData", "build_segmenter", "loss_of", "weights_by_frequency"), 1
    )


def test_a_forecast_of_another_recipe_makes_no_second_model_or_data(tiny_recipe, made):
    job = vitseg.Job(tiny_recipe)
    deeper = job.replace(tiny_recipe.replace({"stages.1.unfrozen_blocks": 3, "batch_size": 5}))
    assert (deeper.model, deeper.data, deeper.loss) == (job.model, job.data, job.loss)
    assert (made["SegmentationData"], made["build_segmenter"], made["loss_of"]) == (1, 1, 1)
    assert [plan.unfrozen for plan in deeper.stages] == [0, 3, job.stages[2].unfrozen]
    assert deeper.batches == -(-len(job.data.splits["train"]) // 5)


def test_what_the_encoder_has_not_is_refused_by_the_path_of_its_setting(tiny_recipe):
    job = vitseg.Job(tiny_recipe)
    with pytest.raises(ConfigError, match=r"stages\.2\.unfrozen_blocks: got 9; allowed: 0\.\.4"):
        job.replace(tiny_recipe.replace({"stages.2.unfrozen_blocks": 9}))


def test_a_stage_s_plan_is_what_its_records_say(tiny_recipe, tmp_path):
    job = vitseg.Job(tiny_recipe)
    plans = {plan.number: plan for plan in job.stages}
    events = list(vitseg.train(job, tmp_path / "run", reuse=False))
    for event in events:
        if isinstance(event, StageStarted):
            trained = {part["name"] for part in event.parts if part["trains"]}
            assert trained == plans[event.stage].trained
            before = event.step
        if isinstance(event, BatchEnded):
            assert event.lr["decoder"] == pytest.approx(
                plans[event.stage].lr(event.step - before), rel=1e-9
            )
            last = event.step
    assert last == sum(plan.steps for plan in job.stages)


def encoders() -> list[Encoder]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is Encoder]


def test_a_workbench_has_one_encoder_in_memory_before_during_and_after_a_run(
    tiny_recipe, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path))
    before = len(encoders())
    wb = vitseg.Workbench(tiny_recipe)
    wb.session.forecast()  # on a copy of the model, which goes when the batches have been timed
    assert len(encoders()) == before + 1
    for _ in range(2):
        wb.start()
        until(lambda: any(isinstance(e, BatchEnded) for e in wb.events))
        assert wb.session.live.between(lambda: len(encoders())) == before + 1
        assert wb.wait() == "ended"
        assert len(encoders()) == before + 1
        wb.session.desk.edit("seed", 1)
    assert isinstance(wb.model, Segmenter)
