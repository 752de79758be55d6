"""What a look at a data set has found: as text, in a notebook, as JSON, and as one HTML file with
pictures.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from vitseg.data.check import Check, check_data
from vitseg.data.folder import Finding, Look
from vitseg.errors import RunError
from vitseg.images import UNREADABLE, open_rgb, overlay
from vitseg.settings import Data, Folder
from vitseg.ui import pictures
from vitseg.ui.report import STYLE
from vitseg.ui.table import Table
from vitseg.words import shown

SHOWN = 12
"""Lines of one kind that are shown in a notebook or on a terminal; the JSON and the page have all.
"""

PICTURES = 24

MOMENT = 0.5
"""Seconds that a check may take without a bar."""


class DataReport:
    """Made by `vitseg.check(folder)`. `check` holds what was found; `ok` is whether nothing stops a
    training.
    """

    def __init__(self, check: Check):
        self.check = check

    @property
    def ok(self) -> bool:
        return not self.check.problems

    def __str__(self) -> str:
        return "\n\n".join([self._head(), *self._said(), *map(str, self._tables())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        said = "".join(
            f"<pre style='white-space:pre-wrap'>{escape(text)}</pre>"
            for text in [self._head(), *self._said()]
        )
        return said + "".join(table._repr_html_() for table in self._tables())

    def to_json(self) -> str:
        return json.dumps(self.check.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | Path, *, page: bool = True) -> Path:
        """Write the page, with all that was found and pictures of it, or the JSON. Raises RunError
        if it cannot be written.
        """
        path = Path(path).expanduser().absolute()
        try:
            path.write_text(self._page() if page else self.to_json(), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror}).", "Choose another file."
            ) from None
        return path

    def _head(self) -> str:
        c = self.check
        splits = ", ".join(f"{count} {split}" for split, count in c.splits.items())
        counts = [(c.problems, "problem"), (c.warnings, "warning"), (c.notes, "note")]
        found = ", ".join(f"{len(items)} {word}{'s' * (len(items) != 1)}" for items, word in counts)
        return (
            f"{shown(c.root)}: {c.found} pairs, {len(c.whole)} whole ({splits})\nmasks: "
            f"{c.masks}\n{found}"
        )

    def _said(self, most: int | None = SHOWN) -> Iterator[str]:
        """A paragraph for each kind of problem, warning and note."""
        for rank, items in (
            ("PROBLEM", self.check.problems),
            ("WARNING", self.check.warnings),
            ("note", self.check.notes),
        ):
            for kind, count in Counter(p.kind for p in items).items():
                lines = [self._short(p) for p in items if p.kind == kind]
                more = [f"... and {count - most} more"] if most and count > most else []
                yield "\n  ".join([f"{rank}: {kind} ({count})", *lines[:most], *more])

    def _tables(self) -> Iterator[Table]:
        c = self.check
        if not c.classes:
            return
        splits = list(c.splits)
        total = {split: sum(row.pixels.get(split, 0) for row in c.classes) or 1 for split in splits}
        rows = tuple(
            (
                row.name,
                *(_cell(row.images.get(s, 0), row.pixels.get(s, 0) / total[s]) for s in splits),
            )
            for row in c.classes
        )
        heads = tuple(f"{split}: images, pixels" for split in splits)
        yield Table(("class", *heads), rows, "Classes")
        if 2 < len(c.classes) <= 24:
            names = [row.name for row in c.classes]
            cells = tuple(
                (name, *map(str, counts)) for name, counts in zip(names, c.together, strict=True)
            )
            yield Table(("together in images", *names), cells, "Which classes occur together")

    def _page(self) -> str:
        c = self.check
        said = "".join(f"<pre>{escape(text)}</pre>" for text in self._said(most=None))
        tables = "".join(table._repr_html_() for table in self._tables())
        flagged, good = (
            self._flagged(),
            list(c.whole)[:: max(1, len(c.whole) // PICTURES)][:PICTURES],
        )
        sheets = [("Flagged", flagged)] if flagged else []
        sheets += (
            [("Some of the others", [(name, self._picture(name)) for name in good])] if good else []
        )
        body = "".join(
            f"<h2>{title}</h2><div class=sheet>{''.join(map(_figure, items))}</div>"
            for title, items in sheets
        )
        title = f"Data: {escape(shown(c.root))}"
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}"
            ".sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, "
            "1fr)); gap: 1rem; }"
            "figure { margin: 0; } figcaption { overflow-wrap: anywhere; font-size: 12px; }</style>"
            f"<h1>{title}</h1><pre>{escape(self._head())}</pre>{said}{tables}{body}</html>\n"
        )

    def _flagged(self) -> list[tuple[str, Image.Image | None]]:
        """A picture for each file that something was said of, of a mask its image, as far as it can
        be opened.
        """
        items: dict[Path, Finding] = {}
        for problem in [*self.check.problems, *self.check.warnings, *self.check.notes]:
            items.setdefault(problem.path, problem)
        files = [(path, p) for path, p in items.items() if path.is_file()][:PICTURES]
        return [(self._short(p), _opened(self.check.image_of.get(path, path))) for path, p in files]

    def _short(self, problem: Finding) -> str:
        """Its sentence, paths beginning in the folder that the head names."""
        return problem.says.replace(f"{shown(self.check.root)}{os.sep}", "")

    def _picture(self, name: str) -> Image.Image | None:
        """Image and mask together."""
        return _opened(self.check.whole[name].image, lambda: self.check.ids(name))


def check(folder: str | Path | Data) -> DataReport:
    """Look at every image and mask of a folder, or of a recipe's `data`; nothing is changed.

    Raises DataError where there is no data set to look at.
    """
    data = (
        folder
        if isinstance(folder, Data)
        else Data(source=Folder(path=str(Path(folder).absolute())))
    )
    return DataReport(check_data(data, _counted))


def _counted(looks: Iterator[Look], doing: str, count: int) -> Iterator[Look]:
    """Pass looks on, under a bar if it takes longer than a moment: in a notebook, and on a terminal
    beside the output.
    """
    bad = 0
    with tqdm(
        looks, desc=doing, total=count, unit="pair", leave=False, delay=MOMENT, disable=None
    ) as bar:
        for look in bar:
            if look.problems:
                bad += 1
                bar.set_postfix_str(f"{bad} with problems", refresh=False)
            yield look


def _cell(images: int, share: float) -> str:
    percent = 100 * share
    return (
        f"{images:,}, {percent:.{0 if percent >= 10 else 1 if percent >= 1 else 2}f} %"
        if images
        else "absent"
    )


def _opened(image: Path, ids: Callable[[], np.ndarray | None] = lambda: None) -> Image.Image | None:
    try:
        opened, mask = open_rgb(image), ids()
        opened = overlay(opened, mask) if mask is not None else opened
        opened.thumbnail((300, 300))
        return opened
    except UNREADABLE:
        return None


def _figure(item: tuple[str, Image.Image | None]) -> str:
    words, image = item
    shown = (
        f'<img alt="" src="{pictures.data_uri(image)}">'
        if image
        else "<p class=quiet>cannot be shown</p>"
    )
    return f"<figure>{shown}<figcaption>{escape(words)}</figcaption></figure>"
