"""Checkpoints, resume, and the fingerprints of the inputs of a run."""
