"""Executes a run: its folder, checkpoints, evaluations, logs and outputs."""
