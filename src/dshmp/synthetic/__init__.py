"""The synthetic data set: short videos of moving objects with motion expressions, in MeViS's on-disk layout."""

from dshmp.synthetic.cast import FAMILIES, Item
from dshmp.synthetic.make import Clip, make_clip, make_synthetic, time_reversed
from dshmp.synthetic.plan import SPLITS
from dshmp.synthetic.sentences import SUBSETS, Sentence

__all__ = ["FAMILIES", "SPLITS", "SUBSETS", "Clip", "Item", "Sentence", "make_clip", "make_synthetic", "time_reversed"]
