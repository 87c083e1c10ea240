"""Whether a reward can be used here, told from its spec alone: what it needs is looked for and not imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from tdmr1_rewards.api import RewardSpec


@dataclass(frozen=True)
class Availability:
    """Whether all that a reward requires is installed; `missing` names what is not, "a or b" where either would do."""

    missing: tuple[str, ...] = ()
    install: str | None = None

    @property
    def usable(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    @property
    def remedy(self) -> str | None:
        """The command that brings what is missing, as far as the reward says."""
        return f"pip install '{self.install}'" if self.missing and self.install else None

    def __str__(self) -> str:
        if self.usable:
            return "yes"
        return f"no, needs {' and '.join(self.missing)}" + (f": {self.remedy}" if self.remedy else "")


def availability(spec: RewardSpec) -> Availability:
    """Look for the modules that a spec requires."""
    missing = tuple(
        " or ".join(alternatives)
        for requirement in spec.requires
        if not any(map(is_installed, alternatives := requirement.split("|")))
    )
    return Availability(missing, spec.install)


def is_installed(module: str) -> bool:
    """Whether a module could be imported; of a dotted name, whether its package could."""
    try:
        return importlib.util.find_spec(module.strip().partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
