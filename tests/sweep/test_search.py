"""A search proposes, trains, prunes, is cut off and goes on; its study is one for all who open its
folder.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from background import trial_that_fails

import vitseg
from vitseg.errors import ConfigError, RecipeError, RunError
from vitseg.events import BatchEnded, EpochEnded, TrialEnded, TrialStarted
from vitseg.files import is_held
from vitseg.settings import Constant, CosineRestarts

optuna = pytest.importorskip("optuna")
from optuna.distributions import FloatDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from vitseg.sweep.search import ATTEMPTS, Search  # noqa: E402

SPACE = {
    "stages.1.unfrozen_blocks": [0, 1, 2],
    "stages.1.lr": FloatDistribution(1e-5, 1e-2, log=True),
}


@pytest.fixture
def recipe(tiny_recipe):
    return tiny_recipe.replace(
        {"stages": tiny_recipe.stages[:2], "stages.0.epochs": 1, "stages.1.epochs": 1}
    )


def ended(search, state=TrialState.COMPLETE):
    return [t for t in search.results() if t.state == state]


def proposed(search, count):
    """Trials that end without having been trained."""
    for number in range(count):
        trial, claim = search.claim()
        with claim:
            yield trial
            search.study.tell(trial, number / count)


def test_a_search_tries_as_many_as_asked_for_and_each_is_an_ordinary_run(recipe, tmp_path):
    search = Search(recipe, SPACE, 3, tmp_path / "s", pruner="none")
    events = list(search.events())
    assert [e.trial for e in events if isinstance(e, TrialStarted)] == ["0000", "0001", "0002"]
    assert len(ended(search)) == 3 and search.left() == 0 and list(search.events()) == []
    for trial in ended(search):
        run = search.run_of(search.name_of(trial))
        assert run.summary["best"]["iou"] == trial.value and run.recipe == search.recipe_of(trial)
        assert run.recipe.stages[1].lr == trial.params["stages.1.lr"]
        epochs = [e for e in run.events() if isinstance(e, EpochEnded)]
        assert trial.intermediate_values == {e.epoch: e.validation["iou"] for e in epochs}
    assert search.best.stages == search.recipe_of(max(ended(search), key=lambda t: t.value)).stages


def test_the_same_call_finds_the_study_and_more_trials_are_added_to_it(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path))
    first = Search(recipe, SPACE, 2)
    list(first.events())
    again = Search(recipe, SPACE, 4)
    assert again.path == first.path and again.left() == 2
    list(again.events())
    assert len(ended(again)) == 4
    assert Search(recipe.replace({"batch_size": 1}), SPACE, 2).path != first.path


def test_reopened_it_proposes_what_it_would_have_proposed(recipe, tmp_path):
    def proposals(name, *portions):
        for count in portions:
            search = Search(recipe, SPACE, count, tmp_path / name, sampler="random", pruner="none")
            list(search.events())
        return [t.params for t in search.results()]

    whole = proposals("whole", 4)
    assert proposals("halves", 2, 4) == whole
    assert (
        len({p["stages.1.lr"] for p in whole}) == 4
    )  # a sampler with a fixed seed would begin anew, with the same two


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_proposals_lie_in_the_space(sampler, recipe, tmp_path):
    search = Search(recipe, SPACE, 12, tmp_path / "s", sampler=sampler)
    for trial in proposed(search, 12):
        assert (
            trial.params["stages.1.unfrozen_blocks"] in {0, 1, 2}
            and 1e-5 <= trial.params["stages.1.lr"] <= 1e-2
        )


def test_schedules_and_other_groups_of_settings_can_be_proposed(recipe, tmp_path):
    schedules = [Constant(), CosineRestarts(T_0=2, burn_in_batches=1)]
    search = Search(recipe, {"stages.0.schedule": schedules}, 8, tmp_path / "s", sampler="random")
    seen = {search.recipe_of(trial).stages[0].schedule for trial in proposed(search, 8)}
    assert seen == set(schedules)


def test_a_trial_below_the_median_is_pruned_where_it_is(recipe, tmp_path):
    search = Search(recipe, SPACE, 6, tmp_path / "s")
    for _ in range(5):  # five that were perfect from the start
        done = optuna.trial.create_trial(
            params={"stages.1.unfrozen_blocks": 0, "stages.1.lr": 1e-3},
            distributions=search.space,
            value=1.0,
            intermediate_values={1: 1.0, 2: 1.0},
        )
        search.study.add_trial(done)
    events = list(search.events())
    assert [e.epoch for e in events if isinstance(e, EpochEnded)] == [1]
    assert [t.number for t in ended(search, TrialState.PRUNED)] == [5] and isinstance(
        events[-1], TrialEnded
    )


def test_a_search_that_is_left_goes_on_with_the_same_trial_at_its_checkpoint(recipe, tmp_path):
    search = Search(recipe, SPACE, 1, tmp_path / "s", pruner="none")
    events = search.events()
    before = [*takewhile(lambda e: not isinstance(e, EpochEnded), events)]
    events.close()
    again = Search(recipe, SPACE, 1, tmp_path / "s", pruner="none")
    after = list(again.events())
    assert max(e.step for e in before if isinstance(e, BatchEnded)) < min(
        e.step for e in after if isinstance(e, BatchEnded)
    )
    (trial,) = again.results()
    assert (
        trial.number == 0 and again.name_of(trial) == "0000" and trial.state == TrialState.COMPLETE
    )
    alone = list(vitseg.train(again.recipe_of(trial), tmp_path / "alone", reuse=False))
    assert alone[-1] == list(again.run_of("0000").events())[-1]


KILLED = """
import sys
from vitseg.recipe import load_recipe
from vitseg.sweep.search import Search
from test_search import SPACE

for event in Search(load_recipe(sys.argv[1]), SPACE, 2, sys.argv[2], pruner="none").events():
    print(type(event).__name__, flush=True)
"""


def test_a_killed_worker_s_trial_is_taken_up_by_another(recipe, tmp_path):
    recipe.save(tmp_path / "recipe.json")
    here = {"PYTHONPATH": os.pathsep.join(str(folder) for folder in Path(__file__).parents[:2])}
    command = [sys.executable, "-c", KILLED, tmp_path / "recipe.json", tmp_path / "s"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | here
    ) as worker:
        for line in worker.stdout:
            if line == "EpochEnded\n":
                break
        worker.send_signal(signal.SIGKILL)
    search = Search(recipe, SPACE, 2, tmp_path / "s", pruner="none")
    assert [t.state for t in search.results()] == [TrialState.RUNNING]
    list(search.events())
    assert [t.state for t in search.results()] == [TrialState.COMPLETE] * 2
    assert [search.name_of(t) for t in search.results()] == ["0000", "0001"]
    epochs = [e for e in search.run_of("0000").events() if isinstance(e, EpochEnded)]
    told = search.results()[0].intermediate_values
    assert told == {e.epoch: e.validation["iou"] for e in epochs}


def test_a_trial_that_others_train_is_left_to_them_and_one_that_kills_is_not_tried_for_ever(
    recipe, tmp_path
):
    search, other = (Search(recipe, SPACE, 2, tmp_path / "s") for _ in range(2))
    trial, claim = search.claim()
    with claim:
        second, others = other.claim()
        assert second.number != trial.number and other.claim() is None
        others.close()
    for _ in range(ATTEMPTS):  # nobody holds them: each is begun again, and left again
        (_, one), (_, another) = other.claim(), other.claim()
        one.close()
        another.close()
    ended = [e for e in other.events() if isinstance(e, TrialEnded)]
    assert [e.error for e in ended] == ["TrainingError: Its process was killed 3 times."] * 2
    assert other.claim() is None
    assert [t.state for t in other.results()] == [TrialState.FAIL] * 2


def test_to_be_stopped_is_no_attempt(recipe, tmp_path):
    for _ in range(ATTEMPTS + 2):
        search = Search(recipe, SPACE, 1, tmp_path / "s", pruner="none")
        assert search.left() == 1  # though it has begun: nobody trains it
        events = search.events()
        list(takewhile(lambda e: not isinstance(e, BatchEnded), events))
        events.close()
    list(search.events())
    assert [t.state for t in search.results()] == [TrialState.COMPLETE]


def test_left_in_the_midst_of_a_trial_it_proposes_what_it_would_have_proposed(recipe, tmp_path):
    how = {"sampler": "random", "pruner": "none"}
    whole, cut = (Search(recipe, SPACE, 3, tmp_path / name, **how) for name in ("whole", "cut"))
    list(whole.events())
    events = cut.events()
    list(takewhile(lambda e: not (isinstance(e, TrialStarted) and e.trial == "0001"), events))
    next(events)
    events.close()
    list(Search(recipe, SPACE, 3, tmp_path / "cut", **how).events())
    assert sorted(t.params["stages.1.lr"] for t in cut.results()) == sorted(
        t.params["stages.1.lr"] for t in whole.results()
    )


def test_a_study_that_is_locked_meanwhile_ends_the_search_and_not_the_trial(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("vitseg.sweep.search.LOCKED_SECONDS", 0.2)
    search = Search(recipe, SPACE, 1, tmp_path / "s", pruner="none")
    holder = sqlite3.connect(tmp_path / "s" / "study.db", isolation_level=None)
    with pytest.raises(RunError, match="locked"):
        for event in search.events():
            if isinstance(event, BatchEnded) and event.step == 1:
                holder.execute("BEGIN EXCLUSIVE")
    holder.execute("ROLLBACK")
    holder.close()
    list(search.events())
    assert [t.state for t in search.results()] == [TrialState.COMPLETE]


def test_a_full_disk_ends_the_search_and_not_all_of_its_trials(recipe, tmp_path, monkeypatch):
    search = Search(recipe, SPACE, 30, tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr("vitseg.sweep.search.train_or_resume", lambda *_: full())
        with pytest.raises(OSError, match="No space left"):
            list(search.events())
    assert search.left() == 30
    with pytest.raises(RunError, match="no trial has ended yet"):
        search.best  # noqa: B018


def full():
    raise OSError(28, "No space left on device")
    yield


@pytest.mark.parametrize("name", ["what?", "per%cent", "a%20b", "{braces}", "blank space"])
def test_the_study_lies_in_its_folder_whatever_that_is_called(name, recipe, tmp_path):
    Search(recipe, SPACE, 1, tmp_path / name)
    assert (tmp_path / name / "study.db").is_file() and [p.name for p in tmp_path.iterdir()] == [
        name
    ]


def test_a_study_belongs_to_one_folder_and_a_folder_to_one_study(recipe, tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    Search(recipe, SPACE, 1, tmp_path / "a", storage=url)
    with pytest.raises(RunError, match=r"belongs to .*a\."):
        Search(recipe, SPACE, 1, tmp_path / "b", storage=url)
    with pytest.raises(RunError, match="holds another search; it differs in storage"):
        Search(recipe, SPACE, 1, tmp_path / "a")


def test_a_run_of_other_settings_is_not_taken_for_a_trial(recipe, tmp_path):
    search = Search(recipe, SPACE, 1, tmp_path / "s", sampler="random")
    list(search.events())
    (tmp_path / "s" / "study.db").unlink()
    (tmp_path / "s" / "trials" / "0000" / "recipe.json").write_text(
        recipe.replace({"seed": 5}).model_dump_json()
    )
    with pytest.raises(RunError, match="is the run of other settings"):
        list(Search(recipe, SPACE, 1, tmp_path / "s", sampler="random").events())


OPENED = """
import sys
from vitseg.recipe import load_recipe
from vitseg.sweep.search import Search
from test_search import SPACE

list(Search(load_recipe(sys.argv[1]), SPACE, 3, sys.argv[2], pruner="none").events())
"""


def test_processes_that_open_a_new_search_at_the_same_moment_share_its_trials(recipe, tmp_path):
    recipe.save(tmp_path / "recipe.json")
    here = {"PYTHONPATH": os.pathsep.join(str(folder) for folder in Path(__file__).parents[:2])}
    command = [sys.executable, "-c", OPENED, tmp_path / "recipe.json", tmp_path / "s"]
    workers = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | here)
        for _ in range(3)
    ]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    search = Search(recipe, SPACE, 3, tmp_path / "s", pruner="none")
    assert [t.state for t in search.results()] == [TrialState.COMPLETE] * 3 and len(
        search.study.get_trials()
    ) == 3


@pytest.mark.parametrize("ask", [lambda search: search.claim()[0].number, Search.left])
def test_a_trial_that_ends_while_another_process_looks_for_one_is_not_taken_over(
    ask, recipe, tmp_path, monkeypatch
):
    mine, theirs = (Search(recipe, SPACE, 2, tmp_path / "s") for _ in range(2))
    trial, claim = mine.claim()
    ended = []

    def then_it_ends(look):
        def looked(*what):
            seen = look(*what)
            if not ended:
                ended.append(mine.study.tell(trial, 0.5))
                claim.close()
            return seen

        return looked

    monkeypatch.setattr("vitseg.sweep.search.is_held", then_it_ends(is_held))
    monkeypatch.setattr(Search, "results", then_it_ends(Search.results))
    assert ask(theirs) == 1  # the second trial's number, and how many are left
    assert ended and theirs.results()[0].state == TrialState.COMPLETE


def test_a_trial_without_an_iou_is_told_of_as_a_failure(recipe, tmp_path, monkeypatch):
    search = Search(recipe, SPACE, 1, tmp_path / "s")
    nothing = {"best": {"iou": None, "f1": None}, "seconds": 1.0}
    monkeypatch.setattr("vitseg.runs.folder.RunFolder.summary", property(lambda run: nothing))
    *_, last = search.events()
    assert last.error == search.results()[0].user_attrs["error"] and "no IoU" in last.error


def test_a_trial_that_fails_is_told_of_and_the_others_go_on(recipe, tmp_path, monkeypatch):
    trial_that_fails(monkeypatch, "0000", "The loss is nan.")
    search = Search(recipe, SPACE, 2, tmp_path / "s")
    errors = [e.error for e in search.events() if isinstance(e, TrialEnded)]
    assert errors == ["TrainingError: The loss is nan.", None]
    assert search.results()[0].user_attrs["error"] == errors[0] and search.left() == 0


def test_values_that_exclude_each_other_fail_their_trial_and_the_others_go_on(recipe, tmp_path):
    space = {"batch_size": [1, 2], "processes": [1, 2]}
    search = Search(recipe, space, 4, tmp_path / "s", pruner="none")
    for batch, processes in ((1, 2), (1, 1)):
        search.study.enqueue_trial({"batch_size": batch, "processes": processes})
    events = (e for e in search.events() if isinstance(e, TrialEnded))
    refused, trained = next(events), next(events)
    events.close()
    assert "some would get no image" in refused.error and trained.error is None
    first, second, *_ = search.results()
    assert first.user_attrs["error"] == refused.error and second.state == TrialState.COMPLETE
    assert search.idle_in(first) == set()


@pytest.mark.parametrize(
    ("space", "more", "kind", "said"),
    [
        ({}, {}, ConfigError, "paths of settings with their values"),
        ({"stages.1.unfrozen_block": [1]}, {}, RecipeError, "did you mean unfrozen_blocks"),
        ({"stages.1.lr": [1e-3, -1.0]}, {}, RecipeError, "stages.1.lr"),
        ({"stages.1.lr": FloatDistribution(1e-3, 2.0)}, {}, RecipeError, "stages.1.lr"),
        ({"stages.1.lr": [1e-3, 1e-3]}, {}, ConfigError, "values that differ"),
        ({"stages.1.lr": "1e-3"}, {}, ConfigError, "a list of at least one value"),
        (
            {"data.source.images": [10, 20]},
            {},
            ConfigError,
            "All trials are scored on the same images",
        ),
        (SPACE, {"sampler": "grid"}, ConfigError, "sampler: got 'grid'; allowed: tpe, random"),
        (SPACE, {"pruner": "halving"}, ConfigError, "pruner"),
        (SPACE, {"trials": 0}, ConfigError, "trials: got 0"),
        (SPACE, {"sampler": ["tpe"]}, ConfigError, "sampler: got ['tpe']"),
        (SPACE, {"storage": Path("study.db")}, ConfigError, "the URL of a database"),
        ([1], {}, ConfigError, "paths of settings with their values"),
        ({3: [0, 1]}, {}, ConfigError, "paths of settings with their values"),
        ({"stages.1.unfrozen_blocks": [1, True]}, {}, RecipeError, "got True"),
    ],
)
def test_what_cannot_be_searched_is_named_before_anything_is_written(
    space, more, kind, said, recipe, tmp_path
):
    with pytest.raises(kind) as caught:
        Search(recipe, space, folder=tmp_path / "s", **more)
    assert said in str(caught.value) and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("path", "pair", "for_the_range"),
    [
        ("stages.1.lr", (1e-5, 1e-3), "FloatDistribution(1e-05, 0.001, log=True)"),
        ("stages.1.lr", (1e-3, 1e-5), "FloatDistribution(1e-05, 0.001, log=True)"),
        ("stages.1.encoder_lr_factor", (0.1, 0.5), "FloatDistribution(0.1, 0.5, log=False)"),
        (
            "loss.dice",
            (0, 1),
            "FloatDistribution(0.0, 1.0, log=False)",
        ),  # whole numbers, but any between them can be had
        ("optimizer.weight_decay", (0.0, 0.1), "FloatDistribution(0.0, 0.1, log=False)"),
    ],
)
def test_a_tuple_that_may_be_a_range_is_refused(path, pair, for_the_range, recipe, tmp_path):
    with pytest.raises(ConfigError) as refused:
        Search(recipe, {path: pair}, 2, tmp_path / "s")
    said = str(refused.value)
    assert (
        said.startswith(f"space[{path!r}]: got {pair!r}; allowed: ")
        and f"allowed: {for_the_range} for the range," in said
    )
    assert list(tmp_path.iterdir()) == []


def test_both_ways_to_write_what_a_tuple_may_mean_work(recipe, tmp_path):
    with pytest.raises(ConfigError) as refused:
        Search(recipe, {"stages.1.lr": (1e-3, 1e-5)}, 2, tmp_path / "s")
    as_range, as_values = re.findall(
        r"allowed: (\S.*?\)) for the range, (\S.*?\)) for the two values", str(refused.value)
    )[0]
    space = {
        "stages.0.lr": eval(as_range, vars(optuna.distributions)),
        "stages.1.lr": eval(as_values, vars(optuna.distributions)),
    }
    found = Search(recipe, space, 2, tmp_path / "s").space
    assert (found["stages.0.lr"].low, found["stages.0.lr"].high, found["stages.0.lr"].log) == (
        1e-5,
        1e-3,
        True,
    )
    assert found["stages.1.lr"].choices == (1e-5, 1e-3)


def test_what_can_only_be_values_is_values(recipe, tmp_path):
    space = {
        "stages.0.lr": [1e-5, 1e-3],
        "stages.1.lr": (1e-5, 1e-4, 1e-3),
        "stages.1.unfrozen_blocks": (0, 2),
        "stages.1.schedule": (Constant(), CosineRestarts()),
        "clip_norm": (None, 1.0),
        "cache": (True, False),
    }
    choices = Search(recipe, space, 2, tmp_path / "s").choices
    assert {path: list(found.values()) for path, found in choices.items()} == {
        path: list(v) for path, v in space.items()
    }


def test_a_misspelt_setting_is_named_before_its_values_are(recipe, tmp_path):
    with pytest.raises(RecipeError, match="did you mean lr"):
        Search(recipe, {"stages.1.lrr": (1e-5, 1e-3)}, 2, tmp_path / "s")


def test_a_folder_of_another_search_and_a_study_that_is_no_database_are_refused(recipe, tmp_path):
    Search(recipe, SPACE, 2, tmp_path / "s")
    with pytest.raises(RunError, match="holds another search"):
        Search(recipe, SPACE, 2, tmp_path / "s", sampler="random")
    (tmp_path / "s" / "study.db").write_bytes(
        b"not a database, but longer than a header of one would be" * 20
    )
    with pytest.raises(RunError, match="the study cannot be read or written"):
        Search(recipe, SPACE, 2, tmp_path / "s")


def test_a_locked_study_is_a_sentence(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("vitseg.sweep.search.LOCKED_SECONDS", 0.2)
    search = Search(recipe, SPACE, 2, tmp_path / "s")
    holder = sqlite3.connect(tmp_path / "s" / "study.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match=r"locked.*If another process holds it"):
        list(search.events())
    holder.execute("ROLLBACK")
    holder.close()
    list(search.events())
    assert len(ended(search)) == 2


def multiply(database, times):
    """The only trial of a study, so many times; Optuna itself takes minutes for a thousand."""
    tables = {
        "trials": ("number",),
        "trial_params": (),
        "trial_values": (),
        "trial_intermediate_values": (),
    }
    with sqlite3.connect(database) as connection:
        for table, counted in tables.items():
            key, *columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            grows = [f"{c} + n" if c in {"trial_id", *counted} else c for c in columns]
            rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            connection.execute(
                f"WITH RECURSIVE copies(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies WHERE "
                f"n < {times - 1}) "
                f"INSERT INTO {table} SELECT {key} + n * {rows}, {', '.join(grows)} FROM {table}, "
                f"copies"
            )
    connection.close()


def test_a_thousand_finished_trials_are_opened_without_a_look_into_their_folders(recipe, tmp_path):
    search = Search(recipe, SPACE, 1000, tmp_path / "s")
    params = {"stages.1.unfrozen_blocks": 0, "stages.1.lr": 1e-3}
    ious = {epoch: 0.04 * epoch for epoch in range(1, 13)}
    search.study.add_trial(
        optuna.trial.create_trial(
            params=params, distributions=search.space, value=0.5, intermediate_values=ious
        )
    )
    multiply(search.path / "study.db", 1000)
    again = Search(recipe, SPACE, 1000, tmp_path / "s")
    assert (
        again.left() == 0 and len(again.results()) == 1000 and not (again.path / "trials").exists()
    )
    assert again.best.stages[1].lr == 1e-3 and again.results()[-1].intermediate_values == ious
