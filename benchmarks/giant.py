"""The giant, planned: what a step of each of its stages takes, with and without activation
checkpointing.

    python benchmarks/giant.py
        (DINOv2-giant's architecture, random weights, 392 px, batches of 8)
    python benchmarks/giant.py WIDTH BLOCKS HEADS
        (another architecture, whose steps are taken also without a GPU)

The plan is worked out from shapes alone: neither weights nor a GPU is needed. Where there is a GPU
the steps are then taken, and the table says what they took at most. Frozen features count as kept:
a step begins at the first block that trains.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

import vitseg
from vitseg.model.decoder import build_decoder
from vitseg.model.encoder import Encoder
from vitseg.model.freeze import set_freeze_depth
from vitseg.model.noise import key_noise
from vitseg.model.segmenter import Segmenter, Shape
from vitseg.runs.forecast import saved_by
from vitseg.training.losses import SegmentationLoss
from vitseg.training.optim import build_optimizer
from vitseg.ui.table import Table, size

SIDE, IMAGES, STEPS = 392, 8, 5
GIANT = (1536, 40, 24)
CLASSES = 10


def outline(width: int, blocks: int, heads: int) -> torch.nn.Module:
    """An encoder of that shape, without weights."""
    swiglu = (width, blocks, heads) == GIANT
    config = AutoConfig.for_model(
        "dinov2",
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        patch_size=14,
        image_size=518,
        use_swiglu_ffn=swiglu,
    )
    with torch.device("meta"):
        return AutoModel.from_config(config)


def build(vit: torch.nn.Module) -> Segmenter:
    """The giant's recipe on that encoder, where its weights are."""
    encoder = Encoder(vit)
    blocks, width = encoder.depth, encoder.width
    cfg = vitseg.giant().model
    shape = Shape(
        classes=tuple(f"class {i}" for i in range(CLASSES)),
        size=(SIDE, SIDE),
        decoder=cfg.decoder,
        dropout=cfg.dropout,
        skip_depths=tuple(blocks * i // 4 for i in (1, 2, 3, 4)),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        source={"name": "random"},
    )
    decoder = build_decoder(cfg.decoder, width, CLASSES, cfg.dropout, 0)
    return Segmenter(encoder, decoder.to(next(vit.parameters()).device), shape)


def teraflops(model: Segmenter, unfrozen: int, recompute: bool) -> float:
    """Floating point operations of a step, in 1e12, from the kept features on."""
    begin(model, unfrozen, recompute)
    levels = model.prefix(torch.zeros(IMAGES, 3, SIDE, SIDE, dtype=torch.uint8))
    with FlopCounterMode(display=False) as counter:
        model.suffix(levels, (SIDE, SIDE)).sum().backward()
    model.zero_grad()
    return counter.get_total_flops() / 1e12


def activations(model: Segmenter, loss: SegmentationLoss, unfrozen: int, recompute: bool) -> int:
    """Bytes that a step holds when it holds most; of blocks that are run once more, one at a time
    has all of its own.
    """

    def saved(unfrozen: int, recompute: bool) -> int:
        begin(model, unfrozen, recompute)
        images = torch.zeros(IMAGES, 3, SIDE, SIDE, dtype=torch.uint8)
        levels, masks = model.prefix(images), images[:, 0].long()
        return saved_by(lambda: loss.sums(model.suffix(levels, (SIDE, SIDE)), masks))

    found = saved(unfrozen, recompute)
    if recompute and unfrozen:
        found += saved(1, False) - saved(1, True)
    return found


def begin(model: Segmenter, unfrozen: int, recompute: bool) -> None:
    set_freeze_depth(model.train(), unfrozen)
    model.encoder.recompute = recompute
    key_noise(model, "giant")


def taken(
    model: Segmenter, stage: vitseg.Stage, recompute: bool, autocast: torch.autocast
) -> tuple[float, str]:
    """Seconds of a step, and the most memory that was taken, as far as the device tells."""
    begin(model, stage.unfrozen_blocks, recompute)
    optimizer = build_optimizer(model, vitseg.giant().optimizer, stage)
    loss, device = SegmentationLoss(vitseg.giant().loss, CLASSES, model.device), model.device
    masks = torch.randint(CLASSES, (IMAGES, SIDE, SIDE), device=device)
    with autocast:
        levels = model.prefix(
            torch.randint(256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
        )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        optimizer.zero_grad()
        with autocast:
            logits = model.suffix(levels, (SIDE, SIDE))
        loss(logits, masks).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    most = size(torch.cuda.max_memory_allocated()) if device.type == "cuda" else "n/a"
    return sorted(seconds)[STEPS // 2], most


def rows(dimensions: tuple[int, int, int], take: bool) -> Iterator[tuple[str, ...]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stages = [
        s.model_copy(update={"unfrozen_blocks": s.unfrozen_blocks * dimensions[1] // 40})
        for s in vitseg.giant().stages
    ]
    vit = outline(*dimensions)
    with (mode := FakeTensorMode(allow_non_fake_inputs=True)):
        vit.to_empty(device="cpu")
    shapes = build(vit)
    loss = SegmentationLoss(vitseg.giant().loss, CLASSES)
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        for recompute in (False, True):
            for stage in stages:
                with mode:
                    with torch.autocast("cpu", dtype, enabled=dtype is not None):
                        held = activations(shapes, loss, stage.unfrozen_blocks, recompute)
                    work = teraflops(shapes, stage.unfrozen_blocks, recompute)
                trained = sum(p.numel() for p in shapes.parameters() if p.requires_grad)
                weights = 4 * sum(p.numel() for p in shapes.parameters())
                cells = (
                    size(weights),
                    size(12 * trained),
                    size(held),
                    size(weights + 12 * trained + held),
                    f"{work:.1f}",
                )
                real = ("", "")
                if take:
                    gc.collect()
                    model = build(outline(*dimensions).to_empty(device=device))
                    for parameter in model.parameters():
                        torch.nn.init.normal_(parameter.detach(), 0, 0.02)
                    autocast = torch.autocast(device, dtype, enabled=dtype is not None)
                    seconds, most = taken(model, stage, recompute, autocast)
                    real = (f"{seconds:.2f}", most)
                yield (
                    f"{stage.name} ({stage.unfrozen_blocks})",
                    name,
                    "on" if recompute else "off",
                    *cells,
                    *real,
                )


def main(*dimensions: str) -> int:
    take = bool(dimensions) or torch.cuda.is_available()
    columns = (
        "stage (blocks)",
        "precision",
        "checkpointing",
        "weights",
        "gradients, moments",
        "activations",
        "together",
        "TFLOP a step",
        "s a step",
        "most memory",
    )
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here"
    caption = (
        f"{IMAGES} images of {SIDE} x {SIDE}, AdamW; {where}{'' if take else ': planned, not run'}"
    )
    found = tuple(rows(tuple(map(int, dimensions)) or GIANT, take))
    cut = len(columns) - 2 * (not take)
    sys.stdout.write(f"{Table(columns[:cut], tuple(row[:cut] for row in found), caption)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
