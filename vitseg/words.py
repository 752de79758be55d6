"""The base of all settings: immutable, strict, and plain-spoken about what it refuses."""

from __future__ import annotations

import difflib
import json
import unicodedata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vitseg.errors import RecipeError


def json_of(text: str) -> Any:
    """What a JSON text holds. Raises ValueError for what is none, also for brackets without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(path: str | Path) -> str:
    """A path for the reader, on one line: line breaks, reversals of the writing and bytes that are
    no text as escapes.
    """
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    joiners = "\u200c\u200d"  # which emoji and some scripts are made with
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in hidden and c not in joiners
        else c
        for c in str(path)
    )


class NoEffect(ValueError):
    """A setting that does nothing, given the others."""

    def __init__(self, field: str, value: object, default: object):
        self.field, self.default = field, default
        super().__init__(f"{field}={value!r} has no effect here; leave it out")


class _Plainly(type(BaseModel)):
    """Says in plain words what pydantic refuses, whoever makes the object."""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        try:
            return super().__call__(*args, **settings)
        except ValidationError as error:
            raise explain(error, cls) from None


class Strict(BaseModel):
    """Base of what is read: immutable, no conversions, no unknown names, no nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Words(Strict, metaclass=_Plainly):
    """Base of all settings, whose names are known to whoever misspells one."""

    def _refuse_without_effect(self, condition: bool, *fields: str) -> None:
        """Refuse settings that differ from their default although `condition` makes them do
        nothing.
        """
        for field in fields:
            value, default = getattr(self, field), type(self).model_fields[field].default
            if condition and value != default:
                raise NoEffect(field, value, default)


def explain(error: ValidationError, cls: type) -> RecipeError:
    """What pydantic refused, one sentence a setting: its path, the value, what is allowed, the
    nearest spelling.
    """
    found = error.errors()
    said: dict[str, list[str]] = {}  # a value that may be of several kinds is refused once for each
    for problem, allowed in map(_line, found):
        said.setdefault(problem, []).extend(allowed)
    lines = [
        f"{problem}; allowed: {' or '.join(dict.fromkeys(a))}." if a else problem
        for problem, a in said.items()
    ]
    refused = RecipeError(f"{cls.__name__} refused. {' '.join(lines)}")
    for e in found:
        if isinstance(cause := e.get("ctx", {}).get("error"), NoEffect):
            refused.idle[".".join(filter(None, (_where(e), cause.field)))] = cause.default
    return refused


def _where(error: dict[str, Any]) -> str:
    """The dotted path of a setting, as `Recipe.replace` takes it; pydantic names the kinds on the
    way too.
    """
    kinds = {
        c.model_fields["kind"].default for c in Words.__subclasses__() if "kind" in c.model_fields
    }
    unions = ("int", "constrained-int", "literal", "constrained-str")
    return ".".join(
        str(p) for p in error["loc"] if p not in kinds and not str(p).startswith(unions)
    )


def _line(error: dict[str, Any]) -> tuple[str, list[str]]:
    """What is wrong, and what would be allowed, where that is left to say."""
    where = _where(error)
    if error["type"] == "extra_forbidden":
        said = f"{where}: unknown setting{_nearest(str(error['loc'][-1]))}"
        return said if said.endswith("?") else f"{said}.", []
    if error["type"] == "missing":
        return f"{where}: needs a value.", []
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{error['ctx']['error']}.", []
    said = (
        error["msg"]
        .removeprefix("Input should be ")
        .replace("a valid array", "a list, such as [1, 2]")
    )
    got = repr(error["input"])
    got = got if len(got) <= 80 else f"{got[:80]}..."
    return f"{where + ': ' if where else ''}got {got}", [said]


def _nearest(name: str) -> str:
    owners = {field: c.__name__ for c in Words.__subclasses__() for field in c.model_fields}
    if name in owners:
        return f"; {name} is a setting of {owners[name]}"
    close = difflib.get_close_matches(name, owners, n=1, cutoff=0.6) or [
        f for f in owners if f.lower() == name.lower()
    ]
    return f"; did you mean {close[0]} (of {owners[close[0]]})?" if close else ""
