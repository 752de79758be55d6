"""The run folder: what was to be done, with what, and everything that happened. No torch: a
finished run needs none.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitseg.errors import RecipeError, RunError
from vitseg.events import Event, RunStarted, StageEnded, from_json, to_json
from vitseg.files import is_held, write_json, written
from vitseg.recipe import Recipe, load_recipe, parse
from vitseg.words import Strict, json_of

JsonDict = dict[str, Any]
"""An object of JSON, by the names in it."""

_RESOLVED = ("device", "precision", "threads")
"""What may be "auto" in a recipe, and is resolved in a run's environment."""


def runs_root() -> Path:
    """Where runs are kept: $VITSEG_RUNS, else `runs/` of the checkout, else `runs/` here."""
    checkout = Path(__file__).parents[2]
    beside = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("VITSEG_RUNS") or beside / "runs").expanduser().absolute()


def new_run(name: str) -> RunFolder:
    """A folder under `runs_root()` that is not taken: the name and a random id. Not made yet."""
    return RunFolder(runs_root() / f"{name}-{secrets.token_hex(3)}")


class Failure(Strict):
    """What ended a training: the kind of the error, what it says, and of a FreezeBreach the parts
    of the model that broke the promise.
    """

    kind: str
    says: str
    parts: tuple[str, ...] = ()
    sequence: int = 0  # of the last event, in older runs

    @classmethod
    def of(cls, error: Exception) -> Failure:
        parts = getattr(error, "parts", ())
        return cls(kind=type(error).__name__, says=str(error), parts=parts)


class RunFolder:
    """Paths and logs of one run. `events.jsonl` holds nothing from the clock; `timings.jsonl` holds
    the `seconds` that were trained.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().absolute()
        self.events_file = self.path / "events.jsonl"
        self.timings_file = self.path / "timings.jsonl"
        self.environment_file = self.path / "environment.json"
        self.checkpoints, self.best = self.path / "checkpoints", self.path / "best"
        self.summary_file = self.path / "summary.json"
        self.fork_file, self.failure_file = self.path / "fork.json", self.path / "failure.json"
        self.sequence, self.seconds = 0, 0.0

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self._existing("recipe.json"))

    def _existing(self, name: str) -> Path:
        """A file that every run has. Raises RunError where it is missing."""
        file = self.path / name
        if not file.exists():
            raise RunError(
                f"{self.path}: is not a run folder (no {name} in it).",
                f"Runs are kept in {runs_root()}.",
            )
        return file

    def resolved_recipe(self) -> Recipe:
        """The recipe with what "auto" became when the run began, on whatever machine it goes on."""
        recipe, resolved = self.recipe, self.environment()
        return recipe.replace({name: resolved[name] for name in _RESOLVED})

    @property
    def summary(self) -> JsonDict:
        """The run in numbers. Raises RunError while it has not ended."""
        self._existing("recipe.json")
        if not self.summary_file.exists():
            raise RunError(
                f"{self.path}: this run has not ended.", "Resume it: vitseg.resume(folder)."
            )
        return _read_json(self.summary_file, "stages", "best")

    def check_split(self, splits: dict[str, list[str]]) -> None:
        """Raises RunError unless the images, by split, are those of when the run began."""
        if splits != _read_json(self.path / "split.json"):
            raise RunError(
                f"{self.path}: the images are not those of the run.",
                "Restore them, or start a new run.",
            )

    def drop_checkpoints(self) -> None:
        """Of a run that has ended: nothing is left to go on with."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    @property
    def store(self) -> Path:
        """Where the weights of this and other runs are stored once, by their digest: in the runs
        root, else beside the run. Runs have hard links to them, so that it can be deleted at any
        time.
        """
        root = runs_root()
        return (root if self.path.is_relative_to(root) else self.path.parent) / ".weights"

    def stage(self, number: int) -> Path:
        """Where the weights at the end of a stage are kept."""
        return self.path / "stages" / str(number)

    def environment(self) -> JsonDict:
        """What the run began with. The `keys` of its stages are not in it where they would promise
        too much.
        """
        return _read_json(self.environment_file, *_RESOLVED)

    def changes(self, now: JsonDict) -> list[str]:
        """What of an environment, or of a part of it, is not as it was when the run began."""
        then = self.environment()
        return changes({name: then.get(name, value) for name, value in now.items()}, now)

    def record(self, event: Event) -> None:
        """Append to the logs. Raises RunError if they cannot be written."""
        _append(self.events_file, to_json(event, self.sequence + 1))
        self.sequence += 1
        timing = {"seq": self.sequence, "seconds": round(self.seconds, 3)}
        _append(self.timings_file, json.dumps(timing))

    def sync(self) -> int:
        """Make what is logged last, and say how many bytes that are: a checkpoint must not know
        more than the log.
        """
        with written(self.events_file), self.events_file.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut_back(self, sequence: int, offset: int) -> None:
        """Forget all events after the first `sequence`, which take `offset` bytes: they will happen
        again.
        """
        self.events_file.touch()
        if self.events_file.stat().st_size < offset:
            problem = f"{self.events_file}: is shorter than its checkpoint says."
            raise RunError(problem, "Start a new run.")
        os.truncate(self.events_file, offset)
        _append(self.timings_file, "")  # ends a line that a kill has torn
        self.sequence, self.seconds = sequence, self.timings().get(sequence, 0.0)

    def events(self) -> Iterator[Event]:
        """The events logged so far. A torn last line, left by a kill, ends them."""
        stages = 0
        try:
            with self._existing("events.jsonl").open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith("\n"):
                        return
                    event = from_json(line, number)
                    if isinstance(event, RunStarted):
                        stages = len(parse(json.dumps(event.recipe)).stages)
                    elif getattr(event, "stage", 0) > stages:
                        raise ValueError(f"line {number}: stage {event.stage} of {stages}")
                    yield event
        except (ValueError, RecipeError) as error:  # also bytes that are no text
            raise RunError(
                f"{self.events_file}: {str(error).removesuffix('.')}.",
                "It was written by another version, or changed.",
            ) from None

    def up_to(self, stage: int) -> list[Event]:
        """The events up to the StageEnded of a stage. Raises RunError if it has not ended."""
        found: list[Event] = []
        for event in self.events():
            found.append(event)
            has_ended = isinstance(event, StageEnded) and event.stage == stage
            if has_ended and self.stage(stage).is_dir():
                return found
        raise RunError(
            f"{self.path}: stage {stage} of this run has not ended.",
            "Start from another stage, or resume it.",
        )

    def forked(self) -> JsonDict | None:
        """Where a fork's own part begins: `parent`, `stage`, `sequence` and `offset`; None for a
        run of its own.

        `sequence` and `offset` are 0 until all that it inherits is in its folder.
        """
        if not self.fork_file.exists():
            return None
        return _read_json(self.fork_file, "parent", "stage", "sequence", "offset")

    def fail(self, error: Exception) -> None:
        """Keep what ended the training, if there is room for it: the error itself must not be lost
        to another.
        """
        with suppress(RunError, OSError):
            write_json(self.failure_file, Failure.of(error).model_dump())

    def failure(self) -> Failure | None:
        """What ended the training; None if nothing did that is known, or since the run was
        resumed.
        """
        with suppress(OSError, ValueError):
            return Failure.model_validate_json(self.failure_file.read_bytes())
        return None

    def is_held(self) -> bool:
        """Whether this process or another is training the run."""
        return is_held(self.path)

    def is_cut_off(self) -> bool:
        """Whether it has not ended and nobody trains it. Its lock is asked first, since it may end
        between the two looks.
        """
        return not (self.is_held() or self.summary_file.exists())

    def ended_stages(self) -> list[int]:
        """Numbers of the stages whose weights are kept."""
        return sorted(int(p.name) for p in self.path.glob("stages/*") if p.name.isdecimal())

    def timings(self) -> dict[int, float]:
        """Seconds of training until each event, by its number, without pauses. Of an event that has
        happened again, after a kill, the last line says it.
        """
        seconds = {}
        with suppress(OSError):  # the run is as good without them
            for line in self.timings_file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # torn by a kill
                    timing = json_of(line)
                    seconds[timing["seq"]] = timing["seconds"]
        return seconds


def _append(log: Path, line: str) -> None:
    with written(log), log.open("a", encoding="utf-8", newline="\n") as file:
        file.write(line + "\n")


def _read_json(path: Path, *names: str) -> JsonDict:
    """A file of ours. Raises RunError unless it is a JSON object with those names."""
    try:
        found = json_of(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found.keys() >= set(names):
            raise ValueError(f"it is no object with {', '.join(names)}")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: not a file that vitseg wrote ({error}).",
            "Delete the run, or restore the file.",
        ) from None
    return found


def changes(then: Any, now: Any, path: str = "") -> list[str]:
    """What nested settings are, and were, by dotted path, where that differs:
    "stages.0.lr: 0.001, was 0.01."
    """
    found = []
    match then, now:
        case list(), list():
            return changes(dict(enumerate(then)), dict(enumerate(now)), path)
        case dict(), dict():
            for name in then | now:
                found += changes(then.get(name), now.get(name), f"{path}.{name}")
        case _ if then != now:
            found.append(f"{path[1:]}: {now!r}, was {then!r}.")
    return found


def replay(folder: str | Path) -> Iterator[Event]:
    """The events of a run, from its folder: what a live run yielded, without training."""
    return RunFolder(folder).events()
