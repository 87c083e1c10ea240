"""The console script: the environment that libraries read at import, and the boundary where errors become sentences.

Exit codes: 0 done, 1 a check failed or something unexpected happened, 2 a mistake that the user can mend, 3 one of
several processes ended for a reason that another one tells, 130 stopped.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tdmr1_cli.signals import ExitWithCode, Stopped
from tdmr1_core.distributed import rank_and_world
from tdmr1_core.errors import PeerExited, RunWarning
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint
from tdmr1_rewards.scoring.failures import RewardWarning

DEBUG_VARIABLE = "TDMR1_DEBUG"
PEER_EXITED = 3
"""The exit code of a process that leaves it to another one of the same run to tell why."""
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
"""Set unless the user has: waiting threads that spin slow a busy machine down a lot, the rest only talks."""
TALKATIVE = r"(diffusers|transformers|peft|huggingface_hub|accelerate|torch|tensorboard)\b"
"""Modules whose warnings are for developers."""
LONGEST = 1500
"""Characters of a message or a hint."""
_usual_format = warnings.formatwarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Nothing is raised: every error is told on stderr."""
    return guarded(lambda: _run(sys.argv[1:] if arguments is None else list(arguments)))


def guarded(action: Callable[[], int]) -> int:
    """The exit code of an action; what it raises is told on stderr, once where all of several processes know."""
    _prepare()
    try:
        return action()
    except Tdmr1Error as error:
        return _tell(error, error.message, error.hint or "`tdmr1 --help` lists what there is", 2)
    except Stopped as stopped:
        _write(stopped.message, f"hint: {stopped.hint}")
        return 130
    except ExitWithCode as told:
        return told.code
    except PeerExited as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exception(error)
        return PEER_EXITED
    except KeyboardInterrupt:
        if rank_and_world()[0] == 0:
            _write("stopped")
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # typer vendors its parser, so its errors are known by their shape
            return _tell(error, *_usage(error), 2)
        return _unexpected(error)


def _prepare() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=TALKATIVE)
    warnings.formatwarning = _as_message


def _as_message(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What tdmr1 warns of is for people, who need no file and line."""
    if issubclass(category, RewardWarning | RunWarning):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def _run(arguments: list[str]) -> int:
    from typer.main import get_command

    from tdmr1_cli.app import build_app

    result = get_command(build_app()).main(arguments, prog_name="tdmr1", standalone_mode=False)
    if result == 130:  # typer turns a KeyboardInterrupt into this
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> tuple[str, str]:
    """A parser's error as a sentence and a hint."""
    said = re.split(r" \(Possible options:|\. Did you mean", " ".join(str(error.format_message()).split()))[0].rstrip(
        "."
    )
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "tdmr1"
    hint = f"`{path} --help` shows how it is written"
    if possible := getattr(error, "possibilities", None):
        hint = close_match_hint(error.option_name, possible)
    elif said.startswith("No such command") and context is not None:
        hint = close_match_hint(said.split("'")[1], context.command.commands)
    return said[:1].lower() + said[1:], hint


def _unexpected(error: Exception) -> int:
    told = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return _tell(
            error,
            "the device is out of memory",
            "let `--set batch.micro_batch=auto` find what fits",
            1,
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _tell(error, f"no file or folder can have a name as long as {told!r}", "shorten it", 2)
    message = f"something unexpected happened: {type(error).__name__}: {told}".rstrip(": ")
    return _tell(error, message, f"set {DEBUG_VARIABLE}=1 to see the traceback, and please report it", 1)


def _tell(error: Exception, message: str, hint: str, code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    _write(f"error: {_short(message)}", f"hint: {_short(hint)}")
    return code


def _short(said: str) -> str:
    """Whatever was typed, a sentence ends."""
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} …"


def _write(*paragraphs: str) -> None:
    print("\n\n".join(paragraphs), file=sys.stderr)
