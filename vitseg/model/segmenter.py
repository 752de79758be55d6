"""The segmenter: a ViT encoder, four skips, a decoder. From an image to a mask at the image's own
size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitseg.draws import seed_for
from vitseg.errors import ConfigError, DataError, WeightsError
from vitseg.images import UNREADABLE, Size, fit_image, fitted_size, open_rgb, padded_image, to_rgb
from vitseg.model.decoder import build_decoder
from vitseg.model.encoder import Encoder, Levels
from vitseg.model.freeze import EMBEDDINGS, model_parts, set_freeze_depth
from vitseg.model.weights import load_folder, load_vit, write_color_statistics, write_index
from vitseg.model.windows import window_logits
from vitseg.settings import Model
from vitseg.words import Words, explain

_VIT = "encoder.vit."


class Shape(Words):
    """All that is needed to build the model again, weights apart. Kept as `config.json`."""

    format: Literal[2] = 2
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=254)]
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    skip_depths: tuple[int, int, int, int]
    decoder: Literal["lean", "unet", "linear"]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: dict[str, str]


class Segmenter(nn.Module):
    """RGB images (B, 3, H, W), uint8 or float in 0..1, to logits (B, classes, H, W). Any H and W.

    `forward` is prefix, the frozen blocks without gradient, then suffix, the blocks that train and
    the decoder.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, shape: Shape):
        super().__init__()
        self.encoder, self.decoder, self.shape = encoder, decoder, shape
        self.register_buffer("mean", torch.tensor(shape.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(shape.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.suffix(self.prefix(images), tuple(images.shape[2:]))

    @torch.no_grad()
    def prefix(self, images: Tensor) -> Levels:
        """What the frozen blocks make of the images: the skip levels among them, and the level at
        the cut.
        """
        encoder = self.encoder
        x = self.normalise(images)
        return encoder.run(
            encoder.embed(x), 0, encoder.cut, set(self.shape.skip_depths), tuple(x.shape[2:])
        )

    def suffix(self, levels: Levels, size: Size) -> Tensor:
        """From the frozen levels on: logits (B, classes, *size)."""
        encoder, padded = self.encoder, self.padded(size)
        depths = set(self.shape.skip_depths)
        levels = levels | encoder.run(
            levels[encoder.cut], encoder.cut, max(depths | {encoder.cut}), depths, padded
        )
        skips = [encoder.to_map(levels[d], padded) for d in self.shape.skip_depths]
        logits = self.decoder(skips, padded)
        return logits[:, :, : size[0], : size[1]]

    def normalise(self, images: Tensor) -> Tensor:
        """RGB to the encoder's own statistics, padded with their mean to whole patches, at the
        bottom and right.
        """
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        x = (x - self.mean) / self.std
        height, width = self.padded(tuple(x.shape[2:]))
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))

    def padded(self, size: Size) -> Size:
        patch = self.encoder.patch
        return -(-size[0] // patch) * patch, -(-size[1] // patch) * patch

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def make(self) -> list[Any]:
        """What decides its numbers besides its weights: configuration, attention, number format,
        colour statistics.
        """
        vit = self.encoder.vit
        config = {
            k: v
            for k, v in vit.config.to_dict().items()
            if not k.startswith(("_", "transformers_version"))
        }
        return [
            config,
            vit.config._attn_implementation,
            str(vit.dtype),
            self.shape.mean,
            self.shape.std,
        ]

    def snapshot(self) -> Segmenter:
        """A copy in eval mode, for other cells to use while this one trains. Take it between two
        steps.
        """
        return copy.deepcopy(self).eval()

    def predict(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """Class ids (h, w) uint8 of one image at its own size. An array is RGB (h, w, 3) uint8.

        Raises DataError for anything that is no image.
        """
        return likeliest(self.logits(image)[None])[0].to(torch.uint8).cpu().numpy()

    def logits(self, image: str | Path | Image.Image | np.ndarray) -> Tensor:
        """What `predict` takes the largest of: logits (classes, h, w) of one image at its own size,
        in eval mode.
        """
        rgb = _as_rgb(image)
        return restored(self._logits_of(self.canvas(rgb)[0]), (rgb.height, rgb.width))

    def canvas(self, image: Image.Image) -> Tensor:
        """An RGB image as the network sees it: (1, 3, H, W) uint8, fitted to the size that the
        model was trained at.
        """
        return _pixels(fit_image(image, self.shape.size))[None].to(self.device)

    def predict_windows(
        self, image: str | Path | Image.Image | np.ndarray, overlap: float = 0.5
    ) -> np.ndarray:
        """Like `predict`, but nothing is scaled: windows of the network's canvas lie over the
        image, logits are averaged.

        For images much larger than the canvas, on which a thing is as many pixels large as it was
        in training; with a crop in `data.crop`, say. `overlap` is the share of a window that the
        next one repeats. An image smaller than the canvas is one padded window.
        """
        rgb, size = _as_rgb(image), self.shape.size
        pixels = _pixels(padded_image(rgb, size))
        logits = window_logits(pixels, size, overlap, self._logits_of)[:, : rgb.height, : rgb.width]
        return likeliest(logits[None])[0].to(torch.uint8).numpy()

    def _logits_of(self, pixels: Tensor) -> Tensor:
        """Of one image (3, H, W) uint8: logits (classes, H, W), in eval mode."""
        with in_eval_mode(self), torch.no_grad():
            return self(pixels[None].to(self.device))[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """`config.json`, `decoder.safetensors`, and `encoder/`, which transformers can load by
        itself: a file for each part, so that parts that are equal can be stored once.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(
            self.shape.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )
        files = save_parts(self, self.state_dict(), folder)
        write_index(self.encoder.vit, files, folder / "encoder")
        write_color_statistics(folder / "encoder", self.shape.mean, self.shape.std)


def _as_rgb(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f"image: an array {image.shape} of {image.dtype}.",
                "Give RGB (h, w, 3) uint8, or a path.",
            )
        return Image.fromarray(image)
    try:
        return to_rgb(image) if isinstance(image, Image.Image) else open_rgb(image)
    except UNREADABLE as error:
        raise DataError(f"{image}: cannot be read as an image ({error}).") from None


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@contextmanager
def in_eval_mode(model: Segmenter) -> Iterator[None]:
    """Everything in eval mode, and afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def restored(logits: Tensor, original: Size) -> Tensor:
    """Logits (classes, H, W) of a canvas, at the image's original size (classes, h, w)."""
    height, width = fitted_size(original, tuple(logits.shape[1:]))
    inside = logits[None, :, :height, :width].float()
    if (height, width) != original:
        inside = F.interpolate(inside, size=original, mode="bilinear", align_corners=False)
    return inside[0]


def restore(logits: Tensor, original: Size) -> Tensor:
    """Logits (classes, H, W) of a canvas to class ids (h, w) uint8 at the image's original size."""
    return likeliest(restored(logits, original)[None])[0].to(torch.uint8)


def likeliest(logits: Tensor) -> Tensor:
    """Class ids (B, H, W) int64 of logits (B, classes, H, W), as `argmax(1)` gives them, which is
    far slower on a CPU.
    """
    return logits.max(1).indices


def save_parts(model: Segmenter, weights: dict[str, Tensor], folder: Path) -> list[Path]:
    """Write weights, by their names in the model, a file for each part: `decoder.safetensors` and
    `encoder/<part>.safetensors`. Returns the files.
    """
    part_of = {}
    for part, found in model_parts(model).items():
        for parameter in found.parameters:
            part_of[id(parameter)] = part
    own = model.state_dict(keep_vars=True)
    files: dict[Path, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if name.startswith("decoder."):
            file = folder / "decoder.safetensors"
        else:
            part = part_of.get(id(own[name]), EMBEDDINGS)
            file = folder / "encoder" / f"{part.replace(' ', '-')}.safetensors"
        inner = name.removeprefix("decoder.").removeprefix(_VIT)
        files.setdefault(file, {})[inner] = tensor.contiguous()
    for file, tensors in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # another run may have a link to it
        save_file(tensors, file, {"format": "pt"})
    return list(files)


def load_parts(folder: Path) -> dict[str, Tensor]:
    """What `save_parts` wrote; or the one file beside `folder` that was in its place before.

    Raises OSError or SafetensorError.
    """
    if folder.with_suffix(".safetensors").exists():
        return load_file(folder.with_suffix(".safetensors"))
    weights = {f"decoder.{k}": v for k, v in load_file(folder / "decoder.safetensors").items()}
    for file in sorted(folder.glob("encoder/*.safetensors")):
        weights |= {_VIT + k: v for k, v in load_file(file).items()}
    return weights


def build_segmenter(cfg: Model, classes: tuple[str, ...], size: Size, seed: int) -> Segmenter:
    """The model of a recipe: pretrained encoder, a decoder drawn from `seed`. All blocks frozen, in
    eval mode.
    """
    loaded = load_vit(cfg.encoder)
    encoder = Encoder(loaded.vit)
    depths = cfg.skip_depths or tuple(max(1, round(encoder.depth * i / 4)) for i in (1, 2, 3, 4))
    if depths[-1] > encoder.depth:
        raise ConfigError("model.skip_depths", depths, f"four rising numbers in 1..{encoder.depth}")
    if len(set(depths)) < 4:
        raise ConfigError(
            "model.skip_depths", depths, "four different depths", "The encoder has too few blocks."
        )
    decoder = build_decoder(
        cfg.decoder, encoder.width, len(classes), cfg.dropout, seed_for(seed, "decoder")
    )
    shape = Shape(
        classes=tuple(classes),
        size=size,
        skip_depths=depths,
        decoder=cfg.decoder,
        dropout=cfg.dropout,
        mean=loaded.mean,
        std=loaded.std,
        source=loaded.source,
    )
    model = Segmenter(encoder, decoder, shape)
    set_freeze_depth(model, 0)
    return model.eval()


def load_segmenter(folder: str | Path) -> Segmenter:
    """The model of a `save_pretrained` folder, or of a run's `best/`. Frozen and in eval mode.

    Raises WeightsError, naming the file, when the folder holds no model or one that does not fit
    its config.
    """
    folder = Path(folder).expanduser()
    folder = folder / "best" if (folder / "best").is_dir() else folder
    mend = "Give a run folder that has ended, or its best/."
    try:
        shape = Shape.model_validate_json((folder / "config.json").read_bytes())
    except ValidationError as error:
        raise WeightsError(
            f"{folder / 'config.json'}: {explain(error, Shape).problem}", mend
        ) from None
    except OSError as error:
        raise WeightsError(
            f"{folder / 'config.json'}: not the config of a vitseg model ({error}).", mend
        ) from None
    encoder = Encoder(load_folder(folder / "encoder"))
    if not 1 <= shape.skip_depths[0] <= shape.skip_depths[-1] <= encoder.depth:
        raise WeightsError(
            f"{folder / 'config.json'}: skip_depths {shape.skip_depths} of {encoder.depth} blocks.",
            mend,
        )
    decoder = build_decoder(shape.decoder, encoder.width, len(shape.classes), shape.dropout, 0)
    model = Segmenter(encoder, decoder, shape)
    try:
        decoder.load_state_dict(load_file(folder / "decoder.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{folder / 'decoder.safetensors'}: {error}", mend) from None
    set_freeze_depth(model, 0)
    return model.eval()
