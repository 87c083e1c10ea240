"""The entry point of the console script."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tdmr1_cli.error_boundary import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Every error is printed on stderr; nothing is raised."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return guarded(lambda: _run(given), as_json="--json" in given)


def _run(arguments: list[str]) -> int:
    from typer.main import get_command

    from tdmr1_cli.app import build_app

    result = get_command(build_app()).main(arguments, prog_name="tdmr1", standalone_mode=False)
    if result == 130:  # typer returns this for a KeyboardInterrupt
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0
