"""The command line keeps freed memory, unless the user's environment has settings of the allocator."""

import os
import subprocess
import sys

import pytest

from tdmr1_cli.allocator import USER_SETTINGS, keep_freed_memory

pytestmark = [pytest.mark.unit, pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")]

ROUNDS, BLOCKS, SIZE = 5, 10, 16 * 2**20
PAGES = ROUNDS * BLOCKS * SIZE // os.sysconf("SC_PAGE_SIZE")
PROGRAM = f"""
import resource, sys
if sys.argv[1] == "kept":
    from tdmr1_cli.allocator import keep_freed_memory
    keep_freed_memory()
blocks = [b"x" * {SIZE} for _ in range({BLOCKS})]
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    blocks = [b"x" * {SIZE} for _ in range({BLOCKS})]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def fresh_pages(how, **environment):
    """The number of pages that the system provides while blocks are allocated and freed again and again."""
    inherited = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_freed_memory_is_used_again():
    assert fresh_pages("default") > PAGES / 2
    assert fresh_pages("kept") < PAGES / 50


def test_settings_in_the_environment_have_priority():
    assert fresh_pages("kept", MALLOC_TRIM_THRESHOLD_="131072") > PAGES / 2


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_torch_asks_for_large_pages_unless_the_user_decided(given, expected, monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given or "")
    if given is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")  # this process keeps its allocator
    keep_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == expected


def test_the_program_keeps_freed_memory(monkeypatch):
    from tdmr1_cli import main

    calls = []
    monkeypatch.setattr(main, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(sys, "argv", ["tdmr1", "--version"])
    for name in ("report_stray_exceptions", "settle"):
        monkeypatch.setattr(main, name, lambda *_: None)
    main.main(["--version"])
    assert not calls
    main.main()
    assert calls
