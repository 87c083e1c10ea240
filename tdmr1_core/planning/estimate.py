"""What a run needs, without any weight: batch arithmetic, memory by part, and arithmetic per image.

Networks are built from their configs without numbers; one image's update of the generator is done on them, which counts
its operations and the bytes it holds at once. The rest is arithmetic over the settings. `benchmarks/full_size.py`
measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdmr1_core.config import RunConfig
from tdmr1_core.distributed import check_split
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.entry import SAME, ModelEntry
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.loading import check_entry
from tdmr1_core.models.lora.files import read_lora
from tdmr1_core.models.meta_network import MetaNetwork, build_network
from tdmr1_core.models.pipeline import shape_of_latents
from tdmr1_core.models.pipeline_files import read_config
from tdmr1_core.models.roles import LoraShape
from tdmr1_core.planning.dry_update import dry_update
from tdmr1_core.planning.published_configs import PUBLISHED

BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
LINEAR_BYTES = {"8bit": 1.0, "nf4": 0.57}
"""Of a weight in fewer bits, with its share of scales."""
DECODER_COPIES = 3
"""Tensors of a decoder's widest layer at full size that are held at once."""
CLIP_TOKENS = 77
"""Of a text in SD3, before those of T5, where CLIP's config does not say it."""
PATCH = 2
"""Latents that every family's network takes together along each axis, where its config does not say it."""
RESERVE = 1.0e9
"""Bytes that CUDA, its libraries and a fragmented allocator take."""
IN_TURN = ("activations", "decoding", "text encoders in turn")
"""Parts of which only one is there at a time."""


@dataclass(frozen=True)
class Architecture:
    """What is known of a model without its weights: configs of denoiser and autoencoder, text encoders, longest text.

    `encoders` is how many numbers all text encoders hold.
    """

    denoiser: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    encoders: int
    tokens: int

    @property
    def decoder_width(self) -> int:
        """Channels of the autoencoder's second level, the widest that it computes at full size."""
        levels = self.autoencoder["block_out_channels"]
        return int(levels[min(1, len(levels) - 1)])

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture in pixels. Raises Tdmr1Error for a size that can't be drawn."""
        patch = int(self.denoiser.get("patch_size", PATCH))
        return shape_of_latents(int(self.denoiser["in_channels"]), self.latent_pixels, patch, height, width)

    @property
    def latent_pixels(self) -> int:
        """Pixels that a latent is wide."""
        return int(2 ** (len(self.autoencoder["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Plan:
    """A run's needs, for one of its processes: bytes by part and in all, operations and passes for each image.

    `halves` says that the run begins with all images at once and halves that until it fits; `rank` is that of the
    LoRAs, a given one's if it is here in safetensors.
    """

    groups: int
    images: int
    processes: int
    micro_batch: int
    halves: bool
    rank: int
    parts: dict[str, float]
    passes: float
    operations: float

    @property
    def lasting(self) -> float:
        """Bytes of the parts that are always there."""
        return sum(size for name, size in self.parts.items() if name not in IN_TURN)

    @property
    def peak(self) -> float:
        """Bytes at the highest point: of updating, decoding and encoding texts, which take turns."""
        return self.lasting + max(self.parts[name] for name in IN_TURN)

    @property
    def each(self) -> float:
        """Bytes of updating one image more at once."""
        return self.parts["activations"] / self.micro_batch

    def seconds(self, tflops: float) -> float:
        """How long an iteration takes on a device that sustains so many TFLOP/s, without rewards."""
        return self.operations * self.images / self.processes / (tflops * 1e12)

    @property
    def micro_batches(self) -> int:
        """How many each stage takes."""
        return -(-self.images // self.processes // self.micro_batch)


def plan(config: RunConfig, entry: ModelEntry, processes: int = 1, room: float | None = None) -> Plan:
    """What an iteration needs in each of the processes.

    A micro-batch that is `auto` is all images at once, or that halved, as a run does it, until it fits `room` bytes.
    Configs are all that is read of a model, from its directory, the hub's cache or the hub; those of the published
    models are known. A few-step LoRA that is here is read. Raises Tdmr1Error where they can't be had or used.
    """
    check_split(config.batch.groups, processes)
    architecture = read_architecture(entry)
    height, width = config.model.height or entry.height, config.model.width or entry.width
    trains = config.kind == "train"
    lora = _lora_shape(config, entry, architecture)
    latent_shape = architecture.latent_shape(height, width)
    gpu = config.model.device != "cpu"
    update = dry_update(
        config, FAMILIES[entry.family], architecture.denoiser, latent_shape, architecture.tokens, lora, gpu=gpu
    )
    images = config.batch.groups * config.batch.group_size
    own = images // processes
    on_device = own if config.memory.trajectories == "device" else 0
    roles, averages = (3, 2) if trains else (2, 1)
    frozen, single = BYTES[config.model.precision], max(4, BYTES[config.model.precision])
    points = (config.rollout.steps or entry.steps) + 1
    widest = DECODER_COPIES * architecture.decoder_width * height * width * single
    fewer = frozen - LINEAR_BYTES.get(config.memory.weights, frozen)
    denoiser = (update.parameters * frozen - update.linear * fewer) * (1 if entry.teacher == SAME else 2)
    moments = 8 if config.memory.optimizer == "whole" else 2.03
    encoders, leave = architecture.encoders * frozen, config.memory.text_encoders == "cpu"
    away = denoiser if config.memory.weights == "whole" else 0  # one in fewer bits stays where it is
    lasting = {
        "denoiser": denoiser,
        "autoencoder": count_parameters("AutoencoderKL", architecture.autoencoder) * single,
        "text encoders": 0 if leave else encoders,
        "LoRAs": update.lora_parameters * single * (roles + averages),
        "gradients": update.lora_parameters * single * roles,
        "optimisers": update.lora_parameters * moments * single / 4 * roles,
        "trajectories": on_device * points * latent_shape[0] * latent_shape[1] * latent_shape[2] * single,
        "text encoders in turn": max(0, encoders - away) if leave else 0,
        "reserve": RESERVE,
    }

    asked = config.batch.micro_batch

    def with_micro_batch(size: int) -> Plan:
        decoded = size if config.memory.decoder == "whole" else 1
        parts = {**lasting, "activations": size * update.bytes, "decoding": widest * decoded if trains else 0}
        passes = passes_an_image(config, entry, size)
        operations = passes * update.operations
        groups = config.batch.groups
        return Plan(groups, images, processes, size, asked == "auto", lora.rank, parts, passes, operations)

    if asked != "auto":
        return with_micro_batch(min(asked or own, own))
    most = own if room is None else max(1, fitting_micro_batch(with_micro_batch(1), config, room))
    size = own
    while size > most:
        size //= 2
    return with_micro_batch(size)


def _lora_shape(config: RunConfig, entry: ModelEntry, architecture: Architecture) -> LoraShape:
    """Of every LoRA of the run: that of the few-step one, unless it is still on the hub.

    Raises Tdmr1Error for a file that a training could not use.
    """
    model, file = config.model, Path(entry.lora or "")
    shape = LoraShape(model.rank or entry.rank, model.alpha or entry.alpha, entry.targets)
    if config.kind != "train" or entry.lora is None or not (file.exists() or file.is_absolute()):
        return shape
    skeleton = MetaNetwork(FAMILIES[entry.family], architecture.denoiser)
    return read_lora(file, skeleton, shape, alpha=model.alpha or entry.lora_alpha).shape


def fitting_micro_batch(planned: Plan, config: RunConfig, room: float) -> int:
    """The most images at once for which a plan's peak stays within `room` bytes; 0 if not one does."""
    free = room - planned.lasting
    each = planned.each
    if config.memory.decoder == "whole":
        each = max(each, planned.parts["decoding"] / planned.micro_batch)
    elif planned.parts["decoding"] > free:
        return 0
    if planned.parts["text encoders in turn"] > free:
        return 0
    return max(0, min(planned.images // planned.processes, int(free / each)))


def passes_an_image(config: RunConfig, entry: ModelEntry, micro_batch: int) -> float:
    """Forward passes of the denoiser for each image of an iteration, a backward pass counted as one more.

    Frozen weights have no gradient, so that a backward pass costs about as much as a forward one. The generator is
    asked again for the fake score where its velocity is not to be read off the trajectory, and so is the surrogate for
    the weights of groups that are larger than a micro-batch.
    """
    learning = 2 + config.memory.gradient_checkpointing
    guided = 1 + (config.generator.guidance_scale != 1)
    fake = config.fake.updates * (1 + learning + stale_share(config))
    generator = learning + guided + 1
    surrogate = 0.0
    if config.kind == "train" and config.generator.reward_scale > 0:
        old = config.surrogate.trust_region is not None and config.surrogate.reference != "ema"
        parted = 2 * (micro_batch < config.batch.group_size)
        surrogate = config.surrogate.updates * (learning + 1 + old + parted)
        generator += 1 + 1 + (config.generator.rl_cfg != 1)
    each = fake + surrogate + generator
    return (config.rollout.steps or entry.steps) + config.timesteps.per_iteration * each


def stale_share(config: RunConfig) -> float:
    """Of an iteration's steps, those at which trajectories do not tell the generator's velocity (any more)."""
    if config.rollout.sampler != "euler" or config.rollout.eta > 0:
        return 1.0
    steps = config.timesteps.per_iteration
    return (steps - 1) / steps if config.timesteps.optimizer_step == "each" else 0.0


def read_architecture(entry: ModelEntry) -> Architecture:
    """From a pipeline's configs; weights may be missing. Raises Tdmr1Error where they can't be had or don't fit."""
    known = PUBLISHED.get(entry.base)
    if known is None:
        check_entry(entry, training=False)

    def config(name: str) -> Mapping[str, Any]:
        return read_config(entry.base, name) if known is None else known[name]

    found = {name: kind for name, kind in config("model_index.json").items() if name.startswith("text_encoder")}
    if not entry.with_t5:
        found.pop("text_encoder_3", None)
    encoders = sum(count_parameters(kind[1], config(f"{name}/config.json")) for name, kind in found.items() if kind[1])
    tokens = entry.max_sequence_length
    if entry.family == "sd3":
        tokens += config("text_encoder/config.json").get("max_position_embeddings", CLIP_TOKENS)
    denoiser, autoencoder = config("transformer/config.json"), config("vae/config.json")
    if "in_channels" not in denoiser or "block_out_channels" not in autoencoder:
        raise Tdmr1Error(
            f"the configs in {entry.base} do not say how latents are shaped",
            "copy the whole pipeline directory again",
        )
    return Architecture(denoiser, autoencoder, encoders, tokens)


def count_parameters(kind: str, config: Mapping[str, Any]) -> int:
    """Numbers in the weights of one of diffusers' or transformers' networks. Raises Tdmr1Error for an unknown one."""
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
            f"a {kind} can't be planned from its config: {error}", "see that the pipeline's configs are whole"
        ) from error
    return sum(weight.numel() for weight in (*network.parameters(), *network.buffers()))
