"""Detectors, and what their boxes are compared with."""
