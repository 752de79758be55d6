"""A model card: what a saved model is, what it was trained on, what it is worth, and where its
weights come from.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from huggingface_hub import ModelCardData

from vitseg.data.dataset import SegmentationData
from vitseg.errors import RunError
from vitseg.files import write_text
from vitseg.insight.reading import TOLERANCE, Reading, read_images
from vitseg.model.segmenter import load_segmenter
from vitseg.runs.folder import RunFolder
from vitseg.runs.narrate import explain, number_or_na

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
    logged = run.summary["best"]["iou"]
    if reading is None:
        data = SegmentationData(run.recipe.data)
        run.check_split(data.splits)
        reading = read_images(load_segmenter(run.best), data)
    found = reading.scores()["iou"]
    if reading.split != "validation" or abs((found or 0.0) - (logged or 0.0)) > 0.005:
        raise RunError(
            f"reading: {reading.split} images, IoU {number_or_na(found)}; the run has logged "
            f"{number_or_na(logged)} on validation images.",
            "Read the validation images with vitseg.load(folder), without augmentation, or leave "
            "the reading out.",
        )
    path = run.best / "README.md"
    write_text(path, _card(run, reading))
    return path


def _card(run: RunFolder, reading: Reading) -> str:
    """Markdown below a YAML header."""
    summary = run.summary
    header = ModelCardData(
        library_name="vitseg",
        tags=["image-segmentation", "vision-transformer"],
        pipeline_tag="image-segmentation",
    )
    images = ", ".join(f"{n:,} {split}" for split, n in summary["images"].items() if n)
    classes = "\n".join(f"- {i} {name}" for i, name in enumerate(summary["classes"]))
    encoder = "\n".join(f"- {key}: {value}" for key, value in summary["encoder"].items())
    height, width = run.recipe.data.size
    generated = ""
    if summary["data"] == "generated":
        generated = (
            " The images are generated: the figures compare settings and say nothing about real "
            "ones."
        )
    return f"""\
---
{header.to_yaml()}
---

# {summary["name"]}

## How it is used

```python
import vitseg

model = vitseg.load("{run.best.name}")  # this folder
mask = model.predict("image.jpg")  # class ids, at the image's own size
```

`encoder/` is an ordinary transformers folder and loads without vitseg.

## What it tells apart

{classes}

## What it was trained on

{images} images; masks: {summary["masks"]}. Canvas {height} x {width}.{generated}

## How

{explain(run.path)}

## What it is worth

{_worth(reading)}

## Limits

{_LIMITS}

## Where the weights come from

{encoder}

The decoder was trained here. What the encoder's licence asks for holds for these weights too.
"""


def _worth(reading: Reading) -> str:
    found, interval, means = reading.scores(), reading.interval(), reading.means(8)
    over = f" ({interval}, 95 %, bootstrap over images)" if interval else ""
    lines = [
        f"{len(reading.names)} {reading.split} images, at their own size.\n",
        "| measure | value |\n| --- | --- |",
        "| IoU, over all pixels of the set (this is what training logs) "
        f"| {number_or_na(means['data set'])}{over} |",
        f"| IoU, mean over images | {number_or_na(means['images'])} |",
        f"| F1 | {number_or_na(found['f1'])} |",
        f"| accuracy | {number_or_na(found['accuracy'])} |",
        f"| calibration error | {reading.calibration.error():.3f} |\n",
        f"| class | IoU | median border error, pixels (within {TOLERANCE:g}) |",
        "| --- | --- | --- |",
    ]
    for i, (name, iou) in enumerate(zip(reading.classes, found["per_class_iou"], strict=True)):
        border, mine = "", [b[2:] for b in reading.borders if b.class_id == i]
        if mine:
            distance, within = map(median, zip(*mine, strict=True))
            border = f"{distance:.1f} ({100 * within:.0f} %)"
        lines.append(f"| {name.replace('|', '&#124;')} | {number_or_na(iou)} | {border} |")
    return "\n".join(lines)
