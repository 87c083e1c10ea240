"""TDM-R1, one iteration at a time (arXiv 2603.07700): sample, score, compare, and update three LoRAs.

`Engine.iteration` is the algorithm; each of its stages is public, so that a researcher can take control. It differs
from the authors' trainer in this: (1) draws come from named streams and do not depend on processes or micro-batches;
(2) k and tau may be shared by a group or a sample instead of by all; (3) the drift clip looks at one sample's mean, so
that it does not depend on the micro-batch either; (4) Euler samples by default, as the losses assume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.advantages import group_advantages, permute_in_groups, zero_std_ratio
from tdmr1_core.build.parts import (
    Parts,
    build_encoder,
    build_fake,
    build_generator,
    build_rollout,
    build_surrogate,
    build_trained,
    load_parts,
)
from tdmr1_core.config import RunConfig
from tdmr1_core.distributed import ALONE, Processes, check_split
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.roles import FAKE, GENERATOR, GENERATOR_EMA, SURROGATE, SURROGATE_EMA
from tdmr1_core.plugins import Extensions
from tdmr1_core.preflight.resolved import ResolvedEngine, resolve_engine
from tdmr1_core.records import (
    Advantages,
    Conditioning,
    Groups,
    IterationReport,
    Prompt,
    Scores,
    Trajectory,
    UpdateStats,
)
from tdmr1_core.stages.draws import draw_boundaries, draw_levels, draw_steps, next_groups
from tdmr1_core.stages.fake_score import FakeScoreStage
from tdmr1_core.stages.generator import GeneratorStage
from tdmr1_core.stages.rollout import RolloutStage
from tdmr1_core.stages.scoring import reward_metrics
from tdmr1_core.stages.surrogate import SurrogateStage
from tdmr1_core.stages.trained_role import NotFinite
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.scoring.failures import RewardFailed

MOST_BROKEN = 10
"""Updates of a role that may be left out in a row because they are not finite."""


class Engine:
    """Holds the roles and their stages, and runs iterations. Build it with `Engine.from_config`.

    Of several processes each has an engine with its own groups of every iteration. Stages take and give what belongs to
    those; rewards are compared, gradients and metrics averaged, and updates left out, over all of them.
    """

    def __init__(self, config: RunConfig, parts: Parts, processes: Processes = ALONE) -> None:
        self.config = config
        self.processes = processes
        self.entry = parts.entry
        self.model_files = parts.model_files
        self.roles = parts.roles
        self.prompts = parts.prompts
        self.scoring = parts.scoring
        self.hooks = parts.hooks
        self.start = parts.roles.weights(GENERATOR)
        self.reward_states: list[dict[str, State]] = []
        self.iteration_index = 0
        self.trained = build_trained(config, parts.roles)
        self.sigmas = parts.roles.backbone.schedule(self.steps, self.shift)
        self._encoder = build_encoder(config, parts.entry, parts.roles)
        self._rollout = build_rollout(config, parts.roles, self.sigmas, self.size)
        self._fake = build_fake(config, parts.roles, self.trained[FAKE])
        if SURROGATE in self.trained:
            self._surrogate = build_surrogate(config, parts.roles, self.trained[SURROGATE])
        self._generator = build_generator(config, parts.roles, self.trained[GENERATOR])
        self._stages: dict[str, RolloutStage | FakeScoreStage | SurrogateStage | GeneratorStage] = {
            "rollout": self._rollout,
            FAKE: self._fake,
            **({SURROGATE: self._surrogate} if SURROGATE in self.trained else {}),
            GENERATOR: self._generator,
        }
        self._metrics: dict[str, float] = {}
        self._seen: dict[str, list[float]] = {}
        self._skipped: list[str] = []
        self._in_a_row = dict.fromkeys(self.trained, 0)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        *,
        run_folder: Path | None = None,
        extensions: Extensions | None = None,
        processes: Processes = ALONE,
    ) -> Self:
        """Load everything that an engine needs. Raises Tdmr1Error as `resolve_engine` and `from_resolved` do."""
        resolved = processes.on_each(lambda: resolve_engine(config, extensions))
        return cls.from_resolved(resolved, run_folder=run_folder, processes=processes)

    @classmethod
    def from_resolved(
        cls, resolved: ResolvedEngine, *, run_folder: Path | None = None, processes: Processes = ALONE
    ) -> Self:
        """Load the model and build the rewards. Raises Tdmr1Error for what cannot be loaded or built."""

        def load() -> Parts:
            check_split(resolved.config.batch.groups, processes.count)
            return load_parts(resolved, run_folder, processes.device(resolved.config.model.device))

        return cls(resolved.config, processes.on_each(load), processes)

    # The algorithm.

    def iteration(self) -> IterationReport:
        """One iteration of TDM-R1: roll out, score, and update each role at M of the K steps."""
        started = self._begin()
        trajectory = self.rollout(self.next_groups())
        scores = self.score(trajectory)
        advantages = self.advantages(scores)
        for step in range(self.config.timesteps.per_iteration):
            for repeat in range(self.config.fake.updates):
                self.update_fake(trajectory, step, repeat)
            for repeat in range(self.config.surrogate.updates):
                self.update_surrogate(trajectory, advantages, step, repeat)
            self.update_generator(trajectory, advantages, step)
        return self._finish(trajectory.groups, started)

    def iterations(self) -> Iterator[IterationReport]:
        """Iterations up to the configured number, from wherever the engine stands."""
        while self.iteration_index < self.config.iterations:
            yield self.iteration()

    # The stages.

    def next_groups(self) -> Groups:
        """The prompts of this iteration."""
        batch, seed = self.config.batch, self.config.seed
        groups = next_groups(self.prompts, self.iteration_index, batch.groups, batch.group_size, seed)
        return self.processes.shard_groups(groups)

    def rollout(self, groups: Groups) -> Trajectory:
        """Sample every image; scoring of finished groups begins while the next ones are sampled."""
        self.hooks.call("tdmr1_before_rollout", engine=self, groups=groups)
        scoring = self.scoring
        with self._timed("rollout"):
            trajectory = self._rollout.run(
                groups,
                self.conditioning(groups.prompts),
                self.trained[GENERATOR].updates,
                None if scoring is None else lambda images: scoring.submit(groups, images),
            )
        self.hooks.call("tdmr1_after_rollout", engine=self, trajectory=trajectory)
        return trajectory

    def score(self, trajectory: Trajectory) -> Scores:
        """The rewards of the last rollout's images. Raises Tdmr1Error if a reward fails."""
        if self.scoring is None:
            raise Tdmr1Error("a distillation has no rewards to score with", "train with --reward instead")
        with self._timed("score"):
            scores, states = self.processes.on_each(self.scoring.collect_with_states)
        gathered = self.processes.gather((replace(scores, details=()), states))
        self.reward_states = [states for _, states in gathered]
        self._metrics |= reward_metrics(Scores.cat([scores for scores, _ in gathered]))
        self.hooks.call("tdmr1_after_scoring", engine=self, trajectory=trajectory, scores=scores)
        return scores

    def advantages(self, scores: Scores) -> Advantages:
        """Rewards compared within each group, and brought to the scale of all groups.

        Raises RewardFailed for one that counts and is not finite.
        """
        config, size = self.config.advantages, self.config.batch.group_size
        total, valid = map(torch.cat, zip(*self.processes.gather((scores.total, scores.valid)), strict=True))
        broken = (valid & ~total.isfinite()).nonzero().flatten().tolist()
        if broken:
            raise RewardFailed(
                f"the combined reward of image {broken[0]} of the batch is {total[broken[0]].item()}",
                "an image that can't be judged has None from its reward, and is not valid",
            )
        values = group_advantages(total, valid, size, std=config.std, clip=config.clip, binary=config.binary)
        if config.permute:
            order = seeds.uniform(self.config.seed, "permute", (self.iteration_index,), range(len(values)))
            values = permute_in_groups(values, order, size)
        highest = values.abs().max().item()
        advantages = Advantages(
            self.processes.shard(values), zero_std_ratio(total, valid, size), on_other_ranks=highest > 0
        )
        self._metrics |= {"zero_std_ratio": advantages.zero_std_ratio, "advantage/max": highest}
        self.hooks.call("tdmr1_after_advantages", engine=self, scores=scores, advantages=advantages)
        return advantages

    def update_fake(self, trajectory: Trajectory, step: int = 0, repeat: int = 0) -> UpdateStats:
        """Let the fake score follow the generator at the step-th drawn point of each trajectory."""
        if veto := self._veto(FAKE, trajectory=trajectory):
            return veto
        step_index, tau = self._generator_points(trajectory, step, repeat)
        fresh = trajectory.stored_velocity and trajectory.generator_updates == self.trained[GENERATOR].updates
        with self._timed(FAKE):
            loss = self._fake.accumulate(trajectory, (step, repeat), step_index, tau, fresh, self._scale)
            stats = self._apply(FAKE, step, {"loss/fake": loss})
        return self._report(stats)

    def update_surrogate(
        self, trajectory: Trajectory, advantages: Advantages, step: int = 0, repeat: int = 0
    ) -> UpdateStats:
        """Let the surrogate prefer what the rewards preferred, at a boundary drawn for itself."""
        if self.config.generator.reward_scale == 0:
            return self._skip(SURROGATE, "generator.reward_scale is 0: the reward term is off")
        if not advantages.has_signal:
            return self._skip(SURROGATE, "no group has two different rewards")
        if veto := self._veto(SURROGATE, trajectory=trajectory, advantages=advantages):
            return veto
        config, groups, counters = self.config, trajectory.groups, (step, repeat)
        boundary = draw_boundaries(
            config.seed,
            groups,
            self.steps,
            counters,
            config.timesteps.k_sharing,
            config.surrogate.boundary == "weighted",
        )
        lower = trajectory.sigmas[boundary + 1].clamp_min(config.surrogate.tau_min)
        tau = draw_levels(
            config.seed, "tau-surrogate", groups, counters, config.surrogate.tau_sharing, lower, self.shift
        )
        with self._timed(SURROGATE):
            seen = self._surrogate.accumulate(trajectory, advantages.values, counters, boundary, tau, self._scale)
            stats = self._apply(SURROGATE, step, seen)
            if "grad_norm/surrogate" in stats.metrics:
                updates = self.trained[SURROGATE].updates
                decay = min(config.surrogate.ema_max, config.surrogate.ema_slope * updates)
                self.roles.average(SURROGATE_EMA, SURROGATE, decay)
        return self._report(stats)

    def update_generator(
        self, trajectory: Trajectory, advantages: Advantages | None = None, step: int = 0
    ) -> UpdateStats:
        """Move the generator along the surrogate's gradient, the teacher's guidance and the reverse KL."""
        rewarded = self.config.kind == "train" and self.config.generator.reward_scale > 0
        if rewarded and advantages is not None and not advantages.has_signal:
            return self._skip(GENERATOR, "no group has two different rewards")
        if veto := self._veto(GENERATOR, trajectory=trajectory, advantages=advantages):
            return veto
        config = self.config
        step_index, tau = self._generator_points(trajectory, step, 0)
        lower = trajectory.sigmas[step_index + 1].clamp_min(config.generator.tau_min)
        tau_reward = draw_levels(
            config.seed, "tau-reward", trajectory.groups, (step,), config.surrogate.tau_sharing, lower, self.shift
        )
        with self._timed(GENERATOR):
            seen = self._generator.accumulate(trajectory, step, step_index, tau, tau_reward, self._scale)
            stats = self._apply(GENERATOR, step, seen)
            if "grad_norm/generator" in stats.metrics:
                self.roles.average(GENERATOR_EMA, GENERATOR, config.generator.ema_decay)
        return self._report(stats)

    # What the stages share.

    @property
    def steps(self) -> int:
        """K, the number of sampling steps."""
        return self.config.rollout.steps or self.entry.steps

    @property
    def shift(self) -> float:
        """s of the noise schedule."""
        return self.config.rollout.shift or self.entry.shift

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        return self.config.model.height or self.entry.height, self.config.model.width or self.entry.width

    def conditioning(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encoded prompts, one row each; every text is encoded once and alone, so that its bits depend on no other."""
        return self._encoder([prompt.text for prompt in prompts])

    def _begin(self) -> float:
        self._metrics, self._seen, self._skipped = {}, {}, []
        return time.monotonic()

    def _finish(self, groups: Groups, started: float) -> IterationReport:
        """Count the iteration, gather its metrics and tell the plugins."""
        self.iteration_index += 1
        seconds = time.monotonic() - started
        means = {name: sum(values) / len(values) for name, values in self._seen.items()}
        timing = {"time/iteration": seconds, "images_per_second": groups.images * self.processes.count / seconds}
        metrics = self.processes.mean({**self._metrics, **means, **timing})
        report = IterationReport(self.iteration_index, metrics, tuple(dict.fromkeys(self._skipped)))
        self.hooks.call("tdmr1_after_iteration", engine=self, report=report)
        return report

    def load_reward_states(self, states: list[dict[str, State]]) -> None:
        """Let rewards remember what they told in each process; those of the first, where there were more or fewer.

        Raises Tdmr1Error for a reward that is not there or can't take it up.
        """
        if len(states) != self.processes.count:
            states = states[:1] * self.processes.count
        if self.scoring is not None:
            self.scoring.runner.load_states(states[self.processes.rank])
        self.reward_states = states

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimisers, as JSON: updates left out in a row, and sizes.

        Sizes are those that micro-batches were halved to, with what the settings said then.
        """
        sizes = {name: stage.micro_batches.size for name, stage in self._stages.items()}
        return {"in_a_row": self._in_a_row, "micro_batch": self.config.batch.micro_batch, "sizes": sizes}

    def restore_counters(self, counters: Mapping[str, Any]) -> None:
        """Take up the counters of a checkpoint; its sizes only where the settings still ask for the same one."""
        self._in_a_row = {name: int(counters["in_a_row"][name]) for name in self.trained}
        if counters["micro_batch"] == self.config.batch.micro_batch:
            for name, stage in self._stages.items():
                size = counters["sizes"][name]
                stage.micro_batches.size = None if size is None else int(size)

    def close(self) -> None:
        """Let the rewards go."""
        if self.scoring is not None:
            self.scoring.runner.close()

    def _generator_points(self, trajectory: Trajectory, step: int, repeat: int) -> tuple[Tensor, Tensor]:
        """The drawn step (N,) of each image and its level (N,): the generator's are those of the first fake update."""
        times, groups, seed = self.config.timesteps, trajectory.groups, self.config.seed
        step_index = draw_steps(seed, groups, self.steps, times.per_iteration, times.k_sharing)[step]
        lower = trajectory.sigmas[step_index + 1]
        return step_index, draw_levels(seed, "tau", groups, (step, repeat), times.tau_sharing, lower, self.shift)

    @property
    def _scale(self) -> float:
        """What a loss is multiplied by so that accumulated steps average."""
        times = self.config.timesteps
        return 1 / times.per_iteration if times.optimizer_step == "iteration" else 1.0

    def _apply(self, name: str, step: int, seen: Mapping[str, float]) -> UpdateStats:
        """Step a role's optimiser, if this is the time to."""
        times = self.config.timesteps
        seen = {key: value for key, value in seen.items() if math.isfinite(value)}
        if times.optimizer_step == "iteration" and step < times.per_iteration - 1:
            return UpdateStats(name, seen)
        role = self.trained[name]
        role.not_finite = self.processes.union(role.not_finite)
        self.processes.average_gradients(role.parameters.values())
        progress = self.iteration_index / self.config.iterations
        try:
            norm = role.step(1 - (1 - self.config.optimizer.final_lr) * progress)
        except NotFinite as broken:
            reason = str(broken)
            return self.processes.on_each(lambda: self._leave_out_broken(name, step, reason))
        self._in_a_row[name] = 0
        return UpdateStats(name, {**seen, f"grad_norm/{name}": norm})

    def _leave_out_broken(self, name: str, step: int, reason: str) -> UpdateStats:
        """Leave out an update that is not finite. Raises Tdmr1Error if the settings say so, or for one too many."""
        self._in_a_row[name] += 1
        self._metrics[f"not_finite/{name}"] = self._metrics.get(f"not_finite/{name}", 0.0) + 1
        if self.config.optimizer.on_not_finite == "stop" or self._in_a_row[name] >= MOST_BROKEN:
            often = f", for the {MOST_BROKEN}th time in a row" if self._in_a_row[name] >= MOST_BROKEN else ""
            raise Tdmr1Error(
                f"the update of the {name} is not finite at step {step + 1} of iteration {self.iteration_index + 1}"
                f"{often}: {reason}",
                "leave such updates out with optimizer.on_not_finite: skip in the run's config.yaml and go on, or "
                f"start a new run with a lower {name}.learning_rate",
            )
        return self._skip(name, reason)

    def _veto(self, name: str, **arguments: Any) -> UpdateStats | None:
        reasons = self.processes.union(self.hooks.vetoes(f"tdmr1_before_{name}_update", engine=self, **arguments))
        return self._skip(name, "; ".join(reasons)) if reasons else None

    def _skip(self, name: str, reason: str) -> UpdateStats:
        self._skipped.append(f"{name}: {reason}")
        self.trained[name].discard()
        return UpdateStats(name, {}, reason)

    def _report(self, stats: UpdateStats) -> UpdateStats:
        """Average an update's numbers into the iteration's and tell the plugins."""
        for name, value in stats.metrics.items():
            self._seen.setdefault(name, []).append(value)
        self.hooks.call(f"tdmr1_after_{stats.role}_update", engine=self, stats=stats)
        return stats

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._metrics[f"time/{stage}"] = self._metrics.get(f"time/{stage}", 0.0) + time.monotonic() - started
