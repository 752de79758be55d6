"""Every error a user can cause, as one sentence: what, where, what is allowed, and the mend."""

from typing import NamedTuple


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
    traceback. `refusals` are the settings that it is about.
    """

    refusals: tuple[Refusal, ...] = ()

    def __init__(self, problem: str, mend: str = ""):
        self.problem, self.mend = problem, mend
        super().__init__(f"{problem} {mend}".strip())

    def _render_traceback_(self) -> list[str]:
        """In a notebook, too: the sentence, without the way through our files."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple:
        """For the way from a loader's worker: rebuilt from its fields, whatever its constructor
        takes.
        """
        return _rebuilt, (type(self), str(self), self.__dict__)


def _rebuilt(kind: type[VitsegError], text: str, fields: dict[str, object]) -> VitsegError:
    error = kind.__new__(kind, text)
    error.args, error.__dict__ = (text,), dict(fields)
    return error


class Interrupted(KeyboardInterrupt):
    """An interrupt that ended a cell and nothing else; a notebook shows its sentence alone."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class ConfigError(VitsegError):
    """A setting that cannot work, named by its path in the recipe."""

    def __init__(self, field: str, got: object, allowed: str, mend: str = ""):
        self.field, self.got, self.allowed = field, got, allowed
        says = f"got {got!r}; allowed: {allowed}."
        self.refusals = (Refusal(field, got, allowed, says),)
        super().__init__(f"{field}: {says}", mend)


class RecipeError(VitsegError):
    """One or more settings of a recipe that were refused.

    `idle` are those refused for having no effect beside the others: their paths, and the defaults
    that would do.
    """

    def __init__(self, problem: str, mend: str = "", refusals: tuple[Refusal, ...] = ()):
        self.refusals, self.idle = refusals, dict[str, object]()
        super().__init__(problem, mend)


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

    def __init__(self, problem: str, mend: str = "", parts: tuple[str, ...] = ()):
        self.parts = parts
        super().__init__(problem, mend)


class FeatureBreach(VitsegError):
    """What was kept of the frozen blocks is not what they compute."""


class LRBreach(VitsegError):
    """The learning rate in use is not the promised one; names the step and the parameter group."""


def is_for_readers(kind: str) -> bool:
    """Whether an error of that name is one of these: a sentence that needs no traceback."""
    found = globals().get(kind)
    return isinstance(found, type) and issubclass(found, VitsegError)
