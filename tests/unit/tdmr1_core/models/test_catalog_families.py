"""The catalog entries of the few-step families: LoRA modules, sizes, noise levels, teachers, plans and licenses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from huggingface_hub import constants
from support.runs import small_config

from tdmr1_core.algorithm.flow import sigma_schedule
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.families import FAMILIES, PIPELINES
from tdmr1_core.models.latent_shape import latent_grid, pixels_per_latent
from tdmr1_core.models.licences import license_warnings
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.noise_levels import pipeline_schedule
from tdmr1_core.models.registry import SAME
from tdmr1_core.planning.counting import count_parameters
from tdmr1_core.planning.estimate import plan, read_architecture
from tdmr1_core.planning.published_configs import PUBLISHED

pytestmark = pytest.mark.unit

ENTRIES = {entry.name: entry for entry in BUILTIN_MODELS if entry.base in PUBLISHED}
NEW = (
    "ernie-image-turbo",
    "flux1-schnell",
    "flux2-klein-4b",
    "flux2-klein-9b",
    "krea2-turbo",
    "qwen-image-2512-lightning",
    "qwen-image-lightning",
    "z-image-tdmr1",
)
PROJECTIONS = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def kinds(count: int, *names: str) -> dict[str, int]:
    return dict.fromkeys(names, count)


MODULES = {
    # double blocks have eight attention layers each, single blocks two
    "flux2-klein-4b": kinds(5, *PROJECTIONS, "to_out.0", *ADDED) | kinds(20, "to_qkv_mlp_proj", "to_out"),
    "flux2-klein-9b": kinds(8, *PROJECTIONS, "to_out.0", *ADDED) | kinds(24, "to_qkv_mlp_proj", "to_out"),
    # 28 blocks, and 2 + 2 that combine the layers of the text encoder
    "krea2-turbo": kinds(32, *PROJECTIONS, "to_gate", "to_out.0"),
    # per block eight attention layers, and two of a feed-forward network for images and for text
    "qwen-image-lightning": kinds(60, *PROJECTIONS, "to_out.0", *ADDED) | kinds(2 * 60, "net.0.proj", "net.2"),
    # 19 double blocks; the 38 single blocks have three projections
    "flux1-schnell": kinds(19 + 38, *PROJECTIONS) | kinds(19, "to_out.0", *ADDED),
    "ernie-image-turbo": kinds(36, *PROJECTIONS, "to_out.0"),
    # 30 layers, 2 that refine the noise and 2 that refine the text
    "z-image-tdmr1": kinds(34, *PROJECTIONS, "to_out.0"),
}


def kind(module: str) -> str:
    """The last part of a module's name, with its number if it is in a list."""
    parent, _, last = module.rpartition(".")
    if last.isdigit():
        return f"{parent.rpartition('.')[2]}.{last}"
    return f"net.0.{last}" if parent.endswith("net.0") else last


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("role", ["base", "teacher"])
def test_every_target_is_bound(name, role):
    entry = ENTRIES[name]
    source = entry.base if role == "base" or entry.teacher == SAME else entry.teacher
    network = MetaNetwork(FAMILIES[entry.family], PUBLISHED[source]["transformer/config.json"])
    weights = network.lora(LoraShape(entry.rank, entry.alpha, entry.targets))
    modules = {weight.partition(".lora_")[0] for weight in weights}
    assert len(weights) == 2 * len(modules)
    assert Counter(map(kind, modules)) == MODULES[name]


@pytest.mark.parametrize(
    ("source", "billions"),
    [
        ("black-forest-labs/FLUX.2-klein-4B", 3.876),
        ("black-forest-labs/FLUX.2-klein-base-4B", 3.876),
        ("black-forest-labs/FLUX.2-klein-9B", 9.079),
        ("black-forest-labs/FLUX.2-klein-base-9B", 9.079),
        ("krea/Krea-2-Turbo", 12.82),
        ("krea/Krea-2-Raw", 12.82),
        ("Qwen/Qwen-Image", 20.43),
        ("Qwen/Qwen-Image-2512", 20.43),
        ("black-forest-labs/FLUX.1-schnell", 11.89),
        ("black-forest-labs/FLUX.1-dev", 11.90),
        ("baidu/ERNIE-Image-Turbo", 8.03),
        ("baidu/ERNIE-Image", 8.03),
        ("Tongyi-MAI/Z-Image-Turbo", 6.15),
    ],
)
def test_parameters_of_the_denoisers(source, billions):
    denoiser = PUBLISHED[source]["transformer/config.json"]
    assert count_parameters(denoiser["_class_name"], denoiser) / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("flux2-klein-4b", 4.022),  # Qwen3-4B, whose output layer has the weights of its embedding
        ("flux2-klein-9b", 8.191),  # Qwen3-8B
        ("krea2-turbo", 4.438),  # Qwen3-VL-4B
        ("qwen-image-lightning", 8.292),  # Qwen2.5-VL-7B
        ("flux1-schnell", 0.123 + 4.762),  # CLIP-L and T5-XXL
        ("ernie-image-turbo", 3.43 + 0.42),  # Ministral 3B: language and vision
    ],
)
def test_parameters_of_the_text_encoders(name, billions):
    assert read_architecture(ENTRIES[name]).encoders / 1e9 == pytest.approx(billions, rel=1e-2)


def test_tokens_of_the_longest_prompt():
    """Only SD3 concatenates the tokens of CLIP, 77, and those of T5."""
    tokens = {name: read_architecture(ENTRIES[name]).tokens for name in ("sd3.5-tdm", *NEW)}
    assert tokens == dict.fromkeys(NEW, 512) | {"sd3.5-tdm": 128 + 77, "flux1-schnell": 256}


@pytest.mark.parametrize(
    ("source", "side", "steps", "expected"),
    [
        ("black-forest-labs/FLUX.2-klein-4B", 512, 4, [1, 0.958, 0.884, 0.717, 0]),
        ("black-forest-labs/FLUX.2-klein-9B", 1024, 4, [1, 0.967, 0.908, 0.767, 0]),
        ("krea/Krea-2-Turbo", 1024, 4, [1, 0.905, 0.760, 0.513, 0]),
        ("krea/Krea-2-Turbo", 512, 4, [1, 0.905, 0.760, 0.513, 0]),
        ("krea/Krea-2-Raw", 1280, 4, [1, 0.905, 0.760, 0.513, 0]),  # 6400 tokens, the largest mu, which is also 1.15
        ("black-forest-labs/FLUX.1-schnell", 1024, 4, [1, 0.75, 0.5, 0.25, 0]),
        ("black-forest-labs/FLUX.1-dev", 1024, 4, [1, 0.905, 0.760, 0.513, 0]),  # 4096 tokens, the largest mu
        ("baidu/ERNIE-Image-Turbo", 1024, 4, [1, 12 / 13, 0.8, 4 / 7, 0]),  # shift 4
        ("Tongyi-MAI/Z-Image-Turbo", 1024, 4, [1, 0.9, 0.75, 0.5, 0]),  # shift 3
    ],
)
def test_noise_levels(source, side, steps, expected):
    configs = PUBLISHED[source]
    family = PIPELINES[configs["model_index.json"]["_class_name"]]
    grid = latent_grid(family, configs["transformer/config.json"], pixels_per_latent(configs["vae/config.json"]))
    schedule = pipeline_schedule(
        family,
        configs["scheduler/scheduler_config.json"],
        grid.tokens(side, side),
        steps,
        distilled=configs["model_index.json"].get("is_distilled", False),
    )
    assert schedule.terminal is None
    assert sigma_schedule(steps, schedule.shift).tolist() == pytest.approx(expected, abs=6e-4)


def test_the_base_of_lightning_stretches_its_levels():
    configs = PUBLISHED["Qwen/Qwen-Image"]
    schedule = pipeline_schedule(FAMILIES["qwen_image"], configs["scheduler/scheduler_config.json"], 8192, 50)
    assert schedule.terminal == 0.02
    assert schedule.shift == pytest.approx(2.459603)  # exp(0.9)
    assert ENTRIES["qwen-image-lightning"].shift == 3.0


@pytest.mark.parametrize("name", [name for name in NEW if ENTRIES[name].teacher != SAME])
def test_a_teacher_shares_all_but_its_denoiser(name):
    entry = ENTRIES[name]
    base, teacher = PUBLISHED[entry.base], PUBLISHED[entry.teacher]
    shared = [part for part in base if part.startswith(("text_encoder", "vae"))]
    assert {part: base[part] for part in shared} == {part: teacher[part] for part in shared}
    assert base["model_index.json"]["_class_name"] == teacher["model_index.json"]["_class_name"]
    guided = entry.teacher_guidance != 1
    assert ("generator" not in entry.settings) is guided


def test_a_distilled_model_as_its_own_teacher_is_not_guided():
    itself = ENTRIES["flux2-klein-4b"].with_teacher(SAME)
    assert (itself.teacher, itself.teacher_steps, itself.teacher_guidance) == (SAME, 4, 1.0)
    assert itself.settings["generator"] == {"guidance_scale": 1.0, "rl_cfg": 1.0}
    other = ENTRIES["flux2-klein-9b"].with_teacher("owner/name")
    assert (other.teacher_guidance, other.teacher_licence, other.teacher_gated) == (4.5, "unknown", False)
    assert ENTRIES["krea2-turbo"].with_teacher("krea/Krea-2-Raw") is ENTRIES["krea2-turbo"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "repositories"),
    [
        ("flux2-klein-4b", []),
        ("ernie-image-turbo", []),
        ("qwen-image-lightning", []),
        ("z-image-tdmr1", []),
        ("flux2-klein-9b", ["black-forest-labs/FLUX.2-klein-9B", "black-forest-labs/FLUX.2-klein-base-9B"]),
        ("krea2-turbo", ["krea/Krea-2-Turbo", "krea/Krea-2-Raw"]),
        ("flux1-schnell", ["black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev"]),
        ("sd3.5-tdm", ["stabilityai/stable-diffusion-3.5-medium"]),
    ],
)
def test_restricted_licenses_are_named_before_a_download(cache, name, repositories):
    found = list(license_warnings(ENTRIES[name]))
    assert [each["repo"] for warning in found for each in warning.values["repositories"]] == repositories
    assert all(warning.code == "model-license" for warning in found)
    assert all(repo in str(found[0]) for repo in repositories)


def test_downloaded_and_local_weights_are_not_named(cache):
    entry = ENTRIES["flux1-schnell"]
    repo = cache / "models--black-forest-labs--FLUX.1-schnell"
    weights = repo / "snapshots" / ("a" * 40) / "transformer"
    weights.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    (weights / "config.json").touch()
    assert len(next(license_warnings(entry)).values["repositories"]) == 2
    (weights / "one.safetensors").touch()
    (named,) = next(license_warnings(entry)).values["repositories"]
    assert named == {
        "repo": "black-forest-labs/FLUX.1-dev",
        "license": "FLUX.1 [dev] Non-Commercial License",
        "gated": True,
    }
    local = replace(ENTRIES["sd3.5-tdm"], base=str(cache))
    assert list(license_warnings(local)) == []


def test_a_license_without_a_gate_can_forbid_commercial_use(cache):
    entry = replace(ENTRIES["flux2-klein-9b"], gated=False, teacher_gated=False)
    (found,) = license_warnings(entry)
    assert [each["gated"] for each in found.values["repositories"]] == [False, False]
    assert "https://" not in str(found)


@pytest.mark.long
@pytest.mark.timeout(600)  # the 60 blocks of Qwen-Image take minutes on a busy machine
@pytest.mark.parametrize("name", [name for name in NEW if name != "qwen-image-2512-lightning"])  # the same network
def test_a_plan_from_the_published_configs(name):
    entry = ENTRIES[name]
    config = small_config(f"model.name={name}", "model.precision=bf16", "model.device=cpu", "batch.micro_batch=1")
    planned = plan(config, entry)
    denoiser = PUBLISHED[entry.base]["transformer/config.json"]
    count = count_parameters(denoiser["_class_name"], denoiser)
    assert planned.parts["denoiser"] == pytest.approx(2 * count * (1 if entry.teacher == SAME else 2), rel=1e-3)
    assert planned.rank == entry.rank
    # Two FLOPs per weight and token, fewer where weights are for one kind of token or modulate all, more for attention.
    tokens = read_architecture(entry).latent_grid.tokens(entry.height, entry.width)
    assert 0.4 < planned.operations / planned.passes / (2 * count * tokens) < 2
