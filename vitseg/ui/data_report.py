"""What a look at a data set has found: as text, in a notebook, as JSON, and as one HTML file with
pictures.
"""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

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
        return "\n\n".join(map(str, self._section(SHOWN)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return markup.STYLE + markup.html(
            markup.render("sections", sections=[self._section(SHOWN)])
        )

    def to_json(self) -> str:
        c, found = self.check, {"problem": [], "warning": [], "note": []}
        for f in self._findings:
            found[f.rank].append({"kind": f.kind, "path": shown(f.path), "says": f.says})
        content = {
            "folder": shown(c.root),
            "pairs": c.found,
            "whole": len(c.whole),
            "masks": c.masks,
            "splits": c.splits,
            **{f"{rank}s": words for rank, words in found.items()},
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

    def _section(self, most: int) -> list[Any]:
        """A heading, what was looked at, a paragraph for each kind of problem, warning and note, and
        the tables of classes.
        """
        c, kinds, rows = self.check, defaultdict(list), []
        splits = ", ".join(f"{count} {split}" for split, count in c.splits.items())
        counts = (
            f"{c.found} pairs, {len(c.whole)} whole ({splits})\n"
            f"masks: {c.masks}\n"
            f"problems: {len(c.problems)}, warnings: {len(c.warnings)}, notes: {len(c.notes)}"
        )
        section = [f"Data: {shown(c.root)}", counts]
        for found in self._findings:
            kinds[f"{found.rank.upper()}: {found.kind}"].append(self._short(found))
        for kind, lines in kinds.items():
            said = [f"{kind} ({len(lines)})", *lines[:most]]
            if lines[most:]:
                said.append(f"... and {len(lines) - most} more")
            section.append("\n  ".join(said))
        total = sum((row.pixels for row in c.classes), Counter())
        for row in c.classes:
            cells = {"class": row.name}
            for split in c.splits:
                share = 100 * row.pixels[split] / (total[split] or 1)
                cells[f"{split}: images, pixels"] = f"{row.images[split]:,}, {share:.3g} %"
            rows.append(cells)
        if rows:
            section.append(Table.of(rows, "Classes"))
        if 2 < len(rows) <= 24:
            names = [row.name for row in c.classes]
            rows = [(name, *map(str, n)) for name, n in zip(names, c.together, strict=True)]
            heads = ["together in images", *names]
            section.append(Table(heads, rows, "Which classes occur together"))
        return section

    def _page(self) -> str:
        """With a picture of each file that the first findings are about, of a mask its image, and
        of some of the others.
        """
        c, flagged, others = self.check, {}, []
        for found in self._findings[:PICTURES]:
            if found.path.is_file():
                picture = _thumbnail(c.image_of.get(found.path, found.path))
                flagged[found.path] = self._short(found), picture
        for name in list(c.whole)[:: len(c.whole) // PICTURES + 1] if c.map else ():
            image, ids = c.whole[name].load()
            picture = pictures.with_mask(image, c.map.table[ids], 150)
            others.append((name, pictures.data_uri(picture)))
        return markup.page(
            self._section(len(self._findings)),
            ("Flagged", markup.render("sheet", figures=flagged.values())),
            ("Others", markup.render("sheet", figures=others)),
        )

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
        return pictures.data_uri(pictures.tile(open_rgb(path), 300))
    except UNREADABLE:
        return ""
