"""Parts of tiny pipelines: text encoders, autoencoders and schedulers of the classes that the pipelines load.

Every structural feature of the published parts is kept; widths, layers and vocabularies are small. Parameters are
drawn from a seed, so that equal calls give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import (
    CLIPTextConfig,
    Ministral3Config,
    Ministral3ForCausalLM,
    Mistral3Config,
    Mistral3Model,
    PixtralVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

Network = TypeVar("Network", bound=nn.Module)
PERTURBATION = 0.1
"""Standard deviation of biases and of the weights of norms around their initial value."""
DYNAMIC_SHIFT = {"use_dynamic_shifting": True, "time_shift_type": "exponential", "base_image_seq_len": 256}
SCHEDULERS: dict[str, Mapping[str, Any]] = {
    "sd3": {"shift": 3.0},
    "zimage": {"shift": 3.0},
    "flux2_klein": {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096, **DYNAMIC_SHIFT},
    "krea2": {"shift": 1.0, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 6400, **DYNAMIC_SHIFT},
    "qwen_image": {
        "shift": 1.0,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
        **DYNAMIC_SHIFT,
    },
    "flux1": {"shift": 1.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096},
    "ernie_image": {"shift": 3.0},
}
"""Values of the published scheduler configs by family."""


@torch.no_grad()
def randomize(network: Network, seed: int, gain: float = 1.0) -> Network:
    """Replace every parameter by seeded normal draws that keep the scale of activations. Returns the network.

    Matrices, kernels and tables have a standard deviation of gain / sqrt(inputs), embeddings of 1. Norm weights that
    are 1 stay near 1. No parameter stays zero, as diffusers leaves some, so that the output depends on every block.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    for parameter in network.parameters():
        draws = torch.randn(parameter.shape, generator=generator)
        ones = bool((parameter == 1).all())
        if ones or parameter.ndim < 2:
            parameter.copy_(PERTURBATION * draws + float(ones))
        elif id(parameter) in embeddings:
            parameter.copy_(draws)
        else:
            parameter.copy_(draws * gain / parameter[0].numel() ** 0.5)
    return network.eval()


def scheduler(family: str) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a family with its published config."""
    return FlowMatchEulerDiscreteScheduler(**SCHEDULERS[family])


def clip_encoder(kind: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase, width: int) -> PreTrainedModel:
    """A CLIP text encoder of class `kind`, with or without projection, two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return randomize(kind(config), seed=width)


def t5_encoder(tokenizer: PreTrainedTokenizerBase, width: int) -> T5EncoderModel:
    """The encoder of a T5 1.1, two layers."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return randomize(T5EncoderModel(config), seed=3)


def qwen3(kind: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> PreTrainedModel:
    """A Qwen3 of class `kind`, with or without language head, with two query heads and one key and value head."""
    config = Qwen3Config(
        **_decoder(tokenizer, width, layers),
        head_dim=width // 2,
        tie_word_embeddings=True,
    )
    return randomize(kind(config), seed=4)


def qwen25_vl(tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with a vision tower of one layer. `width` is a multiple of 16."""
    config = Qwen2_5_VLConfig(
        text_config={
            **_decoder(tokenizer, width, layers),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": _sections(width // 4)},
        },
        vision_config={
            **_vision(width),
            "num_heads": 2,
            "depth": 1,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        **_vision_tokens(tokenizer),
    )
    return randomize(Qwen2_5_VLForConditionalGeneration(config), seed=5)


def qwen3_vl(tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> Qwen3VLModel:
    """A Qwen3-VL without language head, with a vision tower of one layer. `width` is a multiple of 16."""
    config = Qwen3VLConfig(
        text_config={
            **_decoder(tokenizer, width, layers),
            "head_dim": width // 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": _sections(width // 4)},
        },
        vision_config={
            **_vision(width),
            "num_heads": 2,
            "depth": 1,
            "out_hidden_size": width,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_vision_tokens(tokenizer),
    )
    return randomize(Qwen3VLModel(config), seed=6)


def mistral3(tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> Mistral3Model:
    """A Mistral3 with the language network of Ministral 3 and a vision tower of one layer."""
    config = Mistral3Config(
        text_config=_ministral3(tokenizer, width, layers),
        vision_config=PixtralVisionConfig(**_vision(width), num_attention_heads=2, num_hidden_layers=1, image_size=56),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    return randomize(Mistral3Model(config), seed=7)


def ministral3(tokenizer: PreTrainedTokenizerBase, width: int) -> Ministral3ForCausalLM:
    """A Ministral 3 with language head, two layers: the prompt enhancer of ERNIE-Image."""
    return randomize(Ministral3ForCausalLM(_ministral3(tokenizer, width, layers=2)), seed=8)


def autoencoder_kl(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    """The autoencoder class of SD3, FLUX.1 and Z-Image: 16 channels, 8 x 8 pixels per latent."""
    network = AutoencoderKL(
        **_convolutions(),
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )
    return _set_contrast(randomize(network, seed=9), 0.5)


def autoencoder_flux2() -> nn.Module:
    """The autoencoder of FLUX.2 and ERNIE-Image: 32 channels, 8 x 8 pixels per latent.

    The batch norm over 128 patchified channels has means and variances that differ from 0 and 1.
    """
    from diffusers import AutoencoderKLFlux2

    network = _set_contrast(randomize(AutoencoderKLFlux2(**_convolutions(), latent_channels=32), seed=10), 0.5)
    generator = torch.Generator().manual_seed(11)
    network.bn.running_mean.copy_(torch.randn(128, generator=generator))
    network.bn.running_var.copy_(0.5 + 2.5 * torch.rand(128, generator=generator))
    return network


def autoencoder_qwen() -> nn.Module:
    """The autoencoder of Qwen-Image and Krea 2: 3D convolutions, 16 channels, published means and deviations."""
    from diffusers import AutoencoderKLQwenImage

    return _set_contrast(randomize(AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1), seed=12), 1.0)


@torch.no_grad()
def _set_contrast(autoencoder: Network, contrast: float) -> Network:
    """Center the decoder's output and scale it by `contrast`, so that few pixels are outside [-1, 1]."""
    weight = autoencoder.get_parameter("decoder.conv_out.weight")
    outputs = weight.flatten(1)  # (3, inputs), a view
    outputs.sub_(outputs.mean(1, keepdim=True)).mul_(contrast)
    return autoencoder


def _convolutions() -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8,) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }


def _decoder(tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> dict[str, Any]:
    """Values that all decoder-only language networks share."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _ministral3(tokenizer: PreTrainedTokenizerBase, width: int, layers: int) -> Ministral3Config:
    config = _decoder(tokenizer, width, layers) | {"max_position_embeddings": 262144}
    return Ministral3Config(**config, head_dim=width // 2)


def _vision(width: int) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "patch_size": 14}


def _vision_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {f"vision_{end}_token_id": f"<|vision_{end}|>" for end in ("start", "end")}
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _sections(pairs: int) -> list[int]:
    """Rotary pairs of the axes time, height and width; they sum to `pairs`, a multiple of 4."""
    return [pairs // 2, pairs // 4, pairs // 4]
