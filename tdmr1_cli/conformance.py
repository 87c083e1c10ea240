"""Prints the results of conformance checks, one line each as it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tdmr1_cli.output import data, emit_json, message

if TYPE_CHECKING:
    from tdmr1_core.conformance.checks import Result

WORDS = {True: "pass", False: "FAIL", None: "-"}


def show(found: Iterable[tuple[str, Result]], *, json: bool) -> bool:
    """Print every result of (pipeline, result). Returns whether no check failed."""
    results = []
    for pipeline, result in found:
        results.append((pipeline, result))
        line = f"{pipeline:<12} {result.check:<13} {WORDS[result.passed]:<5} {result.found}"
        message(line) if json else data(line)
    failed = [pipeline for pipeline, result in results if result.passed is False]
    if json:
        emit_json(
            [
                {"pipeline": pipeline, "check": result.check, "passed": result.passed, "found": result.found}
                for pipeline, result in results
            ]
        )
    done, of = sum(result.passed is True for _, result in results), len(results)
    skipped = sum(result.passed is None for _, result in results)
    message(f"{done} of {of} checks passed, {len(failed)} failed, {skipped} do not apply")
    return not failed
