"""The engine on the packaged model: its options, its hooks, its sampling, and stages that are called directly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.errors import raises
from support.runs import small_config

from tdmr1_core import hookspecs
from tdmr1_core.algorithm.flow import unshift_sigma
from tdmr1_core.distill import DistillEngine
from tdmr1_core.engine import Engine
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.pipeline import load_pipeline
from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.models.roles import FAKE, GENERATOR, GENERATOR_EMA, SURROGATE
from tdmr1_core.plugins import Extensions, discover
from tdmr1_core.runs.evaluation.evaluate import evaluation_noise, sample_images
from tdmr1_rewards.hookspecs import hookimpl

pytestmark = pytest.mark.integration

NOT_NUMERICS = ("time/", "images_per_second")


def run(*assignments: str, iterations: int = 2) -> tuple[list[dict[str, float]], dict[str, dict[str, torch.Tensor]]]:
    engine = Engine.from_config(small_config(*assignments))
    reports = [engine.iteration() for _ in range(iterations)]
    engine.close()
    metrics = [{k: v for k, v in r.metrics.items() if not k.startswith(NOT_NUMERICS)} for r in reports]
    return metrics, {role: engine.roles.weights(role) for role in engine.roles.names}


def largest_difference(a, b) -> float:
    assert [set(row) for row in a] == [set(row) for row in b]
    return max(abs(x[key] - y[key]) for x, y in zip(a, b, strict=True) for key in x)


@pytest.fixture(scope="module")
def three_iterations():
    return run("model.precision=fp64", "surrogate.trust_region=0.001", "surrogate.drift_threshold=0.05")


def test_three_iterations_move_every_trained_role(three_iterations):
    before = Engine.from_config(small_config("model.precision=fp64")).roles
    for role in (GENERATOR, FAKE, SURROGATE):
        moved = max((before.weights(role)[k] - v).abs().max() for k, v in three_iterations[1][role].items())
        assert moved > 1e-5, role


def test_another_seed_gives_other_metrics(three_iterations):
    assert largest_difference(run("model.precision=fp64", "seed=1", iterations=1)[0], three_iterations[0][:1]) > 1e-3


def test_draws_do_not_depend_on_the_precision():
    single = Engine.from_config(small_config())
    double = Engine.from_config(small_config("model.precision=fp64"))
    groups = single.next_groups()
    assert groups == double.next_groups()
    one, two = single.rollout(groups), double.rollout(groups)
    assert torch.equal(one.latents[0].double(), two.latents[0])
    assert torch.allclose(one.latents[-1].double(), two.latents[-1], atol=1e-3)


def test_bf16_is_used_only_for_frozen_weights():
    engine = Engine.from_config(small_config("model.precision=bf16", "memory.decoder=tiled", "batch.group_size=2"))
    engine.iteration()
    engine.close()
    network = engine.roles.backbone.network
    kinds = {("lora_" in name, weight.dtype) for name, weight in network.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    groups = engine.next_groups()
    single = Engine.from_config(small_config())
    coarse, fine = (e.rollout(groups).latents for e in (Engine.from_config(engine.config), single))
    assert coarse.dtype == torch.float32
    assert 0 < (coarse[-1] - fine[-1]).abs().mean() / fine[-1].abs().mean() < 0.03


@pytest.mark.parametrize(
    ("precision", "lora", "largest"), [("fp32", "peft", 0), ("fp32", "merged", 1), ("fp64", "merged", 0)]
)
def test_sampling_gives_the_images_of_the_pipeline(precision, lora, largest):
    """`largest` is the largest difference of a pixel value (of 255); the pipeline computes with PEFT's layers."""
    engine = Engine.from_config(small_config(f"model.precision={precision}", f"memory.lora={lora}"))
    pipeline = load_pipeline(FAMILIES["sd3"], engine.model_files.folder, torch.float32, engine.model_files.absent)
    pipeline.load_lora_weights(engine.entry.lora)
    pipeline.to(dtype=torch.float64 if precision == "fp64" else torch.float32)
    for prompt in engine.prompts[:3]:
        images = sample_images(engine, GENERATOR_EMA, [prompt], 3, seed=5).images
        expected = pipeline(
            prompt.text,
            num_images_per_prompt=3,
            sigmas=unshift_sigma(engine.sigmas[:-1], 3.0).tolist(),
            guidance_scale=1.0,
            latents=evaluation_noise([prompt], 3, 5, (4, 12, 12)).to(engine.roles.backbone.dtype),
            max_sequence_length=0,
            output_type="np",
        ).images
        assert np.abs((expected * 255).round() - images.astype(np.float32)).max() <= largest
        assert len({image.tobytes() for image in images}) == 3


def test_the_guided_teacher_gives_the_images_of_the_pipeline():
    engine = Engine.from_config(small_config())
    (prompt,) = engine.prompts[:1]
    images = sample_images(engine, "teacher", [prompt], 4, seed=5, steps=6, guidance_scale=2.5).images
    pipeline = load_pipeline(FAMILIES["sd3"], engine.model_files.folder, torch.float32, engine.model_files.absent)
    expected = pipeline(
        prompt.text,
        num_images_per_prompt=4,
        sigmas=[1 - k / 6 for k in range(6)],
        guidance_scale=2.5,
        latents=evaluation_noise([prompt], 4, 5, (4, 12, 12)),
        max_sequence_length=0,
        output_type="np",
    ).images
    assert np.abs((expected * 255).round() - images.astype(float)).max() <= 1


def test_stages_called_directly_give_the_weights_of_an_iteration():
    config = small_config()
    reference = Engine.from_config(config)
    reference.iteration()
    engine = Engine.from_config(config)
    trajectory = engine.rollout(engine.next_groups())
    advantages = engine.advantages(engine.score(trajectory))
    for step in range(2):
        engine.update_fake(trajectory, step)
        for repeat in range(config.surrogate.updates):
            engine.update_surrogate(trajectory, advantages, step, repeat)
        engine.update_generator(trajectory, advantages, step)
    for role in engine.roles.names:
        for name, value in engine.roles.weights(role).items():
            assert torch.equal(value, reference.roles.weights(role)[name]), (role, name)


class Watcher:
    """Observes every stage and vetoes one kind of update."""

    def __init__(self, veto: str) -> None:
        self.veto = veto
        self.seen: list[str] = []

    @hookimpl
    def tdmr1_before_rollout(self, groups):
        self.seen.append(f"before_rollout {len(groups)}")

    @hookimpl
    def tdmr1_after_rollout(self, trajectory):
        self.seen.append(f"after_rollout {len(trajectory.images)}")

    @hookimpl
    def tdmr1_after_scoring(self, scores):
        self.seen.append(f"after_scoring {len(scores.total)}")

    @hookimpl
    def tdmr1_after_advantages(self, advantages):
        self.seen.append("after_advantages")

    @hookimpl
    def tdmr1_before_fake_update(self):
        return "not today" if self.veto == FAKE else None

    @hookimpl
    def tdmr1_before_surrogate_update(self, advantages):
        return "not today" if self.veto == SURROGATE else None

    @hookimpl
    def tdmr1_before_generator_update(self, advantages):
        return "not today" if self.veto == GENERATOR else None

    @hookimpl
    def tdmr1_after_fake_update(self, stats):
        self.seen.append(stats.role)

    @hookimpl
    def tdmr1_after_surrogate_update(self, stats):
        self.seen.append(stats.role)

    @hookimpl
    def tdmr1_after_generator_update(self, stats):
        self.seen.append(stats.role)

    @hookimpl
    def tdmr1_after_iteration(self, report):
        self.seen.append(f"after_iteration {report.step}")


@pytest.mark.parametrize("veto", [FAKE, SURROGATE, GENERATOR])
def test_hooks_observe_and_veto(veto):
    extensions = discover()
    watcher = Watcher(veto)
    extensions.plugins.manager.register(watcher, "watcher")
    engine = Engine.from_config(small_config(), extensions=extensions)
    before = engine.roles.weights(veto)
    report = engine.iteration()
    assert report.skipped == (f"{veto}: not today",)
    assert all(torch.equal(value, before[name]) for name, value in engine.roles.weights(veto).items())
    assert watcher.seen[:4] == ["before_rollout 2", "after_rollout 8", "after_scoring 8", "after_advantages"]
    assert watcher.seen[-1] == "after_iteration 1"
    others = {FAKE, SURROGATE, GENERATOR} - {veto}
    assert {entry for entry in watcher.seen if entry in (FAKE, SURROGATE, GENERATOR)} == others


def test_every_hook_is_documented_and_tested():
    specified = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("tdmr1_")}
    assert all(hook.__doc__ for hook in specified.values())
    registering = {"tdmr1_register_families", "tdmr1_register_models"}
    assert specified.keys() - registering == {n for n in vars(Watcher) if n.startswith("tdmr1_")}


def test_a_plugin_that_raises_is_named():
    entry = replace(BUILTIN_MODELS[0], name="my-tiny")

    class Raising:
        @hookimpl
        def tdmr1_after_rollout(self, trajectory):
            raise RuntimeError("boom")

    extensions = Extensions(discover().plugins, ModelRegistry([entry]))
    extensions.plugins.manager.register(Raising(), "raising")
    engine = Engine.from_config(small_config("model.name=my-tiny"), extensions=extensions)
    with raises("plugin-failed", plugin="raising", hook="tdmr1_after_rollout", error="RuntimeError: boom") as caught:
        engine.iteration()
    assert "TDMR1_DISABLE_PLUGINS=raising" in caught.value.hint


def test_equal_rewards_skip_surrogate_and_generator():
    engine = Engine.from_config(small_config())
    trajectory = engine.rollout(engine.next_groups())
    scores = engine.score(trajectory)
    scores.total.fill_(0.3)
    advantages = engine.advantages(scores)
    assert advantages.zero_std_ratio == 1.0
    before = {role: engine.roles.weights(role) for role in (SURROGATE, GENERATOR)}
    assert engine.update_surrogate(trajectory, advantages).skipped
    assert engine.update_generator(trajectory, advantages).skipped
    for role, weights in before.items():
        assert all(torch.equal(value, weights[name]) for name, value in engine.roles.weights(role).items())


@pytest.mark.parametrize(
    "assignments",
    [
        ["rollout.eta=0.5"],
        ["rollout.sampler=dpm-solver++"],
        ["generator.loss=huber", "generator.trunc_steps=2"],
        ["surrogate.boundary=weighted", "surrogate.reference=ema", "surrogate.trust_region=0.001"],
        ["advantages.binary=true", "advantages.std=group"],
        ["timesteps.optimizer_step=iteration", "surrogate.updates=1", "timesteps.k_sharing=sample"],
        ["generator.reward_scale=0"],
        ["scoring.combine=normalised"],
    ],
)
def test_with_every_option_the_weights_change_and_stay_finite(assignments):
    engine = Engine.from_config(small_config(*assignments))
    before = engine.roles.weights(GENERATOR)
    report = engine.iteration()
    after = engine.roles.weights(GENERATOR)
    assert all(np.isfinite(value) for value in report.metrics.values())
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    if "generator.reward_scale=0" in assignments:
        assert report.skipped == ("surrogate: generator.reward_scale is 0: the reward term is off",)


def test_distillation_moves_generator_and_fake_only():
    engine = DistillEngine.from_config(small_config(preset="distill-tiny"))
    assert engine.roles.trained == (GENERATOR, FAKE)
    report = engine.iteration()
    assert "loss/generator" in report.metrics
    assert "reward/mean" not in report.metrics
    assert max(value.abs().max() for name, value in engine.roles.weights(GENERATOR).items() if "lora_B" in name) > 0
