"""Every family on a tiny pipeline of its own classes: the conformance checks, two processes, and settings of memory."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import run_tdmr1
from support.errors import raises
from support.warm_processes import warm_processes  # noqa: F401
from torch.nn import functional

from tdmr1_cli.multiprocess import launch
from tdmr1_core.config_loading import resolve
from tdmr1_core.conformance import checks
from tdmr1_core.conformance.checks import CHECKS, Mismatch, NotApplicable
from tdmr1_core.conformance.subject import PROMPTS, Subject
from tdmr1_core.conformance.tiny_pipelines import MAKERS, make_tiny_pipeline
from tdmr1_core.distributed import join_processes
from tdmr1_core.engine import Engine
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.qwen_image import QwenImageBackbone
from tdmr1_core.models.registry import entry_of_pipeline

pytestmark = pytest.mark.integration

SMALL = {
    "iterations": 1,
    "batch": {"groups": 2, "group_size": 2},
    "timesteps": {"per_iteration": 1},
    "generator": {"learning_rate": 1e-2},
    "rewards": [{"name": "jpeg_size"}],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The directory of the tiny pipeline of a family, which is made when it is first wanted."""
    folder = tmp_path_factory.mktemp("families")
    (folder / "prompts.txt").write_text("two red circles\nthree green squares on a hill\n")

    def of(family: str) -> Path:
        path = folder / family
        return path if path.exists() else make_tiny_pipeline(family, path)

    return of


@pytest.fixture(scope="module")
def subjects(folders):
    made: dict[str, Subject] = {}

    def of(family: str) -> Subject:
        if family not in made:
            made[family] = Subject.tiny(folders(family))
        return made[family]

    return of


def settings(folder: Path, **changes):
    model = {"name": str(folder), "height": 64, "width": 64, "rank": 4, "alpha": 8}
    prompts = {"train": str(folder.parent / "prompts.txt")}
    return resolve([SMALL, {"model": model, "prompts": prompts}, changes])


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", MAKERS)
def test_a_family_conforms_to_its_pipeline(subjects, family, check):
    try:
        print(CHECKS[check](subjects(family)))
    except NotApplicable as reason:
        pytest.fail(f"every check applies to a tiny pipeline, but: {reason}")


class Reversed(PipelineBackbone):
    """A family with the wrong sign."""

    @staticmethod
    def velocity(latents, sigma, conditioning, *_, **__):
        return -Reversed.right(latents, sigma, conditioning)


def test_a_wrong_sign_is_found_by_two_checks(folders, monkeypatch):
    subject = Subject.tiny(folders("zimage"))
    Reversed.right = subject.backbone.velocity
    monkeypatch.setattr(subject.backbone, "velocity", Reversed.velocity)
    for check in (checks.check_pixels, checks.check_velocity):
        with pytest.raises(Mismatch, match="differs by"):
            check(subject)


@pytest.mark.parametrize("family", MAKERS)
def test_a_family_names_whether_its_attention_has_masks(subjects, family, monkeypatch):
    """A kernel without masks is refused for it before weights are loaded."""
    subject, masks = subjects(family), []
    texts = subject.backbone.encode(list(PROMPTS))
    original = functional.scaled_dot_product_attention

    def spy(*given, attn_mask=None, **named):
        masks.append(attn_mask)
        return original(*given, attn_mask=attn_mask, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    subject.backbone.velocity(subject.noise((64, 64)), torch.tensor([0.5, 0.5]), texts)
    assert masks, "the network must call the function that memory.attention selects a kernel of"
    assert any(mask is not None for mask in masks) == FAMILIES[family].masks_padding


def test_padding_that_is_not_masked_is_found(folders, monkeypatch):
    subject = Subject.tiny(folders("qwen_image"))
    monkeypatch.setattr("tdmr1_core.records.Conditioning.token_mask", None)
    with pytest.raises(Mismatch, match="beside a longer one"):
        checks.check_batches(subject)


def test_batch_norm_statistics_on_noise_are_found(folders, monkeypatch):
    subject = Subject.tiny(folders("flux2_klein"))
    norm = subject.backbone.pipeline.vae.bn
    std = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + 1e-4)
    right = subject.backbone.velocity
    monkeypatch.setattr(
        subject.backbone, "velocity", lambda latents, *rest, **named: right(latents * std, *rest, **named)
    )
    with pytest.raises(Mismatch):
        checks.check_pixels(subject)


def test_a_target_without_a_layer_is_found(folders):
    from dataclasses import replace

    subject = Subject.tiny(folders("flux2_klein"))
    bare = tuple(target for target in subject.entry.targets if "to_qkv_mlp_proj" not in target)
    with pytest.raises(Mismatch, match="to_qkv_mlp_proj"):
        checks.check_targets(replace(subject, entry=replace(subject.entry, targets=bare)))


def test_the_losses_do_not_rescale_guided_velocities_of_qwen_image(subjects):
    backbone = subjects("qwen_image").backbone
    assert isinstance(backbone, QwenImageBackbone)
    latents, sigma = subjects("qwen_image").noise((64, 64)), torch.tensor([0.5, 0.5])
    texts = backbone.encode(["a red circle", "three blue squares on a hill"])
    with torch.no_grad():
        conditional = backbone.velocity(latents, sigma, texts)
        unconditional = backbone.velocity(latents, sigma, backbone.unconditional.expand(2))
        guided = backbone.velocity(latents, sigma, texts, 3.0)
        sampled = backbone.velocity(latents, sigma, texts, 3.0, as_pipeline=True)
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), rtol=1e-4, atol=1e-4)
    tokens = [
        each.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3) for each in (sampled, conditional)
    ]
    torch.testing.assert_close(tokens[0].norm(dim=-1), tokens[1].norm(dim=-1), rtol=1e-4, atol=1e-4)
    assert (sampled - guided).abs().max() > 0.01


def weights_after(config) -> dict[str, torch.Tensor]:
    """The weights of all roles after the iterations of a config."""
    engine = Engine.from_config(config)
    for _ in range(config.iterations):
        engine.iteration()
    engine.close()
    return {f"{role}/{k}": v for role in engine.roles.names for k, v in engine.roles.weights(role).items()}


@pytest.mark.parametrize(
    "family",
    [
        *("flux2_klein", "qwen_image"),
        *(pytest.param(n, marks=pytest.mark.long) for n in ("krea2", "flux1", "ernie_image")),
    ],
)
def test_recomputation_and_parts_of_a_batch_do_not_change_the_weights(folders, family):
    plain = weights_after(settings(folders(family)))
    saved = weights_after(
        settings(
            folders(family),
            memory={"gradient_checkpointing": True, "decoder": "sliced"},
            batch={**SMALL["batch"], "micro_batch": 1},
        )
    )
    assert plain.keys() == saved.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-3, atol=2e-4)


def test_krea_keeps_its_norms_in_float32_in_bf16(folders):
    engine = Engine.from_config(
        settings(
            folders("krea2"),
            model={"name": str(folders("krea2")), "height": 64, "width": 64, "rank": 4, "precision": "bf16"},
        )
    )
    dtypes = {
        name: weight.dtype for name, weight in engine.roles.backbone.network.named_parameters() if "lora" not in name
    }
    assert {dtype for name, dtype in dtypes.items() if ".norm" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".to_q." in name} == {torch.bfloat16}
    assert engine.iteration().skipped == ()
    engine.close()


@pytest.mark.parametrize("family", ["flux2_klein", "krea2"])
def test_a_teacher_has_its_own_scheduler_and_settings(folders, tmp_path, family):
    base = tmp_path / "base"
    MAKERS[family](base, seed=1, distilled=False)
    model = {"name": str(folders(family)), "teacher": str(base), "height": 64, "width": 64, "rank": 4}
    engine = Engine.from_config(settings(folders(family), model=model))
    few_step, teacher = engine.roles.backbone.pipeline, engine.roles.backbone_of("teacher").pipeline
    assert [pipeline.config.is_distilled for pipeline in (few_step, teacher)] == [True, False]
    assert few_step.text_encoder is teacher.text_encoder
    assert few_step.vae is teacher.vae
    assert few_step.transformer is not teacher.transformer
    assert engine.config.generator.guidance_scale != 1.0
    engine.iteration()
    engine.close()


def iterate(folder: Path, pipeline: Path) -> None:
    """One iteration in float64 in this process, alone or as one of several. Each writes its weights."""
    model = {"name": str(pipeline), "height": 64, "width": 64, "rank": 4, "precision": "fp64"}
    config = settings(pipeline, model=model)
    processes = join_processes(config.model.device)
    engine = Engine.from_config(config, processes=processes)
    engine.iteration()
    engine.close()
    weights = {f"{role}/{k}": v for role in engine.roles.names for k, v in engine.roles.weights(role).items()}
    save_file(weights, folder / f"weights-{processes.count}-{processes.rank}.safetensors")
    processes.leave()


@pytest.mark.parametrize(
    "family",
    [
        *("flux2_klein", "qwen_image"),
        *(pytest.param(n, marks=pytest.mark.long) for n in ("sd3", "zimage", "krea2", "flux1", "ernie_image")),
    ],
)
def test_two_processes_give_the_result_of_one(folders, tmp_path, family):
    pipeline = folders(family)
    iterate(tmp_path, pipeline)
    launch(2, partial(iterate, tmp_path, pipeline))
    alone, first, second = (load_file(tmp_path / f"weights-{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert all(first[name].equal(second[name]) for name in first)
    largest = max((alone[name] - first[name]).abs().max().item() for name in alone)
    print(f"largest difference of a weight: {largest:.2e}")
    assert largest <= 1e-6


def test_a_size_off_the_grid_of_a_packed_family_is_refused(folders):
    with raises("setting-invalid", width=72, height=64, multiple=16):
        Engine.from_config(settings(folders("flux1"), model={"name": str(folders("flux1")), "height": 64, "width": 72}))


@pytest.mark.parametrize("rollout", [{"sigmas": [1, 0.8, 0.7, 0.2, 0]}, {"sampler": "dpm-solver++"}])
def test_levels_that_the_pipeline_of_ernie_image_cannot_take_are_refused(folders, rollout):
    with raises("setting-conflict", pipeline="ErnieImagePipeline"):
        Engine.from_config(settings(folders("ernie_image"), rollout=rollout))


def test_a_lora_of_another_family_is_refused_with_both_sides_named(folders, tmp_path):
    from tdmr1_core.models.lora.files import read_lora
    from tdmr1_core.models.lora.shape import LoraShape
    from tdmr1_core.models.meta_network import MetaNetwork
    from tdmr1_core.models.pipeline_files import read_config

    def network(family):
        entry = entry_of_pipeline(str(folders(family)))
        return MetaNetwork(
            FAMILIES[family], read_config(str(folders(family)), "transformer/config.json")
        ), entry.targets

    flux, targets = network("flux1")
    weights = {f"transformer.{name}": torch.ones(size) for name, size in flux.lora(LoraShape(4, 4, targets)).items()}
    save_file(weights, tmp_path / "flux.safetensors")
    qwen, own = network("qwen_image")
    with raises("lora-mismatch", model="FLUX.1"):
        read_lora(tmp_path / "flux.safetensors", qwen, LoraShape(4, 4, own), alpha=4.0)


def test_the_check_command_prints_a_result_per_check(folders):
    found = json.loads(run_tdmr1("models", "check", str(folders("sd3")), "--json").stdout)
    assert [each["check"] for each in found] == list(CHECKS)
    assert {each["check"]: each["passed"] for each in found}["images"] is True


def test_the_result_of_the_check_command_is_a_failure_if_a_check_fails():
    from tdmr1_cli.conformance import show
    from tdmr1_core.conformance.checks import Result

    assert show([("x", Result("images", True, "equal")), ("x", Result("batches", None, "no text"))], json=False)
    assert not show([("x", Result("images", False, "a pixel differs"))], json=False)


def test_levels_are_stored_and_a_changed_scheduler_does_not_move_them(folders, tmp_path):
    from support.runs import Silent

    from tdmr1_core.config_loading import read_file
    from tdmr1_core.runs.load_run import load_trained
    from tdmr1_core.runs.run import Run

    base = make_tiny_pipeline("flux2_klein", tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("two red circles\nthree green squares\n")
    small = {
        "evaluation": {"images": 2},
        "guard": {"enabled": False},
        "saving": {"samples_every": 0, "tensorboard": False},
    }
    Run.create(settings(base, **small), tmp_path / "run").execute(Silent())
    rollout = read_file(tmp_path / "run" / "config.yaml")["rollout"]
    assert len(rollout["sigmas"]) == 5
    assert (rollout["sigmas"][0], rollout["sigmas"][-1]) == (1, 0)
    assert rollout["shift"] == pytest.approx(np.exp(entry_mu(base)), rel=1e-6)
    engine = load_trained(tmp_path / "run")
    assert engine.sigmas.tolist() == rollout["sigmas"]
    engine.close()


def entry_mu(base: Path) -> float:
    """mu of klein's pipeline for 64 x 64 pixels (16 tokens) and 4 steps."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    assert base.exists()
    return compute_empirical_mu(16, 4)
