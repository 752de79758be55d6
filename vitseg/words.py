"""The base of all settings: immutable, strict, and plain-spoken about what it refuses."""

import difflib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

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
    joiners = "\u200c\u200d"  # which emoji and some scripts are made with
    return "".join(
        c if c.isprintable() or c in joiners else c.encode("unicode_escape").decode()
        for c in str(path)
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of the names may have been meant; "" if none is near."""
    found = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), found, n=1)
    return found[close[0]] if close else ""


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

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """From JSON text. Raises RecipeError with a line for each setting refused."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise explain(error, cls) from None


class Words(Strict, metaclass=_Plainly):
    """Base of all settings: what is refused is said in plain words. What has to do with several of
    them is checked in `model_post_init`.
    """

    def _refuse_without_effect(self, condition: bool, *fields: str) -> None:
        """Refuse settings that differ from their default although `condition` makes them do
        nothing.
        """
        for field in fields:
            value, default = getattr(self, field), type(self).model_fields[field].default
            if condition and value != default:
                says = f"got {value!r}, which has no effect here; leave it out"
                raise PydanticCustomError("conflict", says, {"field": field, "default": default})


@cache
def _owners(cls: type[BaseModel]) -> dict[str, str]:
    """The settings in a class by name, and the class that each is of; of two the outer."""
    schema, owners = cls.model_json_schema(), {}
    for kind in (*schema.get("$defs", {}).values(), schema):
        owners |= dict.fromkeys(kind["properties"], kind["title"])
    return owners


def explain(error: ValidationError, cls: type[BaseModel]) -> RecipeError:
    """What pydantic refused, one sentence a setting: its path, the value, what is allowed, the
    nearest spelling.
    """
    found, idle, refusals = {}, {}, []
    for problem in error.errors():
        field, says, allowed = _refusal(problem, _owners(cls))
        context = problem.get("ctx", {})
        if "default" in context:
            idle[field] = context["default"]
        # a value that may be of several kinds is refused once for each
        _, kinds = found.setdefault((field, says), (problem["input"], {}))
        kinds[allowed] = None
    for (field, says), (got, kinds) in found.items():
        allowed = " or ".join(kinds)
        if allowed:
            says = f"{says}; allowed: {allowed}."
        refusals.append(Refusal(field, got, allowed, says))
    words = " ".join(map(str, refusals))
    return RecipeError(f"{cls.__name__} refused. {words}", refusals=tuple(refusals), idle=idle)


def _refusal(problem: dict[str, Any], known: dict[str, str]) -> tuple[str, str, str]:
    """Of one of pydantic's errors: the path of the setting, as `Recipe.replace` takes it, what is
    wrong, and what is allowed.
    """
    way, allowed = problem["loc"], ""
    message, context = problem["msg"], problem.get("ctx", {})
    match problem["type"]:
        case "missing":
            says = "needs a value."
        case "extra_forbidden":
            name, says = way[-1], "unknown setting."
            if name in known:
                says = f"unknown setting; {name} is a setting of {known[name]}."
            elif close := nearest(name, known):
                says = f"unknown setting; did you mean {close} (of {known[close]})?"
            known = {*known, name}
        case "value_error" | "conflict":
            says = f"{message.removeprefix('Value error, ')}."
        case _:
            says = f"got {problem['input']!r:.80}"
            allowed = message.removeprefix("Input should be ")
            allowed = allowed.replace("a valid array", "a list, such as [1, 2]")
    # pydantic names the kinds on the way, too
    names = [str(name) for name in way if isinstance(name, int) or name in known]
    if "field" in context:
        names.append(context["field"])
    return ".".join(names), says, allowed
