"""The unit and the source of every setting. Runs do not import this file."""

from __future__ import annotations

from typing import NamedTuple

OURS = "this project"
PAPER = "TDM-R1 (arXiv 2603.07700)"
TRAINER = "authors' trainer"
PUBLISHED_PRESETS = ("ocr", "geneval", "imagereward", "hps")
"""The presets with the settings that were published for SD3.5-medium."""
PUBLISHED_MODEL = {"model": {"rank": 32, "alpha": 64}, "rollout": {"steps": 4, "shift": 3}}
"""The settings that these presets leave to the model."""


class Origin(NamedTuple):
    """Where a setting comes from."""

    unit: str
    """The unit of its number; empty for a name, a choice or a switch."""
    source: str = OURS
    """The paper with the equation, the authors' trainer with the name of its option, or this project."""

    @property
    def is_published(self) -> bool:
        """Whether the presets of `PUBLISHED_PRESETS` have the published value."""
        return self.source != OURS


ORIGINS: dict[str, Origin] = {
    "kind": Origin(""),
    "seed": Origin("seed"),
    "iterations": Origin("iterations"),
    "threads": Origin("threads"),
    "processes_timeout": Origin("minutes"),
    "rewards": Origin(""),
    "model.name": Origin(""),
    "model.path": Origin(""),
    "model.lora": Origin(""),
    "model.adapter_scale": Origin("factor"),
    "model.teacher": Origin(""),
    "model.precision": Origin(""),
    "model.device": Origin(""),
    "model.rank": Origin("rank", f"{TRAINER}: LoRA rank 32"),
    "model.alpha": Origin("factor, times rank", f"{TRAINER}: LoRA alpha 64"),
    "model.ignore_text_encoder_lora": Origin(""),
    "model.lora_init": Origin("", f"{TRAINER}: gaussian"),
    "model.height": Origin("pixels"),
    "model.width": Origin("pixels"),
    "scoring.combine": Origin(""),
    "scoring.workers": Origin("threads"),
    "prompts.train": Origin(""),
    "prompts.evaluate": Origin(""),
    "batch.groups": Origin("prompts per iteration", f"{PAPER}; {TRAINER}: `num_batches_per_epoch`"),
    "batch.group_size": Origin("images per prompt", f"{PAPER}, G; {TRAINER}: `sample.num_image_per_prompt`"),
    "batch.prompts": Origin(""),
    "batch.teaching_floor": Origin("fraction"),
    "batch.micro_batch": Origin("images"),
    "memory.gradient_checkpointing": Origin(""),
    "memory.decoder": Origin(""),
    "memory.text_encoders": Origin(""),
    "memory.prompt_cache": Origin(""),
    "memory.prompt_cache_gb": Origin("GB (10^9 bytes) in each process"),
    "memory.weights": Origin(""),
    "memory.optimizer": Origin(""),
    "memory.trajectories": Origin(""),
    "memory.shard": Origin(""),
    "memory.lora": Origin(""),
    "memory.attention": Origin(""),
    "memory.compile": Origin(""),
    "rollout.steps": Origin("sampling steps", f"{PAPER}, K = 4"),
    "rollout.shift": Origin("factor", "the scheduler of Stable Diffusion 3"),
    "rollout.sigmas": Origin("noise levels, 0 to 1"),
    "rollout.sampler": Origin(""),
    "rollout.dpm_levels": Origin(""),
    "rollout.eta": Origin("fraction", f"{PAPER}, Eq. 6 (0) and the ablation with stochastic rollouts"),
    "advantages.std": Origin("", TRAINER),
    "advantages.clip": Origin("standard deviations", TRAINER),
    "advantages.binary": Origin(""),
    "advantages.permute": Origin(""),
    "timesteps.per_iteration": Origin("sampling steps", f"{TRAINER}: 2 of 4 steps"),
    "timesteps.k_sharing": Origin("groups", f"{TRAINER}: the groups of a micro-batch"),
    "timesteps.tau_sharing": Origin("groups", f"{TRAINER}: the groups of a micro-batch"),
    "timesteps.optimizer_step": Origin("", f"{TRAINER}: gradients are accumulated over the steps"),
    "optimizer.beta2": Origin("decay", TRAINER),
    "optimizer.epsilon": Origin("size of a gradient", TRAINER),
    "optimizer.weight_decay": Origin("per update, times the learning rate", TRAINER),
    "optimizer.max_grad_norm": Origin("norm of a gradient", TRAINER),
    "optimizer.final_lr": Origin("fraction", f"{TRAINER}: constant learning rates"),
    "optimizer.lr_iterations": Origin("iterations"),
    "optimizer.on_not_finite": Origin(""),
    "fake.learning_rate": Origin("change of a weight per update", TRAINER),
    "fake.beta1": Origin("decay", f"{TRAINER}: 0 for the fake score"),
    "fake.updates": Origin("updates"),
    "fake.teacher_weight": Origin("factor", f"{TRAINER}: 0.02"),
    "fake.start": Origin("", f"{TRAINER}: the LoRA of the fake score starts at zero"),
    "surrogate.learning_rate": Origin("change of a weight per update", TRAINER),
    "surrogate.beta1": Origin("decay", TRAINER),
    "surrogate.updates": Origin("updates"),
    "surrogate.beta_dpo": Origin("factor of a squared velocity", f"{PAPER}, Eq. 7; {TRAINER}: `train.beta_dpo`"),
    "surrogate.tau_min": Origin("noise level, 0 to 1", f"{TRAINER}: `t_min_dgpo_reward` / 1000"),
    "surrogate.tau_sharing": Origin("groups", f"{TRAINER}: the groups of a micro-batch"),
    "surrogate.boundary": Origin("", f"{TRAINER}: probability in proportion to k + 1"),
    "surrogate.reference": Origin("", f"{TRAINER}: the frozen base; {PAPER}: the dynamic reference is `ema`"),
    "surrogate.trust_region": Origin("fraction", f"{TRAINER}: `clip_range`"),
    "surrogate.drift_threshold": Origin("mean squared velocity", f"{TRAINER}: 0.05"),
    "surrogate.reference_penalty": Origin("factor", f"{TRAINER}: 0.001"),
    "surrogate.time_weight": Origin("", f"{TRAINER}: (k + 1) / K"),
    "surrogate.only_with_signal": Origin("", f"{TRAINER}: all groups"),
    "surrogate.ema_slope": Origin("decay per update", f"{TRAINER}: 0.001"),
    "surrogate.ema_max": Origin("decay", f"{TRAINER}: 0.3"),
    "generator.learning_rate": Origin("change of a weight per update", f"{TRAINER}: a quarter of the learning rate"),
    "generator.beta1": Origin("decay", f"{TRAINER}: 0 for the generator"),
    "generator.loss": Origin(""),
    "generator.huber_c": Origin("latent units", f"{TRAINER}: 0.001"),
    "generator.joint_huber": Origin("", f"{TRAINER}: one root at steps k >= `trunc_steps`"),
    "generator.guidance_scale": Origin("factor", f"{PAPER}, Eq. 11; {TRAINER}: 4.5"),
    "generator.rl_cfg": Origin("factor", f"{PAPER}, Eq. 11; {TRAINER}: `rl_cfg`"),
    "generator.tau_min": Origin("noise level, 0 to 1", f"{TRAINER}: `t_min_dgpo` / 1000"),
    "generator.tdm_weight": Origin("fraction", f"{PAPER}, lambda of Eq. 11"),
    "generator.reward_scale": Origin("factor"),
    "generator.trunc_steps": Origin("sampling steps", f"{TRAINER}: `trunc_steps`"),
    "generator.normaliser_floor": Origin("latent units"),
    "generator.ema_decay": Origin("decay per update", f"{TRAINER}: 0.9"),
    "generator.ema_warmup": Origin("", f"{TRAINER}: min((1 + n) / (10 + n), 0.9)"),
    "evaluation.every": Origin("iterations"),
    "evaluation.images": Origin("images per prompt set"),
    "evaluation.images_per_prompt": Origin("images per prompt"),
    "evaluation.rewards": Origin(""),
    "evaluation.seed": Origin("seed"),
    "guard.enabled": Origin(""),
    "guard.stop": Origin(""),
    "guard.rewards": Origin(""),
    "guard.threshold": Origin("standard deviations of single images"),
    "saving.checkpoint_every": Origin("iterations"),
    "saving.keep": Origin("checkpoints"),
    "saving.samples_every": Origin("iterations"),
    "saving.tensorboard": Origin(""),
    "tracking": Origin(""),
    "tracking_project": Origin(""),
    "tracking_tags": Origin(""),
    "rewards.N.name": Origin(""),
    "rewards.N.source": Origin(""),
    "rewards.N.weight": Origin("factor"),
    "rewards.N.options": Origin(""),
    "rewards.N.batch_size": Origin("images per call"),
    "rewards.N.timeout": Origin("seconds per call"),
    "rewards.N.retries": Origin("calls"),
    "rewards.N.on_failure": Origin(""),
    "rewards.N.device": Origin(""),
    "rewards.N.isolated": Origin(""),
    "rewards.N.python": Origin(""),
}
"""By dotted name; `rewards.N` is an entry of a list of rewards."""
