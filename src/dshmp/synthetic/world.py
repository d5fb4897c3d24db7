"""What differs between the versions of the synthetic data set: its numbers and tables."""

from dataclasses import dataclass, replace

from dshmp.common.errors import UserError
from dshmp.synthetic.grammar import SHAPES, TEXTURES

Casts = dict[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class World:
    """A version of the data set.

    schedule: families of clips in the order in which a split takes them, over and over. casts: how many look-alikes and
    others there may be in a clip, by family (_cast draws those of other families). ratios: of the long side of frames
    to the short one; none: as version 1 draws them. strong: the share of clips with a strong camera; 0: the camera is
    not part of the plan. natural: frames and objects of many sizes, pictures with the statistics of natural ones.
    talkative: every clip has many sentences, absent ones among them. older: a version of which a third of the training
    split is, whole rounds of its schedule, so that what is easy is learned, too.
    """

    version: int
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    schedule: tuple[str, ...]
    casts: Casts
    ratios: tuple[float, ...] = ()
    strong: float = 0
    natural: bool = False
    talkative: bool = False
    older: int | None = None


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
    older=1,
)
_THIRD = replace(_SECOND, version=3, schedule=tuple(name for own in _SECOND.schedule for name in (own, "footage")))


WORLDS = {world.version: world for world in (_FIRST, _SECOND, _THIRD)}


def schedule(version: int, split: str, count: int) -> list[tuple[int, str]]:
    """Version and family of each clip of a split."""
    world, found = world_of(version), list[tuple[int, str]]()
    while len(found) < count:
        rounds = len(found) // len(world.schedule)
        own = world_of(world.older) if world.older and split == "train" and rounds % 3 == 2 else world
        found += [(own.version, name) for name in own.schedule]
    return found[:count]


def world_of(version: int) -> World:
    """The numbers and tables of a version; UserError if there is none of that number."""
    if version not in WORLDS:
        raise UserError(f"the synthetic data set has no version {version}; choose from {', '.join(map(str, WORLDS))}")
    return WORLDS[version]
