"""Chooses micro-batch, recomputation and placement so that a card is used and not exceeded. Imports no torch.

`choose` is a function of the settings, the memory of the card and the plans of the model. Only settings that are `auto`
are chosen. Time decides first: recomputation costs about a third more time, and latents on the CPU cost little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.planning.estimate import Plan, Planner, fitting_micro_batch, shards

MARGIN = 0.08
"""Fraction of the memory that stays free. Measured on an H100 (docs/performance.md), updates need 0.9 % more than
estimated without recomputation, and 4.4 % more with it. Rewards on the same card are not estimated."""
USEFUL = 4
"""Images of a micro-batch above which a larger one is hardly faster, so that it does not justify recomputation."""
GB = 1e9
AS_SET = "as set"


@dataclass(frozen=True)
class Choices:
    """What was chosen for a card, and why."""

    config: RunConfig
    """The settings without `auto`."""
    planned: Plan
    """The plan of these settings."""
    fits: bool
    """Whether the plan stays within the card, less the margin."""
    largest: int
    """The largest micro-batch that fits with the chosen recomputation and placement; 0 if not even one image fits."""
    lines: tuple[str, str, str]
    """Micro-batch, recomputation and placement: each setting with its value and the reason."""


@dataclass(frozen=True)
class _Option:
    """A choice of recomputation and of the place of trajectories, with the largest micro-batch that fits."""

    config: RunConfig
    planned: Plan
    most: int


def choose(config: RunConfig, room: float, plan: Callable[[RunConfig], Plan]) -> Choices:
    """Choose the settings that are `auto` for a card with `room` bytes. `plan` gives the plan of settings.

    The first of these options is taken with which a useful micro-batch fits (a group or `USEFUL` images, or the size
    that is set): as fast as possible; trajectories on the CPU; recomputation; both. If none fits, the one with the
    largest micro-batch is taken. Raises Tdmr1Error as `plan` does.
    """
    usable = room * (1 - MARGIN)
    options: list[_Option] = []
    for option in _options(config, usable, plan):
        options.append(option)
        if option.most >= _needed(config, option.planned):
            break
    best = _best(options, config)
    chosen = _with(best.config, "batch", micro_batch=_micro_batch(config, best))
    if config.memory.decoder == "auto":
        at_once = _with(chosen, "memory", decoder="none")
        chosen = at_once if plan(at_once).peak <= usable else chosen
    planned = plan(chosen)
    fits = planned.peak <= usable
    lines = (
        _explain_micro_batch(config, planned, best.most, room, fits=fits),
        _explain_recomputation(config, best, options),
        _explain_placement(config, chosen, plan),
    )
    return Choices(chosen, planned, fits, fitting_micro_batch(planned, chosen, usable), lines)


def choose_for_run(
    config: RunConfig, entry: ModelEntry, rooms: Sequence[float | None], announce: Callable[[str], None]
) -> Choices | None:
    """Choose for a run whose processes have so many free bytes each; None without a GPU, or if nothing is `auto`.

    `announce` gets a line of text before work that takes seconds. A model that cannot be planned keeps its settings.
    """
    free = [room for room in rooms if room is not None]
    if len(free) < len(rooms) or not any(value == "auto" for value in _choosable(config)):
        return None
    try:
        return choose(config, min(free), Planner(entry, len(rooms), announce).plan)
    except Tdmr1Error as error:
        if error.code != "plan-unavailable":
            raise
        announce(f"batch and memory settings are not chosen: {error.message}")
        return None


def _choosable(config: RunConfig) -> tuple[Any, ...]:
    """The values of the settings that can be chosen."""
    memory = config.memory
    return config.batch.micro_batch, memory.gradient_checkpointing, memory.trajectories, memory.decoder


def _options(config: RunConfig, usable: float, plan: Callable[[RunConfig], Plan]) -> Iterator[_Option]:
    """The options, the fastest first, each with images that are decoded one by one unless this is set."""
    memory = config.memory
    recomputed = (False, True) if memory.gradient_checkpointing == "auto" else (memory.gradient_checkpointing,)
    places = ("device", "cpu") if memory.trajectories == "auto" else (memory.trajectories,)
    decoder = "sliced" if memory.decoder == "auto" else memory.decoder
    for recomputes, place in product(recomputed, places):
        tried = _with(config, "memory", gradient_checkpointing=recomputes, trajectories=place, decoder=decoder)
        single = _with(tried, "batch", micro_batch=1)
        try:
            planned = plan(single)
        except Tdmr1Error as error:
            if memory.gradient_checkpointing == "auto" and recomputes and error.code == "model-unsupported":
                return  # the network cannot recompute
            raise
        yield _Option(tried, planned, fitting_micro_batch(planned, single, usable))


def _needed(config: RunConfig, planned: Plan) -> int:
    """The images of a micro-batch for which nothing slower is chosen."""
    local, size = planned.images // planned.processes, config.batch.micro_batch
    if size == "auto":
        return min(USEFUL, config.batch.group_size, local)
    return min(size or local, local)


def _best(options: list[_Option], config: RunConfig) -> _Option:
    """The last option if it is good enough or if not even one image fits; else the one with the largest micro-batch."""
    last, largest = options[-1], max(options, key=lambda option: option.most)
    good = last.most >= _needed(config, last.planned) or largest.most == 0
    return last if good else largest


def _micro_batch(config: RunConfig, best: _Option) -> int | None:
    """The size that is set, or the largest that fits, made even. At least 1."""
    if config.batch.micro_batch != "auto":
        return config.batch.micro_batch
    local = best.planned.images // best.planned.processes
    return even_size(max(1, best.most), local, config.batch.group_size)


def even_size(most: int, images: int, group_size: int) -> int:
    """The size of micro-batches of at most `most` images, into which the images of a process are divided evenly.

    They are whole groups if a group fits: a surrogate update with parts of groups takes two more passes per image.
    """
    unit = group_size if most >= group_size else 1
    count = math.ceil(images / unit / (most // unit))
    return math.ceil(images / unit / count) * unit


def _with(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """The settings with other values in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _explain_micro_batch(config: RunConfig, planned: Plan, most: int, room: float, *, fits: bool) -> str:
    limit = f"{room * (1 - MARGIN) / GB:.3g} GB, which is {room / GB:.3g} GB less {MARGIN:.0%}"
    size = config.batch.micro_batch
    if size != "auto":
        value = "null" if size is None else size
        return f"batch.micro_batch={value} ({AS_SET}; it {'fits' if fits else 'does not fit'} in {limit})"
    if most == 0:
        reason = f"not even one image fits in {limit}"
        if planned.processes > 1 and not config.memory.shard:
            reason += "; memory.shard=true divides the frozen weights among the processes"
    elif planned.micro_batches == 1:
        reason = f"all images fit in {limit}"
    else:
        groups = "whole groups; " if planned.micro_batch >= config.batch.group_size else ""
        reason = f"{groups}up to {_images(most)} in {limit}"
    return f"batch.micro_batch={planned.micro_batch} ({reason})"


def _explain_recomputation(config: RunConfig, best: _Option, options: list[_Option]) -> str:
    without = max((option.most for option in options if not option.config.memory.recomputes), default=0)
    if config.memory.gradient_checkpointing != "auto":
        reason = AS_SET
    elif best.config.memory.recomputes:
        reason = f"without recomputation {f'only {_images(without)}' if without else 'no image fits'}"
    elif best.most >= _needed(config, best.planned):
        reason = f"without recomputation {_images(best.most)}, which is enough"
    else:
        reason = "recomputation does not make a larger micro-batch fit"
    return f"memory.gradient_checkpointing={str(best.config.memory.recomputes).lower()} ({reason})"


def _explain_placement(config: RunConfig, chosen: RunConfig, plan: Callable[[RunConfig], Plan]) -> str:
    planned = plan(_with(chosen, "memory", trajectories="device"))
    on_device = planned.parts["trajectories"] / GB
    at_once = plan(_with(chosen, "memory", decoder="none")).parts["decoding"] / GB
    divided = shards(chosen, planned.processes)
    reasons = {
        "trajectories": f"sampled latents are {on_device:.2g} GB",
        "decoder": f"a micro-batch at once needs {at_once:.2g} GB",
        "text_encoders": "divided among the processes" if divided else "on the GPU only while they encode",
    }
    return ", ".join(
        f"memory.{name}={getattr(chosen.memory, name)} ({reason if getattr(config.memory, name) == 'auto' else AS_SET})"
        for name, reason in reasons.items()
    )


def _images(number: int) -> str:
    return f"{number} image fits" if number == 1 else f"{number} images fit"
