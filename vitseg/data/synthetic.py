"""The built-in data set: wound-like regions on skin-like ground, in uneven light. Every figure on
it says so.

Each sample is a function of (seed, index) and of nothing else. Classes are of unequal size and
frequency, and the ground carries blotches in the colours of the tissue, so that colour alone does
not solve it.
"""

import numpy as np
from numpy.random import Generator, default_rng
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
    rng = default_rng(seed_for(cfg.seed, "generated", index))
    scene = _Scene(rng, cfg.side)
    for _ in range(1 + rng.choice(3, p=[0.65, 0.25, 0.1])):
        scene.add_wound()
    for kind in _BESIDE:
        if rng.random() < 0.35:
            scene.add_lesion(kind)
    mask = scene.mask
    if cfg.classes == 2:
        mask = ((mask > 0) & (mask <= _RIM)).astype(np.uint8)
    mask[mask >= cfg.classes] = 0
    return Image.fromarray(scene.lit().clip(0, 255).round().astype(np.uint8)), mask


class _Scene:
    """A picture in the making: colours (side, side, 3) and class ids (side, side)."""

    def __init__(self, rng: Generator, side: int):
        """Ground: a skin tone with blotches, some of them as red as a wound, pores and freckles."""
        self.rng, self.side, self.mask = rng, side, np.zeros((side, side), np.uint8)
        tone, other = rng.choice(_SKIN, 2)
        self.image = tone * 0.7 + other * 0.3 + self._noise(1.6)[..., None] * (9, 7, 7)
        blotch = expit(6 * (self._noise(2.2) - 1.3))
        self._blend(blotch * rng.uniform(0.1, 0.5), (172, 84, 78))
        freckle = expit(12 * (self._noise(1.1) - 2.6))
        self._blend(freckle * rng.uniform(0, 0.6), (84, 54, 42))
        self.image += rng.standard_normal((side, side, 1)) * 4

    def add_wound(self) -> None:
        rng, distance = self.rng, self._outline(0.09, 0.26)
        inside, width = distance < 1, rng.uniform(0.08, 0.2)
        tissue = np.select([inside, distance < 1 + width], [_GRANULATION, _RIM])
        tissue[inside & (self._noise(1.8) > rng.uniform(0.3, 1.6))] = _SLOUGH
        if rng.random() < 0.4:
            dark = distance + 0.35 * self._noise(1.8)
            tissue[inside & (dark < rng.uniform(0.3, 0.7))] = _NECROSIS
        edge = expit((1 + width - distance) / 0.03)
        for kind in np.unique(tissue[tissue > 0]):
            self._paint(edge * (tissue == kind), kind)
        self.mask[tissue > 0] = tissue[tissue > 0]

    def add_lesion(self, kind: int) -> None:
        """A small one of a rarer kind; where its class is not asked for it stays in the image as a
        distraction.
        """
        distance = self._outline(0.03, 0.1)
        inside = (distance < 1) & (self.mask == 0)
        self._paint(inside * 0.8 * expit((0.9 - distance) / 0.06), kind)
        self.mask[inside] = kind

    def lit(self) -> np.ndarray:
        """The image in uneven light: a gradient across it, a soft shadow, wet highlights, a colour
        cast.
        """
        rng, side = self.rng, self.side
        y, x = np.mgrid[:side, :side] / side - 0.5
        direction = rng.uniform(0, 2 * np.pi)
        gain = 1 + rng.uniform(0.1, 0.6) * (np.cos(direction) * x + np.sin(direction) * y)
        gain *= 1 - 0.25 * expit(8 * (self._noise(2.4) - 1))
        shine = expit(7 * (self._noise(1.9) - 2.5))
        cast = rng.uniform(0.92, 1.08, 3)
        return self.image * gain[..., None] * cast + 70 * shine[..., None]

    def _noise(self, roughness: float) -> np.ndarray:
        """A smooth random field of unit variance (side, side), spectrum 1 / f ** roughness."""
        side = self.side
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
        frequency[0, 0] = np.inf
        spectrum = np.fft.rfft2(self.rng.standard_normal((side, side))) / frequency**roughness
        field = np.fft.irfft2(spectrum, (side, side))
        return field / field.std()

    def _outline(self, low: float, high: float) -> np.ndarray:
        """Distance from a random centre in units of a wobbly ellipse's radius (side, side): below 1
        is inside.
        """
        rng, side = self.rng, self.side
        centre = rng.uniform(0.2, 0.8, 2) * side
        radius = rng.uniform(low, high, 2) * side
        y, x = (np.mgrid[:side, :side] - centre[:, None, None]) / radius[:, None, None]
        angle, wobble = np.arctan2(y, x), 1
        for k in range(2, 7):
            wobble += rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        return np.hypot(y, x) / wobble + 0.05 * self._noise(1.5)

    def _paint(self, alpha: np.ndarray, kind: int) -> None:
        """Lay a tissue over the image: its colour, varied from wound to wound, with a texture of
        its own.
        """
        color = ImageColor.getrgb(_COLORS[NAMES[kind]]) + self.rng.normal(0, 12, 3)
        texture = self._noise(1.0)[..., None] * self.rng.uniform(6, 16)
        self._blend(alpha, color + texture)

    def _blend(self, alpha: np.ndarray, color: np.ndarray | tuple[int, ...]) -> None:
        self.image += alpha[..., None] * (color - self.image)
