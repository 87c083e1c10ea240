"""Backbones of every family, compared with the pipelines of diffusers, and runs on tiny pipelines of each."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.errors import raises
from support.pipelines import make_sd35, make_zimage
from support.runs import Silent

from tdmr1_core.algorithm.flow import unshift_sigma
from tdmr1_core.config_loading import resolve
from tdmr1_core.engine import Engine
from tdmr1_core.models.loading import fetch_model
from tdmr1_core.models.lora.files import COMFY_FILE
from tdmr1_core.models.roles import FAKE, GENERATOR, GENERATOR_EMA, REFERENCE, SURROGATE, TEACHER
from tdmr1_core.planning.estimate import plan
from tdmr1_core.plugins import discover
from tdmr1_core.runs.evaluation.evaluate import evaluation_noise, sample_images
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.output import export
from tdmr1_core.runs.output.export import export_lora
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

MAKERS = {"sd3": make_sd35, "zimage": make_zimage}
SMALL = {
    "iterations": 2,
    "batch": {"groups": 2, "group_size": 2},
    "timesteps": {"per_iteration": 2},
    "evaluation": {"images": 2},
    "saving": {"samples_every": 0, "tensorboard": False, "checkpoint_every": 1},
    "generator": {"learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "prompts.txt").write_text("two red circles\nthree green squares\n")
    return {name: make(folder / name) for name, make in MAKERS.items()} | {"prompts": folder / "prompts.txt"}


def settings(folders, family, **changes):
    model = {"name": str(folders[family]), "height": 64, "width": 64, "rank": 4, "alpha": 8, **changes.pop("model", {})}
    rewards = [] if changes.get("kind") == "distill" else [{"name": "jpeg_size"}]
    return resolve(
        [SMALL, {"model": model, "rewards": rewards, "prompts": {"train": str(folders["prompts"])}}, changes]
    )


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("role", [GENERATOR_EMA, TEACHER])
def test_sampling_gives_the_images_of_the_pipeline(folders, family, role):
    engine = Engine.from_config(settings(folders, family))
    kind = type(engine.roles.backbone.pipeline)
    pipeline = kind.from_pretrained(folders[family], **dict.fromkeys(engine.model_files.absent))
    (prompt, *_), seed = engine.prompts, 5
    guidance = 3.0 if role == TEACHER else 1.0
    images = sample_images(engine, role, [prompt], 2, seed, steps=4, guidance_scale=guidance).images
    # Z-Image's pipeline adds the guidance to the prediction, so a scale of 0 means no guidance.
    pipeline_guidance = {"sd3": guidance, "zimage": guidance - 1}[family]
    expected = pipeline(
        prompt.text,
        sigmas=unshift_sigma(engine.sigmas[:-1], 3.0).tolist(),
        guidance_scale=pipeline_guidance,
        height=64,
        width=64,
        num_images_per_prompt=2,
        latents=evaluation_noise([prompt], 2, seed, (16, 8, 8)),
        max_sequence_length=engine.entry.max_sequence_length,
        output_type="np",
    ).images
    assert images.std() > 5
    assert np.abs((expected * 255).round() - images.astype(int)).max() <= 1


def test_texts_of_different_lengths_do_not_change_each_other_in_a_batch(folders):
    engine = Engine.from_config(settings(folders, "zimage"))
    backbone = engine.roles.backbone
    both = engine.conditioning(engine.prompts)
    longer = backbone.encode(["two red circles three green squares"])
    assert [len(part) for part in (both, longer)] == [2, 1]
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.9, 0.4])
    together = type(both).cat([both.select([0]), longer])
    assert together.lengths.tolist() == [13, 18]
    found = backbone.velocity(latents, sigma, together)
    for row, alone in enumerate((both.select([0]), longer)):
        torch.testing.assert_close(
            found[row : row + 1], backbone.velocity(latents[row : row + 1], sigma[row : row + 1], alone)
        )


@pytest.fixture(scope="module", params=MAKERS)
def finished(request, folders, tmp_path_factory):
    """The folders of a run of two iterations, and of one that was stopped after the first and resumed."""
    config = settings(folders, request.param)
    whole, stopped = (tmp_path_factory.mktemp(request.param) / name for name in ("whole", "stopped"))
    Run.create(config, whole).execute(Silent())
    run = Run.create(config, stopped)

    class StopAfterOne(Silent):
        def iteration(self, report):
            run._stop = True

    assert not run.execute(StopAfterOne()).finished
    assert Run.resume(stopped).execute(Silent()).finished
    return whole, stopped


def test_a_resumed_run_ends_with_the_same_bits(finished):
    weights = [(folder / "checkpoints" / "step-000002" / "weights.safetensors").read_bytes() for folder in finished]
    assert weights[0] == weights[1]


def test_a_run_starts_from_an_exported_lora_and_refuses_a_changed_one(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    engine = load_trained(folder)
    lora = export_lora(engine, tmp_path / "lora").file
    config = engine.config.model_copy(
        update={"model": engine.config.model.model_copy(update={"lora": lora}), "iterations": 1}
    )
    run = tmp_path / "with-lora"
    Run.create(config, run).execute(Silent())
    weights = {name: weight + 1 for name, weight in load_file(lora).items()}
    with safe_open(lora, framework="pt") as file:
        header = file.metadata()
    save_file(weights, lora, metadata=header)
    with raises("resume-inputs", input="lora", path=str(lora)):
        Run.resume(run).execute(Silent())


def test_an_export_gives_the_same_images_and_records_its_origin(finished, tmp_path, monkeypatch):
    engine = load_trained(finished[0])
    exported = export_lora(engine, tmp_path / "lora", comfy=True)
    assert exported.largest_difference <= 1
    with safe_open(exported.file, framework="pt") as file:
        metadata = {name.removeprefix("tdmr1."): value for name, value in file.metadata().items()}
    assert metadata["base_model"] == f"path/to/{engine.model_files.folder.name}"
    assert json.loads(metadata["rewards"]) == {"jpeg_size": 1.0}
    assert (json.loads(metadata["steps"]), json.loads(metadata["shift"]), metadata["adapter_scale"]) == (4, 3.0, "1.0")
    assert len(metadata["config_hash"]) == 16
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "library_name" in card
    assert type(engine.roles.backbone.pipeline).__name__ in card
    # The file for ComfyUI has the same weights in kohya's layout, with an alpha for each module.
    lora = fetch_model(replace(engine.entry, lora=str(tmp_path / "lora" / COMFY_FILE)), training=True).lora
    assert lora.shape.alpha == engine.roles.shape.alpha
    for name, weight in engine.roles.weights(GENERATOR_EMA).items():
        assert torch.equal(lora.weights[name], weight)
    if engine.entry.family == "zimage":  # diffusers reads kohya's keys for Z-Image, but not for SD3
        monkeypatch.setattr(export, "WEIGHT_FILE", COMFY_FILE)
        backbone, folder = engine.roles.backbone, tmp_path / "lora"
        difference, images = export._compare(engine, backbone, engine.model_files, folder, exported.call)
        assert (difference <= 1, images) == (True, 4)


def test_an_export_that_gives_other_images_is_refused(finished, tmp_path, monkeypatch):
    def without_effect(roles, role, folder, metadata):
        path = write(roles, role, folder, metadata)
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        save_file({name: torch.zeros_like(weight) for name, weight in load_file(path).items()}, path, metadata=header)
        return path

    write = export.write_lora
    engine = load_trained(finished[0])
    weights = {n: w + 0.1 * (".lora_B." in n) for n, w in engine.roles.weights(GENERATOR_EMA).items()}
    engine.roles.load(GENERATOR_EMA, weights, "trained weights")
    monkeypatch.setattr(export, "write_lora", without_effect)
    with raises("export-mismatch"):
        export_lora(engine, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_a_training_starts_from_a_distilled_lora(folders, tmp_path):
    config = settings(folders, "zimage", kind="distill", iterations=1, generator={"guidance_scale": 2.0})
    Run.create(config, tmp_path / "distilled").execute(Silent())
    lora = export_lora(load_trained(tmp_path / "distilled"), tmp_path / "lora").file
    engine = Engine.from_config(settings(folders, "zimage", model={"lora": str(lora)}))
    assert engine.model_files.lora.shape.rank == 4
    assert max(weight.abs().max().item() for name, weight in engine.start.items() if ".lora_B." in name) > 0


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A multi-step teacher of the same family with another denoiser."""
    return make_zimage(tmp_path_factory.mktemp("teacher") / "zimage", seed=1, shift=6.0)


def test_teacher_fake_and_surrogate_use_the_second_backbone(folders, second):
    engine = Engine.from_config(settings(folders, "zimage", model={"teacher": str(second)}))
    roles = engine.roles
    turbo, teacher = roles.backbone_of(GENERATOR), roles.backbone_of(TEACHER)
    assert turbo is not teacher
    assert roles.backbone_of(GENERATOR_EMA) is turbo
    assert {roles.backbone_of(role) for role in (FAKE, SURROGATE, REFERENCE)} == {teacher}
    assert teacher.pipeline.text_encoder is turbo.pipeline.text_encoder
    pipeline = diffusers.ZImagePipeline.from_pretrained(second)
    latents, sigma = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.75])
    conditioning = engine.conditioning(engine.prompts[:1])
    with torch.no_grad(), roles.acting(GENERATOR) as generator, roles.acting(TEACHER) as scores:
        of_generator, of_teacher = (b.velocity(latents, sigma, conditioning) for b in (generator, scores))
        text = conditioning.embeddings[0]
        expected = -pipeline.transformer([latents[0][:, None]], 1 - sigma, [text], return_dict=False)[0][0].squeeze(1)
    torch.testing.assert_close(of_teacher[0], expected)
    assert (of_teacher - of_generator).abs().max() > 0.01
    before = {role: roles.weights(role) for role in roles.trained}
    engine.iteration()
    for role, weights in before.items():
        assert any(not torch.equal(weight, roles.weights(role)[name]) for name, weight in weights.items()), role


def test_teachers_that_do_not_fit_the_base_are_refused(folders, second, tmp_path):
    with raises("model-invalid", pipeline="StableDiffusion3Pipeline", expected="ZImagePipeline"):
        Engine.from_config(settings(folders, "zimage", model={"teacher": str(folders["sd3"])}))
    other = shutil.copytree(second, tmp_path / "other")
    config = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(config | {"shift_factor": 0.5}))
    with raises("teacher-mismatch", teacher=str(other), part="vae", settings=["shift_factor"]):
        Engine.from_config(settings(folders, "zimage", model={"teacher": str(other)}))


def count_passes(roles):
    """Count the forward passes of the first layer by role, from now on. Returns the counter."""
    passes = Counter()
    for home in roles.backbones:
        home.network.layers[0].register_forward_pre_hook(lambda *_, home=home: passes.update([roles._acting[home]]))
    return passes


@pytest.mark.parametrize("two", [False, True], ids=["one-backbone", "two-backbones"])
def test_memory_settings_do_not_change_the_weights(folders, second, tmp_path, two):
    model = {"teacher": str(second)} if two else {}
    saving = {"gradient_checkpointing": True, "text_encoders": "cpu", "prompt_cache": str(tmp_path / "cache")}
    results = []
    for memory in ({}, saving, saving):
        engine = Engine.from_config(settings(folders, "zimage", model=model, memory=memory))
        passes = count_passes(engine.roles)
        engine.iteration()
        results.append(({role: engine.roles.weights(role) for role in engine.roles.trained}, passes))
    (plain, before), (_, after), _ = results
    assert all(after[role] > before[role] for role in (GENERATOR, FAKE, SURROGATE)), "recomputed under its own role"
    assert after[TEACHER] == before[TEACHER]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    for other, _ in results[1:]:
        for role, weights in plain.items():
            assert all(torch.equal(weight, other[role][name]) for name, weight in weights.items()), role


@pytest.mark.parametrize("family", MAKERS)
def test_a_plan_counts_the_parameters_of_the_loaded_model(folders, second, family):
    config = settings(folders, family, memory={"text_encoders": "device"})
    engine = Engine.from_config(config)
    pipeline, roles = engine.roles.backbone.pipeline, engine.roles

    def parameters(*networks):
        named = [pair for network in networks for pair in (*network.named_parameters(), *network.named_buffers())]
        return sum(value.numel() for name, value in named if "lora_" not in name)

    planned = plan(config, engine.entry)
    assert planned.parts["denoiser"] == 4 * parameters(pipeline.transformer)
    assert planned.parts["autoencoder"] == 4 * parameters(pipeline.vae)
    assert planned.parts["text encoders"] == 4 * parameters(*engine.roles.backbone.text_encoders())
    of_a_role = sum(weight.numel() for weight in roles.parameters(GENERATOR).values())
    assert planned.parts["LoRAs"] == 4 * of_a_role * len(roles.names)
    if family == "zimage":
        beside = plan(config, engine.entry.with_teacher(str(second)))
        assert beside.parts["denoiser"] == 2 * planned.parts["denoiser"]


def test_a_run_with_another_sampler_exports_too(folders, tmp_path):
    config = settings(folders, "sd3", iterations=1, rollout={"sampler": "dpm-solver++"})
    Run.create(config, tmp_path / "run").execute(Silent())
    exported = export_lora(load_trained(tmp_path / "run"), tmp_path / "lora")
    assert exported.largest_difference <= 1
    assert "The run sampled with dpm-solver++" in (tmp_path / "lora" / "README.md").read_text()


def test_a_size_that_the_model_does_not_support_is_refused(folders):
    with raises("setting-invalid", height=72, multiple=16):
        Engine.from_config(settings(folders, "zimage", model={"height": 72}))


@pytest.mark.parametrize("family", MAKERS)
def test_an_image_that_is_larger_than_the_positions_of_the_network_is_refused(folders, family):
    config = settings(folders, family, model={"width": 16384})
    with raises("setting-invalid") as caught:
        Engine.from_config(config)
    largest = caught.value.values["largest"]
    assert 64 <= largest < 16384
    with raises("setting-invalid", width=16384, largest=largest):
        plan(config, discover().entry(config.model))


@pytest.mark.parametrize("family", MAKERS)
def test_bf16_runs_and_exports(folders, tmp_path, family):
    config = settings(folders, family, model={"precision": "bf16"}, iterations=1)
    Run.create(config, tmp_path / "run").execute(Silent())
    exported = export_lora(load_trained(tmp_path / "run"), tmp_path / "lora")
    assert exported.largest_difference <= 1
    assert Path(exported.file).is_file()


def test_the_published_models_are_registered():
    names = [entry.name for entry in discover().models.entries()]
    assert {"sd3-tdm", "sd3.5-tdm", "sd3.5-large-tdm", "tiny-tdm", "z-image-turbo"} <= set(names)
