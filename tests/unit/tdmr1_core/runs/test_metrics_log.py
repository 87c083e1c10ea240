"""Rolling back the log files of a run: which lines are deleted, and that a crash loses none of the others."""

from __future__ import annotations

import errno
import json
import os

import pytest
from support.errors import raises, warns

from tdmr1_core import durable_files
from tdmr1_core.runs import jsonl
from tdmr1_core.runs.metrics_log import EVALUATIONS, GUARD, METRICS, RunLog

pytestmark = pytest.mark.unit
READING = {"alarms": ["an alarm"]}


@pytest.fixture
def tracker(tmp_path) -> RunLog:
    tracker = RunLog(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        tracker.metrics(step, {"reward/mean": step / 8})
        tracker.evaluations(step, [{"prompts": name, "n": 4} for name in ("one", "other")])
        tracker.guard(step, {"alarms": []})
    return tracker


def steps(folder, name: str) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / name).read_bytes().splitlines()]


def test_a_repeated_evaluation_stays_until_a_new_one_replaces_it(tracker, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tracker.go_back(2, evaluated=1)
    kept = {METRICS: [1, 2], EVALUATIONS: [1, 1, 2, 2], GUARD: [1, 2]}
    assert {name: steps(tmp_path, name) for name in kept} == kept
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: tracker.evaluations(2, [{"prompts": "new", "n": 5}]), lambda: tracker.guard(2, READING)):
        with raises("not-writable", path=str(tmp_path)):
            write()
    assert {name: steps(tmp_path, name) for name in kept} == kept
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    tracker.evaluations(2, [{"prompts": "new", "n": 5}])
    tracker.guard(2, READING)
    assert json.loads((tmp_path / EVALUATIONS).read_bytes().splitlines()[-1]) == {"step": 2, "prompts": "new", "n": 5}
    assert json.loads((tmp_path / GUARD).read_bytes().splitlines()[-1]) == {"step": 2, **READING}
    assert {name: steps(tmp_path, name) for name in kept} == {**kept, EVALUATIONS: [1, 1, 2]}
    tracker.evaluations(3, [{"prompts": "new", "n": 5}])
    assert steps(tmp_path, EVALUATIONS) == [1, 1, 2, 3]


def test_a_truncated_line_is_deleted_and_does_not_merge_with_the_next(tracker, tmp_path):
    with (tmp_path / METRICS).open("ab") as file:
        file.truncate((tmp_path / METRICS).stat().st_size - 1)  # the line lacks only its newline
    with (tmp_path / GUARD).open("ab") as file:
        file.write(b'{"step": 3, "al')
    tracker.go_back(3, evaluated=3)
    tracker.metrics(4, {})
    assert steps(tmp_path, METRICS) == [1, 2, 3, 4]
    assert steps(tmp_path, GUARD) == [1, 2, 3]


def test_a_file_without_deleted_lines_is_not_rewritten(tracker, monkeypatch):
    monkeypatch.setattr(jsonl, "replace_durable", lambda *_: pytest.fail("it was rewritten"))
    tracker.go_back(3, evaluated=3)


@pytest.mark.parametrize("line", [b"\x00\x00", b"[]", b'{"step": 1e999}', b'{"step": "2"}', b"[" * 100_000])
@pytest.mark.parametrize("name", [METRICS, EVALUATIONS, GUARD])
def test_an_unreadable_line_is_moved_aside_with_a_warning(tracker, tmp_path, name, line):
    path = tmp_path / name
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + b"".join(rest))
    with warns("record-damaged", path=str(path), lines=[2]):
        tracker.go_back(2, evaluated=2)
    assert {METRICS: [1, 2], EVALUATIONS: [1, 1, 2, 2], GUARD: [1, 2]}[name] == steps(tmp_path, name)
    assert (tmp_path / f"{name}.damaged").read_bytes() == line + b"\n"


def test_a_new_file_and_its_folder_are_flushed(tmp_path, monkeypatch):
    flushed: list[object] = []
    monkeypatch.setattr(durable_files, "flush_folder", flushed.append)
    durable_files.append_durable(tmp_path / METRICS, b"1\n")
    durable_files.append_durable(tmp_path / METRICS, b"2\n")
    assert flushed == [tmp_path]
    durable_files.make_durable_folder(tmp_path / "checkpoints")
    durable_files.make_durable_folder(tmp_path / "checkpoints")
    assert flushed == [tmp_path, tmp_path]


def test_tensorboard_drops_what_a_resume_repeats(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((1, 3), (3, 4)):  # it stopped after iteration 2 was saved, before it was evaluated
        tracker = RunLog(tmp_path, tensorboard=True)
        tracker.go_back(first - 1, evaluated=first - 2)
        for step in range(first, last + 1):
            tracker.metrics(step, {"reward/mean": step + first / 8})
        tracker.evaluations(last, [{"role": "generator_ema", "prompts": "count", "n": 4, "x/mean": 0.5}])
        tracker.close()
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("reward/mean")]
    assert shown == [(1, 1.125), (2, 2.125), (3, 3.375), (4, 4.375)]
    assert [event.step for event in board.Scalars("evaluation/generator_ema/count/x/mean")] == [4]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_during_a_rollback_loses_no_line(tracker, tmp_path, monkeypatch, call):
    def crash(*_):
        raise KeyboardInterrupt

    before = (tmp_path / METRICS).read_bytes()
    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        tracker.go_back(1, evaluated=1)
    assert (tmp_path / METRICS).read_bytes() == before
