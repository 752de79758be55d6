"""The heart: a stage of training is an iterable of events, and reads top to bottom."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from textwrap import shorten
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from vitseg import plan
from vitseg.data.augment import view_name
from vitseg.data.dataset import chunked
from vitseg.errors import FeatureBreach, TrainingError
from vitseg.events import BatchEnded, EpochEnded, Event, FeaturesUsed, StageEnded, StageStarted
from vitseg.model.freeze import name_parts, set_freeze_depth
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Weights, likeliest
from vitseg.training.audit import AuditReport, LRContract, audit, part_hashes
from vitseg.training.evaluate import evaluate
from vitseg.training.features import FeatureBatch, Features
from vitseg.training.job import Job
from vitseg.training.metrics import confusion, scores
from vitseg.training.optim import build_optimizer, load_optimizer, used_lr
from vitseg.training.parallel import ProcessGroup
from vitseg.training.schedule import build_schedule

_POSITION = (
    "epoch",
    "batch",
    "skipped",
    "lr",
    "epochs_before",
    "steps_before",
    "best",
    "best_epoch",
    "running_loss",
    "hashes",
)
"""The attributes that say how far a stage has come. Where its schedule stands follows from them."""


class StageTraining:
    """One stage of a job: `for event in StageTraining(job, 1)` trains it.

    A batch is one optimizer step; it is computed in portions of `batch_size` images, as many as
    `accumulate` says. To pause, stop asking the iterator for events; to stop, close it. Between two
    events `state_dict` holds all that another process needs to go on. `epochs_before` and
    `steps_before` are what earlier stages took, for the records. In a process group each process
    takes its part of every batch and of every evaluation; all of them log the same events.
    """

    def __init__(
        self,
        job: Job,
        number: int,
        *,
        epochs_before: int = 0,
        steps_before: int = 0,
        group: ProcessGroup | None = None,
    ):
        self.job, self.number, self.plan = job, number, job.stages[number - 1]
        self.recipe, self.stage = job.recipe, self.plan.stage
        self.model, self.data, self.machine = job.model, job.data, job.machine
        self.epochs_before, self.steps_before = epochs_before, steps_before
        self.group = group or ProcessGroup()
        encoder = self.model.to(self.machine.device).encoder
        set_freeze_depth(self.model, self.plan.unfrozen)
        encoder.recompute = self.recipe.recompute
        encoder.rate = self.stage.drop_path
        self.optimizer = build_optimizer(self.model, self.recipe.optimizer, self.stage)
        self.trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.schedule = build_schedule(self.stage, self.optimizer, self.plan.batches)
        fp16 = self.machine.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.machine.device, enabled=fp16)
        self.epoch = self.batch = self.skipped = self.best_epoch = 0
        self.lr: dict[str, float] = {}
        self.hashes: dict[str, str] = {}
        self.best: dict[str, Any] | None = None
        self.best_weights = Weights()
        classes = len(self.data.classes)
        self.running, self.running_loss = torch.zeros(classes, classes, dtype=torch.int64), 0.0

    # ---- the stage, from top to bottom

    def __iter__(self) -> Iterator[Event]:
        """Train from where the stage stands to its end."""
        report = self._audit()
        self.features = Features(self.job, report.hashes)
        self.train_features = Features(self.job, report.hashes, training=True)
        how = {"stage": self.number, "features": self.features, "group": self.group}
        score_of = partial(evaluate, self.job, "validation", **how)
        if self.best is None:  # at its start: epoch 0 is what the stage begins with
            self.hashes = report.hashes
            score = yield from score_of(epoch=self.run_epoch)
            self._keep_as_best(score)
            yield self._started(report, score)
        patience = self.stage.patience or math.inf
        while self.epoch < min(self.stage.epochs, self.best_epoch + patience):
            for portions in self.portions():
                yield self.train_step(portions)
            yield self._features_used()
            if self.group.size > 1:
                self.group.same("What the model holds", part_hashes(self.model, self.plan.trained))
            score = yield from score_of(epoch=self.run_epoch)
            yield self._end_epoch(score)
        yield self._ended()

    def portions(self) -> Iterator[list[FeatureBatch]]:
        """The steps of this epoch that are left: of each, what is this process's part, in portions
        of at most `batch_size` images.
        """
        epoch, size = self.epoch + 1, self.recipe.batch_size
        view = view_name(self.recipe.data, self.number, epoch)
        keys = [(name, view) for name in self.data.order(self.recipe.seed, self.number, epoch)]
        steps = chunked(keys, size * self.recipe.accumulate)[self.batch :]
        portions = [chunked(self.group.part(step), size) for step in steps]
        batches = self.train_features.batches(list(chain.from_iterable(portions)))
        try:
            for own in portions:
                yield list(islice(batches, len(own)))
        except FeatureBreach:  # where a frozen part has moved, say which
            trained = self.plan.trained
            self._audit(since={n: h for n, h in self.hashes.items() if n not in trained})
            raise

    def train_step(self, portions: list[FeatureBatch]) -> BatchEnded:
        """One optimizer step over a batch, of which `portions` are this process's part."""
        self.machine.settle()
        self._audit(weights=False)
        self.model.train()  # somebody may have evaluated it between two steps
        self._check_lr()
        self.lr = used_lr(self.optimizer)
        try:
            loss = self.backward(portions)
            grad_norm = self.clip(portions)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        except (torch.OutOfMemoryError, MemoryError) as error:
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()
            raise TrainingError(
                f"There was not enough memory for step {self.next_step}: "
                f"{error or 'none is left'}.",
                "What was saved is whole. Lower batch_size and raise accumulate: the step stays as "
                "large. Or lower data.size.",
            ) from None
        if grad_norm is None:
            self.skipped += 1
        else:
            self.schedule.after_batch()
        self.batch += 1
        return BatchEnded(
            **self._place,
            batch=self.batch,
            batches=self.plan.batches,
            loss=loss,
            lr=self.lr,
            grad_norm=grad_norm,
            stepped=grad_norm is not None,
        )

    def backward(self, portions: list[FeatureBatch]) -> float:
        """The gradients of the whole batch's loss, the same as if it had fitted in one portion and
        one process. Returns the loss.
        """
        self.optimizer.zero_grad()
        loss_of, seen = self.job.loss, self.first_sample()
        zero = torch.zeros(2, device=self.machine.device)
        counts = self.group.sum(sum((loss_of.counts(portion.masks) for portion in portions), zero))
        total, matrix = torch.zeros((), dtype=torch.float64), torch.zeros_like(self.running)
        for portion in portions:
            key = self.recipe.seed, "noise", self.number, self.step + 1
            key_noise(self.model, *key, first_sample=seen)
            with self.machine.autocast():
                logits = self.model.suffix(portion.levels, self.recipe.data.size)
            loss = loss_of.mean(loss_of.sums(logits, portion.masks), counts)
            self._refuse_nan("loss", loss.item(), [portion])
            self.scaler.scale(loss).backward()
            total += loss.item()
            matrix += confusion(likeliest(logits.detach()), portion.masks, len(self.running))
            seen += len(portion.names)
        self.group.sum_gradients(self.trainable)
        total = self.group.sum(total).item()
        self.running_loss += total
        self.running += self.group.sum(matrix)
        return total

    def clip(self, portions: list[FeatureBatch]) -> float | None:
        """Clip the gradients. Returns their norm before that; None where fp16 overflowed, and the
        optimizer will skip the step.
        """
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.trainable, self.recipe.clip_norm or math.inf).item()
        if self.scaler.is_enabled() and not math.isfinite(norm):
            return None
        self._refuse_nan("gradient", norm, portions)
        return norm

    def _end_epoch(self, score: dict[str, Any]) -> EpochEnded:
        """The epoch's clock, its best weights, its record."""
        self.schedule.after_epoch()
        self.epoch, self.batch = self.epoch + 1, 0
        # stage 1 begins with a random decoder, which is never the best
        best_is_random = self.number == 1 and self.best_epoch == 0
        better = best_is_random or _rank(score) >= _rank(self.best)
        if better:
            self._keep_as_best(score)
        train = {"loss": self.running_loss / self.plan.batches}
        train |= scores(self.running, self.data.mode, self.recipe.data.score_background)
        self.running.zero_()
        self.running_loss = 0.0
        return EpochEnded(**self._place, lr=self.lr, train=train, validation=score, best=better)

    # ---- what the records say

    @property
    def _place(self) -> dict[str, int]:
        """Where a record belongs: epochs and steps are those of the whole run."""
        return {"stage": self.number, "epoch": self.run_epoch, "step": self.next_step - 1}

    def _started(self, report: AuditReport, score: dict[str, Any]) -> StageStarted:
        parts = [
            {
                "name": part.name,
                "parameters": part.parameters,
                "trains": part.should_train,
                "in_optimizer": part.in_optimizer,
                "block": part.block,
            }
            for part in report.parts
        ]
        return StageStarted(
            **self._place,
            name=self.stage.name,
            epochs=self.stage.epochs,
            unfrozen_blocks=self.plan.unfrozen,
            schedule=plan.describe(self.stage),
            total=report.total,
            trainable=report.trainable,
            parts=parts,
            audit=str(report),
            notes=self.job.notes(self.number),
            validation=score,
        )

    def _features_used(self) -> FeaturesUsed:
        used = self.train_features
        counts = self.group.sum(torch.tensor([used.seen - used.computed, used.computed]))
        return FeaturesUsed(self.number, self.run_epoch, *counts.tolist(), used.note)

    def _ended(self) -> StageEnded:
        self._check_lr()
        parts = self._audit(since=self.hashes).parts
        frozen = name_parts(part for part in parts if not part.should_train)
        trained = name_parts(part for part in parts if part.should_train)
        return StageEnded(
            **self._place,
            epochs=self.epoch,
            schedule_steps=self.schedule.steps,
            best_epoch=self.best_epoch,
            best=self.best,
            stopped_early=self.epoch < self.stage.epochs,
            audit=f"Frozen and bit-equal to the start of the stage: {frozen}. "
            f"Trained and moved: {trained}.",
            warning=self._found_nothing(),
        )

    def _found_nothing(self) -> str:
        """A warning, if the best weights find no pixel of any foreground class that there is."""
        foreground = set(self.best["per_class_iou"][1:]) - {None}
        if foreground != {0.0}:
            return ""
        return (
            f"The best weights of stage {self.number} find no foreground: the validation IoU of "
            f"every class but {self.data.classes[0]!r} is 0. If the validation loss was still "
            "falling, train more epochs. If objects are small, enlarge them: a larger data.size, "
            "or data.crop, which cuts out the foreground. vitseg check shows the masks."
        )

    # ---- what is checked on the way

    def _audit(self, **how: Any) -> AuditReport:
        """Raises FreezeBreach unless what trains is what the plan promises."""
        report = audit(self.model, self.optimizer, self.plan.unfrozen, **how)
        return report.check(f"Noticed after step {self.next_step - 1}, in stage {self.number}.")

    def _check_lr(self) -> None:
        """Raises LRBreach unless the coming step has the LR of the plan. The LR after the last step
        is promised too.
        """
        planned = self.plan.lr(self.step + 1, self.skipped)
        LRContract([planned], self.next_step).check(self.next_step, self.optimizer)

    def _refuse_nan(self, what: str, value: float, portions: list[FeatureBatch]) -> None:
        if math.isfinite(value):
            return
        lrs = ", ".join(f"{name} {lr:.3g}" for name, lr in self.lr.items())
        names = ", ".join(chain.from_iterable(portion.names for portion in portions))
        raise TrainingError(
            f"The {what} of step {self.next_step} is {value}; LR: {lrs}; images: {names}.",
            "Nothing was changed by this step. Lower the LR, or look at these images.",
        )

    # ---- where it stands

    @property
    def step(self) -> int:
        """The steps of this stage that were taken."""
        return self.epoch * self.plan.batches + self.batch

    @property
    def run_epoch(self) -> int:
        """The number of the epoch under way, or of the last one, over the whole run."""
        return self.epochs_before + math.ceil(self.step / self.plan.batches)

    @property
    def next_step(self) -> int:
        """The number of the step under way, over the whole run, from 1."""
        return self.steps_before + self.step + 1

    def first_sample(self) -> int:
        """The place in the step of the first image that is this process's."""
        size = self.recipe.batch_size * self.recipe.accumulate
        return self.group.part(range(min(size, self.job.images - self.batch * size))).start

    def _keep_as_best(self, score: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.best_weights = score, self.epoch, self.trained_weights()

    def trained_weights(self) -> Weights:
        """A copy, on the CPU, of every weight that stages up to this one may have changed."""
        return self.model.trained_weights(self.job.deepest(self.number))

    # ---- out, and back in

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from between two events: tensors, numbers and strings."""
        return {name: getattr(self, name) for name in _POSITION} | {
            "stage": self.number,
            "step": self.step,
            "running": self.running.tolist(),
            "scaler": self.scaler.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "weights": self.trained_weights(),
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises TrainingError when it is of another stage, or does not fit the
        model.
        """
        try:
            if state["stage"] != self.number:
                raise ValueError(f"it is of stage {state['stage']}")
            for kind in ("weights", "best_weights"):
                if odd := state[kind].keys() ^ self.trained_weights().keys():
                    raise ValueError(f"{kind}: {min(odd)} is only in one of the two")
            for name in _POSITION:
                setattr(self, name, state[name])
            if not self.step == state["step"] <= self.plan.steps:
                raise ValueError(f"step cannot be {state['step']!r:.80}")
            self.model.load_state_dict(state["weights"], strict=False)
            self.best_weights = state["best_weights"]
            self.running = torch.tensor(state["running"]).view_as(self.running)
            # its steps may have been taken by another process: PyTorch warns of a schedule before
            self.optimizer._opt_called = True
            self.schedule.fast_forward(self.step - self.skipped, self.epoch)
            load_optimizer(self.optimizer, state["optimizer"])
            if state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # of as many kinds as torch raises
            why = shorten(str(error), 300)
            problem = f"This state does not fit the model and its optimizer ({why})."
            hint = "Resume with the recipe and the encoder that it was saved with."
            raise TrainingError(problem, hint) from None


def _rank(score: dict[str, Any]) -> tuple[float, float]:
    """What "best" compares: IoU, or accuracy where no truth has a foreground; where that is equal,
    the lower loss.
    """
    measure = score["iou"] if score["iou"] is not None else score["accuracy"] or 0.0
    return measure, -math.inf if score["loss"] is None else -score["loss"]
