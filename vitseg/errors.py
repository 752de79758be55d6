"""Every error a user can cause, as one sentence: what, where, what is allowed, and the mend."""

import copyreg
from collections.abc import Mapping
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """A setting that was refused: its path in the recipe, the value, what is allowed there, and a
    sentence that says so.
    """

    field: str
    got: object
    allowed: str
    says: str

    def __str__(self) -> str:
        return f"{self.field}: {self.says}" if self.field else self.says


class VitsegError(Exception):
    """Base of all errors meant for the reader's eyes; the command line prints it without a
    traceback. `facts` are attributes, for programs; `refusals` the settings that it is about.
    """

    refusals: tuple[Refusal, ...] = ()

    def __init__(self, problem: str, mend: str = "", **facts: Any):
        self.problem, self.mend = problem, mend
        self.__dict__.update(facts)
        super().__init__(f"{problem} {mend}".strip())

    def _render_traceback_(self) -> list[str]:
        """In a notebook, too: the sentence, without the way through our files."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple:
        """For the way from another process: its text and its facts, whatever its constructor
        takes.
        """
        return copyreg.__newobj__, (type(self), str(self)), self.__dict__


class Interrupted(KeyboardInterrupt):
    """An interrupt that ended a cell and nothing else; a notebook shows its sentence alone."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class ConfigError(VitsegError):
    """A setting that cannot work, named by its path in the recipe."""

    def __init__(self, field: str, got: object, allowed: str, mend: str = ""):
        says = f"got {got!r}; allowed: {allowed}."
        refusals = (Refusal(field, got, allowed, says),)
        super().__init__(f"{field}: {says}", mend, refusals=refusals, field=field, got=got)


class RecipeError(VitsegError):
    """One or more settings of a recipe that were refused.

    `idle` are those refused for having no effect beside the others: their paths, and the defaults
    that would do.
    """

    idle: Mapping[str, object] = {}


class DataError(VitsegError):
    """A folder, an image or a mask that cannot be used as it is."""


class WeightsError(VitsegError):
    """Encoder weights that are missing, unreachable or not what their name says."""


class RunError(VitsegError):
    """A run folder that cannot be written, read or continued."""


class TrainingError(VitsegError):
    """Training that cannot go on, for instance because the loss is not a number."""


class FreezeBreach(VitsegError):
    """What trains is not what was promised; `parts` are the parts of the model that break the
    promise.
    """

    parts: tuple[str, ...] = ()


class FeatureBreach(VitsegError):
    """What was kept of the frozen blocks is not what they compute."""


class LRBreach(VitsegError):
    """The learning rate in use is not the promised one; names the step and the parameter group."""
