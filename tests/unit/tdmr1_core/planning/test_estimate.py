"""Plans: the numbers for the embedded model, and how settings change them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.errors import raises
from support.runs import small_config
from torch.nn import functional

from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.lora.files import read_lora
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.registry import SAME
from tdmr1_core.planning.counting import count_parameters
from tdmr1_core.planning.dry_update import FusedKernels, LiveBytes, dry_update
from tdmr1_core.planning.estimate import fitting_micro_batch, plan, read_architecture
from tdmr1_core.planning.passes import passes_an_image
from tdmr1_core.planning.prompt_encoding import count_prompts, describe_encoding
from tdmr1_core.planning.published_configs import PUBLISHED
from tdmr1_core.preflight.resolved import resolve_run
from tdmr1_core.records import Groups, Trajectory
from tdmr1_core.stages.prompt_encoder import size_of

pytestmark = pytest.mark.unit

TINY = BUILTIN_MODELS[0]


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """The embedded model without weights and with two blocks, which are planned faster."""
    folder = tmp_path_factory.mktemp("models") / "two-blocks"
    shutil.copytree(TINY.base, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 2}))
    return replace(TINY, base=str(folder), lora=None)


@pytest.fixture(scope="module")
def whole(entry):
    return plan(small_config("model.device=cpu", "batch.micro_batch=null"), entry)


def test_parameters_equal_those_of_the_weights():
    from diffusers import SD3Transformer2DModel

    whole = plan(small_config("model.device=cpu", "batch.micro_batch=null"), TINY)
    network = SD3Transformer2DModel.from_pretrained(TINY.base, subfolder="transformer")
    assert whole.parts["denoiser"] == 4 * sum(weight.numel() for weight in network.state_dict().values())


def test_text_encoders_are_counted_from_their_configs(whole, tmp_path):
    from safetensors.torch import load_file

    folders = [Path(TINY.base) / name for name in ("text_encoder", "text_encoder_2")]
    held = sum(weight.numel() for folder in folders for weight in load_file(folder / "model.safetensors").values())
    assert whole.parts["text encoders"] == pytest.approx(4 * held, rel=0.02)  # buffers of position ids are counted too
    configs = shutil.ignore_patterns("*.safetensors", "tokenizer*")
    shutil.copytree(TINY.base, tmp_path / "bare", ignore=configs)
    bare = replace(TINY, base=str(tmp_path / "bare"))
    assert read_architecture(bare) == read_architecture(TINY)
    (tmp_path / "bare" / "text_encoder" / "config.json").unlink()
    with raises("model-incomplete", missing="text_encoder/config.json"):
        read_architecture(bare)


@pytest.mark.parametrize(
    "published", [entry for entry in BUILTIN_MODELS if entry.base in PUBLISHED], ids=lambda e: e.name
)
def test_a_published_model_is_planned_without_any_file(published):
    known = read_architecture(published, use_known=False)
    teacher = [] if published.teacher == SAME else [PUBLISHED[published.teacher]["transformer/config.json"]]
    denoisers = [known.denoiser, *teacher]
    numbers = known.encoders + sum(count_parameters(each["_class_name"], each) for each in denoisers)
    autoencoder = count_parameters(known.family.autoencoder, known.autoencoder)
    assert 2 * (numbers + 2 * autoencoder) == pytest.approx(published.weights_gb * 1e9, rel=0.01)


def test_memory_follows_the_settings(whole, entry):
    halved = plan(small_config("model.device=cpu", "batch.micro_batch=4", "memory.text_encoders=cpu"), entry)
    assert halved.parts["activations"] == whole.parts["activations"] / 2
    assert halved.parts["text encoders"] == 0 < whole.parts["text encoders"]
    assert halved.micro_batches == 2
    recomputing = small_config("model.device=cpu", "batch.micro_batch=null", "memory.gradient_checkpointing=true")
    recomputed = plan(recomputing, entry, processes=2)
    assert recomputed.parts["activations"] < 0.9 * whole.parts["activations"] / 2
    assert recomputed.passes > whole.passes
    assert (recomputed.images, recomputed.micro_batch) == (8, 4)
    with raises("processes-count"):
        plan(small_config(), entry, processes=3)


@pytest.mark.parametrize(
    ("setting", "device", "always"),
    [
        ("auto", "cuda", False),
        ("auto", "auto", False),
        ("auto", "cpu", True),
        ("device", "cuda", True),
        ("device", "cpu", True),
        ("cpu", "cuda", False),
    ],
)
def test_text_encoders_count_always_or_in_turn_with_the_denoisers(monkeypatch, entry, setting, device, always):
    large = replace(read_architecture(entry), encoders=10_000_000)
    monkeypatch.setattr("tdmr1_core.planning.estimate.read_architecture", lambda entry: large)
    planned = plan(small_config(f"model.device={device}", f"memory.text_encoders={setting}"), entry)
    found = planned.parts["text encoders"], planned.parts["text encoders in turn"]
    assert found == ((4e7, 0) if always else (0, 4e7 - planned.parts["denoiser"]))


def described(*settings):
    """What a plan prints of the text encoders, and the number of prompts that it counts."""
    resolved = resolve_run(small_config(*settings))
    return describe_encoding(plan(resolved.config, resolved.entry), resolved), count_prompts(resolved)


def test_a_plan_states_where_the_text_encoders_are():
    assert described("model.device=cpu")[0] == "they stay on the device"
    assert described("memory.text_encoders=cpu")[0].startswith("they stay on the CPU; for new prompts")
    assert described("memory.prompt_cache_gb=0")[0].startswith("they stay on the CPU; for new prompts")
    all_fit, prompts = described()
    assert all_fit.startswith(f"all {prompts} prompts of the run (")
    assert all_fit.endswith("then the encoders are released")
    too_many, _ = described("memory.prompt_cache_gb=1e-5")
    assert "exceed memory.prompt_cache_gb=1e-05; 3 at a time are encoded ahead" in too_many


def test_the_prompts_of_a_plan_are_those_that_a_run_encodes():
    """One per group of all iterations, at most, and those of evaluations. The bytes are those of the longest prompt."""
    counted = [described("evaluation.images=4", f"iterations={number}", "batch.groups=2")[1] for number in (1, 2, 500)]
    resolved = resolve_run(small_config("evaluation.images=4"))
    evaluated = {prompt.text for prompt in resolved.evaluated_prompts}
    every = evaluated | {prompt.text for prompt in resolved.prompts.prompts}
    assert counted == [len(evaluated) + 2, len(evaluated) + 4, len(every)]
    teaching = ("batch.prompts=teaching", "iterations=1")
    assert described("evaluation.images=4", *teaching)[1] == len(every), "each may come"
    engine = Engine.from_resolved(resolved)
    assert size_of(engine.conditioning(engine.prompts[:1])) == plan(resolved.config, TINY).prompt_bytes


def test_a_quantized_denoiser_stays_on_the_device_while_prompts_are_encoded(monkeypatch, entry):
    large = replace(read_architecture(entry), encoders=10_000_000)
    monkeypatch.setattr("tdmr1_core.planning.estimate.read_architecture", lambda entry: large)
    offloaded = ["model.device=cpu", "memory.text_encoders=cpu"]
    full, quantized = (plan(small_config(*offloaded, f"memory.weights={how}"), entry) for how in ("none", "8bit"))
    assert full.parts["text encoders in turn"] == 4e7 - full.parts["denoiser"]
    assert quantized.parts["text encoders in turn"] == 4e7


@pytest.mark.parametrize(
    ("precision", "memory"),
    [
        pytest.param("fp32", [], id="fp32-kept"),
        pytest.param("fp32", ["memory.gradient_checkpointing=true"], id="fp32-recomputed", marks=pytest.mark.long),
        pytest.param("bf16", [], id="bf16-kept", marks=pytest.mark.long),
        pytest.param("bf16", ["memory.gradient_checkpointing=true"], id="bf16-recomputed"),
    ],
)
def test_a_dry_update_predicts_the_peak_of_a_real_update(precision, memory):
    """The live bytes of the same update with real tensors on the CPU."""
    config = small_config(f"model.precision={precision}", "surrogate.trust_region=0.001", *memory)
    engine = Engine.from_config(config)
    roles, images, size = engine.roles, 3, engine.roles.backbone.latent_shape(*engine.size)
    engine.close()
    conditioning = engine.conditioning(engine.prompts[:1])
    groups = Groups(0, tuple(engine.prompts[:1]), images)
    sigmas = torch.tensor([1.0, 0.5], dtype=torch.float64)
    trajectory = Trajectory(groups, torch.randn(2, images, *size), sigmas, conditioning, None, True, 0)
    rows, level, noise = torch.arange(images), torch.full((images,), 0.7), torch.randn(images, *size)
    with LiveBytes(roles.backbone.network) as held:
        terms = engine._generator.losses(trajectory, rows, torch.zeros_like(rows), level, level, noise, noise)
        engine._generator.role.accumulate(terms.total.sum())
    known = read_architecture(TINY)
    predicted = dry_update(
        config, FAMILIES["sd3"], known.denoiser, size, known.tokens, roles.shape, images=images, gpu=False
    )
    print(f"{precision} {memory}: {predicted.bytes / held.peak - 1:+.2%} of {held.peak / 1e6:.1f} MB")
    assert predicted.bytes == pytest.approx(held.peak, rel=0.03)


@pytest.mark.parametrize(("gpu", "single"), [(True, torch.float32), (False, torch.bfloat16)])
def test_layer_norms_run_in_float32_under_autocast_on_gpus(gpu, single):
    narrow = torch.ones(2, 4, dtype=torch.bfloat16)
    with FusedKernels(gpu=gpu).patched():
        assert functional.layer_norm(narrow, (4,)).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.layer_norm(narrow, (4,)).dtype == single


def test_float32_layer_norms_need_more_memory_on_a_gpu(entry):
    known = read_architecture(entry)
    shape = LoraShape(TINY.rank, TINY.alpha, TINY.targets)
    held = [
        dry_update(
            small_config("model.precision=bf16"),
            FAMILIES["sd3"],
            known.denoiser,
            known.latent_shape(TINY.height, TINY.width),
            known.tokens,
            shape,
            gpu=gpu,
        ).bytes
        for gpu in (False, True)
    ]
    assert held[0] < held[1] < 2 * held[0]


def test_the_largest_micro_batch_that_fits(whole):
    config = small_config("model.device=cpu")
    assert fitting_micro_batch(whole, config, whole.peak) == 8
    assert fitting_micro_batch(whole, config, whole.peak - 1) == 7
    assert fitting_micro_batch(whole, config, 1e9) == 0


def test_an_auto_micro_batch_is_planned_as_all_images(whole, entry):
    free = plan(small_config("model.device=cpu"), entry)
    assert free.halves
    assert (free.micro_batch, free.peak) == (8, whole.peak)


PUBLISHED_PASSES = 4 + 2 * (3 + 4 + 8)
"""4 sampling; of 2 steps each: fake 1 + 2, surrogate 2 + 2, generator 2 + 2 teacher + fake + reference + 2."""


@pytest.mark.parametrize(
    ("sets", "micro_batch", "further"),
    [
        ([], 4, 0),
        ([], 3, 2 * 2),  # surrogate and reference once more, for the group weights
        (["rollout.sampler=dpm-solver++"], 4, 2),  # the generator, for the fake score at both steps
        (["rollout.eta=0.5"], 4, 2),
        (["generator.trunc_steps=1"], 4, -2 * 3 * 3 / 4),  # reference and surrogate at one of four steps only
        (["timesteps.optimizer_step=each"], 4, 1),  # at the second step the generator has changed
        (["timesteps.optimizer_step=each", "fake.updates=2"], 4, 2 * 3 + 2),
    ],
)
def test_passes_of_the_published_settings(sets, micro_batch, further):
    once = ["timesteps.optimizer_step=iteration", "fake.updates=1", "surrogate.updates=1"]
    published = small_config(*once, "surrogate.trust_region=0.001", *sets)
    assert passes_an_image(published, TINY, micro_batch) == PUBLISHED_PASSES + further


def test_the_rank_is_that_of_a_local_lora(whole, entry, tmp_path):
    assert whole.rank == 32
    given, network = tmp_path / "lora.safetensors", MetaNetwork(FAMILIES["sd3"], read_architecture(entry).denoiser)
    weights = {name: torch.zeros(shape) for name, shape in network.lora(LoraShape(5, 5.0, TINY.targets)).items()}
    save_file(weights, given, metadata={"ss_network_alpha": "5"})
    narrow = plan(small_config("model.device=cpu", "model.rank=7"), replace(entry, lora=str(given)))
    assert narrow.rank == 5
    assert narrow.parts["LoRAs"] == whole.parts["LoRAs"] * 5 / 32
    on_hub = plan(small_config("model.device=cpu", "model.rank=7"), replace(entry, lora="owner/name"))
    assert on_hub.rank == 7


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": torch.zeros(3)},
        {f"transformer_blocks.0.attn.to_q.lora_{part}.weight": torch.tensor(1.0) for part in "AB"},
        None,
    ],
    ids=["empty", "unknown-key", "wrong-shape", "missing-file"],
)
def test_a_lora_that_a_training_would_reject_is_rejected(tmp_path, tensors):
    path = tmp_path / "lora.safetensors"
    if tensors is not None:
        save_file(tensors, path)
    network = MetaNetwork(FAMILIES["sd3"], read_architecture(TINY).denoiser)
    with pytest.raises(Tdmr1Error) as training:
        read_lora(path, network, LoraShape(TINY.rank, TINY.alpha, TINY.targets), alpha=None)
    with pytest.raises(Tdmr1Error) as planning:
        plan(small_config("model.device=cpu"), replace(TINY, lora=str(path)))
    assert planning.value.document() == training.value.document()


def test_a_size_that_does_not_fit_is_rejected():
    known = read_architecture(next(entry for entry in BUILTIN_MODELS if entry.name == "sd3.5-tdm"))
    assert known.latent_shape(512, 1024) == (16, 64, 128)
    with raises("setting-invalid", width=516, height=512, multiple=16):
        known.latent_shape(512, 516)
    assert known.latent_shape(6144, 512) == (16, 768, 64)
    with raises("setting-invalid", width=512, height=6160, largest=6144):
        known.latent_shape(6160, 512)


def test_a_sharded_run_divides_weights_and_gathers_blocks(entry, whole):
    sharded = plan(small_config("model.device=cpu", "batch.micro_batch=null", "memory.shard=true"), entry, 2)
    unsharded = plan(small_config("model.device=cpu", "batch.micro_batch=null"), entry, 2)
    for part in ("denoiser", "text encoders"):
        assert sharded.parts[part] == unsharded.parts[part] / 2
    architecture = read_architecture(entry)
    assert sharded.parts["gathered blocks"] == 4 * architecture.gathered
    assert sharded.parts["text encoders in turn"] == 4 * architecture.gathered_encoders
    assert "gathered blocks" not in unsharded.parts
    alone = plan(small_config("model.device=cpu", "batch.micro_batch=null", "memory.shard=true"), entry)
    assert alone.parts == whole.parts


def test_what_is_gathered_is_the_rest_of_a_network_and_three_blocks():
    from diffusers import SD3Transformer2DModel

    config = json.loads((Path(TINY.base) / "transformer" / "config.json").read_text())
    network = SD3Transformer2DModel.from_config(config)
    blocks = [sum(weight.numel() for weight in block.parameters()) for block in network.transformer_blocks]
    rest = sum(weight.numel() for weight in (*network.parameters(), *network.buffers())) - sum(blocks)
    assert read_architecture(TINY).gathered == rest + max(rest, 3 * max(blocks))
