"""Where exceptions become messages and exit codes.

Exit codes: 0 success; 1 a check failed, or an internal error; 2 an error that the user can correct; 3 another process
of the same run failed and reports the reason; 130 stopped by the user.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from tdmr1_cli.signals import CheckFailed, ExitWithCode, Stopped
from tdmr1_core.distributed import rank_and_world
from tdmr1_core.errors import PeerExited, RunWarning
from tdmr1_rewards.errors import UNSPECIFIED, Tdmr1Error, close_match_hint
from tdmr1_rewards.scoring.failures import RewardWarning

DEBUG_VARIABLE = "TDMR1_DEBUG"
PEER_EXITED = 3
"""The exit code of a process whose peer failed; the peer or the launcher reports the reason."""
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
"""Environment variables that are set unless the user has set them. Threads that wait actively slow a busy machine."""
LIBRARIES = r"(diffusers|transformers|peft|huggingface_hub|accelerate|torch|tensorboard)\b"
"""Modules whose warnings are for developers, not for users."""
MAX_LENGTH = 1500
"""Characters of a printed message or hint."""
_usual_format = warnings.formatwarning


def guarded(action: Callable[[], int], *, as_json: bool = False) -> int:
    """Run an action and return its exit code; errors are printed on stderr.

    With `as_json` an error is also printed on stdout, as {"error": {"code", "message", "hint", "values"}}.
    """
    _prepare()
    try:
        return action()
    except Tdmr1Error as error:
        return _report(error, error, 1 if isinstance(error, CheckFailed) else 2, as_json)
    except Stopped as stopped:
        _write(stopped.message, f"hint: {stopped.hint}")
        if as_json:
            _print_json(Tdmr1Error(stopped.message, stopped.hint, code="interrupted"))
        return 130
    except ExitWithCode as request:
        return request.code
    except PeerExited as error:
        _print_traceback(error)
        return PEER_EXITED
    except KeyboardInterrupt:
        if rank_and_world()[0] == 0:
            _write("stopped")
            if as_json:
                _print_json(Tdmr1Error("stopped", code="interrupted"))
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # typer vendors its parser, so its errors are recognized by their shape
            return _report(error, _usage_error(error), 2, as_json)
        described, exit_code = _internal_error(error)
        return _report(error, described, exit_code, as_json)


def _prepare() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=LIBRARIES)
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of tdmr1 as `warning: message [code]`, without file and line."""
    if issubclass(category, RewardWarning | RunWarning):
        return f"warning: {with_code(str(message), getattr(message, 'code', UNSPECIFIED))}\n"
    return _usual_format(message, category, filename, lineno, line)


def with_code(message: str, code: str) -> str:
    """The message with its code at the end, as in `there is no reward 'foo' [reward-unknown]`."""
    return message if code == UNSPECIFIED else f"{message} [{code}]"


def _usage_error(error: Any) -> Tdmr1Error:
    """An error of the command-line parser."""
    text = " ".join(str(error.format_message()).split())
    message = re.split(r" \(Possible options:|\. Did you mean", text)[0].rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tdmr1"
    hint = f"run `{command} --help` for its options and arguments"
    if possible := getattr(error, "possibilities", None):
        hint = close_match_hint(error.option_name, possible)
    elif message.startswith("No such command") and context is not None:
        hint = close_match_hint(message.split("'")[1], context.command.commands)
    return Tdmr1Error(message[:1].lower() + message[1:], hint, code="usage", values={"command": command})


def _internal_error(error: Exception) -> tuple[Tdmr1Error, int]:
    """Any other exception, with its exit code."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        hint = "try `--preset single-gpu`, --set batch.micro_batch=auto, smaller images or a smaller model.rank"
        return Tdmr1Error("the device is out of memory", hint, code="out-of-memory"), 1
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return Tdmr1Error(f"a file or folder name is too long: {text!r}", "shorten it", code="argument-invalid"), 2
    kind = type(error).__name__
    message = f"internal error: {kind}: {text}".rstrip(": ")
    hint = f"set {DEBUG_VARIABLE}=1 to see the traceback, and please report it"
    return Tdmr1Error(message, hint, code="unexpected", values={"exception": kind}), 1


def _report(cause: Exception, error: Tdmr1Error, exit_code: int, as_json: bool) -> int:
    _print_traceback(cause)
    hint = error.hint or f"set {DEBUG_VARIABLE}=1 to see the traceback"
    _write(f"error: {with_code(_shorten(error.message), error.code)}", f"hint: {_shorten(hint)}")
    if as_json:
        _print_json(error)
    return exit_code


def _print_traceback(error: Exception) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)


def _print_json(error: Tdmr1Error) -> None:
    print(json.dumps({"error": error.document()}, indent=2, ensure_ascii=False, default=str))


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} …"


def _write(*paragraphs: str) -> None:
    print("\n\n".join(paragraphs), file=sys.stderr)
