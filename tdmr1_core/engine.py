"""TDM-R1, one iteration at a time (arXiv 2603.07700): sample, score, compute advantages, and update three LoRAs.

`Engine.iteration` is the algorithm. Its stages are public methods, so that researchers can write their own loop.
docs/differences.md lists every difference from the authors' trainer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tdmr1_core import heartbeat
from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.advantages import group_advantages, group_spreads, permute_in_groups, zero_std_ratio
from tdmr1_core.algorithm.averages import generator_ema_decay, surrogate_ema_decay
from tdmr1_core.build.parts import Parts, build_stages, load_parts
from tdmr1_core.config import RunConfig, lr_iterations
from tdmr1_core.distributed import ALONE, Processes, check_split
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_core.models.noise_levels import NoiseSchedule
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
from tdmr1_core.stages.draws import draw_boundaries, draw_levels, draw_steps, next_groups, upcoming_texts
from tdmr1_core.stages.scoring import (
    check_scored,
    reward_metrics,
    unscored_images,
    with_metrics_only,
)
from tdmr1_core.stages.surrogate import SurrogateStage
from tdmr1_core.stages.trained_role import NotFinite
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.scoring.failures import RewardFailed

MAX_NOT_FINITE = 10
"""The run stops when this many consecutive updates of a role are not finite."""


class Engine:
    """Owns the roles and stages of a run, and runs iterations. Build it with `Engine.from_config`.

    With several processes, each has an engine that samples its own groups. The stages take and return data of these
    groups. Advantages are computed, gradients and metrics averaged, and updates skipped over all processes.

    `is_complete` is whether weights, optimizers and counters are those after iteration `iteration_index`. It is False
    from the first optimizer step of an iteration to its end. `last_report` is the report of the last iteration.
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
        self.is_sharded = parts.sharding is not None
        self.reward_states: list[dict[str, State]] = []
        self.iteration_index = 0
        self.is_complete = True
        self.last_report: IterationReport | None = None
        steps = self.steps
        stages = build_stages(config, parts, steps, self.noise_schedule(steps), self.size)
        self.trained = stages.trained
        self.start = stages.start
        self.sigmas = stages.rollout.sigmas
        self._encoder = stages.encoder
        self._teaching = stages.teaching
        self._rollout = stages.rollout
        self._fake = stages.fake
        self._surrogate = stages.surrogate
        self._generator = stages.generator
        self._micro_batches = {
            "rollout": self._rollout.micro_batches,
            FAKE: self._fake.micro_batches,
            **({SURROGATE: self._surrogate.micro_batches} if self._surrogate else {}),
            GENERATOR: self._generator.micro_batches,
        }
        self._new_reward_states = self.reward_states
        self._metrics: dict[str, float] = {}
        self._update_metrics: dict[str, list[float]] = {}
        self._skipped: list[str] = []
        self._consecutive_not_finite = dict.fromkeys(self.trained, 0)
        self._warned_of_unscored = False
        self._started: tuple[Trajectory, float] | None = None

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
        cls,
        resolved: ResolvedEngine,
        *,
        run_folder: Path | None = None,
        processes: Processes = ALONE,
        device: torch.device | None = None,
    ) -> Self:
        """Load the model and build the rewards, on the device of the settings or on `device`.

        Raises Tdmr1Error for what cannot be loaded or built.
        """

        processes.on_each(lambda: check_split(resolved.config.batch.groups, processes.count))
        chosen = device or processes.on_each(lambda: processes.device(resolved.config.model.device))
        parts = processes.on_each(lambda: load_parts(resolved, run_folder, chosen, processes))
        if parts.sharding is not None:
            parts.sharding.start()
        return cls(resolved.config, parts, processes)

    # The algorithm.

    def iteration(self) -> IterationReport:
        """Run one iteration of TDM-R1: rollout, scores, advantages, and an update of each role at M of the K steps."""
        started = self._begin()
        trajectory = self.rollout(self.next_groups())
        self.start_fake_update(trajectory)
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
        """Run the remaining iterations, up to the configured number."""
        if self._encoder.upcoming is None:
            self.encode_ahead()
        while self.iteration_index < self.config.iterations:
            yield self.iteration()

    # The stages.

    def next_groups(self) -> Groups:
        """The groups of the next iteration, for this process."""
        return self._draw_groups(self.iteration_index)

    def rollout(self, groups: Groups) -> Trajectory:
        """Sample every image. Complete groups are scored while the next ones are sampled."""
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
        """Collect the scores of the last rollout. The metric time/score is the time that this waits for rewards.

        Warns once if many images have no score. Raises RewardFailed if a reward fails, and if no image of the first
        iteration has a score; Tdmr1Error in a distillation.
        """
        if self.scoring is None:
            raise Tdmr1Error(
                "a distillation has no rewards, so it cannot score images",
                "use the settings of a training, with at least one reward",
                code="distillation-no-rewards",
            )
        with self._timed("score"):
            scores, states = self.processes.on_each(self.scoring.collect_with_states)
        unscored = unscored_images(scores, trajectory.groups)
        gathered = self.processes.gather((with_metrics_only(scores), states, unscored))
        self._new_reward_states = [states for _, states, _ in gathered]
        whole = Scores.cat([scores for scores, _, _ in gathered])
        self._metrics |= reward_metrics(whole)
        if self._teaching is not None:
            numbers = list(chain.from_iterable(self.processes.gather(self._teaching.numbers(trajectory.groups))))
            spreads = group_spreads(whole.total, whole.valid, trajectory.groups.group_size)
            self._metrics |= self._teaching.observe(numbers, spreads, self.iteration_index)
        unscored = [each for _, _, part in gathered for each in part]
        found = self.processes.on_first(lambda: check_scored(unscored, len(whole.total), self.iteration_index + 1))
        if found is not None and not self._warned_of_unscored:
            self._warned_of_unscored = True
            if self.processes.first:
                warn(str(found), code=found.code, **found.values)
        self.hooks.call("tdmr1_after_scoring", engine=self, trajectory=trajectory, scores=scores)
        return scores

    def advantages(self, scores: Scores) -> Advantages:
        """Compute the advantages within each group, over the groups of all processes.

        Raises RewardFailed if the combined reward of a valid image is not finite.
        """
        config, size = self.config.advantages, self.config.batch.group_size
        total, valid = map(torch.cat, zip(*self.processes.gather((scores.total, scores.valid)), strict=True))
        not_finite = (valid & ~total.isfinite()).nonzero().flatten().tolist()
        if not_finite:
            image, value = not_finite[0], total[not_finite[0]].item()
            raise RewardFailed(
                f"the combined reward of image {image} of the batch is {value}; it must be finite",
                "return None from a reward for an image that it cannot score",
                code="reward-combined",
                values={"image": image, "reward": str(value)},
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

    def start_fake_update(self, trajectory: Trajectory) -> None:
        """Accumulate the gradient of the first update of the fake score, which depends on no reward.

        The rewards score the images meanwhile. `update_fake` continues from here; the result is the same without this
        call. Nothing is changed but the gradient.
        """
        self._discard_started()
        with self._timed(FAKE):
            self._started = (trajectory, self._accumulate_fake(trajectory, 0, 0))

    def update_fake(self, trajectory: Trajectory, step: int = 0, repeat: int = 0) -> UpdateStats:
        """Update the fake score at the drawn step number `step` of each trajectory."""
        if veto := self._veto(FAKE, trajectory=trajectory):
            self._started = None
            return veto
        with self._timed(FAKE):
            if self._started is not None and self._started[0] is trajectory and (step, repeat) == (0, 0):
                loss, self._started = self._started[1], None
            else:
                self._discard_started()
                loss = self._accumulate_fake(trajectory, step, repeat)
            stats = self._apply(FAKE, step, {"loss/fake": loss})
        return self._report(stats)

    def update_surrogate(
        self, trajectory: Trajectory, advantages: Advantages, step: int = 0, repeat: int = 0
    ) -> UpdateStats:
        """Update the surrogate towards the preferences of the rewards.

        Its boundary k is drawn independently of the generator's step.
        """
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
        assert self._surrogate is not None, "a distillation has no advantages"
        with self._timed(SURROGATE):
            metrics = self._surrogate.accumulate(trajectory, advantages.values, counters, boundary, tau, self._scale)
            stats = self._apply(SURROGATE, step, metrics)
            if "grad_norm/surrogate" in stats.metrics:
                updates = self.trained[SURROGATE].updates
                decay = surrogate_ema_decay(updates, config.surrogate.ema_slope, config.surrogate.ema_max)
                self.roles.average(SURROGATE_EMA, SURROGATE, decay)
        return self._report(stats)

    def update_generator(
        self, trajectory: Trajectory, advantages: Advantages | None = None, step: int = 0
    ) -> UpdateStats:
        """Update the generator with the reward, guidance and reverse KL terms, at the drawn step number `step`."""
        rewarded = self.config.kind == "train" and self.config.generator.reward_scale > 0
        if rewarded and advantages is not None and not advantages.has_signal:
            return self._skip(GENERATOR, "no group has two different rewards")
        if veto := self._veto(GENERATOR, trajectory=trajectory, advantages=advantages):
            return veto
        config = self.config
        step_index, tau = self._draw_step_and_tau(trajectory, step, 0)
        lower = trajectory.sigmas[step_index + 1].clamp_min(config.generator.tau_min)
        tau_reward = draw_levels(
            config.seed, "tau-reward", trajectory.groups, (step,), config.surrogate.tau_sharing, lower, self.shift
        )
        with self._timed(GENERATOR):
            metrics = self._generator.accumulate(trajectory, step, step_index, tau, tau_reward, self._scale)
            stats = self._apply(GENERATOR, step, metrics)
            if "grad_norm/generator" in stats.metrics:
                updates = self.trained[GENERATOR].updates
                decay = generator_ema_decay(updates, config.generator.ema_decay, warmup=config.generator.ema_warmup)
                self.roles.average(GENERATOR_EMA, GENERATOR, decay)
        return self._report(stats)

    # Helpers of the stages.

    def _accumulate_fake(self, trajectory: Trajectory, step: int, repeat: int) -> float:
        step_index, tau = self._draw_step_and_tau(trajectory, step, repeat)
        use_stored_velocity = (
            trajectory.stored_velocity and trajectory.generator_updates == self.trained[GENERATOR].updates
        )
        return self._fake.accumulate(trajectory, (step, repeat), step_index, tau, use_stored_velocity, self._scale)

    def _discard_started(self) -> None:
        """Discard the gradient of a started update that was not continued, for example because a reward failed."""
        if self._started is not None:
            self._started = None
            self.trained[FAKE].discard()

    @property
    def steps(self) -> int:
        """K, the number of sampling steps."""
        return self.config.rollout.step_count or self.entry.steps

    @property
    def shift(self) -> float:
        """s of the noise schedule."""
        return self.noise_schedule(self.steps).shift

    def noise_schedule(self, steps: int) -> NoiseSchedule:
        """The schedule for a number of steps: that of the settings or the model entry, otherwise of the pipeline."""
        shift = self.config.rollout.shift or self.entry.shift
        return self.roles.backbone.noise_schedule(self.size, steps) if shift is None else NoiseSchedule(shift)

    def fix_noise_levels(self) -> None:
        """Store the noise levels in the settings, so that a resumed run has them whatever its pipeline says then."""
        shift = self.config.rollout.shift if self.entry.shift is not None else self.shift
        changed = {"sigmas": tuple(self.sigmas.tolist()), "shift": shift}
        self.config = self.config.model_copy(update={"rollout": self.config.rollout.model_copy(update=changed)})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.config.model.height or self.entry.height, self.config.model.width or self.entry.width

    @property
    def surrogate(self) -> SurrogateStage | None:
        """The stage that trains the surrogate; None in a distillation."""
        return self._surrogate

    def conditioning(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode prompts, one row each. Each text is encoded separately, so its encoding depends on no other text."""
        return self._encoder([prompt.text for prompt in prompts])

    def encode_ahead(self, further: Sequence[Prompt] = ()) -> None:
        """Encode the prompts of the next iterations, and then `further` ones, together with a prompt that is missing.

        This has an effect only with memory.text_encoders "auto" on a GPU. The results are the same. With teaching
        prompts, the next draws are not known: the most likely ones are encoded first, then all training prompts.
        """
        unexpected = () if self._teaching is None else self.prompts
        if self.config.memory.text_encoders == "auto":
            self._encoder.upcoming = lambda: chain(
                upcoming_texts(self.prompts, range(self.iteration_index, self.config.iterations), self._draw_groups),
                (prompt.text for prompt in (*unexpected, *further)),
            )

    def _draw_groups(self, iteration: int) -> Groups:
        """The groups of an iteration, counted from 0, for this process.

        With teaching prompts, those of an iteration that is later than the next one may still change.
        """
        batch, seed, completed = self.config.batch, self.config.seed, self.iteration_index
        if self._teaching is None:
            groups = next_groups(self.prompts, iteration, batch.groups, batch.group_size, seed)
        else:
            groups = self._teaching.next_groups(iteration, completed, batch.groups, batch.group_size, seed)
        return self.processes.shard_groups(groups)

    def _begin(self) -> float:
        self._metrics, self._update_metrics, self._skipped = {}, {}, []
        self._new_reward_states = self.reward_states
        return time.monotonic()

    def _finish(self, groups: Groups, started: float) -> IterationReport:
        """Count the iteration, average its metrics over the processes, and call the hook."""
        self.is_complete = False
        self.iteration_index += 1
        self.reward_states = self._new_reward_states
        seconds = time.monotonic() - started
        means = {name: sum(values) / len(values) for name, values in self._update_metrics.items()}
        stages = sum(value for name, value in self._metrics.items() if name.startswith("time/"))
        timing = {
            "time/iteration": seconds,
            "time/other": seconds - stages,
            "images_per_second": groups.images * self.processes.count / seconds,
        }
        metrics = self.processes.mean({**self._metrics, **means, **timing})
        report = IterationReport(self.iteration_index, metrics, tuple(dict.fromkeys(self._skipped)))
        self.last_report = report
        self.is_complete = True
        self.hooks.call("tdmr1_after_iteration", engine=self, report=report)
        return report

    def load_reward_states(self, states: list[dict[str, State]]) -> None:
        """Restore the states of the rewards, one mapping per process.

        If their number differs from the number of processes, every process restores the first one. Raises Tdmr1Error
        for a reward that is missing or cannot restore its state.
        """
        if len(states) != self.processes.count:
            states = states[:1] * self.processes.count
        if self.scoring is not None:
            self.scoring.runner.load_states(states[self.processes.rank])
        self.reward_states = states

    def counters(self) -> dict[str, Any]:
        """The counters of a checkpoint, as JSON data.

        They are the consecutive skipped updates of each role, the current micro-batch sizes of the stages, the setting
        batch.micro_batch from which these sizes were halved, and the estimates of teaching prompts.
        """
        sizes = {name: each.size for name, each in self._micro_batches.items()}
        found = {"in_a_row": self._consecutive_not_finite, "micro_batch": self.config.batch.micro_batch, "sizes": sizes}
        teaching = self._teaching
        return found if teaching is None else {**found, "teaching": teaching.state(self.iteration_index)}

    def restore_counters(self, counters: Mapping[str, Any]) -> None:
        """Restore the counters of a checkpoint. Sizes are restored only if batch.micro_batch has not changed."""
        self._consecutive_not_finite = {name: int(counters["in_a_row"][name]) for name in self.trained}
        if counters["micro_batch"] == self.config.batch.micro_batch:
            for name, each in self._micro_batches.items():
                size = counters["sizes"][name]
                each.current = None if size is None else int(size)
        if self._teaching is not None:
            self._teaching.restore(counters.get("teaching", {}))

    def close(self) -> None:
        """Close the rewards."""
        if self.scoring is not None:
            self.scoring.runner.close()

    def _draw_step_and_tau(self, trajectory: Trajectory, step: int, repeat: int) -> tuple[Tensor, Tensor]:
        """The step index (N,) and the noise level (N,) of each image, for the fake score and the generator.

        The generator uses those of the first fake score update (`repeat` = 0).
        """
        times, groups, seed = self.config.timesteps, trajectory.groups, self.config.seed
        step_index = draw_steps(seed, groups, self.steps, times.per_iteration, times.k_sharing)[step]
        lower = trajectory.sigmas[step_index + 1]
        return step_index, draw_levels(seed, "tau", groups, (step, repeat), times.tau_sharing, lower, self.shift)

    @property
    def _scale(self) -> float:
        """The factor of a loss: accumulated steps are averaged."""
        times = self.config.timesteps
        return 1 / times.per_iteration if times.optimizer_step == "iteration" else 1.0

    def _apply(self, name: str, step: int, metrics: Mapping[str, float]) -> UpdateStats:
        """Take an optimizer step of a role, if `step` is the last of an accumulated update."""
        times = self.config.timesteps
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        if times.optimizer_step == "iteration" and step < times.per_iteration - 1:
            return UpdateStats(name, metrics)
        self.is_complete = False
        role = self.trained[name]
        role.not_finite = self.processes.union(role.not_finite)
        self.processes.average_gradients(role.parameters.values())
        progress = min(1.0, self.iteration_index / lr_iterations(self.config))
        try:
            norm = role.step(1 - (1 - self.config.optimizer.final_lr) * progress)
        except NotFinite as error:
            reason = str(error)
            return self.processes.on_each(lambda: self._skip_not_finite(name, step, reason))
        self._consecutive_not_finite[name] = 0
        return UpdateStats(name, {**metrics, f"grad_norm/{name}": norm})

    def _skip_not_finite(self, name: str, step: int, reason: str) -> UpdateStats:
        """Skip an update that is not finite.

        Raises Tdmr1Error if optimizer.on_not_finite is "stop", or after MAX_NOT_FINITE consecutive updates.
        """
        self._consecutive_not_finite[name] += 1
        self._metrics[f"not_finite/{name}"] = self._metrics.get(f"not_finite/{name}", 0.0) + 1
        if self.config.optimizer.on_not_finite == "stop" or self._consecutive_not_finite[name] >= MAX_NOT_FINITE:
            iteration, count = self.iteration_index + 1, self._consecutive_not_finite[name]
            times = f", {count} times in a row" if count >= MAX_NOT_FINITE else ""
            raise Tdmr1Error(
                f"the update of the {name} is not finite at step {step + 1} of iteration {iteration}{times}: {reason}",
                "set optimizer.on_not_finite to skip in the config.yaml of the run and resume it, or "
                f"start a new run with a lower {name}.learning_rate",
                code="update-not-finite",
                values={
                    "role": name,
                    "step": step + 1,
                    "iteration": iteration,
                    "in_a_row": count,
                    "reason": reason,
                },
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
        """Add the metrics of an update to those of the iteration, and call the hook."""
        for name, value in stats.metrics.items():
            self._update_metrics.setdefault(name, []).append(value)
        self.hooks.call(f"tdmr1_after_{stats.role}_update", engine=self, stats=stats)
        return stats

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        with heartbeat.stage(stage, limited=stage != "score"):  # rewards have time limits of their own
            yield
        self._metrics[f"time/{stage}"] = self._metrics.get(f"time/{stage}", 0.0) + time.monotonic() - started
