"""Estimates what a run needs: batch sizes, memory by part, and FLOPs per image.

A dry update of one image gives FLOPs and activation memory; everything else is computed from the configs and settings.
`benchmarks/full_size.py` measures the same on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tdmr1_core.config import RunConfig
from tdmr1_core.distributed import check_split, named_device
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES, Family
from tdmr1_core.models.latent_shape import LatentGrid, has_levels, latent_grid, pixels_per_latent
from tdmr1_core.models.loading import check_entry
from tdmr1_core.models.lora.files import read_lora
from tdmr1_core.models.meta_network import LoraShape, MetaNetwork, build_network
from tdmr1_core.models.pipeline_files import COPY_AGAIN, is_on_hub
from tdmr1_core.models.registry import SAME, ModelEntry
from tdmr1_core.planning.dry_update import Update, dry_update
from tdmr1_core.planning.published_configs import PUBLISHED, config_of

BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
LINEAR_BYTES = {"8bit": 1.0, "nf4": 0.57}
"""Bytes per quantized weight, including its scales."""
DECODER_COPIES = 3
"""The number of tensors of the decoder's widest layer, at image resolution, that exist at the same time."""
CLIP_TOKENS = 77
"""The number of CLIP tokens in SD3, which precede those of T5, if the config does not contain it."""
RESERVE = 1.0e9
"""Bytes for CUDA, its libraries and allocator fragmentation."""
IN_TURN = ("activations", "decoding", "text encoders in turn")
"""Parts that exist at different times."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model, from its configs."""

    family: Family
    denoiser: Mapping[str, Any]
    """The config of the denoiser."""
    autoencoder: Mapping[str, Any]
    """The config of the autoencoder."""
    encoders: int
    """Parameters of all text encoders."""
    tokens: int
    """Tokens of the longest prompt."""

    @property
    def decoder_width(self) -> int:
        """Channels of the second level of the autoencoder, the widest at image resolution."""
        autoencoder = self.autoencoder
        if "block_out_channels" not in autoencoder:  # that of Qwen-Image
            return int(autoencoder["base_dim"] * autoencoder["dim_mult"][0])
        levels = autoencoder["block_out_channels"]
        return int(levels[min(1, len(levels) - 1)])

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, H, W) of the latents of an image in pixels. Raises Tdmr1Error for a size that does not fit."""
        return self.latent_grid.shape(height, width)

    @property
    def latent_grid(self) -> LatentGrid:
        """Channels, pixels and patches of the latents."""
        return latent_grid(self.family, self.denoiser, pixels_per_latent(self.autoencoder))


@dataclass(frozen=True)
class Plan:
    """The estimated needs of one process of a run."""

    groups: int
    """Groups of an iteration, over all processes."""
    images: int
    """Images of an iteration, over all processes."""
    processes: int
    micro_batch: int
    halves: bool
    """True if the run starts with all images in one micro-batch and halves it until it fits."""
    rank: int
    """The rank of the LoRAs: that of the few-step LoRA if it is a local file."""
    parts: dict[str, float]
    """Bytes by part."""
    passes: float
    """Forward passes of the denoiser per image and iteration; a backward pass counts as one."""
    operations: float
    """FLOPs per image and iteration."""
    prompt_bytes: int
    """Bytes of the longest encoded prompt, in host memory."""

    @property
    def constant(self) -> float:
        """Bytes of the parts that always exist."""
        return sum(size for name, size in self.parts.items() if name not in IN_TURN)

    @property
    def peak(self) -> float:
        """Peak bytes. Updates, decoding and prompt encoding happen at different times."""
        return self.constant + max(self.parts[name] for name in IN_TURN)

    @property
    def per_image(self) -> float:
        """Bytes per image of a micro-batch, in an update."""
        return self.parts["activations"] / self.micro_batch

    def seconds(self, tflops: float) -> float:
        """Seconds per iteration on a device that sustains `tflops` TFLOP/s, without rewards."""
        return self.operations * self.images / self.processes / (tflops * 1e12)

    @property
    def micro_batches(self) -> int:
        """Micro-batches per stage and process."""
        return -(-self.images // self.processes // self.micro_batch)


def plan(config: RunConfig, entry: ModelEntry, processes: int = 1, room: float | None = None) -> Plan:
    """Estimate what an iteration needs in each of the processes.

    With `batch.micro_batch: auto` the micro-batch is all images of a process, halved until it fits into `room` bytes
    (None: not halved), as in a run. Only configs and a local few-step LoRA are read; the configs of published models
    are built in. Raises Tdmr1Error if files are not available, or if the model cannot be planned.
    """
    check_split(config.batch.groups, processes)
    if config.model.device != "auto":
        named_device(config.model.device)
    architecture = read_architecture(entry)
    height, width = config.model.height or entry.height, config.model.width or entry.width
    lora = _lora_shape(config, entry, architecture)
    latent_shape = architecture.latent_shape(height, width)
    gpu = config.model.device != "cpu"
    update = dry_update(
        config, FAMILIES[entry.family], architecture.denoiser, latent_shape, architecture.tokens, lora, gpu=gpu
    )
    groups, images = config.batch.groups, config.batch.groups * config.batch.group_size
    local = images // processes
    stored = local if config.memory.trajectories == "device" else 0
    latents = stored * ((config.rollout.step_count or entry.steps) + 1) * math.prod(latent_shape)
    constant = _constant_parts(config, entry, architecture, update, latents)
    decoding: float = 0
    if config.kind == "train":
        decoding = DECODER_COPIES * architecture.decoder_width * height * width * _latent_bytes(config)
    setting = config.batch.micro_batch

    def with_micro_batch(size: int) -> Plan:
        decoded = size if config.memory.decoder == "none" else 1
        parts = {**constant, "activations": size * update.bytes, "decoding": decoding * decoded}
        passes = passes_an_image(config, entry, size)
        operations = passes * update.operations
        halves, encoded = setting == "auto", update.prompt_bytes
        return Plan(groups, images, processes, size, halves, lora.rank, parts, passes, operations, encoded)

    if setting != "auto":
        return with_micro_batch(min(setting or local, local))
    most = local if room is None else max(1, fitting_micro_batch(with_micro_batch(1), config, room))
    size = local
    while size > most:
        size //= 2
    return with_micro_batch(size)


def encoder_placement(config: RunConfig) -> Literal["auto", "device", "cpu"]:
    """Where the text encoders are: `memory.text_encoders`, in which auto is the device if that is the CPU."""
    setting = config.memory.text_encoders
    return "device" if setting == "auto" and config.model.device == "cpu" else setting


def _latent_bytes(config: RunConfig) -> int:
    """Bytes per number of latents, LoRAs and the autoencoder: at least float32."""
    return max(4, BYTES[config.model.precision])


def _constant_parts(
    config: RunConfig, entry: ModelEntry, architecture: Architecture, update: Update, latents: int
) -> dict[str, float]:
    """Bytes of all parts but activations and decoding. `latents` is the number of stored latent values."""
    memory, frozen, single = config.memory, BYTES[config.model.precision], _latent_bytes(config)
    saved = frozen - LINEAR_BYTES.get(memory.weights, frozen)
    denoiser = (update.parameters * frozen - update.linear * saved) * (1 if entry.teacher == SAME else 2)
    moments = 8 if memory.optimizer == "none" else 2.03
    roles, averages = (3, 2) if config.kind == "train" else (2, 1)
    encoders, offloaded = architecture.encoders * frozen, encoder_placement(config) != "device"
    moved = denoiser if memory.weights == "none" else 0  # a quantized denoiser is not moved to the CPU
    return {
        "denoiser": denoiser,
        "autoencoder": count_parameters(architecture.family.autoencoder, architecture.autoencoder) * single,
        "text encoders": 0 if offloaded else encoders,
        "LoRAs": update.lora_parameters * single * (roles + averages),
        "gradients": update.lora_parameters * single * roles,
        "optimisers": update.lora_parameters * moments * single / 4 * roles,
        "trajectories": latents * single,
        "text encoders in turn": max(0, encoders - moved) if offloaded else 0,
        "reserve": RESERVE,
    }


def _lora_shape(config: RunConfig, entry: ModelEntry, architecture: Architecture) -> LoraShape:
    """The shape of every LoRA of the run: that of the few-step LoRA if it is a local file.

    Raises Tdmr1Error for a file that a training would reject.
    """
    model = config.model
    shape = LoraShape(model.rank or entry.rank, model.alpha or entry.alpha, entry.targets)
    if config.kind != "train" or entry.lora is None or is_on_hub(entry.lora):
        return shape
    network = MetaNetwork(FAMILIES[entry.family], architecture.denoiser)
    alpha, ignoring = model.alpha or entry.lora_alpha, model.ignore_text_encoder_lora
    return read_lora(Path(entry.lora), network, shape, alpha=alpha, ignore_text_encoder=ignoring).shape


def fitting_micro_batch(planned: Plan, config: RunConfig, room: float) -> int:
    """The largest micro-batch whose peak stays within `room` bytes; 0 if one image does not fit."""
    free = room - planned.constant
    per_image = planned.per_image
    if config.memory.decoder == "none":
        per_image = max(per_image, planned.parts["decoding"] / planned.micro_batch)
    elif planned.parts["decoding"] > free:
        return 0
    if planned.parts["text encoders in turn"] > free:
        return 0
    return max(0, min(planned.images // planned.processes, int(free / per_image)))


def passes_an_image(config: RunConfig, entry: ModelEntry, micro_batch: int) -> float:
    """Forward passes of the denoiser per image and iteration; a backward pass counts as one.

    A backward pass costs about as much as a forward pass, because frozen weights need no gradient. The generator is
    evaluated once more for the fake score where its velocity cannot be computed from the trajectory. The surrogate and
    its reference are evaluated once more for the group weights if a micro-batch is smaller than a group. For the
    generator they are evaluated at steps k < trunc_steps only.
    """
    trained = 2 + config.memory.gradient_checkpointing
    guided = 1 + (config.generator.guidance_scale != 1)
    fake = config.fake.updates * (1 + trained + stale_fraction(config))
    generator: float = trained + guided + 1
    surrogate, steps = 0.0, config.rollout.step_count or entry.steps
    if config.kind == "train" and config.generator.reward_scale > 0:
        old = config.surrogate.trust_region is not None and config.surrogate.reference != "ema"
        group_weights = 2 * (micro_batch < config.batch.group_size)
        surrogate = config.surrogate.updates * (trained + 1 + old + group_weights)
        rewarded = min(config.generator.trunc_steps, steps) / steps
        generator += rewarded * (1 + 1 + (config.generator.rl_cfg != 1))
    return steps + config.timesteps.per_iteration * (fake + surrogate + generator)


def stale_fraction(config: RunConfig) -> float:
    """The fraction of trained steps at which the trajectory does not contain the velocity of the current generator."""
    if config.rollout.sampler != "euler" or config.rollout.eta > 0:
        return 1.0
    steps = config.timesteps.per_iteration
    return (steps - 1) / steps if config.timesteps.optimizer_step == "each" else 0.0


def read_architecture(entry: ModelEntry) -> Architecture:
    """Read the sizes of a model from its configs. Raises Tdmr1Error if they are not available or lack values."""
    if entry.base not in PUBLISHED:
        check_entry(entry, training=False)

    def config(name: str) -> Mapping[str, Any]:
        return config_of(entry.base, name)

    kinds = {name: kind for name, kind in config("model_index.json").items() if name.startswith("text_encoder")}
    if not entry.with_t5:
        kinds.pop("text_encoder_3", None)
    encoders = sum(count_parameters(kind[1], config(f"{name}/config.json")) for name, kind in kinds.items() if kind[1])
    tokens = entry.max_sequence_length
    if entry.family == "sd3":
        tokens += config("text_encoder/config.json").get("max_position_embeddings", CLIP_TOKENS)
    denoiser, autoencoder = config("transformer/config.json"), config("vae/config.json")
    if "in_channels" not in denoiser or not has_levels(autoencoder):
        raise Tdmr1Error(
            f"the configs in {entry.base} do not contain the shape of latents: in_channels, and block_out_channels or "
            "temperal_downsample",
            COPY_AGAIN,
            code="plan-unavailable",
            values={"source": entry.base},
        )
    return Architecture(FAMILIES[entry.family], denoiser, autoencoder, encoders, tokens)


def count_parameters(kind: str, config: Mapping[str, Any]) -> int:
    """The size of a network of diffusers or transformers, with its buffers. Raises Tdmr1Error for an unknown class."""
    import diffusers
    import transformers

    network: nn.Module
    try:
        if hasattr(diffusers, kind):
            network = build_network(kind, config, "meta")
        else:
            wanted = getattr(transformers, kind)
            with torch.device("meta"):
                network = wanted(wanted.config_class.from_dict(dict(config)))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise Tdmr1Error(
            f"the size of a {kind} cannot be computed from its config: {error}",
            "check the configs of the pipeline",
            code="plan-unavailable",
            values={"network": kind, "reason": str(error)},
        ) from error
    return sum(weight.numel() for weight in (*network.parameters(), *network.buffers()))
