"""The heart: a stage of training is an iterable of records, and reads top to bottom."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vitseg import plan
from vitseg.data.augment import view_name
from vitseg.data.dataset import SegmentationData, chunked
from vitseg.errors import ConfigError, FeatureBreach, TrainingError
from vitseg.events import BatchEnded, EpochEnded, Event, FeaturesUsed, StageEnded, StageStarted
from vitseg.model.freeze import checked_depth, set_freeze_depth, trained_parts
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter, likeliest
from vitseg.recipe import Recipe
from vitseg.training.audit import AuditReport, LRContract, audit, part_hashes, what_moved
from vitseg.training.cache import FeatureCache
from vitseg.training.device import resolve
from vitseg.training.evaluate import evaluate
from vitseg.training.features import FeatureBatch, Features
from vitseg.training.losses import loss_notes, loss_of
from vitseg.training.metrics import confusion, scores
from vitseg.training.optim import build_optimizer, used_lr
from vitseg.training.schedule import build_schedule
from vitseg.training.state import load_state, state_of
from vitseg.training.team import Team
from vitseg.training.weights import Weights, trained_weights


class StageTraining:
    """One stage: `for event in StageTraining(recipe, 1, model, data)` trains it.

    Pause is to stop asking for events; stop is to close. Between two events `state_dict` holds all
    that is needed to go on in another process. `epochs_before` and `steps_before` are what earlier
    stages used up, for the records; `cache` is the run's, where it has one. In a `team` each
    process takes its part of every step and of every evaluation; all of them log the same events,
    and must be given the same everything.
    """

    def __init__(
        self,
        recipe: Recipe,
        number: int,
        model: Segmenter,
        data: SegmentationData,
        *,
        epochs_before: int = 0,
        steps_before: int = 0,
        cache: FeatureCache | None = None,
        team: Team | None = None,
    ):
        self.recipe, self.number, self.model, self.data = recipe, number, model, data
        self.stage = recipe.stages[number - 1]
        self.epochs_before, self.steps_before, self.cache, self.team = (
            epochs_before,
            steps_before,
            cache,
            team or Team(),
        )
        self.machine = resolve(recipe)
        self.unfrozen = depth_of_stage(recipe, number, model)
        set_freeze_depth(model.to(self.machine.device), self.unfrozen)
        model.encoder.recompute = recipe.recompute
        for drop_path in model.encoder.drop_paths[model.encoder.cut :]:
            drop_path.rate = self.stage.drop_path
        self.features = Features(
            recipe, model, data
        )  # nothing is kept before the weights have been looked at
        self.loss = loss_of(recipe, data, self.machine.device)
        self.optimizer = build_optimizer(model, recipe.optimizer, self.stage)
        self.batches = batches_per_epoch(recipe, data)
        self.schedule = build_schedule(self.stage, self.optimizer, self.batches)
        self.scaler = torch.amp.GradScaler(
            self.machine.device.type, enabled=self.machine.precision == "fp16"
        )
        self.epoch = self.batch = self.step = self.skipped = 0
        self.contract = self._contract()
        self.lr: dict[str, float] = {}
        self.hashes: dict[str, str | None] = {}
        self.best: dict[str, Any] | None = None
        self.best_epoch, self.best_weights = 0, {}
        self._start_running_totals()

    def __iter__(self) -> Iterator[Event]:
        self.machine.settle()
        report = audit(self.model, self.optimizer, self.unfrozen).check(
            self._before_the_next_step()
        )
        self.team.same("What the model holds", report.hashes)
        self.features = Features(self.recipe, self.model, self.data, report.hashes, self.cache)
        if self.best is None:
            self.hashes = report.hashes
            yield (yield from self._begin(report))
        while not self._finished():
            yield from self._train_epoch()
            yield self._features_used()
            yield (yield from self._end_epoch())
        yield self._end()

    def _begin(self, report: AuditReport) -> Generator[Event, None, StageStarted]:
        """Score the start weights: they are epoch 0, and may stay the best, but for those of stage
        1, a random decoder.
        """
        score = yield from self._evaluate(self.epochs_before)
        self.best, self.best_epoch, self.best_weights = score, 0, self.trained_weights()
        return StageStarted(
            stage=self.number,
            name=self.stage.name,
            epoch=self.epochs_before,
            step=self.steps_before,
            epochs=self.stage.epochs,
            unfrozen_blocks=self.unfrozen,
            schedule=plan.describe(self.stage),
            total=report.total,
            trainable=report.trainable,
            parts=[
                {
                    "name": p.name,
                    "parameters": p.parameters,
                    "trains": p.should_train,
                    "in_optimizer": p.in_optimizer,
                }
                for p in report.parts
            ],
            audit=str(report),
            notes=stage_notes(self.recipe, self.number, self.data),
            validation=score,
        )

    def _train_epoch(self) -> Iterator[BatchEnded]:
        portions = self._portions()
        while self.batch < self.batches:
            with self.team.together():
                own = next(portions)
            yield self._train_step(own)

    def _train_step(self, portions: list[FeatureBatch]) -> BatchEnded:
        """One optimizer step, over all portions of a batch that are this process's."""
        self.machine.settle()
        self._check_freeze()
        self.model.train()  # somebody may have evaluated it between two steps
        self.contract.check(self.steps_before + self.step + 1, self.optimizer)
        self.lr = used_lr(self.optimizer)
        with self._refuse_without_memory():
            loss = self._backward(portions)
            grad_norm = self._clip()
            stepped = self._step_optimizer()
        if stepped:
            self.schedule.after_batch()
        else:
            self.skipped += 1
            self.contract = self._contract()
        self.step, self.batch = self.step + 1, self.batch + 1
        return BatchEnded(
            stage=self.number,
            epoch=self.epochs_before + self.epoch + 1,
            step=self.steps_before + self.step,
            batch=self.batch,
            batches=self.batches,
            loss=loss,
            lr=self.lr,
            grad_norm=grad_norm,
            stepped=stepped,
        )

    def _features_used(self) -> FeaturesUsed:
        *counts, note = self.features.used()
        read, computed = self.team.sum(torch.tensor(counts)).tolist()
        return FeaturesUsed(self.number, self.epochs_before + self.epoch + 1, read, computed, note)

    def _end_epoch(self) -> Generator[Event, None, EpochEnded]:
        if self.team.size > 1:
            trained = trained_parts(self.unfrozen, self.model.encoder.depth)
            self.team.same("What the model holds", part_hashes(self.model, trained))
        score = yield from self._evaluate(self.epochs_before + self.epoch + 1)
        self.schedule.after_epoch()
        self.epoch, self.batch = self.epoch + 1, 0
        if better := _key(score) >= _key(self.best) or self._starts_from_nothing():
            self.best, self.best_epoch, self.best_weights = (
                score,
                self.epoch,
                self.trained_weights(),
            )
        train = {"loss": self.running_loss / self.batches} | self._scores(self.running)
        self._start_running_totals()
        epoch, step = self.epochs_before + self.epoch, self.steps_before + self.step
        return EpochEnded(self.number, epoch, step, self.lr, train, score, better)

    def _end(self) -> StageEnded:
        self.contract.check(self.steps_before + self.step + 1, self.optimizer)
        after = audit(self.model, self.optimizer, self.unfrozen, since=self.hashes).check(
            f"at the end of stage {self.number}"
        )
        return StageEnded(
            stage=self.number,
            epoch=self.epochs_before + self.epoch,
            step=self.steps_before + self.step,
            epochs=self.epoch,
            schedule_steps=self.schedule.steps,
            best_epoch=self.best_epoch,
            best=self.best,
            stopped_early=self.epoch < self.stage.epochs,
            audit=what_moved(after),
            warning=self._found_nothing(),
        )

    def _starts_from_nothing(self) -> bool:
        """Whether the best weights so far are those that stage 1 began with, which were never
        trained.
        """
        return self.number == 1 and self.best_epoch == 0

    def _found_nothing(self) -> str:
        """A warning, if the best weights find no pixel of any foreground class that there is."""
        known = [iou for iou in self.best["per_class_iou"][1:] if iou is not None]
        if any(known) or not known:
            return ""
        return (
            f"The best weights of stage {self.number} find no foreground: the validation IoU of "
            f"every class but "
            f"{self.data.classes[0]!r} is 0. If the validation loss was still falling, train more "
            f"epochs. If objects are "
            "small, enlarge them: a larger data.size, or data.crop, which cuts out the foreground. "
            "vitseg check shows the masks."
        )

    def _portions(self) -> Iterator[list[FeatureBatch]]:
        """The steps of the epoch that are left; of each what is this process's part, in portions of
        `batch_size`.
        """
        epoch, r = self.epoch + 1, self.recipe
        view = view_name(r.data, self.number, epoch)
        keys = [(name, view) for name in self.data.order(r.seed, self.number, epoch)]
        steps = chunked(keys, r.batch_size * r.accumulate)[self.batch :]
        portions = [chunked(self.team.part(step), r.batch_size) for step in steps]
        batches = self.features.batches([keys for own in portions for keys in own], training=True)
        try:
            for own in portions:
                yield list(islice(batches, len(own)))
        except FeatureBreach:
            self._refuse_moved()  # whose sentence names the parts
            raise

    def _first_sample(self) -> int:
        """The place in the step of the first image that is this process's."""
        images, size = (
            len(self.data.splits["train"]),
            self.recipe.batch_size * self.recipe.accumulate,
        )
        return self.team.bounds(min(size, images - self.batch * size))[0]

    def _refuse_moved(self) -> None:
        """Raises FreezeBreach if a frozen part is not what it was at the start of the stage."""
        trained = trained_parts(self.unfrozen, self.model.encoder.depth)
        since = {name: digest for name, digest in self.hashes.items() if name not in trained}
        audit(self.model, self.optimizer, self.unfrozen, since=since).check(
            self._before_the_next_step()
        )

    def _backward(self, portions: list[FeatureBatch]) -> float:
        """Gradients of the batch's loss, which is that of one portion if it fitted in one. Returns
        the loss.
        """
        self.optimizer.zero_grad()
        masks = [p.masks.to(self.machine.device) for p in portions]
        counts = self.team.sum(
            sum(
                (self.loss.counts(m) for m in masks),
                start=torch.zeros(2, device=self.machine.device),
            )
        )
        with self.team.together(), self._refuse_without_memory():
            loss, matrix = self._backward_of(portions, masks, counts)
        self.team.sum_gradients(self._trained())
        total = float(self.team.sum(torch.tensor(loss, dtype=torch.float64)))
        self.running_loss, self.running = (
            self.running_loss + total,
            self.running + self.team.sum(matrix),
        )
        return total

    def _backward_of(
        self, portions: list[FeatureBatch], masks: list[Tensor], counts: Tensor
    ) -> tuple[float, Tensor]:
        """The part of some portions in the batch's gradients and loss, and their confusion
        matrix.
        """
        total, seen, matrix = 0.0, self._first_sample(), torch.zeros_like(self.running)
        for portion, mask in zip(portions, masks, strict=True):
            key_noise(
                self.model, self.recipe.seed, "noise", self.number, self.step + 1, first_sample=seen
            )
            with self.machine.autocast():
                logits = self.model.suffix(portion.levels, self.recipe.data.size)
            loss = self.loss.mean(self.loss.sums(logits, mask), counts)
            self._refuse_nan(loss, portion)
            self.scaler.scale(loss).backward()
            total, seen = total + loss.item(), seen + len(portion.names)
            matrix += confusion(likeliest(logits.detach()), mask, len(self.data.classes))
        return total, matrix

    @contextlib.contextmanager
    def _refuse_without_memory(self) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            self.optimizer.zero_grad()
            if self.machine.device.type == "cuda":
                torch.cuda.empty_cache()
            raise TrainingError(
                (
                    f"There was not enough memory for step {self.steps_before + self.step + 1}: "
                    f"{error or 'none is left'}."
                ),
                (
                    "What was saved is whole. Lower batch_size and raise accumulate: the step "
                    "stays "
                    "as large. Or lower data.size."
                ),
            ) from None

    def _refuse_nan(self, loss: Tensor, portion: FeatureBatch) -> None:
        if not loss.isfinite():
            lrs = ", ".join(f"{name} {lr:.3g}" for name, lr in used_lr(self.optimizer).items())
            raise TrainingError(
                f"The loss of step {self.steps_before + self.step + 1} is {loss.item()}; LR: "
                f"{lrs}; "
                f"images: {', '.join(portion.names)}.",
                "Nothing was changed by this step. Lower the LR, or look at these images.",
            )

    def _clip(self) -> float | None:
        """Gradient norm before clipping, over all that trains; None where mixed precision
        overflowed.
        """
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self._trained(), self.recipe.clip_norm or math.inf
        ).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            step = self.steps_before + self.step + 1
            raise TrainingError(
                f"The gradient of step {step} is {norm}.",
                "Nothing was changed by it. Lower the LR.",
            )
        return norm if math.isfinite(norm) else None

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _step_optimizer(self) -> bool:
        """False where mixed precision overflowed and the step was skipped."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def _check_freeze(self) -> None:
        audit(self.model, self.optimizer, self.unfrozen, weights=False).check(
            self._before_the_next_step()
        )

    def _before_the_next_step(self) -> str:
        return f"before step {self.steps_before + self.step + 1}, in stage {self.number}"

    def _contract(self) -> LRContract:
        """One step more than the stage has: the LR after the last step is promised too."""
        steps = range(1, self.stage.epochs * self.batches + 2)
        planned = [plan.planned_lr(self.stage, n, self.batches, self.skipped) for n in steps]
        return LRContract(planned, first_step=self.steps_before + 1)

    def _evaluate(self, epoch: int) -> Generator[Event, None, dict[str, Any]]:
        about = (self.number, epoch, self.features, self.team)
        return (yield from evaluate(self.recipe, self.model, self.data, "validation", *about))

    def _scores(self, matrix: Tensor) -> dict[str, Any]:
        return scores(matrix, self.data.mode, self.recipe.data.score_background)

    def _start_running_totals(self) -> None:
        self.running = torch.zeros(
            len(self.data.classes), len(self.data.classes), dtype=torch.int64
        )
        self.running_loss = 0.0

    def _finished(self) -> bool:
        patience = self.stage.patience
        return self.epoch >= self.stage.epochs or (
            patience is not None and self.epoch - self.best_epoch >= patience
        )

    def trained_weights(self) -> Weights:
        """A copy, on the CPU, of every weight that this stage or an earlier one may have
        changed.
        """
        return trained_weights(self.model, self.recipe, self.number)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from between two events: tensors, numbers and strings
        only.
        """
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises TrainingError when it is of another stage, or does not fit the
        model.
        """
        if state["stage"] != self.number:
            raise TrainingError(
                f"This state is of stage {state['stage']}, not of stage {self.number}."
            )
        try:
            load_state(self, state)
        except (
            KeyError,
            ValueError,
            TypeError,
            IndexError,
            AttributeError,
            RuntimeError,
        ) as error:  # as many as torch raises
            mend = "Resume with the recipe and the encoder that it was saved with."
            raise TrainingError(
                f"This state does not fit the model and its optimizer ({error}).", mend
            ) from None
        self.contract = self._contract()


def depth_of_stage(recipe: Recipe, number: int, model: Segmenter) -> int:
    """How many blocks a stage unfreezes. Raises ConfigError where the encoder has fewer, or does
    not use the last.
    """
    wanted, field = (
        recipe.stages[number - 1].unfrozen_blocks,
        f"stages.{number - 1}.unfrozen_blocks",
    )
    depth, last_skip = model.encoder.depth, model.shape.skip_depths[-1]
    count = checked_depth(wanted, depth, field)
    if count and last_skip < depth:
        mend = (
            f"Blocks above the last skip, {last_skip}, are not used; end model.skip_depths "
            f"with {depth}."
        )
        raise ConfigError(field, wanted, "0", mend)
    return count


def stage_notes(recipe: Recipe, number: int, data: SegmentationData) -> list[str]:
    """What a reader should know about a stage before it begins. What is wrong with the images is
    said once, of stage 1.
    """
    schedule = plan.notes(recipe.stages[number - 1], batches_per_epoch(recipe, data))
    batch = plan.batch_notes(recipe, len(data.splits["train"]))
    return (data.warnings if number == 1 else []) + schedule + loss_notes(recipe, data) + batch


def batches_per_epoch(recipe: Recipe, data: SegmentationData) -> int:
    """Optimizer steps in an epoch; the last may be over fewer images."""
    return math.ceil(len(data.splits["train"]) / (recipe.batch_size * recipe.accumulate))


def _key(score: dict[str, Any]) -> tuple[float, float]:
    """What "best" compares: IoU, or accuracy where no truth has a foreground; where that is equal,
    the lower loss.
    """
    measure = score["iou"] if score["iou"] is not None else score["accuracy"] or 0.0
    return measure, -math.inf if score["loss"] is None else -score["loss"]
