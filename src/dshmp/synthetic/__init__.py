"""The synthetic data set: short videos of moving objects with motion expressions, in MeViS's on-disk layout."""

from dshmp.synthetic.make import Clip, make_clip, make_synthetic, time_reversed
from dshmp.synthetic.plan import FAMILIES, SPLITS, SUBSETS, Item, Sentence

__all__ = ["FAMILIES", "SPLITS", "SUBSETS", "Clip", "Item", "Sentence", "make_clip", "make_synthetic", "time_reversed"]
