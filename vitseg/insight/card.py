"""A model card: what a saved model is, what it was trained on, what it is worth, and where its
weights come from.
"""

from pathlib import Path

import pandas as pd

from vitseg.data.dataset import SegmentationData
from vitseg.errors import RunError
from vitseg.files import write_text
from vitseg.insight.reading import TOLERANCE, Reading, in_text, read
from vitseg.model.segmenter import load_segmenter
from vitseg.runs.folder import RunFolder
from vitseg.runs.narrate import explain, number_or_na


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
        reading = read(load_segmenter(run.best), data)
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
    images = ", ".join(f"{n:,} {split}" for split, n in summary["images"].items() if n)
    encoder = "\n".join(f"- {key}: {value}" for key, value in summary["encoder"].items())
    height, width = run.recipe.data.size
    return f"""\
---
library_name: vitseg
pipeline_tag: image-segmentation
tags:
- image-segmentation
- vision-transformer
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

{_markdown(reading.by_class())}

Of the borders `distance` is the mean way from one to the other in pixels, and `within` the share of
them with at most {TOLERANCE:g} to go: medians over images that hold the class and a prediction of
it.

## What it was trained on

{images} images, source: {summary["data"]}; masks: {summary["masks"]}. Canvas {height} x {width}.

## How

{explain(run.path)}

## What it is worth

{len(reading.names)} {reading.split} images, at their own size.

{_markdown(reading.summary())}

## Limits

- The scores are of images like the validation images: other cameras, light, people or places were
  not tried.
- The validation images chose the weights, so their score is a little too good; a test set that
  chose nothing says more.
- The interval is over images. It knows nothing of what another seed would have given: an ablation
  over seeds does.
- Generated images compare settings; their scores say nothing about real ones.
- It is no medical device, and was examined for no use in which an error does harm.

## Where the weights come from

{encoder}

The decoder was trained here. What the encoder's licence asks for holds for these weights too.
"""


def _markdown(table: pd.DataFrame) -> str:
    heads, rows = in_text(table)
    lines = []
    for row in (heads, ["---"] * len(heads), *rows):
        cells = [cell.replace("|", "&#124;") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
