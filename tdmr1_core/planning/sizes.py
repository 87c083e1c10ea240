"""The sizes that a plan is computed from. Imports neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """Parameters and buffers of the networks of a model."""

    denoiser: int
    linear: int
    """Weights of the linear layers of the denoiser."""
    text_encoders: int
    """Of all text encoders."""
    autoencoder: int
    lora_per_rank: int
    """Parameters of one LoRA per unit of its rank."""
    gathered: int
    """Parameters of the denoiser that a pass of a sharded run holds beside its shard (`counting.count_gathered`)."""
    gathered_text_encoders: int
    """The same of the text encoder for which it is largest."""


@dataclass(frozen=True)
class Update:
    """The size of one generator update."""

    parameters: int
    """Parameters and buffers of the network."""
    linear: int
    """Weights of its linear layers."""
    lora_parameters: int
    """Parameters of one LoRA."""
    operations: float
    """FLOPs of one forward pass for one image."""
    bytes: int
    """Peak bytes beside the weights and the states that are kept between updates."""
    prompt_bytes: int
    """Bytes of the longest encoded prompt."""
