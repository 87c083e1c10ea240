"""TDM: distills a multi-step teacher into a K-step LoRA (arXiv 2503.06674), with the same stages but no rewards."""

from __future__ import annotations

from tdmr1_core.engine import Engine
from tdmr1_core.records import IterationReport


class DistillEngine(Engine):
    """An engine for distillation: the generator moves along x_0 of the guided teacher - x_0 of the fake score."""

    def iteration(self) -> IterationReport:
        """Run one iteration of TDM: rollout, and updates of fake score and generator at M of the K steps."""
        started = self._begin()
        trajectory = self.rollout(self.next_groups())
        for step in range(self.config.timesteps.per_iteration):
            for repeat in range(self.config.fake.updates):
                self.update_fake(trajectory, step, repeat)
            self.update_generator(trajectory, step=step)
        return self._finish(trajectory.groups, started)
