"""Tiny pipeline directories of every supported family, written by diffusers, and LoRA files for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from support.paths import ROOT

TINY_TOKENIZER = ROOT / "tdmr1_core" / "tiny" / "pipeline" / "tokenizer"
SD3_TARGETS = [
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
]
ZIMAGE_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
"""The target modules of the published Z-Image LoRA. The network does not have the last two."""
WIDTHS = (24, 40)
CHAT_TEMPLATE = "{% for message in messages %}user : {{ message['content'] }} {% endfor %}assistant :"


def autoencoder() -> AutoencoderKL:
    """An autoencoder with 16 latent channels and four levels: one latent covers 8 x 8 pixels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    )


def clip_encoder(width: int, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A CLIP text encoder with a projection."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def make_sd35(folder: Path) -> Path:
    """Write a pipeline like SD3.5: dual attention in the first block, RMS norms, 64 x 64 pixels, no T5."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TINY_TOKENIZER)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=sum(WIDTHS),
            caption_projection_dim=16,
            pooled_projection_dim=sum(WIDTHS),
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=clip_encoder(WIDTHS[0], tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(WIDTHS[1], tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word and, like Qwen's, a chat template."""
    words = ["user", "assistant", ":", "a", "one", "two", "three", "red", "green", "circle", "circles", "squares"]
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_zimage(folder: Path, seed: int = 0, shift: float = 3.0) -> Path:
    """Write a pipeline like Z-Image: two layers, refiners, a Qwen3 text encoder. `seed` is that of the transformer."""
    torch.manual_seed(100)
    tokenizer = word_tokenizer()
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
            max_position_embeddings=64,
        )
    ).eval()
    vae = autoencoder()
    torch.manual_seed(seed)
    network = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )
    for token in (network.x_pad_token, network.cap_pad_token):  # a network made from a config leaves them uninitialized
        nn.init.normal_(token, std=0.5)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=network.eval(),
    ).save_pretrained(folder)
    return folder


def random_lora(network: nn.Module, targets: list[str], rank: int, seed: int = 0) -> Mapping[str, Tensor]:
    """Random weights of a LoRA that get_peft_model adds to the network, by PEFT's names and in PEFT's order."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    adapted = get_peft_model(network, config, adapter_name="tdm")
    torch.manual_seed(seed)
    named = [(name, weight) for name, weight in adapted.named_parameters() if "tdm" in name]
    return {name: 0.3 * torch.randn_like(weight) for name, weight in named}


def published_checkpoint(network: nn.Module, targets: list[str], path: Path, rank: int = 32) -> Mapping[str, Tensor]:
    """Write a checkpoint in the authors' layout. Returns its weights by canonical name."""
    named = random_lora(network, targets, rank)
    torch.save({"decay": 0.9, "ema_parameters": list(named.values())}, path)
    return {name.removeprefix("base_model.model.").replace(".tdm.", "."): weight for name, weight in named.items()}
