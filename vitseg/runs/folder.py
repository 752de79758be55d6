"""The run folder: what was to be done, with what, and everything that happened. No torch: a
finished run needs none.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitseg.errors import RecipeError, RunError
from vitseg.events import Event, RunStarted, StageEnded, StageEvent, from_json, to_json
from vitseg.files import is_held, sweep, write_json, write_text, written
from vitseg.recipe import Recipe, load_recipe, parse
from vitseg.words import Strict, json_of

Splits = dict[str, list[str]]
"""The names of the images by split."""


class _Timing(Strict):
    """A line of `timings.jsonl`."""

    seq: int
    seconds: float


def runs_root() -> Path:
    """Where runs are kept: $VITSEG_RUNS, else `runs/` of the checkout, else `runs/` here."""
    if named := os.environ.get("VITSEG_RUNS"):
        return Path(named).expanduser().absolute()
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "runs"


def new_run(name: str) -> RunFolder:
    """A folder under `runs_root()` that is not taken: the name and a random id. Not made yet."""
    return RunFolder(runs_root() / f"{name}-{secrets.token_hex(3)}")


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended a training: the kind of the error, what it says, the number of the last event, and
    of a FreezeBreach the parts of the model that broke the promise.
    """

    kind: str
    says: str
    sequence: int = 0
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: Exception, sequence: int = 0) -> Failure:
        return cls(type(error).__name__, str(error), sequence, getattr(error, "parts", ()))


class RunFolder:
    """Paths and logs of one run. `events.jsonl` holds nothing from the clock; `timings.jsonl`
    does.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().absolute()
        self.events_file, self.timings_file = (
            self.path / "events.jsonl",
            self.path / "timings.jsonl",
        )
        self.checkpoints, self.best = self.path / "checkpoints", self.path / "best"
        self.summary_file = self.path / "summary.json"
        self.fork_file, self.failure_file = self.path / "fork.json", self.path / "failure.json"
        self.sequence, self._seconds_before = 0, 0.0
        self._started = time.monotonic()

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        recipe: Recipe,
        splits: Splits,
        environment: dict[str, Any],
        *,
        forked: dict[str, Any] | None = None,
    ) -> RunFolder:
        """A new folder with recipe, environment and split, and where a fork came from.

        Raises RunError if there is a run in it already.
        """
        run = cls(path) if path else new_run(recipe.name)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if run.events_file.exists():
                over = "It has ended: choose another folder." if run.summary_file.exists() else ""
                mend = (
                    over or f"Go on with it (vitseg resume {run.path}), or choose another folder."
                )
                raise RunError(f"{run.path}: holds a run already.", mend)
            run.fork_file.unlink(
                missing_ok=True
            )  # of a fork that was cut off before its first event
            if forked:
                write_json(
                    run.fork_file, forked
                )  # first of all: a fork that is cut off must not pass for a run of its own
            recipe.save(run.path / "recipe.json")
            write_json(run.path / "environment.json", environment)
            write_json(run.path / "split.json", splits)
        except OSError as error:
            raise RunError(
                f"{run.path}: cannot be written ({error.strerror}).", "Choose another folder."
            ) from None
        return run

    @property
    def recipe(self) -> Recipe:
        if not (self.path / "recipe.json").exists():
            raise RunError(
                f"{self.path}: is not a run folder (no recipe.json in it).",
                f"Runs are kept in {runs_root()}.",
            )
        return load_recipe(self.path / "recipe.json")

    def resolved_recipe(self) -> Recipe:
        """The recipe with what "auto" became when the run began, on whatever machine it goes on."""
        recipe, names = self.recipe, ("device", "precision", "threads")
        resolved = _read_json(self.path / "environment.json", *names)
        return recipe.replace({name: resolved[name] for name in names})

    @property
    def summary(self) -> dict[str, Any]:
        """The run in numbers. Raises RunError while it has not ended."""
        if not self.summary_file.exists():
            raise RunError(
                f"{self.path}: this run has not ended.", "Go on with it: vitseg.resume(folder)."
            )
        return _read_json(self.summary_file, "stages", "best")

    def check_split(self, splits: Splits) -> None:
        """Raises RunError unless the images are split as they were when the run began."""
        if splits != _read_json(self.path / "split.json", *splits):
            raise RunError(
                f"{self.path}: the images are not those of the run.",
                "Restore them, or start a new run.",
            )

    def sweep(self) -> None:
        """Delete what a kill has left half written."""
        for folder in (self.path, self.checkpoints, self.path / "stages"):
            sweep(folder)

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

    def keys(self) -> list[str]:
        """The keys of the run's stages; none where they would promise too much."""
        return self.environment().get("keys", [])

    def environment(self) -> dict[str, Any]:
        """What the run began with."""
        return _read_json(self.path / "environment.json")

    def changed(self, now: dict[str, Any], names: Iterable[str]) -> list[str]:
        """What of an environment is not as it was when the run began, in words."""
        then = self.environment()
        return [
            f"{name}: {now[name]!r}, was {then[name]!r}"
            for name in names
            if name in then and then[name] != now[name]
        ]

    def record(self, event: Event) -> None:
        """Append to the logs. Raises RunError if they cannot be written."""
        seconds = round(self._seconds_before + time.monotonic() - self._started, 3)
        with (
            written(self.events_file),
            self.events_file.open("a", encoding="utf-8", newline="\n") as file,
        ):
            file.write(to_json(event, self.sequence + 1) + "\n")
        self.sequence += 1
        with (
            written(self.timings_file),
            self.timings_file.open("a", encoding="utf-8", newline="\n") as file,
        ):
            file.write(json.dumps({"seq": self.sequence, "seconds": seconds}) + "\n")

    def sync(self) -> int:
        """Make what is logged last, and say how many bytes that are: a checkpoint must not know
        more than the log.
        """
        with written(self.events_file), self.events_file.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())
        return self.events_file.stat().st_size

    def handed(self, event: Event) -> Generator[Event]:
        """Yield an event. Until the next one is asked for nobody works on the run, and its seconds
        stand still.
        """
        left = time.monotonic()
        yield event
        self._started += time.monotonic() - left

    def cut_back(self, sequence: int, offset: int) -> None:
        """Forget all events after the first `sequence`, which take `offset` bytes: they will happen
        again.
        """
        for log in (self.events_file, self.timings_file):
            log.touch()
        if self.events_file.stat().st_size < offset:
            raise RunError(
                f"{self.events_file}: is shorter than its checkpoint says.", "Start a new run."
            )
        os.truncate(self.events_file, offset)
        kept = [(n, s) for n, s in self.timings() if n <= sequence]
        lines = [json.dumps({"seq": n, "seconds": s}) + "\n" for n, s in kept]
        write_text(self.timings_file, "".join(lines))
        self.sequence, self._seconds_before = sequence, kept[-1][1] if kept else 0.0
        self._started = time.monotonic()

    def events(self) -> Iterator[Event]:
        """The events logged so far. A torn last line, left by a kill, ends them."""
        if not self.events_file.exists():
            raise RunError(
                f"{self.path}: is not a run folder (no events.jsonl in it).",
                f"Runs are kept in {runs_root()}.",
            )
        with self.events_file.open(encoding="utf-8") as file:
            lines, stages = enumerate(file, start=1), 0
            while True:
                try:
                    number, line = next(lines, (0, ""))
                    if not line.endswith("\n"):
                        return
                    event = from_json(line, number)
                    if isinstance(event, RunStarted):
                        stages = len(parse(json.dumps(event.recipe)).stages)
                    elif isinstance(event, StageEvent) and event.stage > stages:
                        raise ValueError(
                            f"line {number}: stage {event.stage}, of {stages} that have been "
                            f"announced"
                        )
                except (ValueError, RecipeError) as error:  # also bytes that are no text
                    mend = "It was written by another version, or changed."
                    raise RunError(
                        f"{self.events_file}: {str(error).removesuffix('.')}.", mend
                    ) from None
                yield event

    def up_to(self, stage: int) -> list[Event]:
        """The events of stages 1 .. `stage`, the last one its StageEnded. Raises RunError if it has
        not ended.
        """
        found: list[Event] = []
        for event in self.events():
            if not isinstance(event, RunStarted):
                found.append(event)
            if (
                isinstance(event, StageEnded)
                and event.stage == stage
                and self.stage(stage).is_dir()
            ):
                return found
        raise RunError(
            f"{self.path}: stage {stage} of this run has not ended.",
            "Start from another stage, or resume it.",
        )

    def forked(self) -> dict[str, Any] | None:
        """Where a fork's own part begins: `parent`, `stage`, `sequence` and `offset`; None for a
        run of its own.

        `sequence` and `offset` are 0 until all that it inherits is in its folder.
        """
        return (
            _read_json(self.fork_file, "parent", "stage", "sequence", "offset")
            if self.fork_file.exists()
            else None
        )

    def fail(self, error: Exception) -> None:
        """Keep what ended the training, if there is room for it: the error itself must not be lost
        to another.
        """
        with contextlib.suppress(RunError, OSError):
            write_json(self.failure_file, asdict(Failure.of(error, self.sequence)))

    def failure(self) -> Failure | None:
        """What ended the training; None if nothing did, or since the run was resumed."""
        if not self.failure_file.exists():
            return None
        kept = _read_json(self.failure_file, "kind", "says", "sequence", "parts")
        return Failure(**kept | {"parts": tuple(kept["parts"])})

    def is_held(self) -> bool:
        """Whether this process or another is training the run."""
        return is_held(self.path)

    def ended_stages(self) -> list[int]:
        """Numbers of the stages whose weights are kept."""
        return sorted(int(p.name) for p in (self.path / "stages").glob("*") if p.name.isdecimal())

    def timings(self) -> list[tuple[int, float]]:
        """(sequence number, seconds of work on the run until then) of every event; pauses are no
        work.
        """
        try:
            lines = self.timings_file.read_text(encoding="utf-8").splitlines(keepends=True)
            records = [_Timing.model_validate_json(line) for line in lines if line.endswith("\n")]
            return [(r.seq, r.seconds) for r in records]
        except (OSError, ValueError) as error:
            raise _not_ours(self.timings_file, error) from None


def _read_json(path: Path, *names: str) -> dict[str, Any]:
    """A file of ours. Raises RunError unless it is a JSON object with those names."""
    try:
        found = json_of(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}")
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"{missing[0]} is missing")
    except (OSError, ValueError) as error:
        raise _not_ours(path, error) from None
    return found


def _not_ours(path: Path, error: OSError | ValueError) -> RunError:
    reason = error.strerror if isinstance(error, OSError) else error
    return RunError(
        f"{path}: not a file that vitseg wrote ({reason}).", "Delete the run, or restore the file."
    )


def replay(folder: str | Path) -> Iterator[Event]:
    """The events of a run, from its folder: what a live run yielded, without training."""
    yield from RunFolder(folder).events()
