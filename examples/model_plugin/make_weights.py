"""Makes the weights of the example: a tokenizer, a random text encoder, a small autoencoder and the network.

    python examples/model_plugin/make_weights.py

trains on drawn dots for about a minute on two cores, and writes src/tdmr1_dots/weights, a DotsPipeline directory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tdmr1_dots.pipeline import DotsPipeline, DotsTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SIDE, RADIUS = 32, 3.5
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
BRIGHTNESS = {"bright": 1.0, "dim": 0.4}
SHIFT = 3.0
BATCH = 32


def draw(prompt: str, random: np.random.Generator) -> np.ndarray:
    """An image of a prompt such as "two dim dots", with dots that do not touch: (SIDE, SIDE) from 0 to 1."""
    count, brightness, _ = prompt.split()
    centers: list[np.ndarray] = []
    while len(centers) < COUNTS[count]:
        center = random.uniform(RADIUS + 1, SIDE - RADIUS - 1, 2)
        if all(np.linalg.norm(center - other) > 2.5 * RADIUS for other in centers):
            centers.append(center)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    distance = np.min([np.hypot(rows - row, columns - column) for row, column in centers], axis=0)
    return BRIGHTNESS[brightness] * np.clip(RADIUS + 0.5 - distance, 0, 1)


def make_tokenizer(prompts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, trained on the prompts. It reads 8 tokens."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(prompts, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=8)


def make_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """A random CLIP text encoder of one layer. It is not trained: different words have different embeddings."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            initializer_factor=20.0,
            bos_token_id=None,
            eos_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def train(parameters: list[torch.nn.Parameter], steps: int, loss_of_step) -> None:  # noqa: ANN001
    """Minimize the loss that `loss_of_step()` returns."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        loss = loss_of_step()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


def train_autoencoder(images: torch.Tensor, steps: int) -> AutoencoderKL:
    """An autoencoder of images (N, 3, SIDE, SIDE) from -1 to 1, with latents (4, SIDE / 2, SIDE / 2)."""
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )

    def loss_of_step() -> torch.Tensor:
        batch = images[torch.randint(len(images), (BATCH // 2,))]
        posterior = autoencoder.encode(batch).latent_dist
        decoded = autoencoder.decode(posterior.sample()).sample
        return (decoded - batch).abs().mean() + 1e-4 * posterior.kl().mean() / batch[0].numel()

    train(list(autoencoder.parameters()), steps, loss_of_step)
    with torch.no_grad():
        latents = autoencoder.encode(images[:256]).latent_dist.mean
    autoencoder.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4), shift_factor=round(latents.mean().item(), 4)
    )
    return autoencoder.eval()


def train_network(pipeline: DotsPipeline, images: torch.Tensor, prompts: list[str], steps: int) -> None:
    """Flow matching: the network predicts v = eps - x_0 at random noise levels; a tenth of the prompts is empty."""
    settings, device = pipeline.vae.config, torch.device("cpu")
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mean
        latents = (latents - settings.shift_factor) * settings.scaling_factor
        texts = pipeline.encode_prompt([*prompts, ""], device)

    def loss_of_step() -> torch.Tensor:
        rows = torch.randint(len(latents), (BATCH,))
        clean, noise, uniform = latents[rows], torch.randn(BATCH, *latents.shape[1:]), torch.rand(BATCH)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        level = sigma.view(-1, 1, 1, 1)
        named = torch.where(torch.rand(BATCH) < 0.1, len(prompts), rows % len(prompts))
        found = pipeline.transformer((1 - level) * clean + level * noise, 1000 * sigma, texts[named])
        return (found - (noise - clean)).square().mean()

    train(list(pipeline.transformer.parameters()), steps, loss_of_step)


def main() -> None:
    """Make everything and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "src" / "tdmr1_dots" / "weights")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--autoencoder-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    prompts = (HERE / "prompts.txt").read_text().splitlines()
    drawn = np.stack([draw(prompts[number % len(prompts)], random) for number in range(options.images)])
    images = torch.tensor(2 * drawn - 1, dtype=torch.float32).unsqueeze(1).repeat(1, 3, 1, 1)
    tokenizer = make_tokenizer(prompts)
    pipeline = DotsPipeline(
        transformer=DotsTransformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=train_autoencoder(images, options.autoencoder_steps),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
    )
    train_network(pipeline, images, prompts, options.steps)
    pipeline.transformer.eval()
    pipeline.save_pretrained(options.output)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
