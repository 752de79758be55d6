"""Whether this checkout trains to the same numbers as another revision, log by log.

    python benchmarks/same_numbers.py REVISION      (some minutes on two cores; the other is checked
                                                     out into a temporary folder)

Trains, with both: `vitseg.quick()` on generated images; a run with accumulation, class weights,
fp32 and depth "all"; a fork of it; an ablation of twelve trials and two controls. Exits 1 unless
the logs are equal byte for byte, but for fields that events have gained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vitseg.files import cache_folder

ROOT = Path(__file__).parents[1]

TRAIN = """
import sys
from pathlib import Path

import vitseg

here = Path(sys.argv[1])
small = vitseg.quick().replace(
    {"data.source.images": 12, "data.source.side": 56, "data.size": [56, 56], "batch_size": 2}
    | {f"stages.{n}.epochs": 2 for n in range(3)}
)
thorough = small.replace(
    {"accumulate": 2, "precision": "fp32", "stages.2.unfrozen_blocks": "all"}
    | {"loss.class_weights": vitseg.ByFrequency(largest=4.0), "stages.2.drop_path": 0.1}
)
list(vitseg.train(vitseg.quick(), here / "quick", reuse=False))
list(vitseg.train(thorough, here / "thorough", reuse=False))
forked = thorough.replace({"name": "forked", "stages.1.lr": 1e-4})
list(vitseg.fork(here / "thorough", 1, forked, here / "fork"))
axes = {"stages.1.unfrozen_blocks": [0, 2], "stages.1.lr": [1e-4, 2e-4, 3e-4]}
vitseg.ablate(small, axes, seeds=2, folder=here / "ablation").finish()
"""


def logs(checkout: Path, into: Path) -> dict[str, str]:
    """The logs of what TRAIN trains with the library in `checkout`, by the runs' places."""
    into.mkdir()
    cache = into / "cache"
    cache.mkdir()
    (cache / "weights").symlink_to(cache_folder() / "weights", target_is_directory=True)
    paths = {"PYTHONPATH": checkout, "VITSEG_CACHE": cache, "VITSEG_RUNS": into / "elsewhere"}
    environment = os.environ | {name: str(path) for name, path in paths.items()}
    command = [sys.executable, "-c", TRAIN, str(into / "runs")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=into)
    found = {}
    for file in sorted((into / "runs").rglob("events.jsonl")):
        found[file.parent.relative_to(into / "runs").as_posix()] = file.read_text(encoding="utf-8")
    return found


def lacks(new: Any, old: Any) -> bool:
    """Whether anything of `old` is missing in `new`, or is another value there."""
    if isinstance(old, dict):
        return not isinstance(new, dict) or any(
            name not in new or lacks(new[name], value) for name, value in old.items()
        )
    if isinstance(old, list):
        same_length = isinstance(new, list) and len(new) == len(old)
        return not same_length or any(map(lacks, new, old))
    return json.dumps(new) != json.dumps(old)


def compared(new: str, old: str) -> str:
    """In words how two logs of the same training compare."""
    if new == old:
        return "byte for byte the same"
    lines = list(zip(new.splitlines(), old.splitlines(), strict=False))
    if len(new.splitlines()) != len(old.splitlines()):
        return f"OTHER: {len(new.splitlines())} events, {len(old.splitlines())} before"
    for number, (now, before) in enumerate(lines, start=1):
        if lacks(json.loads(now), json.loads(before)):
            return f"OTHER in line {number}: {now[:200]}"
    return (
        f"the same but for new fields, {sum(n == o for n, o in lines)} of {len(lines)} lines equal"
    )


def main(revision: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(other), revision], check=True)
        try:
            before, now = logs(other, Path(folder) / "old"), logs(ROOT, Path(folder) / "new")
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    wrong = before.keys() != now.keys()
    for name in sorted(before.keys() | now.keys()):
        words = "OTHER: only in one" if name not in before or name not in now else ""
        words = words or compared(now[name], before[name])
        sys.stdout.write(f"{name:28} {words}\n")
        wrong |= words.startswith("OTHER")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
