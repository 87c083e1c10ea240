"""A run in several processes: each process samples, scores and trains on its own groups.

No model is wrapped. All processes hold the same weights, because they apply the same averaged gradients: one flat
all-reduce for each optimizer step. Random draws depend on the number of an image among all images of the iteration, so
only the summation order depends on the number of processes. Accelerate sets up the process group; torchrun,
`accelerate launch` and `tdmr1 train --processes` set RANK, LOCAL_RANK and WORLD_SIZE in the environment.
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
    import torch
    from torch import Tensor, nn

    from tdmr1_core.records import Groups

Value = TypeVar("Value")

PEER_TIMEOUT = timedelta(hours=12)
"""How long a process waits for the others, for example during an evaluation. A dead process is noticed much earlier."""


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes, from the environment; (0, 1) for a single process."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))


def requested_processes(processes: int | None, started: int) -> int:
    """The number of processes of the run, of which `started` run already. Raises Tdmr1Error if both are given."""
    if processes and started > 1:
        raise Tdmr1Error(
            f"--processes {processes}: this is already one of {started} processes",
            "remove --processes",
            code="processes-count",
            values={"processes": processes, "started": started},
        )
    return processes or started


def set_threads(limit: int | None) -> None:
    """Limit the CPU threads of torch. Without a limit, torch's own choice stays (cores, or OMP_NUM_THREADS)."""
    import torch

    if limit is not None:
        torch.set_num_threads(min(limit, torch.get_num_threads()))


def check_split(groups: int, count: int) -> None:
    """Raise Tdmr1Error if the groups of an iteration cannot be divided evenly among the processes."""
    if groups % count:
        lower = groups - groups % count
        suitable = [number for number in (lower, lower + count) if number]
        raise Tdmr1Error(
            f"{groups} groups per iteration cannot be divided evenly among {count} processes",
            f"use --set batch.groups={' or '.join(map(str, suitable))}, or another number of processes",
            code="processes-count",
            values={"groups": groups, "processes": count, "suitable": suitable},
        )


@dataclass(frozen=True)
class Processes:
    """This process has number `rank` of `count` processes, and number `local_rank` on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process for the setting `name`: with several processes, `auto` is GPU `local_rank`.

        Raises Tdmr1Error for a device that does not exist here.
        """
        import torch

        if name == "auto":
            gpu = f"cuda:{self.local_rank}" if self.count > 1 else "cuda"
            return torch.device(gpu if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise Tdmr1Error(
                f"the device {name!r} does not exist here",
                "use cpu, cuda, cuda:N or auto",
                code="device-unavailable",
                values={"device": name},
            ) from error
        return device

    def shard_groups(self, groups: Groups) -> Groups:
        """The part of an iteration's groups that belongs to this process."""
        size = len(groups) // self.count
        first = self.rank * size
        return replace(groups, prompts=groups.prompts[first : first + size], first=first)

    def shard(self, values: Tensor) -> Tensor:
        """The part of a tensor (N, …) over all images that belongs to this process: (N / count, …)."""
        return values.chunk(self.count)[self.rank]

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        import torch

        values: list[Value] = [value] * self.count
        with _raise_peer_exited():
            torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return any(self.gather(flag))

    def union(self, values: Sequence[str]) -> list[str]:
        """The values of all processes without duplicates, in the order of their ranks."""
        return list(dict.fromkeys(value for part in self.gather(list(values)) for value in part))

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The mean of every metric over the processes that have it. All processes have the same number of images."""
        values: dict[str, list[float]] = {}
        for part in self.gather(dict(metrics)):
            for name, value in part.items():
                values.setdefault(name, []).append(value)
        return {name: sum(items) / len(items) for name, items in values.items()}

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes.

        The same parameters have a gradient in every process, because all run the same network.
        """
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
        """Run `action` in every process and return its result.

        If one raises Tdmr1Error, the first process raises that error and the others raise PeerExited.
        """
        if self.count == 1:
            return action()
        result, error = _attempt(action)
        self._raise_first(self.gather(error))
        return result  # type: ignore[return-value]

    def on_first(self, action: Callable[[], Value]) -> Value:
        """Run `action` in the first process and return its result (picklable) in all of them.

        If it raises Tdmr1Error, the first process raises it and the others raise PeerExited.
        """
        if self.count == 1:
            return action()
        (result, error), *_ = self.gather(_attempt(action) if self.first else (None, None))
        self._raise_first([error])
        return result  # type: ignore[return-value]

    def leave(self) -> None:
        """Wait for the other processes and leave the process group. Only called at the end of a successful run."""
        if self.count > 1:
            from accelerate import PartialState

            self.gather(None)
            PartialState().destroy_process_group()

    def _raise_first(self, errors: Sequence[Tdmr1Error | None]) -> None:
        raised = [error for error in errors if error is not None]
        if raised:
            raise raised[0] if self.first else PeerExited from raised[0].__cause__


ALONE = Processes()


def join_processes(device: str) -> Processes:
    """Join the process group of this run; `device` is the run's setting `model.device`.

    Raises Tdmr1Error for a device that the processes cannot share, and for a process without a GPU.
    """
    rank, count = rank_and_world()
    if count == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    if device not in ("auto", "cpu"):
        raise Tdmr1Error(
            f"{count} processes cannot share the device {device!r}",
            "set model.device to auto (one GPU per process) or to cpu",
            code="device-unavailable",
            values={"device": device, "processes": count},
        )
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    gpus = torch.cuda.device_count()
    if not on_cpu and local_rank >= gpus:
        raise Tdmr1Error(
            f"there is no GPU for process {local_rank + 1} of this machine: it has {gpus} GPUs",
            "start at most one process per GPU",
            code="device-unavailable",
            values={"process": local_rank + 1, "gpus": gpus},
        )
    with _raise_peer_exited():
        PartialState(cpu=on_cpu, timeout=PEER_TIMEOUT)
    return Processes(rank, count, local_rank)


def _attempt(action: Callable[[], Value]) -> tuple[Value | None, Tdmr1Error | None]:
    try:
        return action(), None
    except Tdmr1Error as error:
        return None, error


@contextmanager
def _raise_peer_exited() -> Iterator[None]:
    """Raise PeerExited for a broken connection: a peer has ended, and it or the launcher reports the reason."""
    try:
        yield
    except RuntimeError as error:
        raise PeerExited from error
