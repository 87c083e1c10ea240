"""The records that a reward receives and returns, and the spec that describes it. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from tdmr1_rewards.errors import Tdmr1Error

API_VERSION = 1
"""The version of these records. It increases when rewards written for an older version no longer work."""

ImageFormat = Literal["pil", "array"]
"""The images of a batch: "pil" is a list of PIL RGB images, "array" is one uint8 array (N, H, W, 3)."""


@dataclass(frozen=True)
class RewardContext:
    """The run and the iteration that a batch comes from.

    `run_folder` is None outside a run. `iteration` counts generator updates from 0. `seed` is the seed of the run, 0 or
    more: a reward that draws random numbers derives them from the seed and the image ids.
    """

    run_folder: Path | None
    iteration: int
    seed: int


@dataclass(frozen=True, eq=False)
class RewardBatch:
    """N images, their prompts and metadata. Every sequence has length N.

    `images` are PIL RGB images, or one uint8 array (N, H, W, 3) with values 0 to 255; `image_format` in the spec of the
    reward selects which. `metadata` has one mapping per image, that of its prompt in the prompt set (it may be empty).
    The images of one group, which were drawn for the same prompt, have the same `group_ids` entry. `image_ids` are
    unique within an iteration. Raises Tdmr1Error if the lengths differ.
    """

    images: Any
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    group_ids: Sequence[int]
    image_ids: Sequence[int]
    context: RewardContext

    def __post_init__(self) -> None:
        names = ("images", "prompts", "metadata", "group_ids", "image_ids")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise Tdmr1Error(
                f"a reward batch has {found}, but all of them must have the same length",
                code="reward-images",
                values={"lengths": lengths},
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> RewardBatch:
        """A batch of the images at `indices` (each 0 to N-1), in that order. An array of images is copied."""
        chosen = list(indices)
        if isinstance(self.images, Sequence):
            images: Any = [self.images[i] for i in chosen]
        else:
            images = self.images[chosen]
        return RewardBatch(
            images=images,
            prompts=[self.prompts[i] for i in chosen],
            metadata=[self.metadata[i] for i in chosen],
            group_ids=[self.group_ids[i] for i in chosen],
            image_ids=[self.image_ids[i] for i in chosen],
            context=self.context,
        )


@dataclass(frozen=True, eq=False)
class RewardResult:
    """The scores of a batch of N images.

    `scores` has N finite numbers of any scale, higher is better. None means that the reward cannot judge the image;
    this is not the same as a score of 0. `details` is optional: one mapping per image, which is shown to users. The
    numbers under the key "metrics" of a mapping are averaged into the metrics of the run, as `reward/<name>/<key>`.
    """

    scores: Sequence[float | None]
    details: Sequence[Mapping[str, Any]] | None = None


@runtime_checkable
class Reward(Protocol):
    """A callable that scores a batch of images.

    Two methods are optional. `setup(device: str)` is called once before the first batch, with a torch device name such
    as "cpu" or "cuda:1"; `close()` is called after the last batch. A reward whose scores depend on earlier batches may
    have two more methods: `state_dict() -> dict` returns its state as plain JSON data, and `load_state_dict(state)`
    restores it, at any time after `setup`. The state is read after each iteration, for checkpoints, and restored after
    each evaluation, so that evaluations do not change it. Calls to one reward never overlap, and all run in
    one thread.
    """

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score every image of the batch. Raise an exception if that is not possible; do not return a made-up score."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RewardExample:
    """An image that is good or bad for its prompt. `tdmr1 rewards check` tests that good ones get higher scores.

    `image` is a PIL RGB image or a uint8 array (H, W, 3). `metadata` is that of the prompt in a prompt set.
    """

    image: Any
    prompt: str
    good: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunPreview:
    """What the `preflight` function of a reward gets before anything is loaded.

    `prompts` (N) are all prompts that the reward applies to, with their `metadata` (N). `options` are the validated
    options, an instance of the RewardOptions class of the spec, or None without one. `run_folder` is the folder of a
    run that is resumed, else None.
    """

    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    options: Any = None
    run_folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """Describes a reward without importing its code. Raises Tdmr1Error for an invalid field.

    Objects are named as "module:attr" and imported when they are needed.

    - `name`: snake case, such as "object_count". `summary`: one sentence for users.
    - `factory`: a callable that takes the options and returns a Reward. `options`: a RewardOptions class; without one,
      the factory may be whatever `package.module:fn` may be as a source: a function of a batch, a class, an object, or
      a function of another toolkit. So may be what a factory returns.
    - `default_prompts`: the prompt set for `--reward name` alone; if empty, the first one of the model's domain.
      `default_preset`: the preset for it.
    - `batch_size`: the largest number of images per call. With `groupwise`, a call gets whole groups only, and at least
      one group, even if that is larger.
    - `image_format`: "pil" or "array", see `RewardBatch`. `timeout`: the time limit of a call in seconds, or None.
    - `score_range` ("0 to 1") and `needs` (weights that are downloaded, an account) are shown to users.
    - `requires`: modules that must be installed; "a|b" means one of the two. `install`: the package for pip that
      installs them, such as "tdmr1[ocr]".
    - `evaluates`: False if evaluations use the reward only when the settings name it, as for human feedback.
    - `examples`: a function without arguments that returns a list of good and bad RewardExample.
    - `freeze`: a function from options to options, called once before a run. It replaces values such as "auto" by what
      they select here, so that the settings of the run record what was used.
    - `preflight`: a function of a RunPreview, called before anything is loaded. For each prompt it returns None, or why
      the reward cannot score images of the prompt. It raises Tdmr1Error if the run cannot use the reward.
    - `lacks`: a function of options and the longer side of the images in pixels. It returns a list of Tdmr1Error:
      what this machine lacks, such as weights in the cache or an environment variable, each with the command that
      provides it as its hint. It downloads and builds nothing. Weights that are downloaded later
      have the code "hub-unavailable".
    """

    name: str
    summary: str
    factory: str
    options: str | None = None
    default_prompts: str = ""
    default_preset: str | None = None
    batch_size: int = 32
    image_format: ImageFormat = "pil"
    groupwise: bool = False
    timeout: float | None = 300.0
    evaluates: bool = True
    score_range: str = "any number"
    needs: str = ""
    requires: tuple[str, ...] = ()
    install: str | None = None
    examples: str | None = None
    freeze: str | None = None
    preflight: str | None = None
    lacks: str | None = None
    api_version: int = API_VERSION

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", self.name):
            raise Tdmr1Error(
                f"the reward name {self.name!r} is not in snake case",
                "write it like 'object_count'",
                code="reward-spec",
                values={"reward": self.name},
            )
        if self.api_version != API_VERSION:
            raise Tdmr1Error(
                f"reward {self.name!r} is written for version {self.api_version} of the reward API, but this tdmr1 has "
                f"version {API_VERSION}",
                "install matching versions of tdmr1 and the plugin",
                code="reward-spec",
                values={
                    "reward": self.name,
                    "field": "api_version",
                    "found": self.api_version,
                    "expected": API_VERSION,
                },
            )
        for name in ("factory", "options", "examples", "freeze", "preflight", "lacks"):
            reference = getattr(self, name)
            if reference is not None and not re.fullmatch(r"[\w.]+:[\w.]+", reference):
                raise self._invalid(
                    name, reference, "have the form 'module:attr'", "write it like 'my_package.my_reward:MyReward'"
                )
        if self.batch_size < 1:
            raise self._invalid("batch_size", self.batch_size, "be at least 1")
        if self.timeout is not None and not self.timeout > 0:
            raise self._invalid("timeout", self.timeout, "be above 0, or None")
        if self.image_format not in get_args(ImageFormat):
            known = " or ".join(map(repr, get_args(ImageFormat)))
            raise self._invalid("image_format", self.image_format, f"be {known}")

    def _invalid(self, field: str, found: Any, expected: str, hint: str | None = None) -> Tdmr1Error:
        return Tdmr1Error(
            f"reward {self.name!r}: {field} is {found!r}, but must {expected}",
            hint or f"change {field} in the RewardSpec",
            code="reward-spec",
            values={"reward": self.name, "field": field, "found": found, "expected": expected},
        )
