"""A model as ONNX, for programs that know nothing of torch; held against torch before it is handed
on.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vitseg.errors import VitsegError, WeightsError
from vitseg.files import written
from vitseg.model.segmenter import Segmenter

TOLERANCE = 1e-4
"""By how much a logit may differ."""


def export_onnx(model: Segmenter, path: str | Path) -> float:
    """Write the model as an ONNX file, and say by how much its logits differ from torch's at most.

    Its input `images` is RGB (B, 3, H, W) uint8 on the model's canvas: scaled to it with the aspect
    kept, padded at the bottom and the right; B is free. Its output `logits` is (B, classes, H, W).
    Colours are normalised inside. Classes and canvas are in the file's metadata. Raises
    WeightsError, and leaves no file, where logits differ by more than TOLERANCE; VitsegError
    without the packages.
    """
    alone, path = model.snapshot().cpu(), Path(path)
    images = _noise(2, model.shape.size)
    try:
        import onnxruntime

        with _quietly():
            program = torch.onnx.export(
                alone,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
    except ImportError as error:
        raise VitsegError(
            f"export: {error.name} is not installed.", "pip install 'vitseg[onnx]'"
        ) from None
    program.model.metadata_props.update(
        {"classes": "\n".join(model.shape.classes), "size": "x".join(map(str, model.shape.size))}
    )
    with written(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program.save(aside := Path(folder) / path.name)
        session = onnxruntime.InferenceSession(aside, providers=["CPUExecutionProvider"])
        apart = max(_apart(alone, session, _noise(batch, model.shape.size)) for batch in (1, 3))
        if apart > TOLERANCE:
            mend = "Keep the model as it is: vitseg.load(folder)."
            raise WeightsError(
                (
                    f"{path}: the exported model's logits differ by {apart:.1e}, allowed are "
                    f"{TOLERANCE:.0e}."
                ),
                mend,
            )
        for file in Path(
            folder
        ).iterdir():  # two where the weights are larger than a file of this kind may be
            file.replace(path.with_name(file.name))
    return apart


def _apart(model: Segmenter, session: object, images: Tensor) -> float:
    with torch.no_grad():
        expected = model(images)
    (found,) = session.run(["logits"], {"images": images.numpy()})
    return float((torch.from_numpy(found) - expected).abs().max())


def _noise(batch: int, size: tuple[int, int]) -> Tensor:
    given = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=given)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the exporter's remarks on torchvision, which is not used here, and on constants that
    it does not fold.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
