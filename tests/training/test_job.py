"""A job resolves a recipe once: machine, loss, class weights and encoder are made a single time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

import vitseg
from vitseg.errors import ConfigError
from vitseg.events import BatchEnded, StageStarted
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


ONE_ENCODER = """
import gc, sys, time
import vitseg
from vitseg.events import BatchEnded
from vitseg.model.encoder import Encoder

def encoders():
    gc.collect()
    return sum(type(found) is Encoder for found in gc.get_objects())

wb = vitseg.Workbench(vitseg.load_recipe(sys.argv[1]))
wb.session.forecast()  # on a copy of the model, which goes when the batches have been timed
counts = [encoders()]
for _ in range(2):
    wb.start()
    while not any(isinstance(event, BatchEnded) for event in wb.events):
        time.sleep(0.01)
    counts.append(wb.session.between(encoders))
    assert wb.wait() == "ended"
    counts.append(encoders())
    wb.controls["Seed"].value = 1
print(*counts)
"""


def test_a_workbench_has_one_encoder_in_memory_before_during_and_after_a_run(tiny_recipe, tmp_path):
    """In a process of its own, where nothing else has an encoder."""
    tiny_recipe.save(tmp_path / "recipe.json")
    command = [sys.executable, "-c", ONE_ENCODER, str(tmp_path / "recipe.json")]
    environment = os.environ | {"VITSEG_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1"] * 5, done.stderr
