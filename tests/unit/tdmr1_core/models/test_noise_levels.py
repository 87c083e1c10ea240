"""Noise levels of pipelines, compared with the scheduler of diffusers and with values by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from support.errors import raises

from tdmr1_core.algorithm.flow import sigma_schedule, stretch
from tdmr1_core.models.families import FAMILIES, Mu, add_family
from tdmr1_core.models.latent_shape import latent_grid, pixels_per_latent
from tdmr1_core.models.noise_levels import pipeline_schedule

pytestmark = pytest.mark.unit

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}


def of_scheduler(config, mu, steps):
    """The levels of diffusers' scheduler (K+1,), set up as the pipelines do."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler.sigmas.double()


def ours(family, config, tokens, steps, **settings):
    schedule = pipeline_schedule(FAMILIES[family], config, tokens, steps, **settings)
    sigmas = sigma_schedule(steps, schedule.shift)
    return sigmas if schedule.terminal is None else stretch(sigmas, schedule.terminal)


@pytest.mark.parametrize("steps", [4, 8, 50])
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 4300, 4301, 8464])
def test_levels_of_flux2_are_those_of_its_formula_also_where_it_jumps(tokens, steps):
    config = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
    expected = of_scheduler(config, compute_empirical_mu(tokens, steps), steps)
    torch.testing.assert_close(ours("flux2_klein", config, tokens, steps), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["flux1", "qwen_image", "krea2"])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.02])
def test_levels_from_tokens_are_those_of_the_pipeline(family, kind, terminal):
    config = {**DYNAMIC, "time_shift_type": kind, "shift_terminal": terminal}
    for tokens in (256, 1024, 4096):
        expected = of_scheduler(config, calculate_shift(tokens, 256, 8192, 0.5, 0.9), 4)
        torch.testing.assert_close(ours(family, config, tokens, 4), expected, rtol=0, atol=1e-6)


def test_a_distilled_krea_has_a_fixed_mu_by_hand():
    levels = ours("krea2", DYNAMIC, 4096, 4, distilled=True).tolist()
    assert levels == pytest.approx([1, 0.9045, 0.7595, 0.5128, 0], abs=1e-4)
    assert levels != ours("krea2", DYNAMIC, 4096, 4).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_scheduler_has_its_shift_at_every_size(family):
    for tokens in (16, 4096):
        schedule = pipeline_schedule(FAMILIES[family], {"shift": 3.0}, tokens, 4)
        assert (schedule.shift, schedule.terminal) == (3.0, None)


def test_stretched_levels_by_hand():
    # 1 - (1 - s) 0.8 / 0.5 for s = 1, 0.75, 0.5
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.0], dtype=torch.float64)
    assert stretch(sigmas, 0.2).tolist() == pytest.approx([1, 0.6, 0.2, 0])


@pytest.mark.parametrize("name", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas"])
def test_schedulers_with_other_levels_are_refused(name):
    with raises("model-unsupported", setting=name):
        pipeline_schedule(FAMILIES["flux1"], {name: True}, 1024, 4)


def test_dynamic_shifting_is_refused_for_a_pipeline_without_mu():
    with raises("model-unsupported", setting="use_dynamic_shifting", pipeline="StableDiffusion3Pipeline"):
        pipeline_schedule(FAMILIES["sd3"], {"use_dynamic_shifting": True}, 1024, 4)
    assert {name for name, family in FAMILIES.items() if family.mu is None} == {"sd3", "zimage", "ernie_image"}
    assert FAMILIES["flux2_klein"].mu == Mu.TOKENS_AND_STEPS


@pytest.mark.parametrize(
    ("family", "denoiser", "autoencoder", "shape", "tokens", "multiple"),
    [
        ("sd3", {"in_channels": 16, "patch_size": 2}, {"block_out_channels": [1] * 4}, (16, 64, 96), 32 * 48, 16),
        ("flux1", {"in_channels": 64}, {"block_out_channels": [1] * 4}, (16, 64, 96), 32 * 48, 16),
        (
            "qwen_image",
            {"in_channels": 64, "patch_size": 2},
            {"temperal_downsample": [0, 1, 1]},
            (16, 64, 96),
            32 * 48,
            16,
        ),
        (
            "flux2_klein",
            {"in_channels": 128, "patch_size": 1},
            {"block_out_channels": [1] * 4},
            (128, 32, 48),
            32 * 48,
            16,
        ),
    ],
)
def test_latents_of_an_image_of_512_x_768_pixels(family, denoiser, autoencoder, shape, tokens, multiple):
    grid = latent_grid(FAMILIES[family], denoiser, pixels_per_latent(autoencoder))
    assert grid.shape(512, 768) == shape
    assert grid.tokens(512, 768) == tokens
    assert grid.multiple == multiple
    with raises("setting-invalid", width=776, height=512, multiple=16):
        grid.check(512, 776)


def test_guidance_scales_of_pipelines():
    # Z-Image and Krea 2 add s (cond - uncond) to cond, all others to uncond.
    scales = {name: (family.scale_of_pipeline(1.0), family.scale_of_pipeline(4.0)) for name, family in FAMILIES.items()}
    assert {name for name, pair in scales.items() if pair == (0.0, 3.0)} == {"zimage", "krea2"}
    assert {pair for name, pair in scales.items() if name not in ("zimage", "krea2")} == {(1.0, 4.0)}


def test_a_diffusers_without_the_class_is_named_with_the_release_that_has_it(monkeypatch):
    monkeypatch.delattr(diffusers, "Krea2Pipeline", raising=False)
    family = replace(FAMILIES["krea2"], pipeline="Krea3Pipeline")
    with raises("dependency-missing", package="diffusers", **{"class": "Krea3Pipeline"}) as caught:
        family.find_class("Krea3Pipeline")
    assert f"install diffusers {family.diffusers} or newer" in caught.value.hint


def test_two_families_cannot_have_one_name_or_one_pipeline_class():
    with raises("model-invalid", family="sd3"):
        add_family(replace(FAMILIES["sd3"], pipeline="OtherPipeline"))
    with raises("model-invalid", pipeline="FluxPipeline"):
        add_family(replace(FAMILIES["flux1"], name="other"))
    assert math.isinf(latent_grid(FAMILIES["flux1"], {"in_channels": 64}, 8).largest)
