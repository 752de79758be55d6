"""The house: import floors, light imports, pins that agree, notebooks without outputs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "module",
    [
        "vitseg",
        "vitseg.events",
        "vitseg.recipe",
        "vitseg.presets",
        "vitseg.plan",
        "vitseg.ui.charts",
        "vitseg.ui.table",
        "vitseg.ui.console",
        "vitseg.runs.folder",
        "vitseg.data.fetch",
    ],
)
def test_what_needs_no_torch_loads_none(module):
    script = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_check_for_torch_can_fail():
    script = "import sys, vitseg.training.loop; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1


def test_without_the_extras_all_that_does_not_need_them_is_there_and_the_rest_says_how_to_get_it():
    extras = ("optuna", "ray", "onnxruntime", "onnxscript", "tensorboard", "nilearn")
    script = f"""
import sys
sys.modules.update(dict.fromkeys({extras}))
import vitseg
for name in vitseg.__all__:
    assert hasattr(vitseg, name), name
try:
    vitseg.search(vitseg.quick(), {{"stages.1.lr": [1e-3, 1e-4]}})
except vitseg.VitsegError as error:
    print(error.mend)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "pip install 'vitseg[search]'\n"


def test_every_public_name_can_be_had():
    import vitseg

    for name in vitseg.__all__:
        assert getattr(vitseg, name) is not None
    assert callable(vitseg.train)


def test_imports_go_down_only():
    done = subprocess.run(
        [BIN / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_torchvision_is_absent():
    assert importlib.util.find_spec("torchvision") is None


def test_environment_yml_equals_pyproject_and_constraints_with_torch_first():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = next(item["pip"] for item in listed if isinstance(item, dict))
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert pip == ["-c constraints.txt", f"torch=={pins['torch']}", "-e .[lab]"]
    wanted = project["dependencies"] + [
        line for extra in project["optional-dependencies"].values() for line in extra
    ]
    names = {re.match(r"[\w-]+", w).group().lower().replace("_", "-") for w in wanted} - {"vitseg"}
    assert names <= {name.lower().replace("_", "-") for name in pins}, (
        "every direct dependency is pinned where it was tested"
    )
    python = next(item for item in listed if str(item).startswith("python="))
    assert python == "python=3.11"


def test_no_placeholder_is_left_behind():
    for path in [
        *(ROOT / "vitseg").rglob("*.py"),
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    ]:
        assert not re.search(
            r"\b(TODO|FIXME|XXX|NUMBERS|QUICK)\b", path.read_text(encoding="utf-8")
        ), path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_written_as_lessons(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    kinds = [c["cell_type"] for c in cells]
    sources = ["".join(c["source"]) for c in cells]
    code = [s for s, k in zip(sources, kinds, strict=True) if k == "code"]
    assert all(
        not c.get("outputs") and c.get("execution_count") is None
        for c in cells
        if c["cell_type"] == "code"
    )
    assert all(before == "markdown" for before, now in pairwise(kinds) if now == "code")
    assert kinds[0] == "markdown"
    assert max(len(s.splitlines()) for s in code) <= 25
    assert 0.8 <= kinds.count("markdown") / kinds.count("code") <= 1.6
    text = "\n".join(sources)
    assert "## Summary" in text
    assert "## Try it" in text
    assert "**Before you run it:**" in text
    assert "assert " in code[-1]


def test_nbstripout_finds_nothing_to_strip():
    done = subprocess.run(
        [BIN / "nbstripout", "--verify", *NOTEBOOKS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_index_names_every_notebook_with_the_minutes_that_it_states_and_a_picture():
    index = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        row = next(line for line in index.splitlines() if f"]({path.name})" in line)
        first = " ".join(
            "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).split()
        )
        minutes = re.search(r"About (\d+) minutes to read, [^.]+ to run", first)
        assert minutes and f"| {minutes[1]} to read, " in row
        picture = re.search(r'src="([^"]+)"', row)
        assert picture and (path.parent / picture[1]).is_file()


def test_nobody_parses_what_is_a_field():
    """Names of parts, views and errors are for people; a registry is a list, not who has been
    imported.
    """
    parsed = re.compile(r"""(startswith|removeprefix)\(\s*["'](block|fresh)|__subclasses__""")
    assert parsed.search('view.startswith("fresh")') and parsed.search("Event.__subclasses__()")
    found = []
    for path in (ROOT / "vitseg").rglob("*.py"):
        if parsed.search(path.read_text(encoding="utf-8")):
            found.append(path.name)
    assert found == []
