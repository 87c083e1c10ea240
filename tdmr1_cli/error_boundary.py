"""Where exceptions become messages and exit codes.

Exit codes: 0 success; 1 a check failed, or an internal error; 2 an error that the user can correct; 3 another process
of the same run failed and reports the reason; 130 stopped by the user. A result that cannot be written is an error of
code 2, unless its reader has closed the stream (docs/faults.md).
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from tdmr1_cli import streams
from tdmr1_cli.exits import end, exits_refused
from tdmr1_cli.output import emit_json, message, warning
from tdmr1_cli.signals import CheckFailed, ExitWithCode, Stopped
from tdmr1_core.distributed import leads_machine, rank_and_world, set_waiting
from tdmr1_core.errors import PeerExited, RunWarning
from tdmr1_core.models.library_logs import LIBRARIES
from tdmr1_rewards.calling.damage import on_damage
from tdmr1_rewards.calling.user_code import describe_raised
from tdmr1_rewards.errors import (
    UNSPECIFIED,
    RewardNote,
    RewardWarning,
    Tdmr1Error,
    close_match_hint,
    describe_error,
    join_hints,
    printable,
)

DEBUG_VARIABLE = "TDMR1_DEBUG"
PEER_EXITED = 3
"""The exit code of a process whose peer failed; the peer or the launcher reports the reason."""
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
"""Environment variables that are set unless the user has set them."""
MAX_LENGTH = 1500
"""Characters of a printed message or hint."""
_usual_format = warnings.formatwarning


def guarded(action: Callable[[], int], *, as_json: bool = False) -> int:
    """Run an action and return its exit code; errors are printed on stderr.

    With `as_json` an error is also printed on stdout, as {"error": {"code", "message", "hint", "values"}}.
    """
    _prepare()
    code = _exit_code(action, as_json)
    lost = streams.lost_result()
    return code if code or lost is None else _report_lost(lost)


def _exit_code(action: Callable[[], int], as_json: bool) -> int:
    try:
        with exits_refused(), on_damage(lambda error: end(_report(error, error, 2, as_json))):
            return action()
    except Tdmr1Error as error:
        return _report(error, error, 1 if isinstance(error, CheckFailed) else 2, as_json)
    except Stopped as stopped:
        message(stopped.message, "", f"hint: {stopped.hint}")
        if as_json:
            _print_json(Tdmr1Error(stopped.message, stopped.hint, code="interrupted"))
        return 130
    except ExitWithCode as request:
        return request.code
    except PeerExited as error:
        if leads_machine():
            return _report(error, _peer_exited(error), PEER_EXITED, as_json)
        _print_traceback(error)
        return PEER_EXITED
    except KeyboardInterrupt:
        if rank_and_world()[0] == 0:
            message("stopped")
            if as_json:
                _print_json(Tdmr1Error("stopped", code="interrupted"))
        return 130
    except (Exception, SystemExit) as error:
        if hasattr(error, "format_message"):  # typer vendors its parser, so its errors are recognized by their shape
            return _report(error, _usage_error(error), 2, as_json)
        described, exit_code = _internal_error(error)
        return _report(error, described, exit_code, as_json)


def _report_lost(lost: streams.Loss) -> int:
    """Report that the result of a command that has done its work is not on stdout."""
    error = Tdmr1Error(
        f"the result cannot be written to stdout: {lost.reason}",
        "free some space there, or write it to another place",
        code="not-writable",
        values={"path": "stdout", "reason": lost.reason},
    )
    return _report(error, error, 2, as_json=False)


def _prepare() -> None:
    streams.install()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    set_waiting()
    warnings.filterwarnings("ignore", module=LIBRARIES)
    warnings.formatwarning = _format_warning


def report_stray_exceptions() -> None:
    """Print one line for an exception that ends a thread of a library, or is raised in an exit handler."""
    if os.environ.get(DEBUG_VARIABLE):
        return

    def in_thread(given: threading.ExceptHookArgs) -> None:
        name = given.thread.name if given.thread else "unknown"
        warning(f"the thread {name} has ended: {describe_error(given.exc_value or given.exc_type())}")

    def ignored(given: sys.UnraisableHookArgs) -> None:
        place = (given.err_msg or "Exception ignored").removeprefix("Exception ignored").strip()
        warning(f"ignored{f' {place}' if place else ''}: {describe_error(given.exc_value or given.exc_type())}")

    threading.excepthook, sys.unraisablehook = in_thread, ignored


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of tdmr1 as `warning: message [code]`, without file and line."""
    if issubclass(category, RewardWarning | RunWarning):
        kind = "note" if issubclass(category, RewardNote) else "warning"
        return f"{kind}: {printable(with_code(str(message), getattr(message, 'code', UNSPECIFIED)))}\n"
    return printable(_usual_format(message, category, filename, lineno, line), lines=True)


def with_code(message: str, code: str) -> str:
    """The message with its code at the end, as in `there is no reward 'foo' [reward-unknown]`."""
    return message if code == UNSPECIFIED else f"{message} [{code}]"


def _peer_exited(error: PeerExited) -> Tdmr1Error:
    """The end of a process on another machine, whose launcher does not report it here."""
    return Tdmr1Error(
        "a process of this run on another machine has ended, or the connection to it broke",
        _with_notes("see the output on the other machines for the reason", error),
        code="process-failed",
    )


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


def _internal_error(error: BaseException) -> tuple[Tdmr1Error, int]:
    """Any other exception, with its exit code. Its notes, such as what is saved of a run, become hints."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        hint = "try `--preset single-gpu`, --set batch.micro_batch=auto, smaller images or a smaller model.rank"
        return Tdmr1Error("the device is out of memory", _with_notes(hint, error), code="out-of-memory"), 2
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        hint = "reduce the number or the size of the images, or use smaller files"
        return Tdmr1Error("this machine is out of memory", _with_notes(hint, error), code="out-of-memory"), 2
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return Tdmr1Error(f"a file or folder name is too long: {text!r}", "shorten it", code="argument-invalid"), 2
    kind, found = type(error).__name__, describe_raised(error)
    hint = f"set {DEBUG_VARIABLE}=1 to see the traceback, and please report it"
    values = {"exception": kind, **found.values}
    return Tdmr1Error(f"internal error: {found}", _with_notes(hint, error), code="unexpected", values=values), 1


def _with_notes(hint: str, error: BaseException) -> str | None:
    return join_hints(hint, *getattr(error, "__notes__", ()))


def _report(cause: BaseException, error: Tdmr1Error, exit_code: int, as_json: bool) -> int:
    _print_traceback(cause)
    hint = error.hint or f"set {DEBUG_VARIABLE}=1 to see the traceback"
    shown = (error.message, hint)
    if not getattr(error, "is_list", False):  # a list of what is missing is useful only if it is complete
        shown = (_shorten(error.message), _shorten(hint))
    message(f"error: {with_code(shown[0], error.code)}", "", f"hint: {shown[1]}")
    if as_json:
        _print_json(error)
    return exit_code


def _print_traceback(error: BaseException) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        message(*"".join(traceback.format_exception(error)).rstrip().split("\n"))


def _print_json(error: Tdmr1Error) -> None:
    emit_json({"error": error.document()})


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} …"
