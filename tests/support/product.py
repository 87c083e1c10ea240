"""An engine on the tiny random SD3 network of `support.naive`, with tdmr1's real backbone, roles and stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pluggy
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from support.naive import PROMPTS, Weights, encoded, random_lora, tiny_transformer
from tdmr1_core import hookspecs
from tdmr1_core.build.parts import Parts, merges_loras
from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.engine import Engine
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.models.roles import FAKE, GENERATOR, GENERATOR_EMA, SURROGATE, SURROGATE_EMA, Roles
from tdmr1_core.models.sd3 import SD3Backbone
from tdmr1_core.plugins import Hooks
from tdmr1_core.records import Advantages, Conditioning, Groups, Prompt, Trajectory
from tdmr1_core.stages.scoring import ScoringStage
from tdmr1_rewards.api import Reward, RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.hookspecs import hookimpl
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import RewardRunner

RANK, ALPHA = 2, 3.0
TARGETS = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
LORA_SEEDS = {GENERATOR: 1, FAKE: 2, SURROGATE: 3, GENERATOR_EMA: 4, SURROGATE_EMA: 5}


class TinyVae(nn.Module):
    """Decodes the first three latent channels as RGB; one latent becomes 2 x 2 pixels."""

    config = SimpleNamespace(scaling_factor=2.0, shift_factor=0.1)

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        """(B, 3, 2H, 2W) in about [-1, 1]."""
        return (latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3),)


class TinyPipeline:
    """The parts of a StableDiffusion3Pipeline that SD3Backbone uses."""

    def __init__(self) -> None:
        self.transformer = tiny_transformer()
        self.vae = TinyVae()
        self.text_encoder, self.text_encoder_2, self.text_encoder_3 = nn.Identity(), nn.Identity(), None
        self.scheduler = SimpleNamespace(config=FrozenDict(shift=3.0))
        self.image_processor = self
        self.vae_scale_factor = 2

    def encode_prompt(self, prompts: Sequence[str], *_: Any, **__: Any) -> tuple[Tensor, None, Tensor, None]:
        """The fixed random embeddings of the prompts."""
        tokens, pooled = zip(*[encoded(prompt) for prompt in prompts], strict=True)
        return torch.stack(tokens), None, torch.stack(pooled), None

    def postprocess(self, pixels: Tensor, output_type: str) -> np.ndarray:
        """Pixels in [-1, 1] to an array in [0, 1], channels last."""
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def make_backbone(precision: torch.dtype = torch.float64) -> SD3Backbone:
    """The real SD3 backbone on TinyPipeline, in float64 by default."""
    return SD3Backbone(TinyPipeline(), device=torch.device("cpu"), precision=precision, max_sequence_length=0)


def make_roles(surrogate: bool = True, *, merged: bool = True) -> Roles:
    """Roles with different random LoRAs; no weight is zero."""
    trained = (GENERATOR, FAKE, SURROGATE) if surrogate else (GENERATOR, FAKE)
    averaged = (GENERATOR_EMA, SURROGATE_EMA) if surrogate else (GENERATOR_EMA,)
    roles = Roles(make_backbone(), LoraShape(RANK, ALPHA, TARGETS), trained, averaged, seed=0, merged=merged)
    for role, weights in start_loras().items():
        if role in (*trained, *averaged):
            roles.load(role, weights, role)
    return roles


def start_loras() -> dict[str, Weights]:
    """The weights that `make_roles` gives to each role."""
    network = tiny_transformer()
    return {role: random_lora(network, RANK, seed) for role, seed in LORA_SEEDS.items()}


def make_engine(
    sections: Mapping[str, Mapping[str, Any]], *, reward: Reward | None = None, plugin: object | None = None, **top: Any
) -> Engine:
    """An engine with these config sections. It scores images with `reward` and calls the hooks of `plugin`."""
    named = () if top.get("kind") == "distill" else (RewardConfig(name="probe"),)
    config = RunConfig.model_validate({"rewards": named, **top, **sections})
    manager = pluggy.PluginManager("tdmr1")
    manager.add_hookspecs(hookspecs)
    if plugin is not None:
        manager.register(plugin)
    scoring = None
    if reward is not None:
        spec = RewardSpec(name="probe", summary="", factory="a:b", default_prompts="x", image_format="array")
        active = ActiveReward("probe", 1.0, spec, reward, Provenance("p", "p", "1", "p"))
        scoring = ScoringStage(RewardRunner([active], "weighted_sum", 1), run_folder=None, seed=config.seed)
    entry = ModelEntry("t", "", "sd3", "", None, "tiny", height=8, width=8, rank=RANK, alpha=ALPHA, targets=TARGETS)
    prompts = [Prompt(text, {"text": text}) for text in PROMPTS[1:]]
    roles = make_roles(config.kind == "train", merged=merges_loras(config))
    return Engine(config, Parts(entry, roles, prompts, scoring, Hooks(manager)))


def random_trajectory(engine: Engine, texts: Sequence[str], group_size: int, *, stored_velocity: bool) -> Trajectory:
    """A trajectory of independent random latents: if a stage confuses two of them, the result changes."""
    groups = Groups(engine.iteration_index, tuple(Prompt(text, {}) for text in texts), group_size)
    generator = torch.Generator().manual_seed(77)
    shape = (len(engine.sigmas), groups.images, 4, 4, 4)
    return Trajectory(
        groups=groups,
        latents=torch.randn(shape, generator=generator, dtype=torch.float64),
        sigmas=engine.sigmas,
        conditioning=engine.conditioning(groups.prompts),
        images=None,
        stored_velocity=stored_velocity,
        generator_updates=0,
    )


def gradients(engine: Engine, role: str) -> dict[str, Tensor | None]:
    """The accumulated gradients of a role, by parameter."""
    return {name: weight.grad for name, weight in engine.roles.parameters(role).items()}


def all_conditionings() -> Conditioning:
    """The conditioning of PROMPTS, one row each."""
    tokens, pooled = zip(*[encoded(prompt) for prompt in PROMPTS], strict=True)
    return Conditioning(torch.stack(tokens), torch.stack(pooled))


def network_inputs(seed: int = 0) -> tuple[Tensor, Tensor, Conditioning]:
    """Random latents (2, 4, 4, 4), noise levels (2,) and conditioning of two images."""
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return latents, torch.tensor([0.9, 0.4], dtype=torch.float64), all_conditionings().select([1, 2])


ADVANTAGES = Advantages(torch.tensor([1.0, -0.5, -0.5, 0.9, 0.3, -1.2], dtype=torch.float64), 0.0)
SECTIONS: dict[str, dict[str, Any]] = {
    "batch": {"groups": 2, "group_size": 3},
    "timesteps": {"per_iteration": 2, "optimizer_step": "iteration", "k_sharing": "sample"},
    "surrogate": {"trust_region": None, "drift_threshold": None},
}
EACH = SECTIONS | {"timesteps": {"per_iteration": 2, "optimizer_step": "each"}}

UPDATES: dict[str, Callable[[Engine, Trajectory], Any]] = {
    FAKE: lambda engine, trajectory: engine.update_fake(trajectory),
    SURROGATE: lambda engine, trajectory: engine.update_surrogate(trajectory, ADVANTAGES),
    GENERATOR: lambda engine, trajectory: engine.update_generator(trajectory, ADVANTAGES),
}


def engine_and_trajectory(sections: Mapping[str, Mapping[str, Any]]) -> tuple[Engine, Trajectory]:
    """The tiny engine, and a trajectory without stored velocities: an update evaluates the generator again."""
    engine = make_engine(sections)
    return engine, random_trajectory(engine, (PROMPTS[1], PROMPTS[3]), 3, stored_velocity=False)


class Recorder:
    """A plugin that records what the hooks receive."""

    trajectory: Trajectory
    rewards: list[float]

    @hookimpl
    def tdmr1_after_rollout(self, trajectory: Trajectory) -> None:
        """Record the trajectory."""
        self.trajectory = trajectory

    @hookimpl
    def tdmr1_after_scoring(self, scores: Any) -> None:
        """Record the rewards."""
        self.rewards = scores.total.tolist()


def brightness(batch: RewardBatch) -> RewardResult:
    """The mean brightness of each image."""
    return RewardResult([float(image.astype(float).mean()) for image in batch.images])
