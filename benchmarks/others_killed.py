"""The same kills for Lightning and the Hugging Face Trainer: does a run that is killed and resumed
end as if it had not been?

    python benchmarks/others_killed.py [KILLS]        (20 of each kind by default)

All train the model of soak.py, with dropout, shuffled batches and a cosine schedule, as the
documentation of each says, with a seed, and with a checkpoint after every step. A run is killed
once with SIGKILL: at the end of an epoch, within one, or inside a save, after a random share of the
time that one takes; then it is resumed from its newest checkpoint. Said is how many runs went on by
themselves, and how many ended with the weights, byte for byte, of a run that nobody killed. Writes
runs/others-killed.json.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from contenders import build
from safetensors.torch import save_file
from soak import tiny
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vitseg
from vitseg.data.dataset import SegmentationData
from vitseg.events import BatchEnded
from vitseg.files import write_json
from vitseg.model.segmenter import Weights, load_parts
from vitseg.recipe import Recipe, load_recipe
from vitseg.runs import checkpoint
from vitseg.training.losses import SegmentationLoss
from vitseg.ui.table import Table

EPOCHS, BATCHES = 4, 5
KINDS = ("end of an epoch", "within an epoch", "inside a save")
PRELOADED = [
    "lightning",
    "transformers.trainer",
    "vitseg.runs.run",
    "transformers.models.dinov2.modeling_dinov2",
    "others_killed",
]


class Images(Dataset):
    """Images and masks in memory."""

    def __init__(self, recipe: Recipe, data: SegmentationData):
        names = data.splits["train"]
        (batch,) = data.batches([(name, "0") for name in names], len(names))
        self.items = [
            {"images": image, "labels": mask}
            for image, mask in zip(batch.images, batch.masks, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


class Model(nn.Module):
    """The same segmenter, with PyTorch's own dropout."""

    def __init__(self, recipe: Recipe, data: SegmentationData):
        super().__init__()
        self.segmenter, self.loss_of = (
            build(recipe, data),
            SegmentationLoss(recipe.loss, len(data.classes)),
        )
        self.segmenter.decoder.dropout = nn.Dropout2d(0.3)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.segmenter(images)
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def with_lightning(folder: Path, recipe: Recipe, kill: Callable[[int], None]) -> Weights:
    lightning.seed_everything(0, verbose=False)
    data = SegmentationData(recipe.data)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model(recipe, data)

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> dict:
            optimizer = torch.optim.AdamW(
                [p for p in self.parameters() if p.requires_grad], lr=1e-3
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    class Kill(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
            kill(trainer.global_step)

    save = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, save_last=True, every_n_train_steps=1
    )
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[save, Kill()],
    )
    newest = folder / "last.ckpt"
    trainer.fit(
        module,
        DataLoader(Images(recipe, data), recipe.batch_size, shuffle=True),
        ckpt_path=newest if newest.exists() else None,
    )
    return module.model.state_dict()


def with_hf_trainer(folder: Path, recipe: Recipe, kill: Callable[[int], None]) -> Weights:
    transformers.set_seed(0)
    data = SegmentationData(recipe.data)
    model = Model(recipe, data)

    class Kill(transformers.TrainerCallback):
        def on_step_begin(
            self, _: object, state: transformers.TrainerState, *__: object, **___: object
        ) -> None:
            kill(state.global_step)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=recipe.batch_size,
        use_cpu=True,
        seed=0,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=Images(recipe, data),
        callbacks=[Kill()],
        optimizers=(optimizer, schedule),
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    return model.state_dict()


def with_ours(folder: Path, recipe: Recipe, kill: Callable[[int], None]) -> Weights:
    checkpoint.EVERY_SECONDS = 0.0
    recipe = recipe.replace({"model.dropout": 0.3, "stages": recipe.stages[:1]}).replace(
        {"stages.0.epochs": EPOCHS}
    )
    begun = (folder / "events.jsonl").exists()
    for event in vitseg.resume(folder) if begun else vitseg.train(recipe, folder, reuse=False):
        if isinstance(event, BatchEnded):
            kill(event.step)
    return load_parts(folder / "stages" / "1" / "last")


CONTENDERS = {"ours": with_ours, "HF Trainer": with_hf_trainer, "Lightning": with_lightning}
SAVES = {
    "ours": (checkpoint, "save_checkpoint"),
    "HF Trainer": (transformers.Trainer, "_save_checkpoint"),
    "Lightning": (lightning.Trainer, "save_checkpoint"),
}
"""What is called to save."""


def train_or_resume(
    contender: str, folder: Path, recipe: Path, kind: str, step: int, share: float
) -> None:
    """In a process of its own: go on from the newest checkpoint, die there, or leave the weights
    that it ends with.
    """
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    owner, name = SAVES[contender]
    if kind == "inside a save":
        setattr(owner, name, _dies_within(getattr(owner, name), step, share))
        step = -1
    folder.mkdir(exist_ok=True)
    weights = CONTENDERS[contender](folder, load_recipe(recipe), lambda now: now == step and _die())
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder.with_suffix(".safetensors"),
    )


def _dies_within(save: Callable, count: int, share: float) -> Callable:
    """`save`, but its `count`-th call is killed after that share of the time that the one before
    took.
    """
    calls, took = iter(range(1, sys.maxsize)), [0.0]

    def saves(*more: Any, **named: Any) -> Any:
        if next(calls) == count:
            threading.Timer(share * took[0], _die).start()
        began = time.monotonic()
        result = save(*more, **named)
        took[0] = time.monotonic() - began
        return result

    return saves


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(
    contender: str,
    folder: Path,
    recipe: Path,
    kind: str = "none",
    step: int = -1,
    share: float = 0.0,
) -> int:
    """The exit code of a process that trains or resumes."""
    start = multiprocessing.get_context("forkserver").Process
    process = start(target=train_or_resume, args=(contender, folder, recipe, kind, step, share))
    process.start()
    process.join()
    return process.exitcode


def outcomes(contender: str, recipe: Path, kills: int, place: Path) -> dict[str, Counter[str]]:
    """By kind of kill, how many runs died as they were to, went on by themselves, and ended with
    the same weights.
    """
    for name in ("whole", "again"):
        run(contender, place / name, recipe)
    whole, again = ((place / f"{name}.safetensors").read_bytes() for name in ("whole", "again"))
    if whole != again:
        raise RuntimeError(f"{contender}: two runs that nobody kills differ")
    found, rng = {}, random.Random(0)
    for kind in KINDS:
        counts = found[kind] = Counter[str]()
        while counts["killed"] < kills:
            folder = place / f"{kind.replace(' ', '-')}{counts.total()}"
            steps = [
                n
                for n in range(2, EPOCHS * BATCHES)
                if (n % BATCHES == 0) == (kind == "end of an epoch")
            ]
            if (
                run(contender, folder, recipe, kind, rng.choice(steps), rng.random())
                != -signal.SIGKILL
            ):
                counts["was faster than the kill"] += 1
                continue
            counts["killed"] += 1
            went_on = run(contender, folder, recipe) == 0
            counts["went on"] += went_on
            counts["same weights"] += (
                went_on and folder.with_suffix(".safetensors").read_bytes() == whole
            )
    return found


def main(kills: str = "20") -> int:
    multiprocessing.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recipe = tiny(place / "encoder")
        recipe.save(place / "recipe.json")
        os.environ["VITSEG_CACHE"] = str(place / "cache")
        found = {}
        for contender in CONTENDERS:
            (place / contender).mkdir()
            found[contender] = outcomes(
                contender, place / "recipe.json", int(kills), place / contender
            )
            sys.stdout.write(f"{contender}: done\n")
            sys.stdout.flush()
    rows = tuple(
        (
            contender,
            *(f"{c['went on']} / {c['same weights']} of {c['killed']}" for c in kinds.values()),
        )
        for contender, kinds in found.items()
    )
    words = "Runs that went on / ended with the same weights, of those killed"
    sys.stdout.write(f"{Table(('killed at', *KINDS), rows, words)}\n")
    file = vitseg.runs_root() / "others-killed.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    ours = found["ours"].values()
    return 0 if all(c["same weights"] == c["killed"] for c in ours) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
