"""environment.yml is true: its pip part installs into a clean environment that imports what the
notebooks import.
"""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def _imports() -> set[str]:
    found = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                for node in ast.walk(ast.parse("".join(cell["source"]))):
                    if isinstance(node, ast.Import):
                        found |= {alias.name for alias in node.names}
                    elif isinstance(node, ast.ImportFrom):
                        found.add(node.module)
    return found


@pytest.mark.slow
@pytest.mark.install
def test_the_pip_part_installs_and_imports_what_the_notebooks_import(tmp_path):
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = next(item["pip"] for item in listed if isinstance(item, dict))
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    arguments = [word for line in lines for word in shlex.split(line)]
    command = [python, "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if (
        done.returncode
        and "No matching distribution" not in done.stderr
        and "onnection" in done.stderr
    ):
        pytest.skip("no package index is reachable")
    assert done.returncode == 0, done.stderr
    script = "import " + ", ".join(sorted(_imports() | {"jupyterlab", "ipywidgets", "anywidget"}))
    subprocess.run([python, "-c", script], cwd=tmp_path, check=True)
    absent = "import importlib.util as u, sys; sys.exit(u.find_spec('torchvision') is not None)"
    subprocess.run([python, "-c", absent], check=True)
