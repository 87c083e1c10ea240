"""The run that items damage, read and compare with: two iterations with image grids, evaluations and guard readings."""

from __future__ import annotations

from stress.case import Case, small

ITERATIONS = 2
SETTINGS = small(
    f"iterations={ITERATIONS}",
    "saving.keep=5",
    "saving.samples_every=1",
    "saving.tensorboard=true",
    "evaluation.every=1",
)
NAME = "run"
"""Parts with this shared folder read the same run."""


def prepare(case: Case) -> None:
    """Train the run, and write its report and its export."""
    folder = case.folder / "run"
    case.tdmr1("train", *SETTINGS, "--output", folder, allowed=[0])
    case.tdmr1("report", folder, allowed=[0])
    case.tdmr1("export", folder, "--comfyui", allowed=[0])
