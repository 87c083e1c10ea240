"""TDM: a K-step LoRA out of a multi-step teacher (arXiv 2503.06674), from the same stages without any reward."""

from __future__ import annotations

from tdmr1_core.engine import Engine
from tdmr1_core.records import IterationReport


class DistillEngine(Engine):
    """An engine whose iteration distils: the generator follows the guided teacher less the fake score."""

    def iteration(self) -> IterationReport:
        """One iteration of TDM: roll out, and update fake score and generator at M of the K steps."""
        started = self._begin()
        trajectory = self.rollout(self.next_groups())
        for step in range(self.config.timesteps.per_iteration):
            for repeat in range(self.config.fake.updates):
                self.update_fake(trajectory, step, repeat)
            self.update_generator(trajectory, step=step)
        return self._finish(trajectory.groups, started)
