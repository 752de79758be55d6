"""A model card: what a saved model is, what it was trained on, what it is worth, and where its
weights come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from huggingface_hub import ModelCardData

from vitseg.data.dataset import SegmentationData
from vitseg.errors import RunError
from vitseg.files import write_text
from vitseg.insight.borders import TOLERANCE
from vitseg.insight.reading import Reading, read_images
from vitseg.model.segmenter import load_segmenter
from vitseg.runs.explain import explain
from vitseg.runs.folder import RunFolder
from vitseg.runs.summary import number_or_na

_USE = """```python
import vitseg

model = vitseg.load("{folder}")  # this folder
mask = model.predict("image.jpg")  # class ids, at the image's own size
```

`encoder/` is an ordinary transformers folder and loads without vitseg."""

_LIMITS = """\
- The scores are of images like the validation images: other cameras, light, people or places were
  not tried.
- The validation images chose the weights, so their score is a little too good; a test set that
  chose nothing says more.
- The interval is over images. It knows nothing of what another seed would have given: an ablation
  over seeds does.
- It is no medical device, and was examined for no use in which an error does harm."""


def write_card(folder: str | Path, reading: Reading | None = None) -> Path:
    """Write `best/README.md` of a run that has ended, as the Hugging Face hub reads it. `reading`
    is that of its best weights.

    Raises RunError where the run has not ended, its images are others by now, or `reading` is not
    of these weights.
    """
    run = RunFolder(folder)
    recipe, summary = run.recipe, run.summary
    if reading is None:
        data = SegmentationData(recipe.data)
        run.check_split(data.splits)
        reading = read_images(load_segmenter(run.best), data)
    _refuse_another(reading, summary["best"]["iou"])
    path = run.best / "README.md"
    write_text(path, card(summary, run, reading))
    return path


def _refuse_another(reading: Reading, logged: float | None) -> None:
    """Raises RunError unless the reading is of validation images and scores what was logged,
    rounding apart.
    """
    found = reading.scores()["iou"]
    if reading.split != "validation" or abs((found or 0.0) - (logged or 0.0)) > 0.005:
        was = f"{reading.split} images, IoU {number_or_na(found)}"
        mend = (
            "Read the validation images with vitseg.load(folder), without augmentation, or "
            "leave the reading out."
        )
        raise RunError(
            f"reading: {was}; the run has logged {number_or_na(logged)} on validation images.", mend
        )


def card(summary: dict[str, Any], run: RunFolder, reading: Reading) -> str:
    """The card's text, Markdown below a YAML header."""
    encoder = summary["encoder"]
    header = ModelCardData(
        library_name="vitseg",
        tags=["image-segmentation", "vision-transformer"],
        pipeline_tag="image-segmentation",
    )
    images = ", ".join(f"{n:,} {split}" for split, n in summary["images"].items() if n)
    generated = (
        " The images are generated: the figures compare settings and say nothing about real ones."
        * (summary["data"] == "generated")
    )
    told = {
        "How it is used": _USE.format(folder=run.best.name),
        "What it tells apart": _listed(f"{i} {name}" for i, name in enumerate(summary["classes"])),
        (
            "What it was trained on"
        ): f"{images} images; masks: {summary['masks']}. Canvas {_size(run)}.{generated}",
        "How": explain(run.path),
        "What it is worth": _worth(reading),
        "Limits": _LIMITS,
        "Where the weights come from": _listed(f"{key}: {value}" for key, value in encoder.items())
        + (
            "\n\nThe decoder was trained here. What the encoder's licence asks for holds for these "
            "weights too."
        ),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in told.items())
    return f"---\n{header.to_yaml()}\n---\n\n# {summary['name']}\n\n{body}\n"


def _worth(reading: Reading) -> str:
    scores, interval, means = reading.scores(), reading.interval(), reading.means(8)
    size = {
        "data set": "over all pixels of the set (this is what training logs)",
        "images": "mean over images",
    }
    rows = [(f"IoU, {words}", number_or_na(means[key])) for key, words in size.items()]
    if interval:
        rows[0] = (rows[0][0], f"{rows[0][1]} ({interval}, 95 %, bootstrap over images)")
    rows += [("F1", number_or_na(scores["f1"])), ("accuracy", number_or_na(scores["accuracy"]))]
    rows += [("calibration error", f"{reading.calibration.error():.3f}")]
    classes = [
        (name, number_or_na(iou), _border(reading, i))
        for i, (name, iou) in enumerate(zip(reading.classes, scores["per_class_iou"], strict=True))
    ]
    border = f"median border error, pixels (within {TOLERANCE:g})"
    return (
        f"{len(reading.names)} {reading.split} images, at their own size.\n\n"
        f"{_table(('measure', 'value'), rows)}\n\n{_table(('class', 'IoU', border), classes)}"
    )


def _border(reading: Reading, class_id: int) -> str:
    of_class = [b for b in reading.borders if b.class_id == class_id]
    if not of_class:
        return ""
    return (
        f"{median(b.distance for b in of_class):.1f} "
        f"({100 * median(b.within for b in of_class):.0f} %)"
    )


def _size(run: RunFolder) -> str:
    return " x ".join(map(str, run.recipe.data.size))


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines
    )
