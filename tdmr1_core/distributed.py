"""Several processes that share one run: each draws, scores and learns from its own groups, and only sums travel.

No model is wrapped. The processes hold the same weights because they take the same steps along the same gradients,
which are averaged in one flat all-reduce a step. Noises, steps and levels depend on an image's number among all images
of the iteration, so that nothing but the order of sums depends on the number of processes. Setting up is accelerate's;
torchrun, `accelerate launch` and `tdmr1 train --processes` tell each process its place through the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from tdmr1_core.errors import PeerExited, Tdmr1Error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tdmr1_core.records import Groups

Value = TypeVar("Value")

PATIENCE = timedelta(hours=12)
"""How long one process waits for another, such as for an evaluation; one that died is noticed much earlier."""


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many were started together, by the environment; (0, 1) for one alone."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))


def check_split(groups: int, count: int) -> None:
    """Raise Tdmr1Error if the groups of an iteration can't be split evenly over the processes."""
    if groups % count:
        less = groups - groups % count
        fitting = " or ".join(str(number) for number in (less, less + count) if number)
        raise Tdmr1Error(
            f"{groups} groups an iteration can't be split evenly over {count} processes",
            f"use --set batch.groups={fitting}, or another number of processes",
        )


@dataclass(frozen=True)
class Processes:
    """This process's number `rank`, among `count` in all; `local_rank` is its number on its own machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process where the run's is `name`: `auto` gives each of several a GPU of its own."""
        import torch

        return f"cuda:{self.local_rank}" if self.count > 1 and name == "auto" and torch.cuda.is_available() else name

    def shard_groups(self, groups: Groups) -> Groups:
        """This process's part of an iteration's groups."""
        size = len(groups) // self.count
        first = self.rank * size
        return replace(groups, prompts=groups.prompts[first : first + size], first=first)

    def shard(self, values: Tensor) -> Tensor:
        """This process's part of what lies image by image."""
        return values.chunk(self.count)[self.rank]

    def gather(self, value: Value) -> list[Value]:
        """What every process holds, in their order."""
        if self.count == 1:
            return [value]
        import torch

        values: list[Value] = [value] * self.count
        with _raise_peer_exited():
            torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process."""
        return any(self.gather(flag))

    def union(self, values: Sequence[str]) -> list[str]:
        """What any process has, once."""
        return list(dict.fromkeys(value for part in self.gather(list(values)) for value in part))

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The average of every metric over the processes that have it: they have equally many images."""
        values: dict[str, list[float]] = {}
        for part in self.gather(dict(metrics)):
            for name, value in part.items():
                values.setdefault(name, []).append(value)
        return {name: sum(found) / len(found) for name, found in values.items()}

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their average. The same parameters have one everywhere, as all run the same network."""
        if self.count == 1:
            return
        import torch

        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _raise_peer_exited():
            torch.distributed.all_reduce(flat)
        averages = (flat / self.count).split([gradient.numel() for gradient in gradients])
        for gradient, average in zip(gradients, averages, strict=True):
            gradient.copy_(average.view_as(gradient))

    def on_each(self, action: Callable[[], Value]) -> Value:
        """Do something in every process. A Tdmr1Error in one ends all of them, and the first one raises it."""
        if self.count == 1:
            return action()
        result, error = _attempt(action)
        self._raise_first(self.gather(error))
        return result  # type: ignore[return-value]

    def on_first(self, action: Callable[[], Value]) -> Value:
        """Do something in the first process alone, and give its result (picklable) or its Tdmr1Error to all."""
        if self.count == 1:
            return action()
        (result, error), *_ = self.gather(_attempt(action) if self.first else (None, None))
        self._raise_first([error])
        return result  # type: ignore[return-value]

    def leave(self) -> None:
        """Wait for the others and part from them; only where all ends well."""
        if self.count > 1:
            from accelerate import PartialState

            self.gather(None)
            PartialState().destroy_process_group()

    def _raise_first(self, errors: Sequence[Tdmr1Error | None]) -> None:
        found = [error for error in errors if error is not None]
        if found:
            raise found[0] if self.first else PeerExited from found[0].__cause__


ALONE = Processes()


def join_processes(device: str) -> Processes:
    """Meet the processes that were started together with this one, to compute on a run's `device`.

    Raises Tdmr1Error for a device that several can't share.
    """
    rank, count = rank_and_world()
    if count == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    if device not in ("auto", "cpu"):
        raise Tdmr1Error(
            f"{count} processes can't share the device {device!r}", "set model.device to auto (a GPU each) or to cpu"
        )
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if not on_cpu and local_rank >= torch.cuda.device_count():
        raise Tdmr1Error(
            f"process {local_rank + 1} of this machine has no GPU: there are {torch.cuda.device_count()}",
            "start as many processes as there are GPUs",
        )
    with _raise_peer_exited():
        PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Processes(rank, count, local_rank)


def _attempt(action: Callable[[], Value]) -> tuple[Value | None, Tdmr1Error | None]:
    try:
        return action(), None
    except Tdmr1Error as error:
        return None, error


@contextmanager
def _raise_peer_exited() -> Iterator[None]:
    """A connection that breaks means that another process has ended, which is told by it or by who started it."""
    try:
        yield
    except RuntimeError as error:
        raise PeerExited from error
