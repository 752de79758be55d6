"""A model as ONNX, for programs that know nothing of torch; held against torch before it is handed
on.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

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
    alone, path, size = model.snapshot().cpu(), Path(path), model.shape.size
    try:
        import onnxruntime

        with _quietly():
            program = torch.onnx.export(
                alone,
                (torch.zeros(2, 3, *size, dtype=torch.uint8),),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
    except ImportError as error:
        hint = "pip install 'vitseg[onnx]'"
        raise VitsegError(f"export: {error.name} is not installed.", hint) from None
    about = {"classes": "\n".join(model.shape.classes), "size": "{}x{}".format(*size)}
    program.model.metadata_props.update(about)
    apart, given = 0.0, torch.Generator().manual_seed(0)
    with written(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / path.name
        program.save(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for batch in (1, 3):
            images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8, generator=given)
            (found,) = session.run(["logits"], {"images": images.numpy()})
            with torch.no_grad():
                apart = max(apart, float((alone(images) - torch.from_numpy(found)).abs().max()))
        if apart > TOLERANCE:
            raise WeightsError(
                f"{path}: the exported logits differ by {apart:.1e}; allowed: {TOLERANCE:.0e}.",
                "Keep the model as it is: vitseg.load(folder).",
            )
        for file in Path(folder).iterdir():  # two where the weights are too large for one
            file.replace(path.with_name(file.name))
    return apart


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the exporter's remarks on torchvision, which is not used here, and on constants that
    it does not fold.
    """
    with warnings.catch_warnings(action="ignore"), ExitStack() as afterwards:
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logger = logging.getLogger(name)
            afterwards.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield
