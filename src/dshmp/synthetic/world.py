"""What differs between the versions of the synthetic data set: its numbers and tables."""

from dataclasses import dataclass
from typing import Literal

from dshmp.errors import UserError
from dshmp.synthetic.grammar import SHAPES, TEXTURES

Version = Literal[1, 2]
VERSIONS: tuple[Version, ...] = (1, 2)
Casts = dict[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class World:
    """A version: shapes and textures; the families of clips in the order in which a split takes them, over and over;
    how many look-alikes and others there are, by family (more in other families); the ratios of the long side to the
    short one (none: as version 1 drew them); how many clips of ten have a strong camera; whether pictures have the
    statistics of natural ones; whether every clip has many sentences, absent ones among them."""

    version: Version
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    schedule: tuple[str, ...]
    casts: Casts
    ratios: tuple[float, ...] = ()
    strong: float = 0
    natural: bool = False
    talkative: bool = False


_CASTS: Casts = {
    **{"pairs": ((2, 0), (2, 1), (2, 1)), "close": ((2, 0), (2, 1))},
    **{"easy": ((2, 0), (2, 1), (1, 1), (1, 2), (3, 0)), "crowd": ((3, 3), (3, 4), (4, 3), (4, 4), (3, 5))},
}
_FIRST = World(
    version=1,
    shapes=SHAPES[:10],
    textures=TEXTURES[:4],
    schedule=(
        *("alike", "pairs", "long", "alike", "relative", "fleeting", "alike", "easy", "pairs", "alike"),
        *("crowd", "alike", "fleeting", "pairs", "alike", "relative", "long", "alike", "easy", "alike"),
    ),
    casts=_CASTS,
)
_SECOND = World(
    version=2,
    shapes=SHAPES,
    textures=TEXTURES,
    schedule=(
        *("alike", "pairs", "fleeting", "long", "relative", "alike", "fleeting", "easy", "pairs", "crowd"),
        *("fleeting", "alike", "pairs", "relative", "alike", "fleeting", "long", "alike", "easy", "crowd"),
    ),
    casts=_CASTS | {"easy": (*_CASTS["easy"], (1, 0)), "crowd": (*_CASTS["crowd"], (5, 4), (4, 6), (5, 5))},
    ratios=(16 / 9, 16 / 9, 16 / 9, 4 / 3, 4 / 3, 1.5, 1.0),
    strong=0.5,
    natural=True,
    talkative=True,
)


def world_of(version: int) -> World:
    """The numbers of a version; UserError if there is none of that number."""
    for world in (_FIRST, _SECOND):
        if world.version == version:
            return world
    raise UserError(f"the synthetic data set has no version {version}; choose from 1, 2")
