"""A run in several processes: each process samples, scores and trains on its own groups.

No model is wrapped. All processes hold the same weights, because they apply the same averaged gradients: one flat
all-reduce for each optimizer step. Random draws depend on the number of an image among all images of the iteration, so
only the summation order depends on the number of processes. Accelerate sets up the process group; torchrun,
`accelerate launch` and `tdmr1 train --processes` set RANK, LOCAL_RANK and WORLD_SIZE in the environment.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tdmr1_core.errors import PeerExited, Tdmr1Error, shorten
from tdmr1_core.heartbeat import Heartbeat, Peer, coordinating_host

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tdmr1_core.records import Groups

Value = TypeVar("Value")
Item = TypeVar("Item")

NO_LIMIT = timedelta(days=365)
"""The time-out of torch for an operation of all processes. `Heartbeat` decides which process is lost."""
POLL = 0.5
"""Seconds between two checks of a process that waits: for signals, and for lost processes."""
GPU_POLL = 0.001
REFUSAL = 30
"""Seconds that the first process waits for the others to read why the run is refused."""
BACKENDS = "cpu:gloo,cuda:nccl"
"""Objects are exchanged on the CPU, also if gradients are on GPUs."""
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How the CPU threads of torch wait for the others of an operation: 1,000 checks, about 25 microseconds, then sleep.

Waking a thread takes longer than many operations of a small network. On a busy machine, threads that wait longer
without sleeping keep others from working.
"""
_abandoned = False


def has_abandoned() -> bool:
    """Whether this process stopped to wait for others. Threads of torch still wait; a normal exit would not end."""
    return _abandoned


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes, from the environment; (0, 1) for a single process."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))


def leads_machine() -> bool:
    """Whether the run has processes on other machines, and this is the first process of its machine."""
    local = os.environ.get("LOCAL_RANK"), os.environ.get("LOCAL_WORLD_SIZE")
    return local[0] == "0" and local[1] is not None and int(local[1]) < rank_and_world()[1]


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


def set_waiting() -> None:
    """Set how the CPU threads of torch wait, unless the user's environment does. Call this before torch is imported."""
    if not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)


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


def named_device(name: str) -> torch.device:
    """The device of this name, on any machine. Raises Tdmr1Error for a name that torch does not know, and for meta."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _no_device(name) from error
    if device.type == "meta":  # its tensors have no values
        raise _no_device(name)
    return device


def _no_device(name: str) -> Tdmr1Error:
    return Tdmr1Error(
        f"the device {name!r} does not exist here",
        "use cpu, cuda, cuda:N or auto",
        code="device-unavailable",
        values={"device": name},
    )


@dataclass(frozen=True)
class Processes:
    """This process has number `rank` of `count` processes, and number `local_rank` on its machine.

    Every method that exchanges data waits for the other processes. It raises PeerExited if the connection breaks, and
    Tdmr1Error in one process if `heartbeat` finds another one lost.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    heartbeat: Heartbeat | None = field(default=None, repr=False)
    before_exchange: list[Callable[[], None]] = field(default_factory=list, repr=False, compare=False)
    """Called before each exchange of data, to take part in other operations of all processes."""

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
        device = named_device(name)
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise _no_device(name) from error
        return device

    def shard_groups(self, groups: Groups) -> Groups:
        """The part of an iteration's groups that belongs to this process."""
        size = len(groups) // self.count
        first = self.rank * size
        return replace(groups, prompts=groups.prompts[first : first + size], first=first)

    def shard(self, values: Tensor) -> Tensor:
        """The part of a tensor (N, …) over all images that belongs to this process: (N / count, …)."""
        return values.chunk(self.count)[self.rank]

    def part(self, size: int) -> slice:
        """The part of `size` ordered items that belongs to this process; empty if there are too few."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        import torch

        self._begin_exchange()
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(size) for size in self._all_gather(torch.tensor([len(content)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(content)] = content
        parts = zip(self._all_gather(padded), sizes, strict=True)
        return [pickle.loads(part[:size].numpy().tobytes()) for part, size in parts]

    def _all_gather(self, values: Tensor) -> list[Tensor]:
        """The tensor of every process. All have the same shape and are on the CPU."""
        import torch

        gathered = [torch.empty_like(values) for _ in range(self.count)]
        self.wait_for(torch.distributed.all_gather(gathered, values, async_op=True))
        return gathered

    def _begin_exchange(self) -> None:
        for action in self.before_exchange:
            action()

    def exchange_number(self, number: int) -> list[int]:
        """The number of every process, in the order of their ranks, without a call of `before_exchange`."""
        import torch

        return [int(each) for each in self._all_gather(torch.tensor([number]))]

    def wait_for(self, work: Any, *, on_gpu: bool = False) -> None:
        """Wait for an operation of all processes, as torch returns it for `async_op=True`."""
        with _raise_peer_exited():
            self._wait(work, on_gpu=on_gpu)

    def wait_for_device(self) -> None:
        """Wait for the GPU of this process, whose queue may hold operations of all processes."""
        import torch

        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.wait_for(_Kernels(torch.cuda.Event()), on_gpu=True)

    def _wait(self, work: Any, *, on_gpu: bool = False) -> None:
        """Wait for an operation of all processes, while signals are handled and lost processes are noticed."""
        global _abandoned
        assert self.heartbeat is not None, "several processes are made by join_processes"
        try:
            with self.heartbeat.waiting():
                while not work.is_completed():
                    if on_gpu:
                        time.sleep(GPU_POLL)
                    else:
                        _wait_once(work)
                    if lost := self.heartbeat.lost():
                        self._raise_lost(lost)
        finally:
            _abandoned = _abandoned or not work.is_completed()
        work.wait()

    def _raise_lost(self, lost: Mapping[int, Peer]) -> None:
        """Raise Tdmr1Error in the first process that is not lost, and PeerExited in the others."""
        if self.rank > min(rank for rank in range(self.count) if rank == self.rank or rank not in lost):
            raise PeerExited
        minutes = self.heartbeat.limit / 60 if self.heartbeat else 0.0
        names = ", ".join(f"process {rank + 1} (last known stage: {peer.stage})" for rank, peer in lost.items())
        raise Tdmr1Error(
            f"no progress of {names} of {self.count} processes for {minutes:g} minutes",
            "was it stopped, or is its machine or its network down? If it only needs more time, set processes_timeout "
            "to more minutes",
            code="process-failed",
            values={
                "processes": self.count,
                "lost": {rank + 1: peer.stage for rank, peer in lost.items()},
                "minutes": minutes,
            },
        )

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return any(self.gather(flag))

    def union(self, values: Sequence[str]) -> list[str]:
        """The values of all processes without duplicates, in the order of their ranks."""
        return list(dict.fromkeys(value for part in self.gather(list(values)) for value in part))

    def join(self, values: Mapping[str, Sequence[Item]]) -> dict[str, list[Item]]:
        """The lists of all processes by name, each joined in the order of the ranks."""
        joined: dict[str, list[Item]] = {}
        for part in self.gather({name: list(items) for name, items in values.items()}):
            for name, items in part.items():
                joined.setdefault(name, []).extend(items)
        return joined

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

        self._begin_exchange()
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.wait_for(torch.distributed.all_reduce(flat, async_op=True), on_gpu=flat.is_cuda)
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
            if self.heartbeat is not None:
                self.heartbeat.close()
            PartialState().destroy_process_group()

    def _raise_first(self, errors: Sequence[Tdmr1Error | None]) -> None:
        raised = [error for error in errors if error is not None]
        if raised:
            raise raised[0] if self.first else PeerExited from raised[0].__cause__


class _Kernels:
    """All that is in the queue of the current GPU, as an operation to wait for."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event
        event.record()

    def is_completed(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        self._event.synchronize()


ALONE = Processes()


def join_processes(device: str, timeout: float = 15.0) -> Processes:
    """Join the process group of this run.

    `device` and `timeout`, in minutes, are the run's settings `model.device` and `processes_timeout`. Raises Tdmr1Error
    for a device that the processes cannot share, for a process without a GPU, and if a process does not join in time.
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
    limit, began = timedelta(minutes=timeout), time.monotonic()
    try:
        store, *_ = next(torch.distributed.rendezvous("env://", timeout=limit))
        _check_same_devices(store, rank, count, "cpu" if on_cpu else "cuda")
        backend = {} if on_cpu else {"backend": BACKENDS}
        PartialState(cpu=on_cpu, timeout=NO_LIMIT, store=store, rank=rank, world_size=count, **backend)
    except RuntimeError as error:
        in_time = time.monotonic() - began < limit.total_seconds()
        why = f": {shorten(' '.join(str(error).split()), 200)}" if in_time else f" within {timeout:g} minutes"
        raise Tdmr1Error(
            f"the {count} processes could not be connected{why}",
            "did one of them not start? Its machine may be busy, or unreachable",
            code="process-failed",
            values={"processes": count, "minutes": timeout},
        ) from error
    heartbeat = Heartbeat(rank, limit.total_seconds(), coordinating_host())
    processes = Processes(rank, count, local_rank, heartbeat)
    heartbeat.start(processes.gather(heartbeat.offer()))
    processes.gather(None)  # each has sent its first report now
    return processes


def _check_same_devices(store: torch.distributed.Store, rank: int, count: int, kind: str) -> None:
    """Raise Tdmr1Error if only some processes have a GPU; PeerExited in all processes but the first."""
    store.set(f"tdmr1/device/{rank}", kind)
    kinds = [store.get(f"tdmr1/device/{other}").decode() for other in range(count)]
    without = [number for number, found in enumerate(kinds, 1) if found == "cpu"]
    if len(without) in (0, count):
        return
    store.set(f"tdmr1/device/{rank}/refused", "")
    if rank > 0:
        raise PeerExited
    with suppress(RuntimeError):  # the store ends with this process, and the others still read from it
        store.wait([f"tdmr1/device/{other}/refused" for other in range(count)], timedelta(seconds=REFUSAL))
    raise Tdmr1Error(
        f"{len(without)} of {count} processes have no GPU, such as process {without[0]}, but the others have one",
        "start processes only on machines with GPUs, or set model.device to cpu",
        code="device-unavailable",
        values={"processes": count, "without": without},
    )


def _wait_once(work: Any) -> None:
    """Wait up to POLL seconds. Python handles signals only between two waits."""
    try:
        work.wait(timedelta(seconds=POLL))
    except RuntimeError:
        if work.is_completed():
            raise


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
