"""Step 2 of the embedded model: pretrain the multi-step teacher with flow matching on captions with errors.

    python examples/tiny_world/pretrain.py --base build/tiny-world/base --output build/tiny-world/teacher --minutes 42

trains for the given time (with a cosine learning-rate schedule over it) and writes a StableDiffusion3Pipeline directory
with the averaged weights. The state is saved every minute, and the same command continues an interrupted training.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from base import to_tensor
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from worlds import WORLDS, World

EMA_DECAY = 0.9985
CAPTION_DROPOUT = 0.1
STATE_FILE, PROGRESS_FILE = "state.safetensors", "progress.json"


class Muon(torch.optim.Optimizer):
    """Muon: momentum orthogonalized by Newton-Schulz, in float32. torch's version uses bfloat16: slow without AMX."""

    def __init__(self, params, lr: float, momentum: float = 0.95) -> None:  # noqa: ANN001
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Make one update. Its root mean square is 0.2 times the learning rate, similar to AdamW."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                ahead = [w.grad.lerp(self.state[w]["momentum"], group["momentum"]) for w in weights]
                scale = -0.2 * math.sqrt(max(shape)) * group["lr"]
                for weight, update in zip(weights, orthogonalize(torch.stack(ahead)), strict=True):
                    weight.add_(update, alpha=scale)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices (N, rows, columns), with the quintic Newton-Schulz iteration of Muon."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def encode_data(pipeline: StableDiffusion3Pipeline, world: World, size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Latents (N, 4, H/2, W/2), their caption indices (N,), and embeddings and pooled embeddings of all captions."""
    images, captions = world.dataset(size, seed)
    vae = pipeline.vae
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in to_tensor(images).split(512)])
        known = ["", *world.captions()]
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            known, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
    index_of = {text: index for index, text in enumerate(known)}
    indices = torch.tensor([index_of[text] for text in captions])
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor, indices, embeddings, pooled


def make_optimizers(model: torch.nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for all other parameters."""
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and name.startswith("transformer_blocks")]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen and weight.requires_grad]
    return [Muon(matrices, muon_lr), torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.99), weight_decay=0.0)]


def save_state(folder: Path, progress: dict, model, averaged, optimizers) -> None:  # noqa: ANN001
    """Write weights, averages and optimizer states as safetensors, and replace the previous state atomically."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in averaged.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / "state.tmp")
    os.replace(folder / "state.tmp", folder / STATE_FILE)
    (folder / PROGRESS_FILE).write_text(json.dumps(progress))


def load_state(folder: Path, model, optimizers) -> tuple[dict, dict[str, torch.Tensor]]:  # noqa: ANN001
    """Restore a saved state; returns the progress and the averaged weights."""
    tensors = load_file(folder / STATE_FILE)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                _, _, index, name = key.split(".", 3)
                state["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(state)
    averaged = {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
    return json.loads((folder / PROGRESS_FILE).read_text()), averaged


def main() -> None:
    """Train for the given time, and save regularly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="shapes")
    parser.add_argument("--base", type=Path, required=True, help="directory written by base.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=42.0, help="total training time, over all calls")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    pipeline = StableDiffusion3Pipeline.from_pretrained(options.base, text_encoder_3=None, tokenizer_3=None)
    latents, captions, embeddings, pooled = encode_data(
        pipeline, WORLDS[options.world], options.images, options.seed + 1
    )
    model = pipeline.transformer.train()
    optimizers = make_optimizers(model, options.muon_lr, options.adam_lr)
    progress = {"step": 0, "seconds": 0.0, "loss": 1.0}
    averaged = {k: v.clone() for k, v in model.state_dict().items()}
    if (options.output / STATE_FILE).exists():
        progress, averaged = load_state(options.output, model, optimizers)
        print(f"continuing at step {progress['step']}", flush=True)

    budget, saved = options.minutes * 60, time.monotonic()
    while progress["seconds"] < budget:
        started = time.monotonic()
        fraction = progress["seconds"] / budget
        scale = min(1.0, progress["step"] / 100 + 0.01) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))
        for optimizer, rate in zip(optimizers, (options.muon_lr, options.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + progress["step"])
        rows = torch.randint(len(latents), (options.batch,), generator=rng)
        words = captions[rows].masked_fill(torch.rand(options.batch, generator=rng) < CAPTION_DROPOUT, 0)
        sigma = torch.sigmoid(0.4 + 1.2 * torch.randn(options.batch, generator=rng))
        sigma = torch.where(torch.rand(options.batch, generator=rng) < 0.08, torch.ones(()), sigma)
        noise = torch.randn(latents[rows].shape, generator=rng)
        mix = sigma.view(-1, 1, 1, 1)
        velocity = model(
            hidden_states=(1 - mix) * latents[rows] + mix * noise,
            timestep=1000 * sigma,
            encoder_hidden_states=embeddings[words],
            pooled_projections=pooled[words],
            return_dict=False,
        )[0]
        loss = (velocity - (noise - latents[rows])).square().mean()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(EMA_DECAY, (1 + progress["step"]) / (10 + progress["step"]))
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                averaged[name].lerp_(weight, 1 - decay)
        progress["step"] += 1
        progress["loss"] = 0.98 * progress["loss"] + 0.02 * loss.item()
        progress["seconds"] += time.monotonic() - started
        if progress["step"] % 50 == 0:
            print(f"step {progress['step']}  loss {progress['loss']:.4f}  {progress['seconds']:.0f} s", flush=True)
        if time.monotonic() - saved > 60 or progress["seconds"] >= budget:
            save_state(options.output, progress, model, averaged, optimizers)
            saved = time.monotonic()

    model.load_state_dict(averaged)
    pipeline.save_pretrained(options.output / "pipeline")
    print(f"{progress['step']} steps in {progress['seconds']:.0f} s, loss {progress['loss']:.4f}")


if __name__ == "__main__":
    main()
