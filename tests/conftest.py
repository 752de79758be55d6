"""Small encoders of every family, small data, and where the real data sets are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from soak import three_short_stages
from transformers import AutoConfig, AutoModel

from vitseg.files import cache_folder
from vitseg.recipe import Recipe

FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
LAYERS = 4


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A feature cache and a runs root of this test run alone; the weights stay where they are."""
    weights, folder = cache_folder() / "weights", tmp_path_factory.mktemp("cache")
    weights.mkdir(parents=True, exist_ok=True)
    (folder / "weights").symlink_to(weights, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITSEG_CACHE", str(folder))
        patch.setenv("VITSEG_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny random ViTs by family: 4 blocks, width 32, patch 14, dropout rates above 0 in
    their configs.
    """
    root = tmp_path_factory.mktemp("encoders")
    return {family: str(_save_tiny(family, root / family)) for family in FAMILIES}


def _save_tiny(family: str, folder: Path) -> Path:
    more = {"mlp_ratio": 2} if family.startswith("dinov2") else {"intermediate_size": 64}
    config = AutoConfig.for_model(
        family,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        patch_size=14,
        image_size=70,
        **more,
    )
    rates = {
        k for k in config.to_dict() if k.endswith(("dropout_prob", "dropout", "drop_path_rate"))
    }
    for rate in rates:
        setattr(config, rate, 0.1)  # the adapter must set them to 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():  # layer scale near 0 would hide what a block does
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(encoders: dict[str, str]) -> Recipe:
    """Three short stages: two, two and one epoch of five batches."""
    return three_short_stages(encoders["dinov2"])


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: $VITSEG_REAL_DATA, else `shared/data` beside the checkout."""
    folder = Path(os.environ.get("VITSEG_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set VITSEG_REAL_DATA")
    return folder


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line says what was not tested."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and terminal.stats:
        skipped = terminal.stats.get("skipped", [])
        reasons = sorted({str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped})
        if left_out := len(terminal.stats.get("deselected", [])):
            terminal.write_line(f"{left_out} left out by -m or -k; make test-all runs them.")
        terminal.write_line(
            f"{len(skipped)} skipped: {'; '.join(reasons)}" if skipped else "Nothing was skipped."
        )
