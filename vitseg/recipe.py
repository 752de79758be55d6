"""What is to be done: a recipe, in the words of the field. Frozen, checked when it is made, JSON on
disk.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_core import to_jsonable_python

from vitseg.errors import RecipeError
from vitseg.settings import AdamW, Count, Data, Loss, Model, Optimizer, Stage
from vitseg.words import Words


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

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    data: Data = Data()
    model: Model = Model()
    stages: tuple[Stage, ...] = Field(min_length=1)
    loss: Loss = Loss()
    optimizer: Optimizer = Field(AdamW(), discriminator="kind")
    batch_size: Count = 8
    accumulate: Count = 1
    clip_norm: float | None = Field(1.0, gt=0)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Count | Literal["auto"] = "auto"
    processes: Count = 1
    workers: int = Field(0, ge=0, le=64)
    features: Literal["exact", "half"] = "exact"
    cache: bool = True
    recompute: bool = False

    def model_post_init(self, context: object) -> None:
        if self.stages[0].start_from != "best":
            raise ValueError(
                "stages.0.start_from has no effect: there is no stage before it; leave it out"
            )
        if self.accumulate * self.processes > 1:
            whole = "needs the whole batch at once; set accumulate and processes to 1"
            if self.loss.dice_over == "batch":
                raise ValueError(f'loss.dice_over="batch" {whole}')
            if self.model.decoder == "linear":
                raise ValueError(f'model.decoder="linear" has a BatchNorm, which {whole}')
        images = self.batch_size * self.accumulate
        if self.processes > images:
            raise ValueError(
                f"processes={self.processes} for steps of {images}: some would get no image; set "
                f"processes to {images}"
            )

    def replace(self, changes: dict[str, Any]) -> "Recipe":
        """A copy with settings changed by path: `recipe.replace({"stages.1.lr": 1e-4})`. Checked
        like a new one.
        """
        tree = plain(self)
        try:
            for path, value in changes.items():
                _set(tree, path, plain(value))
        except ValueError as error:
            raise RecipeError(
                f"{path}: {error}.", "Give numbers, strings, tuples or settings."
            ) from None
        return parse(json.dumps(tree))

    def settle(self, changes: dict[str, Any]) -> tuple["Recipe", dict[str, Any]]:
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


parse = Recipe.read


def load_recipe(path: str | Path) -> Recipe:
    """A recipe from a JSON file. Raises RecipeError, naming the file."""
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}).",
            "Give the path of a recipe.json, such as `vitseg recipe quick` prints.",
        ) from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.problem}", error.mend) from None


plain = to_jsonable_python
"""Settings as the tree that JSON holds, also within tuples and lists."""


def _set(tree: Any, path: str, value: Any) -> None:
    """Write `value` at a dotted path. Names that do not exist are left to validation, which knows
    their spelling.
    """
    *parents, last = [int(name) if name.isdecimal() else name for name in path.split(".")]
    try:
        for place in parents:
            tree = tree.setdefault(place, {}) if isinstance(tree, dict) else tree[place]
        tree[last] = value
    except (LookupError, TypeError):
        here = f"0..{len(tree) - 1}" if isinstance(tree, list) else "none"
        problem = f"{path}: there is no such setting; possible at that place: {here}."
        raise RecipeError(problem) from None
