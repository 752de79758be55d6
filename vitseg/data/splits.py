"""Which images are trained on and which are held out: by folder, or drawn from names and a seed."""

from __future__ import annotations

import random
import re

from vitseg.data.folder import Pair
from vitseg.draws import seed_for
from vitseg.errors import ConfigError, DataError
from vitseg.settings import Data


def splits_of(pairs: list[Pair], cfg: Data) -> dict[str, list[str]]:
    given = {s: [p.name for p in pairs if p.split == s] for s in ("train", "validation", "test")}
    if not any(given.values()):
        return random_split([p.name for p in pairs], cfg)
    if not given["train"]:
        raise DataError(f"{cfg.source.path}: train/ holds no images.", "Put images and masks into train/.")
    if given["validation"]:
        for field in ("group", "validation_fraction", "split_seed"):
            if getattr(cfg, field) != (default := Data.model_fields[field].default):
                raise ConfigError(
                    f"data.{field}", getattr(cfg, field), str(default), "The folder has a validation/ of its own."
                )
        return given
    return random_split(given["train"], cfg) | {"test": given["test"]}


def random_split(names: list[str], cfg: Data) -> dict[str, list[str]]:
    """Validation gets its fraction of the groups; without a `group` every image is a group of its own."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_group(name.rpartition("/")[2], cfg.group), []).append(name)
    if len(groups) < 2:
        what = f"group={cfg.group!r} makes one group of" if cfg.group else "there is nothing to split in"
        raise DataError(f"data.group: {what} {len(names)} image(s).", "Give at least two images, or two groups.")
    keys = sorted(groups)
    random.Random(seed_for(cfg.split_seed, "split")).shuffle(keys)
    held_out = set(keys[: min(len(keys) - 1, max(1, round(len(keys) * cfg.validation_fraction)))])
    return {
        "train": sorted(n for k in keys if k not in held_out for n in groups[k]),
        "validation": sorted(n for k in held_out for n in groups[k]),
        "test": [],
    }


def _group(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise ConfigError("data.group", pattern, "a regular expression", str(error)) from None
    part = found and (found.group(1) if found.re.groups else found.group())
    if part is None:
        raise DataError(f"data.group: {pattern!r} does not match the name {name!r}.", "Every image needs a group.")
    return part
