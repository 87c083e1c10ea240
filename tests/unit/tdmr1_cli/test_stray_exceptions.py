"""Exceptions that nothing catches, in threads of libraries and in exit handlers, are one line each."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

PROGRAM = """
import atexit, threading
from tdmr1_cli.error_boundary import report_stray_exceptions
report_stray_exceptions()
def fail():
    raise OSError(28, "No space left on device")
thread = threading.Thread(target=fail, name="writer")
thread.start()
thread.join()
atexit.register(lambda: 1 / 0)
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "TDMR1_DEBUG": "", **environment},
        check=True,
    )
    return done.stderr.splitlines()


def test_each_exception_is_one_line():
    in_thread, at_exit = run()
    assert in_thread == "warning: the thread writer has ended: OSError: [Errno 28] No space left on device"
    assert at_exit == "warning: ignored in atexit callback: ZeroDivisionError: division by zero"


def test_with_the_debug_variable_tracebacks_are_printed():
    assert sum(line.startswith("Traceback") for line in run(TDMR1_DEBUG="1")) == 2
