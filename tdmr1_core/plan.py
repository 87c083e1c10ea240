"""What a run needs, without any weight: batch arithmetic, memory by part, and arithmetic per image.

The denoiser is built from its config on the meta device and asked once forward, which counts its operations and the
bytes it keeps for the backward pass; the rest is arithmetic over the settings. `benchmarks/full_size.py` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tdmr1_core.config import RunConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.acquire import absent_parts, check_entry
from tdmr1_core.models.entry import SAME, ModelEntry
from tdmr1_core.models.pipeline_files import read_config
from tdmr1_core.models.roles import LoraShape
from tdmr1_core.processes import check_split

BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
DECODER_COPIES = 3
"""Tensors of a decoder's widest layer at full size that are held at once."""
CLIP_TOKENS = 77
"""Of a text in SD3, before those of T5."""
RESERVE = 1.0e9
"""Bytes that CUDA, its libraries and a fragmented allocator take."""


@dataclass(frozen=True)
class Architecture:
    """What is known of a model without its weights: configs of denoiser and autoencoder, and the longest text."""

    denoiser: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    tokens: int

    @property
    def decoder_width(self) -> int:
        """Channels of the autoencoder's second level, the widest that it computes at full size."""
        levels = self.autoencoder["block_out_channels"]
        return int(levels[min(1, len(levels) - 1)])

    @property
    def pixels_a_latent(self) -> int:
        """Along each axis."""
        return int(2 ** (len(self.autoencoder["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Shape:
    """What one forward pass of the denoiser is, for one image: parameters, operations, bytes kept for the backward."""

    parameters: int
    lora_parameters: int
    blocks: int
    operations: float
    kept: float


@dataclass(frozen=True)
class Plan:
    """A run's needs, for one of its processes: bytes by part and in all, operations and passes for each image."""

    images: int
    processes: int
    micro_batch: int
    parts: dict[str, float]
    passes: float
    operations: float

    @property
    def peak(self) -> float:
        """Bytes at the highest point: pictures are decoded while no graph is kept."""
        together = sum(size for name, size in self.parts.items() if name not in ("activations", "decoding"))
        return together + max(self.parts["activations"], self.parts["decoding"])

    @property
    def micro_batches(self) -> int:
        """How many each stage takes."""
        return -(-self.images // self.processes // self.micro_batch)


def plan(config: RunConfig, entry: ModelEntry, processes: int = 1) -> Plan:
    """What an iteration needs in each of the processes.

    Configs are all that is read of a model, from its directory, the hub's cache or the hub. Raises Tdmr1Error where
    they can't be had.
    """
    check_split(config.batch.groups, processes)
    architecture = read_architecture(entry)
    height, width = config.model.height or entry.height, config.model.width or entry.width
    lora = LoraShape(config.model.rank or entry.rank, config.model.alpha or entry.alpha, entry.targets)
    shape = measure_shape(architecture, lora, height, width, config)
    images = config.batch.groups * config.batch.group_size
    own = images // processes
    asked = config.batch.micro_batch
    micro = min(asked, own) if isinstance(asked, int) else own
    trains = config.kind == "train"
    roles, averages = (3, 2) if trains else (2, 1)
    frozen, single = BYTES[config.model.precision], max(4, BYTES[config.model.precision])
    latents = (config.rollout.steps or entry.steps) + 1
    cells = architecture.denoiser["in_channels"] * (height * width) / architecture.pixels_a_latent**2
    widest = DECODER_COPIES * architecture.decoder_width * height * width * single
    autoencoder = count_parameters(build("AutoencoderKL", architecture.autoencoder))
    encoders = encoder_parameters(entry, shape.parameters, autoencoder)
    parts = {
        "denoiser": shape.parameters * frozen * (1 if entry.teacher == SAME else 2),
        "autoencoder": autoencoder * single,
        "text encoders": encoders * frozen if config.memory.text_encoders == "device" else 0,
        "LoRAs": shape.lora_parameters * single * (roles + averages),
        "gradients": shape.lora_parameters * single * (roles + 1),
        "optimisers": shape.lora_parameters * single * 2 * roles,
        "trajectories": own * latents * cells * single,
        "activations": activations(shape, config, micro),
        "decoding": widest * (micro if config.memory.decoder == "whole" else 1) if trains else 0,
        "reserve": RESERVE,
    }
    passes = passes_an_image(config, entry)
    return Plan(images, processes, micro, parts, passes, passes * shape.operations)


def activations(shape: Shape, config: RunConfig, micro_batch: int) -> float:
    """Bytes that the generator's update holds beside weights.

    Its graph is kept while the teacher is asked three questions at once, of which each takes a block's worth; where
    blocks are recomputed the graph is what goes into each of them, about a twentieth.
    """
    block = shape.kept / shape.blocks
    graph = block + shape.kept / 20 if config.memory.gradient_checkpointing else shape.kept
    return micro_batch * (graph + 3 * block)


def fitting_micro_batch(planned: Plan, config: RunConfig, room: float) -> int:
    """The most images at once for which a plan's peak stays within `room` bytes; 0 if not one does."""
    fixed = sum(size for name, size in planned.parts.items() if name not in ("activations", "decoding"))
    each = planned.parts["activations"] / planned.micro_batch
    if config.memory.decoder == "whole":
        each = max(each, planned.parts["decoding"] / planned.micro_batch)
    elif planned.parts["decoding"] > room - fixed:
        return 0
    return max(0, min(planned.images // planned.processes, int((room - fixed) / each)))


def passes_an_image(config: RunConfig, entry: ModelEntry) -> float:
    """Forward passes of the denoiser for each image of an iteration, a backward pass counted as one more.

    Frozen weights have no gradient, so that a backward pass costs about as much as a forward one.
    """
    learning = 2 + config.memory.gradient_checkpointing
    guided = 1 + (config.generator.guidance_scale != 1)
    fake = config.fake.updates * (1 + learning)
    generator = learning + guided + 1
    surrogate = 0.0
    if config.kind == "train" and config.generator.reward_scale > 0:
        old = config.surrogate.trust_region is not None and config.surrogate.reference != "ema"
        surrogate = config.surrogate.updates * (learning + 1 + old)
        generator += 1 + 1 + (config.generator.rl_cfg != 1)
    each = fake + surrogate + generator
    return (config.rollout.steps or entry.steps) + config.timesteps.per_iteration * each


def read_architecture(entry: ModelEntry) -> Architecture:
    """From a pipeline's configs; weights may be missing. Raises Tdmr1Error where they can't be had or don't fit."""
    check_entry(entry, training=False)
    denoiser = read_config(entry.base, "transformer/config.json")
    beside = CLIP_TOKENS if entry.family == "sd3" else 0
    return Architecture(denoiser, read_config(entry.base, "vae/config.json"), beside + entry.max_sequence_length)


def encoder_parameters(entry: ModelEntry, denoiser: int, autoencoder: int) -> float:
    """Of all text encoders: counted in their files, else the rest of a published model's size, or 0 of any other's."""
    absent = absent_parts(entry)
    folders = [folder for folder in Path(entry.base).glob("text_encoder*") if folder.name not in absent]
    files = [file for folder in folders for file in folder.glob("*.safetensors") if ".fp16" not in file.name]
    if files:
        return sum(map(_numbers, files))
    return max(0.0, entry.weights_gb * 1e9 / BYTES["bf16"] - denoiser - 2 * autoencoder)


def _numbers(file: Path) -> int:
    """How many numbers a file of weights holds, by its header."""
    try:
        with safe_open(file, framework="pt") as weights:
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Tdmr1Error(f"{file} is cut short or damaged", "copy it again, or remove it for this plan") from error


def count_parameters(network: nn.Module) -> int:
    """Numbers in a network's weights."""
    return sum(weight.numel() for weight in network.parameters())


def measure_shape(architecture: Architecture, lora: LoraShape, height: int, width: int, config: RunConfig) -> Shape:
    """One forward pass on the meta device, with a LoRA as it is trained."""
    network = build_denoiser(architecture.denoiser)
    parameters = count_parameters(network)
    network.requires_grad_(False)
    inject_adapter_in_model(lora.peft(), network, low_cpu_mem_usage=True)
    trained = {name: weight for name, weight in network.named_parameters() if "lora_" in name}
    precision = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(config.model.precision, torch.float32)
    nn.Module.to(network, dtype=precision)  # diffusers' own warns of parts to keep in float32, though there are none
    scale = architecture.pixels_a_latent
    arguments = _arguments(architecture, (height // scale, width // scale), precision)
    weights = {weight.untyped_storage()._cdata for weight in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return value

    counter = FlopCounterMode(display=False)
    attention = _FusedAttention()
    with attention, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        _graph = network(**arguments)[0]
    blocks = sum(len(module) for module in network.children() if isinstance(module, nn.ModuleList))
    numbers = sum(weight.numel() for weight in trained.values())
    return Shape(
        parameters, numbers, max(blocks, 1), counter.get_total_flops() + attention.operations, float(sum(kept.values()))
    )


class _FusedAttention(TorchFunctionMode):
    """Attention as kernels do it on real devices: no table of all pairs is kept. The meta device would keep one."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3] if len(args) > 2 else [(kwargs or {})[name] for name in ("query", "key", "value")]
        self.operations += 4.0 * query.numel() * key.shape[-2]
        return _Fused.apply(query, key, value)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = torch.empty_like(query)
        context.save_for_backward(query, key, value, answer)
        return answer

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("only what is kept is counted")


def build_denoiser(config: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """A denoiser from its config, with random weights. Raises Tdmr1Error for a kind that can't be planned."""
    kind = config.get("_class_name")
    if kind not in ARGUMENTS:
        raise Tdmr1Error(f"a {kind} can't be planned", f"{' and '.join(ARGUMENTS)} can")
    return build(str(kind), config, device)


def build(kind: str, config: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """One of diffusers' networks from its config."""
    import diffusers

    with torch.device(device):
        network: nn.Module = getattr(diffusers, kind).from_config(dict(config))
    return network


def _arguments(architecture: Architecture, cells: tuple[int, int], precision: torch.dtype) -> dict[str, Any]:
    config = architecture.denoiser

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=precision, device="meta")

    return ARGUMENTS[config["_class_name"]](empty, config, cells, architecture.tokens) | {"return_dict": False}


Empty = Callable[..., Tensor]


def _sd3_arguments(empty: Empty, config: Mapping[str, Any], cells: tuple[int, int], tokens: int) -> dict[str, Any]:
    return {
        "hidden_states": empty(1, config["in_channels"], *cells),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": empty(1, tokens, config["joint_attention_dim"]),
        "pooled_projections": empty(1, config["pooled_projection_dim"]),
    }


def _zimage_arguments(empty: Empty, config: Mapping[str, Any], cells: tuple[int, int], tokens: int) -> dict[str, Any]:
    return {
        "x": [empty(config["in_channels"], 1, *cells)],
        "t": torch.empty(1, device="meta"),
        "cap_feats": [empty(tokens, config["cap_feat_dim"])],
    }


ARGUMENTS = {"SD3Transformer2DModel": _sd3_arguments, "ZImageTransformer2DModel": _zimage_arguments}
"""What each kind of denoiser is asked with: one picture, the longest text."""
