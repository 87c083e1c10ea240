"""Runs a reward in another process. A call that exceeds its time limit ends the process; the next call restarts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import tdmr1_rewards
from tdmr1_rewards.api import ImageFormat, RewardBatch, RewardResult
from tdmr1_rewards.calling.host import STATE_LIMIT
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.result_checks import CallFailed, as_call_failure, check_result
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.calling.wire import PROTOCOL, decode_result, encode_batch
from tdmr1_rewards.errors import Tdmr1Error

STARTING_LIMIT = 600.0
"""Seconds that a reward may take to be imported and built."""
CLOSING_LIMIT = 30.0
"""Seconds that a reward may take to close."""
EXIT_LIMIT = 5.0
"""Seconds that a worker may take to exit after its stdin is closed; then it is killed."""
WORKER = Path(tdmr1_rewards.__file__).with_name("worker.py")
HOST_ONLY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Environment variables that would make modules of this environment visible in another."""
STDERR_LINES = 3
"""Lines of stderr that a message quotes after a worker has exited."""


class WorkerTraceback(Exception):
    """The text of a traceback in a worker. It is the `__cause__` of the exception that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ProcessHost:
    """Runs a reward in a process of `worker.py`, with this interpreter or `python`.

    The reward is built immediately, so that errors appear early. A restarted process gets the state that was returned
    or restored last. Raises Tdmr1Error, which starts with `owner`, if the process cannot be started or the reward
    cannot be built.
    """

    def __init__(self, reference: Reference, owner: str, image_format: ImageFormat, python: Path | None = None) -> None:
        self._building = {
            "do": "build",
            "protocol": PROTOCOL,
            "owner": owner,
            "image_format": image_format,
            "reference": reference.document(),
        }
        self._python = python
        self._device: str | None = None
        self._state: State | None = None
        self._aborted = False
        self._worker = self._start()

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._worker.pid

    def setup(self, device: str) -> None:
        """Call the reward's `setup`, without a time limit. Raises CallFailed."""
        self._worker.request({"do": "setup", "device": device}, None)
        self._device = device

    def call(self, batch: RewardBatch, timeout: float | None) -> RewardResult:
        """The checked result, from a new process if the last one has ended. Raises CallFailed."""
        if self._aborted:
            raise CallFailed("is closed")
        if self._worker.gone:
            self._restart()
        answer = self._worker.request({"do": "score", "batch": encode_batch(batch)}, timeout)
        try:
            return check_result(decode_result(answer), batch.image_ids)
        except Tdmr1Error as error:
            raise as_call_failure(error) from error

    def state(self) -> State | None:
        """The state of the reward; None if it has none. Raises CallFailed."""
        if not (self._aborted or self._worker.gone):
            self._state = self._worker.request({"do": "state"}, STATE_LIMIT)["state"]
        return self._state

    def load_state(self, state: State) -> None:
        """Restore a state that `state` returned. Raises CallFailed."""
        self._worker.request({"do": "load_state", "state": state}, STATE_LIMIT)
        self._state = state

    def close(self) -> None:
        """Close the reward and end its process. Raises CallFailed if closing fails."""
        try:
            if not (self._aborted or self._worker.gone):
                self._worker.request({"do": "close"}, CLOSING_LIMIT)
        finally:
            self._worker.stop()

    def abort(self) -> None:
        """Kill the process."""
        self._aborted = True
        self._worker.kill()

    def _start(self) -> _Worker:
        return _started(self._building, self._python)[0]

    def _restart(self) -> None:
        self._worker.stop()
        try:
            self._worker = self._start()
        except Tdmr1Error as error:
            raise CallFailed(
                f"cannot be restarted: {error.message}", error.hint, code=error.code, values=error.values
            ) from error
        if self._aborted:  # during the start
            self._worker.stop()
            raise CallFailed("is closed")
        if self._device is not None:
            self.setup(self._device)
        if self._state is not None:
            self.load_state(self._state)


def request_from(python: Path, do: str, reference: Reference, owner: str, **more: Any) -> dict[str, Any]:
    """Start a worker in the environment of `python`, send one request about a reward and return the answer.

    The reward is not built. Raises Tdmr1Error, which starts with `owner`, if the process cannot be started or the
    request fails.
    """
    request = {"do": do, "protocol": PROTOCOL, "owner": owner, "reference": reference.document(), **more}
    worker, answer = _started(request, python)
    worker.stop()
    return dict(answer)


def _started(request: Mapping[str, Any], python: Path | None) -> tuple[_Worker, Any]:
    """A new worker and its answer to the first request. Raises Tdmr1Error, which starts with the request's owner."""
    owner = request["owner"]
    try:
        worker = _Worker(python)
    except OSError as error:
        raise Tdmr1Error(
            f"{owner} cannot be started with {python or sys.executable}: {error.strerror}",
            "`python` must be the path of an interpreter, such as /path/to/venv/bin/python",
            code="reward-environment",
            values={"reward": owner, "python": str(python or sys.executable), "error": str(error.strerror)},
        ) from error
    try:
        return worker, worker.request(request, STARTING_LIMIT)
    except BaseException as error:
        worker.stop()
        if isinstance(error, CallFailed):
            values = {"reward": owner, **error.values}
            hint = error.hint or "check that the reward can be imported and built in that environment"
            raise Tdmr1Error(f"{owner} {error.reason}", hint, code="reward-build", values=values) from error
        raise


class _Worker:
    """A process of `worker.py` and the pipes to it. `gone` is whether it was stopped or killed."""

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
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._tail = _Tail(self._process.stderr)
        self._timed_out = False
        self.gone = False
        self._finalizer = weakref.finalize(self, _kill, self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, request: Mapping[str, Any], timeout: float | None) -> Any:
        """Send a request and return the answer, within `timeout` seconds.

        Raises CallFailed if the request fails, and Tdmr1Error if the worker cannot build, describe or freeze a reward.
        """
        alarm = None
        if timeout is not None:
            alarm = threading.Timer(timeout, self._time_out)
            alarm.daemon = True
            alarm.start()
        line = b""
        try:
            with suppress(OSError, ValueError):  # after a broken or closed pipe, `line` is not complete
                self._stdin.write(json.dumps(request).encode("ascii") + b"\n")
                self._stdin.flush()
                line = self._stdout.readline()
        finally:
            if alarm is not None:
                alarm.cancel()
        if not line.endswith(b"\n"):
            raise self._ended(timeout)
        return self._decode(line)

    def stop(self) -> None:
        """Close the pipes and end the process. A worker exits by itself when its stdin is closed."""
        with suppress(OSError, ValueError):
            self._stdin.close()
        self.kill(EXIT_LIMIT)
        self._stdout.close()

    def kill(self, wait: float = 0.0) -> None:
        """Kill the process and its children, unless it exits by itself within `wait` seconds."""
        self.gone = True
        self._finalizer.detach()
        _kill(self._process, wait)

    def _time_out(self) -> None:
        self._timed_out = True
        self.kill()

    def _decode(self, line: bytes) -> Any:
        """The answer in a line from the worker. Raises CallFailed and Tdmr1Error as `request` does."""
        try:
            answer = json.loads(line)
            if "ok" in answer:
                return answer["ok"]
            trace = WorkerTraceback(answer["traceback"])
            failure: Exception
            if "refused" in answer:
                failure = Tdmr1Error(answer["refused"], answer["hint"], code="reward-build")
            else:
                failure = CallFailed(answer["failed"], answer["hint"])
        except (ValueError, TypeError, KeyError):
            self.kill()
            raise CallFailed(f"sent a line that is not an answer of the protocol: {line[:80]!r}") from None
        raise failure from trace

    def _ended(self, timeout: float | None) -> CallFailed:
        """The failure of the current call after the process has ended or exceeded its time limit."""
        if self._timed_out:
            self.kill()
            return CallFailed(
                f"did not return within {timeout:g} s, and its process was killed",
                "increase `timeout`",
                values={"seconds": timeout},
            )
        self.kill(EXIT_LIMIT)
        code = self._process.returncode
        return CallFailed(f"failed: its process {_exit_reason(code)}{self._tail.quoted()}", values={"exit_code": code})


class _Tail:
    """Reads a stream in a thread and keeps its last 4096 bytes."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def quoted(self) -> str:
        """The last lines, as the end of a sentence; empty if there are none."""
        self._thread.join(1)
        lines = [line.strip() for line in self._kept.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"; its last output: {' / '.join(lines[-STDERR_LINES:])[-500:]}" if lines else ""

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 65536):
                self._kept = (self._kept + chunk)[-4096:]


def _kill(process: subprocess.Popen[bytes], wait: float = 0.0) -> None:
    """Kill a process and its session, unless it exits by itself within `wait` seconds."""
    if process.returncode is not None:
        return
    if wait:
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait)
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _exit_reason(code: int) -> str:
    """Describe the exit code of a process; a negative one is a signal."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
