"""Checks whether the modules that a reward requires are installed, without importing them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from tdmr1_rewards.api import RewardSpec


@dataclass(frozen=True)
class Availability:
    """The modules that are missing for a reward ("a or b" if one of two is enough), and the package that has them."""

    missing: tuple[str, ...] = ()
    install: str | None = None

    @property
    def usable(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    @property
    def remedy(self) -> str | None:
        """The command that installs what is missing; None if nothing is missing or the spec names no package."""
        return f"pip install '{self.install}'" if self.missing and self.install else None

    def __str__(self) -> str:
        if self.usable:
            return "yes"
        return f"no, needs {' and '.join(self.missing)}" + (f": {self.remedy}" if self.remedy else "")


def availability(spec: RewardSpec) -> Availability:
    """Look up the modules that a spec requires."""
    missing = tuple(
        " or ".join(alternatives)
        for requirement in spec.requires
        if not any(map(is_installed, alternatives := requirement.split("|")))
    )
    return Availability(missing, spec.install)


def is_installed(module: str) -> bool:
    """Whether a module is installed. Of a dotted name, only the top-level package is looked up."""
    try:
        return importlib.util.find_spec(module.strip().partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
