"""The stages compared with the naive implementation in support/naive.py: losses, gradients, iterations, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.naive import (
    PROMPTS,
    Answer,
    Naive,
    NaiveAdamW,
    Settings,
    Stored,
    Weights,
    advantages,
    level,
    tiny_transformer,
)
from support.product import ALPHA, RANK, Recorder, brightness, gradients, make_engine, random_trajectory, start_loras
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import FAKE, GENERATOR, GENERATOR_EMA, SURROGATE, SURROGATE_EMA
from tdmr1_core.records import Advantages, Trajectory, UpdateStats
from tdmr1_core.stages.draws import draw_boundaries, draw_steps

pytestmark = pytest.mark.unit

GROUP = 3
SEED = 9
TEXTS = (PROMPTS[2], PROMPTS[1])
ADVANTAGES = (1.2, -1.5, 0.3, 0.0, 0.8, -0.8)
SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)

PLAIN = Settings()


@dataclass(frozen=True)
class Case:
    """Settings of the losses, and how the engine computes them."""

    settings: Settings = PLAIN
    micro_batch: int | None = None
    stored_velocity: bool = True
    k_sharing: str = "sample"
    tau_sharing: str = "sample"
    surrogate_tau_sharing: str = "group"
    boundary: str = "weighted"
    kind: str = "train"
    sign: int = 1

    @property
    def advantages(self) -> list[float]:
        """The fixed advantages times `sign`."""
        return [self.sign * advantage for advantage in ADVANTAGES]

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """The settings as sections of the config."""
        s = self.settings
        return {
            "batch": {"groups": 2, "group_size": GROUP, "micro_batch": self.micro_batch},
            "timesteps": {"per_iteration": 2, "k_sharing": self.k_sharing, "tau_sharing": self.tau_sharing},
            "fake": {"teacher_weight": s.teacher_weight},
            "surrogate": {
                "beta_dpo": s.beta,
                "tau_min": 0.55,
                "tau_sharing": self.surrogate_tau_sharing,
                "boundary": self.boundary,
                "reference": "ema" if s.reference == SURROGATE_EMA else "frozen",
                "trust_region": s.trust_region,
                "drift_threshold": s.drift_threshold,
                "reference_penalty": s.penalty,
                "time_weight": s.time_weight,
            },
            "generator": {
                "loss": s.loss,
                "huber_c": s.huber_c,
                "joint_huber": s.joint_huber,
                "guidance_scale": s.guidance,
                "rl_cfg": s.rl_cfg,
                "tau_min": 0.4,
                "tdm_weight": s.tdm_weight,
                "reward_scale": s.reward_scale,
                "trunc_steps": s.trunc_steps,
                "normaliser_floor": s.floor,
            },
        }

    def engine(self) -> Engine:
        """An engine with these settings."""
        return make_engine(self.sections, seed=SEED, kind=self.kind)


def naive() -> Naive:
    """The naive implementation, with the same weights."""
    return Naive(tiny_transformer(), ALPHA / RANK, start_loras())


def stored(trajectory: Trajectory) -> Stored:
    """A trajectory in the format of the naive implementation."""
    texts = [trajectory.groups.prompts[group].text for group in trajectory.groups.group_of_image]
    return Stored(trajectory.latents, SIGMAS, texts, trajectory.groups.group_size)


def ids(sharing: str, images: int) -> list[int]:
    """An id per image: images with equal ids share a draw."""
    return {"step": [0] * images, "group": [i // GROUP for i in range(images)], "sample": list(range(images))}[sharing]


def levels(name: str, counters: tuple[int, ...], sharing: str, lower: list[float], iteration: int = 0) -> list[float]:
    """Noise levels computed from the same uniform numbers."""
    uniform = seeds.uniform(SEED, name, (iteration, *counters), ids(sharing, len(lower)))
    return [level(float(u), low) for u, low in zip(uniform, lower, strict=True)]


def noises(name: str, counters: tuple[int, ...], sharing: str, images: int, iteration: int = 0) -> list[Tensor]:
    """The same noises, one per image."""
    drawn = seeds.noise(SEED, name, (iteration, *counters), ids(sharing, images), (4, 4, 4))
    return list(drawn.double())


def assert_same(stats: UpdateStats, engine: Engine, role: str, expected: Answer, scale: float = 0.5) -> None:
    """Check metrics and gradients to 1e-9. Metrics are unscaled, gradients contain the factor 1/M of accumulation."""
    assert stats.metrics == pytest.approx(expected.losses, rel=1e-9, abs=1e-13)
    found = gradients(engine, role)
    assert found.keys() == expected.gradient.keys()
    largest = max(float(g.abs().max()) for g in expected.gradient.values())
    assert largest > 1e-4
    for name, gradient in expected.gradient.items():
        assert found[name] is not None
        torch.testing.assert_close(found[name], scale * gradient, rtol=1e-9, atol=1e-11 * largest, msg=name)


def expected_fake(case: Case, trajectory: Trajectory, step: int = 0, repeat: int = 0) -> Answer:
    """The naive fake score step."""
    at, groups = stored(trajectory), trajectory.groups
    ks = draw_steps(SEED, groups, 4, 2, case.k_sharing)[step].tolist()  # type: ignore[arg-type]
    taus = levels("tau", (step, repeat), case.tau_sharing, [SIGMAS[k + 1] for k in ks])
    eps = noises("fake", (step, repeat), "sample", at.images)
    return naive().fake(case.settings, at, ks, taus, eps, case.stored_velocity)


def expected_surrogate(case: Case, trajectory: Trajectory) -> Answer:
    """The naive surrogate step."""
    at, groups = stored(trajectory), trajectory.groups
    ks = draw_boundaries(SEED, groups, 4, (0, 0), case.k_sharing, case.boundary == "weighted").tolist()  # type: ignore[arg-type]
    lower = [max(SIGMAS[k + 1], 0.55) for k in ks]
    taus = levels("tau-surrogate", (0, 0), case.surrogate_tau_sharing, lower)
    eps = noises("surrogate", (0, 0), "group", at.images)
    return naive().surrogate(case.settings, at, case.advantages, ks, taus, eps)


def expected_generator(case: Case, trajectory: Trajectory) -> Answer:
    """The naive generator step."""
    at, groups = stored(trajectory), trajectory.groups
    ks = draw_steps(SEED, groups, 4, 2, case.k_sharing)[0].tolist()  # type: ignore[arg-type]
    taus = levels("tau", (0, 0), case.tau_sharing, [SIGMAS[k + 1] for k in ks])
    taus_reward = levels("tau-reward", (0,), case.surrogate_tau_sharing, [max(SIGMAS[k + 1], 0.4) for k in ks])
    eps, eps_reward = noises("generator", (0,), "sample", 6), noises("reward", (0,), "group", 6)
    return naive().generator(case.settings, at, ks, taus, taus_reward, eps, eps_reward, distil=case.kind == "distill")


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(stored_velocity=False, micro_batch=1),
        Case(stored_velocity=False, k_sharing="step", tau_sharing="step", micro_batch=4),
        Case(Settings(teacher_weight=0.7), k_sharing="group", tau_sharing="group", micro_batch=3),
        Case(Settings(teacher_weight=0.0), kind="distill", micro_batch=2),
    ],
    ids=["stored", "evaluated-1", "evaluated-4", "weight-3", "distill-2"],
)
def test_fake_step(case: Case) -> None:
    engine = case.engine()
    trajectory = random_trajectory(engine, TEXTS, GROUP, stored_velocity=case.stored_velocity)
    stats = engine.update_fake(trajectory)
    assert_same(stats, engine, FAKE, expected_fake(case, trajectory))


EMA = SURROGATE_EMA
CLIPPING = Settings(trust_region=0.1)
CLOSE = Settings(trust_region=0.01)
DRIFTING = Settings(drift_threshold=0.08)


@pytest.mark.parametrize(
    "case",
    [
        Case(Settings(penalty=0.0)),
        Case(boundary="last", micro_batch=1, surrogate_tau_sharing="sample"),
        Case(CLIPPING, micro_batch=3),
        Case(CLIPPING, micro_batch=2, k_sharing="group", surrogate_tau_sharing="step"),
        Case(CLOSE, micro_batch=1, sign=-1),
        Case(DRIFTING, micro_batch=4),
        Case(DRIFTING, sign=-1),
        Case(Settings(trust_region=0.1, drift_threshold=0.08, time_weight=False), micro_batch=1),
        Case(Settings(reference=EMA, trust_region=1e-3, drift_threshold=0.02)),
        Case(Settings(reference=EMA, beta=0.5, penalty=0.3), micro_batch=2, k_sharing="step"),
    ],
    ids=["plain", "last-1", "clip-3", "clip-2", "clip-negated-1", "drift-4", "drift-negated", "both-1", "ema", "ema-2"],
)
def test_surrogate_step(case: Case) -> None:
    engine = case.engine()
    trajectory = random_trajectory(engine, TEXTS, GROUP, stored_velocity=True)
    expected = expected_surrogate(case, trajectory)
    if case.settings in (CLIPPING, CLOSE, DRIFTING):
        masked = expected.drifted if case.settings == DRIFTING else expected.clipped
        assert 0 < sum(masked) < len(masked)
        affected = [advantage for mask, advantage in zip(masked, case.advantages, strict=True) if mask]
        assert max(affected) > 0 if case.sign > 0 else min(affected) < 0
    stats = engine.update_surrogate(trajectory, Advantages(torch.tensor(case.advantages, dtype=torch.float64), 0.0))
    assert_same(stats, engine, SURROGATE, expected)


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(Settings(guidance=1.0, rl_cfg=1.0), micro_batch=1, k_sharing="step", tau_sharing="step"),
        Case(Settings(loss="huber", huber_c=0.2, trunc_steps=2), micro_batch=4, surrogate_tau_sharing="step"),
        Case(Settings(loss="huber", guidance=1.0, rl_cfg=2.0, trunc_steps=0), micro_batch=3),
        Case(Settings(loss="huber", guidance=4.5, tdm_weight=0.6, trunc_steps=0), k_sharing="group"),
        Case(Settings(loss="huber", trunc_steps=3, reference=EMA), micro_batch=1),
        Case(Settings(loss="huber", joint_huber=False, trunc_steps=1)),
        Case(Settings(trunc_steps=2, reward_scale=0.6, tdm_weight=0.8), micro_batch=3, surrogate_tau_sharing="sample"),
        Case(Settings(reward_scale=0.0, floor=1.3), k_sharing="group", tau_sharing="group"),
        Case(Settings(reference=EMA, rl_cfg=3.0), micro_batch=1),
        Case(Settings(reference=EMA, guidance=1.0, rl_cfg=1.0, floor=0.8)),
        Case(kind="distill", micro_batch=4),
        Case(Settings(loss="huber", guidance=1.0, trunc_steps=1), kind="distill"),
    ],
    ids=[
        "plain",
        "unguided-1",
        "huber-4",
        "huber-unguided-3",
        "huber-unrewarded",
        "huber-ema-1",
        "huber-separate",
        "trunc-3",
        "no-reward",
        "ema-1",
        "ema-floor",
        "distill",
        "distill-huber",
    ],
)
def test_generator_step(case: Case) -> None:
    engine = case.engine()
    trajectory = random_trajectory(engine, TEXTS, GROUP, stored_velocity=True)
    expected = expected_generator(case, trajectory)
    if case.settings.floor > 0.1:
        assert 0 < expected.floored < 12
    stats = engine.update_generator(trajectory)
    assert_same(stats, engine, GENERATOR, expected)


def test_the_second_step_accumulates_and_uses_new_draws() -> None:
    case = Case(stored_velocity=False)
    engine = case.engine()
    trajectory = random_trajectory(engine, TEXTS, GROUP, stored_velocity=False)
    other = case.engine()
    engine._fake.accumulate(trajectory, (0, 0), *engine._draw_step_and_tau(trajectory, 0, 0), False, 0.5)
    engine._fake.accumulate(trajectory, (1, 0), *engine._draw_step_and_tau(trajectory, 1, 0), False, 0.5)
    first, second = expected_fake(case, trajectory), expected_fake(case, trajectory, step=1)
    assert first.losses != second.losses
    for name, gradient in gradients(engine, FAKE).items():
        torch.testing.assert_close(gradient, (first.gradient[name] + second.gradient[name]) / 2, rtol=1e-9, atol=1e-12)
    assert all(gradient is None for gradient in gradients(other, FAKE).values())


class NaiveRun:
    """The state of a run in the naive implementation."""

    def __init__(self, case: Case, each: bool, fake_updates: int) -> None:
        self.case, self.each, self.fake_updates = case, each, fake_updates
        self.world = naive()
        self.adams = {
            GENERATOR: NaiveAdamW(2e-3, 0.0, 0.999, 1e-6, 1e-2, 0.05),
            FAKE: NaiveAdamW(3e-3, 0.0, 0.999, 1e-6, 1e-2, 0.05),
            SURROGATE: NaiveAdamW(4e-3, 0.9, 0.999, 1e-6, 1e-2, 0.05),
        }
        self.waiting: dict[str, list[Weights]] = {role: [] for role in self.adams}
        self.surrogate_updates = 0

    def iteration(self, index: int, trajectory: Trajectory, rewards: list[float], lr_scale: float) -> Tensor:
        """Run one iteration. Returns its latents."""
        case, s, world, groups = self.case, self.case.settings, self.world, trajectory.groups
        texts = [groups.prompts[group].text for group in groups.group_of_image]
        latents = world.rollout(noises("rollout", (), "sample", 6, index), texts, SIGMAS)
        at = Stored(latents, SIGMAS, texts, GROUP)
        values = advantages(rewards, GROUP, 1.1)
        for step in range(2):
            ks = draw_steps(SEED, groups, 4, 2, "sample")[step].tolist()
            lower = [SIGMAS[k + 1] for k in ks]
            for repeat in range(self.fake_updates):
                taus = levels("tau", (step, repeat), case.tau_sharing, lower, index)
                eps = noises("fake", (step, repeat), "sample", 6, index)
                self._update(FAKE, world.fake(s, at, ks, taus, eps, False), step, lr_scale)

            bs = draw_boundaries(SEED, groups, 4, (step, 0), "sample", True).tolist()
            b_lower = [max(SIGMAS[k + 1], 0.55) for k in bs]
            taus = levels("tau-surrogate", (step, 0), case.surrogate_tau_sharing, b_lower, index)
            eps = noises("surrogate", (step, 0), "group", 6, index)
            if self._update(SURROGATE, world.surrogate(s, at, values, bs, taus, eps), step, lr_scale):
                self._average(SURROGATE_EMA, SURROGATE, min(0.25, 0.1 + 0.1 * self.surrogate_updates))
                self.surrogate_updates += 1

            taus = levels("tau", (step, 0), case.tau_sharing, lower, index)
            r_lower = [max(low, 0.4) for low in lower]
            taus_reward = levels("tau-reward", (step,), case.surrogate_tau_sharing, r_lower, index)
            eps, eps_reward = (
                noises("generator", (step,), "sample", 6, index),
                noises("reward", (step,), "group", 6, index),
            )
            answer = world.generator(s, at, ks, taus, taus_reward, eps, eps_reward)
            if self._update(GENERATOR, answer, step, lr_scale):
                self._average(GENERATOR_EMA, GENERATOR, 0.6)
        return latents

    def _update(self, role: str, answer: Answer, step: int, lr_scale: float) -> bool:
        waiting = self.waiting[role]
        waiting.append(answer.gradient)
        if not self.each and step == 0:
            return False
        mean = {name: sum(g[name] for g in waiting) / len(waiting) for name in answer.gradient}
        waiting.clear()
        self.world.loras[role] = self.adams[role].step(self.world.loras[role], mean, lr_scale)  # type: ignore[arg-type]
        return True

    def _average(self, average: str, role: str, decay: float) -> None:
        loras = self.world.loras
        loras[average] = {name: decay * old + (1 - decay) * loras[role][name] for name, old in loras[average].items()}


@pytest.mark.parametrize(("each", "micro_batch"), [(False, None), (True, 2)], ids=["accumulated", "each"])
def test_whole_iterations(each: bool, micro_batch: int | None) -> None:
    """Two iterations: rollout, advantages, draws, updates, AdamW, averages and the learning-rate schedule."""
    settings = Settings(reference=EMA, trust_region=0.05, drift_threshold=0.08, trunc_steps=3)
    case = Case(settings, micro_batch=micro_batch)
    sections = case.sections
    sections["advantages"] = {"clip": 1.1}
    sections["timesteps"]["optimizer_step"] = "each" if each else "iteration"
    sections["fake"] |= {"learning_rate": 3e-3, "updates": 2 if each else 1}
    sections["surrogate"] |= {"learning_rate": 4e-3, "ema_slope": 0.1, "ema_max": 0.25}
    sections["generator"] |= {"learning_rate": 2e-3, "ema_decay": 0.6, "ema_warmup": False}
    sections["optimizer"] = {"epsilon": 1e-6, "weight_decay": 1e-2, "max_grad_norm": 0.05, "final_lr": 0.5}
    recorder = Recorder()
    engine = make_engine(sections, reward=brightness, plugin=recorder, seed=SEED, iterations=4)
    run = NaiveRun(case, each, 2 if each else 1)
    for index, lr_scale in enumerate((1.0, 0.875)):
        engine.iteration()
        latents = run.iteration(index, recorder.trajectory, recorder.rewards, lr_scale)
        torch.testing.assert_close(recorder.trajectory.latents, latents, rtol=1e-9, atol=1e-9)
    engine.close()
    for role, weights in run.world.loras.items():
        for name, weight in engine.roles.weights(role).items():
            torch.testing.assert_close(weight, weights[name], rtol=1e-9, atol=1e-10, msg=f"{role} {name}")
