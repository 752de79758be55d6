"""What the live screen costs: CPU seconds of drawing beside those of training, and bytes sent, of a
run of 10,000 steps.

    python benchmarks/live_charts.py

A stand-in for training burns 20 ms of CPU a step. It is watched by a real workbench twice: from its
first step, and after 9,000 steps are on the charts. Exits 1 if drawing costs more than 5 % of
training, or if a redraw late in the run sends more than 200 kB.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import ipywidgets

import vitseg
from vitseg.events import BatchEnded, Event, RunStarted, StageStarted
from vitseg.ui import session
from vitseg.ui.table import Table
from vitseg.ui.workbench import Workbench

STEPS, STEP_SECONDS, WATCHED = 10_000, 0.020, 600
MOST_SHARE, MOST_BYTES = 0.05, 200_000
BATCHES = 250


def opening(recipe: vitseg.Recipe) -> list[Event]:
    score = {"loss": 1.0, "iou": 0.1, "f1": 0.2, "per_class_iou": [0.1] * 5}
    started = RunStarted(
        recipe.model_dump(mode="json"),
        ["a"] * 5,
        "multiclass",
        1,
        1,
        0,
        BATCHES,
        12,
        "cpu",
        "fp32",
        1,
        {},
        "",
    )
    return [
        started,
        StageStarted(1, "stand-in", 0, 0, STEPS // BATCHES, 0, "", 1, 1, [], "", [], score),
    ]


def batch(step: int) -> BatchEnded:
    epoch, place = divmod(step - 1, BATCHES)
    return BatchEnded(
        1, epoch + 1, step, place + 1, BATCHES, 1 / step, {"decoder": 1e-3 / step}, None
    )


def training(recipe: vitseg.Recipe, already: int, spent: list[float]) -> Iterator[Event]:
    """`already` steps at once, then WATCHED steps of 20 ms CPU each."""
    yield from opening(recipe)
    yield from (batch(n) for n in range(1, already + 1))
    for n in range(already + 1, already + WATCHED + 1):
        begun = time.thread_time()
        while time.thread_time() - begun < STEP_SECONDS:
            sum(range(1000))
        spent.append(time.thread_time() - begun)
        yield batch(n)


def measure(already: int) -> tuple[float, float]:
    """Share of training's CPU that drawing took, and mean bytes of a redraw."""
    recipe = vitseg.quick().replace({"stages.0.epochs": STEPS // BATCHES})
    wb, spent, drawn, sent = Workbench(recipe), [], [], []
    draw, send = wb.draw_news, ipywidgets.Widget._send

    def timed_draw() -> None:
        begun = time.thread_time()
        draw()
        drawn.append(time.thread_time() - begun)

    def counted_send(widget: ipywidgets.Widget, message: dict, buffers: list | None = None) -> None:
        sent.append(len(repr(message)) + sum(memoryview(b).nbytes for b in buffers or []))
        send(widget, message, buffers)

    wb.draw_news, ipywidgets.Widget._send = timed_draw, counted_send
    train, session.train = session.train, lambda *_, **more: training(recipe, already, spent)
    try:
        wb.start()
        painter = next(t for t in threading.enumerate() if t.name == "vitseg painter")
        painter.join()
    finally:
        ipywidgets.Widget._send, session.train = send, train
    later = drawn[1:]  # the first one draws what was there already
    return sum(later) / sum(spent), sum(sent) / len(drawn)


def main() -> int:
    with tempfile.TemporaryDirectory() as runs:
        os.environ["VITSEG_RUNS"] = runs
        rows = [(already, *measure(already)) for already in (0, STEPS - 1000)]
    cells = tuple(
        (f"{n:,} to {n + WATCHED:,}", f"{100 * share:.1f} %", f"{sent / 1000:.0f} kB")
        for n, share, sent in rows
    )
    sys.stdout.write(f"{Table(('steps', 'drawing / training, CPU', 'a redraw sends'), cells)}\n")
    return 0 if all(share <= MOST_SHARE and sent <= MOST_BYTES for _, share, sent in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
