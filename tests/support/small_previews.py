"""Smaller image grids for runs of tests: 2 prompts with 2 images each instead of 6 with 8.

The grids of a run take as long to sample as two short iterations. Commands in new interpreters keep the real size.
"""

from tdmr1_core.runs.output import previews

previews.PROMPTS = previews.COLUMNS = 2
