"""Scores images with the rewards of a run."""
