"""Measures the differences of docs/differences.md: how much each one changes an iteration of the embedded model.

    python benchmarks/differences.py --output build/differences.json

The published settings of the preset `ocr` train tiny-tdm with the reward object_count: 12 groups of 8 images in
micro-batches of 4 groups, so that an iteration has three blocks of shared draws, and learning rates five times the
published ones, because the network is small. After 20 iterations the state is kept. From this state, single iterations
are run with prompts and noises of their own, each in the form of tdmr1 and in the form of the authors' trainer.

The effect on a role is |d' - d| / |d|, where d is the change of its weights in the iteration of tdmr1 and d' that in
the other form. The script prints its mean, minimum and maximum over the iterations. The row "other draws" is the scale:
the same images and rewards, but other random numbers in the losses. Three rows are not about weights: `sharing`
compares the noise of the step, `prompts` counts prompts, and `sparse rewards` compares advantages.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.advantages import group_advantages
from tdmr1_core.algorithm.objectives import PreferenceLoss, Stabilisers, preference_loss
from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.records import Advantages, Groups, Scores, Trajectory, UpdateStats
from tdmr1_core.stages import surrogate as surrogate_module
from tdmr1_core.stages.trained_role import TrainedRole

GROUPS, SIZE, BLOCK, PROCESSES = 12, 8, 4, 8
"""Groups, images of a group, groups of a micro-batch of the authors' loop, and their number of processes."""
ROLES = (FAKE, SURROGATE, GENERATOR)
SETTINGS = (
    *(f"batch.groups={GROUPS}", f"batch.group_size={SIZE}", f"batch.micro_batch={BLOCK * SIZE}", "threads=1"),
    *("fake.learning_rate=1.5e-3", "surrogate.learning_rate=1.5e-3", "generator.learning_rate=3.75e-4"),
)
UNSCORED = 0.1
"""The fraction of images without a reward, in the row about unscored images."""
Change = dict[str, Tensor]
"""The change of the weights of each role, flattened."""


class BlockEngine(Engine):
    """An engine whose updates can be called for one block of groups after the other; the last one takes the step."""

    blocks = 1
    last_block = True

    @property
    def _scale(self) -> float:
        return super()._scale / self.blocks

    def _apply(self, name: str, step: int, metrics: Mapping[str, float]) -> UpdateStats:
        return super()._apply(name, step if self.last_block else -1, metrics)


class Ours:
    """One iteration as tdmr1 computes it. The subclasses change one thing."""

    name = "ours"
    settings: tuple[str, ...] = ()
    compared_with = "ours"

    def patched(self, engine: BlockEngine) -> Any:
        """A context in which the whole iteration runs."""
        return nullcontext()

    def scores(self, scores: Scores) -> Scores:
        """The scores that the iteration uses."""
        return scores

    def advantages(self, engine: BlockEngine, scores: Scores) -> Advantages:
        """The advantages of the scores."""
        return engine.advantages(scores)

    def trajectory(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory that the updates use."""
        return trajectory

    def updates(self, engine: BlockEngine, trajectory: Trajectory, advantages: Advantages) -> None:
        """All updates of the iteration, as in `Engine.iteration`."""
        for step in range(engine.config.timesteps.per_iteration):
            engine.update_fake(trajectory, step)
            engine.update_surrogate(trajectory, advantages, step)
            engine.update_generator(trajectory, advantages, step)


class OtherDraws(Ours):
    """Other steps, boundaries, noise levels and noises in the losses, for the same images and rewards."""

    name = "other draws"

    def __init__(self, number: int = 1, sharing: int | None = None) -> None:
        self.number = number
        if sharing is not None:
            self.name = f"sharing {sharing}, draws {number}"
            shared = ("timesteps.k_sharing", "timesteps.tau_sharing", "surrogate.tau_sharing")
            self.settings = tuple(f"{name}={sharing}" for name in shared)

    def updates(self, engine: BlockEngine, trajectory: Trajectory, advantages: Advantages) -> None:
        """The updates with the random draws of another seed."""
        seed = 1000 + self.number
        with ExitStack() as stack:
            stack.enter_context(patch.object(engine, "config", engine.config.model_copy(update={"seed": seed})))
            for stage in (engine._fake, engine._surrogate, engine._generator):
                stack.enter_context(patch.object(stage, "seed", seed))
            super().updates(engine, trajectory, advantages)


class MicroBatchDrift(Ours):
    """The drift threshold applies to the mean of a process's micro-batch: half a group."""

    name = "drift of a micro-batch"

    @contextmanager
    def patched(self, engine: BlockEngine) -> Iterator[None]:
        """Replace the loss of the surrogate."""

        def loss(*arguments: Any) -> PreferenceLoss:
            *tensors, stabilisers = arguments
            threshold = stabilisers.drift_threshold
            free, bound = (
                preference_loss(*tensors, Stabilisers(stabilisers.trust_region, value, stabilisers.reference_penalty))
                for value in (None, 1e-30)
            )
            rows = SIZE // 2
            far = (free.drift.view(-1, rows).mean(1) > threshold).repeat_interleave(rows)
            return PreferenceLoss(
                torch.where(far, bound.loss, free.loss), free.clipped, bound.drifted & far, free.drift
            )

        with patch.object(surrogate_module, "preference_loss", loss):
            yield


class DpmSolver(Ours):
    """Sampling with DPM-Solver++."""

    name = "dpm-solver++"
    settings = ("rollout.sampler=dpm-solver++",)


class IntegerTimesteps(DpmSolver):
    """The network and the losses see 0.999, 0.899, 0.749, 0.499; the latents are at the levels of the scheduler."""

    name = "integer timesteps"
    compared_with = "dpm-solver++"

    @contextmanager
    def patched(self, engine: BlockEngine) -> Iterator[None]:
        """Round the levels that the network sees in the rollout."""
        backbone, rollout = engine.roles.backbone, engine._rollout.run
        velocity = backbone.velocity

        def rounded(latents: Tensor, sigma: Tensor, *arguments: Any, **options: Any) -> Tensor:
            return velocity(latents, _floor(sigma), *arguments, **options)

        def run(*arguments: Any) -> Trajectory:
            with patch.object(backbone, "velocity", rounded):
                return rollout(*arguments)

        with patch.object(engine._rollout, "run", run):
            yield

    def trajectory(self, trajectory: Trajectory) -> Trajectory:
        """Round the levels that the losses see."""
        return replace(trajectory, sigmas=_floor(trajectory.sigmas))


class AuthorsOrder(Ours):
    """For each block of groups and each trained step: fake score, surrogate, generator. The last takes the step."""

    name = "order of the authors"

    def updates(self, engine: BlockEngine, trajectory: Trajectory, advantages: Advantages) -> None:
        """Accumulate block after block."""
        blocks = GROUPS // BLOCK
        with patch.object(engine, "blocks", blocks):
            for block in range(blocks):
                part, values = _block(trajectory, block), advantages.values.view(blocks, -1)[block]
                signal = Advantages(values, advantages.zero_std_ratio, on_other_ranks=advantages.has_signal)
                with patch.object(engine, "last_block", block == blocks - 1):
                    super().updates(engine, part, signal)


class SmallNorm(AuthorsOrder):
    """Gradients are clipped at a norm that they exceed; 1, the published value, they do not."""

    name = "clipping at 0.1"
    settings = ("optimizer.max_grad_norm=0.1",)
    compared_with = "order of the authors"


class JointClipping(SmallNorm):
    """Before each step, one norm over all gradients that are present is clipped."""

    name = "joint clipping at 0.1"
    compared_with = "clipping at 0.1"

    @contextmanager
    def patched(self, engine: BlockEngine) -> Iterator[None]:
        """Clip before the own clipping of a role, which then has no effect."""
        own, roles = TrainedRole.step, engine.trained.values()

        def step(role: TrainedRole, lr_scale: float) -> float:
            parameters = [weight for each in roles for weight in each.parameters.values()]
            torch.nn.utils.clip_grad_norm_(parameters, role.max_grad_norm)
            return own(role, lr_scale)

        with patch.object(TrainedRole, "step", step):
            yield


class OneProcess(Ours):
    """Generator and fake score follow the images of the first of eight processes: half a group of each block."""

    name = "gradient of one process"

    @contextmanager
    def patched(self, engine: BlockEngine) -> Iterator[None]:
        """Multiply the losses of the other images by 0."""
        fake, generator = engine._fake.losses, engine._generator.losses

        def weights(rows: Tensor) -> Tensor:
            images = BLOCK * SIZE // PROCESSES
            return PROCESSES * (rows % (BLOCK * SIZE) < images).float()

        def fake_losses(trajectory: Trajectory, rows: Tensor, *arguments: Any) -> Tensor:
            return fake(trajectory, rows, *arguments) * weights(rows)

        def generator_losses(trajectory: Trajectory, rows: Tensor, *arguments: Any, **options: Any) -> Any:
            terms = generator(trajectory, rows, *arguments, **options)
            return replace(terms, total=terms.total * weights(rows))

        with (
            patch.object(engine._fake, "losses", fake_losses),
            patch.object(engine._generator, "losses", generator_losses),
        ):
            yield


class NotCentered(Ours):
    """Advantages are not centered again after clipping."""

    name = "not centered again"
    clipped = 0

    def advantages(self, engine: BlockEngine, scores: Scores) -> Advantages:
        """Clip last."""
        clip = engine.config.advantages.clip
        values = group_advantages(scores.total, scores.valid, SIZE, clip=math.inf)
        self.clipped += int((values.abs() > clip).sum())
        return Advantages(values.clamp(-clip, clip), 0.0)


class Missing(Ours):
    """A tenth of the images has no reward, and no advantage."""

    name = "missing"

    def scores(self, scores: Scores) -> Scores:
        """Discard the scores of random images."""
        missing = _missing(len(scores.total))
        return replace(scores, total=scores.total.masked_fill(missing, 0), valid=~missing)


class MissingIsZero(Missing):
    """A tenth of the images has no reward, which counts as 0."""

    name = "a missing reward is 0"
    compared_with = "missing"

    def scores(self, scores: Scores) -> Scores:
        """Count the missing scores."""
        return replace(super().scores(scores), valid=torch.ones_like(scores.valid))


class BFloat16Latents(Ours):
    """The stored latents have the precision bfloat16."""

    name = "bfloat16 latents"

    def trajectory(self, trajectory: Trajectory) -> Trajectory:
        """Round the latents."""
        return replace(trajectory, latents=trajectory.latents.bfloat16().float())


class NoFloor(Ours):
    """The normalizer w has no lower bound."""

    name = "no floor"
    settings = ("generator.normaliser_floor=1e-30",)


class NewVelocity(Ours):
    """The fake score's loss evaluates the generator again."""

    name = "velocity evaluated again"

    def trajectory(self, trajectory: Trajectory) -> Trajectory:
        """Do not use the stored velocity."""
        return replace(trajectory, stored_velocity=False)


class NoSignal(Ours):
    """All images have the same reward, and all roles are updated nevertheless."""

    name = "equal rewards"

    def advantages(self, engine: BlockEngine, scores: Scores) -> Advantages:
        """Advantages of 0 that do not skip the updates."""
        return Advantages(torch.zeros_like(scores.total), 1.0, on_other_ranks=True)


VARIANTS: tuple[Callable[[], Ours], ...] = (
    *(Ours, OtherDraws, MicroBatchDrift, DpmSolver, IntegerTimesteps, AuthorsOrder, SmallNorm, JointClipping),
    *(OneProcess, NotCentered, NoSignal, Missing, MissingIsZero, BFloat16Latents, NoFloor, NewVelocity),
)


def _floor(sigma: Tensor) -> Tensor:
    """The level of the largest integer timestep up to 1000 sigma, at most 999."""
    return (1000 * sigma).floor().clamp_max(999) / 1000


def _missing(images: int) -> Tensor:
    """Bool (N,): the images without a reward."""
    return seeds.uniform(0, "missing", (), range(images)) < UNSCORED


def _block(trajectory: Trajectory, block: int) -> Trajectory:
    """The trajectory of one block of groups."""
    first, last = block * BLOCK, (block + 1) * BLOCK
    groups = trajectory.groups
    return replace(
        trajectory,
        groups=Groups(groups.iteration, groups.prompts[first:last], SIZE, first),
        latents=trajectory.latents[:, first * SIZE : last * SIZE],
        conditioning=trajectory.conditioning.select(range(first, last)),
        images=None,
    )


class Laboratory:
    """Runs single iterations from one state."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.engines: dict[tuple[str, ...], BlockEngine] = {}
        self.state: dict[str, Any] = {}
        self.rewards: dict[str, list[float]] = {}

    def engine(self, settings: tuple[str, ...]) -> BlockEngine:
        """The engine with additional settings."""
        if settings not in self.engines:
            flags = Flags(
                model="tiny-tdm", preset="ocr", rewards=["object_count"], seed=self.seed, sets=[*SETTINGS, *settings]
            )
            config = resolve_settings(flags, "train", discover()).config
            self.engines[settings] = BlockEngine.from_config(config)
        return self.engines[settings]

    def warm_up(self, iterations: int) -> None:
        """Train, keep the state, and print the metrics of the last iteration."""
        engine = self.engine(())
        for _ in range(iterations):
            report = engine.iteration()
        kept = ("reward/", "surrogate/", "grad_norm/", "zero_std", "advantage/")
        print({name: round(value, 4) for name, value in report.metrics.items() if name.startswith(kept)}, flush=True)
        names = engine.roles.names
        self.state = {
            "iteration": engine.iteration_index,
            "weights": {name: {k: v.clone() for k, v in engine.roles.weights(name).items()} for name in names},
            "optimizers": {name: _copy(engine.trained[name].optimizer.state_dict()) for name in ROLES},
        }

    def change(self, variant: Ours, number: int) -> Change:
        """Run iteration `number` after the state. Returns the change of each role's weights."""
        engine = self.engine(variant.settings)
        state = self.state
        for name, weights in state["weights"].items():
            engine.roles.load(name, weights, "state")
        for name, values in state["optimizers"].items():
            engine.trained[name].optimizer.load_state_dict(_copy(values))
            engine.trained[name].updates = state["iteration"]
        engine.iteration_index = state["iteration"] + number
        engine._begin()
        with variant.patched(engine):
            trajectory = engine.rollout(engine.next_groups())
            found = engine.score(trajectory)
            self.rewards.setdefault(variant.name, []).append(found.total.mean().item())
            advantages = variant.advantages(engine, variant.scores(found))
            variant.updates(engine, variant.trajectory(trajectory), advantages)
        assert all(engine.trained[name].updates == state["iteration"] + 1 for name in ROLES), "a role was not updated"
        return {
            name: torch.cat(
                [
                    (weight - state["weights"][name][key]).flatten().double()
                    for key, weight in engine.roles.weights(name).items()
                ]
            )
            for name in ROLES
        }


def _copy(values: Any) -> Any:
    """A deep copy of nested mappings with tensors."""
    if isinstance(values, Tensor):
        return values.clone()
    if isinstance(values, Mapping):
        return {key: _copy(value) for key, value in values.items()}
    return [_copy(value) for value in values] if isinstance(values, list) else values


def effects(laboratory: Laboratory, repeats: int, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """The effect of each variant on each role, one number per iteration; only of variants with these names if given."""
    found: dict[str, dict[str, list[float]]] = {}
    started = time.monotonic()
    for number in range(repeats):
        changes: dict[str, Change] = {}
        for variant in [make() for make in VARIANTS]:
            if names and variant.name not in names:
                continue
            changes[variant.name] = laboratory.change(variant, number)
            if isinstance(variant, NotCentered):
                found.setdefault("clipped advantages", {}).setdefault("images", []).append(variant.clipped)
            against = changes[variant.compared_with]
            for role in ROLES:
                mine, other = against[role], changes[variant.name][role]
                row = found.setdefault(variant.name, {})
                row.setdefault(role, []).append(float((other - mine).norm() / mine.norm()))
                row.setdefault(f"{role}, cosine", []).append(float(other @ mine / other.norm() / mine.norm()))
                row.setdefault(f"{role}, size", []).append(float(other.norm() / mine.norm()))
        print(f"iteration {number + 1} of {repeats}: {time.monotonic() - started:.0f} s", flush=True)
    return found


def sharing_noise(laboratory: Laboratory, redraws: int) -> dict[str, dict[str, list[float]]]:
    """Noise of the step over signal, for the same images and several draws, with 2, 4 and all groups a draw.

    Noise is the standard deviation of the change of the weights over the draws, signal is the norm of the mean without
    the contribution of the noise. A signal smaller than this contribution gives infinity.
    """
    found = {}
    for sharing in (2, BLOCK, GROUPS):
        row = {}
        changes = [laboratory.change(OtherDraws(number, sharing), 0) for number in range(redraws)]
        for role in ROLES:
            all_changes = torch.stack([change[role] for change in changes])
            variance = float(all_changes.var(0).sum())
            signal = float(all_changes.mean(0).square().sum()) - variance / redraws
            row[role] = [math.sqrt(variance / signal) if signal > 0 else math.inf]
        found[f"sharing {sharing}"] = row
    return found


def prompts(numbers: Sequence[int], size: int = 4096, groups: int = 48) -> dict[str, dict[str, list[float]]]:
    """Prompts drawn in blocks of 4 with replacement between blocks: repeated in an iteration, and unused in one pass.

    Without replacement both are 0 %.
    """
    repeated, unused = [], []
    for number in numbers:
        generator = seeds.stream(number, "blocks")
        iterations = size // groups
        draws = torch.stack(
            [torch.randperm(size, generator=generator)[:BLOCK] for _ in range(iterations * groups // BLOCK)]
        ).view(iterations, groups)
        repeated.append(sum(groups - len(row.unique()) for row in draws) / draws.numel())
        unused.append(1 - len(draws.unique()) / size)
    return {"prompts": {"repeated in an iteration": repeated, "unused after one pass": unused}}


def sparse_advantages(numbers: Sequence[int], probability: float = 0.01) -> dict[str, dict[str, list[float]]]:
    """The change of the advantages without the second centering, where one image in a hundred has the reward 1.

    48 groups of 24 images: the only case in which clipping at 5 matters, a reward that few images get.
    """
    clipped, change = [], []
    for number in numbers:
        rewards = (seeds.uniform(number, "sparse", (), range(48 * 24)) < probability).double()
        everyone = torch.ones_like(rewards, dtype=torch.bool)
        ours = group_advantages(rewards, everyone, 24)
        free = group_advantages(rewards, everyone, 24, clip=math.inf)
        clipped.append(float((free.abs() > 5).double().mean()))
        change.append(float((free.clamp(-5, 5) - ours).norm() / ours.norm()))
    return {"sparse rewards": {"clipped": clipped, "change of the advantages": change}}


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """The rows as Markdown, without the effects that are 0."""
    yield "| row | quantity | mean | minimum to maximum | n |\n|---|---|---|---|---|"
    for name, row in found.items():
        for quantity, values in row.items():
            role = quantity.partition(",")[0]
            if role in ROLES and not any(row[role]):
                continue
            mean = sum(values) / len(values)
            yield f"| {name} | {quantity} | {mean:.3g} | {min(values):.3g} to {max(values):.3g} | {len(values)} |"


def main() -> None:
    """Measure, print the table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", type=int, default=20, help="iterations before the measurement")
    parser.add_argument("--repeats", type=int, default=4, help="measured iterations")
    parser.add_argument("--redraws", type=int, default=6, help="draws of the row about sharing")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="variants, with those they refer to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    laboratory = Laboratory(options.seed)
    laboratory.warm_up(options.warm_up)
    found = effects(laboratory, options.repeats, options.only)
    found["mean reward"] = laboratory.rewards
    if not options.only:
        found |= sharing_noise(laboratory, options.redraws) | prompts(range(10)) | sparse_advantages(range(10))
    print("\n".join(table(found)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
