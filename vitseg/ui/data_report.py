"""What a look at a data set has found: as text, in a notebook, as JSON, and as one HTML file with
pictures.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from markupsafe import Markup
from tqdm.auto import tqdm

from vitseg.data.check import Check
from vitseg.data.folder import Finding, Look
from vitseg.errors import RunError
from vitseg.images import UNREADABLE, open_rgb, overlay
from vitseg.settings import Data, Folder
from vitseg.ui import markup, pictures
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
        said = [("said", "", text) for text in (self._head(), *self._said())]
        body = markup.render("lines", lines=said) + Markup("").join(self._tables())
        return markup.STYLE + markup.html(body)

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
        found = []
        for items, word in ((c.problems, "problem"), (c.warnings, "warning"), (c.notes, "note")):
            found.append(f"{len(items)} {word}{'s' * (len(items) != 1)}")
        return (
            f"{shown(c.root)}: {c.found} pairs, {len(c.whole)} whole ({splits})\n"
            f"masks: {c.masks}\n{', '.join(found)}"
        )

    def _said(self, most: int | None = SHOWN) -> Iterator[str]:
        """A paragraph for each kind of problem, warning and note."""
        c = self.check
        for rank, items in (("PROBLEM", c.problems), ("WARNING", c.warnings), ("note", c.notes)):
            kinds: dict[str, list[str]] = {}
            for problem in items:
                kinds.setdefault(problem.kind, []).append(self._short(problem))
            for kind, lines in kinds.items():
                said = [f"{rank}: {kind} ({len(lines)})", *lines[:most]]
                if most and len(lines) > most:
                    said.append(f"... and {len(lines) - most} more")
                yield "\n  ".join(said)

    def _tables(self) -> Iterator[Table]:
        c, rows = self.check, []
        if not c.classes:
            return
        total: Counter[str] = Counter()
        for row in c.classes:
            total.update(row.pixels)
        for row in c.classes:
            cells = [row.name]
            for split in c.splits:
                share = row.pixels.get(split, 0) / (total[split] or 1)
                cells.append(_images_and_pixels(row.images.get(split, 0), share))
            rows.append(tuple(cells))
        heads = ("class", *(f"{split}: images, pixels" for split in c.splits))
        yield Table(heads, tuple(rows), "Classes")
        if 2 < len(c.classes) <= 24:
            names = [row.name for row in c.classes]
            rows = [
                (name, *map(str, counts)) for name, counts in zip(names, c.together, strict=True)
            ]
            heads = ("together in images", *names)
            yield Table(heads, tuple(rows), "Which classes occur together")

    def _page(self) -> str:
        whole = list(self.check.whole)
        some = whole[:: max(1, len(whole) // PICTURES)][:PICTURES]
        good = [("", name, self._picture(name)) for name in some]
        sheets = [("Flagged", self._flagged()), ("Some of the others", good)]
        return markup.render(
            "data_report",
            title=f"Data: {shown(self.check.root)}",
            said=[self._head(), *self._said(most=None)],
            tables=self._tables(),
            sheets=[sheet for sheet in sheets if sheet[1]],
        )

    def _flagged(self) -> list[tuple[str, str, str]]:
        """A picture for each file that something was said of, of a mask its image, as far as it can
        be opened.
        """
        c, first = self.check, {}
        for problem in [*c.problems, *c.warnings, *c.notes]:
            if problem.path.is_file():
                first.setdefault(problem.path, problem)
        figures = []
        for path, problem in list(first.items())[:PICTURES]:
            figures.append(("", self._short(problem), _opened(c.image_of.get(path, path))))
        return figures

    def _short(self, problem: Finding) -> str:
        """Its sentence, paths beginning in the folder that the head names."""
        return problem.says.replace(f"{shown(self.check.root)}{os.sep}", "")

    def _picture(self, name: str) -> str:
        """Image and mask together."""
        return _opened(self.check.whole[name].pair.image, lambda: self.check.ids(name))


def check(folder: str | Path | Data) -> DataReport:
    """Look at every image and mask of a folder, or of a recipe's `data`; nothing is changed.

    Raises DataError where there is no data set to look at.
    """
    data = (
        folder
        if isinstance(folder, Data)
        else Data(source=Folder(path=str(Path(folder).absolute())))
    )
    return DataReport(Check(data, _counted))


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


def _images_and_pixels(images: int, share: float) -> str:
    if not images:
        return "absent"
    percent, digits = 100 * share, 2
    if percent >= 1:
        digits = 0 if percent >= 10 else 1
    return f"{images:,}, {percent:.{digits}f} %"


def _opened(image: Path, ids: Callable[[], np.ndarray | None] = lambda: None) -> str:
    """A small picture as a data URI; empty if it cannot be opened."""
    try:
        opened, mask = open_rgb(image), ids()
    except UNREADABLE:
        return ""
    if mask is not None:
        opened = overlay(opened, mask)
    opened.thumbnail((300, 300))
    return pictures.data_uri(opened)
