"""The network and the pipeline of the family: a rectified flow, v = eps - x_0, in the latents of an autoencoder.

Both are ordinary classes of diffusers. A pipeline directory names the network by this module and its class. To load it,
diffusers looks up its base class `ModelMixin` in the same module, so this file must import it by that name.
"""

import math

import torch
from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import PeftAdapterMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPTextModel, PreTrainedTokenizerFast

FREQUENCIES = 4
"""Frequencies of the features of a position or a time, each with sine and cosine."""


def features(values: Tensor) -> Tensor:
    """Sines and cosines of values (...) between 0 and 1: (..., 2 FREQUENCIES)."""
    angles = values.unsqueeze(-1) * math.pi * 2 ** torch.arange(FREQUENCIES, device=values.device, dtype=values.dtype)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Attention(nn.Module):
    """Self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, width) to (B, T, width)."""
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, width) to (B, T, width)."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.feed_forward(self.norm2(tokens))


class DotsTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A transformer over patches of latents, the tokens of the prompt and one token for the time."""

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        sample_size: int = 16,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        text_width: int = 32,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.patch_in = nn.Linear(in_channels * patch_size**2, width)
        self.position_in = nn.Linear(4 * FREQUENCIES, width)
        self.text_in = nn.Linear(text_width, width)
        self.time_in = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.patch_out = nn.Linear(width, in_channels * patch_size**2)

    def forward(self, latents: Tensor, timestep: Tensor, texts: Tensor) -> Tensor:
        """v (B, C, H, W) of latents (B, C, H, W) at timesteps (B,) from 0 to 1000, with texts (B, L, text_width)."""
        size, (rows, columns) = self.config.patch_size, latents.shape[2:]
        patches = nn.functional.pixel_unshuffle(latents, size).flatten(2).mT  # (B, T, C size^2)
        ys, xs = (torch.linspace(0, 1, count // size).to(latents) for count in (rows, columns))
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1).flatten(0, 1)  # (T, 2)
        time = self.time_in(features((timestep / 1000).to(latents))).unsqueeze(1)  # (B, 1, width)
        image = self.patch_in(patches) + self.position_in(features(grid).flatten(1)) + time
        tokens = torch.cat([image, self.text_in(texts), time], 1)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        outputs = self.patch_out(self.norm_out(tokens[:, : image.shape[1]]))  # (B, T, C size^2)
        return nn.functional.pixel_shuffle(outputs.mT.unflatten(2, (rows // size, columns // size)), size)


class DotsPipeline(DiffusionPipeline):
    """Samples images from prompts with Euler steps."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: DotsTransformer,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def encode_prompt(self, prompts: list[str], device: torch.device) -> Tensor:
        """Token embeddings (B, L, D). Every prompt has L tokens: padding is part of the prompt."""
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(device)).last_hidden_state

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int = 32,
        width: int = 32,
        num_inference_steps: int = 4,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample images. A guidance scale above 1 extrapolates from the empty prompt; noise levels may be given."""
        device = self._execution_device
        if prompt_embeds is None:
            prompt_embeds = self.encode_prompt([prompt] if isinstance(prompt, str) else prompt, device)
        texts = prompt_embeds.repeat_interleave(num_images_per_prompt, 0)
        if latents is None:
            size = height // self.vae_scale_factor, width // self.vae_scale_factor
            shape = len(texts), self.transformer.config.in_channels, *size
            latents = torch.randn(shape, generator=generator, dtype=texts.dtype).to(device)
        empty = self.encode_prompt([""], device).expand(len(texts), -1, -1) if guidance_scale > 1 else None
        self.scheduler.set_timesteps(None if sigmas else num_inference_steps, sigmas=sigmas, device=device)
        for time in self.scheduler.timesteps:
            times = time.expand(len(latents))
            velocity = self.transformer(latents, times, texts)
            if empty is not None:
                unguided = self.transformer(latents, times, empty)
                velocity = unguided + guidance_scale * (velocity - unguided)
            latents = self.scheduler.step(velocity, time, latents, return_dict=False)[0]
        settings = self.vae.config
        pixels = self.vae.decode(latents / settings.scaling_factor + settings.shift_factor, return_dict=False)[0]
        return ImagePipelineOutput(self.image_processor.postprocess(pixels, output_type=output_type))

    def load_lora_weights(self, source: str, **options: object) -> None:
        """Load a LoRA of the network, as the pipelines of diffusers do."""
        self.transformer.load_lora_adapter(source, prefix="transformer", **options)
