"""Estimates what a run needs: batch sizes, memory by part, and FLOPs per image.

A dry update of one image gives FLOPs and activation memory; everything else is computed from the configs and settings.
For the usual settings of published models both are known (`known_sizes.py`), and neither torch nor diffusers is
imported. `benchmarks/full_size.py` measures the same on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tdmr1_core.config import RunConfig
from tdmr1_core.distributed import check_split, named_device
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES, Family
from tdmr1_core.models.latent_shape import LatentGrid, has_levels, latent_grid, pixels_per_latent
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.pipeline_files import COPY_AGAIN, is_on_hub
from tdmr1_core.models.registry import SAME, ModelEntry
from tdmr1_core.planning.known_sizes import Point, known_parameters, known_update, point_of
from tdmr1_core.planning.model_settings import KNOWN_DEVICES
from tdmr1_core.planning.passes import passes_an_image
from tdmr1_core.planning.published_configs import PUBLISHED, config_of
from tdmr1_core.planning.sizes import Update

BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
LINEAR_BYTES = {"8bit": 1.0, "nf4": 0.57}
"""Bytes per quantized weight, including its scales."""
DECODER_COPIES = 3
"""The number of tensors of the decoder's widest layer, at image resolution, that exist at the same time."""
CLIP_TOKENS = 77
"""The number of CLIP tokens in SD3, which precede those of T5, if the config does not contain it."""
RESERVE = 1.0e9
"""Bytes for CUDA, its libraries and allocator fragmentation."""
ESTIMATING = "estimating memory and time …"
ESTIMATING_AGAIN = "estimating memory with recomputation …"
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
    decoder: int
    """Parameters of the autoencoder."""
    gathered: int
    """Parameters of the denoiser that a pass of a sharded run holds beside its shard."""
    gathered_encoders: int
    """The same of the text encoder for which it is largest."""
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


def _no_announcement(_: str) -> None:
    """Announce nothing."""


class Planner:
    """Plans a model with different settings. What two plans have in common is measured once.

    The settings may differ in `batch` and `memory`. `announce` gets a line of text before work that takes seconds.
    """

    def __init__(
        self, entry: ModelEntry, processes: int = 1, announce: Callable[[str], None] = _no_announcement
    ) -> None:
        self.entry = entry
        self.processes = processes
        self._announce = announce
        self._announced: set[str] = set()
        self._architecture: Architecture | None = None
        self._updates: dict[Point, Update] = {}

    def plan(self, config: RunConfig) -> Plan:
        """Estimate what an iteration needs in each of the processes.

        With `batch.micro_batch: auto` the micro-batch is all images of a process. Only configs and a local few-step
        LoRA are read; the configs of published models are built in. Raises Tdmr1Error if files are not available, or if
        the model cannot be planned.
        """
        check_split(config.batch.groups, self.processes)
        if config.model.device not in KNOWN_DEVICES:
            named_device(config.model.device)
        entry, memory = self.entry, config.memory
        architecture = self._read_architecture()
        height, width = config.model.height or entry.height, config.model.width or entry.width
        latent_shape = architecture.latent_shape(height, width)
        lora = _lora_shape(config, entry, architecture)
        update = self._update(config, lora, latent_shape)
        groups, images = config.batch.groups, config.batch.groups * config.batch.group_size
        local, setting = images // self.processes, config.batch.micro_batch
        size = min(setting, local) if isinstance(setting, int) else local
        stored = 0 if memory.trajectories == "cpu" else local
        latents = stored * ((config.rollout.step_count or entry.steps) + 1) * math.prod(latent_shape)
        decoding: float = 0
        if config.kind == "train":
            at_once = size if memory.decodes_at_once else 1
            decoding = at_once * DECODER_COPIES * architecture.decoder_width * height * width * _latent_bytes(config)
        parts = {
            **_constant_parts(config, entry, architecture, update, latents, self.processes),
            "activations": size * update.bytes,
            "decoding": decoding,
        }
        passes = passes_an_image(config, entry, size)
        halves, operations = setting == "auto", passes * update.operations
        encoded = update.prompt_bytes
        return Plan(groups, images, self.processes, size, halves, lora.rank, parts, passes, operations, encoded)

    def _read_architecture(self) -> Architecture:
        if self._architecture is None:
            if known_parameters(self.entry) is None:
                self._announce_once(ESTIMATING)
            self._architecture = read_architecture(self.entry)
        return self._architecture

    def _update(self, config: RunConfig, lora: LoraShape, latent_shape: tuple[int, int, int]) -> Update:
        """The generator update for one image: a known size, or measured by a dry update."""
        point = point_of(config, self.entry, lora.rank)
        if point not in self._updates:
            found = known_update(self.entry, point) if lora.targets == self.entry.targets else None
            self._updates[point] = found or self._dry_update(config, lora, latent_shape)
        return self._updates[point]

    def _dry_update(self, config: RunConfig, lora: LoraShape, latent_shape: tuple[int, int, int]) -> Update:
        """Run a generator update for one image, which takes seconds to a minute."""
        self._announce_once(ESTIMATING_AGAIN if self._updates else ESTIMATING)
        from tdmr1_core.planning.dry_update import dry_update

        architecture, family = self._read_architecture(), FAMILIES[self.entry.family]
        gpu = config.model.device != "cpu"
        return dry_update(config, family, architecture.denoiser, latent_shape, architecture.tokens, lora, gpu=gpu)

    def _announce_once(self, text: str) -> None:
        if text not in self._announced:
            self._announced.add(text)
            self._announce(text)


def plan(config: RunConfig, entry: ModelEntry, processes: int = 1) -> Plan:
    """Estimate what an iteration needs in each of the processes, as `Planner.plan` does."""
    return Planner(entry, processes).plan(config)


def encoder_placement(config: RunConfig) -> Literal["auto", "device", "cpu"]:
    """Where the text encoders are: `memory.text_encoders`, in which auto is the device if that is the CPU."""
    setting = config.memory.text_encoders
    return "device" if setting == "auto" and config.model.device == "cpu" else setting


def _latent_bytes(config: RunConfig) -> int:
    """Bytes per number of latents, LoRAs and the autoencoder: at least float32."""
    return max(4, BYTES[config.model.precision])


def shards(config: RunConfig, processes: int) -> bool:
    """Whether the frozen weights of a run are divided among its processes."""
    return config.memory.shard and processes > 1


def _constant_parts(
    config: RunConfig, entry: ModelEntry, architecture: Architecture, update: Update, latents: int, processes: int
) -> dict[str, float]:
    """Bytes of all parts but activations and decoding. `latents` is the number of stored latent values."""
    memory, frozen, single = config.memory, BYTES[config.model.precision], _latent_bytes(config)
    saved = frozen - LINEAR_BYTES.get(memory.weights, frozen)
    denoiser = (update.parameters * frozen - update.linear * saved) * (1 if entry.teacher == SAME else 2)
    moments = 8 if memory.optimizer == "none" else 2.03
    roles, averages = (3, 2) if config.kind == "train" else (2, 1)
    encoders: float = architecture.encoders * frozen
    offloaded = encoder_placement(config) != "device"
    moved = denoiser if memory.weights == "none" else 0  # a quantized denoiser is not moved to the CPU
    in_turn = max(0, encoders - moved) if offloaded else 0
    gathered = {}
    if shards(config, processes):
        denoiser, encoders, offloaded = denoiser / processes, encoders / processes, False
        gathered, in_turn = {"gathered blocks": architecture.gathered * frozen}, architecture.gathered_encoders * frozen
    return {
        "denoiser": denoiser,
        **gathered,
        "autoencoder": architecture.decoder * single,
        "text encoders": 0 if offloaded else encoders,
        "LoRAs": update.lora_parameters * single * (roles + averages),
        "gradients": update.lora_parameters * single * roles,
        "optimisers": update.lora_parameters * moments * single / 4 * roles,
        "trajectories": latents * single,
        "text encoders in turn": in_turn,
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
    from tdmr1_core.models.lora.files import read_lora
    from tdmr1_core.models.meta_network import MetaNetwork

    network = MetaNetwork(FAMILIES[entry.family], architecture.denoiser)
    alpha, ignoring = model.alpha or entry.lora_alpha, model.ignore_text_encoder_lora
    return read_lora(Path(entry.lora), network, shape, alpha=alpha, ignore_text_encoder=ignoring).shape


def fitting_micro_batch(planned: Plan, config: RunConfig, room: float) -> int:
    """The largest micro-batch whose peak stays within `room` bytes; 0 if one image does not fit."""
    free = room - planned.constant
    per_image = planned.per_image
    if config.memory.decodes_at_once:
        per_image = max(per_image, planned.parts["decoding"] / planned.micro_batch)
    elif planned.parts["decoding"] > free:
        return 0
    if planned.parts["text encoders in turn"] > free:
        return 0
    return max(0, min(planned.images // planned.processes, int(free / per_image)))


def read_architecture(entry: ModelEntry, *, use_known: bool = True) -> Architecture:
    """Read the sizes of a model from its configs. Raises Tdmr1Error if they are not available or lack values.

    Parameters are counted, unless they are known and `use_known`.
    """
    if entry.base not in PUBLISHED:
        from tdmr1_core.models.loading import check_entry

        check_entry(entry, training=False)

    def config(name: str) -> Mapping[str, Any]:
        return config_of(entry.base, name)

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
    family = FAMILIES[entry.family]
    known = known_parameters(entry) if use_known else None
    if known is not None:
        gathered = (known.gathered, known.gathered_text_encoders)
        return Architecture(
            family, denoiser, autoencoder, known.text_encoders, known.autoencoder, *gathered, tokens=tokens
        )
    from tdmr1_core.planning.counting import count_gathered, count_parameters

    kinds = {name: kind for name, kind in config("model_index.json").items() if name.startswith("text_encoder")}
    if not entry.with_t5:
        kinds.pop("text_encoder_3", None)
    found = [(kind[1], config(f"{name}/config.json")) for name, kind in kinds.items() if kind[1]]
    encoders = sum(count_parameters(*each) for each in found)
    decoder = count_parameters(family.autoencoder, autoencoder)
    network = family.find_class(family.transformer)
    gathered = (count_gathered(network, denoiser), max((count_gathered(*each) for each in found), default=0))
    return Architecture(family, denoiser, autoencoder, encoders, decoder, *gathered, tokens=tokens)
