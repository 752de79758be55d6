"""A moving average of the weights, beside a training: one that is updated, and can be scored."""

from collections.abc import Iterable, Iterator

import torch

from vitseg.errors import ConfigError, TrainingError
from vitseg.events import BatchEnded, Event
from vitseg.model.segmenter import Segmenter, Weights


class Ema:
    """An exponential moving average of what trains: `for event in ema.follow(training): ...`, then
    `ema.averaged()`.

    The first step's weights, afterwards `decay` of the average and 1 - decay of the new ones, after
    every step of the optimizer. Only what trains is kept twice. The training itself is not changed
    by it.
    """

    def __init__(self, model: Segmenter, decay: float = 0.99):
        if not 0 <= decay < 1:
            raise ConfigError("decay", decay, "0 <= decay < 1")
        self.model, self.decay, self.updates = model, decay, 0
        self._average: Weights = {}

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass the events of a training on, and update after each of its steps."""
        for event in events:
            if isinstance(event, BatchEnded) and event.stepped:
                self.update()
            yield event

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights as they are."""
        for name, weight in self.model.named_parameters():
            if not weight.requires_grad:
                continue
            if name in self._average:
                self._average[name].lerp_(weight, 1 - self.decay)
            else:
                self._average[name] = weight.detach().clone()
        self.updates += 1

    def averaged(self) -> Segmenter:
        """A copy of the model with the averaged weights, in eval mode. Raises TrainingError before
        the first update.
        """
        if not self.updates:
            raise TrainingError(
                "Nothing has been averaged yet.",
                "Train through it: for event in ema.follow(training).",
            )
        model = self.model.snapshot()
        model.load_state_dict(self._average, strict=False)
        return model
