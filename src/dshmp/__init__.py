"""Referring video segmentation with decoupled static and hierarchical motion perception (DsHmp)."""

__version__ = "0.1.0"
