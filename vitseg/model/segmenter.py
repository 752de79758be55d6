"""The segmenter: a ViT encoder, four skips, a decoder. From an image to a mask at the image's own
size.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from vitseg.draws import seed_for
from vitseg.errors import ConfigError, DataError
from vitseg.files import write_json, write_text
from vitseg.images import UNREADABLE, Size, fit_image, fitted_size, open_rgb, padded_image, to_rgb
from vitseg.model.decoder import build_decoder, resize
from vitseg.model.encoder import Encoder, Levels
from vitseg.model.freeze import EMBEDDINGS, model_parts, set_freeze_depth, trained_parts
from vitseg.model.weights import COLORS, guarded, load_folder, load_vit
from vitseg.settings import Fraction, Model
from vitseg.words import Words

_VIT, _DECODER = "encoder.vit.", "decoder."

Weights = dict[str, Tensor]

Picture = str | Path | Image.Image | np.ndarray
"""An image, or its file. An array is RGB (h, w, 3) uint8."""


class Shape(Words):
    """All that is needed to build the model again, weights apart. Kept as `config.json`."""

    format: Literal[2] = 2
    classes: tuple[str, ...] = Field(min_length=1, max_length=254)
    size: tuple[PositiveInt, PositiveInt]
    skip_depths: tuple[int, int, int, int]
    decoder: Literal["lean", "unet", "linear"]
    dropout: Fraction
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
        for name, values in (("mean", shape.mean), ("std", shape.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.suffix(self.prefix(images), tuple(images.shape[2:]))

    @torch.no_grad()
    def prefix(self, images: Tensor) -> Levels:
        """What the frozen blocks make of the images: the skip levels among them, and the level at
        the cut.
        """
        encoder, skips, x = self.encoder, set(self.shape.skip_depths), self.normalise(images)
        return encoder.run(encoder.embed(x), 0, encoder.cut, skips, tuple(x.shape[2:]))

    def suffix(self, levels: Levels, size: Size, cut: int | None = None) -> Tensor:
        """From the frozen levels on, or from the level `cut`: logits (B, classes, *size)."""
        encoder, padded, depths = self.encoder, self.padded(size), self.shape.skip_depths
        cut = encoder.cut if cut is None else cut
        trained = encoder.run(levels[cut], cut, max(cut, *depths), set(depths), padded)
        skips = [encoder.to_map((levels | trained)[depth], padded) for depth in depths]
        return self.decoder(skips, padded)[:, :, : size[0], : size[1]]

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
        return tuple(-(-side // patch) * patch for side in size)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def make(self) -> list[Any]:
        """What decides its numbers besides its weights: configuration, attention, number format,
        colour statistics.
        """
        vit, hidden = self.encoder.vit, ("_", "transformers_version")
        config = {k: v for k, v in vit.config.to_dict().items() if not k.startswith(hidden)}
        attention = vit.config._attn_implementation
        return [config, attention, str(vit.dtype), self.shape.mean, self.shape.std]

    def trained_weights(self, unfrozen: int) -> Weights:
        """A copy, on the CPU, of every weight that may have changed with so many blocks unfrozen,
        for `load_state_dict(..., strict=False)`.
        """
        parts, found = model_parts(self), {}
        trained = trained_parts(unfrozen, self.encoder.depth)
        wanted = {parameter for name in trained for parameter in parts[name].parameters}
        for name, tensor in self.state_dict(keep_vars=True).items():
            if tensor in wanted or name.startswith(_DECODER):  # whose buffers change too
                found[name] = tensor.detach().cpu().clone()
        return found

    def snapshot(self) -> "Segmenter":
        """A copy in eval mode, for other cells to use while this one trains. Take it between two
        steps.
        """
        return copy.deepcopy(self).eval()

    def predict(self, image: Picture) -> np.ndarray:
        """Class ids (h, w) uint8 of one image at its own size. Raises DataError for anything that
        is no image.
        """
        return likeliest(self.logits(image)).cpu().numpy()

    def logits(self, image: Picture) -> Tensor:
        """What `predict` takes the largest of: logits (classes, h, w) of one image at its own size,
        in eval mode.
        """
        rgb = _as_rgb(image)
        with in_eval_mode(self):
            return restored(self(self.canvas(rgb))[0], (rgb.height, rgb.width))

    def canvas(self, image: Image.Image) -> Tensor:
        """An RGB image as the network sees it: (1, 3, H, W) uint8, fitted to the size that the
        model was trained at.
        """
        return _pixels(fit_image(image, self.shape.size)).to(self.device)

    def predict_windows(self, image: Picture, overlap: float = 0.5) -> np.ndarray:
        """Like `predict`, but nothing is scaled: windows of the network's canvas lie over the
        image, logits are averaged.

        For images much larger than the canvas, on which a thing is as many pixels large as it was
        in training; with a crop in `data.crop`, say. `overlap` is the share of a window that the
        next one repeats. An image smaller than the canvas is one padded window.
        """
        return likeliest(self.window_logits(image, overlap)).numpy()

    def window_logits(self, image: Picture, overlap: float) -> Tensor:
        """What `predict_windows` takes the largest of: logits (classes, h, w) of one image, the
        mean where windows overlap.
        """
        rgb, (high, wide) = _as_rgb(image), self.shape.size
        pixels = _pixels(padded_image(rgb, self.shape.size))
        height, width = pixels.shape[2:]
        total = torch.zeros(len(self.shape.classes), height, width)
        seen = torch.zeros(height, width)
        tops, lefts = window_starts(height, high, overlap), window_starts(width, wide, overlap)
        with in_eval_mode(self):
            for top, left in product(tops, lefts):
                place = (..., slice(top, top + high), slice(left, left + wide))
                total[place] += self(pixels[place].to(self.device))[0].float().cpu()
                seen[place] += 1
        return (total / seen)[:, : rgb.height, : rgb.width]

    def save_pretrained(self, folder: str | Path) -> None:
        """`config.json`, `decoder.safetensors`, and `encoder/`, which transformers can load by
        itself: a file for each part, so that parts that are equal can be stored once.
        """
        folder = Path(folder)
        where = save_parts(self, self.state_dict(), folder)
        write_text(folder / "config.json", self.shape.model_dump_json(indent=2) + "\n")
        vit, colors = self.encoder.vit, {"image_mean": self.shape.mean, "image_std": self.shape.std}
        size = sum(tensor.nbytes for tensor in vit.state_dict().values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        write_json(folder / "encoder" / "model.safetensors.index.json", index)
        write_json(folder / "encoder" / COLORS, colors)
        config = copy.deepcopy(vit.config)
        config.architectures = [type(vit).__name__]
        config.save_pretrained(folder / "encoder")


def _as_rgb(image: Picture) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            problem = f"image: an array {image.shape} of {image.dtype}."
            raise DataError(problem, "Give RGB (h, w, 3) uint8, or a path.")
        return Image.fromarray(image)
    try:
        return to_rgb(image) if isinstance(image, Image.Image) else open_rgb(image)
    except UNREADABLE as error:
        raise DataError(f"{image}: cannot be read as an image ({error}).") from None


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one side: `overlap` of a window apart, the last at the end."""
    if not 0 <= overlap < 1:
        raise ConfigError("overlap", overlap, "a share of a window, 0 <= overlap < 1")
    step = max(1, int(window * (1 - overlap)))
    return [*range(0, length - window, step), length - window]


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@contextmanager
def in_eval_mode(model: Segmenter) -> Iterator[None]:
    """Everything in eval mode and without gradients, and afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def restored(logits: Tensor, original: Size) -> Tensor:
    """Logits (classes, H, W) of a canvas, at the image's original size (classes, h, w)."""
    height, width = fitted_size(original, tuple(logits.shape[1:]))
    return resize(logits[None, :, :height, :width].float(), original)[0]


def likeliest(logits: Tensor) -> Tensor:
    """Class ids (..., H, W) uint8 of logits (..., classes, H, W), as `argmax` gives them, which is
    far slower on a CPU.
    """
    return logits.max(-3).indices.to(torch.uint8)


def save_parts(model: Segmenter, weights: Weights, folder: Path) -> dict[str, str]:
    """Write weights, by their names in the model, a file for each part: `decoder.safetensors` and
    `encoder/<part>.safetensors`. Returns the file name of each of the encoder's weights.
    """
    own, files, where = model.state_dict(keep_vars=True), defaultdict(dict), {}
    part_of = {p: name for name, part in model_parts(model).items() for p in part.parameters}
    for name, tensor in weights.items():
        file, inner = "decoder.safetensors", name.removeprefix(_DECODER)
        if inner == name:
            part, inner = part_of.get(own[name], EMBEDDINGS), name.removeprefix(_VIT)
            where[inner] = f"{part.replace(' ', '-')}.safetensors"
            file = f"encoder/{where[inner]}"
        files[file][inner] = tensor.contiguous()
    for path, tensors in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # another run may have a link to it
        save_file(tensors, file, {"format": "pt"})
    return where


def load_parts(folder: Path) -> Weights:
    """What `save_parts` wrote; or the one file beside `folder` that was in its place before.

    Raises OSError or SafetensorError.
    """
    single, weights = folder.with_suffix(".safetensors"), {}
    if single.exists():
        return load_file(single)
    for file in (folder / "decoder.safetensors", *folder.glob("encoder/*.safetensors")):
        prefix = _DECODER if file.parent == folder else _VIT
        weights |= {prefix + name: tensor for name, tensor in load_file(file).items()}
    return weights


def build_segmenter(cfg: Model, classes: tuple[str, ...], size: Size, seed: int) -> Segmenter:
    """The model of a recipe: pretrained encoder, a decoder drawn from `seed`. All blocks frozen, in
    eval mode.
    """
    vit, about = load_vit(cfg.encoder)
    quarter = vit.config.num_hidden_layers / 4
    shape = Shape(
        classes=tuple(classes),
        size=size,
        skip_depths=cfg.skip_depths or tuple(max(1, round(quarter * i)) for i in (1, 2, 3, 4)),
        decoder=cfg.decoder,
        dropout=cfg.dropout,
        **about,
    )
    return _assembled(vit, shape, seed_for(seed, "decoder"))


def load_segmenter(folder: str | Path) -> Segmenter:
    """The model of a `save_pretrained` folder, or of a run's `best/`. Frozen and in eval mode.

    Raises WeightsError, naming the file, when the folder holds no model or one that does not fit
    its config.
    """
    folder = Path(folder).expanduser()
    folder = folder / "best" if (folder / "best").is_dir() else folder
    config, decoder = folder / "config.json", folder / "decoder.safetensors"
    hint = "Give a run folder that has ended, or its best/."
    with guarded(f"{config}: not that of a vitseg model", hint):
        shape = Shape.read(config.read_bytes())
        model = _assembled(load_folder(folder / "encoder"), shape, seed=0)
    with guarded(f"{decoder}: not that of a vitseg model", hint):
        model.decoder.load_state_dict(load_file(decoder))
    return model


load = load_segmenter
"""Its public name."""


def _assembled(vit: PreTrainedModel, shape: Shape, seed: int) -> Segmenter:
    """A model of that shape around a ViT, its decoder drawn from `seed`."""
    encoder, depths = Encoder(vit), shape.skip_depths
    if not 1 <= min(depths) <= max(depths) <= encoder.depth:
        allowed = f"four rising numbers in 1..{encoder.depth}"
        raise ConfigError("model.skip_depths", depths, allowed, "One for each skip.")
    classes = len(shape.classes)
    decoder = build_decoder(shape.decoder, encoder.width, classes, shape.dropout, seed)
    model = Segmenter(encoder, decoder, shape)
    set_freeze_depth(model, 0)
    return model.eval()
