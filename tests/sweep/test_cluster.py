"""A sweep on a cluster of two nodes: spread, robbed of a node, stopped; the same bits as on one
machine. `make test-ray`.
"""

from __future__ import annotations

import pytest
from background import until

import vitseg
from vitseg.errors import ConfigError, RunError, VitsegError
from vitseg.events import EpochEnded, TrialEnded, TrialStarted
from vitseg.sweep.grid import make_grid
from vitseg.sweep.local import Sweep
from vitseg.training.job import Job

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from vitseg.sweep.cluster import Spread, cluster  # noqa: E402

AXES = {"stages.1.unfrozen_blocks": [0, 1, 2]}


@pytest.fixture
def two_nodes():
    """A head without cores of its own, and two nodes with one each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    with cluster(made.address):
        yield made, nodes
    made.shutdown()


@pytest.fixture
def recipe(tiny_recipe):
    """Long enough that a node can be killed in the midst of a trial."""
    changes = {
        "stages": tiny_recipe.stages[:2],
        "stages.0.epochs": 3,
        "stages.1.epochs": 3,
        "threads": 1,
    }
    return tiny_recipe.replace(changes)


def grid_of(recipe, seeds):
    job = Job(recipe)
    return make_grid(recipe, AXES, seeds, job.images, job.model.encoder.depth)


@pytest.fixture
def grid(recipe):
    return grid_of(recipe, 2)


def logs(sweep):
    """All lines but the first, which names the trial that a stage was taken from; there it may be
    another.
    """
    return {
        t.name: sweep.run_of(t.name).events_file.read_bytes().splitlines()[1:]
        for t in sweep.grid.trials
    }


def test_a_node_is_killed_and_all_trials_have_the_bits_of_one_machine(two_nodes, grid, tmp_path):
    made, nodes = two_nodes
    spread = Spread(grid, tmp_path / "cluster" / "sweep")
    events, killed = [], False
    for event in spread.events():
        events.append(event)
        if isinstance(event, EpochEnded) and not killed:
            made.remove_node(nodes[0], allow_graceful=False)  # kill -9
            made.add_node(num_cpus=1)
            killed = True
    ended = [e for e in events if isinstance(e, TrialEnded)]
    assert killed and sorted(e.trial for e in ended) == sorted(t.name for t in grid.trials)
    assert [e.error for e in ended] == [None] * len(ended)
    alone = Sweep(grid, tmp_path / "alone" / "sweep")
    list(alone.events())
    assert logs(spread) == logs(alone)
    told = {t.name: [] for t in grid.trials}
    for event in events:
        if isinstance(event, TrialStarted):
            trial = event.trial
        elif isinstance(event, EpochEnded):
            told[trial].append(event.epoch)
    assert all(epochs == [1, 2, 3, 4, 5, 6] for epochs in told.values())
    shared = [t.name for t in grid.trials if t.shared]
    assert shared and all(
        spread.run_of(name).forked() for name in shared
    )  # no stage 1 was trained twice


def test_a_trial_that_fails_is_told_of_and_the_others_go_on(two_nodes, grid, tmp_path):
    spread = Spread(grid, tmp_path / "sweep")
    first = grid.trials[0].name
    (tmp_path / "sweep" / "trials").mkdir(parents=True)
    (tmp_path / "sweep" / "trials" / first).write_text("a file where its folder should be")
    ended = {e.trial: e.error for e in spread.events() if isinstance(e, TrialEnded)}
    assert ended[first] and [error for name, error in ended.items() if name != first] == [None] * (
        len(ended) - 1
    )
    assert spread.failures == {first: ended[first]} and spread.left() == 1


def test_an_ablation_on_a_cluster_is_stopped_and_goes_on(two_nodes, recipe, tmp_path):
    ablation = vitseg.ablate(recipe, AXES, seeds=1, folder=tmp_path / "sweep", where="ray")
    ablation.start()
    until(lambda: any(isinstance(e, EpochEnded) for e in ablation.session.events), 120)
    assert ablation.buttons["Pause"].disabled
    with pytest.raises(RunError, match="cannot be paused"):
        ablation.pause()
    ablation.stop()
    assert ablation.wait() == "stopped" and ablation.sweep.left()
    again = vitseg.ablate(recipe, AXES, seeds=1, folder=tmp_path / "sweep", where="ray")
    again.finish()
    assert again.sweep.left() == 0 and again.frame()["error"].isna().all()
    curves = [found.curve for found in again.sweep.results().values()]
    assert [len(curve) for curve in curves] == [6] * len(again.grid.trials)


def test_what_no_node_can_train_is_refused_before_anything_is_begun(two_nodes, grid, tmp_path):
    with pytest.raises(ConfigError, match="1 cores and 1 GPUs"):
        next(Spread(grid, tmp_path / "s", gpus=1).events())
    assert not (tmp_path / "s").exists()


def test_what_a_cluster_cannot_do_is_said(tiny_recipe, grid, tmp_path):
    auto = grid_of(tiny_recipe.replace({"threads": "auto"}), 1)
    with pytest.raises(ConfigError, match="threads: got 'auto'"):
        Spread(auto, tmp_path / "a")
    with pytest.raises(ConfigError, match="where: got 'slurm'; allowed: here, ray"):
        vitseg.ablate(tiny_recipe, AXES, where="slurm")
    with pytest.raises(ConfigError, match="nothing, unless where='ray'"):
        vitseg.ablate(tiny_recipe, AXES, gpus=1)
    for wrong in ({"gpus": -1}, {"gpus": "one"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Spread(grid, tmp_path / "c", **wrong)
    for address in ("auto", "nohost", 5):
        with pytest.raises(VitsegError, match="no Ray cluster answers there"):
            next(Spread(grid, tmp_path / "b", address=address).events())
    with pytest.raises(VitsegError, match="no Ray cluster answers there"):
        next(Spread(grid, tmp_path / "b", address="127.0.0.1:1").events())
