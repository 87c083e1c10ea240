"""The files of a result are written completely or not at all."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
from support.errors import raises

from tdmr1_core.durable_files import write_results

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_failed_write_keeps_former_files_and_leaves_no_trace(tmp_path, monkeypatch, at, code):
    calls, real = itertools.count(1), os.fsync

    def fail(descriptor: int) -> None:
        if next(calls) == at:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    (tmp_path / "former.txt").write_text("former")
    monkeypatch.setattr(os, "fsync", fail)
    with raises("not-writable", path=str(tmp_path), reason=os.strerror(code)):
        write_results({tmp_path / "former.txt": b"new", tmp_path / "another.txt": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["former.txt"]
    assert (tmp_path / "former.txt").read_text() == "former"


def test_the_target_of_a_link_is_replaced_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "target.txt").write_text("former")
    (tmp_path / "link.txt").symlink_to("target.txt")
    reader, writer = os.pipe()
    write_results({tmp_path / "link.txt": b"new", Path(f"/dev/fd/{writer}"): b"piped"})
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_bytes() == b"new"
    assert os.read(reader, 100) == b"piped"
    for descriptor in (reader, writer):
        os.close(descriptor)
