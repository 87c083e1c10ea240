"""Runs a reward in another process. A call ends with its answer or with the process, even if a fork holds its pipes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import tdmr1_rewards
from tdmr1_rewards.api import ImageFormat, RewardBatch, RewardResult
from tdmr1_rewards.calling.calling_thread import CallingThread
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.result_checks import CallFailed, as_call_failure, check_result
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.calling.stream_tail import StreamTail
from tdmr1_rewards.calling.wire import PROTOCOL, decode_result, encode_batch
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.texts.documents import parse_json

STARTING_LIMIT = 600.0
"""Seconds that a reward may take to be imported and built."""
EXIT_LIMIT = 5.0
"""Seconds that a worker may take to exit after its stdin is closed; then it is killed."""
PIPE_LIMIT = 1.0
"""Seconds between the end of a worker and that of its pipes, in any order. Another process may hold the pipes open."""
WORKER = Path(tdmr1_rewards.__file__).with_name("worker.py")
HOST_ONLY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Environment variables that would make modules of this environment visible in another."""
MEMORY_HINT = "SIGKILL usually means that memory ran out: decrease the `batch_size` of the reward"
CRASH_HINT = "compiled code that the reward uses has crashed: check the versions of its packages"
CRASHES = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT")
SIGNAL_HINTS = {"SIGKILL": MEMORY_HINT, **dict.fromkeys(CRASHES, CRASH_HINT)}


class WorkerTraceback(Exception):
    """The text of a traceback in a worker. It is the `__cause__` of the exception that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ProcessHost:
    """Runs a reward in a process of `worker.py`, with this interpreter or `python`.

    `start` starts the process and builds the reward, also after the process has ended. Requests block until the worker
    answers or its process ends. `owner` is the first part of the messages of errors in `start`.
    """

    has_state = True

    def __init__(self, reference: Reference, owner: str, image_format: ImageFormat, python: Path | None = None) -> None:
        self._building = _first_request("build", reference, owner, image_format=image_format)
        self._python = python
        self._worker: _Worker | None = None

    @property
    def gone(self) -> bool:
        """Whether there is no process: `start` was not called, or the process has ended."""
        return self._worker is None or self._worker.gone

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._started.pid

    def start(self) -> None:
        """Start a process and build the reward.

        Raises Tdmr1Error if the process cannot be started or the reward cannot be built.
        """
        if self._worker is not None:
            self._worker.stop()
        self._worker = _start(self._python, self._building)
        _build(self._worker, self._building)

    def setup(self, device: str) -> str | None:
        """Call the reward's `setup`. Returns its note. Raises CallFailed."""
        note: str | None = self._started.request({"do": "setup", "device": device})["note"]
        return note

    def call(self, batch: RewardBatch) -> RewardResult:
        """The checked result. Raises CallFailed."""
        answer = self._started.request({"do": "score", "batch": encode_batch(batch)})
        try:
            return check_result(decode_result(answer), batch.image_ids)
        except Tdmr1Error as error:
            raise as_call_failure(error) from error

    def state(self) -> State | None:
        """The state of the reward; None if it has none. Raises CallFailed."""
        state: State | None = self._started.request({"do": "state"})["state"]
        return state

    def load_state(self, state: State) -> None:
        """Restore a state that `state` returned. Raises CallFailed."""
        self._started.request({"do": "load_state", "state": state})

    def close(self) -> None:
        """Close the reward and end its process. Raises CallFailed if closing fails."""
        if self._worker is not None:
            try:
                if not self._worker.gone:
                    self._worker.request({"do": "close"})
            finally:
                self._worker.stop()

    def end_call(self, seconds: float | None) -> bool:
        """Kill the process, which ends the current request."""
        if self._worker is not None:
            self._worker.kill(seconds)
        return True

    @property
    def _started(self) -> _Worker:
        assert self._worker is not None, "start was not called"
        return self._worker


def request_from(python: Path, do: str, reference: Reference, owner: str, **more: Any) -> dict[str, Any]:
    """Start a worker in the environment of `python`, send one request about a reward and return the answer.

    The reward is not built. Raises Tdmr1Error, which starts with `owner`, if the process cannot be started or the
    request fails.
    """
    request = _first_request(do, reference, owner, **more)
    worker = _start(python, request)
    thread = CallingThread("reward-request")
    answer = thread.submit(partial(_build, worker, request))
    try:
        if not wait([answer], STARTING_LIMIT).done:
            worker.kill(STARTING_LIMIT)
        return dict(answer.result())
    except BaseException:  # such as Ctrl-C
        worker.kill()
        raise
    finally:
        worker.stop()
        thread.end(EXIT_LIMIT)


def _first_request(do: str, reference: Reference, owner: str, **more: Any) -> dict[str, Any]:
    return {"do": do, "protocol": PROTOCOL, "owner": owner, "reference": reference.document(), **more}


def no_interpreter(owner: str, python: Path, reason: str) -> Tdmr1Error:
    """The error for an interpreter that cannot be started. The message starts with `owner`."""
    return Tdmr1Error(
        f"{owner} cannot be started with {python}: {reason}",
        "`python` must be the path of an interpreter, such as /path/to/venv/bin/python",
        code="reward-environment",
        values={"reward": owner, "python": str(python), "error": reason},
    )


def _start(python: Path | None, request: Mapping[str, Any]) -> _Worker:
    """A new worker. Raises Tdmr1Error, which starts with the owner of the request."""
    try:
        return _Worker(python)
    except OSError as error:
        raise no_interpreter(request["owner"], python or Path(sys.executable), str(error.strerror)) from error


def _build(worker: _Worker, request: Mapping[str, Any]) -> Any:
    """The answer to the first request of a worker; a failure ends it. Raises Tdmr1Error with the owner first."""
    try:
        return worker.request(request)
    except BaseException as error:
        worker.stop()
        if isinstance(error, CallFailed):
            owner = request["owner"]
            values = {"reward": owner, **error.values}
            hint = error.hint or "check that the reward can be imported and built in that environment"
            raise Tdmr1Error(f"{owner} {error.reason}", hint, code="reward-build", values=values) from error
        raise


class _Worker:
    """A process of `worker.py` and the pipes to it. `gone` is whether it was stopped or killed.

    One thread reads its answers. Another one waits for the end of the process itself, ends the children that it leaves,
    and then ends the current request: such a child may hold the pipes open.
    """

    def __init__(self, python: Path | None) -> None:
        environment = dict(os.environ)
        if python is not None:
            for name in HOST_ONLY:
                environment.pop(name, None)
        # A new session: Ctrl-C in the terminal does not reach it, and it can be killed together with its children.
        self._process = subprocess.Popen(
            [str(python or sys.executable), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._tail = StreamTail(self._process.stderr)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reader = threading.Thread(target=_read_lines, args=(self._process.stdout, self._lines), daemon=True)
        reader.start()
        arguments = (self._process, reader, self._lines)
        self._watcher = threading.Thread(target=_watch, args=arguments, daemon=True)
        self._watcher.start()
        self._exceeded: float | None = None
        self.gone = False
        self._finalizer = weakref.finalize(self, _kill, self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, request: Mapping[str, Any]) -> Any:
        """Send a request and return the answer. Ends only with an answer or with the process.

        Raises CallFailed if the request fails, and Tdmr1Error if the worker cannot build, describe or freeze a reward.
        """
        line = b""
        with suppress(OSError, ValueError):  # after a broken or closed pipe, `line` is not complete
            self._stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._stdin.flush()
            line = self._lines.get()
        if not line.endswith(b"\n"):
            raise self._ended()
        return self._decode(line)

    def kill(self, exceeded: float | None = None) -> None:
        """Kill the process and its children, from any thread, without waiting for their end.

        `exceeded` is the time limit in seconds that the current request exceeded, if that is the reason.
        """
        self.gone, self._exceeded = True, exceeded
        _kill(self._process)

    def stop(self) -> None:
        """Close stdin, at which a worker exits, and end the process and its children."""
        self.gone = True
        with suppress(OSError, ValueError):
            self._stdin.close()
        self._watcher.join(EXIT_LIMIT)
        _kill(self._process)
        self._watcher.join()
        self._finalizer.detach()

    def _decode(self, line: bytes) -> Any:
        """The answer in a line from the worker. Raises CallFailed and Tdmr1Error as `request` does."""
        try:
            answer = parse_json(line, None)
            if "ok" in answer:
                return answer["ok"]
            cause: Exception = WorkerTraceback(answer["traceback"])
            hint, values = answer["hint"], answer["values"]
            failure: Exception
            if "refused" in answer:
                failure = Tdmr1Error(answer["refused"], hint, code="reward-build", values=values)
            else:
                failure = CallFailed(answer["failed"], hint, code=answer["code"], values=values)
            if "message" in answer:
                raised = Tdmr1Error(answer["message"], hint, code=answer["code"], values=values)
                raised.__cause__ = cause
                cause = raised
        except (ValueError, TypeError, KeyError):
            self.stop()
            raise CallFailed(f"sent a line that is not an answer of the protocol: {line[:80]!r}") from None
        raise failure from cause

    def _ended(self) -> CallFailed:
        """The failure of the current request after the process has ended, was killed, or has closed its pipes."""
        self._watcher.join(PIPE_LIMIT)
        has_exited = not self._watcher.is_alive()
        self.stop()
        if self._exceeded is not None:
            return CallFailed(
                f"did not return within {self._exceeded:g} s, and its process was killed",
                "increase `timeout`",
                values={"seconds": self._exceeded},
            )
        code = self._process.returncode
        reason = _exit_reason(code) if has_exited else "closed its pipes to this process, and was killed"
        hint = SIGNAL_HINTS.get(_signal_name(-code)) if has_exited and code < 0 else None
        return CallFailed(f"failed: its process {reason}{self._tail.quoted()}", hint, values={"exit_code": code})


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Queue every line, and an empty one at the end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(b"")


def _watch(process: subprocess.Popen[bytes], reader: threading.Thread, lines: queue.SimpleQueue[bytes]) -> None:
    """Wait for the end of a process, kill its session, and queue an empty line after its last answer."""
    with suppress(AttributeError, ChildProcessError):  # not every system has waitid; another thread has reaped it
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so the pid is still its own
        _kill(process)
    process.wait()
    reader.join(PIPE_LIMIT)
    lines.put(b"")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its session, unless its end is known."""
    if process.returncode is not None:
        return
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _exit_reason(code: int) -> str:
    """Describe the exit code of a process; a negative one is a signal."""
    return f"exited with code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
