"""Runs `tdmr1` and scripts in forks of one process that has already imported torch, diffusers and tdmr1.

A fresh interpreter spends several seconds on imports. `WarmCli` starts one server process (`python -m
support.warm_cli`) the first time a command is run; the server imports everything once, runs no tensor operation, and
forks a child for each command. A child has its own working directory, environment, `sys.path`, standard streams,
signal handlers and process group, so that it behaves as a new process does. Variables that libraries read while they
are imported cannot be changed in a fork: `can_run` is false for those, and the caller starts a real process.
"""

from __future__ import annotations

import contextlib
import json
import os
import posix
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import IO, Any, NoReturn

LARGEST_REQUEST = 1 << 20
SET_BY_A_FORK = ("PYTHONPATH", "PYTHONIOENCODING", "HF_HOME")
READ_AT_IMPORT = ("HF_", "HUGGINGFACE", "OMP_", "MKL_", "OPENBLAS", "TORCH", "TRANSFORMERS", "DIFFUSERS", "CUDA")
READ_AT_IMPORT += ("PYTHON", "LD_", "XDG_", "TOKENIZERS", "TQDM", "RANK", "WORLD_SIZE", "LOCAL_RANK")

WARM_MODULES = (
    "diffusers:AutoencoderKL",
    "diffusers:FlowMatchEulerDiscreteScheduler",
    "diffusers:SD3Transformer2DModel",
    "diffusers:StableDiffusion3Pipeline",
    "diffusers:ZImagePipeline",
    "diffusers:ZImageTransformer2DModel",
    "diffusers.guiders",
    "PIL.PngImagePlugin",
    "transformers:AutoTokenizer",
    "transformers:CLIPTextModelWithProjection",
    "transformers:CLIPTokenizer",
    "transformers:Qwen3Model",
    "transformers:T5EncoderModel",
    "peft:LoraConfig",
    "torch.utils.tensorboard:SummaryWriter",
    "torch.utils.flop_counter:FlopCounterMode",
    "torch._subclasses.fake_tensor:FakeTensorMode",
    "tdmr1_rewards.builtin.object_count",
    "support.small_previews",
)
"""Modules that commands import on first use, and the smaller image grids of tests.

onnxruntime is omitted: it starts a thread when it is imported, and a fork does not copy threads.
"""


class WarmCli:
    """The client: starts the server at the first command, and runs each command in a fork of it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def can_run(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork can have this environment: all variables that are read at import are those of the server."""
        own = self._environment
        different = {name for name in {*own, *environment} if own.get(name) != environment.get(name)}
        return not any(name.startswith(READ_AT_IMPORT) for name in different.difference(SET_BY_A_FORK))

    def start(
        self,
        arguments: Iterable[object],
        environment: Mapping[str, str],
        *,
        cwd: object = None,
        script: object = None,
        closed: Sequence[int] = (),
        **streams: Any,
    ) -> WarmProcess:
        """Start `tdmr1`, or the Python file `script`.

        The streams are None, `subprocess.PIPE`, `DEVNULL` or a descriptor. The descriptors in `closed` are closed.
        """
        control = self._connected()
        reply, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes: dict[str, IO[str]] = {}
        ends = [child_end.fileno(), os.open(os.devnull, os.O_RDONLY)]
        for name, number in (("stdout", 1), ("stderr", 2)):
            if streams.get(name) == subprocess.PIPE:
                reading, writing = os.pipe()
                pipes[name] = open(reading, encoding="utf-8")  # noqa: SIM115
            elif streams.get(name) == subprocess.DEVNULL:
                writing = os.open(os.devnull, os.O_WRONLY)
            else:
                writing = os.dup(number if streams.get(name) is None else streams[name])
            ends.append(writing)
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(environment),
            "cwd": str(cwd or os.getcwd()),
            "script": script and str(script),
            "closed": list(closed),
        }
        socket.send_fds(control, [json.dumps(request).encode()], ends)
        child_end.close()
        for end in ends[1:]:
            os.close(end)
        return WarmProcess(reply, request["arguments"], **pipes)

    def run(
        self, arguments: Iterable[object], environment: Mapping[str, str], *, timeout: float, **place: object
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run(…, capture_output=True, text=True)`; `place` has `cwd` and `script`."""
        process = self.start(arguments, environment, **place, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)

    def close(self) -> None:
        """End the server, which lets it save its coverage data."""
        if self._server is not None and self._control is not None:
            self._control.close()
            self._server.wait(60)
            self._server = self._control = None

    def _connected(self) -> socket.socket:
        if self._control is None:
            self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-m", "support.warm_cli", str(server_end.fileno())]
            self._server = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                env=self._environment,
                pass_fds=[server_end.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            server_end.close()
        return self._control


class WarmProcess:
    """A command that runs in a fork, with the interface of `subprocess.Popen` that tests use."""

    def __init__(
        self, reply: socket.socket, args: Sequence[str], stdout: IO[str] | None = None, stderr: IO[str] | None = None
    ) -> None:
        self.args = args
        self.stdout, self.stderr = stdout, stderr
        self._streams = {"stdout": stdout, "stderr": stderr}
        self._read: dict[str, str] = {}
        self.returncode: int | None = None
        self._reply = reply
        self.pid: int = self._receive(120)["pid"]

    def poll(self) -> int | None:
        """The exit code, or None while the command runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; negative for a signal, as in Popen."""
        if self.returncode is None:
            self.returncode = self._receive(timeout)["returncode"]
            self._reply.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Read both streams to their ends and wait."""
        until = None if timeout is None else time.monotonic() + timeout

        def read(name: str, stream: IO[str]) -> None:
            self._read[name] = stream.read()
            stream.close()

        streams = {name: stream for name, stream in self._streams.items() if stream and not stream.closed}
        readers = [threading.Thread(target=read, args=item, daemon=True) for item in streams.items()]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if until is None else max(0, until - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if until is None else max(0, until - time.monotonic()))
        return self._read.get("stdout"), self._read.get("stderr")

    def send_signal(self, number: int) -> None:
        """Send a signal to the command alone, while it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the command alone."""
        self.send_signal(signal.SIGKILL)

    def _receive(self, timeout: float | None) -> dict[str, int]:
        ready = selectors.DefaultSelector()
        with ready:
            ready.register(self._reply, selectors.EVENT_READ)
            if not ready.select(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        message = self._reply.recv(1 << 12)
        if not message:
            raise RuntimeError("the server of support.warm_cli has ended; its stderr has the reason")
        return json.loads(message)


def serve(control: socket.socket) -> None:
    """Fork a child for each request until the client closes the connection; then kill the remaining children."""
    sys.path[0] = os.getcwd()
    import_everything()
    fork_processes()
    installed = installed_path()
    ready = selectors.DefaultSelector()
    ready.register(control, selectors.EVENT_READ)
    children: dict[int, socket.socket] = {}
    while True:
        for key, _ in ready.select():
            if key.fileobj is not control:
                pid: int = key.data
                _, status = os.waitpid(pid, 0)
                ready.unregister(key.fileobj)
                os.close(key.fd)
                with children.pop(pid) as reply, contextlib.suppress(OSError):
                    reply.send(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}).encode())
                continue
            message, descriptors, _, _ = socket.recv_fds(control, LARGEST_REQUEST, 4)
            if not message:
                for pid in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                return
            pid = os.fork()
            if pid == 0:
                ready.close()
                control.close()
                for other in children.values():
                    other.close()
                become(json.loads(message), descriptors, installed)
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            children[pid] = socket.socket(fileno=descriptors[0])
            children[pid].send(json.dumps({"pid": pid}).encode())
            for descriptor in descriptors[1:]:
                os.close(descriptor)
            ready.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)


def installed_path() -> list[str]:
    """The entries of `sys.path` that a new process has without PYTHONPATH.

    Python omits an entry of a .pth file that PYTHONPATH has already, so this process's own `sys.path` can lack some.
    """
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def import_everything() -> None:
    """Import what commands import, in the order of `tdmr1`, which sets environment variables before importing torch."""
    from tdmr1_cli.main import main

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        main(["--version"])
    import torch

    torch.set_num_threads(1)
    import gc
    import importlib
    import pkgutil

    for package in ("tdmr1_core", "tdmr1_cli"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in WARM_MODULES:
        module, _, attribute = name.partition(":")
        getattr(importlib.import_module(module), attribute or "__name__")  # an attribute loads a lazy module
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"the server of support.warm_cli has {threads} threads; a fork needs exactly 1")
    gc.freeze()


def fork_processes() -> None:
    """Let `--processes` fork its processes. Spawned ones, as in a real command, would import everything again.

    What a spawned process would receive is pickled, so that a job that cannot be sent fails here too. Shared memory
    is inherited instead.
    """
    import ctypes

    import torch.multiprocessing
    from torch.multiprocessing.spawn import start_processes

    def fork(function: Callable[..., None], arguments: tuple[Any, ...], **options: Any) -> Any:
        ForkingPickler.dumps((function, [each for each in arguments if not isinstance(each, ctypes.Array)]))
        return start_processes(function, arguments, **options, start_method="fork")

    torch.multiprocessing.start_processes = fork


def become(request: dict[str, Any], descriptors: list[int], installed: list[str]) -> NoReturn:
    """Run one command in this forked child, and exit with its code."""
    import atexit
    import importlib
    import runpy

    os.setpgid(0, 0)
    os.close(descriptors[0])
    for number, descriptor in enumerate(descriptors[1:]):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    if home := os.environ.get("HF_HOME"):
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_CACHE = os.path.join(home, "hub")
    os.chdir(request["cwd"])
    added = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    script = request["script"]
    first = os.path.dirname(script) if script else os.getcwd()
    sys.path[:] = [first, *added, *(part for part in installed if part not in added)]
    importlib.invalidate_caches()
    sys.argv = [script or "tdmr1", *request["arguments"]]
    restart_coverage()
    open_streams(request["closed"])
    code = 1
    try:
        from tdmr1_cli.main import main

        if script:
            runpy.run_path(script, run_name="__main__")
            code = 0
        else:
            code = main()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        posix._exit(code)  # coverage.py wraps os._exit, and its data is saved by now


def open_streams(closed: Sequence[int]) -> None:
    """Close descriptors, and make the streams that a new interpreter has."""
    for number in closed:
        os.close(number)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for number, name, errors in ((0, "stdin", "strict"), (1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        mode = "w" if number else "r"
        stream = None
        if number not in closed:
            stream = open(number, mode, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)


def restart_coverage() -> None:
    """If coverage.py measures the server, measure this fork separately; its data is saved at exit."""
    if "coverage" not in sys.modules:
        return
    import coverage

    if (of_server := coverage.Coverage.current()) is not None:
        of_server._auto_save = False
        of_server.stop()
        coverage.process_startup(force=True)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)
