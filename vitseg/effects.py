"""What may be done to a training view besides `Augment`: a crop before it is fitted, and a list of
effects after.
"""

from typing import Annotated, Literal

from pydantic import Field

from vitseg.words import Words

Chance = Annotated[float, Field(gt=0, le=1)]
Cells = Annotated[int, Field(ge=2, le=12)]
"""Of a lattice over the canvas, along each side; the smallest canvas has 14 pixels."""


class Crop(Words):
    """The box around the foreground, cut out at the image's own resolution with probability `p`.

    `margin` is added on each side, as a share of the box's longer side. A mask without foreground
    is left whole.
    """

    p: Chance = 0.5
    margin: float = Field(0.25, ge=0, le=10)


class _Effect(Words):
    """Happens to a view with probability `p`."""

    kind: str
    p: Chance = 0.5


class RightAngle(_Effect):
    """A turn by 90, 180 or 270 degrees; on a canvas that is not square a picture that lies across
    it is fitted again.
    """

    kind: Literal["right_angle"] = "right_angle"


class Hue(_Effect):
    """Colours moved round the colour circle, by `degrees` at most either way."""

    kind: Literal["hue"] = "hue"
    degrees: float = Field(15.0, ge=1.5, le=180)  # a step of 8-bit hue is 1.4 degrees


class Blur(_Effect):
    """A Gaussian blur, whose standard deviation is at most `sigma_pixels` of the canvas."""

    kind: Literal["blur"] = "blur"
    sigma_pixels: float = Field(1.5, gt=0, le=50)


class Elastic(_Effect):
    """Each node of a lattice of `cells` a side moves freely, by `strength` of a cell at most, and
    the image with it.
    """

    kind: Literal["elastic"] = "elastic"
    strength: float = Field(0.25, gt=0, le=0.4)  # from 0.5 on two neighbours could change places
    cells: Cells = 6


class GridDistortion(_Effect):
    """The columns and rows of a lattice of `cells` a side get other widths and heights, by
    `strength` of them at most.
    """

    kind: Literal["grid_distortion"] = "grid_distortion"
    strength: float = Field(0.3, gt=0, le=0.9)
    cells: Cells = 5


class OpticalDistortion(_Effect):
    """A lens: a point at distance r from the centre (1 in the corners) is taken from r (1 + k r^2),
    |k| <= `strength`.
    """

    kind: Literal["optical_distortion"] = "optical_distortion"
    strength: float = Field(0.15, gt=0, le=0.3)  # from 1/3 on r (1 + k r^2) would turn back


class CoarseDropout(_Effect):
    """Up to `holes` rectangles, `side` of the canvas at most either way, filled with the padding's
    colour.

    The mask keeps its classes: the model has to say from the surroundings what is behind.
    """

    kind: Literal["coarse_dropout"] = "coarse_dropout"
    holes: int = Field(6, ge=1, le=100)
    side: float = Field(0.15, gt=0, le=0.5)


class Clahe(_Effect):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of the brightness, over
    `cells` x `cells` tiles.

    A tile's histogram is cut at `clip_limit` times its mean at most.
    """

    kind: Literal["clahe"] = "clahe"
    clip_limit: float = Field(4.0, ge=1, le=40)
    cells: Cells = 8


Effect = Annotated[
    RightAngle | Hue | Blur | Elastic | GridDistortion | OpticalDistortion | CoarseDropout | Clahe,
    Field(discriminator="kind"),
]
