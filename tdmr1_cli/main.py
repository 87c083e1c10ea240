"""The entry point of the console script."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tdmr1_cli.allocator import keep_freed_memory
from tdmr1_cli.error_boundary import guarded, report_stray_exceptions
from tdmr1_cli.exits import exit_at_once, settle
from tdmr1_core.distributed import has_abandoned
from tdmr1_rewards.texts.redaction import remember_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Every error is printed on stderr; nothing is raised.

    Without `arguments` this is the program, with those of `sys.argv`: its exit code is final.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    remember_arguments(given)
    if arguments is None:
        report_stray_exceptions()
        keep_freed_memory()
    code = guarded(lambda: _run(given), as_json="--json" in given)
    if has_abandoned():
        exit_at_once(code)
    if arguments is None:
        settle(code)
    return code


def _run(arguments: list[str]) -> int:
    from typer.main import get_command

    from tdmr1_cli.app import build_app

    result = get_command(build_app()).main(arguments, prog_name="tdmr1", standalone_mode=False)
    if result == 130:  # typer returns this for a KeyboardInterrupt
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0
