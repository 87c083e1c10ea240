"""Step 1 of the embedded model: tokenizer, two frozen random CLIP text encoders and a small trained autoencoder.

    python examples/tiny_world/base.py --output build/tiny-world/base
    python examples/tiny_world/base.py --world words --output build/tiny-words/base

writes a StableDiffusion3Pipeline directory with an untrained transformer. It takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer
from worlds import WORLDS, World

TEXT_WIDTH = 32


def segment(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The pieces of a word after byte-pair merging. Earlier merges are applied first, as in CLIP's tokenizer."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while pairs := [pair for pair in pairwise(pieces) if pair in merges]:
        at = list(pairwise(pieces)).index(min(pairs, key=merges.index))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def make_tokenizer(world: World) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, with merges that turn every word of the world into one token.

    The merges of a word start from its pieces after the merges of the earlier words, which are always applied first.
    """
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [",", ".", "-"]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in world.vocabulary:
        pieces = segment(word, merges)
        tokens += [piece for piece in pieces if piece not in tokens]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            tokens.append(pieces[0])
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocab))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=world.prompt_length)


def make_text_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModelWithProjection:
    """A random one-layer CLIP text encoder. SD3 uses the penultimate layer: here the token and position embeddings."""
    torch.manual_seed(seed)
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name, weight in encoder.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(weight, std=0.3 if "position" in name else 1.0)
    return encoder.eval().requires_grad_(False)


def train_autoencoder(images: torch.Tensor, steps: int, seed: int) -> AutoencoderKL:
    """Train a KL autoencoder, from (3, H, W) to (4, H/2, W/2), with latents of mean 0 and standard deviation 1.

    `images` are float (N, 3, H, W) in [-1, 1].
    """
    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=images.shape[-1],
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    pixels = images[0, 0].numel()
    for step in range(steps):
        batch = images[torch.randint(len(images), (48,))]
        posterior = model.encode(batch).latent_dist
        decoded = model.decode(posterior.sample()).sample
        loss = (
            (decoded - batch).abs().mean() + (decoded - batch).square().mean() + 2e-5 * posterior.kl().mean() / pixels
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"autoencoder {step}/{steps}  loss {loss.item():.4f}", flush=True)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        latents = model.encode(images[:4096]).latent_dist.mode()
    model.register_to_config(
        shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4)
    )
    return model


def make_transformer(world: World, seed: int) -> SD3Transformer2DModel:
    """The untrained transformer: 4 layers of width 128, one image token for 4 x 4 pixels."""
    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=world.height // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=max(world.height, world.width) // 4,
        qk_norm="rms_norm",
    )


def to_tensor(images) -> torch.Tensor:  # noqa: ANN001 - uint8 array (N, H, W, 3)
    """Convert uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    """Write the pipeline directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="shapes")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of the autoencoder")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    world = WORLDS[options.world]
    images, _ = world.dataset(options.images, options.seed + 1)
    autoencoder = train_autoencoder(to_tensor(images), options.steps, options.seed)
    tokenizer = make_tokenizer(world)
    StableDiffusion3Pipeline(
        transformer=make_transformer(world, options.seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=make_text_encoder(tokenizer, options.seed + 1),
        tokenizer=tokenizer,
        text_encoder_2=make_text_encoder(tokenizer, options.seed + 2),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(options.output)
    print(f"written to {options.output} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
