"""What a reward is given and what it answers: plain records, and nothing but the standard library behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from tdmr1_rewards.errors import Tdmr1Error

API_VERSION = 1
"""The version of these records. It rises when a reward written for the old ones would no longer work."""

ImageFormat = Literal["pil", "array"]
"""How a reward takes its images: a list of PIL RGB images, or one uint8 array (N, H, W, 3)."""


@dataclass(frozen=True)
class RewardContext:
    """Where in a run a batch comes from.

    `run_folder` is None outside a run, `iteration` counts generator updates from 0, and `seed` is the run's seed
    (0 or more): a reward that draws random numbers derives them from it and the image ids.
    """

    run_folder: Path | None
    iteration: int
    seed: int


@dataclass(frozen=True, eq=False)
class RewardBatch:
    """N images with all that a reward may know about them; every sequence has length N.

    `images` are PIL RGB images, or one uint8 array (N, H, W, 3) with values 0 to 255, as the reward's spec asks.
    `metadata` is the prompt set's own mapping for each image (empty where it has none). Images drawn for the same
    prompt to be compared share a `group_ids` entry; `image_ids` are unique within an iteration.
    Raises Tdmr1Error when the lengths differ.
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
            told = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise Tdmr1Error(f"a reward batch has {told}, but needs as many of each")

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> RewardBatch:
        """The batch of the images at `indices` (each 0 to N-1), in that order; an array of images is copied."""
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
    """A reward's answer to a batch of N images.

    `scores` holds N finite numbers of any scale, higher is better, or None for an image that the reward cannot
    judge: that is not the same as a score of 0. `details`, if given, holds one mapping an image, to be shown to people;
    numbers of a mapping under its key "metrics" are averaged into the run's metrics, as `reward/<name>/<key>`.
    """

    scores: Sequence[float | None]
    details: Sequence[Mapping[str, Any]] | None = None


@runtime_checkable
class Reward(Protocol):
    """Judges images; any callable of this shape will do.

    Two methods are optional: `setup(device: str)` is called once before the first batch, with a torch device name
    such as "cpu" or "cuda:1", and `close()` after the last one. A reward whose answers depend on earlier batches may
    have two more: `state_dict() -> dict` tells what it remembers, as plain JSON data, and `load_state_dict(state)`
    makes it remember that, at any time after `setup`. The state is asked for after the batches of every iteration, for
    checkpoints, and given back after every evaluation, which thus leaves no trace. Calls to one reward never overlap,
    but may come from different threads.
    """

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score every image of the batch; raise rather than answer a made-up number."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RewardExample:
    """A picture that a reward should find good, or bad, for this prompt: `tdmr1 rewards check` compares the two kinds.

    `image` is a PIL RGB image or a uint8 array (H, W, 3); `metadata` is what a prompt set would hold for the prompt.
    """

    image: Any
    prompt: str
    good: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """What is known of a reward before any of its code is loaded.

    `factory` is "module:attr" of a callable that takes the options and returns a Reward, and `options` that of a
    RewardOptions class; without one, the factory is called with no argument. `default_prompts` (empty for the first
    prompt set that the model has) and `default_preset` make `--reward name` enough to train with. `batch_size` is the
    most images a call; with `groupwise`, a call gets whole groups only, one even if it is larger. `timeout`: the
    seconds that a call may take, None for no limit.
    For people: `score_range` ("0 to 1") and `needs` (weights it fetches, an account). `requires` are the modules that
    must be installed, "a|b" meaning either, and `install` is what brings them ("tdmr1[ocr]"). `evaluates` is False for
    a reward that evaluations don't use unless they name it, because it asks people, say. `examples` is
    "module:attr" of a function of no argument that answers a list of RewardExample, good and bad ones.
    `freeze` is "module:attr" of a function from options to options, called once before a run: what stands for
    "whatever is here" ("auto") becomes what that is, so that the run's settings say what was used.
    Raises Tdmr1Error for a field that cannot be right.
    """

    name: str
    summary: str
    factory: str
    options: str | None = None
    default_prompts: str
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
    api_version: int = API_VERSION

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", self.name):
            raise Tdmr1Error(f"the reward name {self.name!r} is not in snake case", "write it like 'object_count'")
        if self.api_version != API_VERSION:
            raise Tdmr1Error(
                f"reward {self.name!r} was written for reward API {self.api_version}, and this tdmr1 has {API_VERSION}",
                "install versions of tdmr1 and of the plugin that go together",
            )
        for name in ("factory", "options", "examples", "freeze"):
            reference = getattr(self, name)
            if reference is not None and not re.fullmatch(r"[\w.]+:[\w.]+", reference):
                raise Tdmr1Error(
                    f"reward {self.name!r}: {name} is {reference!r}, which is not of the form 'module:attr'",
                    "write it like 'my_package.my_reward:MyReward'",
                )
        if self.batch_size < 1:
            raise Tdmr1Error(f"reward {self.name!r}: batch_size is {self.batch_size}, but must be at least 1")
        if self.timeout is not None and not self.timeout > 0:
            raise Tdmr1Error(f"reward {self.name!r}: timeout is {self.timeout}, but must be above 0, or None")
        if self.image_format not in get_args(ImageFormat):
            known = " or ".join(map(repr, get_args(ImageFormat)))
            raise Tdmr1Error(f"reward {self.name!r}: image_format is {self.image_format!r}, but must be {known}")
