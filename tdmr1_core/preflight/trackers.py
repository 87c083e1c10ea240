"""The trackers that a run can send its metrics to, and whether their packages are installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from tdmr1_core.errors import raise_together
from tdmr1_rewards.builtin.optional import missing_package

MODULES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "swanlab": "swanlab",
    "mlflow": "mlflow",
    "comet": "comet_ml",
}
"""The module of each tracker. The extra of this project that installs it has the tracker's name."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise Tdmr1Error for trackers whose package is not installed, with the command that installs it.

    Nothing is imported.
    """
    missing = [name for name in names if find_spec(MODULES[name]) is None]
    raise_together([missing_package(MODULES[name], f"tdmr1[{name}]") for name in missing])
