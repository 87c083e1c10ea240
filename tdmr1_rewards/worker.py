"""The program that runs one reward in another process. It is started by its path, and needs Python 3.10 or later.

Requests are read from stdin and answers are written to stdout, one JSON object per line. What the reward prints goes to
stderr. A finder makes `tdmr1_rewards` importable, and nothing else of the parent's environment, so that this
environment uses its own versions of all packages. pluggy need not be installed. The process ends with its parent.

    {"do": "build", "protocol": 1, "owner": …, "image_format": …, "reference": {…}}   → {"ok": {"python": "3.12.1"}}
    {"do": "describe", "protocol": 1, "owner": …, "source": "a.py:fn", "reference": {…}}   → {"ok": {"spec": …, …}}
    {"do": "freeze", …, "source": …, "reference": {…}, "registered": {…} or null}     → {"ok": {"options": {…}}}
    {"do": "options", …, "source": …, "reference": {…}, "registered": …}    → {"ok": {"options": […], "missing": […]}}
    {"do": "examples", …, "source": …, "reference": {…}, "registered": …}             → {"ok": {"examples": […]}}
    {"do": "setup", "device": "cpu"}                                                  → {"ok": {"note": … or null}}
    {"do": "score", "batch": {…}}                                                     → {"ok": {"scores": …}}
    {"do": "state"}                                                                   → {"ok": {"state": {…} or null}}
    {"do": "load_state", "state": {…}}                                                → {"ok": {}}
    {"do": "close"}                                                                   → {"ok": {}}

If a request fails, the answer is {"failed": "raised OSError: … (a.py:3, in fn)", "hint": …, "code": …, "values": {…},
"traceback": …}, with a "message" if the reward raised a Tdmr1Error. If the first request fails, which names the reward,
the answer has "refused", a whole sentence, instead of "failed".
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import queue
import signal
import sys
import threading
import traceback
import types
from functools import partial
from typing import Any, BinaryIO

OLDEST_PYTHON = (3, 10)
FIRST_REQUESTS = ("build", "describe", "freeze", "options", "examples")
"""What the first request to a worker may be. It names the reward."""
PACKAGE = os.path.dirname(os.path.abspath(__file__))


class Unfit(Exception):
    """This environment cannot run the reward. The message continues a sentence after the reward's name."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ModuleFinder(importlib.abc.MetaPathFinder):
    """Finds only the given top-level modules. `paths` maps their names to a file or a package folder."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of a top-level module; None for all others. Python finds the submodules of a package by itself."""
        location = self._paths.get(name)
        if location is None:
            return None
        if os.path.isdir(location):
            return importlib.util.spec_from_file_location(
                name, os.path.join(location, "__init__.py"), submodule_search_locations=[location]
            )
        return importlib.util.spec_from_file_location(name, location)


class Worker:
    """Answers requests until stdin ends or a "close" request comes."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._reward: Any = None
        self._loop: Any = None
        self._image_format: Any = None

    def run(self, requests: queue.SimpleQueue[bytes], closed: threading.Event) -> None:
        """Answer one request after another. An exception of the reward becomes an answer too."""
        own = os.getpid()
        while not closed.is_set():
            request = json.loads(requests.get())
            try:
                answer = {"ok": getattr(self, f"_{request['do']}")(request)}
            except BaseException as error:
                answer = _failure(error, request)
            if os.getpid() != own:  # a fork that the reward did not end: only one process may answer
                os._exit(0)
            if request["do"] == "close":
                closed.set()
            try:
                self._answers.write(json.dumps(answer).encode("ascii") + b"\n")
                self._answers.flush()
            except OSError as error:
                os.write(2, f"the pipe for answers is closed: {error}\n".encode())
                os._exit(1)

    def _build(self, request: dict[str, Any]) -> dict[str, Any]:
        _prepare(request)
        self._image_format = request["image_format"]
        _import_image_modules(self._image_format)
        from tdmr1_rewards.calling.event_loop import EventLoop
        from tdmr1_rewards.calling.reference import Reference, build

        self._loop = EventLoop()
        self._reward = build(Reference(**request["reference"]), request["owner"])
        return {"python": "{}.{}.{}".format(*sys.version_info[:3])}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        _prepare(request)
        from dataclasses import asdict

        from tdmr1_rewards.registry import RewardRegistry
        from tdmr1_rewards.sources import source as sources

        found = sources.find_reward(RewardRegistry([]), request["source"])
        return {"spec": asdict(found.spec), "taken_as": found.taken_as, "image_form": found.image_form}

    def _freeze(self, request: dict[str, Any]) -> dict[str, Any]:
        found = _find(request)
        from tdmr1_rewards.sources.source import freeze_options

        return {"options": freeze_options(found, request["reference"]["options"])}

    def _options(self, request: dict[str, Any]) -> dict[str, Any]:
        found = _find(request)
        from dataclasses import asdict

        from tdmr1_rewards.calling.wire import plain
        from tdmr1_rewards.sources.description import describe_reward

        described = describe_reward(found)
        options = [plain(asdict(option)) for option in described.options]
        return {"options": options, "missing": list(described.available.missing)}

    def _examples(self, request: dict[str, Any]) -> dict[str, Any]:
        found = _find(request)
        from tdmr1_rewards.sources.description import encode_example, load_examples

        return {"examples": [encode_example(example) for example in load_examples(found)]}

    def _setup(self, request: dict[str, Any]) -> dict[str, Any]:
        from tdmr1_rewards.calling.calls import set_up

        return {"note": set_up(self._reward, request["device"], self._loop)}

    def _score(self, request: dict[str, Any]) -> dict[str, Any]:
        from tdmr1_rewards.calling.calls import score
        from tdmr1_rewards.calling.result_checks import check_result
        from tdmr1_rewards.calling.wire import decode_batch, encode_result

        batch = decode_batch(request["batch"], self._image_format)
        return encode_result(check_result(score(self._reward, batch, self._loop), batch.image_ids))

    def _state(self, request: dict[str, Any]) -> dict[str, Any]:
        from tdmr1_rewards.calling.state import get_state

        return {"state": get_state(self._reward)}

    def _load_state(self, request: dict[str, Any]) -> dict[str, Any]:
        from tdmr1_rewards.calling.state import load_state

        load_state(self._reward, request["state"])
        return {}

    def _close(self, request: dict[str, Any]) -> dict[str, Any]:
        from tdmr1_rewards.calling.calls import close

        close(self._reward, self._loop)
        return {}


def main() -> None:
    """Answer the requests of the parent process."""
    requests, answers = _private_streams()
    if sys.path and os.path.realpath(sys.path[0] or ".") == os.path.realpath(PACKAGE):
        del sys.path[0]  # the folder of this script: its modules must not be importable as top-level modules
    sys.meta_path.insert(0, ModuleFinder({"tdmr1_rewards": PACKAGE}))
    if importlib.util.find_spec("pluggy") is None:
        sys.modules["pluggy"] = _pluggy_substitute()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    closed = threading.Event()
    reader = threading.Thread(target=_read, args=(requests, lines, closed), daemon=True)
    reader.start()
    Worker(answers).run(lines, closed)
    reader.join()


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """stdin and stdout, for the protocol only. The reward gets an empty stdin, and its stdout becomes stderr."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    if hasattr(os, "register_at_fork"):  # a fork must not keep the pipes open
        for stream in (requests, answers):
            os.register_at_fork(after_in_child=partial(os.close, stream.fileno()))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return requests, answers


def _read(requests: BinaryIO, lines: queue.SimpleQueue[bytes], closed: threading.Event) -> None:
    """Queue every line. The stream ends when the parent exits; then this process exits too, even during a call.

    Its children end with it, if it is the first process of a session.
    """
    for line in requests:
        lines.put(line)
    if closed.is_set():
        return
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _prepare(request: dict[str, Any]) -> None:
    """Make the modules of the reference importable. Raises Unfit for another protocol version or an old Python."""
    _check_version(request["protocol"])
    reference = request["reference"]
    sys.path[:0] = [path for path in reference["paths"] if path not in sys.path]
    sys.meta_path.append(ModuleFinder(reference["modules"]))


def _find(request: dict[str, Any]) -> Any:
    """The reward that a request names: one of the parent's plugins ("registered"), or in a file or module."""
    _prepare(request)
    from tdmr1_rewards.api import RewardSpec
    from tdmr1_rewards.registry import Provenance, RewardRegistry
    from tdmr1_rewards.sources.source import find_reward

    known = request["registered"]
    registered = [(RewardSpec(**known["spec"]), Provenance(**known["provenance"]))] if known else []
    return find_reward(RewardRegistry(registered), request["source"])


def _check_version(protocol: int) -> None:
    if sys.version_info < OLDEST_PYTHON:
        needed, found = (".".join(map(str, version[:2])) for version in (OLDEST_PYTHON, sys.version_info))
        raise Unfit(f"needs Python {needed} or later, but {sys.executable} is {found}")
    from tdmr1_rewards.calling.wire import PROTOCOL

    if protocol != PROTOCOL:
        raise Unfit(f"runs in a worker of protocol version {PROTOCOL}, but the request has version {protocol}")


def _import_image_modules(image_format: str) -> None:
    """Import the modules that decode images now, so that the first call does not spend its time on it."""
    modules = [("PIL.PngImagePlugin", "pillow"), ("numpy", "numpy")]
    for module, package in modules if image_format == "array" else modules[:1]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise Unfit(
                f"needs {package}, which cannot be imported in the environment of {sys.executable}: {error}",
                f"`{sys.executable} -m pip install {package}`",
            ) from None


def _failure(error: BaseException, request: dict[str, Any]) -> dict[str, Any]:
    """The answer for an exception: "refused" with a whole sentence, or "failed" with the end of a sentence."""
    missing = _missing_module(error)
    answer: dict[str, Any] = {
        "hint": f"install {missing} in the environment of {sys.executable}" if missing else None,
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    }
    if isinstance(error, Unfit):
        return answer | {"refused": f"{request['owner']} {error}", "hint": error.hint, "values": {}}
    from tdmr1_rewards.calling.result_checks import as_call_failure
    from tdmr1_rewards.calling.wire import plain
    from tdmr1_rewards.errors import Tdmr1Error

    what = {
        "build": "cannot be built",
        "describe": "cannot be described",
        "freeze": "cannot freeze its options",
        "options": "cannot list its options",
        "examples": "cannot provide its examples",
        "setup": "cannot be set up",
        "state": "cannot return its state",
        "load_state": "cannot restore its state",
        "close": "cannot be closed",
    }
    failure = as_call_failure(error, what.get(request["do"]))
    if failure.hint and not (missing and failure.code == "reward-import"):
        answer["hint"] = failure.hint
    answer |= {"code": failure.code, "values": plain(failure.values)}
    if request["do"] not in FIRST_REQUESTS:
        raised = {"message": error.message} if isinstance(error, Tdmr1Error) else {}
        return answer | {"failed": failure.reason} | raised
    sentence = error.message if isinstance(error, Tdmr1Error) else f"{request['owner']} {failure.reason}"
    return answer | {"refused": sentence}


def _missing_module(error: BaseException | None) -> str | None:
    """The name of the missing module that caused an exception; None if that was not the cause."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return error.name
        error = error.__cause__
    return None


def _pluggy_substitute() -> types.ModuleType:
    """A module in place of pluggy if that is not installed. Its markers return functions unchanged."""

    class Marker:
        def __init__(self, project_name: str) -> None:
            self.project_name = project_name

        def __call__(self, function: Any = None, **_: Any) -> Any:
            return (lambda marked: marked) if function is None else function

    module = types.ModuleType("pluggy")
    module.HookspecMarker = module.HookimplMarker = Marker  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    main()
