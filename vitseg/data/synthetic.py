"""The built-in data set: wound-like regions on skin-like ground, in uneven light. Every figure on
it says so.

Each sample is a function of (seed, index) and of nothing else. Classes are of unequal size and
frequency, and the ground carries blotches in the colours of the tissue, so that colour alone does
not solve it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.random import default_rng
from PIL import Image, ImageColor
from scipy.special import expit

from vitseg.draws import seed_for
from vitseg.settings import Generated

_COLORS = {
    "granulation": "#962d2a",
    "slough": "#c4a860",
    "necrosis": "#302422",
    "rim": "#d68c84",
    "bruise": "#705476",
    "ointment": "#e4dece",
    "scab": "#623a28",
    "ink": "#3e4278",
    "suture": "#22283c",
}
NAMES = ("background", *_COLORS)
_GRANULATION, _SLOUGH, _NECROSIS, _RIM, *_BESIDE = range(1, len(NAMES))
"""Classes of the tissues that make up a wound, and of what lies beside one."""

_SKIN = [ImageColor.getrgb(tone) for tone in ("#e0b89e", "#c6987a", "#9c7056", "#704e3c")]


def class_names(cfg: Generated) -> tuple[str, ...]:
    return ("background", "wound") if cfg.classes == 2 else NAMES[: cfg.classes]


def generate(cfg: Generated, index: int) -> tuple[Image.Image, np.ndarray]:
    """Sample `index`: an RGB image of side `cfg.side` and its class ids (side, side) uint8."""
    rng, shape = default_rng(seed_for(cfg.seed, "generated", index)), (cfg.side, cfg.side)
    frequency = np.hypot(np.fft.fftfreq(cfg.side)[:, None], np.fft.rfftfreq(cfg.side))
    frequency[0, 0] = np.inf

    def noise(roughness: float) -> np.ndarray:
        """A smooth random field of unit variance, spectrum 1 / f ** roughness."""
        spectrum = np.fft.rfft2(rng.standard_normal(shape)) / frequency**roughness
        field = np.fft.irfft2(spectrum, shape)
        return field / field.std()

    def outline(low: float, high: float) -> np.ndarray:
        """Distance from a random centre in units of a wobbly ellipse's radius: below 1 is
        inside.
        """
        centre = rng.uniform(0.2, 0.8, 2) * cfg.side
        radius = rng.uniform(low, high, 2) * cfg.side
        y, x = (np.indices(shape) - centre[:, None, None]) / radius[:, None, None]
        angle, wobble = np.arctan2(y, x), 1
        for k in range(2, 7):
            wobble += rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        return np.hypot(y, x) / wobble + 0.05 * noise(1.5)

    def blend(alpha: np.ndarray, color: Sequence[int] | np.ndarray) -> None:
        image[:] += alpha[..., None] * (color - image)

    def paint(alpha: np.ndarray, kind: int) -> None:
        """Lay a tissue over the image: its colour, varied from wound to wound, with a texture of
        its own.
        """
        color = ImageColor.getrgb(_COLORS[NAMES[kind]]) + rng.normal(0, 12, 3)
        blend(alpha, color + noise(1.0)[..., None] * rng.uniform(6, 16))

    # the ground: a skin tone with blotches, some of them as red as a wound, pores and freckles
    tone, other = rng.choice(_SKIN, 2)
    image = tone * 0.7 + other * 0.3 + noise(1.6)[..., None] * (9, 7, 7)
    blotch = expit(6 * (noise(2.2) - 1.3))
    blend(blotch * rng.uniform(0.1, 0.5), (172, 84, 78))
    freckle = expit(12 * (noise(1.1) - 2.6))
    blend(freckle * rng.uniform(0, 0.6), (84, 54, 42))
    image += rng.standard_normal((*shape, 1)) * 4

    mask = np.zeros(shape, np.uint8)
    for _ in range(1 + rng.choice(3, p=[0.65, 0.25, 0.1])):
        distance = outline(0.09, 0.26)
        inside, width = distance < 1, rng.uniform(0.08, 0.2)
        tissue = np.select([inside, distance < 1 + width], [_GRANULATION, _RIM])
        tissue[inside & (noise(1.8) > rng.uniform(0.3, 1.6))] = _SLOUGH
        if rng.random() < 0.4:
            dark = distance + 0.35 * noise(1.8)
            tissue[inside & (dark < rng.uniform(0.3, 0.7))] = _NECROSIS
        edge = expit((1 + width - distance) / 0.03)
        for kind in np.unique(tissue[tissue > 0]):
            paint(edge * (tissue == kind), kind)
        mask[tissue > 0] = tissue[tissue > 0]

    # small ones of rarer kinds; where their class is not asked for they stay as a distraction
    for kind in _BESIDE:
        if rng.random() < 0.35:
            distance = outline(0.03, 0.1)
            inside = (distance < 1) & (mask == 0)
            paint(inside * 0.8 * expit((0.9 - distance) / 0.06), kind)
            mask[inside] = kind

    # uneven light: a gradient across the image, a soft shadow, wet highlights, a colour cast
    y, x = np.indices(shape) / cfg.side - 0.5
    direction = rng.uniform(0, 2 * np.pi)
    gain = 1 + rng.uniform(0.1, 0.6) * (np.cos(direction) * x + np.sin(direction) * y)
    gain *= 1 - 0.25 * expit(8 * (noise(2.4) - 1))
    shine = expit(7 * (noise(1.9) - 2.5))
    lit = image * gain[..., None] * rng.uniform(0.92, 1.08, 3) + 70 * shine[..., None]

    if cfg.classes == 2:
        mask = ((mask > 0) & (mask <= _RIM)).astype(np.uint8)
    mask[mask >= cfg.classes] = 0
    return Image.fromarray(lit.clip(0, 255).round().astype(np.uint8)), mask
