"""The generated world: short videos of moving objects with motion expressions, in MeViS's on-disk layout."""

from dshmp.world.make import FAMILIES, SPLITS, SUBSETS, Clip, Expression, Item, make_clip, make_world, twin

__all__ = ["FAMILIES", "SPLITS", "SUBSETS", "Clip", "Expression", "Item", "make_clip", "make_world", "twin"]
