"""A naive implementation of sections 3 to 8 of docs/algorithm.md: one sample at a time, in plain loops.

It shares no formula with tdmr1. Each role is an unmodified diffusers transformer with the merged weights
W + (alpha / r) B A. Only the random draws (`algorithm.seeds`) are those of tdmr1; noise levels are computed here from
the uniform numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

Weights = dict[str, Tensor]
PROMPTS = ("", "a red circle", "two blue squares", "three green rings")
"""The prompts that `encoded` accepts; the first is empty."""

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def tiny_transformer() -> SD3Transformer2DModel:
    """A random SD3.5 network in float64: 2 layers (the first with attn2), 2 heads of width 8, latents (4, 4, 4)."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        for weight in network.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return network.double().eval().requires_grad_(False)


def encoded(prompt: str) -> tuple[Tensor, Tensor]:
    """Token embeddings (3, 12) and pooled embedding (10,) of a prompt."""
    generator = torch.Generator().manual_seed(500 + PROMPTS.index(prompt))
    return (
        torch.randn(3, 12, generator=generator, dtype=torch.float64),
        torch.randn(10, generator=generator, dtype=torch.float64),
    )


def random_lora(network: SD3Transformer2DModel, rank: int, seed: int, size: float = 0.35) -> Weights:
    """A LoRA on every joint attention projection, by canonical name; no weight is zero."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for layer, block in enumerate(network.transformer_blocks):
        for projection in _PROJECTIONS:
            try:
                linear = block.attn.get_submodule(projection)
            except AttributeError:
                continue
            name = f"transformer_blocks.{layer}.attn.{projection}"
            rows, columns = linear.weight.shape
            down = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
            up = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
            weights[f"{name}.lora_A.weight"] = size * down
            weights[f"{name}.lora_B.weight"] = size * up
    return weights


@dataclass(frozen=True)
class Settings:
    """The settings of the losses."""

    loss: str = "squared"
    huber_c: float = 1e-3
    joint_huber: bool = True
    guidance: float = 2.5
    rl_cfg: float = 1.5
    reference: str = "reference"
    trust_region: float | None = None
    drift_threshold: float | None = None
    penalty: float = 0.05
    beta: float = 4.0
    time_weight: bool = True
    tdm_weight: float = 0.3
    reward_scale: float = 1.0
    trunc_steps: int = 4
    floor: float = 1e-4
    teacher_weight: float = 0.02


@dataclass
class Stored:
    """A rollout: the latents[k][i] of step k and image i, the noise levels sigmas[k], and the prompt of every image."""

    latents: Tensor
    sigmas: Sequence[float]
    prompts: Sequence[str]
    group_size: int

    @property
    def images(self) -> int:
        """The number of images N."""
        return len(self.prompts)


@dataclass
class Answer:
    """Mean losses by name, and the gradient of the trained role's weights."""

    losses: dict[str, float]
    gradient: Weights
    clipped: list[bool] = field(default_factory=list)
    drifted: list[bool] = field(default_factory=list)
    floored: int = 0


def shifted(u: float, s: float = 3.0) -> float:
    """The shift S(u) = s u / (1 + (s - 1) u)."""
    return s * u / (1 + (s - 1) * u)


def level(u: float, lower: float, s: float = 3.0) -> float:
    """The noise level tau = S(U[S^-1(lower) + 0.02, 1]) for the uniform number u."""
    start = lower / (s - (s - 1) * lower) + 0.02
    return shifted(start + u * (1 - start), s)


def lifted(x: Tensor, low: float, tau: float, eps: Tensor) -> Tensor:
    """x at noise level `low`, re-noised to tau with the noise eps."""
    alpha = (1 - tau) / (1 - low)
    return alpha * x + math.sqrt(tau**2 - (low * alpha) ** 2) * eps


def mean_square(x: Tensor) -> Tensor:
    """Mean of the squares of one sample."""
    return (x**2).sum() / x.numel()


class Naive:
    """Roles and the three losses, one sample at a time."""

    def __init__(self, network: SD3Transformer2DModel, scale: float, loras: Mapping[str, Weights]) -> None:
        self.network = network
        self.scale = scale
        self.base = dict(network.named_parameters())
        self.loras = {role: dict(weights) for role, weights in loras.items()}

    def velocity(self, role: str, x: Tensor, sigma: float, prompt: str, leaves: Weights | None = None) -> Tensor:
        """The velocity v of a role at one latent (C, H, W), with a gradient only for `leaves`."""
        lora = leaves if leaves is not None else self.loras.get(role, {})
        tokens, pooled = encoded(prompt)
        with nullcontext() if leaves is not None else torch.no_grad():
            merged = dict(self.base)
            for name in lora:
                if name.endswith(".lora_A.weight"):
                    layer = name.removesuffix(".lora_A.weight")
                    merged[f"{layer}.weight"] = self.base[f"{layer}.weight"] + self.scale * (
                        lora[f"{layer}.lora_B.weight"] @ lora[name]
                    )
            inputs = {
                "hidden_states": x[None],
                "timestep": torch.tensor([1000 * sigma], dtype=torch.float64),
                "encoder_hidden_states": tokens[None],
                "pooled_projections": pooled[None],
                "return_dict": False,
            }
            velocity: Tensor = torch.func.functional_call(self.network, merged, (), inputs)[0][0]
            return velocity

    def leaves(self, role: str) -> Weights:
        """Copies of a role's weights that require a gradient."""
        return {name: weight.clone().requires_grad_() for name, weight in self.loras[role].items()}

    def clean(self, role: str, x: Tensor, tau: float, prompt: str) -> Tensor:
        """The x_0 that a role predicts."""
        return x - tau * self.velocity(role, x, tau, prompt)

    def guided_clean(self, role: str, x: Tensor, tau: float, prompt: str, scale: float) -> Tensor:
        """The x_0 that a role predicts with classifier-free guidance."""
        without = self.clean(role, x, tau, "")
        return without + scale * (self.clean(role, x, tau, prompt) - without)

    def rollout(self, noises: Sequence[Tensor], prompts: Sequence[str], sigmas: Sequence[float]) -> Tensor:
        """Section 3: all latents (K+1, N, C, H, W)."""
        columns = []
        for noise, prompt in zip(noises, prompts, strict=True):
            path = [noise]
            for k in range(len(sigmas) - 1):
                v = self.velocity("generator", path[k], sigmas[k], prompt)
                path.append(path[k] - (sigmas[k] - sigmas[k + 1]) * v)
            columns.append(torch.stack(path))
        return torch.stack(columns, 1)

    def fake(
        self, s: Settings, at: Stored, ks: Sequence[int], taus: Sequence[float], noises: Sequence[Tensor], stored: bool
    ) -> Answer:
        """Section 5: the loss of the fake score."""
        leaves = self.leaves("fake")
        total = torch.zeros((), dtype=torch.float64)
        for i in range(at.images):
            k, tau, prompt = ks[i], taus[i], at.prompts[i]
            x, high, low = at.latents[k][i], at.sigmas[k], at.sigmas[k + 1]
            v = (x - at.latents[k + 1][i]) / (high - low) if stored else self.velocity("generator", x, high, prompt)
            x0, point = x - high * v, x - (high - low) * v
            xt = lifted(point, low, tau, noises[i])
            v_fake = self.velocity("fake", xt, tau, prompt, leaves)
            v_teacher = self.velocity("teacher", xt, tau, prompt)
            total = total + mean_square((xt - x0) / tau - v_fake) + s.teacher_weight * mean_square(v_teacher - v_fake)
        return _answer({"loss/fake": total / at.images}, total / at.images, leaves)

    def surrogate(
        self,
        s: Settings,
        at: Stored,
        advantages: Sequence[float],
        ks: Sequence[int],
        taus: Sequence[float],
        noises: Sequence[Tensor],
    ) -> Answer:
        """Section 6: the loss of the surrogate. `noises` has one entry per image; they are equal within a group."""
        leaves = self.leaves("surrogate")
        steps = len(at.sigmas) - 1
        total = torch.zeros((), dtype=torch.float64)
        clipped, drifted, drifts = [], [], []
        for g in range(at.images // at.group_size):
            members = range(g * at.group_size, (g + 1) * at.group_size)
            losses, reference_losses, distances, old_losses = {}, {}, {}, {}
            for i in members:
                k, tau, prompt = ks[i], taus[i], at.prompts[i]
                low, point, eps = at.sigmas[k + 1], at.latents[k + 1][i], noises[i]
                alpha = (1 - tau) / (1 - low)
                beta = math.sqrt(tau**2 - low**2 * alpha**2)
                xt = lifted(point, low, tau, eps)
                target = -point / (1 - low) + eps / beta * (tau + low**2 * alpha / (1 - low))
                v = self.velocity("surrogate", xt, tau, prompt, leaves)
                v_ref = self.velocity(s.reference, xt, tau, prompt)
                v_old = self.velocity("surrogate_ema", xt, tau, prompt)
                losses[i], distances[i] = mean_square(target - v), mean_square(v - v_ref)
                reference_losses[i], old_losses[i] = mean_square(target - v_ref), mean_square(target - v_old)
            margin = sum(advantages[i] * s.beta * (losses[i].item() - reference_losses[i].item()) for i in members)
            weight = 1 / (1 + math.exp(-margin / at.group_size))
            for i in members:
                a, ratio = advantages[i], math.exp(old_losses[i].item() - losses[i].item())
                clip = s.trust_region is not None and (
                    ratio > 1 + s.trust_region if a > 0 else ratio < 1 - s.trust_region
                )
                gain = reference_losses[i].item() - losses[i].item()
                far = s.drift_threshold is not None and distances[i].item() > s.drift_threshold
                past = far and (gain > 0 if a > 0 else gain < 0)
                preference = 0.0 * losses[i] if clip or past else weight * a * losses[i]
                factor = (ks[i] + 1) / steps if s.time_weight else 1.0
                total = total + factor * (preference + s.penalty * distances[i])
                clipped.append(clip)
                drifted.append(past)
                drifts.append(distances[i].item())
        seen = {
            "loss/preference": (total / at.images).item(),
            "surrogate/clipped": sum(clipped) / at.images,
            "surrogate/drifted": sum(drifted) / at.images,
            "surrogate/drift": sum(drifts) / at.images,
        }
        gradient = _gradient(total / at.images, leaves)
        return Answer(seen, gradient, clipped, drifted)

    def implicit(
        self, s: Settings, at: Stored, k: int, taus: Sequence[float], noises: Sequence[Tensor]
    ) -> tuple[list[float], list[Tensor]]:
        """Section 6: the implicit reward after step k of every image, and x_0 of the surrogate - x_0 of p_ref."""
        rewards, directions = [], []
        low = at.sigmas[k + 1]
        for i in range(at.images):
            point, tau, eps, prompt = at.latents[k + 1][i], taus[i], noises[i], at.prompts[i]
            alpha = (1 - tau) / (1 - low)
            beta = math.sqrt(tau**2 - low**2 * alpha**2)
            target = -point / (1 - low) + eps / beta * (tau + low**2 * alpha / (1 - low))
            xt = lifted(point, low, tau, eps)
            error = mean_square(target - self.velocity("surrogate", xt, tau, prompt)).item()
            reference_error = mean_square(target - self.velocity(s.reference, xt, tau, prompt)).item()
            rewards.append(s.beta * (reference_error - error))
            directions.append(self.clean("surrogate", xt, tau, prompt) - self.clean(s.reference, xt, tau, prompt))
        return rewards, directions

    def generator(
        self,
        s: Settings,
        at: Stored,
        ks: Sequence[int],
        taus: Sequence[float],
        taus_reward: Sequence[float],
        noises: Sequence[Tensor],
        noises_reward: Sequence[Tensor],
        distil: bool = False,
    ) -> Answer:
        """Section 7: the loss of the generator; with `distil`, the loss of its last paragraph."""
        leaves = self.leaves("generator")
        sums = {name: torch.zeros((), dtype=torch.float64) for name in ("generator", "kl", "cfg", "reward")}
        floored = 0
        for i in range(at.images):
            k, tau, tau_r, prompt = ks[i], taus[i], taus_reward[i], at.prompts[i]
            x, high, low = at.latents[k][i], at.sigmas[k], at.sigmas[k + 1]
            v = self.velocity("generator", x, high, prompt, leaves)
            x0 = x - high * v
            point = (x - (high - low) * v).detach()
            xt, xr = lifted(point, low, tau, noises[i]), lifted(point, low, tau_r, noises_reward[i])

            teacher, without = self.clean("teacher", xt, tau, prompt), self.clean("teacher", xt, tau, "")
            guided = without + s.guidance * (teacher - without)
            d_kl = teacher - self.clean("fake", xt, tau, prompt)
            d_cfg = (s.guidance - 1) * (teacher - without)
            w = (x0.detach() - guided).abs().mean().item()
            floored += w < s.floor
            w = max(w, s.floor)
            if distil:
                total = _pull(s, x0, guided - self.clean("fake", xt, tau, prompt), w)
                sums["generator"], sums["kl"] = sums["generator"] + total, sums["kl"] + total
                continue
            kl, cfg = _pull(s, x0, d_kl, w), _pull(s, x0, d_cfg, w)
            if s.loss == "huber":
                cfg = (s.guidance - 1) * cfg
            reward = torch.zeros((), dtype=torch.float64)
            if s.reward_scale > 0 and k < s.trunc_steps:
                surrogate = self.guided_clean("surrogate", xr, tau_r, prompt, s.rl_cfg)
                d_reward = surrogate - self.clean(s.reference, xr, tau_r, prompt)
                w_reward = (x0.detach() - surrogate).abs().mean().item()
                floored += w_reward < s.floor
                reward = _pull(s, x0, d_reward, max(w_reward, s.floor))
            if k < s.trunc_steps:
                total = s.tdm_weight * cfg + (1 - s.tdm_weight) * s.reward_scale * reward + kl
            elif s.loss == "squared" or not s.joint_huber:
                total = s.tdm_weight * (cfg + kl)
            else:
                total = s.tdm_weight * _pull_both(s, x0, d_cfg, d_kl, w)
            for name, value in (("generator", total), ("kl", kl), ("cfg", cfg), ("reward", reward)):
                sums[name] = sums[name] + value
        means = {f"loss/{name}": value / at.images for name, value in sums.items()}
        answer = _answer(means, means["loss/generator"], leaves)
        answer.floored = floored
        return answer


def _pull(s: Settings, x0: Tensor, d: Tensor, w: float) -> Tensor:
    """The loss L(d) of one sample."""
    goal = (x0 + d).detach()
    if s.loss == "squared":
        return mean_square(goal - x0) / w
    return torch.mean((torch.sqrt((goal - x0) ** 2 + s.huber_c**2) - s.huber_c) / w)


def _pull_both(s: Settings, x0: Tensor, d_cfg: Tensor, d_kl: Tensor, w: float) -> Tensor:
    """The Huber loss of one sample at k >= trunc_steps: the length of both errors and c, element by element."""
    sides = torch.stack([x0 - (x0 + d_cfg).detach(), x0 - (x0 + d_kl).detach(), torch.full_like(x0, s.huber_c)])
    return (sides.norm(dim=0) - s.huber_c).sum() / (w * x0.numel())


def _gradient(loss: Tensor, leaves: Weights) -> Weights:
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def _answer(losses: Mapping[str, Tensor], total: Tensor, leaves: Weights) -> Answer:
    return Answer({name: loss.item() for name, loss in losses.items()}, _gradient(total, leaves))


def advantages(rewards: Sequence[float], group_size: int, clip: float) -> list[float]:
    """Section 4 with the deviation of the whole batch. All rewards must be valid, and differ within each group."""
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))
    result: list[float] = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        centre = math.fsum(group) / group_size
        clipped = [max(-clip, min(clip, (r - centre) / (deviation + 1e-4))) for r in group]
        middle = math.fsum(clipped) / group_size
        result += [a - middle for a in clipped]
    return result


class NaiveAdamW:
    """AdamW with decoupled weight decay, bias correction and clipping of the gradient norm."""

    def __init__(self, lr: float, beta1: float, beta2: float, eps: float, decay: float, norm: float) -> None:
        self.lr, self.beta1, self.beta2, self.eps, self.decay, self.norm = lr, beta1, beta2, eps, decay, norm
        self.count = 0
        self.first: Weights = {}
        self.second: Weights = {}

    def step(self, weights: Weights, gradient: Weights, lr_scale: float) -> Weights:
        """The weights after one step."""
        self.count += 1
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
        factor, lr, moved = min(1.0, self.norm / (norm + 1e-6)), self.lr * lr_scale, {}
        for name, weight in weights.items():
            g = gradient[name] * factor
            self.first[name] = self.beta1 * self.first.get(name, 0.0) + (1 - self.beta1) * g
            self.second[name] = self.beta2 * self.second.get(name, 0.0) + (1 - self.beta2) * g**2
            m = self.first[name] / (1 - self.beta1**self.count)
            v = self.second[name] / (1 - self.beta2**self.count)
            moved[name] = weight * (1 - lr * self.decay) - lr * m / (v.sqrt() + self.eps)
        return moved
