"""Checks that a reward keeps its contract."""
