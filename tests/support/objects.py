"""Detections for tests."""

from __future__ import annotations

from tdmr1_rewards.builtin.detection.detections import Detection


def thing(label, x, y, score=0.95, colour="red", side=2.0):
    """A square object with its center at (x, y)."""
    half = side / 2
    return Detection(label, score, (x - half, y - half, x + half, y + half), colour=colour)
