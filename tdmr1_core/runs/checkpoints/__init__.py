"""Checkpoints, resume, and what identifies the inputs of a run."""
