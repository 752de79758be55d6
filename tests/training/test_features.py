"""What is kept of the frozen blocks changes no number, whatever is there of it; and what changes
makes stale what it must.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from background import until
from builders import stripes, write_pairs

from vitseg.data.dataset import SegmentationData, chunked
from vitseg.effects import Crop, Hue
from vitseg.errors import ConfigError, FeatureBreach
from vitseg.events import BatchEnded, EpochEnded, FeaturesUsed
from vitseg.model.segmenter import build_segmenter
from vitseg.presets import quick
from vitseg.recipe import Recipe
from vitseg.runs.run import train
from vitseg.settings import Augment, Data, Folder
from vitseg.training.audit import audit
from vitseg.training.cache import FeatureCache, default_cache
from vitseg.training.features import Features
from vitseg.training.job import Job
from vitseg.training.optim import build_optimizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache for each test alone, beside the weights."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "weights").symlink_to(Path(os.environ["VITSEG_CACHE"]) / "weights")
    monkeypatch.setenv("VITSEG_CACHE", str(folder))
    return folder


def result(recipe: Recipe, folder: Path) -> tuple[list[str], dict[str, bytes], list[FeaturesUsed]]:
    """The log without its first line, which holds the recipe; the weights; and where the features
    came from.
    """
    used = [e for e in train(recipe, folder) if isinstance(e, FeaturesUsed)]
    lines = (folder / "events.jsonl").read_text().splitlines()
    weights = sorted(
        [*folder.glob("stages/**/*.safetensors"), *folder.glob("best/**/*.safetensors")]
    )
    return lines[1:], {str(w.relative_to(folder)): w.read_bytes() for w in weights}, used


def same(a: tuple, b: tuple) -> bool:
    return a[:2] == b[:2]


@pytest.fixture
def plain(tiny_recipe, tmp_path):
    """The run that keeps nothing."""
    return result(tiny_recipe.replace({"cache": False}), tmp_path / "plain")


def rows(cache: Path) -> list[Path]:
    return sorted(p for p in (cache / "features").rglob("*") if p.is_file())


class TestSameBits:
    def test_cold_and_warm(self, tiny_recipe, plain, tmp_path):
        cold, warm = (result(tiny_recipe, tmp_path / name) for name in ("cold", "warm"))
        assert same(cold, plain) and same(warm, plain)
        assert plain[2][0].computed == 10 and not any(used.read for used in plain[2])
        assert all(used.read == 10 and used.computed == 0 for used in warm[2])
        assert len(plain[1]) == 2 + 6 + 8 + 7, "best and last of the stages, and best/"

    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers(self, tiny_recipe, plain, tmp_path, workers):
        assert same(result(tiny_recipe.replace({"workers": workers}), tmp_path / "cold"), plain)

    @pytest.mark.parametrize("changes", [{}, {"workers": 1}, {"data.views": "fresh"}], ids=str)
    def test_images_that_an_epoch_shows_twice(self, tiny_recipe, tmp_path, changes):
        rarely = tiny_recipe.replace({"data.sampler": "rarity", "data.source.classes": 7} | changes)
        plain = result(rarely.replace({"cache": False, "workers": 0}), tmp_path / "plain")
        cold, warm = (result(rarely, tmp_path / name) for name in ("cold", "warm"))
        assert same(cold, plain) and same(warm, plain)
        assert all(used.read + used.computed == 10 for used in cold[2] + warm[2])
        fresh = "data.views" in changes
        assert fresh or (0 < cold[2][0].read < 10 and not any(used.computed for used in warm[2]))

    @pytest.mark.parametrize("batch_size", [1, 3, 10])
    def test_whatever_batch_built_them(self, tiny_recipe, plain, tmp_path, batch_size):
        result(tiny_recipe.replace({"batch_size": batch_size, "seed": 5}), tmp_path / "builds")
        warm = result(tiny_recipe, tmp_path / "warm")
        assert same(warm, plain) and all(used.read == 10 for used in warm[2])

    def test_half_of_the_rows_gone(self, tiny_recipe, plain, cache, tmp_path):
        result(tiny_recipe, tmp_path / "cold")
        for path in rows(cache)[::2]:
            path.unlink()
        again = result(tiny_recipe, tmp_path / "again")
        assert same(again, plain) and again[2][0].computed > 0

    def test_deleted_midway(self, tiny_recipe, plain, cache, tmp_path):
        result(tiny_recipe, tmp_path / "cold")
        seen = []
        for event in train(tiny_recipe, tmp_path / "again"):
            if isinstance(event, BatchEnded) and event.step in {2, 7, 13}:
                shutil.rmtree(cache / "features")
            seen.append(event)
        assert (tmp_path / "again" / "events.jsonl").read_text().splitlines()[1:] == plain[0]

    def test_torn_rows_are_computed_again(self, tiny_recipe, plain, cache, tmp_path):
        result(tiny_recipe, tmp_path / "cold")
        for number, path in enumerate(rows(cache)):
            content = path.read_bytes()
            path.write_bytes(
                [content[:-9], content[:100] + bytes(100) + content[200:], b""][number % 3]
            )
        assert same(result(tiny_recipe, tmp_path / "again"), plain)
        default_cache().verify()  # drops those that this run did not need
        assert default_cache().verify() == [] and len(rows(cache)) > 50

    def test_a_stale_row_is_not_the_same(self, tiny_recipe, plain, cache, tmp_path, monkeypatch):
        """The negative control: if rows were not read, or did not matter, the tests above would
        pass too.
        """
        result(tiny_recipe, tmp_path / "cold")
        stale = spoil_one_row(cache)
        monkeypatch.setattr(Features, "_same", lambda *_, **__: True)
        assert not same(result(tiny_recipe, tmp_path / "stale"), plain)
        assert stale.exists()

    def test_a_stale_row_stops_the_run(self, tiny_recipe, cache, tmp_path):
        """Not at once: one view an epoch is computed as well. Here all of them are stale."""
        result(tiny_recipe, tmp_path / "cold")
        while spoil_one_row(cache):
            pass
        with pytest.raises(FeatureBreach, match=r"generated-.* the kept features are not those"):
            result(tiny_recipe, tmp_path / "stale")

    def test_an_encoder_whose_rows_depend_on_the_batch_is_not_kept(
        self, tiny_recipe, cache, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(Features, "_same", lambda *_, **__: False)
        *_, used = result(tiny_recipe, tmp_path / "run")
        assert rows(cache) == [] and all(u.read == 0 for u in used)
        assert (
            used[0].note
            == "Features are not kept: this encoder gives a view other features in another batch."
        )

    @pytest.mark.weights
    def test_the_real_encoder(self, tmp_path):
        """All three stages with views, dropout and drop-path."""
        recipe = quick().replace(
            {"data.source.images": 10, "data.size": [84, 84], "data.views": 2, "batch_size": 3}
            | {"stages.1.drop_path": 0.2, "stages.2.drop_path": 0.1}
            | {f"stages.{n}.epochs": 3 - n for n in range(3)}
        )
        off, cold = (result(recipe.replace({"cache": c}), tmp_path / str(c)) for c in (False, True))
        warm = result(recipe, tmp_path / "warm")
        assert same(off, cold) and same(off, warm) and all(used.computed == 0 for used in warm[2])
        half = result(recipe.replace({"features": "half"}), tmp_path / "half")
        losses, exact = (
            [json.loads(x)["loss"] for x in lines if '"BatchEnded"' in x]
            for lines in (half[0], off[0])
        )
        assert losses[:8] == pytest.approx(exact[:8], abs=2e-3) and losses != exact


def spoil_one_row(cache: Path) -> Path | None:
    """Another row's content under a row's name, whole by its checksum: as if the key had missed
    something.
    """
    for folder in sorted((cache / "features").glob("*/level *")):
        first, *others = sorted(folder.iterdir())
        if fresh := [p for p in others if p.read_bytes() != first.read_bytes()]:
            fresh[0].write_bytes(first.read_bytes())
            return fresh[0]
    return None


class TestHalf:
    def test_the_same_cold_and_warm_and_without_a_cache(self, tiny_recipe, plain, tmp_path):
        recipe = tiny_recipe.replace({"features": "half"})
        cold, warm, off = (
            result(r, tmp_path / name)
            for r, name in (
                (recipe, "cold"),
                (recipe, "warm"),
                (recipe.replace({"cache": False}), "off"),
            )
        )
        assert same(cold, warm) and same(cold, off) and not same(cold, plain)

    def test_takes_half_the_room(self, tiny_recipe, cache, tmp_path):
        sizes = []
        for features in ("exact", "half"):
            result(tiny_recipe.replace({"features": features}), tmp_path / features)
            sizes.append(sum(p.stat().st_size for p in rows(cache) if p.parent.name != "masks"))
            default_cache().clear()
        assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)

    def test_a_value_too_large_for_it_stays_exact(self, tiny_recipe):
        features, _, data = stage(tiny_recipe.replace({"features": "half", "cache": False}))
        (key,) = [(data.splits["train"][0], "0")]
        prefix = features.model.prefix
        features.model.prefix = lambda x: {
            level: tokens * 1e6 for level, tokens in prefix(x).items()
        }
        (batch,) = features.batches([[key]])
        assert (
            all(t.isfinite().all() for t in batch.levels.values())
            and max(t.max() for t in batch.levels.values()) > 65504
        )


def stage(
    recipe: Recipe, number: int = 1, change=lambda model: None
) -> tuple[Features, torch.nn.Module, SegmentationData]:
    """The features of a stage, as its training would see them."""
    from vitseg.model.freeze import set_freeze_depth

    data = SegmentationData(recipe.data)
    model = build_segmenter(recipe.model, data.classes, recipe.data.size, recipe.seed)
    change(model)
    set_freeze_depth(model, recipe.stages[number - 1].unfrozen_blocks)
    optimizer = build_optimizer(model, recipe.optimizer, recipe.stages[number - 1])
    report = audit(model, optimizer, recipe.stages[number - 1].unfrozen_blocks)
    return Features(Job(recipe, model=model, data=data), report.hashes), model, data


def computed(
    recipe: Recipe, views: tuple[str, ...] = ("0", "1"), number: int = 1, change=lambda model: None
) -> int:
    """How many views of the training images are computed rather than read."""
    features, _, data = stage(recipe, number, change)
    for _ in features.batches(
        chunked([(name, view) for view in views for name in data.splits["train"]], 4)
    ):
        pass
    return features.computed


class TestWhatMakesRowsStale:
    @pytest.fixture
    def recipe(self, tiny_recipe, tmp_path) -> Recipe:
        """On eight images of a folder, six of them to train on."""
        write_pairs(tmp_path / "data", {f"image{i}": stripes(0, 1, 0, i % 2) for i in range(8)})
        data = Data(source=Folder(path=str(tmp_path / "data")), size=(70, 70), views=2)
        recipe = tiny_recipe.replace({"data": data})
        assert computed(recipe) == 12 and computed(recipe) == 0
        return recipe

    def test_an_image_its_own_rows(self, recipe, tmp_path):
        from PIL import Image

        name = SegmentationData(recipe.data).splits["train"][0]
        Image.new("RGB", (24, 24), (90, 20, 20)).save(tmp_path / "data" / "images" / f"{name}.png")
        assert computed(recipe) == 2 and computed(recipe) == 0

    def test_a_mask_its_own_rows(self, recipe, tmp_path):
        from PIL import Image

        name = SegmentationData(recipe.data).splits["train"][0]
        Image.fromarray(stripes(1, 0)).save(tmp_path / "data" / "masks" / f"{name}.png")
        assert computed(recipe) == 2 and computed(recipe) == 0

    def test_touching_a_file_nothing(self, recipe, tmp_path):
        for path in (tmp_path / "data" / "images").iterdir():
            os.utime(path, (1, 1))
        assert computed(recipe) == 0

    def test_the_input_size_all(self, recipe):
        assert computed(recipe.replace({"data.size": [84, 70]})) == 12

    @pytest.mark.parametrize(
        "setting",
        [{"data.augment": Augment(zoom=0.5)}, {"data.effects": (Hue(),)}, {"data.crop": Crop()}],
        ids=str,
    )
    def test_an_augmentation_all_but_the_clean_view(self, recipe, setting):
        changed = recipe.replace(setting)
        assert computed(changed, ("0",)) == 0 and computed(changed, ("1",)) == 6

    def test_the_seed_of_the_views_all_but_the_clean_one(self, recipe):
        changed = recipe.replace({"data.view_seed": 1})
        assert computed(changed, ("0",)) == 0 and computed(changed, ("1",)) == 6

    def test_a_normalisation_value_all(self, recipe, encoders, tmp_path):
        folder = shutil.copytree(encoders["dinov2"], tmp_path / "encoder")
        (folder / "preprocessor_config.json").write_text(
            '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}'
        )
        assert computed(recipe.replace({"model.encoder": str(folder)})) == 12

    @pytest.mark.parametrize(
        "setting",
        [
            {"seed": 3},
            {"workers": 1},
            {"batch_size": 3},
            {"model.dropout": 0.5},
            {"name": "x"},
            {"loss.dice": 2.0},
            {"data.split_seed": 0},
        ],
    )
    def test_what_concerns_only_later_parts_nothing(self, recipe, setting):
        assert computed(recipe.replace(setting)) == 0

    @pytest.mark.parametrize("setting", [{"threads": 2}, {"features": "half"}])
    def test_what_concerns_the_bits_all(self, recipe, setting):
        assert computed(recipe.replace(setting)) == 12

    def test_a_weight_of_block_3_the_levels_from_3_on(self, recipe):
        def change(model):
            with torch.no_grad():
                next(model.encoder.blocks[2].parameters()).add_(0.1)

        before, after = (stage(recipe, 1, c)[0].groups for c in (lambda model: None, change))
        assert [before[level] == after[level] for level in range(5)] == [
            True,
            True,
            True,
            False,
            False,
        ]
        assert computed(recipe, change=change) == 0, (
            "the blocks above level 2 are run on what is kept of it"
        )
        broken = {"change": change}
        assert computed(recipe, **broken) == 0

    def test_a_block_that_trains_nothing_below_it(self, recipe):
        """Stage 3 goes on from level 2, which stage 1 has kept as a skip."""
        assert computed(recipe, number=3) == 0

    def test_the_classes_that_are_trained_keep_their_masks_apart(self, recipe):
        features, _, data = stage(recipe.replace({"data.mode": "multiclass"}))
        (name, *_) = data.splits["train"]
        (batch,) = features.batches([[(name, "0")]])
        assert torch.equal(batch.masks[0], data[name, "0"].multiclass_mask)


class TestNoRoom:
    def test_a_full_disk_is_no_end(self, tiny_recipe, plain, tmp_path, cache, monkeypatch):
        """On a real small disk where one can be mounted; else the operating system's answer is
        played.
        """
        disk = cache / "features"
        disk.mkdir()
        mounted = not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True
        ).returncode
        monkeypatch.setattr(
            "shutil.disk_usage", lambda folder: SimpleNamespace(free=10**12)
        )  # so that it is found out by writing
        write, written = Path.write_bytes, []

        def play(path: Path, content: bytes) -> int:
            written.append(path)
            if len(written) > 20 and path.suffix == ".new" and not mounted:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", play)
        try:
            full = result(tiny_recipe, tmp_path / "full")
            assert same(full, plain)
            assert "cannot be written (No space left on device)" in full[2][-1].note
            assert len(written) > 5 and not list(disk.rglob(".*"))
        finally:
            if mounted:
                subprocess.run(["umount", disk], check=True)

    def test_the_reserve_stays_free(self, tiny_recipe, cache, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1_500_000_000))
        *_, used = result(tiny_recipe, tmp_path / "run")
        assert rows(cache) == []
        assert "its disk has 1.5 GB left, of which 2 GB stay free" in used[0].note

    def test_the_limit_drops_what_nobody_has_used_for_longest(self, tmp_path):
        tensors = {"tokens": torch.zeros(1000)}
        root = tmp_path / "rows"
        FeatureCache(root, reserve=0).put("a", "row0", tensors)
        size = (root / "a" / "row0").stat().st_size
        for n in range(1, 5):
            FeatureCache(root, reserve=0).put("a", f"row{n}", tensors)
        for n in range(5):
            os.utime(root / "a" / f"row{n}", (n, n))
        assert FeatureCache(root).get("a", "row0") is not None  # used again
        late = FeatureCache(root, limit=5 * size, reserve=0)
        late.put("a", "row5", tensors)
        assert sorted(p.name for p in (root / "a").iterdir()) == ["row0", "row3", "row4", "row5"]
        assert not late.why_not

    def test_rows_of_this_run_are_not_dropped_for_each_other(
        self, tiny_recipe, cache, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("VITSEG_CACHE_GB", "0.0001")
        *_, used = result(tiny_recipe, tmp_path / "run")
        assert "it may take 0.0001 GB ($VITSEG_CACHE_GB)" in used[-1].note
        assert 0 < sum(p.stat().st_size for p in rows(cache)) <= 110_000
        assert used[2].read > 0, "what had room is read"

    def test_a_cache_that_is_a_file_is_no_end(self, tiny_recipe, plain, tmp_path, cache):
        (cache / "features").write_text("in the way")
        run = result(tiny_recipe, tmp_path / "run")
        assert same(run, plain) and "features cannot be written (Not a directory)" in run[2][0].note

    def test_others_drop_and_clear_at_any_instant(self, tmp_path, monkeypatch):
        tensors = {"tokens": torch.zeros(1000)}
        ours = FeatureCache(tmp_path / "rows", reserve=0)
        for n in range(3):
            ours.put("a", f"row{n}", tensors)
        late = FeatureCache(tmp_path / "rows", limit=1, reserve=0)
        stat = Path.stat

        def of_one_that_is_gone(path, **how):
            if path.name == "row1":
                path.unlink(missing_ok=True)
            return stat(path, **how)

        monkeypatch.setattr(Path, "stat", of_one_that_is_gone)
        late.put("a", "row9", tensors)
        assert "no room" in late.why_not and list(late.files(late.root)) == []
        monkeypatch.setattr(Path, "stat", stat)
        write = Path.write_bytes

        def and_all_is_cleared(path: Path, content: bytes) -> int:
            write(path, content)
            shutil.rmtree(tmp_path / "rows")

        ours = FeatureCache(tmp_path / "rows", reserve=0)
        monkeypatch.setattr(Path, "write_bytes", and_all_is_cleared)
        ours.put("a", "row3", tensors)
        assert not ours.why_not and not ours.has("a", "row3")
        monkeypatch.setattr(Path, "write_bytes", write)
        ours.put("a", "row4", tensors)
        assert ours.get("a", "row4") is not None

    def test_verify_leaves_alone_what_somebody_is_writing(self, tmp_path):
        group = tmp_path / "rows" / "a"
        group.mkdir(parents=True)
        (group / ".row.1.new").write_bytes(b"half of a r")
        (group / "row").write_bytes(b"half of a r")
        assert FeatureCache(tmp_path / "rows").verify() == [group / "row"]
        assert [p.name for p in group.iterdir()] == [".row.1.new"]

    @pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
    def test_a_limit_that_is_none(self, monkeypatch, text):
        monkeypatch.setenv("VITSEG_CACHE_GB", text)
        with pytest.raises(
            ConfigError,
            match=r"\$VITSEG_CACHE_GB: got .*; allowed: a number of gigabytes, 0 or more",
        ):
            default_cache()


def test_kill_while_building_keeps_the_rows_that_are_whole(tiny_recipe, plain, cache, tmp_path):
    tiny_recipe.save(tmp_path / "recipe.json")
    command = [
        sys.executable,
        "-m",
        "vitseg",
        "run",
        str(tmp_path / "recipe.json"),
        str(tmp_path / "killed"),
    ]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        until(lambda: len(rows(cache)) > 10, 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = [p for p in rows(cache) if not p.name.startswith(".")]
    time.sleep(0.01)
    again = result(tiny_recipe, tmp_path / "again")
    assert same(again, plain)
    assert all(p.stat().st_mtime_ns for p in left) and again[2][0].read + again[2][0].computed == 10
    assert not set(default_cache().verify()) & set(left)


def test_what_was_used_is_said_after_each_epoch_and_not_logged(tiny_recipe, tmp_path):
    events = list(train(tiny_recipe, tmp_path / "run"))
    places = [type(e) for e in events if isinstance(e, EpochEnded | FeaturesUsed)]
    assert places == [FeaturesUsed, EpochEnded] * 5
    assert "FeaturesUsed" not in (tmp_path / "run" / "events.jsonl").read_text()
