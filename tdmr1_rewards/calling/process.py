"""A reward in a process of its own, which a time-out ends and the next call starts anew."""

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
from tdmr1_rewards.calling.result_checks import CallFailed, as_call_failure, checked
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.calling.wire import PROTOCOL, decode_result, encode_batch
from tdmr1_rewards.errors import Tdmr1Error

STARTING_LIMIT = 600.0
"""Seconds that a reward may take to be imported and built."""
CLOSING_LIMIT = 30.0
"""Seconds that it may take to close."""
PEACE = 5.0
"""Seconds in which a process that is told to end may do so by itself."""
WORKER = Path(tdmr1_rewards.__file__).with_name("worker.py")
HOST_ONLY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Variables that would bring this environment's modules into another."""
LAST_WORDS = 3


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text: the cause of the failure that is told here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ProcessHost:
    """Runs a reward by `worker.py`, in this interpreter or `python`. It is built at once, so that mistakes show.

    A process that is started again goes on with the state that was told or taken up last. Raises Tdmr1Error, starting
    with `owner`, if the process cannot be started or the reward cannot be built.
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
        """The worker's process id."""
        return self._worker.pid

    def setup(self, device: str) -> None:
        """Let the reward set itself up. Raises CallFailed."""
        self._worker.ask({"do": "setup", "device": device}, None)
        self._device = device

    def call(self, batch: RewardBatch, timeout: float | None) -> RewardResult:
        """The reward's checked answer, from a new process if the last one is gone. Raises CallFailed."""
        if self._aborted:
            raise CallFailed("is closed")
        if self._worker.gone:
            self._restart()
        answer = self._worker.ask({"do": "score", "batch": encode_batch(batch)}, timeout)
        try:
            return checked(decode_result(answer), batch.image_ids)
        except Tdmr1Error as error:
            raise as_call_failure(error) from error

    def state(self) -> State | None:
        """What the reward remembers; None for one that has no state. Raises CallFailed."""
        if not (self._aborted or self._worker.gone):
            self._state = self._worker.ask({"do": "state"}, STATE_LIMIT)["state"]
        return self._state

    def load_state(self, state: State) -> None:
        """Let the reward remember what it told. Raises CallFailed."""
        self._worker.ask({"do": "load_state", "state": state}, STATE_LIMIT)
        self._state = state

    def close(self) -> None:
        """Close the reward and end its process. Raises CallFailed if closing fails."""
        try:
            if not (self._aborted or self._worker.gone):
                self._worker.ask({"do": "close"}, CLOSING_LIMIT)
        finally:
            self._worker.stop()

    def abort(self) -> None:
        """End the process at once."""
        self._aborted = True
        self._worker.kill()

    def _start(self) -> _Worker:
        return _started(self._building, self._python)[0]

    def _restart(self) -> None:
        self._worker.stop()
        try:
            self._worker = self._start()
        except Tdmr1Error as error:
            raise CallFailed(f"could not be started again: {error.message}", error.hint) from error
        if self._aborted:  # while it was being started
            self._worker.stop()
            raise CallFailed("is closed")
        if self._device is not None:
            self.setup(self._device)
        if self._state is not None:
            self.load_state(self._state)


def ask_elsewhere(do: str, reference: Reference, owner: str, python: Path, **more: Any) -> dict[str, Any]:
    """A worker's answer to one request about a reward, without building it, in the environment of `python`.

    Raises Tdmr1Error, starting with `owner`, if the process cannot be started, and as the reward's code does there.
    """
    request = {"do": do, "protocol": PROTOCOL, "owner": owner, "reference": reference.document(), **more}
    worker, answer = _started(request, python)
    worker.stop()
    return dict(answer)


def _started(request: Mapping[str, Any], python: Path | None) -> tuple[_Worker, Any]:
    """A new worker, and its answer to a first request. Raises Tdmr1Error, starting with the request's owner."""
    owner = request["owner"]
    try:
        worker = _Worker(python)
    except OSError as error:
        raise Tdmr1Error(
            f"{owner} could not be started with {python or sys.executable}: {error.strerror}",
            "python is the path of an interpreter, like /path/to/venv/bin/python",
        ) from error
    try:
        return worker, worker.ask(request, STARTING_LIMIT)
    except BaseException as error:
        worker.stop()
        if isinstance(error, CallFailed):
            raise Tdmr1Error(f"{owner} {error.reason}", error.hint) from error
        raise


class _Worker:
    """One process of `worker.py` and the pipes to it."""

    def __init__(self, python: Path | None) -> None:
        environment = dict(os.environ)
        if python is not None:
            for name in HOST_ONLY:
                environment.pop(name, None)
        # In a session of its own it does not hear the terminal's Ctrl-C, and can be ended with all that it starts.
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

    def ask(self, request: Mapping[str, Any], timeout: float | None) -> Any:
        """The answer to a request, within `timeout` seconds. Raises CallFailed for any other outcome."""
        alarm = None
        if timeout is not None:
            alarm = threading.Timer(timeout, self._give_up)
            alarm.daemon = True
            alarm.start()
        line = b""
        try:
            with suppress(OSError, ValueError):  # a broken or closed pipe is told below
                self._stdin.write(json.dumps(request).encode("ascii") + b"\n")
                self._stdin.flush()
                line = self._stdout.readline()
        finally:
            if alarm is not None:
                alarm.cancel()
        if not line.endswith(b"\n"):
            raise self._ended(timeout)
        return self._understood(line)

    def stop(self) -> None:
        """End the process in peace, if it still lives (it leaves when its stdin ends), and let go of the pipes."""
        with suppress(OSError, ValueError):
            self._stdin.close()
        self.kill(PEACE)
        self._stdout.close()

    def kill(self, patience: float = 0.0) -> None:
        """End the process, after `patience` seconds in which it may end by itself, with whatever it started."""
        self.gone = True
        self._finalizer.detach()
        _kill(self._process, patience)

    def _give_up(self) -> None:
        self._timed_out = True
        self.kill()

    def _understood(self, line: bytes) -> Any:
        """What the worker answered. Raises Tdmr1Error for a reward that could not be built."""
        try:
            answer = json.loads(line)
            if "ok" in answer:
                return answer["ok"]
            trace = WorkerTraceback(answer["traceback"])
            failure: Exception
            if "refused" in answer:
                failure = Tdmr1Error(answer["refused"], answer["hint"])
            else:
                failure = CallFailed(answer["failed"], answer["hint"])
        except (ValueError, TypeError, KeyError):
            self.kill()
            raise CallFailed(f"answered something that is no answer: {line[:80]!r}") from None
        raise failure from trace

    def _ended(self, timeout: float | None) -> CallFailed:
        """How the process ended, as the failure of the call it was in."""
        if self._timed_out:
            self.kill()
            return CallFailed(
                f"did not answer within {timeout:g} s, and its process was ended", "give it more time (timeout)"
            )
        self.kill(PEACE)
        return CallFailed(f"failed: its process {_how(self._process.returncode)}{self._tail.quoted()}")


class _Tail:
    """Reads a stream to its end beside everything else, and keeps the last of it."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def quoted(self) -> str:
        """The last lines, to stand at the end of a sentence."""
        self._thread.join(1)
        lines = [line.strip() for line in self._kept.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"; its last words: {' / '.join(lines[-LAST_WORDS:])[-500:]}" if lines else ""

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 65536):
                self._kept = (self._kept + chunk)[-4096:]


def _kill(process: subprocess.Popen[bytes], patience: float = 0.0) -> None:
    """End a process and its session, after `patience` seconds in which it may end by itself."""
    if process.returncode is not None:
        return
    if patience:
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _how(code: int) -> str:
    """The end of a process in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
