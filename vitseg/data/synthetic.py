"""The built-in data set: wound-like regions on skin-like ground, in uneven light. Every figure on
it says so.

Each sample is a function of (seed, index) and of nothing else. Classes are of unequal size and
frequency, and the ground carries blotches in the colours of the tissue, so that colour alone does
not solve it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitseg.draws import seed_for
from vitseg.settings import Generated

_COLORS = {
    "granulation": (150, 45, 42),
    "slough": (196, 168, 96),
    "necrosis": (48, 36, 34),
    "rim": (214, 140, 132),
    "bruise": (112, 84, 118),
    "ointment": (228, 222, 206),
    "scab": (98, 58, 40),
    "ink": (62, 66, 120),
    "suture": (34, 40, 60),
}
NAMES = ("background", *_COLORS)
_TISSUES = 5
"""The first classes, which make up a wound; what follows lies beside one."""

_SKIN = ((224, 184, 158), (198, 152, 122), (156, 112, 86), (112, 78, 60))


def class_names(cfg: Generated) -> tuple[str, ...]:
    return ("background", "wound") if cfg.classes == 2 else NAMES[: cfg.classes]


def generate(cfg: Generated, index: int) -> tuple[Image.Image, np.ndarray]:
    """Sample `index`: an RGB image of side `cfg.side` and its class ids (side, side) uint8."""
    rng = np.random.default_rng(seed_for(cfg.seed, "generated", index))
    side = cfg.side
    image = _skin(rng, side)
    mask = np.zeros((side, side), dtype=np.uint8)
    for _ in range(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1])):
        _wound(rng, image, mask)
    for kind in range(_TISSUES, len(NAMES)):
        if rng.random() < 0.35:
            _patch(rng, image, mask, kind)
    image = _light(rng, image)
    mask[mask >= max(cfg.classes, _TISSUES)] = 0
    if cfg.classes == 2:
        mask = (mask > 0).astype(np.uint8)
    mask[mask >= cfg.classes] = 0
    return Image.fromarray(image.clip(0, 255).round().astype(np.uint8)), mask


def _noise(rng: np.random.Generator, side: int, roughness: float) -> np.ndarray:
    """A smooth random field of unit variance (side, side), spectrum 1 / f ** roughness."""
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**roughness
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(side, side))
    return field / field.std()


def _skin(rng: np.random.Generator, side: int) -> np.ndarray:
    """Ground (side, side, 3): a skin tone with blotches, some of them as red as a wound, pores and
    freckles.
    """
    a, b = rng.choice(len(_SKIN), 2)
    tone = np.array(_SKIN[a]) * 0.7 + np.array(_SKIN[b]) * 0.3
    image = np.broadcast_to(tone, (side, side, 3)).astype(np.float64).copy()
    image += _noise(rng, side, 1.6)[..., None] * (9, 7, 7)
    blotch = 1 / (1 + np.exp(-6 * (_noise(rng, side, 2.2) - 1.3)))
    _blend(image, blotch * rng.uniform(0.1, 0.5), (172, 84, 78))
    freckle = 1 / (1 + np.exp(-12 * (_noise(rng, side, 1.1) - 2.6)))
    _blend(image, freckle * rng.uniform(0, 0.6), (84, 54, 42))
    return image + rng.standard_normal((side, side, 1)) * 4


def _outline(rng: np.random.Generator, side: int, low: float, high: float) -> np.ndarray:
    """Distance from a random centre in units of a wobbly ellipse's radius (side, side): below 1 is
    inside.
    """
    cy, cx = rng.uniform(0.2, 0.8, 2) * side
    ry, rx = rng.uniform(low, high, 2) * side
    y, x = np.mgrid[:side, :side].astype(np.float64)
    angle = np.arctan2((y - cy) / ry, (x - cx) / rx)
    harmonics = range(2, 7)
    wobble = sum(
        rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in harmonics
    )
    return np.hypot((y - cy) / ry, (x - cx) / rx) / (1 + wobble) + 0.05 * _noise(rng, side, 1.5)


def _exp(x: np.ndarray) -> np.ndarray:
    """e ** x, cut off before it overflows at 709: where an outline's wobble nears -1, distances
    have no bound.
    """
    return np.exp(np.minimum(x, 700.0))


def _wound(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    side = len(mask)
    distance = _outline(rng, side, 0.09, 0.26)
    inside, width = distance < 1, rng.uniform(0.08, 0.2)
    tissue = np.where(inside, NAMES.index("granulation"), 0)
    tissue[(distance >= 1) & (distance < 1 + width)] = NAMES.index("rim")
    tissue[inside & (_noise(rng, side, 1.8) > rng.uniform(0.3, 1.6))] = NAMES.index("slough")
    if rng.random() < 0.4:
        dark = distance + 0.35 * _noise(rng, side, 1.8)
        tissue[inside & (dark < rng.uniform(0.3, 0.7))] = NAMES.index("necrosis")
    edge = 1 / (1 + _exp((distance - 1 - width) / 0.03))
    for kind in np.unique(tissue[tissue > 0]):
        _paint(rng, image, np.where(tissue == kind, edge, 0), NAMES[kind])
    mask[tissue > 0] = tissue[tissue > 0]


def _patch(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, kind: int) -> None:
    """A small lesion of a rarer kind; where its class is not asked for it stays in the image as a
    distraction.
    """
    distance = _outline(rng, len(mask), 0.03, 0.1)
    inside = (distance < 1) & (mask == 0)
    _paint(rng, image, inside * 0.8 / (1 + _exp((distance - 0.9) / 0.06)), NAMES[kind])
    mask[inside] = kind


def _paint(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, name: str) -> None:
    """Lay a tissue over the image: its colour, varied from wound to wound, with a texture of its
    own.
    """
    color = np.array(_COLORS[name]) + rng.normal(0, 12, 3)
    texture = _noise(rng, len(image), 1.0)[..., None] * rng.uniform(6, 16)
    image += alpha[..., None] * (color + texture - image)


def _blend(image: np.ndarray, alpha: np.ndarray, color: tuple[int, int, int]) -> None:
    image += alpha[..., None] * (np.array(color) - image)


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light: a gradient across the image, a soft shadow, wet highlights, a colour cast."""
    side = len(image)
    y, x = np.mgrid[:side, :side] / side - 0.5
    direction = rng.uniform(0, 2 * np.pi)
    gain = 1 + rng.uniform(0.1, 0.6) * (np.cos(direction) * x + np.sin(direction) * y)
    gain *= 1 - 0.25 / (1 + np.exp(-8 * (_noise(rng, side, 2.4) - 1)))
    shine = 1 / (1 + np.exp(-7 * (_noise(rng, side, 1.9) - 2.5)))
    cast = rng.uniform(0.92, 1.08, 3)
    return image * gain[..., None] * cast + 70 * shine[..., None]
