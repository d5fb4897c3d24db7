"""Scoring predictions on disk by the benchmarks' own protocols."""
