"""Views by PIL against the same warp and colour changes by kornia: images a second, and whether
threads change bits.

python benchmarks/views.py
"""

from __future__ import annotations

import math
import sys
import time

import kornia
import numpy as np
import torch
from PIL import Image

from vitseg.data.augment import make_view
from vitseg.settings import Data
from vitseg.ui.table import Table

SIDE, COUNT = 224, 60


def by_kornia(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One affine warp of image and mask, then brightness, contrast, saturation."""
    warp = kornia.geometry.get_rotation_matrix2d(
        torch.tensor([[SIDE / 2, SIDE / 2]]),
        torch.tensor([math.degrees(0.2)]),
        torch.tensor([[1.1, 1.1]]),
    )
    image = kornia.geometry.warp_affine(image, warp, (SIDE, SIDE))
    kornia.geometry.warp_affine(mask, warp, (SIDE, SIDE), mode="nearest")
    image = kornia.enhance.adjust_brightness(image, 0.05)
    return kornia.enhance.adjust_saturation(kornia.enhance.adjust_contrast(image, 1.1), 1.1)


def rate(call) -> float:
    call()
    started = time.process_time()
    for _ in range(COUNT):
        call()
    return COUNT / (time.process_time() - started)


def main() -> int:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    picture, mask = Image.fromarray(pixels), Image.fromarray(pixels[..., 0] // 64)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    ids = torch.from_numpy(pixels[None, None, ..., 0] // 64).float()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(by_kornia(tensor, ids))
    torch.set_num_threads(1)
    pil, other = (
        rate(lambda: make_view(picture, mask, Data(), "a", "1")),
        rate(lambda: by_kornia(tensor, ids)),
    )
    same = (
        "yes"
        if torch.equal(*results)
        else f"no, by up to {(results[0] - results[1]).abs().max().item():.1e}"
    )
    rows = (("PIL", f"{pil:.0f}", "yes"), (f"kornia {kornia.__version__}", f"{other:.0f}", same))
    sys.stdout.write(
        f"{Table(('views by', 'images / CPU second', 'same bits on 1 and 2 threads'), rows)}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
