"""Estimates memory, FLOPs and time of a run without loading weights."""
