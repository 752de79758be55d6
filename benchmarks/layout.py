"""What it saves that maps lie channels last: CPU seconds of a decoder's step on such maps, and on
contiguous ones.

python benchmarks/layout.py
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch
from torch import Tensor, nn

from vitseg.model.decoder import build_decoder
from vitseg.ui.table import Table

ROUNDS, BATCH, GRID, SIZE = 20, 8, (16, 16), (224, 224)


def seconds(decoder: nn.Module, maps: list[Tensor], train: bool) -> float:
    decoder.zero_grad()
    begun = time.process_time()
    with torch.set_grad_enabled(train):
        logits = decoder(maps, SIZE)
    if train:
        logits.square().mean().backward()
    return time.process_time() - begun


def row(name: str, width: int) -> tuple[str, ...]:
    decoder = build_decoder(name, width, 5, 0.0, seed=0)
    tokens = [
        torch.randn(BATCH, *GRID, width, generator=torch.Generator().manual_seed(i))
        for i in range(4)
    ]
    last = [t.permute(0, 3, 1, 2) for t in tokens]
    layouts = {"contiguous": [m.contiguous() for m in last], "channels last": last}
    cells = []
    for train in (True, False):
        spent = {layout: [] for layout in layouts}
        for _ in range(ROUNDS):  # in turn, so that other work on the machine falls on both
            for layout, maps in layouts.items():
                spent[layout].append(seconds(decoder, maps, train))
        cells += [f"{1000 * median(times[2:]):.0f} ms" for times in spent.values()]
    return name, str(width), *cells


def main() -> int:
    columns = (
        "decoder",
        "width",
        "training, contiguous",
        "channels last",
        "validation, contiguous",
        "channels last",
    )
    rows = tuple(row(name, width) for name in ("lean", "unet") for width in (384, 768))
    sys.stdout.write(f"{Table(columns, rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
