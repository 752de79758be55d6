"""What a look at a data set has found: as text, in a notebook, as JSON, and as one HTML file with
pictures.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from vitseg.data.check import Check
from vitseg.data.folder import Finding
from vitseg.files import written
from vitseg.images import UNREADABLE, open_rgb
from vitseg.settings import Data, Folder
from vitseg.ui import markup, pictures
from vitseg.ui.table import Table
from vitseg.words import shown

SHOWN = 12
"""Lines of one kind that are shown in a notebook or on a terminal; the JSON and the page have all.
"""

PICTURES = 24


class DataReport:
    """Made by `vitseg.check(folder)`. `check` holds what was found; `ok` is whether nothing stops a
    training.
    """

    def __init__(self, check: Check):
        self.check, self.ok = check, not check.problems
        self._findings = [*check.problems, *check.warnings, *check.notes]

    def __str__(self) -> str:
        return "\n\n".join([*self._said(SHOWN), *map(str, self._tables())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return markup.STYLE + markup.html(self._body(SHOWN))

    def to_json(self) -> str:
        c, said = self.check, {"problems": [], "warnings": [], "notes": []}
        for found in c.findings:
            words = {"kind": found.kind, "path": shown(found.path), "says": found.says}
            said[f"{found.rank}s"].append(words)
        content = {
            "folder": shown(c.root),
            "pairs": c.found,
            "whole": len(c.whole),
            "masks": c.masks,
            "splits": c.splits,
            **said,
            "classes": [row._asdict() for row in c.classes],
            "together": c.together,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | Path, *, page: bool = True) -> Path:
        """Write the page, with all that was found and pictures of it, or the JSON. Raises RunError
        if it cannot be written.
        """
        path = Path(path).expanduser().absolute()
        with written(path):
            path.write_text(self._page() if page else self.to_json(), encoding="utf-8")
        return path

    def _said(self, most: int) -> Iterator[str]:
        """What was looked at, then a paragraph for each kind of problem, warning and note."""
        c = self.check
        splits = ", ".join(f"{count} {split}" for split, count in c.splits.items())
        yield (
            f"{shown(c.root)}: {c.found} pairs, {len(c.whole)} whole ({splits})\n"
            f"masks: {c.masks}\n"
            f"problems: {len(c.problems)}, warnings: {len(c.warnings)}, notes: {len(c.notes)}"
        )
        kinds = defaultdict(list)
        for found in self._findings:
            kinds[f"{found.rank.upper()}: {found.kind}"].append(self._short(found))
        for kind, lines in kinds.items():
            said = [f"{kind} ({len(lines)})", *lines[:most]]
            if lines[most:]:
                said.append(f"... and {len(lines) - most} more")
            yield "\n  ".join(said)

    def _tables(self) -> Iterator[Table]:
        c = self.check
        names, rows = [row.name for row in c.classes], []
        for row in c.classes:
            cells = {"class": row.name}
            for split in c.splits:
                total = sum(other.pixels[split] for other in c.classes)
                share = 100 * row.pixels[split] / (total or 1)
                cells[f"{split}: images, pixels"] = f"{row.images[split]:,}, {share:.3g} %"
            rows.append(cells)
        if rows:
            yield Table.of(rows, "Classes")
        if 2 < len(rows) <= 24:
            rows = [(name, *map(str, n)) for name, n in zip(names, c.together, strict=True)]
            yield Table(["together in images", *names], rows, "Which classes occur together")

    def _body(self, most: int, **sheets: list[tuple[str, str]]) -> Markup:
        said, tables = self._said(most), self._tables()
        return markup.render("data_report", said=said, tables=tables, sheets=sheets)

    def _page(self) -> str:
        """With a picture of each file that something was said of, of a mask its image, and of some
        of the others.
        """
        c, flagged, others = self.check, {}, []
        for found in self._findings:
            if len(flagged) < PICTURES and found.path.is_file() and found.path not in flagged:
                picture = _thumbnail(c.image_of.get(found.path, found.path))
                flagged[found.path] = self._short(found), picture
        some = list(c.whole)[:: max(1, len(c.whole) // PICTURES)][:PICTURES]
        for name in some if c.map else ():
            image, ids = c.whole[name].load()
            picture = pictures.with_mask(image, c.map.table[ids], 150)
            others.append((name, pictures.data_uri(picture)))
        body = self._body(len(self._findings), Flagged=list(flagged.values()), Others=others)
        return markup.page(f"Data: {shown(c.root)}", body)

    def _short(self, found: Finding) -> str:
        """Its sentence, paths beginning in the folder that the head names."""
        return found.says.replace(f"{shown(self.check.root)}{os.sep}", "")


def check(folder: str | Path | Data) -> DataReport:
    """Look at every image and mask of a folder, or of a recipe's `data`; nothing is changed.

    Raises DataError where there is no data set to look at.
    """
    if not isinstance(folder, Data):
        folder = Data(source=Folder(path=str(Path(folder).absolute())))
    return DataReport(Check(folder))


def _thumbnail(path: Path) -> str:
    """A small picture as a data URI; empty if it cannot be opened."""
    try:
        picture = open_rgb(path)
    except UNREADABLE:
        return ""
    picture.thumbnail((300, 300))
    return pictures.data_uri(picture)
