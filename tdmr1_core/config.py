"""The settings of a run: one frozen tree, every field with its unit, effect and source.

Defaults are the published settings of TDM-R1 (arXiv 2603.07700) for SD3.5-medium where it has them; what differs for
another model or reward is a preset (YAML in `tdmr1_core/presets`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Sharing = Literal["step", "group", "sample"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the tree: frozen, and closed to unknown keys and to numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class ModelConfig(Section):
    """Which few-step model is trained, and how it is held in memory."""

    name: str = "tiny-tdm"
    """A registered model (`tdmr1 models list`), a directory of diffusers' `save_pretrained`, or a hub id."""
    path: Path | None = None
    """Where the base pipeline lies, in place of the registered model's own; the rest of the entry is kept."""
    lora: Path | None = None
    """The few-step LoRA the generator starts from, in place of the registered model's own: safetensors of diffusers,
    PEFT or kohya, or the published .ckpt."""
    adapter_scale: Positive | None = None
    """What that LoRA's output is multiplied by, beside alpha / rank; the model entry's own by default, else 1."""
    teacher: str | None = None
    """same, or the directory or hub id of a second frozen backbone that tells every score; the model's own by default.
    It must have the text encoder and autoencoder of the first."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Of the frozen weights; LoRA weights, latents and losses stay at least fp32. fp64 is for checking numerics."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU where there is one."""
    rank: int | None = Field(None, ge=1)
    """Rank of the three LoRAs where no LoRA file sets it; the model entry's own by default (published: 32)."""
    alpha: float | None = Field(None, gt=0)
    """Alpha of the three LoRAs where no LoRA file says it (their output is scaled by alpha / rank; published: 64)."""
    height: int | None = Field(None, ge=8)
    """Picture height in pixels; the model entry's own by default."""
    width: int | None = Field(None, ge=8)
    """Picture width in pixels; the model entry's own by default."""


class RewardConfig(Section):
    """One reward of the run."""

    name: str
    """What it is called in metrics, and, without a source, a registered reward (`tdmr1 rewards list`)."""
    source: str | None = None
    """Where it comes from if not from `name`: a registered reward, path/to/file.py:fn, package.module:fn or
    remote:http://host:port/reward."""
    weight: float = 1.0
    """Its factor in the weighted sum."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The reward's own options, checked by the reward before any weight is loaded."""
    batch_size: int | None = Field(None, ge=1)
    """Most images a call; the reward's own by default."""
    timeout: Positive | Literal["none"] | None = None
    """Seconds that a call may take; the reward's own by default, none to wait for ever."""
    retries: int = Field(0, ge=0)
    """How often a call that failed is tried again before on_failure applies."""
    on_failure: Literal["stop", "skip"] = "stop"
    """stop: save the images of the call and stop the run; skip: leave them out of their groups' statistics."""
    device: str | None = None
    """cpu, cuda:1 …; the run's own by default."""
    isolated: bool = False
    """Run it in a process of its own, that a time-out or a crash ends without harm to the run."""
    python: Path | None = None
    """The interpreter of another environment to run it in (implies isolated); torch and tdmr1 need not be there."""


class ScoringConfig(Section):
    """How rewards are computed and combined."""

    combine: Literal["weighted_sum", "normalised"] = "weighted_sum"
    """Sum the weighted rewards, or first bring each to zero mean and unit deviation within its group."""
    workers: int = Field(2, ge=1)
    """Threads that score finished images while sampling goes on."""


class PromptConfig(Section):
    """Which prompts are drawn."""

    train: str | None = None
    """A prompt set, or a file: .txt (one a line) or .jsonl (GenEval's layout). The reward's own by default."""
    evaluate: str | None = None
    """Held-out prompts for evaluation, likewise; the training set's held-out companion by default."""


class BatchConfig(Section):
    """How many images an iteration draws, and how many are held on the device at once."""

    groups: int = Field(48, ge=1)
    """Prompts per iteration (published: 48 for OCR and GenEval, 24 for ImageReward and HPSv2)."""
    group_size: int = Field(24, ge=2)
    """Images drawn for each prompt; their rewards are compared with one another (published: 24)."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = "auto"
    """Images in memory at once, or auto for all: it is halved whenever the device runs out of memory; null: all, or the
    run stops. It changes speed and memory, never the result."""


class MemoryConfig(Section):
    """Ways to need less memory, at the price of time.

    What is learnt stays the same but for rounding, unless weights or moments are in fewer bits or pictures are decoded
    in tiles.
    """

    gradient_checkpointing: bool = False
    """Recompute every block in the backward pass instead of keeping what it computed: a third more time."""
    decoder: Literal["none", "sliced", "tiled"] = "none"
    """Decode all pictures at once, one after another, or also tile by tile (large pictures may show the seams)."""
    text_encoders: Literal["device", "cpu"] = "device"
    """cpu: they are on the device only while new prompts are encoded, and the denoiser is not meanwhile."""
    prompt_cache: Path | None = None
    """A folder where encoded prompts are kept for this run and others; in memory by default."""
    weights: Literal["none", "8bit", "nf4"] = "none"
    """Of the frozen denoiser's linear layers, by bitsandbytes: fewer bits, and a teacher that is a little off."""
    optimizer: Literal["none", "8bit"] = "none"
    """AdamW's moments, by bitsandbytes: a quarter of their memory."""
    trajectories: Literal["device", "cpu"] = "device"
    """cpu: sampled latents are kept there, and a micro-batch of them comes to the device at a time."""
    compile: bool = False
    """Compile the network's blocks (torch.compile): minutes at the start for speed later. Rounding differs."""


class RolloutConfig(Section):
    """How the generator samples (algorithm: deterministic trajectories, paper Eq. 6)."""

    steps: int | None = Field(None, ge=1)
    """K, the number of sampling steps; the model entry's own by default (published: 4)."""
    shift: float | None = Field(None, gt=0)
    """s of the noise schedule S(u) = s u / (1 + (s - 1) u); the model entry's own by default (SD3: 3)."""
    sampler: Literal["euler", "dpm-solver++"] = "euler"
    """Euler is what the losses assume; the authors' trainer samples with second-order DPM-Solver++."""
    eta: Share = 0.0
    """Share of fresh noise at each step; above 0 trajectories are stochastic (the paper's ablation: far slower)."""


class AdvantageConfig(Section):
    """Rewards to advantages."""

    std: Literal["global", "group"] = "global"
    """Deviation that advantages are divided by: of the whole batch (published) or of each group."""
    clip: Positive = 5.0
    """Largest absolute advantage (published: 5)."""
    binary: bool = False
    """Keep only the sign of each advantage."""
    permute: bool = False
    """The control: shuffle advantages inside each group and leave everything else on."""


class TimestepConfig(Section):
    """Which points of the trajectory an iteration trains on."""

    per_iteration: int = Field(2, ge=1)
    """M, how many of the K steps are drawn for each image (published: 2 of 4)."""
    k_sharing: Sharing = "step"
    """What shares one drawn step k: all images (the authors), a group, or none. With small batches share less."""
    tau_sharing: Sharing = "step"
    """What shares one re-noising level for the fake score and the KL term."""
    optimizer_step: Literal["iteration", "each"] = "iteration"
    """Step the optimisers once an iteration, accumulating over the M steps (published), or after each of them."""


class OptimizerConfig(Section):
    """AdamW settings common to the three roles."""

    beta2: Below1 = 0.999
    """Decay of the squared gradients (published: 0.999)."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay (published: 1e-4)."""
    max_grad_norm: Positive = 1.0
    """Gradients of a role are clipped to this norm (published: 1.0)."""
    final_lr: Share = 1.0
    """Learning rates fall linearly to this share of their start over the run; 1 keeps them (published)."""
    on_not_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is NaN or infinite stops the run, or its update is left out; ten in a row always stop."""


class FakeConfig(Section):
    """The fake score: follows the generator's distribution."""

    learning_rate: Positive = 3e-4
    """AdamW step size (published: 3e-4)."""
    beta1: Below1 = 0.0
    """AdamW's momentum (published: 0)."""
    updates: int = Field(1, ge=1)
    """Fake score updates for each generator update, each with its own level and noise."""
    teacher_weight: float = Field(0.02, ge=0)
    """Weight of ||v_teacher - v_fake||^2 (published: 0.02)."""
    start: Literal["generator", "zero"] = "generator"
    """Start as a copy of the few-step LoRA or at zero."""


class SurrogateConfig(Section):
    """The surrogate reward: a LoRA trained by group preference (Eq. 7-9)."""

    learning_rate: Positive = 3e-4
    """AdamW step size (published: 3e-4)."""
    beta1: Below1 = 0.9
    """AdamW's momentum (published: 0.9)."""
    updates: int = Field(1, ge=1)
    """Surrogate updates for each generator update, each with its own boundary, level and noise."""
    beta_dpo: Positive = 10.0
    """Strength of the implicit reward in the group weight (published: 10 for OCR and HPSv2, else 1)."""
    tau_min: Below1 = 0.3
    """Lowest level the surrogate is trained at (published: 0.30 to 0.55)."""
    tau_sharing: Sharing = "step"
    """What shares one level, in training the surrogate and in querying it."""
    boundary: Literal["weighted", "last"] = "weighted"
    """The stored point to re-noise: drawn with probability ~ (k+1) (published), or the last (least variance)."""
    reference: Literal["frozen", "ema"] = "frozen"
    """p_ref: the frozen base, or the surrogate's own moving average (the paper's dynamic reference)."""
    trust_region: float | None = Field(1e-3, gt=0)
    """Clip of the ratio exp(l_old - l) against the EMA (published: 1e-3 or 2e-3); null switches it off."""
    drift_threshold: float | None = Field(0.05, gt=0)
    """Where a sample's mean ||v - v_ref||^2 passes this, no gradient further along its advantage (published: 0.05)."""
    reference_penalty: float = Field(1e-3, ge=0)
    """Weight of ||v - v_ref||^2 (published: 0.001; small models without much else to hold them need 0.2 to 0.3)."""
    time_weight: bool = True
    """Weight preference and penalty by (k+1)/K (published)."""
    ema_slope: Positive = 1e-3
    """The EMA's decay is min(ema_max, slope n) at the n-th update, from 1 (published: 0.001)."""
    ema_max: Below1 = 0.3
    """Largest decay of the EMA (published: 0.3)."""


class GeneratorConfig(Section):
    """The few-step generator (Eq. 10-11)."""

    learning_rate: Positive = 7.5e-5
    """AdamW step size (published: lr / 4 = 7.5e-5)."""
    beta1: Below1 = 0.0
    """AdamW's momentum (published: 0)."""
    loss: Literal["squared", "huber"] = "squared"
    """||d||^2 / w, or the elementwise pseudo-Huber (its CFG term is multiplied by guidance_scale - 1)."""
    huber_c: Positive = 1e-3
    """c of the pseudo-Huber loss."""
    guidance_scale: float = Field(4.5, ge=1)
    """Of the teacher in the CFG term; 1 switches the term off (published: 4.5)."""
    rl_cfg: float = Field(4.5, ge=1)
    """Guidance of the surrogate when it is queried (published: 2.5 to 4.5)."""
    tau_min: Below1 = 0.3
    """Lowest level the surrogate is queried at (published: 0.25 to 0.40)."""
    tdm_weight: Share = 0.3
    """lambda: the share of the CFG term, 1 - lambda being the reward's (published: 0.3)."""
    reward_scale: float = Field(1.0, ge=0)
    """Further factor of the reward term; 0 is the control without it."""
    trunc_steps: int = Field(4, ge=0)
    """The reward term acts on steps k below this (published: 4, or 2 for ImageReward and HPSv2)."""
    normaliser_floor: Positive = 1e-4
    """Least value of the per-sample normaliser w."""
    ema_decay: Below1 = 0.9
    """Of the averaged generator that is evaluated and exported (published: 0.9)."""


class EvaluationConfig(Section):
    """Evaluations on fixed noises that training never draws."""

    every: int = Field(0, ge=0)
    """Iterations between evaluations; 0: only before and after."""
    images: int = Field(256, ge=1)
    """Images of each prompt set (the training prompts, and the held-out ones), always from the same noises."""
    rewards: tuple[RewardConfig, ...] = ()
    """What evaluations are judged by; the training rewards by default."""
    seed: int = 1_000_003
    """Of the evaluation noises, never used in training."""


class GuardConfig(Section):
    """The watch over reward hacking: other rewards and plain numbers of the pictures, at every evaluation."""

    enabled: bool = True
    """Look at the pictures of evaluations, and give an alarm (guard.jsonl, console)."""
    stop: bool = False
    """An alarm stops the run, which keeps the checkpoint of the last evaluation without one."""
    rewards: tuple[RewardConfig, ...] | None = None
    """Held-out rewards; by default those of evaluations and of small models' worlds that are not trained."""
    threshold: Positive = 1.25
    """How far something must depart from the first evaluation, in deviations of single pictures there."""


class SavingConfig(Section):
    """What a run writes, and when."""

    checkpoint_every: int = Field(10, ge=1)
    """Iterations between checkpoints; the last iteration is always saved."""
    keep: int = Field(2, ge=1)
    """How many checkpoints stay, the newest ones."""
    samples_every: int = Field(10, ge=0)
    """Iterations between grids of fixed prompts and noises; 0 for none."""
    tensorboard: bool = True
    """Also write the metrics for TensorBoard."""


class RunConfig(Section):
    """A whole run."""

    kind: Literal["train", "distill"] = "train"
    """Reinforce a few-step model, or make one from its multi-step teacher (no reward, no surrogate)."""
    seed: int = Field(0, ge=0)
    """Of every random stream but evaluation's."""
    iterations: int = Field(1000, ge=1)
    """How many iterations the whole run has; learning rates are scheduled over them."""
    threads: int | None = Field(None, ge=1)
    """Most CPU threads torch computes with; by default the physical cores, or what OMP_NUM_THREADS says."""
    model: ModelConfig = ModelConfig()
    rewards: tuple[RewardConfig, ...] = ()
    """What is rewarded: a list of {name, weight, options}."""
    scoring: ScoringConfig = ScoringConfig()
    prompts: PromptConfig = PromptConfig()
    batch: BatchConfig = BatchConfig()
    memory: MemoryConfig = MemoryConfig()
    rollout: RolloutConfig = RolloutConfig()
    advantages: AdvantageConfig = AdvantageConfig()
    timesteps: TimestepConfig = TimestepConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    fake: FakeConfig = FakeConfig()
    surrogate: SurrogateConfig = SurrogateConfig()
    generator: GeneratorConfig = GeneratorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
    saving: SavingConfig = SavingConfig()

    @field_validator("rewards")
    @classmethod
    def _distinct(cls, rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        names = [reward.name for reward in rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"reward {twice[0]!r} is named more than once; give it one weight")
        return rewards

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.kind == "train" and not self.rewards:
            raise ValueError("a training run needs at least one reward")
        steps, points = self.rollout.steps, self.timesteps.per_iteration
        if steps is not None and points > steps:
            raise ValueError(f"timesteps.per_iteration is {points} but there are only {steps} steps")
        if self.memory.weights != "none" and self.model.precision == "fp64":
            raise ValueError("memory.weights can't be in fewer bits where model.precision is fp64; set it to bf16")
        several = [name for name in ("fake", "surrogate") if getattr(self, name).updates > 1]
        if several and self.timesteps.optimizer_step == "iteration":
            raise ValueError(
                f"{several[0]}.updates is {getattr(self, several[0]).updates} but timesteps.optimizer_step is "
                "'iteration', which makes one update; set it to 'each'"
            )
        return self
