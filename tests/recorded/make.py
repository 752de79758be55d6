"""How the recordings beside this file were made, with vitseg of 2026-11-28 (commit 4d5a9e2):

    cd tests/recorded && python make.py

Do not make them again: that every later version opens them as they are is what
`tests/test_recorded.py` is for. A change of format adds recordings. All of them use generated
images and the random encoder in `encoder/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

import vitseg
from vitseg.effects import Clahe, CoarseDropout, Crop, Elastic, Hue
from vitseg.model.decoder import build_decoder
from vitseg.settings import (
    SGD,
    Augment,
    ByFrequency,
    Classes,
    Constant,
    CosineRestarts,
    Data,
    Exponential,
    Folder,
    Generated,
    Loss,
    Merge,
    Model,
    Stage,
    WarmupPoly,
)

AXES = {"stages.1.unfrozen_blocks": [0, 2], "stages.1.encoder_lr_factor": [0.1, 0.5]}
SPACE = {"stages.1.unfrozen_blocks": [1, 2]}


def encoder() -> str:
    """A relative path, so that the recordings can be copied."""
    shape = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    AutoModel.from_config(
        AutoConfig.for_model("dinov2", patch_size=14, image_size=28, **shape)
    ).save_pretrained("encoder")
    return "encoder"


def recipe() -> vitseg.Recipe:
    stages = (
        Stage(
            name="Frozen",
            unfrozen_blocks=0,
            epochs=2,
            lr=1e-2,
            schedule=CosineRestarts(T_0=3, burn_in_batches=4),
        ),
        Stage(
            name="Last",
            unfrozen_blocks=2,
            epochs=2,
            lr=1e-3,
            schedule=Exponential(gamma=0.5),
            encoder_lr_factor=0.1,
        ),
    )
    data = Data(
        source=Generated(images=12, classes=3, side=56),
        size=(56, 56),
        validation_fraction=0.17,
        test_fraction=0.17,
    )
    return vitseg.Recipe(
        name="recorded",
        data=data,
        model=Model(encoder=encoder(), decoder="linear"),
        stages=stages,
        batch_size=2,
        threads=1,
        device="cpu",
    )


def recipes() -> dict[str, vitseg.Recipe]:
    """One of each preset, and two that between them have every kind of setting."""
    crowded = vitseg.quick().replace(
        {
            "data": Data(
                source=Folder(
                    path="somewhere",
                    encoding="grey",
                    grey_factor=40,
                    classes=("a", "b", "c"),
                    ignore_value=255,
                ),
                size=(56, 84),
                mode="multiclass",
                classes=Classes(merge=(Merge(into="bc", classes=("b", "c")),)),
                group=r"(\w+)_",
                stratify=True,
                sampler="rarity",
                views=3,
                augment=Augment(zoom=0.4, rotate_degrees=0.0),
                effects=(Hue(), Elastic(cells=4), CoarseDropout(p=0.3), Clahe()),
                crop=Crop(margin=0.5),
                view_seed=3,
            ),
            "loss": Loss(
                dice=0.0,
                focal=1.0,
                class_weights=ByFrequency(kind="median", largest=5.0),
                label_smoothing=0.01,
            ),
            "optimizer": SGD(),
            "accumulate": 2,
            "seed": 7,
            "features": "half",
            "workers": 2,
            "clip_norm": None,
            "stages": (
                Stage(name="a", unfrozen_blocks=0, epochs=3, lr=1e-3, schedule=Constant()),
                Stage(
                    name="b",
                    unfrozen_blocks="all",
                    epochs=5,
                    lr=1e-4,
                    schedule=WarmupPoly(warmup_batches=7),
                    layer_decay=0.8,
                    drop_path=0.1,
                    patience=3,
                    start_from="last",
                ),
                Stage(
                    name="c",
                    unfrozen_blocks=3,
                    epochs=2,
                    lr=1e-5,
                    schedule=CosineRestarts(unit="epoch", T_0=2, T_mult=2, burn_in_batches=0),
                ),
            ),
        }
    )
    split = vitseg.quick().replace(
        {
            "data": Data(
                source=Folder(path="somewhere", colors=((0, 0, 0), (255, 0, 0)), on_problem="skip"),
                mode="binary",
                split_file="split.json",
                views="fresh",
            ),
            "loss.class_weights": (1.0, 5.0),
            "model.skip_depths": (3, 6, 9, 12),
            "processes": 2,
            "recompute": True,
        }
    )
    presets = {
        "quick": vitseg.quick(),
        "giant": vitseg.giant(),
        "whole_encoder": vitseg.whole_encoder(),
    }
    return presets | {"crowded": crowded, "split": split}


def cut_off(made: vitseg.Recipe, folder: str, after: int) -> None:
    """A run that is left after so many events, which saves; of an epoch's end it has a checkpoint
    too.
    """
    events = vitseg.train(made, folder, reuse=False)
    for _ in range(after):
        next(events)
    events.close()


def main() -> None:
    made = recipe()
    list(vitseg.train(made, "run", reuse=False))
    cut_off(made, "cut", 30)
    list(vitseg.fork("run", 1, made.replace({"stages.1.lr": 5e-4, "name": "forked"}), "fork"))
    ablation = vitseg.ablate(made, AXES, seeds=2, folder="ablation")
    ablation.finish()
    Path("ablation.txt").write_text(f"{ablation.table}\n\n{ablation.sentence}\n")
    search = vitseg.search(made, SPACE, trials=2, folder="search")
    search.finish()
    decoders = {
        name: build_decoder(name, 384, 3, 0.1, seed=0).state_dict()
        for name in ("lean", "unet", "linear")
    }
    shapes = {
        name: {key: list(value.shape) for key, value in state.items()}
        for name, state in decoders.items()
    }
    Path("decoders.json").write_text(json.dumps(shapes, indent=1) + "\n")
    Path("recipes").mkdir(exist_ok=True)
    for name, found in recipes().items():
        found.save(Path("recipes") / f"{name}.json")
    for lock in Path().rglob("*.lock"):
        lock.unlink()
    for name in ("encoder", "run", "cut", "fork", "ablation", "search"):
        shutil.make_archive(name, "zip", base_dir=name)
        shutil.rmtree(name)


if __name__ == "__main__":
    main()
