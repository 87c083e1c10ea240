"""Compare the time of an iteration of the published trainer's sequence of network calls with that of tdmr1.

    python benchmarks/published_sequence.py                             # the embedded model, preset tiny, 10 pairs
    python benchmarks/published_sequence.py --preset ocr --pairs 3      # the published settings for OCR
    python benchmarks/published_sequence.py --model random-100m --pairs 3 --set batch.groups=1 --set batch.group_size=8
    python benchmarks/published_sequence.py --compile                   # both with torch.compile

`PublishedTrainer` restates what the authors' trainer calls, with plain diffusers and PEFT: every role is an adapter of
one network, `set_adapter` is called before each forward pass, the velocity of the generator is computed again for the
fake score, and every loss is followed by its backward pass. Both sides use the same network, images, micro-batches, M,
numbers of updates, decoder and reward, on the same device and with the same number of threads. The published trainer
takes one optimizer step of each role per iteration and clips one joint norm. Both sides follow the other settings, such
as surrogate.updates.

One iteration of each alternates in one process; the first pair is a warm-up. Printed are the seconds and the ratio
published / tdmr1 of every pair, the median, and the rows that each side sends through the network: without and with
gradient. A ratio above 1 means that tdmr1 is faster. A run begins with the seconds per row of the restated network call
and of plain diffusers and PEFT, so that a restatement that became slow is seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tdmr1_core.build.parts import Parts, apply_memory_settings, build_roles, load_parts
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import parse_assignments, read_preset, resolve
from tdmr1_core.distributed import ALONE, set_threads
from tdmr1_core.engine import Engine
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.roles import GENERATOR
from tdmr1_core.preflight.resolved import resolve_engine

Texts = tuple[Tensor, ...]
"""Token embeddings (B, L, D) and pooled embeddings (B, P)."""
ROLES = ("generator", "fake", "surrogate", "old_surrogate", "generator_ema")
TRAINED = ROLES[:3]
RANDOM_100M = {"num_layers": 11, "num_attention_heads": 8, "attention_head_dim": 64, "caption_projection_dim": 512}
"""Changes of the config of the embedded denoiser that make it an SD3 of about 100 million parameters."""
TIMED_PASSES = 7
"""Repetitions of the comparison with plain diffusers and PEFT. The fastest counts."""


@dataclass
class Rows:
    """Rows that went through the network."""

    without_gradient: int = 0
    with_gradient: int = 0

    def count(self, network: nn.Module, positional: Any, named: dict[str, Any]) -> None:
        """A hook before each forward pass."""
        rows = len(named["hidden_states"])
        if torch.is_grad_enabled():
            self.with_gradient += rows
        else:
            self.without_gradient += rows

    @property
    def cost(self) -> int:
        """In forward passes of a row, if a backward pass costs two."""
        return self.without_gradient + 3 * self.with_gradient


@contextmanager
def counting(network: nn.Module) -> Iterator[Rows]:
    """Count the rows that go through a network."""
    rows = Rows()
    hook = network.register_forward_pre_hook(rows.count, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def column(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


@dataclass
class PublishedTrainer:
    """The published sequence of network calls for one iteration (algorithm: one optimizer step per role)."""

    network: Any
    backbone: PipelineBackbone
    """Decodes latents and encodes prompts."""
    engine: Engine
    """Draws the groups and scores the images."""
    config: RunConfig
    sigmas: Tensor
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    disabled: bool = False

    def __post_init__(self) -> None:
        for name in TRAINED:
            settings = getattr(self.config, name)
            self.optimizers[name] = torch.optim.AdamW(
                self.weights(name), lr=settings.learning_rate, betas=(settings.beta1, 0.999), weight_decay=1e-4
            )

    def weights(self, role: str) -> list[nn.Parameter]:
        """The parameters of an adapter."""
        return [weight for name, weight in self.network.named_parameters() if f".{role}." in name]

    def velocity(self, role: str | None, latents: Tensor, level: Tensor, texts: Texts) -> Tensor:
        """One forward pass with the adapter of a role; None is the frozen network."""
        if role is None:
            self.network.disable_adapters()
            self.disabled = True
        else:
            if self.disabled:
                self.network.enable_adapters()
                self.disabled = False
            self.network.set_adapter(role)
        return network_call(self.network, latents, level, texts)

    def guided(
        self, role: str | None, latents: Tensor, level: Tensor, texts: Texts, scale: float
    ) -> tuple[Tensor, ...]:
        """The conditional velocity, the unconditional one, and the guided one, from one pass of both branches."""
        empty = self.backbone.unconditional
        both = tuple(
            torch.cat([part, one.expand(len(part), *one.shape[1:])])
            for part, one in zip(texts, (empty.embeddings, empty.pooled), strict=True)
        )
        found = self.velocity(role, latents.repeat(2, 1, 1, 1), level.repeat(2), both)
        conditional, unconditional = found.chunk(2)
        return conditional, unconditional, unconditional + scale * (conditional - unconditional)

    def iteration(self) -> None:
        """Rollout, rewards, advantages, and all updates."""
        engine, config = self.engine, self.config
        groups = engine.next_groups()
        conditioning = engine.conditioning(groups.prompts).select(groups.group_of_image)
        texts = (conditioning.embeddings, conditioning.pooled)
        size = config.batch.micro_batch if isinstance(config.batch.micro_batch, int) else groups.images
        parts = [slice(first, first + size) for first in range(0, groups.images, size)]
        trajectory = [self.rollout(tuple(text[part] for text in texts)) for part in parts]
        scoring = engine.scoring
        assert scoring is not None
        for latents in trajectory:
            scoring.submit(groups, self.backbone.decode(latents[-1]))
        advantages = self.advantages(scoring.collect().total).to(trajectory[0])
        chosen = torch.randperm(len(self.sigmas) - 1)[: config.timesteps.per_iteration].tolist()
        for step in chosen:
            for latents, part in zip(trajectory, parts, strict=True):
                prompts = tuple(text[part] for text in texts)
                for _ in range(config.fake.updates):
                    self.train_fake(latents, prompts, step, len(chosen) * len(parts))
                for _ in range(config.surrogate.updates):
                    self.train_surrogate(latents, prompts, advantages[part], len(chosen) * len(parts))
                self.train_generator(latents, prompts, step, len(chosen) * len(parts))
        self.step()

    @torch.no_grad()
    def rollout(self, texts: Texts) -> Tensor:
        """K steps without guidance, (K+1, B, C, H, W)."""
        shape = self.backbone.latent_shape(*self.engine.size)
        latents = [torch.randn(len(texts[0]), *shape, device=texts[0].device)]
        for now, after in zip(self.sigmas[:-1], self.sigmas[1:], strict=True):
            level = now.to(latents[0]).expand(len(latents[0]))
            latents.append(latents[-1] - (now - after) * self.velocity("generator", latents[-1], level, texts))
        return torch.stack(latents)

    def advantages(self, scores: Tensor) -> Tensor:
        """(r - group mean) / (global std + 1e-4), clipped to ±5."""
        grouped = scores.view(-1, self.config.batch.group_size)
        return ((grouped - grouped.mean(1, keepdim=True)) / (scores.std() + 1e-4)).clamp(-5, 5).flatten()

    def noised(self, point: Tensor, sigma: Tensor, lower: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_tau, tau, and the factors alpha and beta, with tau drawn per image above `lower`."""
        shift = self.engine.shift
        start = lower / (shift - (shift - 1) * lower) + 0.02
        uniform = start + (1 - start) * torch.rand(len(point), device=point.device)
        tau = shift * uniform / (1 + (shift - 1) * uniform)
        alpha = (1 - tau) / (1 - sigma)
        beta = (tau.square() - (sigma * alpha).square()).sqrt()
        size = self.config.batch.group_size
        shared = torch.randn(len(point) // size, *point.shape[1:], device=point.device).repeat_interleave(size, 0)
        return column(alpha) * point + column(beta) * shared, tau, alpha, beta

    def train_fake(self, latents: Tensor, texts: Texts, step: int, parts: int) -> None:
        """Five passes an image: generator, teacher, and the fake score with its backward pass."""
        start, now, after = latents[step], self.sigmas[step].to(latents), self.sigmas[step + 1].to(latents)
        with torch.no_grad():
            velocity = self.velocity("generator", start, now.expand(len(start)), texts)
            clean, point = start - now * velocity, start - (now - after) * velocity
            renoised, tau, *_ = self.noised(point, after, float(after))
            teacher = self.velocity(None, renoised, tau, texts)
        fake = self.velocity("fake", renoised, tau, texts)
        target = (renoised - clean) / column(tau)
        loss = (fake - target).square().mean() + 0.02 * (fake - teacher).square().mean()
        (loss / parts).backward()

    def train_surrogate(self, latents: Tensor, texts: Texts, advantages: Tensor, parts: int) -> None:
        """Five passes an image: reference, moving average, and the surrogate with its backward pass."""
        settings, steps = self.config.surrogate, len(self.sigmas) - 1
        boundary = int(torch.multinomial(torch.arange(1.0, steps + 1), 1))
        point, sigma = latents[boundary + 1], self.sigmas[boundary + 1].to(latents)
        renoised, tau, alpha, beta = self.noised(point, sigma, max(float(sigma), settings.tau_min))
        noise = (renoised - column(alpha) * point) / column(beta)
        target = -point / (1 - sigma) + noise * column((tau + sigma**2 * alpha / (1 - sigma)) / beta)
        with torch.no_grad():
            reference = self.velocity(None, renoised, tau, texts)
            old = None
            if settings.trust_region is not None:
                old = (self.velocity("old_surrogate", renoised, tau, texts) - target).square().mean((1, 2, 3))
        found = self.velocity("surrogate", renoised, tau, texts)
        loss = (found - target).square().mean((1, 2, 3))
        with torch.no_grad():
            margin = advantages * settings.beta_dpo * (loss - (reference - target).square().mean((1, 2, 3)))
            size = self.config.batch.group_size
            weight = margin.view(-1, size).mean(1).sigmoid().repeat_interleave(size)
            kept = torch.ones_like(loss)
            if old is not None and settings.trust_region is not None:
                ratio, clip = (old - loss).exp(), settings.trust_region
                kept = 1 - torch.where(advantages > 0, ratio > 1 + clip, ratio < 1 - clip).to(loss)
        drift = (found - reference).square().mean((1, 2, 3))
        total = (boundary + 1) / steps * (weight * advantages * loss * kept + settings.reference_penalty * drift)
        (total.mean() / parts).backward()

    def train_generator(self, latents: Tensor, texts: Texts, step: int, parts: int) -> None:
        """Nine passes an image: generator with its backward pass, teacher twice, fake, reference, surrogate twice."""
        settings = self.config.generator
        start, now, after = latents[step], self.sigmas[step].to(latents), self.sigmas[step + 1].to(latents)
        velocity = self.velocity("generator", start, now.expand(len(start)), texts)
        clean = start - now * velocity
        with torch.no_grad():
            point = start - (now - after) * velocity
            renoised, tau, *_ = self.noised(point, after, float(after))
            rewarded, tau_reward, *_ = self.noised(point, after, max(float(after), settings.tau_min))
            conditional, unconditional, guided = self.guided(None, renoised, tau, texts, settings.guidance_scale)
            fake = self.velocity("fake", renoised, tau, texts)
            reference = self.velocity(None, rewarded, tau_reward, texts)
            *_, surrogate = self.guided("surrogate", rewarded, tau_reward, texts, settings.rl_cfg)
            level, level_reward = column(tau), column(tau_reward)
            d_kl = level * (fake - conditional)
            d_cfg = (settings.guidance_scale - 1) * level * (unconditional - conditional)
            d_reward = level_reward * (reference - surrogate)
            width = (clean - (renoised - level * guided)).abs().mean((1, 2, 3)).clamp_min(1e-5)
            width_reward = (clean - (rewarded - level_reward * surrogate)).abs().mean((1, 2, 3)).clamp_min(1e-5)

        def pulled(direction: Tensor, normaliser: Tensor) -> Tensor:
            return ((clean - (clean + direction).detach()).square().mean((1, 2, 3)) / normaliser).mean()

        weight = settings.tdm_weight
        loss = weight * pulled(d_cfg, width) + pulled(d_kl, width)
        loss = loss + (1 - weight) * settings.reward_scale * pulled(d_reward, width_reward)
        (loss / parts).backward()

    def step(self) -> None:
        """Clip one joint norm, take one step of every optimizer, and update both moving averages."""
        torch.nn.utils.clip_grad_norm_(list(chain.from_iterable(map(self.weights, TRAINED))), 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for average, role, decay in (("old_surrogate", "surrogate", 0.3), ("generator_ema", "generator", 0.9)):
                for mean, weight in zip(self.weights(average), self.weights(role), strict=True):
                    mean.lerp_(weight, 1 - decay)


def network_call(network: Any, latents: Tensor, level: Tensor, texts: Texts) -> Tensor:
    """A forward pass of an SD3 denoiser of diffusers: velocity (B, C, H, W) at noise levels (B,)."""
    found: Tensor = network(
        hidden_states=latents,
        timestep=level * 1000,
        encoder_hidden_states=texts[0],
        pooled_projections=texts[1],
        return_dict=False,
    )[0]
    return found


def plain_network(network: nn.Module, shape: LoraShape) -> Any:
    """A copy of a frozen network with an adapter of PEFT for each role."""
    copied: Any = deepcopy(network).requires_grad_(False)
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    for role in ROLES:
        copied.add_adapter(shape.peft("gaussian"), adapter_name=role)
    for name, weight in copied.named_parameters():
        if "lora_" in name:
            weight.requires_grad_(any(f".{role}." in name for role in TRAINED))
    return copied


def build(
    model: str, config: RunConfig, *, compiled: bool, ours_only: tuple[str, ...]
) -> tuple[PublishedTrainer, Engine]:
    """Both trainers, on the same frozen weights."""
    own = resolve([config.model_dump(), parse_assignments(ours_only)])
    device = ALONE.device(config.model.device)
    resolved = resolve_engine(own)
    parts = load_parts(resolved, None, device)
    backbone: Any = parts.roles.backbone
    shape = parts.roles.shape
    if model == "random-100m":
        torch.manual_seed(0)
        transformer = type(backbone.network)(**{**backbone.network.config, **RANDOM_100M})
        for weight in transformer.parameters():  # the last layers are zero in a new network
            nn.init.normal_(weight, std=0.02)
    else:
        transformer = type(backbone.network).from_pretrained(parts.model_files.folder / "transformer")  # type: ignore[union-attr]
    transformer = transformer.to(device).requires_grad_(False).eval()
    plain = plain_network(transformer, shape)
    if model == "random-100m":
        backbone.pipeline.transformer = backbone.network = transformer
        roles = build_roles(own, backbone, shape)
        apply_memory_settings(own.memory, roles)
        parts = Parts(parts.entry, roles, parts.prompts, parts.scoring, parts.hooks)
    else:
        start_from(plain, parts.roles.weights(GENERATOR))
    engine = Engine(own, parts)
    if compiled:
        for block in plain.transformer_blocks:
            block.compile()
    return PublishedTrainer(plain, backbone, engine, config, engine.sigmas.float()), engine


@torch.no_grad()
def start_from(network: Any, weights: dict[str, Tensor]) -> None:
    """Load the few-step LoRA into the generator."""
    named = dict(network.named_parameters())
    for name, weight in weights.items():
        layer, kind, _ = name.rsplit(".", 2)
        named[f"{layer}.{kind}.{GENERATOR}.weight"].copy_(weight)


def compare_with_plain(trainer: PublishedTrainer, images: int) -> dict[str, float]:
    """Seconds per row of the restated network calls, and of a plain network with one adapter."""
    network = trainer.network
    shape = trainer.backbone.latent_shape(*trainer.engine.size)
    empty = trainer.backbone.unconditional.expand(images)
    latents = torch.randn(images, *shape, device=trainer.backbone.device)
    level, texts = torch.full((images,), 0.5, device=latents.device), (empty.embeddings, empty.pooled)

    def restated() -> Tensor:
        return trainer.velocity("fake", latents, level, texts)

    def plain() -> Tensor:
        network.set_adapter("fake")
        return network_call(network, latents, level, texts)

    def backward(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: forward().square().mean().backward()

    def without(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return torch.no_grad()(forward)

    calls = {
        "forward, restated": without(restated),
        "forward, plain": without(plain),
        "forward and backward, restated": backward(restated),
        "forward and backward, plain": backward(plain),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TIMED_PASSES):
        for name, call in calls.items():
            times[name].append(timed(call))
    for optimizer in trainer.optimizers.values():
        optimizer.zero_grad()
    return {name: min(found) / images for name, found in times.items()}


def timed(call: Callable[[], object]) -> float:
    """The seconds of a call."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print one line for each pair and a JSON document at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny-tdm", "random-100m"], default="tiny-tdm")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of both")
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=VALUE", help="a setting of tdmr1 only")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of both")
    options = parser.parse_args()
    tree = {"rewards": [{"name": "object_count"}], "model": {"name": "tiny-tdm"}}
    config = resolve([read_preset(options.preset), tree, parse_assignments(options.set)])
    set_threads(options.threads)
    torch.manual_seed(0)
    ours = (*options.ours, *(["memory.compile=true"] if options.compile else []))
    published, engine = build(options.model, config, compiled=options.compile, ours_only=ours)
    network: nn.Module = engine.roles.backbone.network
    parameters = sum(weight.numel() for name, weight in network.named_parameters() if "lora_" not in name)
    print(
        f"{parameters / 1e6:.1f} million parameters, {torch.get_num_threads()} threads, {config.batch.groups} groups "
        f"of {config.batch.group_size} images",
        flush=True,
    )
    passes = compare_with_plain(published, min(96, config.batch.groups * config.batch.group_size))
    for name, seconds in passes.items():
        print(f"{name}: {seconds * 1e3:.3f} ms per row", flush=True)
    warm = {"published": timed(published.iteration), "tdmr1": timed(engine.iteration)}
    print(f"warm-up: published {warm['published']:.2f} s, tdmr1 {warm['tdmr1']:.2f} s", flush=True)
    found: dict[str, list[float]] = {"published": [], "tdmr1": []}
    with counting(published.network) as their_rows, counting(network) as our_rows:
        for pair in range(options.pairs):
            sides = [("published", published.iteration), ("tdmr1", engine.iteration)]
            for name, iteration in sides if pair % 2 else reversed(sides):
                found[name].append(timed(iteration))
            ratio = found["published"][-1] / found["tdmr1"][-1]
            print(
                f"pair {pair + 1}: {found['published'][-1]:.3f} s / {found['tdmr1'][-1]:.3f} s = {ratio:.3f}",
                flush=True,
            )
    ratios = [theirs / own for theirs, own in zip(found["published"], found["tdmr1"], strict=True)]
    document = {
        **vars(options),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "milliseconds_per_row": {name: seconds * 1e3 for name, seconds in passes.items()},
        "warm_up_seconds": warm,
        "median_ratio": statistics.median(ratios),
        "ratios": ratios,
        "rows_per_iteration": {
            name: {
                "without gradient": rows.without_gradient / options.pairs,
                "with gradient": rows.with_gradient / options.pairs,
                "cost in forward passes": rows.cost / options.pairs,
            }
            for name, rows in (("published", their_rows), ("tdmr1", our_rows))
        },
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
