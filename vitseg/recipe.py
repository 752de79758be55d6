"""What is to be done: a recipe, in the words of the field. Frozen, checked when it is made, JSON on
disk.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from vitseg.errors import RecipeError
from vitseg.settings import AdamW, Count, Data, Loss, Model, Optimizer, Stage
from vitseg.words import Words, explain, register


class Recipe(Words):
    """All of a run's settings. `replace` makes changed copies; `save` and `load_recipe` keep it as
    JSON.

    A batch is one optimizer step: `batch_size` images in each of `accumulate` portions. `clip_norm`
    is the largest gradient norm. `seed` draws initialisation, order and dropout; data and views
    have seeds of their own. `features` is the precision in which the frozen blocks' features are
    used; with `cache` they are kept on disk, which changes no number. `recompute` keeps nothing
    within the blocks that train and runs them once more in the backward pass (activation
    checkpointing, Chen et al. 2016): less memory, more time, the same numbers. `processes` share
    the images of every step, each on a GPU of its own, or on `threads` cores.
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    data: Data = Data()
    model: Model = Model()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    loss: Loss = Loss()
    optimizer: Optimizer = AdamW()
    batch_size: Count = 8
    accumulate: Count = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Count | Literal["auto"] = "auto"
    processes: Count = 1
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    features: Literal["exact", "half"] = "exact"
    cache: bool = True
    recompute: bool = False

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.stages[0].start_from != "best":
            raise ValueError(
                "stages.0.start_from has no effect: there is no stage before it; leave it out"
            )
        for setting in ("accumulate", "processes"):
            if getattr(self, setting) == 1:
                continue
            if self.loss.dice_over == "batch":
                raise ValueError(
                    f'loss.dice_over="batch" needs the whole batch at once; set {setting} to 1'
                )
            if self.model.decoder == "linear":
                raise ValueError(
                    f'model.decoder="linear" has a BatchNorm, which needs the whole batch; '
                    f"set {setting} to 1"
                )
        images = self.batch_size * self.accumulate
        if self.processes > images:
            raise ValueError(
                f"processes={self.processes} for steps of {images}: some would get no image; "
                f"set processes to {images}"
            )
        return self

    def replace(self, changes: dict[str, Any]) -> Recipe:
        """A copy with settings changed by path: `recipe.replace({"stages.1.lr": 1e-4})`. Checked
        like a new one.
        """
        tree = json.loads(self.model_dump_json())
        for path, value in changes.items():
            _set(tree, path, _plain(value))
        try:
            return parse(json.dumps(tree))
        except TypeError as error:
            raise RecipeError(
                f"{', '.join(changes)}: {error}.", "Give numbers, strings, tuples or settings."
            ) from None

    def settle(self, changes: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """Like `replace`; settings that have no effect any more are put back to their defaults, and
        named.

        At depth 0, for instance, there is no encoder LR: `encoder_lr_factor` goes, where `replace`
        would refuse.
        """
        idle: dict[str, Any] = {}
        while True:
            try:
                return self.replace(changes | idle), idle
            except RecipeError as error:
                if error.idle.keys() <= idle.keys():
                    raise
                idle |= error.idle

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


register(Recipe)


def parse(text: str | bytes) -> Recipe:
    """A recipe from JSON text. Raises RecipeError with a line for each setting refused."""
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        raise explain(error, Recipe) from None


def load_recipe(path: str | Path) -> Recipe:
    """A recipe from a JSON file. Raises RecipeError, naming the file."""
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}).", "Give the path of a recipe.json."
        ) from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.problem}", error.mend) from None


def _plain(value: Any) -> Any:
    """Settings as the tree that JSON holds, also within tuples and lists."""
    if isinstance(value, BaseModel):
        return json.loads(value.model_dump_json())
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _set(tree: Any, path: str, value: Any) -> None:
    """Write `value` at a dotted path. A name that does not exist is left to validation, which knows
    the spelling.
    """
    *parents, last = path.split(".")
    name = last
    try:
        for name in parents:
            tree = tree[_place(tree, name)]
        tree[_place(tree, last)] = value
    except (KeyError, IndexError, ValueError, TypeError):
        here, close = "none", []
        if isinstance(tree, list):
            here = f"0..{len(tree) - 1}"
        elif isinstance(tree, dict):
            here, close = ", ".join(tree), difflib.get_close_matches(name, tree, n=1)
        meant = f" did you mean {close[0]}?" if close else ""
        raise RecipeError(
            f"{path}: there is no such setting;{meant} possible at that place: {here}."
        ) from None


def _place(tree: Any, name: str) -> int | str:
    """A list's position, counted from 0, or a name."""
    if not isinstance(tree, list):
        return name
    if not name.isdecimal():
        raise ValueError(name)
    return int(name)
