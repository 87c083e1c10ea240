"""The settings of a run: a frozen tree. Each field states its unit, its effect and its source.

The defaults are the settings that TDM-R1 published for SD3.5-medium (arXiv 2603.07700). Presets for other models and
rewards are YAML files in `tdmr1_core/presets`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tdmr1_core.errors import warn
from tdmr1_core.settings.bounds import (
    LARGEST_NUMBER,
    LARGEST_RANK,
    LARGEST_SEED,
    LONGEST_SIDE,
    LONGEST_TAG,
    MOST_IMAGES,
    MOST_ITERATIONS,
    MOST_STEPS,
    MOST_TAGS,
    MOST_WORKERS,
)
from tdmr1_core.settings.yaml_text import EXPONENT
from tdmr1_rewards.texts.redaction import remember_tree

NOT_IN_NAMES = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""Python represents other bytes than UTF-8 in file names by the surrogates from U+DC80 to U+DCFF."""
Iterations = Annotated[int, Field(ge=1, le=MOST_ITERATIONS)]
Interval = Annotated[int, Field(ge=0, le=MOST_ITERATIONS)]
"""Iterations between two events; 0 for none."""
Images = Annotated[int, Field(ge=1, le=MOST_IMAGES)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Side = Annotated[int, Field(ge=8, le=LONGEST_SIDE)]
Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Sharing = Literal["step", "group", "sample"] | Images
"""Which images share a random draw: all images of the step, a group, that many consecutive groups, or no two images."""
Positive = Annotated[float, Field(gt=0, le=LARGEST_NUMBER)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST_NUMBER)]
Guidance = Annotated[float, Field(ge=1, le=LARGEST_NUMBER)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


def annotations_in(annotation: Any) -> Iterator[Any]:
    """An annotation and those inside it: `tuple[RewardConfig, ...] | None` contains RewardConfig."""
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from annotations_in(part)


class Section(BaseModel):
    """A part of the tree. It is frozen, and rejects unknown keys and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        """Reject a text with a character that no file name can have: NUL, and half of a surrogate pair."""
        if isinstance(value, str) and NOT_IN_NAMES.search(value):
            raise PydanticCustomError("wrong_form", "not a text")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _read_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject what pydantic would convert to a number: booleans, texts, and a float where an integer is wanted.

        An integer is accepted for a float, and so is a text such as 1e-4, which YAML does not read as a number.
        """
        wanted = set(annotations_in(cls.model_fields[str(info.field_name)].annotation))
        if isinstance(value, list | tuple) and any(get_origin(each) is tuple for each in wanted):
            return [cls._read_one(item, wanted) for item in value]
        return cls._read_one(value, wanted)

    @staticmethod
    def _read_one(value: Any, wanted: set[Any]) -> Any:
        """A number, or a value that is no number where none is wanted."""
        numbers = wanted & {int, float}
        if not numbers or value is None:
            return value
        if float in numbers and isinstance(value, str) and EXPONENT.fullmatch(value):
            return float(value)
        accepted = (int, *numbers)
        if isinstance(value, bool) or not (isinstance(value, accepted) or (isinstance(value, str) and value in wanted)):
            raise PydanticCustomError("wrong_form", "not a number")
        return value


class ModelConfig(Section):
    """The few-step model that is trained."""

    name: str = "tiny-tdm"
    """A registered model (`tdmr1 models list`), a directory of diffusers' `save_pretrained`, or a hub id."""
    path: Path | None = None
    """Directory of the base pipeline, in place of that of the registered model; other values of the entry stay."""
    lora: Path | None = None
    """The few-step LoRA that the generator starts from, in place of that of the registered model: a file of
    diffusers, PEFT, kohya or ComfyUI, the published .ckpt, or owner/name[/folder][/file] on the hub."""
    adapter_scale: Positive | None = None
    """Factor of the LoRA's output, in addition to alpha / rank (default: that of the model entry, else 1)."""
    teacher: str | None = None
    """`same`, or the directory or hub id of a second frozen backbone for teacher, fake score and surrogate (default:
    that of the model entry). Its text encoder and autoencoder must equal those of the first backbone."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Precision of the frozen weights. LoRA weights, latents and losses have at least fp32. fp64 is for tests."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto uses a GPU if there is one."""
    rank: Annotated[int, Field(ge=1, le=LARGEST_RANK)] | None = None
    """Rank of the three LoRAs if the few-step LoRA file does not store it (default: that of the model entry;
    published: 32)."""
    alpha: Positive | None = None
    """Alpha of the three LoRAs if the few-step LoRA file does not store it. Their output is scaled by alpha / rank
    (published: 64)."""
    ignore_text_encoder_lora: bool = False
    """Use a few-step LoRA that also changes text encoders, without these parts. Otherwise it is refused."""
    lora_init: Literal["gaussian", "kaiming"] = "gaussian"
    """Initialization of A in new LoRAs: normal with standard deviation 1 / rank (published), or the default of PEFT,
    which is uniform and smaller. B starts at zero, so a new LoRA changes nothing."""
    height: Side | None = None
    """Image height in pixels (default: that of the model entry)."""
    width: Side | None = None
    """Image width in pixels (default: that of the model entry)."""


class RewardConfig(Section):
    """One reward of the run."""

    name: str
    """Name in metrics. Without `source` it is also the name of a registered reward (`tdmr1 rewards list`)."""
    source: str | None = None
    """A registered reward, path/to/file.py:fn, package.module:fn or remote:http://host:port/NAME (default: `name`)."""
    weight: float = Field(1.0, ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)
    """Weight in the sum of rewards."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the reward. They are checked before any weight is loaded."""
    batch_size: Images | None = None
    """Maximum number of images in one call (default: that of the reward)."""
    timeout: Positive | Literal["none"] | None = None
    """Time limit of one call in seconds; none for no limit (default: that of the reward)."""
    retries: int = Field(0, ge=0, le=MOST_WORKERS)
    """Number of retries of a failed call before on_failure applies."""
    on_failure: Literal["stop", "skip"] = "stop"
    """stop: save the images of the failed call and stop the run. skip: continue; these images have no score."""
    device: str | None = None
    """cpu, cuda:1 … (default: the device of the run)."""
    isolated: bool = False
    """Run the reward in its own process, so that a time-out or crash does not end the run."""
    python: Path | None = None
    """Python interpreter of another environment that runs the reward (implies isolated). It needs neither torch nor
    tdmr1."""

    @model_validator(mode="before")
    @classmethod
    def _remember_secrets(cls, settings: Any) -> Any:
        """Let no message or file contain the secrets among the options."""
        remember_tree(settings)
        return settings


class ScoringConfig(Section):
    """How rewards are computed and combined."""

    combine: Literal["weighted_sum", "normalised"] = "weighted_sum"
    """weighted_sum adds the weighted rewards. normalised first scales each reward to mean 0 and standard deviation 1
    within its group."""
    workers: Workers = 2
    """Threads that score finished images while the next images are sampled."""


class PromptConfig(Section):
    """The prompts of training and evaluation."""

    train: str | None = None
    """A prompt set, a prompt file (.txt, .jsonl, .json, .csv, .tsv or .parquet), or a dataset of the hub:
    hf:OWNER/DATASET:COLUMN[@SPLIT] (default: that of the reward)."""
    evaluate: str | None = None
    """Held-out prompts of evaluations, in the same form (default: the held-out set of the training prompts)."""


class BatchConfig(Section):
    """The number of images in an iteration and in memory."""

    groups: Images = 48
    """Prompts per iteration (published: 48 for OCR and GenEval, 24 for ImageReward and HPSv2)."""
    group_size: int = Field(24, ge=2, le=MOST_IMAGES)
    """G, the number of images for each prompt. Rewards are compared within this group (published: 24)."""
    prompts: Literal["uniform", "teaching"] = "uniform"
    """uniform draws every prompt equally often. teaching draws a prompt more often, the more the rewards within its
    last groups differed: a group with equal rewards teaches nothing."""
    teaching_floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Each of N prompts has at least this / N as its probability in a teaching draw, so that it is tried again. 1 gives
    all prompts the same probability."""
    micro_batch: Images | Literal["auto"] | None = "auto"
    """Images processed at once. auto: a new run on a GPU chooses a number that fits; on a CPU, all images. A number
    or auto is halved when the device runs out of memory; null processes all images and stops the run instead. Results
    do not depend on it."""


class MemoryConfig(Section):
    """Options that save memory and cost time.

    Results change only by rounding, except with quantized weights or moments and with tiled decoding. Where a setting
    is auto, a new run on a GPU chooses it so that the free memory is used and not exceeded, and its config.yaml gets
    what was chosen. Elsewhere auto is what costs no time.
    """

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute each block in the backward pass instead of storing its activations. Takes about a third more time."""
    decoder: Literal["auto", "none", "sliced", "tiled"] = "auto"
    """none decodes all images of a micro-batch at once, sliced one by one, tiled in tiles (seams may be visible)."""
    text_encoders: Literal["auto", "device", "cpu"] = "auto"
    """device: they stay there. cpu: they are on the GPU only while new prompts are encoded; the denoiser leaves it
    meanwhile. auto: as cpu, but the prompts of the next iterations are encoded too, as many as prompt_cache_gb holds;
    if it holds all prompts of the run, the encoders are released. On a CPU, there is no difference."""
    prompt_cache: Path | None = None
    """Folder for encoded prompts, shared by runs (default: they are kept in host memory only)."""
    prompt_cache_gb: NotNegative = 8.0
    """Host memory for encoded prompts in each process, in units of 10^9 bytes. The least recently used are removed."""
    weights: Literal["none", "8bit", "nf4"] = "none"
    """Quantize the frozen linear layers of the denoiser with bitsandbytes. Teacher outputs change slightly."""
    optimizer: Literal["none", "8bit"] = "none"
    """8bit stores the moments of AdamW in 8 bits (bitsandbytes), a quarter of the memory."""
    trajectories: Literal["auto", "device", "cpu"] = "auto"
    """cpu stores the sampled latents in host memory and copies one micro-batch at a time to the device."""
    shard: bool = False
    """Divide the frozen weights of denoisers and text encoders among the processes of the run (FSDP), which gather one
    block at a time. For models larger than one GPU; it costs communication in each pass. LoRAs are not divided."""
    lora: Literal["auto", "merged", "peft"] = "auto"
    """merged computes one product with the sum of weight and LoRA, formed in each pass; peft computes both products, as
    PEFT does. A sum in bf16 loses small LoRAs, so auto is merged only in fp32 and fp64. It is never stored."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    """The kernel of torch that computes attention in the denoiser; auto lets torch choose. A kernel that torch does not
    have for the device, the precision or the padding masks of the model is refused."""
    compile: bool = False
    """Compile the blocks of the network (torch.compile). The start takes minutes longer. Rounding differs. On a CPU it
    needs a C++ compiler."""

    @property
    def recomputes(self) -> bool:
        """Whether blocks are recomputed; `auto` that was not chosen means no."""
        return self.gradient_checkpointing is True

    @property
    def decodes_at_once(self) -> bool:
        """Whether all images of a micro-batch are decoded at once; `auto` that was not chosen means yes."""
        return self.decoder in ("none", "auto")

    @field_validator("decoder", "weights", "optimizer", mode="before")
    @classmethod
    def _read_former_word(cls, value: Any, info: ValidationInfo) -> Any:
        """Read `whole`, which older config.yaml files have, as `none`."""
        if value != "whole":
            return value
        setting = f"memory.{info.field_name}"
        warn(
            f"{setting}: the value 'whole' is now called 'none'",
            code="setting-renamed",
            setting=setting,
            former="whole",
            new="none",
        )
        return "none"


SCHEDULER_FIRST = 0.999
"""The first u of the levels of diffusers' DPMSolverMultistepScheduler (`algorithm.flow.sigma_schedule`)."""
SAME_LEVEL = 1e-4
"""Largest difference of a noise level that was written with four digits."""


def _have_shift(levels: Sequence[float], shift: float) -> bool:
    """Whether noise levels are S(u) with this shift, perhaps stretched to another last level (`flow.stretch`)."""
    steps = len(levels) - 1
    for first in (1.0, SCHEDULER_FIRST):
        times = [first * (1 - k / steps) for k in range(steps)]
        shifted = [shift * u / (1 + (shift - 1) * u) for u in times]
        stretching = (1 - levels[-2]) / (1 - shifted[-1]) if steps > 1 else 1.0
        for factor in (1.0, stretching):
            expected = [1 - factor * (1 - level) for level in shifted]
            if all(abs(level - other) < SAME_LEVEL for level, other in zip(levels[:-1], expected, strict=True)):
                return True
    return False


class RolloutConfig(Section):
    """How the generator samples (algorithm: deterministic trajectories, paper Eq. 6)."""

    steps: Steps | None = None
    """K, the number of sampling steps (default: that of the model entry; published: 4)."""
    shift: Positive | None = None
    """s of the noise schedule S(u) = s u / (1 + (s - 1) u) (default: that of the model entry; SD3: 3)."""
    sigmas: tuple[Fraction, ...] | None = None
    """The K + 1 noise levels, decreasing to 0 (default: those of steps and shift). A new run stores its levels here."""
    sampler: Literal["euler", "dpm-solver++"] = "euler"
    """The losses assume Euler steps. The authors' trainer samples with second-order DPM-Solver++."""
    dpm_levels: Literal["scheduler", "euler"] = "scheduler"
    """The noise levels of dpm-solver++: those of diffusers' DPMSolverMultistepScheduler, as in the authors' trainer, or
    those of Euler, whose second step is first order. With K = 4 and shift 3: .99967 .89964 .74962 .49967 0, or
    1 .9 .75 .5 0."""
    eta: Fraction = 0.0
    """Fraction of fresh noise at each step. Above 0, trajectories are stochastic (slower in the paper's ablation)."""

    @field_validator("sigmas")
    @classmethod
    def _decreasing(cls, levels: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if levels is None:
            return levels
        if not 2 <= len(levels) <= MOST_STEPS + 1 or levels[-1] != 0 or any(a <= b for a, b in pairwise(levels)):
            raise ValueError(
                "rollout.sigmas must hold at least two noise levels that decrease to 0, such as [1, 0.9, 0.75, 0.5, 0]"
            )
        return levels

    @model_validator(mode="after")
    def _one_length(self) -> RolloutConfig:
        levels = self.sigmas
        if levels is not None and self.steps is not None and self.steps != len(levels) - 1:
            raise ValueError(
                f"rollout.steps is {self.steps}, but rollout.sigmas has {len(levels)} levels, which make "
                f"{len(levels) - 1} steps; set only one of them"
            )
        return self

    @model_validator(mode="after")
    def _levels_of_shift(self) -> RolloutConfig:
        levels, shift = self.sigmas, self.shift
        if levels is None or shift is None or _have_shift(levels, shift):
            return self
        raise ValueError(
            f"rollout.shift is {shift:g}, but rollout.sigmas, which a run stores, are not its noise levels; set "
            "rollout.sigmas=null to compute them from shift and steps, or do not set rollout.shift"
        )

    @property
    def step_count(self) -> int | None:
        """K, if it is set here."""
        return self.steps if self.sigmas is None else len(self.sigmas) - 1


class AdvantageConfig(Section):
    """How rewards become advantages."""

    std: Literal["global", "group"] = "global"
    """Standard deviation that advantages are divided by: of the whole batch (published) or of each group."""
    clip: Positive = 5.0
    """Largest absolute advantage (published: 5)."""
    binary: bool = False
    """Keep only the sign of each advantage."""
    permute: bool = False
    """Control: shuffle the advantages within each group and change nothing else."""


class TimestepConfig(Section):
    """Which points of the trajectory an iteration trains on."""

    per_iteration: Steps = 2
    """M, the number of steps drawn for each image, out of K (published: 2 of 4)."""
    k_sharing: Sharing = 4
    """Which images share one drawn step k and one boundary of the surrogate: those of a number of groups, of one group
    (group), all (step), or no two (sample). Published: 4, the groups in a micro-batch of the authors (GenEval: 2)."""
    tau_sharing: Sharing = 4
    """Which images share one noise level tau of the fake score and the KL term, as in k_sharing (published: 4 or 2)."""
    optimizer_step: Literal["iteration", "each"] = "iteration"
    """iteration: one optimizer step per iteration, accumulated over the M steps (published). each: one per step."""


class OptimizerConfig(Section):
    """AdamW settings of all three roles."""

    beta2: Below1 = 0.999
    """Decay of the squared gradients (published: 0.999)."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NotNegative = 1e-4
    """Decoupled weight decay (published: 1e-4)."""
    max_grad_norm: Positive = 1.0
    """Gradients of a role are clipped to this norm (published: 1.0)."""
    final_lr: Fraction = 1.0
    """Learning rates fall linearly to this fraction over lr_iterations; 1 keeps them constant (published)."""
    lr_iterations: Iterations | None = None
    """Iterations over which learning rates fall; then they stay (default: those of the run). `train --resume RUN
    --iterations N` sets it to the former number."""
    on_not_finite: Literal["stop", "skip"] = "stop"
    """stop: a loss or gradient that is NaN or infinite stops the run. skip: its update is skipped; ten skipped updates
    in a row stop the run."""


class FakeConfig(Section):
    """The fake score: follows the generator's distribution."""

    learning_rate: LearningRate = 3e-4
    """AdamW step size (published: 3e-4)."""
    beta1: Below1 = 0.0
    """AdamW's momentum (published: 0)."""
    updates: Steps = 1
    """Fake score updates per generator update, each with its own noise level and noise."""
    teacher_weight: NotNegative = 0.02
    """Weight of ||v_teacher - v_fake||^2 (published: 0.02). With 0, the teacher is not evaluated for it."""
    start: Literal["generator", "zero"] = "zero"
    """Start at zero, which is the teacher (published), or as a copy of the few-step LoRA."""


class SurrogateConfig(Section):
    """The surrogate reward: a LoRA trained by group preference (Eq. 7-9)."""

    learning_rate: LearningRate = 3e-4
    """AdamW step size (published: 3e-4)."""
    beta1: Below1 = 0.9
    """AdamW's momentum (published: 0.9)."""
    updates: Steps = 1
    """Surrogate updates per generator update, each with its own boundary, noise level and noise."""
    beta_dpo: Positive = 10.0
    """Strength of the implicit reward in the group weight (published: 10 for OCR and HPSv2, else 1)."""
    tau_min: Below1 = 0.3
    """Lowest noise level that the surrogate is trained at (published: 0.30 to 0.55)."""
    tau_sharing: Sharing = 4
    """Which images share one noise level, in the surrogate's training and in its evaluation by the generator, in the
    form of timesteps.tau_sharing (published: 4 or 2)."""
    boundary: Literal["weighted", "last"] = "weighted"
    """The stored point that is re-noised: drawn with probability ~ (k+1) (published), or the last (least variance)."""
    reference: Literal["frozen", "ema"] = "frozen"
    """p_ref: the frozen base, or the EMA of the surrogate (the paper's dynamic reference)."""
    trust_region: Positive | None = 1e-3
    """Clip of the ratio exp(l_old - l) against the EMA (published: 1e-3 or 2e-3); null disables it."""
    drift_threshold: Positive | None = 0.05
    """Above this mean ||v - v_ref||^2, a sample whose loss is already past the reference's in the direction of its
    advantage gets no preference gradient (published: 0.05); null disables it."""
    reference_penalty: NotNegative = 1e-3
    """Weight of ||v - v_ref||^2 (published: 0.001; the tiny models need 0.2 to 0.3)."""
    time_weight: bool = True
    """Weight preference and penalty by (k+1)/K (published)."""
    only_with_signal: bool = False
    """Skip groups whose advantages are all 0. The network is not evaluated for them, and they get no reference penalty
    (published: false)."""
    ema_slope: Positive = 1e-3
    """The decay of the EMA at update n (from 1) is min(ema_max, ema_slope n) (published: 0.001)."""
    ema_max: Below1 = 0.3
    """Largest decay of the EMA (published: 0.3)."""


class GeneratorConfig(Section):
    """The few-step generator (Eq. 10-11)."""

    learning_rate: LearningRate = 7.5e-5
    """AdamW step size (published: lr / 4 = 7.5e-5)."""
    beta1: Below1 = 0.0
    """AdamW's momentum (published: 0)."""
    loss: Literal["squared", "huber"] = "squared"
    """||d||^2 / w, or the elementwise pseudo-Huber loss. At k < trunc_steps its CFG term is multiplied by
    guidance_scale - 1; at later steps one root contains the errors of the CFG and KL terms, as in the authors'
    trainer."""
    huber_c: Positive = 1e-3
    """c of the pseudo-Huber loss."""
    joint_huber: bool = True
    """At steps k >= trunc_steps, the Huber loss has the errors of the CFG and KL terms under one root (published)."""
    guidance_scale: Guidance = 4.5
    """Guidance scale of the teacher in the CFG term; 1 disables the term (published: 4.5)."""
    rl_cfg: Guidance = 4.5
    """Guidance scale of the surrogate in the reward term (published: 2.5 to 4.5)."""
    tau_min: Below1 = 0.3
    """Lowest noise level that the surrogate is evaluated at (published: 0.25 to 0.40)."""
    tdm_weight: Fraction = 0.3
    """lambda: the weight of the CFG term; the reward term has weight 1 - lambda (published: 0.3)."""
    reward_scale: NotNegative = 1.0
    """Additional factor of the reward term; 0 is the control without it."""
    trunc_steps: int = Field(4, ge=0, le=MOST_STEPS)
    """The reward term applies to steps k below this (published: 4, or 2 for ImageReward and HPSv2). At later steps,
    surrogate and reference are not evaluated."""
    normaliser_floor: Positive = 1e-4
    """Lower bound of the per-sample normalizer w."""
    ema_decay: Below1 = 0.9
    """Decay of the EMA of the generator, which is evaluated and exported (published: 0.9)."""
    ema_warmup: bool = True
    """After n earlier updates the decay is at most (1 + n) / (10 + n) (published): the EMA of a short run follows."""


class EvaluationConfig(Section):
    """Evaluations on fixed noise that training never draws."""

    every: Interval = 0
    """Iterations between evaluations; 0 evaluates only at start and end."""
    images: Images = 256
    """Images of each prompt set (training and held-out prompts), always from the same noise."""
    images_per_prompt: Images | None = None
    """Images of each prompt; if there are too many prompts for that, fewer are used (default: all prompts, with as many
    images each as `images` allows, or one). Rewards that compare images of a prompt need 2 or more."""
    rewards: tuple[RewardConfig, ...] = ()
    """Rewards that score evaluations (default: the training rewards)."""
    seed: Seed = 1_000_003
    """Seed of the evaluation noise. Training never uses it."""


class GuardConfig(Section):
    """Detection of reward hacking: held-out rewards and image statistics at every evaluation."""

    enabled: bool = True
    """Measure the images of evaluations, and write alarms to guard.jsonl and the console."""
    stop: bool = False
    """An alarm stops the run; the checkpoint of the last evaluation without an alarm is kept."""
    rewards: tuple[RewardConfig, ...] | None = None
    """Held-out rewards (default: rewards of evaluations, and free rewards of the tiny models, that are not trained)."""
    threshold: Positive = 1.25
    """Drift from the first evaluation that raises an alarm, in standard deviations of single images there."""


class SavingConfig(Section):
    """What a run writes."""

    checkpoint_every: Iterations = 10
    """Iterations between checkpoints; the last iteration is always saved."""
    keep: Iterations = 2
    """Number of checkpoints that are kept; older ones are deleted."""
    samples_every: Interval = 10
    """Iterations between image grids with fixed prompts and noise; 0 for none."""
    tensorboard: bool = True
    """Also write the metrics to TensorBoard files. `tracking` replaces this setting."""


TrackerName = Literal["tensorboard", "wandb", "trackio", "swanlab", "mlflow", "comet"]


class RunConfig(Section):
    """A whole run."""

    kind: Literal["train", "distill"] = "train"
    """train reinforces a few-step model; distill makes one from a multi-step teacher, without rewards."""
    seed: Seed = 0
    """Seed of all random draws except those of evaluations."""
    iterations: Iterations = 1000
    """Number of iterations of the run."""
    threads: Workers | None = None
    """Maximum number of CPU threads of torch (default: the physical cores, or OMP_NUM_THREADS)."""
    processes_timeout: Positive = 15.0
    """Minutes without progress of one of several processes, after which the run stops with an error that names it.
    Loading, and scoring within the time limits of the rewards, count as progress."""
    model: ModelConfig = ModelConfig()
    rewards: tuple[RewardConfig, ...] = ()
    """The rewards: a list of {name, weight, options}."""
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
    tracking: tuple[TrackerName, ...] | None = None
    """Trackers that get metrics, image grids and settings; [] for none (default: the metrics go to TensorBoard files,
    unless saving.tensorboard is false). The JSONL files are always written."""
    tracking_project: str = "tdmr1"
    """Project, or experiment, of the trackers that the run belongs to."""
    tracking_tags: tuple[str, ...] = ()
    """Further tags of the run in trackers, besides its kind, model and rewards."""

    @field_validator("tracking")
    @classmethod
    def _distinct_trackers(cls, trackers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = sorted({name for name in trackers or () if (trackers or ()).count(name) > 1})
        if twice:
            raise ValueError(f"tracker {twice[0]!r} is named more than once; name it once")
        return trackers

    @field_validator("tracking_project", "tracking_tags")
    @classmethod
    def _short_tags(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        tags = (value,) if isinstance(value, str) else value
        if len(tags) > MOST_TAGS or not all(1 <= len(tag) <= LONGEST_TAG for tag in tags):
            limits = f"1 to {LONGEST_TAG} characters, and a run has at most {MOST_TAGS} further tags"
            raise ValueError(f"a project or tag of trackers has {limits}")
        return value

    @field_validator("rewards")
    @classmethod
    def _distinct(cls, rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        names = [reward.name for reward in rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"reward {twice[0]!r} is named more than once; name it once")
        return rewards

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.kind == "train" and not self.rewards:
            raise ValueError("a training run needs at least one reward")
        if self.kind == "distill" and self.batch.prompts == "teaching":
            raise ValueError("batch.prompts is 'teaching', but a distillation has no rewards; set it to 'uniform'")
        steps, points = self.rollout.step_count, self.timesteps.per_iteration
        if steps is not None and points > steps:
            raise ValueError(f"timesteps.per_iteration is {points}, but there are only {steps} steps")
        if self.memory.weights != "none" and self.model.precision == "fp64":
            raise ValueError("memory.weights cannot be quantized with model.precision fp64; set it to bf16")
        if self.memory.weights != "none" and self.memory.lora == "merged":
            raise ValueError("memory.lora cannot be merged into quantized weights (memory.weights); set it to peft")
        if self.batch.groups * self.batch.group_size > MOST_IMAGES:
            raise ValueError(
                f"batch.groups × batch.group_size is {self.batch.groups} × {self.batch.group_size}, but an iteration "
                f"has at most {MOST_IMAGES} images"
            )
        several = [name for name in ("fake", "surrogate") if getattr(self, name).updates > 1]
        if several and self.timesteps.optimizer_step == "iteration":
            raise ValueError(
                f"{several[0]}.updates is {getattr(self, several[0]).updates}, but timesteps.optimizer_step is "
                "'iteration', which makes one update; set it to 'each'"
            )
        return self


def lr_iterations(config: RunConfig) -> int:
    """The number of iterations over which the learning rates of a run fall."""
    return config.optimizer.lr_iterations or config.iterations
