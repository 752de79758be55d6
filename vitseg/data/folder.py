"""A folder of images and masks, looked through before anything is trained: all that is wrong is
said at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitseg.data.look import Look, Watch, look_at, unwatched
from vitseg.data.masks import MaskCode, find_code, with_classes_file
from vitseg.data.pairs import Pair, Problem, find_pairs, problem
from vitseg.errors import DataError
from vitseg.settings import Folder
from vitseg.words import shown


@dataclass(frozen=True, slots=True)
class Found:
    """A folder that has been looked through: `looks` are those of the `pairs`; `code` is None where
    no code fits the masks, for the reason `unclear`. `warnings` are of the names and of the looks;
    they stop nothing.
    """

    root: Path
    pairs: list[Pair]
    looks: list[Look]
    problems: list[Problem]
    code: MaskCode | None
    unclear: DataError | None = None
    warnings: list[Problem] = field(default_factory=list)

    def without(self, kinds: Collection[str]) -> Found:
        """The pairs that have no problem of these kinds, and the problems of other kinds."""
        bad = {p.path for p in self.problems if p.kind in kinds}
        kept = [
            (p, look)
            for p, look in zip(self.pairs, self.looks, strict=True)
            if not {p.image, p.mask} & bad
        ]
        left = [p for p in self.problems if p.kind not in kinds]
        return replace(
            self, pairs=[p for p, _ in kept], looks=[look for _, look in kept], problems=left
        )


OF_A_PAIR = (
    "no mask",
    "no image",
    "unreadable image",
    "unreadable mask",
    "sizes differ",
    "unknown label",
    "masks of two kinds",
    "name that is no text",
    "palette differs",
)
"""Kinds of problems that concern a pair alone, which may be left out."""


def read_folder(cfg: Folder) -> tuple[list[Pair], MaskCode, list[Look]]:
    """All pairs of a folder, the code of their masks, and what was seen of each pair; with
    `cfg.on_problem="skip"` of those that are whole.

    Raises DataError with everything that is wrong, not only the first: missing masks, unreadable
    files, sizes that differ, labels outside the classes.
    """
    found = look_through(cfg)
    if found.unclear and len(found.problems) == 1:
        raise found.unclear
    if cfg.on_problem == "refuse":
        if found.problems:
            raise _report(found.root, [p.says for p in found.problems])
        return found.pairs, found.code, found.looks
    kept = found.without(OF_A_PAIR)
    if kept.problems or not kept.pairs:
        raise _report(found.root, [p.says for p in kept.problems or found.problems])
    left_out = len({p.path for p in found.problems})
    words = (
        f"; {left_out} file{'s' * (left_out != 1)} with problems and what belongs to them left out"
        if left_out
        else ""
    )
    return (
        kept.pairs,
        replace(found.code, description=f"{found.code.description}{words}"),
        kept.looks,
    )


def look_through(cfg: Folder, watch: Watch = unwatched) -> Found:
    """Find every pair, look at it, and say all that is wrong. Raises DataError where there is no
    data set at all.
    """
    root = Path(cfg.path).expanduser()
    names = find_pairs(root)
    cfg = with_classes_file(cfg)
    looks = look_at(names.pairs, watch)
    problems = names.problems + [p for look in looks for p in look.problems]
    good = [
        (pair, look) for pair, look in zip(names.pairs, looks, strict=True) if not look.problems
    ]
    odd = _of_another_kind(cfg, good)
    good = [(pair, look) for pair, look in good if pair.mask not in odd]
    problems += [problem("masks of two kinds", mask, says) for mask, says in odd.items()]
    problems += [
        problem("palette differs", mask, says) for mask, says in _of_another_palette(good).items()
    ]
    stored = {v for _, look in good for v in look.counts}
    code = unclear = None
    try:
        code = find_code(
            cfg, stored, any(look.color for _, look in good), [pair.image.stem for pair, _ in good]
        )
    except DataError as error:
        unclear = error
        problems.append(Problem("unclear masks", root, str(error)))
    else:
        problems += [strange for pair, look in good if (strange := _unknown(pair, look, code))]
    warnings = names.warnings + [w for look in looks for w in look.warnings]
    return Found(root, names.pairs, looks, problems, code, unclear, warnings)


def _of_another_kind(cfg: Folder, good: list[tuple[Pair, Look]]) -> dict[Path, str]:
    """Masks in colour and masks in grey cannot share a code: those of the kind that was not
    declared, else of the rarer one.
    """
    colored = sum(look.color for _, look in good)
    if cfg.encoding == "rgb" or cfg.colors is not None:
        color, why = True, "colours are declared"
    elif cfg.encoding != "auto":
        color, why = False, f"encoding={cfg.encoding!r} is declared"
    else:
        color = 2 * colored > len(good)
        why = f"other masks are {'in colour' if color else 'grey'}"
    says = f"is {'grey' if color else 'in colour'}, where {why}."
    return {pair.mask: says for pair, look in good if look.color is not color}


def _of_another_palette(good: list[tuple[Pair, Look]]) -> dict[Path, str]:
    """Masks whose palette gives an index another colour than most palettes do: the index may mean
    another class there.
    """
    colors: dict[int, Counter[tuple[int, ...]]] = {}
    for _, look in good:
        for index, color in look.palette.items():
            colors.setdefault(index, Counter())[color] += 1
    usual = {index: counts.most_common(1)[0] for index, counts in colors.items()}
    odd = {}
    for pair, look in good:
        if strange := sorted(
            index for index, color in look.palette.items() if color != usual[index][0]
        ):
            (color, count), here = usual[strange[0]], look.palette[strange[0]]
            others = f"{color} in {count} other mask{'s' * (count != 1)}"
            hint = (
                "If its indices are right, save it without one: "
                "Image.fromarray(np.asarray(Image.open(path))).save(path)."
            )
            odd[pair.mask] = (
                f"palette differs: index {strange[0]} is {here} here and {others}. {hint}"
            )
    return odd


def _unknown(pair: Pair, look: Look, code: MaskCode) -> Problem | None:
    strange = code.unknown(set(look.counts))
    if not strange:
        return None
    counts = ", ".join(f"{code.show(v)} in {look.counts[v]} pixels" for v in strange[:6])
    allowed = ", ".join(code.show(v) for v in sorted(code.values)[:16])
    says = f"labels outside the classes: {counts}; allowed: {allowed} ({code.description})."
    return problem("unknown label", pair.mask, says)


def _report(root: Path, problems: Iterable[str]) -> DataError:
    problems = list(problems)
    head = f"{shown(root)}: {len(problems)} problem{'s' if len(problems) > 1 else ''}."
    more = [f"... and {len(problems) - 20} more."] if len(problems) > 20 else []
    declare = (
        ", or declare the classes in classes.json" if any("classes" in p for p in problems) else ""
    )
    return DataError(
        "\n  ".join([head, *problems[:20], *more]), f"\nMend or remove these files{declare}."
    )
