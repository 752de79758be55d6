"""Who races in bench.py: the same model, images, batches and loss, trained as people would train
them today, and by ours.

A contender is an iterator over its steps that says of each whether it was of "train" or "valid", so
that all can be advanced in turn. Trainers that do not give up control are run on a thread of their
own, which waits after every step.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from queue import Queue

import lightning
import torch
import transformers
from torch import Tensor
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from vitseg.data.dataset import Batch, SegmentationData
from vitseg.events import BatchEnded, ValidationBatch
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter, build_segmenter
from vitseg.recipe import Recipe
from vitseg.training.job import Job
from vitseg.training.loop import StageTraining
from vitseg.training.losses import SegmentationLoss

IGNORE = 255


def build(recipe: Recipe, data: SegmentationData) -> Segmenter:
    model = build_segmenter(recipe.model, data.classes, recipe.data.size, recipe.seed)
    set_freeze_depth(model, recipe.stages[0].unfrozen_blocks)
    return model


def ours(recipe: Recipe, data: SegmentationData) -> Iterator[str]:
    for event in StageTraining(Job(recipe, model=build(recipe, data), data=data), 1):
        if isinstance(event, BatchEnded | ValidationBatch):
            yield "train" if isinstance(event, BatchEnded) else "valid"


def plain(recipe: Recipe, data: SegmentationData) -> Iterator[str]:
    """The loop that everybody writes: three metric objects, all pixels kept for the end of the
    epoch.
    """
    model, loss_of = build(recipe, data), SegmentationLoss(recipe.loss, len(data.classes))
    optimizer = optimizer_of(model, recipe)
    for epoch in range(recipe.stages[0].epochs + 1):
        for split in ("train", "validation") if epoch else ("validation",):
            metrics, kept, train = metrics_of(data), [], split == "train"
            model.train(train)
            for batch in batches(recipe, data, split, epoch):
                key_noise(model, epoch)
                with torch.set_grad_enabled(train):
                    logits = model(batch.images)
                    loss = loss_of(logits, batch.masks)
                if train:
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(
                        [p for p in model.parameters() if p.requires_grad], 1.0
                    )
                    optimizer.step()
                predicted = logits.detach().argmax(1)
                for metric in metrics:
                    metric.update(predicted, batch.masks)
                kept.append(
                    (predicted.flatten().numpy(), batch.masks.flatten().numpy(), loss.item())
                )
                yield "train" if train else "valid"
            [metric.compute() for metric in metrics]


def with_lightning(recipe: Recipe, data: SegmentationData) -> Iterator[str]:
    """Lightning's Trainer, with its metrics updated as its documentation shows."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss_of = (
                build(recipe, data),
                SegmentationLoss(recipe.loss, len(data.classes)),
            )
            self.metrics = torch.nn.ModuleDict(
                {split: torch.nn.ModuleList(metrics_of(data)) for split in ("fit", "valid")}
            )

        def step(self, batch: dict[str, Tensor], split: str) -> Tensor:
            key_noise(self.model, self.global_step)
            logits = self.model(batch["images"])
            for metric in self.metrics[split]:
                metric.update(logits.detach().argmax(1), batch["labels"])
            return self.loss_of(logits, batch["labels"])

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.step(batch, "fit")

        def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
            self.step(batch, "valid")

        def on_train_epoch_end(self) -> None:
            self.score("fit")

        def on_validation_epoch_end(self) -> None:
            self.score("valid")

        def score(self, split: str) -> None:
            for metric in self.metrics[split]:
                metric.compute()
                metric.reset()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model, recipe)

    def race(done: Callable[[str], None]) -> None:
        class Tell(lightning.Callback):
            def on_train_batch_end(self, *_: object) -> None:
                done("train")

            def on_validation_batch_end(self, *_: object) -> None:
                done("valid")

        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=recipe.stages[0].epochs,
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            inference_mode=False,
            callbacks=[Tell()],
            **quiet,
        )
        module = Module()
        trainer.validate(module, Batches(recipe, data, "validation"), verbose=False)
        trainer.fit(module, Batches(recipe, data, "train"), Batches(recipe, data, "validation"))

    return in_turns(race)


def with_hf_trainer(recipe: Recipe, data: SegmentationData) -> Iterator[str]:
    """The Hugging Face Trainer; it keeps the predicted classes of every pixel for
    `compute_metrics`.
    """

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> Batches:
            return Batches(recipe, data, "train")

        def get_eval_dataloader(self, *_: object) -> Batches:
            return Batches(recipe, data, "validation")

        def compute_loss(
            self, model: Segmenter, inputs: dict, return_outputs: bool = False, **_: object
        ) -> object:
            key_noise(model, self.state.global_step)
            logits = model(inputs["images"])
            loss = self.loss_of(logits, inputs["labels"])
            return (loss, {"logits": logits}) if return_outputs else loss

    def metrics(predictions: transformers.EvalPrediction) -> dict[str, float]:
        predicted, truth = (
            torch.as_tensor(a) for a in (predictions.predictions, predictions.label_ids)
        )
        return {type(m).__name__: float(m(predicted, truth)) for m in metrics_of(data)}

    def race(done: Callable[[str], None]) -> None:
        class Tell(transformers.TrainerCallback):
            def on_step_end(self, *_: object, **__: object) -> None:
                done("train")

            def on_prediction_step(self, *_: object, **__: object) -> None:
                done("valid")

        model = build(recipe, data)
        arguments = transformers.TrainingArguments(
            num_train_epochs=recipe.stages[0].epochs,
            per_device_train_batch_size=recipe.batch_size,
            use_cpu=True,
            max_grad_norm=1.0,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            output_dir="unused",
        )
        trainer = Trainer(
            model,
            arguments,
            callbacks=[Tell()],
            eval_dataset=[None],
            compute_metrics=metrics,
            optimizers=(optimizer_of(model, recipe), None),
            preprocess_logits_for_metrics=lambda logits, _: logits.argmax(1),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.loss_of = SegmentationLoss(recipe.loss, len(data.classes))
        trainer.evaluate()
        trainer.train()

    return in_turns(race)


class Batches:
    """The batches of a split, those of training in another order each epoch."""

    def __init__(self, recipe: Recipe, data: SegmentationData, split: str):
        self.recipe, self.data, self.split, self.epoch = recipe, data, split, 0
        self.batch_size, self.dataset = recipe.batch_size, data.splits[split]

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.epoch += 1
        for batch in batches(self.recipe, self.data, self.split, self.epoch):
            yield {"images": batch.images, "labels": batch.masks}


def batches(recipe: Recipe, data: SegmentationData, split: str, epoch: int) -> Iterator[Batch]:
    names = data.order(0, 1, epoch) if split == "train" else data.splits[split]
    return data.batches([(name, "0") for name in names], recipe.batch_size)


def optimizer_of(model: Segmenter, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=recipe.stages[0].lr
    )


def metrics_of(data: SegmentationData) -> list:
    kinds = (MulticlassJaccardIndex, MulticlassF1Score, MulticlassAccuracy)
    return [kind(num_classes=len(data.classes), ignore_index=IGNORE) for kind in kinds]


def in_turns(race: Callable[[Callable[[str], None]], None]) -> Iterator[str]:
    """Run `race` on a thread that waits, each time it calls what it is given, until it is asked for
    the next step.
    """
    told, go, threads = (
        Queue[str | BaseException | None](),
        threading.Semaphore(0),
        torch.get_num_threads(),
    )

    def done(kind: str) -> None:
        told.put(kind)
        go.acquire()

    def work() -> None:
        go.acquire()
        torch.set_num_threads(threads)
        try:
            race(done)
            told.put(None)
        except BaseException as error:
            told.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        go.release()
        kind = told.get()
        if isinstance(kind, BaseException):
            raise kind
        if kind is None:
            return
        yield kind
