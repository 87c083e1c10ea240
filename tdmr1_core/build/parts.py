"""From a resolved run to the parts of an engine. Only this file passes settings to the stages."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.flow import Levels
from tdmr1_core.algorithm.objectives import GeneratorWeights, Stabilisers
from tdmr1_core.build.rewards import build_runner
from tdmr1_core.config import FakeConfig, GeneratorConfig, MemoryConfig, RolloutConfig, RunConfig, SurrogateConfig
from tdmr1_core.distributed import ALONE, Processes
from tdmr1_core.models.attention import attention_kernel, check_attention
from tdmr1_core.models.backbone import PRECISIONS, Backbone
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.loading import ModelFiles, fetch_model, load_backbones, load_encoders
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.memory import check_compiler, compile_blocks, enable_gradient_checkpointing, save_vae_memory
from tdmr1_core.models.noise_levels import NoiseSchedule
from tdmr1_core.models.offloaded_encoders import OffloadedEncoders
from tdmr1_core.models.quantization import bitsandbytes, quantize
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.models.roles import (
    FAKE,
    GENERATOR,
    GENERATOR_EMA,
    REFERENCE,
    SURROGATE,
    SURROGATE_EMA,
    LoraWeights,
    Roles,
)
from tdmr1_core.plugins import Hooks
from tdmr1_core.preflight.resolved import ResolvedEngine
from tdmr1_core.records import Prompt
from tdmr1_core.stages.fake_score import FakeScoreStage
from tdmr1_core.stages.generator import GeneratorStage
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.prompt_encoder import PromptEncoder
from tdmr1_core.stages.rollout import RolloutStage
from tdmr1_core.stages.scoring import ScoringStage
from tdmr1_core.stages.surrogate import SurrogateStage
from tdmr1_core.stages.teaching_prompts import TeachingPrompts
from tdmr1_core.stages.trained_role import TrainedRole

if TYPE_CHECKING:
    from tdmr1_core.models.sharding import Sharding


@dataclass(frozen=True)
class Parts:
    """The parts of an engine: the model with its roles, prompts, rewards (none in a distillation) and plugin hooks."""

    entry: ModelEntry
    roles: Roles
    prompts: list[Prompt]
    scoring: ScoringStage | None
    hooks: Hooks
    model_files: ModelFiles | None = None
    sharding: Sharding | None = None
    """None if every process holds all weights."""


@dataclass(frozen=True)
class Stages:
    """The stages of an engine, the encoder of their prompts, and the roles that they train."""

    trained: dict[str, TrainedRole]
    start: LoraWeights
    """The weights that the generator starts from."""
    encoder: PromptEncoder
    teaching: TeachingPrompts | None
    """None if prompts are drawn uniformly."""
    rollout: RolloutStage
    fake: FakeScoreStage
    surrogate: SurrogateStage | None
    """None in a distillation."""
    generator: GeneratorStage


def load_parts(
    resolved: ResolvedEngine, run_folder: Path | None, device: torch.device, processes: Processes = ALONE
) -> Parts:
    """Load the parts onto a device. Rewards are built before any weight is loaded.

    Raises Tdmr1Error for rewards, model files and devices that cannot be used.
    """
    config, entry = resolved.config, resolved.entry
    training = config.kind == "train"
    if {config.memory.weights, config.memory.optimizer} != {"none"}:
        bitsandbytes()
    if config.memory.attention != "auto":
        precision, family = PRECISIONS[config.model.precision], FAMILIES[entry.family]
        check_attention(config.memory.attention, device, precision, family)
    scoring = None
    with ExitStack() as failing:
        if training:
            combine, workers = config.scoring.combine, config.scoring.workers
            runner = build_runner(resolved.rewards, failing, device=str(device), combine=combine, workers=workers)
            scoring = ScoringStage(runner, run_folder=run_folder, seed=config.seed)
        model_files = fetch_model(entry, config.model, training=training)
        shards = config.memory.shard and processes.count > 1
        roles = load_roles(config, model_files, device, on_cpu=shards)
        sharding = _shard(config, entry, roles, processes) if shards else None
        failing.pop_all()
    hooks = Hooks(resolved.extensions.plugins.manager)
    return Parts(entry, roles, list(resolved.prompts.prompts), scoring, hooks, model_files, sharding)


def _shard(config: RunConfig, entry: ModelEntry, roles: Roles, processes: Processes) -> Sharding:
    """Divide the frozen weights of the backbones among the processes."""
    from tdmr1_core.models.sharding import Sharding

    height, width = config.model.height or entry.height, config.model.width or entry.width
    return Sharding(roles, processes, roles.backbone.latent_shape(height, width))


def load_roles(config: RunConfig, model_files: ModelFiles, device: torch.device, *, on_cpu: bool = False) -> Roles:
    """The backbones with all adapters in their initial state. With `on_cpu`, all but the autoencoder are on the CPU."""
    few_step, surrogate = model_files.lora, config.kind == "train"
    settings = config.memory
    backbone, teacher = load_backbones(
        model_files,
        device,
        PRECISIONS[config.model.precision],
        encoders_on_cpu=on_cpu or offloads_encoders(config, device),
        denoiser_on_cpu=on_cpu or settings.weights != "none",
    )
    if settings.weights != "none":
        for each in filter(None, (backbone, teacher)):
            quantize(each, settings.weights)
    roles = build_roles(config, backbone, model_files.shape, teacher)
    if few_step is not None:
        roles.load(GENERATOR, few_step.weights, str(few_step.path))
        if config.fake.start == "generator":
            roles.copy(GENERATOR, FAKE)
    roles.copy(GENERATOR, GENERATOR_EMA)
    if surrogate:
        roles.copy(SURROGATE, SURROGATE_EMA)
    apply_memory_settings(config.memory, roles)
    return roles


def build_roles(config: RunConfig, backbone: Backbone, shape: LoraShape, teacher: Backbone | None = None) -> Roles:
    """New adapters for all roles that the run trains or averages."""
    surrogate = config.kind == "train"
    return Roles(
        backbone,
        shape,
        trained=(GENERATOR, FAKE, SURROGATE) if surrogate else (GENERATOR, FAKE),
        averaged=(GENERATOR_EMA, SURROGATE_EMA) if surrogate else (GENERATOR_EMA,),
        seed=seeds.stream(config.seed, "lora").initial_seed(),
        teacher=teacher,
        init=config.model.lora_init,
        merged=merges_loras(config),
    )


def merges_loras(config: RunConfig) -> bool:
    """Whether layers compute with the sum of weight and LoRA. In bf16 a sum loses small LoRAs."""
    if config.memory.lora == "auto":
        return config.model.precision != "bf16" and config.memory.weights == "none"
    return config.memory.lora == "merged"


def apply_memory_settings(settings: MemoryConfig, roles: Roles) -> None:
    """Apply the settings of `memory` that change how the networks run."""
    if settings.attention != "auto":
        for backbone in roles.backbones:
            backbone.attention = partial(attention_kernel, settings.attention)
    if settings.recomputes:
        enable_gradient_checkpointing(roles)
    if settings.decoder == "sliced" or settings.decoder == "tiled":
        save_vae_memory(roles.backbone, settings.decoder)
    if settings.compile:
        check_compiler(roles.backbone.device)
        compile_blocks(roles)


def build_stages(config: RunConfig, parts: Parts, steps: int, schedule: NoiseSchedule, size: tuple[int, int]) -> Stages:
    """The stages of an engine that samples images of `size` (height, width) in `steps` steps."""
    roles, batch = parts.roles, config.batch
    trained, start = build_trained(config, roles), roles.weights(GENERATOR)
    latent_shape = roles.backbone.latent_shape(*size)
    sigmas = fixed_levels(config.rollout, roles.backbone, steps, schedule)
    roles.backbone.check_levels(sigmas)
    return Stages(
        trained=trained,
        start=start,
        encoder=_build_encoder(config, parts),
        teaching=TeachingPrompts(parts.prompts, batch.teaching_floor) if batch.prompts == "teaching" else None,
        rollout=RolloutStage(
            roles,
            sigmas,
            latent_shape,
            sampler=config.rollout.sampler,
            eta=config.rollout.eta,
            micro_batches=MicroBatches(config.batch.micro_batch, halves=parts.sharding is None),
            seed=config.seed,
            decode=config.kind == "train",
            keep_on=torch.device("cpu") if config.memory.trajectories == "cpu" else roles.backbone.device,
        ),
        fake=FakeScoreStage(
            roles,
            trained[FAKE],
            teacher_weight=config.fake.teacher_weight,
            micro_batches=MicroBatches(config.batch.micro_batch, halves=parts.sharding is None),
            seed=config.seed,
        ),
        surrogate=_build_surrogate(config, parts, trained[SURROGATE]) if SURROGATE in trained else None,
        generator=build_generator(config, roles, trained[GENERATOR], halves=parts.sharding is None),
    )


def fixed_levels(rollout: RolloutConfig, backbone: Backbone, steps: int, schedule: NoiseSchedule) -> Tensor:
    """The noise levels that a run samples and trains at, float64 (K+1,): those of its settings, or of the schedule."""
    if rollout.sigmas is not None:
        return torch.tensor(rollout.sigmas, dtype=torch.float64)
    return backbone.schedule(steps, schedule, kind_of_levels(rollout))


def kind_of_levels(rollout: RolloutConfig) -> Levels:
    """The kind of the noise levels of a run without stored levels (`sigma_schedule`)."""
    return rollout.dpm_levels if rollout.sampler == "dpm-solver++" else "euler"


def build_trained(config: RunConfig, roles: Roles) -> dict[str, TrainedRole]:
    """Each trained role with its AdamW."""
    own: dict[str, FakeConfig | GeneratorConfig | SurrogateConfig] = {
        GENERATOR: config.generator,
        FAKE: config.fake,
        SURROGATE: config.surrogate,
    }
    common = config.optimizer
    adamw = bitsandbytes().optim.AdamW8bit if config.memory.optimizer == "8bit" else torch.optim.AdamW
    return {
        name: TrainedRole(
            name,
            parameters := roles.parameters(name),
            adamw(
                list(parameters.values()),
                lr=own[name].learning_rate,
                betas=(own[name].beta1, common.beta2),
                eps=common.epsilon,
                weight_decay=common.weight_decay,
            ),
            learning_rate=own[name].learning_rate,
            max_grad_norm=common.max_grad_norm,
            backward_pass=partial(roles.backward_pass, name),
        )
        for name in roles.trained
    }


def offloads_encoders(config: RunConfig, device: torch.device) -> bool:
    """Whether the text encoders are on the device only while they encode."""
    return config.memory.text_encoders != "device" and device.type != "cpu"


def _build_encoder(config: RunConfig, parts: Parts) -> PromptEncoder:
    """The prompt encoder, with its cache."""
    entry, memory, backbone = parts.entry, config.memory, parts.roles.backbone
    sharding = parts.sharding
    offloads = offloads_encoders(config, backbone.device) and bool(backbone.text_encoders()) and sharding is None
    return PromptEncoder(
        backbone,
        make=f"{entry.family}, {entry.max_sequence_length} tokens",
        cache=memory.prompt_cache,
        budget=memory.prompt_cache_gb * 1e9,
        encoders=_offload(config, parts) if offloads else None,
        identity=None if sharding is None else sharding.encoder_identity,
    )


def _offload(config: RunConfig, parts: Parts) -> OffloadedEncoders:
    """The text encoders, which can be released if they can be loaded again."""
    files, precision = parts.model_files, PRECISIONS[config.model.precision]
    load = None if files is None else partial(load_encoders, files, precision)
    return OffloadedEncoders(parts.roles.backbones, load)


def _build_surrogate(config: RunConfig, parts: Parts, role: TrainedRole) -> SurrogateStage:
    """The stage that updates the surrogate."""
    settings = config.surrogate
    return SurrogateStage(
        parts.roles,
        role,
        reference_role=_reference_role(config),
        beta_dpo=settings.beta_dpo,
        stabilisers=Stabilisers(settings.trust_region, settings.drift_threshold, settings.reference_penalty),
        time_weight=settings.time_weight,
        only_with_signal=settings.only_with_signal,
        micro_batches=MicroBatches(config.batch.micro_batch, halves=parts.sharding is None),
        seed=config.seed,
    )


def build_generator(config: RunConfig, roles: Roles, role: TrainedRole, *, halves: bool = True) -> GeneratorStage:
    """The stage that updates the generator."""
    settings = config.generator
    return GeneratorStage(
        roles,
        role,
        reference_role=_reference_role(config),
        weights=GeneratorWeights(settings.tdm_weight, settings.reward_scale, settings.trunc_steps),
        loss=settings.loss,
        huber_c=settings.huber_c,
        joint_huber=settings.joint_huber,
        guidance_scale=settings.guidance_scale,
        rl_cfg=settings.rl_cfg,
        normaliser_floor=settings.normaliser_floor,
        has_reward_term=config.kind == "train",
        micro_batches=MicroBatches(config.batch.micro_batch, halves=halves),
        seed=config.seed,
    )


def _reference_role(config: RunConfig) -> str:
    """The role of p_ref."""
    return SURROGATE_EMA if config.surrogate.reference == "ema" else REFERENCE
