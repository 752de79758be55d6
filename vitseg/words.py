"""The base of all settings: immutable, strict, and plain-spoken about what it refuses."""

from __future__ import annotations

import difflib
import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from vitseg.errors import RecipeError, Refusal


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


class Conflict(ValueError):
    """A setting that does not go together with others; `field` is its path from where it is
    checked.
    """

    def __init__(self, field: str, says: str):
        self.field = field
        super().__init__(says)


class NoEffect(Conflict):
    """A setting that does nothing, given the others."""

    def __init__(self, field: str, value: object, default: object):
        self.default = default
        super().__init__(field, f"{field}={value!r} has no effect here; leave it out")


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
    """Base of all settings: what is refused is said in plain words."""

    def _refuse_without_effect(self, condition: bool, *fields: str) -> None:
        """Refuse settings that differ from their default although `condition` makes them do
        nothing.
        """
        for field in fields:
            value, default = getattr(self, field), type(self).model_fields[field].default
            if condition and value != default:
                raise NoEffect(field, value, default)


_KNOWN: dict[str, type[BaseModel]] = {}
"""The kinds of settings that a recipe is made of, by name."""


def register(recipe: type[BaseModel]) -> None:
    """Make all settings of a recipe known to whoever misspells one."""
    _KNOWN.update(_with_inner(recipe))


def _with_inner(annotation: Any) -> dict[str, type[BaseModel]]:
    """Settings and the settings within them, by name."""
    found, inner = {}, get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found[annotation.__name__] = annotation
        inner = [field.annotation for field in annotation.model_fields.values()]
    for each in inner:
        found |= _with_inner(each)
    return found


def explain(error: ValidationError, cls: type[BaseModel]) -> RecipeError:
    """What pydantic refused, one sentence a setting: its path, the value, what is allowed, the
    nearest spelling.
    """
    known = _KNOWN | _with_inner(cls)
    known[cls.__name__] = known.pop(cls.__name__)  # last: of two with such a setting, this one
    found: dict[tuple[str, str], Refusal] = {}
    idle = {}
    for problem in error.errors():
        refusal = _refusal(problem, known)
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, NoEffect):
            idle[refusal.field] = cause.default
        before = found.setdefault((refusal.place, refusal.says), refusal)
        # a value that may be of several kinds is refused once for each
        if refusal.allowed not in before.allowed:
            allowed = f"{before.allowed} or {refusal.allowed}"
            found[refusal.place, refusal.says] = replace(before, allowed=allowed)
    refusals = []
    for refusal in found.values():
        if refusal.allowed:
            refusal = replace(refusal, says=f"{refusal.says}; allowed: {refusal.allowed}.")
        refusals.append(refusal)
    words = " ".join(map(str, refusals))
    return RecipeError(f"{cls.__name__} refused. {words}", refusals=tuple(refusals), idle=idle)


def _refusal(error: dict[str, Any], known: dict[str, type[BaseModel]]) -> Refusal:
    """One of pydantic's errors; what is allowed is not in the sentence yet."""
    place, got, allowed = _place(error, known), error["input"], ""
    field, cause = place, error.get("ctx", {}).get("error")
    if isinstance(cause, Conflict):
        field = f"{place}.{cause.field}".lstrip(".")
    match error["type"]:
        case "missing":
            says = "needs a value."
        case "extra_forbidden":
            says = f"unknown setting{_nearest(str(error['loc'][-1]), known)}"
        case "value_error":
            says = f"{cause}."
        case _:
            says = repr(got)
            if len(says) > 80:
                says = f"{says[:80]}..."
            says = f"got {says}"
            allowed = error["msg"].removeprefix("Input should be ")
            allowed = allowed.replace("a valid array", "a list, such as [1, 2]")
    return Refusal(field, got, allowed, says, place)


def _place(error: dict[str, Any], known: dict[str, type[BaseModel]]) -> str:
    """The dotted path of a setting, as `Recipe.replace` takes it; pydantic names the kinds on the
    way too.
    """
    passed = {"int", "constrained-int", "literal", "constrained-str"}
    for cls in known.values():
        if "kind" in cls.model_fields:
            passed.add(cls.model_fields["kind"].default)
    return ".".join(name for name in map(str, error["loc"]) if name.partition("[")[0] not in passed)


def _nearest(name: str, known: dict[str, type[BaseModel]]) -> str:
    """Whose setting that is, or which one may have been meant."""
    owners = {field: kind for kind, cls in known.items() for field in cls.model_fields}
    if name in owners:
        return f"; {name} is a setting of {owners[name]}."
    close = difflib.get_close_matches(name, owners, n=1, cutoff=0.6)
    close += [field for field in owners if field.lower() == name.lower()]
    return f"; did you mean {close[0]} (of {owners[close[0]]})?" if close else "."
