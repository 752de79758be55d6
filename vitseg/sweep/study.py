"""Optuna's study in a search's folder: opened, locked while a trial is chosen, its faults said in a
sentence.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from vitseg.errors import ConfigError, RunError

SAMPLERS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
    "none": lambda: optuna.pruners.NopPruner(),
}
LOCKED_SECONDS = 30.0
"""How long the study's file is waited for while somebody else writes."""


def asking(folder: Path) -> FileLock:
    """Held while a trial is chosen, which takes a moment: two processes must not choose the
    same.
    """
    return FileLock(folder / "asking.lock", timeout=LOCKED_SECONDS)


def open_study(
    url: str | None, folder: Path, name: str, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The folder's study, made if it is not there, without Optuna's log line about it. Without a
    URL it is `study.db`.

    Raises RunError for a study that belongs to another folder: its trials' claims and runs would be
    there.
    """
    settings: dict[str, Any] = {}
    if (
        url is None
    ):  # by a creator: a URL would read meanings into some characters of the folder's name
        connect = partial(
            sqlite3.connect, folder / "study.db", timeout=LOCKED_SECONDS, check_same_thread=False
        )
        url, settings = "sqlite://", {"creator": connect, "poolclass": NullPool}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=settings)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )
    finally:
        optuna.logging.set_verbosity(level)
    if (place := study.user_attrs.get("folder", str(folder))) != str(folder) and url != "sqlite://":
        raise RunError(
            f"{folder}: the study at this storage belongs to {place}.",
            "Give that folder; all machines must see it.",
        )
    study.set_user_attr("folder", str(folder))
    return study


@contextmanager
def said(path: Path) -> Iterator[None]:
    """A study or a folder that cannot be read or written is a sentence."""
    try:
        yield
    except (
        SQLAlchemyError,
        sqlite3.Error,
        optuna.exceptions.StorageInternalError,
        Timeout,
    ) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]  # the statement follows
        mend = (
            "If another process holds it, wait for its end; on a network drive give a database "
            "server's URL as storage."
        )
        raise RunError(f"{path}: the study cannot be read or written ({cause}).", mend) from None
    except ImportError as error:
        raise ConfigError("storage", str(error), "a database whose driver is installed") from None
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}).", "Choose another folder."
        ) from None
